"""Every step of the fused network against its oracle, on random layers of awkward shapes.

The same checks run in Triton's interpreter on a CPU and on a GPU. The oracle computes in float32
on the CPU; memory that a kernel is to write holds NaN before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from qvla_ros.evaluate.random_network import RandomWeights, Recipe
from qvla_ros.kernels import fused_reference
from qvla_ros.kernels.fused_linear import fuse
from qvla_ros.kernels.fused_ops import (
    ALIGNMENT,
    Activation,
    Branch,
    Function,
    FusedOps,
    Gather,
    Heads,
    Norm,
    Tokens,
)
from qvla_ros.kernels.quantized_linear import QuantizedLinear

LIMIT = 5e-3
"""Largest relative error: the norm of the difference over the norm of the oracle's answer."""

_MIXED = {16: 0.1, 8: 0.2, 4: 0.3, 3: 0.1, 2: 0.2, 0: 0.1}
_LAYERS: dict[str, tuple[tuple[dict[int, float], int, int], ...]] = {
    # (shares of the widths, rows, activation bits) of each layer that is joined
    "mixed widths": ((_MIXED, 150, 16),),
    "mixed widths, integers": ((_MIXED, 150, 8),),
    "three layers as one": ((_MIXED, 40, 16), ({0: 1.0}, 7, 16), ({4: 1.0}, 1, 16)),
    "all of 16 bits": (({16: 1.0}, 9, 16), ({16: 1.0}, 33, 16)),
    "all of 16 bits, integers elsewhere": (({16: 1.0}, 9, 8),),
    "floats and integers": ((_MIXED, 20, 16), (_MIXED, 20, 8)),
    "nothing stored": (({0: 1.0}, 9, 16),),
}
_COLUMNS = (5, 130, 300)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison.

    Attributes:
        name: Which step on what.
        error: Relative error; NaN if something was not written.
        limit: Where it is too large.
    """

    name: str
    error: float
    limit: float = LIMIT

    @property
    def passed(self) -> bool:
        """Whether the error is below the limit."""
        return self.error < self.limit


def run_checks(ops: FusedOps, device: torch.device, dtype: torch.dtype) -> list[Check]:
    """Compare all steps.

    Args:
        ops: Whose steps.
        device: Where they run.
        dtype: Of tokens.
    """
    checker = _Checker(ops, device, dtype)
    with _poisoned(), torch.inference_mode():
        return [*checker.products(), *checker.activations(), *checker.norms(), *checker.heads()]


class _Checker:
    def __init__(self, ops: FusedOps, device: torch.device, dtype: torch.dtype) -> None:
        self._ops = ops
        self._device = device
        self._dtype = dtype
        self._weights = RandomWeights(torch.device("cpu"))

    def products(self) -> Iterator[Check]:
        """Few and many tokens, all kinds of layers, scales of rows and groups, columns removed."""
        for index, (name, members) in enumerate(_LAYERS.items()):
            for tokens in (3, 70):
                columns = _COLUMNS[(index + tokens) % 3]
                yield self._product(f"{name}, {tokens} tokens", members, columns, tokens)
        for bits in (16, 8):
            yield self._product(f"groups, A{bits}", ((_MIXED, 30, bits),), 300, 20, groups=True)
            yield self._product(f"removed, A{bits}", ((_MIXED, 30, bits),), 301, 5, step=2)

    def _product(
        self,
        name: str,
        members: tuple[tuple[dict[int, float], int, int], ...],
        columns: int,
        tokens: int,
        groups: bool = False,
        step: int = 1,
    ) -> Check:
        kept = torch.arange(0, columns, step) if step > 1 else None
        layers = [
            QuantizedLinear(
                self._weights.packed(
                    f"layer {number}",
                    columns,
                    self._weights.row_bits(rows, shares),
                    Recipe(shares, bits, groups),
                    kept,
                )
            )
            for number, (shares, rows, bits) in enumerate(members)
        ]
        layer = fuse(layers)
        x = self._random(tokens, columns if kept is None else len(kept))
        wide = x if columns == 5 else pad(x, (0, -x.shape[1] % ALIGNMENT))
        given = fused_reference.as_tokens(wide, layer.rounds_input)
        expected = fused_reference.multiply(Tokens(x.float()), layer)
        there = fuse([one.to(self._device) for one in layers])
        answer = self._ops.multiply(_tokens_to(given, self._device), there)
        return Check(f"multiply: {name}", _error(answer, expected))

    def activations(self) -> Iterator[Check]:
        """All functions, with and without bias and rounding."""
        functions: tuple[Function, ...] = ("identity", "gelu", "swiglu")
        for function in functions:
            for columns in _COLUMNS:
                activation = Activation(
                    function, self._gather(columns, 40), self._gather(columns, 40), columns != 130
                )
                y = self._random(4, 40)
                expected = fused_reference.activate(y.float(), activation)
                answer = self._ops.activate(
                    y.to(self._device), _activation_to(activation, self._device)
                )
                yield from self._tokens(f"{function}, {columns} columns", answer, expected)

    def norms(self) -> Iterator[Check]:
        """LayerNorm and RMSNorm, with and without a layer scale."""
        for columns in _COLUMNS:
            for centred in (False, True):
                weight, shift, factor = (1 + self._random(columns) for _ in range(3))
                branch = Branch(self._gather(columns, 40), factor if centred else None)
                norm = Norm(weight, shift if centred else None, 1e-6, columns != 130)
                residual, y = self._random(4, columns), self._random(4, 40)
                total, expected = fused_reference.add_norm(residual, y, branch, norm)
                answer = self._ops.add_norm(
                    residual.to(self._device),
                    y.to(self._device),
                    _branch_to(branch, self._device),
                    _norm_to(norm, self._device),
                )
                name = f"{'layer' if centred else 'rms'} norm, {columns} columns"
                yield Check(f"{name}: residual", _error(answer[0], total))
                yield from self._tokens(name, answer[1], expected)

    def heads(self) -> Iterator[Check]:
        """Heads of awkward sizes and numbers, two samples."""
        for count, rotated, size in ((3, 2, 8), (20, 18, 6), (12, 8, 128)):
            heads = Heads(self._gather(count * size, 40), count, rotated, size)
            cosines, sines = self._random(5, size), self._random(5, size)
            y = self._random(10, 40)
            expected = fused_reference.rotate(y.float(), heads, cosines, sines)
            answer = self._ops.rotate(
                y.to(self._device),
                replace(heads, gather=_gather_to(heads.gather, self._device)),
                cosines.to(self._device),
                sines.to(self._device),
            )
            yield Check(f"rotate: {count} heads of {size}", _error(answer, expected))

    def _tokens(self, name: str, answer: Tokens, expected: Tokens) -> Iterator[Check]:
        """The integers must be exactly those of the values that were written."""
        yield Check(name, _error(answer.values, expected.values))
        if answer.rounded is None or answer.scale is None or answer.sums is None:
            return
        again = fused_reference.as_tokens(answer.values.cpu(), rounds=True)
        for part in ("rounded", "scale", "sums"):
            error = _error(getattr(answer, part), getattr(again, part))
            yield Check(f"{name}: {part}", error)

    def _random(self, *shape: int) -> torch.Tensor:
        return (50 * self._weights.floats(*shape, dtype=torch.float32)).to(self._dtype)

    def _gather(self, columns: int, stored: int) -> Gather:
        """Some columns read nothing; half of all gathers have a bias."""
        source = (torch.arange(columns, dtype=torch.int32) * 7 + columns) % (stored + 1) - 1
        return Gather(source, self._random(columns) if columns != 5 else None)


@contextmanager
def _poisoned() -> Iterator[None]:
    """New memory holds NaN (or the largest integer), so that what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _error(answer: torch.Tensor, expected: torch.Tensor) -> float:
    if answer.shape != expected.shape:
        return float("nan")
    wanted = expected.double()
    difference = (answer.cpu().double() - wanted).norm()
    return float(difference / wanted.norm().clamp_min(1e-6))


def _tokens_to(tokens: Tokens, device: torch.device) -> Tokens:
    parts = (tokens.values, tokens.rounded, tokens.scale, tokens.sums)
    values, *others = (None if part is None else part.to(device) for part in parts)
    if values is None:
        raise ValueError("tokens have values")
    return Tokens(values, *others)


def _gather_to(gather: Gather, device: torch.device) -> Gather:
    return Gather(gather.source.to(device), _to(gather.bias, device))


def _activation_to(activation: Activation, device: torch.device) -> Activation:
    first, second = (_gather_to(g, device) for g in (activation.first, activation.second))
    return replace(activation, first=first, second=second)


def _branch_to(branch: Branch, device: torch.device) -> Branch:
    return Branch(_gather_to(branch.gather, device), _to(branch.factor, device))


def _norm_to(norm: Norm, device: torch.device) -> Norm:
    return replace(norm, weight=norm.weight.to(device), bias=_to(norm.bias, device))


def _to(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device)
