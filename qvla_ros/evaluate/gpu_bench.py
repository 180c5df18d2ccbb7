"""``qvla bench gpu``: everything that is to be shown on a GPU, in one process and one table.

It begins with the correctness of every kernel on this device, and ends there if one is wrong.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from qvla_ros.checkpoint.reader import read_checkpoint
from qvla_ros.errors import ConfigurationError, QvlaError
from qvla_ros.evaluate.gpu_checks import LIMIT, Check, run_checks
from qvla_ros.evaluate.gpu_networks import (
    EAGER,
    GRAPH,
    PACKED_8,
    NetworkTimes,
    bench_networks,
    network_error,
)
from qvla_ros.evaluate.gpu_products import BASELINE, OURS, ProductBench, ProductTimes
from qvla_ros.evaluate.gpu_rivals import RIVALS
from qvla_ros.evaluate.kernel_bench import SHAPES, TOKENS
from qvla_ros.evaluate.load_bench import write_synthetic_checkpoint
from qvla_ros.evaluate.machine import package_version
from qvla_ros.kernels.cuda_device import device_errors, triton_obstacle
from qvla_ros.kernels.fused_ops import FusedOps
from qvla_ros.kernels.fused_reference import REFERENCE
from qvla_ros.kernels.triton_fused import TRITON

_MLP = ((22016, 4096), (4096, 11008))
_PACKAGES = ("torch", "triton", "gemlite", "bitsandbytes", "torchao", "qvla-ros")
_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
_LOAD_BYTES = 2**30
_NETWORK_LIMIT = 2e-2  # of a whole network, whose roundings add up


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        device: ``cuda``, or ``cpu`` for a dry run.
        shapes: ``(rows, columns)`` of products; the language's come first.
        tokens: Rows of their inputs.
        tiny: Whether the networks are of tiny sizes.
        repeats: Measurements of each network; products have a tenth of that.
        seconds: No further shape or network is begun after so many.
    """

    device: torch.device
    shapes: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    tiny: bool
    repeats: int
    seconds: float

    @classmethod
    def of(cls, device: str, tiny: bool, minutes: float) -> "Plan":
        """The full plan, or a dry run of every part.

        Raises:
            ConfigurationError: The device or Triton is not there.
        """
        if tiny:
            return cls(torch.device(device), ((64, 256),), (1, 20), True, 2, 60 * minutes)
        obstacle = triton_obstacle() if device == "cuda" else "--device cpu is for --tiny only"
        if obstacle is not None:
            raise ConfigurationError(f"qvla bench gpu: {obstacle}")
        shapes = (*SHAPES["language"], *SHAPES["vision"])
        return cls(torch.device(device), shapes, TOKENS, False, 200, 60 * minutes)

    @property
    def ops(self) -> FusedOps:
        """Whose steps are measured."""
        return TRITON if self.device.type == "cuda" else REFERENCE


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the table.

    Attributes:
        name: What is asked.
        limit: What it must be.
        above: Whether it must be at least that, rather than at most.
        measured: What it is; ``None`` if that was not measured.
        optional: Whether that may be, because it takes a library that need not be there.
    """

    name: str
    limit: float
    above: bool
    measured: float | None
    optional: bool = False

    @property
    def passed(self) -> bool | None:
        """``None`` if it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.above else self.measured <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.above else "≤"
        found = "not measured" if self.measured is None else f"{self.measured:.3f}"
        verdict = {True: "pass", False: "FAIL", None: "-"}[self.passed]
        return f"{self.name:<62} {sign} {self.limit:<5g} {found:>12}  {verdict}"


@dataclass(slots=True)
class GpuBench:
    """What was found.

    Attributes:
        gpu: Device, driver, clocks, versions.
        checks: Correctness; if one failed, there is nothing else.
        products: Times of products.
        networks: Times and memory of whole networks.
        load: Of a checkpoint of `_LOAD_BYTES`: ``file_bytes``, ``seconds``, ``device_bytes``,
            ``device_peak_bytes``.
        faults: Checks and parts that failed, and why; bars that were missed.
        seconds: How long all of it took.
    """

    gpu: dict[str, str]
    checks: list[Check] = field(default_factory=list)
    products: list[ProductTimes] = field(default_factory=list)
    networks: list[NetworkTimes] = field(default_factory=list)
    load: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def bars(self) -> list[Bar]:
        """Every bar; the slowest shape, or network, counts."""
        return [*product_bars(self.products), *network_bars(self.networks)]

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return {
            "gpu": self.gpu,
            "bars": [{**asdict(bar), "passed": bar.passed} for bar in self.bars()],
            "checks": {check.name: check.error for check in self.checks},
            "error_limit": LIMIT,
            "products": [times.to_json() for times in self.products],
            "networks": [times.to_json() for times in self.networks],
            "load": self.load,
            "faults": self.faults,
            "seconds": round(self.seconds, 1),
        }


