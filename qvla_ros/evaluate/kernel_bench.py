"""How long the product of one packed layer takes, against PyTorch's own."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch.nn.functional import linear

from qvla_ros.checkpoint.bitpack import BLOCK_COLUMNS
from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.evaluate.cpu_rivals import present_rivals, rivals
from qvla_ros.evaluate.turns import relative_speed, speed_interval, time_in_turns
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.kernels.selection import select_kernel
from qvla_ros.kernels.workspace import workspace_bytes

ROW_SHARES: Mapping[int, float] = {16: 0.03, 8: 0.08, 4: 0.70, 3: 0.08, 2: 0.07, 0: 0.04}
"""Share of the rows of each width in the layers that are timed: 4.3 bits in the mean."""

SHAPES = {
    "language": ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)),
    "vision": ((3072, 1024), (4096, 1024), (1024, 4096), (3456, 1152), (4304, 1152), (1152, 4304)),
    "demo": ((1152, 384), (384, 384), (1536, 384), (384, 1536), (512, 128), (128, 512)),
}
"""``(rows, columns)`` of OpenVLA-OFT's layers, q, k, v and gate, up each as one, and of the demo."""

TOKENS = (1, 16, 64, 261, 351, 608)
"""Rows of the input: one token, small batches, and prompts with one and two images."""

BASELINE = "bf16_prepacked"
"""What the ratios compare with: oneDNN's product with a weight that it has laid out for itself."""

_ROTATED_BYTES = 64 * 2**20  # of one candidate's weights, so that none is found in a cache
_MOST_COPIES = 16

Product = Callable[[], object]


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """One layer and one number of tokens.

    Attributes:
        rows: Output channels.
        columns: Input channels.
        tokens: Rows of the input.
        milliseconds: Median time of one product by candidate.
        speed: Speed relative to the baseline by candidate, the median of the turns: more than 1 is
            faster.
        speed_interval: 95 % interval of each.
    """

    rows: int
    columns: int
    tokens: int
    milliseconds: dict[str, float]
    speed: dict[str, float]
    speed_interval: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class KernelBench:
    """What ``qvla bench kernels`` found.

    Attributes:
        times: One for each shape and number of tokens.
        kernels: Candidate name to the kernel that multiplied, and why.
        rivals: Products of others to ``"timed"``, or to why they were not.
        resident_weight_ratio: Bytes of a packed layer, all of its indices included, over its
            bf16 bytes; the largest over the shapes, by candidate.
        average_bits_per_weight: Mean width of the packed weights.
        scratch_bytes: Memory that the kernels share among all layers.
        threads: PyTorch's threads.
        repeats: Products behind each median.
    """

    times: tuple[KernelTimes, ...]
    kernels: dict[str, str]
    rivals: dict[str, str]
    resident_weight_ratio: dict[str, float]
    average_bits_per_weight: float
    scratch_bytes: int
    threads: int
    repeats: int

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Packing:
    """One way of packing: name of the candidate, activation bits, scales of groups."""

    name: str
    activation_bits: int
    groups: bool


PACKINGS = (
    _Packing("a16", 16, False),
    _Packing("a16_groups", 16, True),
    _Packing("a8", 8, False),
    _Packing("a8_groups", 8, True),
)
"""Our candidates."""


def bench_kernels(
    shapes: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    repeats: int,
    on_result: Callable[[KernelTimes], None] | None = None,
) -> KernelBench:
    """Time every candidate on every shape and number of tokens, in turns, on the CPU in bf16.

    Args:
        shapes: ``(rows, columns)``.
        tokens: Rows of the input.
        repeats: Products of each candidate; the median counts.
        on_result: Called with each result as it comes.
    """
    device = torch.device("cpu")
    choices = {
        packing.name: select_kernel(
            device, torch.bfloat16, activation_bits=packing.activation_bits
        )
        for packing in PACKINGS
    }
    times: list[KernelTimes] = []
    ratios = dict.fromkeys(choices, 0.0)
    with torch.inference_mode():
        for rows, columns in shapes:
            layers = {p.name: synthetic_layer(rows, columns, p) for p in PACKINGS}
            for name, layer in layers.items():
                ratio = QuantizedLinear(layer).memory_bytes() / (2 * rows * columns)
                ratios[name] = max(ratios[name], ratio)
            weight = torch.randn(rows, columns).bfloat16()
            for count in tokens:
                x = torch.randn(count, columns).bfloat16()
                candidates = dict(_torch_products(x, weight))
                for name, layer in layers.items():
                    candidates[name] = _packed_product(x, layer, choices[name].function)
                times.append(_compare(rows, columns, count, candidates, repeats))
                if on_result is not None:
                    on_result(times[-1])
    return KernelBench(
        times=tuple(times),
        kernels={name: f"{choice.name}: {choice.reason}" for name, choice in choices.items()},
        rivals=present_rivals(),
        resident_weight_ratio=ratios,
        average_bits_per_weight=sum(bits * share for bits, share in ROW_SHARES.items()),
        scratch_bytes=workspace_bytes(),
        threads=torch.get_num_threads(),
        repeats=repeats,
    )


