"""The methods that look at nothing but the weight."""

from functools import partial

import torch

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.bit_plan import uniform_plan
from qvla_ros.quantize.quantized_model import QuantizedModel
from qvla_ros.quantize.rivals.by_plan import nearest_on, rounded
from qvla_ros.quantize.rivals.contest import Contest
from qvla_ros.quantize.rivals.evidence import GAUSS_NEWTON
from qvla_ros.quantize.rivals.selection import better_of_groups_and_rows
from qvla_ros.quantize.rounding import Grid, clipped_grid, nearest_grid


class Bf16:
    """Every row stays in BF16; the reference point, whatever the budget."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """Not quantized at all; ``max_bytes`` is not held."""
        plan = uniform_plan(self._contest.evidence.table(GAUSS_NEWTON), 16)
        return rounded(self._contest.network, plan, _nothing)


class RoundToNearest:
    """RTN: symmetric, each row scaled by its largest magnitude. No paper; the common floor."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """See ``Method``."""
        plan = self._contest.spread(max_bytes)
        return rounded(
            self._contest.network,
            plan,
            lambda layer, rows, bits: nearest_on(
                nearest_grid, rows, bits, torch.ones(layer.columns)
            ),
        )


class ClippedGroups:
    """RTN with a scale for every 128 columns and a clip search by the weight's own error.

    The bytes of the scales are charged. Where a scale a row with the same search does better
    within the budget, that is what it answers.
    """

    def __init__(self, contest: Contest) -> None:
        self._contest = contest

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """See ``Method``."""
        return better_of_groups_and_rows(self._contest, partial(self._rounded, max_bytes))

    def _rounded(self, max_bytes: int, grouped: bool) -> QuantizedModel:
        plan = self._contest.spread(max_bytes, grouped)
        return rounded(
            self._contest.network,
            plan,
            lambda layer, rows, bits: nearest_on(
                clipped_grid, rows, bits, torch.ones(layer.columns), grouped
            ),
            grouped,
        )


def _nothing(layer: LinearLayer, rows: torch.Tensor, bits: int) -> tuple[Grid, torch.Tensor]:
    raise ValueError(f"{layer.name}: rows of BF16 have no grid")