def bench_gpu(plan: Plan, say: Callable[[str], None]) -> GpuBench:
    """Check, then measure; what fails is a fault, and the rest goes on.

    Args:
        plan: What to measure.
        say: Told every result as it comes.
    """
    began = time.monotonic()
    failures = _failures()
    bench = GpuBench(describe_gpu(plan.device))
    try:
        bench.checks = _checks(plan)
    except failures as error:
        bench.faults.append(f"the kernels cannot be checked: {type(error).__name__}: {error}")
    wrong = [check for check in bench.checks if not check.passed]
    bench.faults += [f"WRONG: {check.name}: relative error {check.error:.3g}" for check in wrong]
    say(f"{len(bench.checks) - len(wrong)} of {len(bench.checks)} kernel checks passed")
    parts: list[tuple[str, Callable[[], None]]] = []
    products = ProductBench(
        plan.device, plan.ops, _rotated_bytes(plan.device), max(2, plan.repeats // 10), failures
    )
    parts += [(f"{n} images", partial(_networks, plan, bench, n, say)) for n in (2, 1)]
    parts.append(("loading", partial(_load, plan, bench, say)))
    parts += [
        (f"{shape}", partial(_products, plan, products, bench, shape, say))
        for shape in plan.shapes
    ]
    for name, part in [] if bench.faults else parts:
        if time.monotonic() - began > plan.seconds:
            bench.faults.append(f"{name}: not begun, the time is over")
            continue
        try:
            part()
        except failures as error:
            bench.faults.append(f"{name}: {type(error).__name__}: {error}")
            say(bench.faults[-1])
    if not plan.tiny:
        bench.faults += [f"missed: {bar.name}" for bar in bench.bars() if bar.passed is False]
        bench.faults += [
            f"not measured: {bar.name}"
            for bar in bench.bars()
            if bar.passed is None and not bar.optional
        ]
    bench.seconds = time.monotonic() - began
    return bench


def product_bars(products: Sequence[ProductTimes]) -> list[Bar]:
    """The bars of single products at the language model's shapes."""

    def worst(
        name: str, than: str, tokens: Sequence[int], shapes: Sequence[tuple[int, int]]
    ) -> float | None:
        speeds = [
            times.speed(name, than)
            for times in products
            if times.tokens in tokens and (times.rows, times.columns) in shapes
        ]
        found = [speed for speed in speeds if speed is not None]
        return min(found) if len(found) == len(tokens) * len(shapes) else None

    many, one, all_four = (351, 608), (1,), "A16, all 4 bits"
    language = SHAPES["language"]
    return [
        Bar(f"{name}: {text}", limit, True, worst(name, than, tokens, shapes), than in RIVALS)
        for name, text, limit, than, tokens, shapes in (
            ("A16", "speed over cuBLAS bf16, M=351, 608", 0.9, BASELINE, many, language),
            ("A16", "over own dequantize + cuBLAS", 1.15, "dequantize + bf16", many, language),
            (all_four, "over GemLite, M=351, 608", 1.0, "GemLite", many, language),
            (all_four, "over tinygemm", 2.0, "tinygemm", many, language),
            (all_four, "over bitsandbytes", 1.0, "bitsandbytes", many, language),
            ("A8", "over cuBLAS bf16, M=608", 1.5, BASELINE, (608,), language),
            ("A8", "over torch._int_mm, M=608", 0.85, "int8 x int8", (608,), language),
            ("A16", "over cuBLAS bf16, M=1, MLP shapes", 2.5, BASELINE, one, _MLP),
            (all_four, "over GemLite, M=1, MLP shapes", 0.9, "GemLite", one, _MLP),
        )
    ]


def network_bars(networks: Sequence[NetworkTimes]) -> list[Bar]:
    """The bars of whole networks."""
    by_images: dict[int, dict[str, NetworkTimes]] = {}
    for times in networks:
        by_images.setdefault(times.images, {})[times.name] = times
    # A form that did not run as its name says would be compared with what it is not.
    forms = [
        form
        for form in by_images.values()
        if not any(form[name].trouble for name in (GRAPH, PACKED_8))
    ]
    if len(forms) < len(by_images):
        forms = []

    def slowest(than: str) -> float | None:
        return min((f[than].p50_ms / f[PACKED_8].p50_ms for f in forms), default=None)

    memory = [f[PACKED_8].peak_bytes / f[GRAPH].peak_bytes for f in forms if f[GRAPH].peak_bytes]
    tails = [f[PACKED_8].p99_ms / f[PACKED_8].p50_ms for f in forms]
    return [
        Bar("whole OFT, A8: speed over eager bf16", 2.0, True, slowest(EAGER)),
        Bar("whole OFT, A8: speed over graph-captured bf16", 1.3, True, slowest(GRAPH)),
        Bar("whole OFT: peak memory over bf16's", 0.292, False, max(memory, default=None)),
        Bar("whole OFT: p99 over p50", 1.1, False, max(tails, default=None)),
    ]


def describe_gpu(device: torch.device) -> dict[str, str]:
    """Device, driver, clocks and versions; what is not told is ``"unknown"``."""
    found = {name: package_version(name) for name in _PACKAGES} | {"cuda": str(torch.version.cuda)}
    if device.type != "cuda":
        return {"device": "cpu (a dry run: no figure of it counts)", **found}
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
        values = [value.strip() for value in told.stdout.strip().split(",")]
    except (OSError, subprocess.SubprocessError):
        values = ["unknown"] * len(_QUERY.split(","))
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return {
        "device": torch.cuda.get_device_name(device),
        "compute_capability": capability,
        **dict(zip(_QUERY.split(","), values, strict=True)),
        **found,
    }


def _checks(plan: Plan) -> list[Check]:
    checks = run_checks(plan.ops, plan.device, torch.bfloat16)
    for bits in (16, 8):
        error = network_error(plan.device, plan.ops, bits)
        checks.append(Check(f"whole network, A{bits}", error, _NETWORK_LIMIT))
    return checks


def _networks(plan: Plan, bench: GpuBench, images: int, say: Callable[[str], None]) -> None:
    for times in bench_networks(images, plan.device, plan.ops, plan.repeats, plan.tiny):
        bench.networks.append(times)
        if plan.device.type == "cuda" and times.trouble:
            bench.faults.append(f"{images} images, {times.name}: {times.trouble}")
        say(
            f"{images} images, {times.name:<12} {times.p50_ms:8.2f} ms, p99 {times.p99_ms:8.2f} "
            f"ms, peak {times.peak_bytes / 1e9:6.2f} GB; {times.plan}; {times.obstacle or 'graph'}"
        )
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()


def _products(
    plan: Plan,
    products: ProductBench,
    bench: GpuBench,
    shape: tuple[int, int],
    say: Callable[[str], None],
) -> None:
    for times in products.measure(*shape, plan.tokens):
        bench.products.append(times)
        where = f"{times.rows}x{times.columns}, {times.tokens} tokens"
        found = ", ".join(f"{name} {us:.1f}" for name, us in times.microseconds.items())
        say(f"{where}, us: {found}")
        for name, reason in times.failed.items():
            say(f"{where}, {name}: {reason}")
            if name in OURS:
                bench.faults.append(f"{where}, {name}: {reason}")


def _load(plan: Plan, bench: GpuBench, say: Callable[[str], None]) -> None:
    """From the disk, and most of it probably from the page cache, to the device."""
    cuda = plan.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.qvla.safetensors"
        size = write_synthetic_checkpoint(path, 1 if plan.tiny else _LOAD_BYTES)
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        checkpoint = read_checkpoint(path, device=plan.device)
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        taken = torch.cuda.memory_allocated() - before if cuda else 0
        peak = torch.cuda.max_memory_allocated() - before if cuda else 0
        count = len(checkpoint.layers)
    bench.load = {
        "file_bytes": size, "seconds": seconds, "device_bytes": taken, "device_peak_bytes": peak
    }  # fmt: skip
    say(f"loading: {size / 1e6:.0f} MB in {count} layers in {seconds:.2f} s, checksum included")


def _rotated_bytes(device: torch.device) -> int:
    """Twice the last cache, so that no weight is found there."""
    if device.type != "cuda":
        return 1
    return 2 * torch.cuda.get_device_properties(device).L2_cache_size


def _failures() -> tuple[type[Exception], ...]:
    """What a part may fail with."""
    return (
        AssertionError, AttributeError, ImportError, LookupError, OSError, QvlaError, TypeError,
        ValueError, *device_errors(),
    )  # fmt: skip
