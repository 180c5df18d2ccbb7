"""Bits where they matter: a width for every row, least summed score within a budget.

The optimum comes from the knapsack (``knapsack.py``); the greedy allocations of QVLA can be asked
for instead. Rows whose feeding rows are pruned lose columns and become cheaper: with the network's
feeds given, the plan is solved again with what that saves, until nothing more is saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from qvla_ros.errors import BudgetError, CalibrationError
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.greedy import demote
from qvla_ros.quantize.knapsack import Knapsack, Solution
from qvla_ros.quantize.latency_table import LatencyTable
from qvla_ros.quantize.row_costs import (
    RowCosts,
    bit_costs,
    byte_costs,
    latency_costs,
    mean_bit_costs,
)
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.structure import Feed, removable, without_partners
from qvla_ros.quantize.tiles import round_up_to_tiles, solve_in_tiles
from qvla_ros.quantize.widths import WIDTHS

Method = Literal["optimal", "qvla-paper", "qvla-code"]

_ROUNDS = 8  # of solving again with the bytes that removed columns save
_PRICES = 30  # exchange rates of score for time that are tried under two budgets


@dataclass(frozen=True, slots=True)
class AllocationSettings:
    """Choices of one allocation.

    Attributes:
        widths: Widths that rows may have, of ``WIDTHS``, ascending.
        method: The exact knapsack, or the greedy of QVLA's paper or of its public code.
        group_columns: Layer name to the columns of a scale group, for layers that have groups.
        tile_rows: Rows of a kernel's tile; the rows of a width are a multiple of it.
        latency: Measured times; needed for a budget of milliseconds.
        activation_bits: Layer name to 8, for layers whose inputs are int8.
        feeds: The network's feeds, to remove the columns behind pruned rows.
    """

    widths: tuple[int, ...] = WIDTHS
    method: Method = "optimal"
    group_columns: Mapping[str, int] = field(default_factory=dict)
    tile_rows: int = 1
    latency: LatencyTable | None = None
    activation_bits: Mapping[str, int] = field(default_factory=dict)
    feeds: tuple[Feed, ...] = ()

    def __post_init__(self) -> None:
        if not self.widths or list(self.widths) != [w for w in WIDTHS if w in self.widths]:
            raise BudgetError(f"the widths {self.widths} must be of {WIDTHS}, ascending")
        if self.tile_rows < 1:
            raise BudgetError(f"a tile of {self.tile_rows} rows: it must have at least one")


def allocate_bits(
    table: SensitivityTable,
    budget: BitBudget,
    fixed_bytes: int = 0,
    settings: AllocationSettings | None = None,
) -> BitPlan:
    """Choose a width for every row.

    Args:
        table: Scores.
        budget: The limits.
        fixed_bytes: What the rest of the checkpoint takes; counted under ``max_bytes`` only.
        settings: How; by default the optimum over all widths.

    Raises:
        BudgetError: Even the smallest allowed widths do not fit.
        CalibrationError: A score is missing, negative or not finite.
        ConfigurationError: A time that the budget needs was not measured.
    """
    problem = _Problem(table, budget, fixed_bytes, settings or AllocationSettings())
    scores = problem.scores()
    plan = problem.solve(scores, {})
    for _ in range(_ROUNDS):
        bits = without_partners(plan.row_bits, problem.feeds)
        kept = removable(bits, problem.feeds)
        if _same(bits, plan.row_bits) and _same(kept, plan.input_columns):
            break
        # What is pruned stays pruned, so the next plan can do without the same columns.
        scores = problem.pruned(scores, plan.row_bits, bits)
        try:
            better = replace(problem.solve(scores, kept), input_columns=kept)
        except BudgetError:  # the lists of kept columns take more than they save
            break
        if better.predicted_error > plan.predicted_error:
            break
        plan = better
    return plan


def _same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor.equal(second[name]) for name, tensor in first.items()
    )


class _Problem:
    """What stays the same while a plan is solved again and again."""

    def __init__(
        self,
        table: SensitivityTable,
        budget: BitBudget,
        fixed_bytes: int,
        settings: AllocationSettings,
    ) -> None:
        self._table, self._budget, self._settings = table, budget, settings
        self._fixed_bytes = fixed_bytes
        self._columns = [WIDTHS.index(bits) for bits in settings.widths]
        self._ends = np.cumsum([layer.rows for layer in table.layers])
        self.feeds = list(settings.feeds)

    def scores(self) -> np.ndarray:
        """All scores, ``float64 [rows, len(WIDTHS)]``; ``inf`` where a row must not go."""
        parts = [self._table.scores[layer.name].numpy() for layer in self._table.layers]
        scores = np.concatenate(parts).astype(np.float64)
        if not np.isfinite(scores).all() or (scores < 0).any():
            raise CalibrationError(
                "the sensitivity table has a score that is negative or not finite"
            )
        # A row that nothing was seen of must not be pruned for lack of evidence.
        scores[scores[:, 0] == 0, 0] = np.inf
        return scores

    def pruned(
        self, scores: np.ndarray, chosen: Mapping[str, torch.Tensor], bits: dict[str, torch.Tensor]
    ) -> np.ndarray:
        """Scores under which the pruned rows stay so; a pruned product counts once."""
        before, after = self._stack(chosen) == 0, self._stack(bits) == 0
        pruned = scores.copy()
        pruned[after, 1:] = np.inf
        pruned[after & ~before, 0] = 0.0
        starts = dict(
            zip([one.name for one in self._table.layers], [0, *self._ends], strict=False)
        )
        for feed in self.feeds:
            if feed.through != "product":
                continue
            rows = np.stack([starts[name] + feed.rows.numpy() for name in feed.producers])
            rows = rows[:, after[rows].all(axis=0)]
            lost = pruned[rows, 0]
            pruned[rows, 0] = np.where(np.arange(len(rows))[:, None] == lost.argmax(0), lost, 0.0)
        return pruned

    def solve(self, scores: np.ndarray, kept: Mapping[str, torch.Tensor]) -> BitPlan:
        """The best plan for given numbers of stored columns."""
        table, settings = self._table, self._settings
        limits = self._limits({name: len(columns) for name, columns in kept.items()})
        allowed = scores[:, self._columns]
        solution = _solve(allowed, limits)
        level = solution.level
        if settings.method != "optimal" or settings.tile_rows > 1:
            if len(limits) > 1:
                raise BudgetError("greedy methods and tiles meet one budget at a time, not two")
            level = self._rounded(allowed, limits[0])
        error = float(np.take_along_axis(allowed, level[:, None], axis=1).sum())
        bits = np.asarray(settings.widths, dtype=np.uint8)[level]
        return BitPlan(
            layers=table.layers,
            row_bits={
                layer.name: torch.from_numpy(part.copy())
                for layer, part in zip(table.layers, np.split(bits, self._ends[:-1]), strict=True)
            },
            token_weights=table.token_weights,
            budget=self._budget,
            predicted_error=error,
            model_fingerprint=table.model_fingerprint,
            calibration_fingerprint=table.calibration_fingerprint,
            activation_bits=dict(settings.activation_bits),
            optimality_gap=max(0.0, error - (solution.score - solution.gap)),
        )

    def _limits(self, kept: Mapping[str, int]) -> list[RowCosts]:
        layers, budget, settings = self._table.layers, self._budget, self._settings
        limits = []
        if budget.average_bits_per_weight is not None and settings.method == "qvla-code":
            limits.append(mean_bit_costs(layers, budget.average_bits_per_weight))
        elif budget.average_bits_per_weight is not None:
            limits.append(bit_costs(layers, budget.average_bits_per_weight, kept))
        if budget.max_bytes is not None:
            left = int(budget.max_bytes) - self._fixed_bytes
            limits.append(byte_costs(layers, left, kept, settings.group_columns))
        if budget.max_latency_ms is not None:
            if settings.latency is None:
                raise BudgetError("a budget of milliseconds needs a measured latency table")
            limits.append(
                latency_costs(
                    layers,
                    budget.max_latency_ms,
                    kept,
                    settings.latency,
                    settings.widths,
                    settings.activation_bits,
                )
            )
        return [RowCosts(one.cost[:, self._columns], one.limit) for one in limits]

    def _rounded(self, scores: np.ndarray, costs: RowCosts) -> np.ndarray:
        """Levels by the method that is asked for, in whole tiles."""
        settings = self._settings
        knapsack = Knapsack(scores, costs.cost) if settings.method == "optimal" else None

        def solve(limit: int) -> np.ndarray:
            if knapsack is not None:
                return knapsack.solve(limit).level
            key: Literal["marginal", "absolute"] = (
                "marginal" if settings.method == "qvla-paper" else "absolute"
            )
            return demote(scores, settings.widths, costs.cost, limit, key)

        def rounding(level: np.ndarray) -> np.ndarray:
            ends = self._ends.tolist()
            return round_up_to_tiles(level, scores, costs.cost, ends, settings.tile_rows)

        if settings.tile_rows == 1:
            return solve(costs.limit)
        return solve_in_tiles(solve, scores, costs.cost, costs.limit, rounding)

    def _stack(self, values: Mapping[str, torch.Tensor]) -> np.ndarray:
        return np.concatenate([values[layer.name].numpy() for layer in self._table.layers])


def _solve(scores: np.ndarray, limits: list[RowCosts]) -> Solution:
    """One limit exactly; a second one by an exchange rate of score for the second cost."""
    first, *others = limits
    solution = Knapsack(scores, first.cost).solve(first.limit)
    if not others:
        return solution
    second, rows = others[0], np.arange(len(scores))
    if int(second.cost[rows, solution.level].sum()) <= second.limit:
        return solution
    bound = solution.score - solution.gap
    best: Solution | None = None
    low, high = 0.0, float("inf")
    price = (solution.score or 1.0) / max(second.limit, 1)
    for _ in range(_PRICES):
        found = Knapsack(scores + price * second.cost, first.cost).solve(first.limit)
        score = float(scores[rows, found.level].sum())
        # The weighted sum bounds every plan within both budgets (Lagrange).
        bound = max(bound, found.score - found.gap - price * second.limit)
        if int(second.cost[rows, found.level].sum()) <= second.limit:
            high = price
            if best is None or score < best.score:
                best = Solution(found.level, score, found.cost, 0.0)
        else:
            low = price
        price = 16 * price if high == float("inf") else (low + high) / 2
    if best is None:
        raise BudgetError("no plan meets the budgets of bytes and of milliseconds together")
    return replace(best, gap=max(0.0, best.score - bound))
