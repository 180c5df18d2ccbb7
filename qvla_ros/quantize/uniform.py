"""Plans that look at no score: two neighbouring widths, spread evenly over all rows."""

from collections.abc import Mapping

import numpy as np
import torch

from qvla_ros.errors import BudgetError
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.row_costs import bit_costs, byte_costs
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.widths import WIDTHS


def spread_plan(
    table: SensitivityTable,
    budget: BitBudget,
    widths: tuple[int, ...] = WIDTHS[1:],
    fixed_bytes: int = 0,
    group_columns: Mapping[str, int] | None = None,
) -> BitPlan:
    """The widest width that every row can have, and for as many rows as fit the next wider one.

    The wider rows are spaced evenly over all rows of the model (as Bresenham draws a line), so
    no layer is favoured. This is what baselines without a sensitivity need at any budget.

    Args:
        table: Layers; the scores are not looked at.
        budget: Average bits, or bytes.
        widths: Widths that may occur, ascending.
        fixed_bytes: What the rest of the checkpoint takes; counted under ``max_bytes`` only.
        group_columns: Layer name to the columns of a scale group, for layers that have groups.

    Raises:
        BudgetError: Even the narrowest width is too much, or the budget is of milliseconds.
    """
    if budget.max_latency_ms is not None:
        raise BudgetError("an even spread meets a budget of bits or bytes, not of milliseconds")
    if budget.average_bits_per_weight is not None:
        costs = bit_costs(table.layers, budget.average_bits_per_weight, {})
    else:
        assert budget.max_bytes is not None
        left = int(budget.max_bytes) - fixed_bytes
        costs = byte_costs(table.layers, left, {}, group_columns or {})
    cost = costs.cost[:, [WIDTHS.index(bits) for bits in widths]]
    fitting = np.flatnonzero(cost.sum(axis=0) <= costs.limit)
    if not len(fitting):
        raise BudgetError(
            f"the budget is too small by {int(cost[:, 0].sum()) - costs.limit} units for "
            f"{widths[0]} bits everywhere"
        )
    low = int(fitting[-1])
    high = min(low + 1, len(widths) - 1)
    raised = _most_raised(cost[:, low], cost[:, high], costs.limit)
    bits = np.where(_spread(len(cost), raised), widths[high], widths[low]).astype(np.uint8)
    ends = np.cumsum([layer.rows for layer in table.layers])[:-1]
    return BitPlan(
        layers=table.layers,
        row_bits={
            layer.name: torch.from_numpy(part.copy())
            for layer, part in zip(table.layers, np.split(bits, ends), strict=True)
        },
        token_weights=table.token_weights,
        budget=budget,
        predicted_error=float("nan"),
        model_fingerprint=table.model_fingerprint,
        calibration_fingerprint=table.calibration_fingerprint,
    )


def _spread(rows: int, raised: int) -> np.ndarray:
    """``bool [rows]`` with ``raised`` true values, evenly spaced."""
    return np.diff(np.arange(rows + 1) * raised // rows) > 0


def _most_raised(low: np.ndarray, high: np.ndarray, limit: int) -> int:
    """A number of raised rows that fits, such that one more does not."""
    fits, breaks = 0, len(low) + 1
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        if int(np.where(_spread(len(low), middle), high, low).sum()) <= limit:
            fits = middle
        else:
            breaks = middle
    return fits
