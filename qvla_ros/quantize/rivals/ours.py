"""Ours, and ours with one part exchanged at a time."""

from dataclasses import dataclass, replace
from typing import Literal

from qvla_ros.quantize.activation_choice import activation_errors, plan_activations
from qvla_ros.quantize.allocation import AllocationSettings, allocate_bits
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.quantized_model import QuantizedModel
from qvla_ros.quantize.reconstruction import reconstruct
from qvla_ros.quantize.rivals.by_plan import nearest_on, rounded
from qvla_ros.quantize.rivals.contest import Contest
from qvla_ros.quantize.rivals.evidence import GAUSS_NEWTON
from qvla_ros.quantize.rounding import clipped_grid
from qvla_ros.quantize.structure import feeds
from qvla_ros.quantize.widths import WIDTHS

_INT8_FRAMES = 8  # on which 8-bit activations are measured, layer by layer


@dataclass(frozen=True, slots=True)
class Parts:
    """What ours is made of.

    Attributes:
        score: One of ``evidence.TABLES``.
        widths: That rows may have.
        greedy: Whether the paper's greedy allocates instead of the knapsack.
        uniform: Whether nothing allocates: two neighbouring widths, spread evenly.
        reconstruct: Whether rounding compensates errors, drift and biases; else a clip search.
        int8: Which layers read 8-bit activations; ``"cheap"``: those where that costs little.
    """

    score: str = GAUSS_NEWTON
    widths: tuple[int, ...] = WIDTHS
    greedy: bool = False
    uniform: bool = False
    reconstruct: bool = True
    int8: Literal["none", "cheap", "all"] = "none"


class Ours:
    """Measure, allocate, reconstruct; the frames and the budget are those of every rival."""

    def __init__(self, contest: Contest, parts: Parts | None = None) -> None:
        self._contest = contest
        self._parts = parts or Parts()

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """See ``Method``."""
        plan = self._with_activations(self._plan(max_bytes))
        if self._parts.reconstruct:
            return reconstruct(self._contest.network, plan, self._contest.calibration)
        moments = self._contest.evidence
        return rounded(
            self._contest.network,
            plan,
            lambda layer, rows, bits: nearest_on(
                clipped_grid, rows, bits, moments.inputs(layer).moment.diagonal()
            ),
        )

    def _with_activations(self, plan: BitPlan) -> BitPlan:
        contest = self._contest
        if self._parts.int8 == "none":
            return plan
        if self._parts.int8 == "all":
            return replace(plan, activation_bits={layer.name: 8 for layer in plan.layers})
        some = contest.some_frames(_INT8_FRAMES)
        errors = contest.evidence.kept_numbers(
            "int8-errors", lambda: activation_errors(contest.network, some, contest.metric)
        )
        return plan_activations(contest.network, plan, contest.calibration, contest.metric, errors)

    def _plan(self, max_bytes: int) -> BitPlan:
        parts, contest = self._parts, self._contest
        if parts.uniform:
            return contest.spread(max_bytes)
        table = contest.evidence.table(parts.score)
        settings = AllocationSettings(
            widths=parts.widths,
            method="qvla-paper" if parts.greedy else "optimal",
            # Without a bias correction the columns behind pruned rows have nowhere to go.
            feeds=tuple(feeds(contest.network)) if parts.reconstruct else (),
        )
        return contest.fitted(
            max_bytes,
            lambda row_bytes: allocate_bits(
                table, BitBudget(max_bytes=row_bytes), settings=settings
            ),
        )
