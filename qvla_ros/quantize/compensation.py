"""Error-compensated rounding: what one column loses, the columns after it make up for.

For a row ``w`` and the second moment ``H = E[x x^T]`` of its inputs, the expected squared output
error of codes ``q`` is ``(q - w)^T H (q - w)``. Columns are rounded one after the other, the
largest inputs first; each rounding error is passed on to the columns that are still free in the
proportion that leaves the least error (optimal brain surgeon; Frantar et al., GPTQ, ICLR 2023).
Rows are independent given ``H``, so each may have a bit width of its own.
"""

import torch
from torch import Tensor

from qvla_ros.errors import CalibrationError
from qvla_ros.quantize.rounding import Grid

DAMPING = 0.01  # share of the mean diagonal that is added, as in the paper
_BLOCK_COLUMNS = 128  # columns whose errors are passed on together
_DOUBLE_COLUMNS = 2048  # above this a float64 factor takes a minute of two cores, and gigabytes
_SMALL_TRIANGLE = 256  # inverted by substitution; larger ones by halves


class Compensator:
    """The factor of one layer's second moment, ready to round any of its rows."""

    def __init__(self, moment: Tensor, damping: float = DAMPING) -> None:
        """Factorise ``moment``, symmetric ``[columns, columns]``.

        Raises:
            CalibrationError: The moment is not finite, or zero.
        """
        mean = float(moment.diagonal().double().mean())
        if not torch.isfinite(moment).all() or mean <= 0:
            raise CalibrationError("the second moment of a layer's inputs is zero or not finite")
        self._order = moment.diagonal().argsort(descending=True, stable=True)
        # Row j of the upper factor of the inverse: how the error of column j is spread over those
        # after it. With the columns in reverse order it is the inverse of a Cholesky factor.
        self._factor = _inverse_factor(moment, self._order.flip(0), damping * mean).flip(0, 1)
        self._spread = self._factor.float()

    def times_inverse(self, left: Tensor) -> Tensor:
        """``left · (moment + damping)^-1``, float32; ``left`` is ``[any, columns]``."""
        answer = torch.empty_like(left)
        ordered = left[:, self._order].to(self._factor.dtype)
        answer[:, self._order] = (ordered @ self._factor.T @ self._factor).float()
        return answer

    def round(
        self, weight: Tensor, grid: Grid, bits: int, group_columns: int | None = None
    ) -> Tensor:
        """Codes of rows on their grids.

        Args:
            weight: Floating ``[rows, columns]``.
            grid: Of each row, or of each of its column groups.
            bits: Width of all these rows.
            group_columns: Width of a group, for grids of groups.

        Returns:
            ``uint8 [rows, columns]``.
        """
        rows, columns = weight.shape
        scale, zero = (
            part if part.shape[1] == 1 else part[:, self._order]
            for part in grid.over(columns, group_columns)
        )
        left = weight.float()[:, self._order]
        codes = torch.empty(columns, rows, dtype=torch.uint8)
        for start in range(0, columns, _BLOCK_COLUMNS):
            block = slice(start, min(start + _BLOCK_COLUMNS, columns))
            spread = self._spread[block, block]
            parts = (
                part.expand(rows, columns)[:, block].T if part.shape[1] > 1 else part.T
                for part in (scale, zero)
            )
            step, offset = (part.expand(len(spread), rows) for part in parts)
            chosen, errors = _round_block(
                left[:, block].T.contiguous(), (step, offset), spread, 2**bits - 1
            )
            codes[self._order[block]] = chosen
            left[:, block.stop :].addmm_(errors.T, self._spread[block, block.stop :], alpha=-1)
        return codes.T.contiguous()


def _round_block(
    left: Tensor, grid: tuple[Tensor, Tensor], spread: Tensor, top: int
) -> tuple[Tensor, Tensor]:
    """Round the columns of one block, ``[block, rows]``: their codes, and their errors."""
    steps, offsets = grid
    codes, errors = torch.empty_like(left, dtype=torch.uint8), torch.empty_like(left)
    for column, pivot in enumerate(spread.diagonal().tolist()):
        wanted, step, offset = left[column], steps[column], offsets[column]
        code = (wanted / step).add_(offset).round_().clamp_(0, top)
        codes[column] = code
        torch.sub(wanted, code.sub_(offset).mul_(step), out=errors[column])
        errors[column] /= pivot
        left[column + 1 :].addr_(spread[column, column + 1 :], errors[column], alpha=-1)
    return codes, errors


def _inverse_factor(moment: Tensor, order: Tensor, ridge: float) -> Tensor:
    """``L^-1`` of ``L L^T``, the moment with its columns in that order and a ridge.

    In float64 where that is cheap, else in float32: the ridge is far above its rounding.
    """
    dtypes = (torch.float64,) if len(moment) <= _DOUBLE_COLUMNS else (torch.float32, torch.float64)
    for dtype in dtypes:
        damped = moment[order[:, None], order].to(dtype)
        damped.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not failed:
            _invert_triangle(factor)
            return factor
    raise CalibrationError("the second moment of a layer's inputs is not that of real inputs")


def _invert_triangle(lower: Tensor) -> None:
    """Invert a lower triangle in its own memory."""
    half = len(lower) // 2
    if len(lower) <= _SMALL_TRIANGLE:
        unit = torch.eye(len(lower), dtype=lower.dtype)
        lower.copy_(torch.linalg.solve_triangular(lower, unit, upper=False))
        return
    first, second, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert_triangle(first)
    _invert_triangle(second)
    below.copy_(second @ (below @ first).neg_())
