"""What the Triton kernels become for GPUs that are not here: compiled, disassembled, counted.

A figure of this is a fact about the machine code, not about its speed.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qvla_ros.errors import ConfigurationError
from qvla_ros.kernels.triton_fused import HEADS, lanes_of, warps
from qvla_ros.kernels.triton_multiply import FEW_TOKENS, tile

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
    "residual": "*bf16",
    "source": "*i32",
    "second": "*i32",
    "bias": "*bf16",
    "second_bias": "*bf16",
    "factor": "*bf16",
    "weight": "*bf16",
    "shift": "*bf16",
    "cosines": "*bf16",
    "sines": "*bf16",
    "total": "*bf16",
    "out": "*bf16",
}
_SCALARS = {"tiny": "fp32", "share": "fp32", "eps": "fp32"}
_LANES = {width: lanes_of(width) for width in (1152, 4096, 4304, 11008)}
"""Of OpenVLA-OFT's widths: SigLIP's tokens, the Llama's, SigLIP's MLP, the Llama's MLP."""

_PRODUCTS = {  # kernel, tokens, integers of groups
    "a16": ("multiply_floats", 256, False),
    "a16_groups": ("multiply_floats", 256, True),
    "a16_few": ("multiply_floats", FEW_TOKENS, False),
    "a16_few_groups": ("multiply_floats", FEW_TOKENS, True),
    "a8": ("multiply_integers", 256, False),
    "a8_few": ("multiply_integers", FEW_TOKENS, False),
    "a8_few_groups": ("multiply_integers", FEW_TOKENS, True),
    "a8_groups": ("multiply_integers", 256, True),
}
_STEPS: dict[str, tuple[str, dict[str, int | bool]]] = {
    "identity": (
        "activate_tokens",
        {"FUNCTION": 0, "BIAS": False, "ROUND": True, "LANES": _LANES[4096]},
    ),
    "gelu": (
        "activate_tokens",
        {"FUNCTION": 1, "BIAS": True, "ROUND": True, "LANES": _LANES[4304]},
    ),
    "swiglu": (
        "activate_tokens",
        {"FUNCTION": 2, "BIAS": False, "ROUND": True, "LANES": _LANES[11008]},
    ),
    "add_rms_norm": (
        "add_norm_tokens",
        {"BIAS": False, "FACTOR": False, "CENTRED": False, "ROUND": True, "LANES": _LANES[4096]},
    ),
    "add_layer_norm": (
        "add_norm_tokens",
        {"BIAS": True, "FACTOR": True, "CENTRED": True, "ROUND": True, "LANES": _LANES[1152]},
    ),
    "rotate_heads": ("rotate_heads", {"BIAS": False, "HEADS": HEADS, "LANES": 128}),
}
PRODUCTS = tuple(_PRODUCTS)
"""The kernels that multiply, and the ways in which they are compiled."""

VARIANTS = (*_PRODUCTS, *_STEPS)
"""Those, and the elementwise steps between them."""

_FLOAT_PRODUCTS = {87: "HMMA", 90: "HGMMA", 110: "UTCHMMA"}
_INTEGER_PRODUCTS = {87: "IMMA", 90: "IGMMA", 110: "IMMA"}
"""The tensor cores' instruction that the products must become, by architecture."""

_SHARED_BYTES = {87: 99 * 1024, 90: 227 * 1024, 110: 99 * 1024}  # of a program


