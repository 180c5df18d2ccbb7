"""The greedy of QVLA, against its heap written out."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvla_ros.errors import BudgetError
from qvla_ros.quantize.greedy import demote

PAPER_WIDTHS = (0, 2, 4, 8, 16)


def with_a_heap(scores, widths, cost, limit, key):
    """Demote the smallest key, one row at a time, as the paper's algorithm says."""

    def entry(row, level):
        low, high = scores[row, level - 1], scores[row, level]
        bits = widths[level] - widths[level - 1]
        return ((low - high) / bits if key == "marginal" else low, row, level)

    top = len(widths) - 1
    level = np.full(len(scores), top)
    heap = [entry(row, top) for row in range(len(scores))]
    heapq.heapify(heap)
    rows = np.arange(len(scores))
    while cost[rows, level].sum() > limit:
        _, row, now = heapq.heappop(heap)
        level[row] = now - 1
        if now > 1:
            heapq.heappush(heap, entry(row, now - 1))
    return level


@given(
    seed=st.integers(0, 10_000),
    share=st.floats(0.0, 1.0),
    key=st.sampled_from(["marginal", "absolute"]),
    whole=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_one_sort_gives_what_the_heap_gives(seed, share, key, whole):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 9, (12, 5)) if whole else rng.exponential(size=(12, 5))
    scores = scores.astype(np.float64)
    cost = rng.integers(1, 9, 12)[:, None] * np.array(PAPER_WIDTHS)
    limit = int(share * cost[:, -1].sum())
    expected = with_a_heap(scores, PAPER_WIDTHS, cost, limit, key)
    assert demote(scores, PAPER_WIDTHS, cost, limit, key).tolist() == expected.tolist()


def test_the_marginal_counts_bits_and_the_absolute_does_not():
    # Row 0 loses 4 over 8 bits, row 1 loses 3 over 8 bits but stands at 5 then.
    scores = np.array([[9.0, 4.0, 0.0], [9.0, 5.0, 2.0]])
    cost = np.tile([0, 8, 16], (2, 1))
    assert demote(scores, (0, 8, 16), cost, 24, "marginal").tolist() == [2, 1]
    assert demote(scores, (0, 8, 16), cost, 24, "absolute").tolist() == [1, 2]


def test_a_forbidden_width_stops_the_demotions_of_its_row():
    scores = np.array([[np.inf, 1.0, 0.0], [9.0, 1.0, 0.0]])
    cost = np.tile([0, 8, 16], (2, 1))
    assert demote(scores, (0, 8, 16), cost, 8, "marginal").tolist() == [1, 0]
    with pytest.raises(BudgetError, match="too small by 1 units"):
        demote(scores, (0, 8, 16), cost, 7, "marginal")
