"""The knapsack against brute force, and what a budget means."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvla_ros.errors import BudgetError, CalibrationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.allocation import allocate_bits, row_bytes, solve
from qvla_ros.quantize.bit_plan import BitBudget, uniform_plan
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.widths import WIDTHS


def table_of(scores: dict[str, np.ndarray], columns: int = 8) -> SensitivityTable:
    layers = tuple(
        LinearLayer(name, len(rows), columns, "language") for name, rows in scores.items()
    )
    tensors = {name: torch.from_numpy(rows.copy()) for name, rows in scores.items()}
    energy = {name: torch.ones(columns) for name in scores}
    return SensitivityTable(layers, energy, tensors, "model", "frames", 1, 0)


def random_scores(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = rng.exponential(size=(rows, len(WIDTHS))) * np.array([100, 10, 1, 0.1, 0])
    return np.maximum.accumulate(steps[:, ::-1], axis=1)[:, ::-1].copy()


def brute_force(scores, cost, limit):
    best = np.inf
    index = np.arange(len(scores))
    for choice in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        if cost[index, choice].sum() <= limit:
            best = min(best, scores[index, choice].sum())
    return best


@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_solution_is_within_one_upgrade_of_the_optimum(seed, share):
    scores = random_scores(4, seed)
    columns = np.random.default_rng(seed).integers(1, 9, 4)
    cost = columns[:, None] * np.array(WIDTHS)
    limit = int(share * cost[:, -1].sum())
    level = solve(scores, cost, limit)
    index = np.arange(4)
    assert cost[index, level].sum() <= limit
    optimum = brute_force(scores, cost, limit)
    assert optimum <= scores[index, level].sum() + 1e-9
    # Not worse than the optimum by more than one edge of one row's hull can give.
    assert scores[index, level].sum() <= optimum + (scores[:, 0] - scores[:, -1]).max() + 1e-9


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_at_the_costs_of_its_own_answers_the_solution_is_optimal(seed):
    """Where the greedy prefix uses the budget up exactly, Lagrangian duality makes it exact."""
    scores = random_scores(4, seed)
    cost = np.tile(np.array(WIDTHS) * 4, (4, 1))
    index = np.arange(4)
    first = solve(scores, cost, 4 * 4 * 4)
    limit = int(cost[index, first].sum())
    level = solve(scores, cost, limit)
    if cost[index, level].sum() == limit and (level == first).all():
        assert (
            scores[index, level].sum()
            <= brute_force(scores, cost, limit) * (1 + 1e-9) + (scores[:, 0] - scores[:, -1]).max()
        )


def test_bits_go_to_the_rows_that_matter():
    scores = np.array([[9.0, 3.0, 1.0, 0.1, 0.0]] * 2)
    scores[1] *= 1000
    plan = allocate_bits(table_of({"a": scores}), BitBudget(average_bits_per_weight=5.0))
    assert plan.row_bits["a"][1] > plan.row_bits["a"][0]


def test_the_average_is_weighted_by_columns_not_by_rows():
    table = table_of({"narrow": random_scores(50, 1), "wide": random_scores(50, 2)})
    narrow, wide = table.layers
    table = replace(table, layers=(narrow, replace(wide, columns=800)))
    plan = allocate_bits(table, BitBudget(average_bits_per_weight=4.0))
    bits = {layer.name: int(plan.row_bits[layer.name].sum()) for layer in plan.layers}
    average = (8 * bits["narrow"] + 800 * bits["wide"]) / (50 * 808)
    assert plan.average_bits_per_weight == pytest.approx(average)
    assert average <= 4.0


def test_a_larger_budget_never_predicts_a_larger_error():
    table = table_of({"a": random_scores(200, 3), "b": random_scores(100, 4)})
    errors = [
        allocate_bits(table, BitBudget(average_bits_per_weight=bits)).predicted_error
        for bits in (1.0, 2.0, 3.0, 4.0, 8.0, 16.0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_a_budget_of_bytes_counts_scales_and_row_orders():
    table = table_of({"a": random_scores(64, 5)}, columns=256)
    plan = allocate_bits(table, BitBudget(max_bytes=20_000), fixed_bytes=8_000)
    spent = sum(row_bytes(256, int(bits)) for bits in plan.row_bits["a"])
    assert 11_500 < spent <= 12_000


def test_a_budget_below_the_smallest_file_is_refused():
    table = table_of({"a": random_scores(4, 5)})
    with pytest.raises(BudgetError, match="too small"):
        allocate_bits(table, BitBudget(max_bytes=100), fixed_bytes=8_000)


def test_equal_scores_give_the_same_plan_every_time():
    table = table_of({"a": np.tile([4.0, 2.0, 1.0, 0.5, 0.0], (33, 1))})
    plans = [allocate_bits(table, BitBudget(average_bits_per_weight=3.3)) for _ in range(2)]
    assert plans[0].row_bits["a"].equal(plans[1].row_bits["a"])


def test_a_row_without_evidence_is_not_pruned():
    scores = random_scores(3, 7)
    scores[1] = 0
    plan = allocate_bits(table_of({"a": scores}), BitBudget(average_bits_per_weight=16.0))
    assert plan.row_bits["a"][1] == 2


def test_a_score_that_is_not_finite_is_refused():
    scores = random_scores(3, 7)
    scores[1, 2] = np.nan
    with pytest.raises(CalibrationError, match="not finite"):
        allocate_bits(table_of({"a": scores}), BitBudget(average_bits_per_weight=4.0))


@pytest.mark.parametrize(
    "limits",
    [{}, {"average_bits_per_weight": 4.0, "max_bytes": 5}, {"average_bits_per_weight": 17.0}],
)
def test_a_budget_is_exactly_one_sensible_limit(limits):
    with pytest.raises(BudgetError):
        BitBudget(**limits)


def test_a_uniform_plan_knows_its_histogram():
    table = table_of({"a": random_scores(5, 1)})
    assert uniform_plan(table, 4).bit_histogram == {0: 0, 2: 0, 4: 5, 8: 0, 16: 0}
    with pytest.raises(BudgetError, match="3 is not"):
        uniform_plan(table, 3)