def synthetic_layer(rows: int, columns: int, packing: _Packing, seed: int = 0) -> PackedLinear:
    """A layer of random codes whose rows have the widths of `ROW_SHARES`, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    edges = (torch.tensor(list(ROW_SHARES.values())).cumsum(0) * rows).round().int()
    widths = torch.tensor(list(ROW_SHARES))
    bits = widths[
        torch.bucketize(torch.arange(rows), edges, right=True).clamp(max=len(widths) - 1)
    ]
    bits = bits[torch.randperm(rows, generator=generator)]
    codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
    codes &= (2 ** bits.clamp(max=8) - 1).to(torch.uint8)[:, None]
    grid = (rows, math.ceil(columns / BLOCK_COLUMNS)) if packing.groups else (rows,)
    scale = (torch.rand(grid, generator=generator) * 0.01 + 0.001).bfloat16()
    zero = (torch.rand(grid, generator=generator) * 4).bfloat16()
    weight = torch.randn(1, 1, generator=generator).bfloat16().expand(rows, columns)
    return PackedLinear.assemble(
        f"{rows}x{columns}",
        columns,
        bits,
        codes,
        scale,
        zero,
        weight,
        activation_bits=packing.activation_bits,
    )


def _packed_product(
    x: torch.Tensor,
    layer: PackedLinear,
    kernel: Callable[[torch.Tensor, LinearOperand], torch.Tensor],
) -> Product:
    operands = _rotation(
        [LinearOperand.prepare(copy) for copy in _copies(layer, layer.nbytes, _clone)]
    )
    return lambda: kernel(x, next(operands))


def _clone(layer: PackedLinear) -> PackedLinear:
    segments = tuple(replace(segment, codes=segment.codes.clone()) for segment in layer.segments)
    return replace(layer, segments=segments)


def _torch_products(x: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[str, Product]]:
    """PyTorch's own: plain, prepacked, and its integer products where they are."""
    plain = _rotation(_copies(weight, weight.nbytes, torch.Tensor.clone))
    yield "bf16", lambda: linear(x, next(plain))
    prepack = torch.ops.mkldnn._reorder_linear_weight
    pointwise = torch.ops.mkldnn._linear_pointwise
    laid_out = _rotation(
        [prepack(copy, len(x)) for copy in _copies(weight, weight.nbytes, torch.Tensor.clone)]
    )
    yield BASELINE, lambda: pointwise(x, next(laid_out), None, "none", [], "")
    for name, packed, product in rivals(x, weight):
        copies = _rotation(_copies(packed, packed.nbytes, torch.Tensor.clone))
        yield name, partial(_next_product, product, copies)


def _next_product(product: Callable[[torch.Tensor], object], copies: Iterator) -> object:
    return product(next(copies))


def _copies(item: object, nbytes: int, clone: Callable) -> list:
    count = min(_MOST_COPIES, max(1, math.ceil(_ROTATED_BYTES / nbytes)))
    return [item, *(clone(item) for _ in range(count - 1))]


def _rotation(items: list) -> Iterator:
    while True:
        yield from items


def _compare(
    rows: int, columns: int, tokens: int, candidates: Mapping[str, Product], repeats: int
) -> KernelTimes:
    # A network multiplies layer after layer by one kernel; only weights are new to the caches.
    seconds = time_in_turns(candidates, repeats, lead_in=1)
    return KernelTimes(
        rows,
        columns,
        tokens,
        {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        relative_speed(seconds, BASELINE),
        speed_interval(seconds, BASELINE),
    )
