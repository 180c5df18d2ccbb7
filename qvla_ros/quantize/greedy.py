"""The greedy allocations of QVLA, to compare with: demotion 16 -> 8 -> 4 -> 2 -> 0.

Every row starts at its widest width, and the demotion with the smallest key is done next:

- the paper's: the marginal loss a bit, ``(s_lo - s_hi) / (b_hi - b_lo)``;
- its public code's: the absolute loss ``s_lo``.
"""

from typing import Literal

import numpy as np

from qvla_ros.errors import BudgetError

GreedyKey = Literal["marginal", "absolute"]


def demote(
    scores: np.ndarray, widths: tuple[int, ...], cost: np.ndarray, limit: int, key: GreedyKey
) -> np.ndarray:
    """Demote row after row until the summed cost is at most the limit.

    A heap that holds each row's next demotion pops them in the order of the running maximum of
    the row's keys (ties: by row), so one sort gives the order of all of them.

    Args:
        scores: ``float64 [rows, widths]``; ``inf``: the row cannot be demoted to that width.
        widths: Ascending bits of the columns.
        cost: ``int64 [rows, widths]``, ascending.
        limit: Of the summed cost.
        key: Whose greedy it is.

    Returns:
        ``int64 [rows]``: index of the width of each row.

    Raises:
        BudgetError: All demotions together do not reach the limit.
    """
    rows, levels = scores.shape
    left = int(cost[:, -1].sum()) - limit
    if left <= 0:
        return np.full(rows, levels - 1)
    lower, upper = scores[:, :-1], scores[:, 1:]
    with np.errstate(invalid="ignore"):
        keys = (lower - upper) / np.diff(widths) if key == "marginal" else lower
    keys = np.where(np.isfinite(lower), keys, np.inf)[:, ::-1]  # widest demotion first
    keys = np.maximum.accumulate(keys, axis=1).ravel()
    order = np.argsort(keys, kind="stable")
    order = order[np.isfinite(keys[order])]
    saved = np.cumsum((cost[:, 1:] - cost[:, :-1])[:, ::-1].ravel()[order])
    needed = int(np.searchsorted(saved, left)) + 1
    if needed > len(order):
        raise BudgetError(
            f"the budget is too small by {left - int(saved[-1] if len(saved) else 0)} units even "
            "with every row at its cheapest allowed width"
        )
    return levels - 1 - np.bincount(order[:needed] // (levels - 1), minlength=rows)
