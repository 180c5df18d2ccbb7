"""Scales and codes of weight rows: clip-searched uniform grids with a float zero.

A code ``q`` in ``0 .. 2^bits - 1`` stands for ``(q - zero) * scale``. Scale and zero are BF16 and
the codes are chosen for the *rounded* grid, so the stored row is exactly what was optimised.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qvla_ros.quantize.widths import GRID_WIDTHS

CLIP_STEPS = 24  # candidates of the clip search
_SMALLEST_CLIP = {2: 0.35, 4: 0.5, 8: 0.85}  # share of the row's range; fewer levels, tighter clip
_TINY = 1e-30  # range of a row of zeros, so that its scale stays positive


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows on their grids.

    Attributes:
        codes: ``uint8 [rows, columns]``.
        scale: ``bfloat16 [rows]``, positive.
        zero: ``bfloat16 [rows]``.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def dequantize(self) -> Tensor:
        """float32 ``[rows, columns]``: the same arithmetic as the deployed kernels."""
        scale, zero = self.scale.float()[:, None], self.zero.float()[:, None]
        return (self.codes.float() - zero) * scale


Rounding = Callable[[Tensor, int, Tensor], QuantizedRows]
"""Maps ``weight [rows, columns]``, a width and ``energy [columns]`` to quantized rows."""


def round_nearest(weight: Tensor, bits: int, energy: Tensor) -> QuantizedRows:
    """Plain round-to-nearest: symmetric, scaled by each row's largest magnitude (RTN).

    Args:
        weight: Floating ``[rows, columns]``.
        bits: 2, 4 or 8.
        energy: Not looked at; every rounding takes it.
    """
    _require_grid_width(bits)
    top = 2 ** (bits - 1) - 1
    weight = weight.float()
    scale = (weight.abs().amax(1) / top).clamp_min(_TINY).to(torch.bfloat16)
    zero = torch.full_like(scale, 2 ** (bits - 1))
    return QuantizedRows(_codes(weight, bits, scale, zero), scale, zero)


def round_clipped(weight: Tensor, bits: int, energy: Tensor) -> QuantizedRows:
    """Search, row by row, the clip of the range that leaves the least expected output error.

    The squared error of each weight counts by the mean square of the input that it multiplies.

    The range is ``[clip * min, clip * max]``, asymmetric; symmetric ranges about zero are tried
    as well. At 2 bits this is a 4-level grid without a wasted level.

    Args:
        weight: Floating ``[rows, columns]``.
        bits: 2, 4 or 8.
        energy: ``[columns]``, mean squares of the inputs.
    """
    _require_grid_width(bits)
    weight, energy = weight.float(), energy.float()
    low, high = weight.amin(1), weight.amax(1)
    extreme = torch.maximum(high, -low)
    best = _on_range(weight, bits, low, high)
    best_error = _output_error(weight, best, energy)
    for clip in torch.linspace(_SMALLEST_CLIP[bits], 1.0, CLIP_STEPS).tolist():
        for bottom, top in ((low, high), (-extreme, extreme)):
            candidate = _on_range(weight, bits, clip * bottom, clip * top)
            error = _output_error(weight, candidate, energy)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = QuantizedRows(
                torch.where(better[:, None], candidate.codes, best.codes),
                torch.where(better, candidate.scale, best.scale),
                torch.where(better, candidate.zero, best.zero),
            )
    return best


def _require_grid_width(bits: int) -> None:
    if bits not in GRID_WIDTHS:
        raise ValueError(f"{bits} bits have no grid: use one of {GRID_WIDTHS}")


def _on_range(weight: Tensor, bits: int, low: Tensor, high: Tensor) -> QuantizedRows:
    scale = ((high - low) / (2**bits - 1)).clamp_min(_TINY).to(torch.bfloat16)
    zero = (-low / scale.float()).to(torch.bfloat16)
    return QuantizedRows(_codes(weight, bits, scale, zero), scale, zero)


def _codes(weight: Tensor, bits: int, scale: Tensor, zero: Tensor) -> Tensor:
    levels = weight / scale.float()[:, None] + zero.float()[:, None]
    return levels.round_().clamp_(0, 2**bits - 1).to(torch.uint8)


def _output_error(weight: Tensor, rows: QuantizedRows, energy: Tensor) -> Tensor:
    return (rows.dequantize() - weight).square_() @ energy
