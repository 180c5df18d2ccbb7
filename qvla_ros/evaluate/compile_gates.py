"""What the Triton kernels become for GPUs that are not here: compiled, disassembled, counted.

A figure of this is a fact about the machine code, not about its speed.
"""

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.triton_linear import BLOCK_ROWS, BLOCK_TOKENS, GROUP_BLOCK_TOKENS, WARPS

ARCHITECTURES = (87, 90, 110)
"""AGX Orin and Orin NX, H100, Thor."""

_POINTERS = {
    "x": "*bf16",
    "y": "*bf16",
    "weight16": "*bf16",
    "codes8": "*u8",
    "codes4": "*u8",
    "codes3": "*u8",
    "codes2": "*u8",
    "scale": "*bf16",
    "zero": "*bf16",
    "tiles": "*i32",
    "rounded": "*i8",
    "input_scale": "*fp32",
    "sums": "*fp32",
}
_TILE = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_TOKENS": BLOCK_TOKENS}
_VARIANTS: dict[str, tuple[str, dict[str, int | bool]]] = {
    "a16": ("multiply_floats", {**_TILE}),
    "a8": ("multiply_integers", {**_TILE, "GROUPED": False}),
    "a8_groups": (
        "multiply_integers",
        {**_TILE, "BLOCK_TOKENS": GROUP_BLOCK_TOKENS, "GROUPED": True},
    ),
    "round_tokens": ("round_tokens", {"GROUPED": True}),
}
VARIANTS = tuple(_VARIANTS)
"""The kernels, and the ways in which they are compiled."""

_FLOAT_PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA")
_INTEGER_PRODUCTS = ("IMMA", "IGMMA", "UTCIMMA")


@dataclass(frozen=True, slots=True)
class CompileGate:
    """One kernel for one architecture.

    Attributes:
        architecture: E.g. 87 for sm_87.
        variant: One of `VARIANTS`.
        float_products: The tensor cores' instruction for floats, with its count, or ``""``.
        integer_products: The same for integers.
        registers: Of a thread, at most 255.
        spill_instructions: Loads and stores of registers that did not fit.
        shared_bytes: Shared memory of a program.
        integer_to_float_conversions: Slow conversion instructions, none of which is in a loop.
    """

    architecture: int
    variant: str
    float_products: str
    integer_products: str
    registers: int
    spill_instructions: int
    shared_bytes: int
    integer_to_float_conversions: int

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return asdict(self)


def compile_gate(architecture: int, variant: str) -> CompileGate:
    """Compile one kernel for a GPU that need not be here.

    Raises:
        ConfigurationError: Triton is not installed.
    """
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        raise ConfigurationError("Triton is not installed: pip install triton") from error
    from qvla_ros.kernels import triton_kernels

    name, constants = _VARIANTS[variant]
    kernel = getattr(triton_kernels, name)
    types = {
        argument: "constexpr" if argument in constants else _POINTERS.get(argument, "i32")
        for argument in kernel.arg_names
    }
    if "tiny" in types:
        types["tiny"] = "fp32"
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, argument in enumerate(kernel.arg_names)
        if argument in _POINTERS
    }
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": WARPS if "BLOCK_ROWS" in constants else 4},
    )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    usage, code = _inspect(compiled.asm["cubin"], tools)
    counts = {word: len(re.findall(rf"\b{word}\b", code)) for word in _words()}
    return CompileGate(
        architecture=architecture,
        variant=variant,
        float_products=_named(counts, _FLOAT_PRODUCTS),
        integer_products=_named(counts, _INTEGER_PRODUCTS),
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spill_instructions=counts["STL"] + counts["LDL"],
        shared_bytes=compiled.metadata.shared,
        integer_to_float_conversions=counts["I2F"] + counts["I2FP"],
    )


def _words() -> tuple[str, ...]:
    return (*_FLOAT_PRODUCTS, *_INTEGER_PRODUCTS, "STL", "LDL", "I2F", "I2FP")


def _named(counts: dict[str, int], words: tuple[str, ...]) -> str:
    return ", ".join(f"{word} x{counts[word]}" for word in words if counts[word])


def _inspect(binary: bytes, tools: Path) -> tuple[str, str]:
    """Resource usage and machine code, as Triton's own copies of NVIDIA's tools print them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        return (
            _output(str(tools / "cuobjdump"), "-res-usage", str(path)),
            _output(str(tools / "nvdisasm"), "-c", str(path)),
        )


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
