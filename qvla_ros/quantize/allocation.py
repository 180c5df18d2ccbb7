"""Bits where they matter: a multiple-choice knapsack over all rows of the model.

Minimise the sum of the rows' scores under one budget. On the lower convex hull of each row's
(cost, score) points the Lagrangian solution takes upgrades by falling benefit per cost until the
budget is used up; a repair pass then spends what is left on later upgrades that still fit. The
result is within one upgrade of the optimum.
"""

from dataclasses import dataclass

import numpy as np
import torch

from qvla_ros.checkpoint.bitpack import packed_bytes_per_row
from qvla_ros.errors import BudgetError, CalibrationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.widths import WIDTHS

_ROW_OVERHEAD = 4  # bytes of a stored row's place in the row order
_GRID_OVERHEAD = 4  # bytes of BF16 scale and zero
_REPAIR_CANDIDATES = 20_000  # upgrades looked at after the first that does not fit


@dataclass(frozen=True, slots=True)
class _Upgrades:
    """Steps along the rows' convex hulls, best benefit per cost first.

    Attributes:
        row: ``int64 [n]`` index of the row.
        level: ``int64 [n]`` index into ``WIDTHS`` after the upgrade.
        cost: ``int64 [n]`` of the step.
    """

    row: np.ndarray
    level: np.ndarray
    cost: np.ndarray


def row_bytes(columns: int, bits: int) -> int:
    """Bytes that one row of ``columns`` weights takes in a checkpoint."""
    if bits == 0:
        return 0
    if bits == 16:
        return 2 * columns + _ROW_OVERHEAD
    return packed_bytes_per_row(columns, bits) + _GRID_OVERHEAD + _ROW_OVERHEAD


def allocate_bits(table: SensitivityTable, budget: BitBudget, fixed_bytes: int = 0) -> BitPlan:
    """Choose a width for every row.

    Args:
        table: Scores.
        budget: The limit.
        fixed_bytes: What the rest of the checkpoint takes; counted under ``max_bytes`` only.

    Raises:
        BudgetError: Even the smallest allowed widths do not fit.
        CalibrationError: A score is missing, negative or not finite.
    """
    scores = _stacked_scores(table)
    columns = np.concatenate([np.full(one.rows, one.columns) for one in table.layers])
    cost, limit = _costs(table.layers, columns, budget, fixed_bytes)
    level = solve(scores, cost, limit)
    bits = np.asarray(WIDTHS, dtype=np.uint8)[level]
    ends = np.cumsum([layer.rows for layer in table.layers])[:-1]
    chosen = np.take_along_axis(scores, level[:, None], axis=1)
    return BitPlan(
        layers=table.layers,
        row_bits={
            layer.name: torch.from_numpy(part.copy())
            for layer, part in zip(table.layers, np.split(bits, ends), strict=True)
        },
        input_energy=table.input_energy,
        budget=budget,
        predicted_error=float(chosen.sum()),
        model_fingerprint=table.model_fingerprint,
    )


def solve(scores: np.ndarray, cost: np.ndarray, limit: int) -> np.ndarray:
    """Solve the knapsack.

    Args:
        scores: ``float64 [rows, widths]``; ``inf`` forbids a width.
        cost: ``int64 [rows, widths]``, strictly increasing along a row.
        limit: Of the summed cost.

    Returns:
        ``int64 [rows]``: the chosen index of the width.

    Raises:
        BudgetError: The cheapest allowed widths cost more than the limit.
    """
    level = np.isfinite(scores).argmax(axis=1)
    left = limit - int(np.take_along_axis(cost, level[:, None], axis=1).sum())
    if left < 0:
        raise BudgetError(
            f"the budget is too small by {-left} units even with every row at its smallest width"
        )
    upgrades = _hull_upgrades(scores, cost, level)
    total = np.cumsum(upgrades.cost)
    taken = int(np.searchsorted(total, left, side="right"))
    np.maximum.at(level, upgrades.row[:taken], upgrades.level[:taken])
    left -= int(total[taken - 1]) if taken else 0
    _repair(level, upgrades, taken, left)
    return level


def _stacked_scores(table: SensitivityTable) -> np.ndarray:
    scores = np.concatenate([table.scores[layer.name].numpy() for layer in table.layers])
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise CalibrationError("the sensitivity table has a score that is negative or not finite")
    # A row that nothing was seen of must not be pruned for lack of evidence.
    unseen = scores[:, 0] == 0
    scores[unseen, 0] = np.inf
    return scores


def _costs(
    layers: tuple[LinearLayer, ...], columns: np.ndarray, budget: BitBudget, fixed_bytes: int
) -> tuple[np.ndarray, int]:
    if budget.average_bits_per_weight is not None:
        cost = columns[:, None] * np.asarray(WIDTHS)[None, :]
        weights = sum(layer.weights for layer in layers)
        return cost, int(budget.average_bits_per_weight * weights)
    assert budget.max_bytes is not None
    tables = [
        np.tile([row_bytes(layer.columns, bits) for bits in WIDTHS], (layer.rows, 1))
        for layer in layers
    ]
    return np.concatenate(tables), budget.max_bytes - fixed_bytes


def _hull_upgrades(scores: np.ndarray, cost: np.ndarray, start: np.ndarray) -> _Upgrades:
    """All hull edges of all rows; ties are broken by row, then by level, so results repeat."""
    rows, widths = scores.shape
    current = start.copy()
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    active = np.arange(rows)
    while len(active):
        slope = _slopes(scores[active], cost[active], current[active])
        # The steepest edge; among equals the farthest, so that no vertex lies inside an edge.
        best = widths - 1 - slope[:, ::-1].argmax(axis=1)
        gain = slope[np.arange(len(active)), best]
        useful = gain > 0
        active, best, gain = active[useful], best[useful], gain[useful]
        step = cost[active, best] - cost[active, current[active]]
        found.append((active, best, step, gain))
        current[active] = best
    row, level, step, gain = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((level, row, -gain))
    return _Upgrades(row[order], level[order], step[order])


def _slopes(scores: np.ndarray, cost: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Benefit per cost of going from the current width to each larger one; ``-inf`` elsewhere."""
    index = np.arange(len(scores))
    saved = scores[index, current][:, None] - scores
    spent = cost - cost[index, current][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = saved / spent
    return np.where((spent > 0) & np.isfinite(scores), slope, -np.inf)


def _repair(level: np.ndarray, upgrades: _Upgrades, first: int, left: int) -> None:
    """Spend what is left on later upgrades, each row still one hull edge after the other."""
    blocked: set[int] = set()
    for index in range(first, min(first + _REPAIR_CANDIDATES, len(upgrades.row))):
        row, cost = int(upgrades.row[index]), int(upgrades.cost[index])
        if row in blocked:
            continue
        if cost > left:
            blocked.add(row)
            continue
        level[row] = upgrades.level[index]
        left -= cost