@dataclass(frozen=True, slots=True)
class CompileGate:
    """One kernel for one architecture.

    Attributes:
        architecture: E.g. 87 for sm_87.
        variant: One of `VARIANTS`.
        float_products: The tensor cores' instruction for floats, with its count, or ``""``.
        integer_products: The same for integers.
        registers: Of a thread; those beyond 255 are spilt.
        spill_instructions: Loads and stores of registers that did not fit.
        shared_bytes: Shared memory of a program.
        integer_to_float_conversions: Slow conversion instructions.
        loop_conversions: Those of them that are in a loop.
    """

    architecture: int
    variant: str
    float_products: str
    integer_products: str
    registers: int
    spill_instructions: int
    shared_bytes: int
    integer_to_float_conversions: int
    loop_conversions: int

    def faults(self) -> list[str]:
        """What would make it slow, in words."""
        name, tokens, _ = _PRODUCTS.get(self.variant, ("", 0, False))
        floats, integers = bool(name), name == "multiply_integers"
        # A tile of few tokens is too small for the newer instructions.
        products = 87 if tokens == FEW_TOKENS else self.architecture
        checks = {
            f"{self.spill_instructions} instructions spill registers": self.spill_instructions > 0,
            f"{self.shared_bytes} bytes of shared memory": self.shared_bytes
            > _SHARED_BYTES[self.architecture],
            f"{self.loop_conversions} conversions to float in loops": self.loop_conversions > 0,
            "no float products on tensor cores": floats
            and not self.float_products.startswith(_FLOAT_PRODUCTS[products]),
            "no integer products on tensor cores": integers
            and not self.integer_products.startswith(_INTEGER_PRODUCTS[products]),
        }
        where = f"sm_{self.architecture} {self.variant}"
        return [f"{where}: {text}" for text, wrong in checks.items() if wrong]

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return {**asdict(self), "faults": self.faults()}


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
    kernel, constants, program_warps = _variant(architecture, variant)
    step = variant in _STEPS
    types = {
        argument: "constexpr" if argument in constants else _type(argument)
        for argument in kernel.arg_names
    }
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, argument in enumerate(kernel.arg_names)
        # What Triton finds when it launches: every pointer, and the width (see `ALIGNMENT`).
        if types[argument].startswith("*") or argument == ("columns" if step else "width")
    }
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": program_warps},
    )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    usage, code = _inspect(compiled.asm["cubin"], tools)
    counts, in_loops = _counts(code), _counts(_loops(code))
    return CompileGate(
        architecture=architecture,
        variant=variant,
        float_products=_named(counts, _FLOAT_PRODUCTS),
        integer_products=_named(counts, _INTEGER_PRODUCTS),
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spill_instructions=counts["STL"] + counts["LDL"],
        shared_bytes=compiled.metadata.shared,
        integer_to_float_conversions=counts["I2F"] + counts["I2FP"],
        loop_conversions=in_loops["I2F"] + in_loops["I2FP"],
    )


def _variant(architecture: int, variant: str) -> tuple[Any, dict[str, int | bool], int]:
    """The kernel, its constants, and the warps of a program."""
    from qvla_ros.kernels import triton_fused_kernels, triton_kernels

    if variant in _STEPS:
        name, constants = _STEPS[variant]
        lanes = constants["LANES"] * constants.get("HEADS", 1)
        return getattr(triton_fused_kernels, name), constants, warps(lanes)
    name, tokens, groups = _PRODUCTS[variant]
    size = tile(architecture // 10, tokens, groups and name == "multiply_integers")
    constants = {"BLOCK_ROWS": size.rows, "BLOCK_TOKENS": size.tokens, "GROUPED": groups}
    return getattr(triton_kernels, name), constants, size.warps


def _type(argument: str) -> str:
    return _SCALARS.get(argument) or _POINTERS.get(argument, "i32")


def _counts(code: str) -> Counter[str]:
    """How often each word occurs, without what follows its dots."""
    return Counter(re.findall(r"\b[A-Z0-9]+\b", code))


def _named(counts: Counter[str], words: Mapping[int, str]) -> str:
    return ", ".join(f"{word} x{counts[word]}" for word in sorted({*words.values()} & {*counts}))


def _loops(code: str) -> str:
    """The lines between a label and a branch back to it."""
    lines = code.splitlines()
    label_at: dict[str, int] = {}
    inside: set[int] = set()
    for number, line in enumerate(lines):
        if line.startswith(".L"):
            label_at[line.rstrip(":")] = number
        branch = re.search(r"\bBRA\b.*`\((\.L\w+)\)", line)
        if branch and branch[1] in label_at:
            inside.update(range(label_at[branch[1]], number))
    return "\n".join(lines[number] for number in sorted(inside))


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
