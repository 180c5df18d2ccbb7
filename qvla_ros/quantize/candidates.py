"""A weight rounded at every width, held as codes: a byte a weight and width instead of four."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qvla_ros.quantize.compensation import Compensator
from qvla_ros.quantize.rounding import Grid, GridSearch, clipped_grid, codes_on, values_of
from qvla_ros.quantize.widths import GRID_WIDTHS

STEP_BYTES = 1 << 26
"""Of float32 steps that are made at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The roundings of one weight.

    Attributes:
        weight: float32 ``[rows, columns]``.
        codes: ``uint8 [rows, columns]`` for each of ``GRID_WIDTHS``.
        grids: Of the rows, for each of ``GRID_WIDTHS``.
    """

    weight: Tensor
    codes: tuple[Tensor, ...]
    grids: tuple[Grid, ...]

    @classmethod
    def of(
        cls,
        weight: Tensor,
        moment: Tensor,
        search: GridSearch = clipped_grid,
        compensate: bool = True,
    ) -> "Candidates":
        """Round a weight.

        Args:
            weight: float32 ``[rows, columns]``.
            moment: Second moment of the inputs, ``[columns, columns]``.
            search: Of the grids.
            compensate: Whether later columns make up for earlier ones.
        """
        compensator = Compensator(moment) if compensate else None
        grids, codes = [], []
        for bits in GRID_WIDTHS:
            grid = search(weight, bits, moment.diagonal())
            grids.append(grid)
            codes.append(
                codes_on(weight, grid, bits)
                if compensator is None
                else compensator.round(weight, grid, bits)
            )
        return cls(weight, tuple(codes), tuple(grids))

    def values(self, rows: slice | list[int] = slice(None)) -> Tensor:
        """The rounded rows at 0 bits and at each grid width.

        Returns:
            float32 ``[1 + len(GRID_WIDTHS), rows, columns]``.
        """
        found = [torch.zeros_like(self.weight[rows])]
        for codes, grid in zip(self.codes, self.grids, strict=True):
            found.append(values_of(codes[rows], Grid(grid.scale[rows], grid.zero[rows])))
        return torch.stack(found)

    def steps(self) -> Iterator[tuple[slice, Tensor]]:
        """Some rows after the other, and what rounding changes in them, as in ``values``."""
        total, columns = self.weight.shape
        count = max(1, STEP_BYTES // (4 * (1 + len(GRID_WIDTHS)) * columns))
        for start in range(0, total, count):
            rows = slice(start, start + count)
            yield rows, self.values(rows) - self.weight[rows]
