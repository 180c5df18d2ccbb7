"""The knapsack against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvla_ros.errors import BudgetError
from qvla_ros.quantize.greedy import demote
from qvla_ros.quantize.knapsack import Knapsack
from qvla_ros.quantize.widths import WIDTHS


def brute_force(scores, cost, limit):
    """The least score within the limit, ``inf`` where nothing fits."""
    rows = np.arange(len(scores))
    choices = np.array(list(itertools.product(range(scores.shape[1]), repeat=len(scores))))
    fits = cost[rows, choices].sum(1) <= limit
    return scores[rows, choices].sum(1)[fits].min(initial=np.inf)


@st.composite
def problems(draw):
    """Up to six rows; small integers, so that ties are everywhere; any order of costs."""
    rows = draw(st.integers(1, 6))
    widths = draw(st.integers(2, len(WIDTHS) if rows <= 5 else 5))
    score = st.one_of(st.integers(0, 6), st.floats(0, 1e3), st.just(np.inf))
    scores = [draw(st.lists(score, min_size=widths, max_size=widths)) for _ in range(rows)]
    if draw(st.booleans()):  # as real rows are: fewer bits, larger score
        scores = [sorted(row, reverse=True) for row in scores]
    if draw(st.booleans()):
        columns = [draw(st.integers(1, 9)) for _ in range(rows)]
        cost = np.array(columns)[:, None] * np.array(WIDTHS[:widths])
    else:
        price = st.lists(st.integers(0, 30), min_size=widths, max_size=widths)
        cost = np.array([draw(price) for _ in range(rows)])
    limit = draw(st.integers(0, int(cost.max(1).sum())))
    return np.array(scores, dtype=np.float64), cost.astype(np.int64), limit


@given(problem=problems())
@settings(max_examples=400, deadline=None)
def test_the_solution_is_the_optimum_that_brute_force_finds(problem):
    scores, cost, limit = problem
    optimum = brute_force(scores, cost, limit)
    if np.isinf(optimum):
        with pytest.raises(BudgetError):
            Knapsack(scores, cost).solve(limit)
        return
    solution = Knapsack(scores, cost).solve(limit)
    rows = np.arange(len(scores))
    assert solution.cost == cost[rows, solution.level].sum() <= limit
    assert solution.score == pytest.approx(scores[rows, solution.level].sum(), abs=0, rel=1e-12)
    assert solution.score == pytest.approx(optimum, rel=1e-12, abs=1e-12)
    assert solution.gap == 0, "on so few rows the optimum is always proven"


def test_a_choice_off_the_convex_hull_is_used_where_it_alone_fits():
    # The hull goes straight from 10 to 0 at cost 10; only the point above it fits a limit of 5.
    scores, cost = np.array([[10.0, 8.0, 0.0]]), np.array([[0, 5, 10]])
    assert Knapsack(scores, cost).solve(5).level.tolist() == [1]


def random_rows(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    size = rng.lognormal(sigma=2, size=(rows, 1))
    scores = (
        size
        * np.array([1, 0.15, 0.04, 0.011, 5e-5, 0])
        * np.exp(0.3 * rng.normal(size=(rows, len(WIDTHS))))
    )
    return scores, rng.choice([256, 384, 588], rows)[:, None] * np.array(WIDTHS)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.19, 0.3, 0.7])
def test_thousands_of_rows_are_solved_to_the_proven_optimum(share):
    scores, cost = random_rows(5000, 0)
    solution = Knapsack(scores, cost).solve(int(share * cost[:, -1].sum()))
    assert solution.gap <= 1e-9 * solution.score


def test_a_gap_that_cannot_be_closed_is_told():
    """All rows alike, and a limit between their steps: too many ties to prove anything."""
    rng = np.random.default_rng(0)
    cost = np.cumsum(rng.integers(10**8, 10**9, (400, 6)), axis=1)
    price = 3.0
    scores = price * (cost[:, -1:] - cost).astype(np.float64)
    limit = int(0.5 * cost[:, -1].sum()) + 1
    solution = Knapsack(scores, cost).solve(limit)
    bound = scores[:, 0].sum() - price * (limit - cost[:, 0].sum())
    assert solution.cost <= limit
    assert 0 < solution.score - bound <= solution.gap * (1 + 1e-6)
    assert solution.gap < 1e-7 * bound


@given(seed=st.integers(0, 1000), share=st.floats(0.02, 0.99), key=st.sampled_from(["m", "a"]))
@settings(max_examples=40, deadline=None)
def test_the_solution_is_never_worse_than_greedy_at_equal_cost(seed, share, key):
    scores, cost = random_rows(60, seed)
    greedy = demote(
        scores,
        WIDTHS,
        cost,
        int(share * cost[:, -1].sum()),
        "marginal" if key == "m" else "absolute",
    )
    rows = np.arange(len(scores))
    solution = Knapsack(scores, cost).solve(int(cost[rows, greedy].sum()))
    assert solution.score <= scores[rows, greedy].sum() * (1 + 1e-12)


def test_a_limit_below_the_cheapest_choices_says_by_how_much():
    with pytest.raises(BudgetError, match="too small by 3 units"):
        Knapsack(np.array([[np.inf, 1.0]]), np.array([[0, 8]])).solve(5)


def test_a_row_that_may_have_no_width_is_named():
    with pytest.raises(BudgetError, match="row 1 "):
        Knapsack(np.array([[1.0, 0.0], [np.inf, np.inf]]), np.array([[0, 8]] * 2))
