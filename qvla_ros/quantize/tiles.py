"""Round the number of rows of each width up to the kernel's tile, by promotion."""

from collections.abc import Callable, Sequence

import numpy as np

from qvla_ros.errors import BudgetError

_ATTEMPTS = 40  # solutions tried on the way to the largest limit whose rounding fits


def solve_in_tiles(
    solve: Callable[[int], np.ndarray],
    scores: np.ndarray,
    cost: np.ndarray,
    limit: int,
    rounding: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Solve for a smaller limit, so that the promotions still fit the real one.

    Args:
        solve: Maps a limit to levels, ``int64 [rows]``.
        scores: ``float64 [rows, widths]``.
        cost: ``int64 [rows, widths]``.
        limit: That the rounded levels must meet.
        rounding: Maps levels to rounded levels.

    Raises:
        BudgetError: No limit that can be solved leaves enough room for the promotions.
    """
    rows = np.arange(len(scores))
    least = int(np.where(np.isfinite(scores), cost, np.iinfo(np.int64).max).min(axis=1).sum())
    best, best_score = None, np.inf
    fitting, broken, aim = None, limit + 1, limit
    for _ in range(_ATTEMPTS):
        level = rounding(solve(aim))
        over = int(cost[rows, level].sum()) - limit
        score = float(scores[rows, level].sum())
        if over > 0 and aim == least:
            break
        if over > 0:
            broken = aim
            # Twice as far down each time, until a rounding fits; then halfway back.
            lower = max(min(aim - over, 2 * aim - limit), least)
            aim = lower if fitting is None else (fitting + aim) // 2
        else:
            fitting = aim
            aim = (aim + broken) // 2
            if score < best_score:
                best, best_score = level, score
        if fitting is not None and broken - fitting <= 1:
            break
    if best is None:
        raise BudgetError("no plan in whole tiles of rows meets the budget: raise it")
    return best


def round_up_to_tiles(
    level: np.ndarray, scores: np.ndarray, cost: np.ndarray, ends: Sequence[int], tile_rows: int
) -> np.ndarray:
    """Within each layer, promote rows until every width has a multiple of ``tile_rows`` rows.

    From the widest width down, the rows of narrower widths that gain most a unit of cost are
    promoted. Where no row is left to promote, the narrowest width keeps a broken tile.

    Args:
        level: ``int64 [rows]``; level 0 is pruned and needs no tile.
        scores: ``float64 [rows, widths]``; ``inf``: not allowed.
        cost: ``int64 [rows, widths]``.
        ends: Where each layer ends among the rows.
        tile_rows: Rows of a tile.

    Returns:
        New levels, none of them lower than before.
    """
    rounded = level.copy()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        part = rounded[start:end]  # a view
        for target in range(scores.shape[1] - 1, 0, -1):
            need = -int((part == target).sum()) % tile_rows
            below = np.flatnonzero((part < target) & np.isfinite(scores[start:end, target]))
            if not need or not len(below):
                continue
            index, now = start + below, part[below]
            gain = scores[index, now] - scores[index, target]
            spent = np.maximum(cost[index, target] - cost[index, now], 1)
            best = np.argsort(-gain / spent, kind="stable")[:need]
            part[below[best]] = target
    return rounded
