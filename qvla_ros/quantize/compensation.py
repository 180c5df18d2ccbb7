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


class Compensator:
    """The factor of one layer's second moment, ready to round any of its rows."""

    def __init__(self, moment: Tensor, damping: float = DAMPING) -> None:
        """Factorise ``moment``, symmetric ``[columns, columns]``.

        Raises:
            CalibrationError: The moment is not finite, or zero.
        """
        moment = moment.double()
        mean = float(moment.diagonal().mean())
        if not torch.isfinite(moment).all() or mean <= 0:
            raise CalibrationError("the second moment of a layer's inputs is zero or not finite")
        damped = moment + torch.eye(len(moment), dtype=torch.double) * damping * mean
        self._order = damped.diagonal().argsort(descending=True, stable=True)
        factor = torch.linalg.cholesky(damped[self._order][:, self._order])
        inverse = torch.cholesky_inverse(factor)
        # Row j of the upper factor: how the error of column j is spread over those after it.
        self._spread = torch.linalg.cholesky(inverse, upper=True).float()

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
            part.expand(rows, columns)[:, self._order]
            for part in grid.over(columns, group_columns)
        )
        left = weight.float()[:, self._order]
        codes = torch.empty_like(left)
        for start in range(0, columns, _BLOCK_COLUMNS):
            block = slice(start, min(start + _BLOCK_COLUMNS, columns))
            errors = _round_block(
                left[:, block],
                codes[:, block],
                (scale[:, block], zero[:, block]),
                self._spread[block, block],
                2**bits - 1,
            )
            left[:, block.stop :] -= errors @ self._spread[block, block.stop :]
        answer = torch.empty(rows, columns, dtype=torch.uint8)
        answer[:, self._order] = codes.to(torch.uint8)
        return answer


def _round_block(
    left: Tensor, codes: Tensor, grid: tuple[Tensor, Tensor], spread: Tensor, top: int
) -> Tensor:
    """Round the columns of one block into ``codes``; answers their errors, ``[rows, block]``."""
    scale, zero = grid
    errors = torch.empty_like(left)
    for column in range(left.shape[1]):
        wanted, step, offset = left[:, column], scale[:, column], zero[:, column]
        code = (wanted / step + offset).round_().clamp_(0, top)
        codes[:, column] = code
        error = (wanted - (code - offset) * step) / spread[column, column]
        errors[:, column] = error
        left[:, column + 1 :] -= error[:, None] * spread[column, column + 1 :]
    return errors
