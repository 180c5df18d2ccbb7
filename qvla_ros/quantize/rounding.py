"""Grids and codes of weight rows.

A code ``q`` in ``0 .. 2^bits - 1`` stands for ``(q - zero) * scale``. Scale and zero are BF16 and
the codes are chosen for the *rounded* grid, so the stored row is exactly what was optimised.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qvla_ros.quantize.widths import GRID_WIDTHS

CLIP_STEPS = 24  # candidates of the clip search
_SMALLEST_CLIP = {2: 0.35, 3: 0.4, 4: 0.5, 8: 0.85}  # share of the range; few levels, tight clip
_SEARCHED_WEIGHTS = 1 << 19  # at a time: the passes of the search stay in the processor's cache
_TINY = 1e-30  # range of a row of zeros, so that its scale stays positive


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels that rows may take.

    Attributes:
        scale: ``bfloat16 [rows]`` or ``[rows, groups]``, positive.
        zero: ``bfloat16``, the same shape.
    """

    scale: Tensor
    zero: Tensor

    def over(self, columns: int, group_columns: int | None = None) -> tuple[Tensor, Tensor]:
        """Scale and zero in float32, broadcastable to ``[rows, columns]``."""
        if self.scale.ndim == 1:
            return self.scale.float()[:, None], self.zero.float()[:, None]
        if group_columns is None:
            raise ValueError("scales of groups need the width of a group")
        parts = (self.scale.float(), self.zero.float())
        spread = [part.repeat_interleave(group_columns, dim=1)[:, :columns] for part in parts]
        return spread[0], spread[1]


GridSearch = Callable[[Tensor, int, Tensor], Grid]
"""Maps ``weight [rows, columns]``, a width and ``energy [columns]`` to a grid for every row."""


def codes_on(weight: Tensor, grid: Grid, bits: int, group_columns: int | None = None) -> Tensor:
    """The nearest codes, ``uint8 [rows, columns]``."""
    scale, zero = grid.over(weight.shape[1], group_columns)
    return (weight.float() / scale + zero).round_().clamp_(0, 2**bits - 1).to(torch.uint8)


def values_of(codes: Tensor, grid: Grid, group_columns: int | None = None) -> Tensor:
    """What codes stand for, float32 ``[rows, columns]``: the arithmetic of the kernels."""
    scale, zero = grid.over(codes.shape[1], group_columns)
    return (codes.float() - zero) * scale


def nearest_grid(weight: Tensor, bits: int, energy: Tensor) -> Grid:
    """Symmetric, scaled by each row's largest magnitude: plain round-to-nearest (RTN).

    Args:
        weight: Floating ``[rows, columns]``.
        bits: One of ``GRID_WIDTHS``.
        energy: Not looked at; every search takes it.
    """
    _require_grid_width(bits)
    top = 2 ** (bits - 1) - 1
    scale = (weight.float().abs().amax(1) / top).clamp_min(_TINY).to(torch.bfloat16)
    return Grid(scale, torch.full_like(scale, 2 ** (bits - 1)))


def range_grid(weight: Tensor, bits: int, energy: Tensor) -> Grid:
    """From each row's smallest to its largest weight, zero included (asymmetric min-max)."""
    _require_grid_width(bits)
    weight = weight.float()
    return _grid_of(weight.amin(1).clamp_max(0.0), weight.amax(1).clamp_min(0.0), bits)


def clipped_grid(weight: Tensor, bits: int, energy: Tensor) -> Grid:
    """Search, row by row, the clip of the range that leaves the least expected output error.

    The squared error of each weight counts by the mean square of the input that it multiplies:
    transformers have a few input channels that are far larger than the rest, and a search that
    weighs all columns alike spends its levels in the wrong place. The range is
    ``[clip * min, clip * max]``; symmetric ranges about zero are tried as well.

    Args:
        weight: Floating ``[rows, columns]``.
        bits: One of ``GRID_WIDTHS``.
        energy: ``[columns]``, mean squares of the inputs.
    """
    _require_grid_width(bits)
    rows = max(1, _SEARCHED_WEIGHTS // weight.shape[1])
    parts = [_clipped(part.float(), bits, energy.float()) for part in weight.split(rows)]
    return Grid(
        torch.cat([part.scale for part in parts]), torch.cat([part.zero for part in parts])
    )


def _clipped(weight: Tensor, bits: int, energy: Tensor) -> Grid:
    low, high = weight.amin(1), weight.amax(1)
    extreme = torch.maximum(high, -low)
    best = _grid_of(low, high, bits)
    best_error = _output_error(weight, best, bits, energy)
    for clip in torch.linspace(_SMALLEST_CLIP[bits], 1.0, CLIP_STEPS).tolist():
        for bottom, top in ((low, high), (-extreme, extreme)):
            candidate = _grid_of(clip * bottom, clip * top, bits)
            error = _output_error(weight, candidate, bits, energy)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = Grid(
                torch.where(better, candidate.scale, best.scale),
                torch.where(better, candidate.zero, best.zero),
            )
    return best


def in_groups(
    search: GridSearch, weight: Tensor, bits: int, energy: Tensor, group_columns: int
) -> Grid:
    """A grid for every group of columns of every row: ``[rows, groups]``; the last may be short."""
    parts = [
        search(group, bits, part)
        for group, part in zip(
            weight.split(group_columns, dim=1), energy.split(group_columns), strict=True
        )
    ]
    return Grid(
        torch.stack([part.scale for part in parts], dim=1),
        torch.stack([part.zero for part in parts], dim=1),
    )


def _require_grid_width(bits: int) -> None:
    if bits not in GRID_WIDTHS:
        raise ValueError(f"{bits} bits have no grid: use one of {GRID_WIDTHS}")


def _grid_of(low: Tensor, high: Tensor, bits: int) -> Grid:
    scale = ((high - low) / (2**bits - 1)).clamp_min(_TINY).to(torch.bfloat16)
    return Grid(scale, (-low / scale.float()).to(torch.bfloat16))


def _output_error(weight: Tensor, grid: Grid, bits: int, energy: Tensor) -> Tensor:
    """Of the nearest codes, ``[rows]``; the arithmetic of ``codes_on`` and ``values_of``."""
    scale, zero = grid.over(weight.shape[1])
    error = (weight / scale).add_(zero).round_().clamp_(0, 2**bits - 1)
    return error.sub_(zero).mul_(scale).sub_(weight).square_() @ energy
