"""QVLA (ICLR 2026), as its paper says and as its public code does; written from equations.

Both mix widths of {0, 2, 4, 8, 16} row by row, round to nearest with a symmetric scale a row, and
demote greedily from 16 bits down. The paper scores a row by the product of the norms of the
action's gradient and of its output's change (eq. 6), measures the rows that look most sensitive
exactly (eq. 4), and demotes by marginal loss a bit. The code scores it by
``sum_j dw_j^2 / diag(chol(H^-1))_j^2`` and demotes by absolute loss; no action is in it.

Deviations. The budget is bytes of file, as everybody's here; the paper's is mean bits, the code's
mean bits a row. How many rows the paper measures exactly it does not say: ``EXACT_ROWS`` here. Only
layers that run are scored.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qvla_ros.quantize.allocation import AllocationSettings, allocate_bits
from qvla_ros.quantize.bit_plan import BitBudget, BitPlan
from qvla_ros.quantize.exact import Edit, RowStep, measure_edits
from qvla_ros.quantize.quantized_model import QuantizedModel
from qvla_ros.quantize.rivals.by_plan import nearest_on, rounded
from qvla_ros.quantize.rivals.contest import Contest
from qvla_ros.quantize.rivals.evidence import QVLA_CODE, QVLA_PAPER
from qvla_ros.quantize.rounding import codes_on, nearest_grid, values_of
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.widths import WIDTHS

QVLA_WIDTHS = (0, 2, 4, 8, 16)
EXACT_ROWS = 64
"""Rows that look most sensitive at 4 bits and are measured exactly at all widths."""

_EXACT_FRAMES = 4


class QvlaCode:
    """The public code."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest
        self._settings = AllocationSettings(widths=QVLA_WIDTHS, method="qvla-code")

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """See ``Method``."""
        table = self._contest.evidence.table(QVLA_CODE)
        return _by_table(self._contest, table, self._settings, max_bytes)


class QvlaPaper:
    """The paper."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest
        self._settings = AllocationSettings(widths=QVLA_WIDTHS, method="qvla-paper")

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """See ``Method``."""
        table = self._contest.evidence.kept("qvla-paper-exact", self._with_exact_rows)
        return _by_table(self._contest, table, self._settings, max_bytes)

    def _with_exact_rows(self) -> SensitivityTable:
        table = self._contest.evidence.table(QVLA_PAPER)
        every = np.concatenate(
            [table.scores[one.name][:, WIDTHS.index(4)] for one in table.layers]
        )
        top = np.sort(np.argsort(-every, kind="stable")[:EXACT_ROWS])
        places = [(one.name, row) for one in table.layers for row in range(one.rows)]
        chosen = [(*places[index], bits) for index in top for bits in QVLA_WIDTHS[:-1]]
        edits = [self._edit(*place) for place in chosen]
        exact = measure_edits(
            self._contest.network,
            self._contest.some_frames(_EXACT_FRAMES),
            self._contest.metric,
            edits,
        )
        scores = {name: values.clone() for name, values in table.scores.items()}
        for (name, row, bits), change in zip(chosen, exact, strict=True):
            scores[name][row, WIDTHS.index(bits)] = float(change)
        return replace(table, scores=scores)

    def _edit(self, name: str, row: int, bits: int) -> Edit:
        index = torch.tensor([row])
        old = self._contest.network.get_submodule(name).get_parameter("weight").detach()[index]
        return {name: RowStep(index, _nearest(old, bits) - old)}


def _nearest(rows: Tensor, bits: int) -> Tensor:
    if bits == 0:
        return torch.zeros_like(rows)
    grid = nearest_grid(rows, bits, torch.ones(rows.shape[1]))
    return values_of(codes_on(rows, grid, bits), grid)


def _by_table(
    contest: Contest, table: SensitivityTable, settings: AllocationSettings, max_bytes: int
) -> QuantizedModel:
    def plan_of(row_bytes: int) -> BitPlan:
        return allocate_bits(table, BitBudget(max_bytes=row_bytes), settings=settings)

    return rounded(
        contest.network,
        contest.fitted(max_bytes, plan_of),
        lambda layer, rows, bits: nearest_on(nearest_grid, rows, bits, torch.ones(layer.columns)),
    )
