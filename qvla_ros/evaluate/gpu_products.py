"""How long one product takes on a GPU: packed, against what PyTorch and others have for it."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice

import torch
from torch.nn.functional import linear, pad

from qvla_ros.checkpoint.packed_linear import PackedLinear
from qvla_ros.evaluate.gpu_rivals import RIVALS
from qvla_ros.evaluate.random_network import MIXED, UNIFORM_4, RandomWeights, Recipe
from qvla_ros.evaluate.turns import time_in_turns
from qvla_ros.kernels.fused_linear import fuse
from qvla_ros.kernels.fused_ops import ALIGNMENT, FusedOps
from qvla_ros.kernels.fused_reference import as_tokens
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.kernels.reference import dequantize

Run = Callable[[], object]
Candidate = Callable[[torch.Tensor], list[Run]]
"""An input to products with it, one for each copy of the weight."""

BASELINE = "bf16"
OURS = ("A16", "A8", "A16, all 4 bits")
_MIXED_16, _MIXED_8, _UNIFORM_16 = Recipe(MIXED), Recipe(MIXED, 8), Recipe(UNIFORM_4)
_MOST_COPIES = 64


def least_runs(tokens: int) -> int:
    """Products of one launch of a graph, so that the launch does not count: short ones need more."""
    return 64 if tokens <= 16 else 16


@dataclass(frozen=True, slots=True)
class ProductTimes:
    """One layer and one number of tokens.

    Attributes:
        rows: Output channels.
        columns: Input channels.
        tokens: Rows of the input.
        microseconds: Median time of a product by candidate.
        failed: Why a candidate has no time.
    """

    rows: int
    columns: int
    tokens: int
    microseconds: dict[str, float]
    failed: dict[str, str]

    def speed(self, name: str, than: str) -> float | None:
        """How many times as fast one candidate is as another; ``None`` if one has no time."""
        times = self.microseconds
        return times[than] / times[name] if name in times and than in times else None

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ProductBench:
    """How products are timed.

    Attributes:
        device: Where.
        ops: Whose multiplication is ours.
        rotated_bytes: At least as many bytes of weights are gone through in turn.
        repeats: Measurements of each candidate; the median counts.
        failures: Errors of a candidate that are told, rather than stop the bench.
    """

    device: torch.device
    ops: FusedOps
    rotated_bytes: int
    repeats: int
    failures: tuple[type[Exception], ...]

    def measure(self, rows: int, columns: int, tokens: Iterable[int]) -> list[ProductTimes]:
        """Time all candidates on one shape."""
        failed: dict[str, str] = {}
        candidates: dict[str, Candidate] = {}
        with torch.inference_mode():
            for name, make in self._makers(rows, columns).items():
                try:
                    candidates[name] = make()
                except self.failures as error:
                    failed[name] = _reason(error)
            return [self._times(rows, columns, count, candidates, failed) for count in tokens]

    def _times(
        self,
        rows: int,
        columns: int,
        tokens: int,
        candidates: Mapping[str, Candidate],
        failed: Mapping[str, str],
    ) -> ProductTimes:
        x = torch.randn(tokens, columns, dtype=torch.bfloat16, device=self.device)
        runs: dict[str, Run] = {}
        counts = {}
        failures = dict(failed)
        for name, candidate in candidates.items():
            try:
                products = candidate(x)
                if self.device.type == "cuda":
                    products = list(
                        islice(cycle(products), max(least_runs(tokens), len(products)))
                    )
                counts[name] = len(products)
                runs[name] = at_once(products, self.device)
            except self.failures as error:
                failures[name] = _reason(error)
        seconds = time_in_turns(runs, self.repeats)
        medians = {n: 1e6 * statistics.median(s) / counts[n] for n, s in seconds.items()}
        return ProductTimes(rows, columns, tokens, medians, failures)

    def _makers(self, rows: int, columns: int) -> dict[str, Callable[[], Candidate]]:
        weights = RandomWeights(self.device)
        makers: dict[str, Callable[[], Candidate]] = {
            BASELINE: lambda: self._bf16(rows, columns, weights),
            "dequantize + bf16": lambda: self._dequantized(rows, columns, weights),
            "A16": lambda: self._ours(rows, columns, weights, _MIXED_16),
            "A8": lambda: self._ours(rows, columns, weights, _MIXED_8),
            "A16, all 4 bits": lambda: self._ours(rows, columns, weights, _UNIFORM_16),
            "int8 x int8": lambda: self._int8(rows, columns),
        }
        for name, rival in RIVALS.items():
            makers[name] = partial(self._rival, rival, rows, columns, weights)
        return makers

    def _copies(self, nbytes: int) -> range:
        return range(min(_MOST_COPIES, max(1, math.ceil(self.rotated_bytes / nbytes))))

    def _bf16(self, rows: int, columns: int, weights: RandomWeights) -> Candidate:
        copies = [weights.floats(rows, columns) for _ in self._copies(2 * rows * columns)]
        return lambda x: [partial(linear, x, w) for w in copies]

    def _ours(self, rows: int, columns: int, weights: RandomWeights, recipe: Recipe) -> Candidate:
        """The product alone: the layer before it rounds the input where it must."""
        layers = [fuse([layer]) for layer in self._packed(rows, columns, weights, recipe)]
        multiply = self.ops.multiply

        def runs(x: torch.Tensor) -> list[Run]:
            padded = pad(x, (0, -x.shape[1] % ALIGNMENT))
            tokens = as_tokens(padded, layers[0].rounds_input)
            return [partial(multiply, tokens, layer) for layer in layers]

        return runs

    def _dequantized(self, rows: int, columns: int, weights: RandomWeights) -> Candidate:
        layers = [layer.packed for layer in self._packed(rows, columns, weights, _MIXED_16)]
        return lambda x: [partial(_dequantized_product, x, w) for w in layers]

    def _packed(
        self, rows: int, columns: int, weights: RandomWeights, recipe: Recipe
    ) -> list[QuantizedLinear]:
        first = weights.packed("layer", columns, weights.row_bits(rows, recipe.shares), recipe)
        layers = []
        for _ in self._copies(first.nbytes):
            segments = tuple(replace(part, codes=part.codes.clone()) for part in first.segments)
            layers.append(QuantizedLinear(replace(first, segments=segments)))
        return layers

    def _int8(self, rows: int, columns: int) -> Candidate:
        shape = (rows, columns)
        copies = [
            torch.randint(-127, 128, shape, dtype=torch.int8, device=self.device)
            for _ in self._copies(rows * columns)
        ]

        def runs(x: torch.Tensor) -> list[Run]:
            rounded = as_tokens(x, rounds=True).rounded
            if rounded is None:
                raise ValueError("rounding was asked for")
            return [partial(torch._int_mm, rounded, w.t()) for w in copies]

        return runs

    def _rival(
        self,
        rival: Callable[[torch.Tensor], Callable[[torch.Tensor], Run]],
        rows: int,
        columns: int,
        weights: RandomWeights,
    ) -> Candidate:
        copies = [rival(weights.floats(rows, columns)) for _ in self._copies(rows * columns // 2)]
        return lambda x: [product(x) for product in copies]


def _dequantized_product(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    return linear(x, dequantize(packed, x.dtype))


def at_once(runs: Sequence[Run], device: torch.device) -> Run:
    """All runs in one call that returns when they are done; on CUDA they are one graph."""

    def every() -> None:
        for run in runs:
            run()

    if device.type != "cuda":
        return every
    every()  # compiles and tunes
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        every()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
