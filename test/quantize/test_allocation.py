"""What a budget means, and what the settings of an allocation do to a plan."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvla_ros.errors import BudgetError, CalibrationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.quantize.allocation import AllocationSettings, allocate_bits
from qvla_ros.quantize.bit_plan import BitBudget, uniform_plan
from qvla_ros.quantize.latency_table import LatencyTable, LayerLatency
from qvla_ros.quantize.row_costs import row_bytes
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.structure import Feed
from qvla_ros.quantize.tiles import round_up_to_tiles
from qvla_ros.quantize.uniform import spread_plan
from qvla_ros.quantize.widths import WIDTHS


def table_of(scores: dict[str, np.ndarray], columns: int = 8) -> SensitivityTable:
    layers = tuple(
        LinearLayer(name, len(rows), columns, "language") for name, rows in scores.items()
    )
    tensors = {name: torch.from_numpy(rows.copy()) for name, rows in scores.items()}
    weights = {name: torch.ones(3) for name in scores}
    return SensitivityTable(layers, tensors, weights, "model", "frames", 1, 0)


def random_scores(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = rng.exponential(size=(rows, len(WIDTHS))) * np.array([100, 10, 3, 1, 0.1, 0])
    return np.maximum.accumulate(steps[:, ::-1], axis=1)[:, ::-1].copy()


def average_bits(limit: float) -> BitBudget:
    return BitBudget(average_bits_per_weight=limit)


def bytes_of(plan, group_columns=None) -> int:
    return sum(
        row_bytes(plan.stored_columns(layer), int(bits), group_columns)
        for layer in plan.layers
        for bits in plan.row_bits[layer.name]
    ) + sum(4 * len(kept) for kept in plan.input_columns.values())


def milliseconds(layer: str | None, rows: int, columns: int, factor: float) -> LayerLatency:
    times = {bits: factor * bits for bits in WIDTHS[1:]}
    return LayerLatency(layer, rows, columns, 16, fixed_ms=1.0, row_ms=times)


def test_bits_go_to_the_rows_that_matter():
    scores = np.array([[9.0, 3.0, 2.0, 1.0, 0.1, 0.0]] * 2)
    scores[1] *= 1000
    plan = allocate_bits(table_of({"a": scores}), average_bits(5.0))
    assert plan.row_bits["a"][1] > plan.row_bits["a"][0]


def test_the_average_is_weighted_by_columns_not_by_rows():
    table = table_of({"narrow": random_scores(50, 1), "wide": random_scores(50, 2)})
    narrow, wide = table.layers
    table = replace(table, layers=(narrow, replace(wide, columns=800)))
    plan = allocate_bits(table, average_bits(4.0))
    bits = {layer.name: int(plan.row_bits[layer.name].sum()) for layer in plan.layers}
    average = (8 * bits["narrow"] + 800 * bits["wide"]) / (50 * 808)
    assert plan.average_bits_per_weight == pytest.approx(average)
    assert 3.95 < average <= 4.0


def test_a_larger_budget_never_predicts_a_larger_error():
    table = table_of({"a": random_scores(200, 3), "b": random_scores(100, 4)})
    plans = [allocate_bits(table, average_bits(bits)) for bits in (1, 2, 3, 4, 8, 16)]
    errors = [plan.predicted_error for plan in plans]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0
    assert all(plan.optimality_gap <= 1e-9 * plan.predicted_error for plan in plans)


def test_a_forbidden_width_never_appears():
    table = table_of({"a": random_scores(300, 3)})
    some = allocate_bits(table, average_bits(3.2))
    without = allocate_bits(
        table, average_bits(3.2), settings=AllocationSettings(widths=(0, 2, 4, 8, 16))
    )
    assert some.bit_histogram[3] > 0
    assert without.bit_histogram[3] == 0
    assert without.predicted_error > some.predicted_error


@pytest.mark.parametrize("widths", [(), (4, 2), (2, 5), (2, 2, 4)])
def test_widths_that_do_not_exist_are_refused(widths):
    with pytest.raises(BudgetError, match="ascending"):
        AllocationSettings(widths=widths)


def test_a_budget_of_bytes_counts_scales_and_row_orders():
    table = table_of({"a": random_scores(64, 5)}, columns=256)
    plan = allocate_bits(table, BitBudget(max_bytes=20_000), fixed_bytes=8_000)
    assert 11_900 < bytes_of(plan) <= 12_000


def test_a_budget_of_bytes_is_charged_for_group_scales():
    table = table_of({"a": random_scores(64, 5)}, columns=512)
    grouped = AllocationSettings(group_columns={"a": 128})
    plan = allocate_bits(table, BitBudget(max_bytes=12_000), settings=grouped)
    assert 11_900 < bytes_of(plan, group_columns=128) <= 12_000
    assert row_bytes(500, 4, 128) - row_bytes(500, 4) == 3 * 4
    assert row_bytes(500, 16, 128) == row_bytes(500, 16)


def test_a_budget_below_the_smallest_file_is_refused():
    table = table_of({"a": random_scores(4, 5)})
    with pytest.raises(BudgetError, match="too small"):
        allocate_bits(table, BitBudget(max_bytes=100), fixed_bytes=8_000)


def test_a_budget_of_milliseconds_follows_the_measured_times():
    table = table_of({"fast": random_scores(64, 5), "slow": random_scores(64, 5)})
    entries = (milliseconds("fast", 64, 8, 0.001), milliseconds("slow", 64, 8, 0.1))
    latency = LatencyTable("a board", 3.0, entries)
    plan = allocate_bits(
        table, BitBudget(max_latency_ms=20.0), settings=AllocationSettings(latency=latency)
    )
    bits = {name: int(widths.sum()) for name, widths in plan.row_bits.items()}
    spent = 5.0 + 0.001 * bits["fast"] + 0.1 * bits["slow"]
    assert 19.8 < spent <= 20.0
    assert bits["fast"] > 3 * bits["slow"], "equal scores: bits go where they cost little time"


def test_a_budget_of_milliseconds_needs_a_table():
    with pytest.raises(BudgetError, match="latency table"):
        allocate_bits(table_of({"a": random_scores(4, 5)}), BitBudget(max_latency_ms=1.0))


def test_bytes_and_milliseconds_can_be_limited_together():
    table = table_of({"a": random_scores(64, 5), "b": random_scores(64, 6)}, columns=256)
    entries = (milliseconds("a", 64, 256, 0.001), milliseconds("b", 64, 256, 0.01))
    options = AllocationSettings(latency=LatencyTable("a board", 0.0, entries))
    size, time = 16_000, 4.2
    free = allocate_bits(table, BitBudget(max_bytes=size), settings=options)
    plan = allocate_bits(table, BitBudget(max_bytes=size, max_latency_ms=time), settings=options)

    def spent(plan):
        return 2 + sum(
            factor * int(plan.row_bits[name].sum()) for name, factor in (("a", 1e-3), ("b", 1e-2))
        )

    assert spent(free) > time >= spent(plan)
    assert bytes_of(plan) <= size
    assert free.predicted_error < plan.predicted_error
    # The bound of the two multipliers is tight but for a few rows.
    assert plan.optimality_gap < 0.05 * plan.predicted_error


def test_equal_scores_give_the_same_plan_every_time():
    table = table_of({"a": np.tile([4.0, 2.0, 1.5, 1.0, 0.5, 0.0], (33, 1))})
    plans = [allocate_bits(table, average_bits(3.3)) for _ in range(2)]
    assert plans[0].row_bits["a"].equal(plans[1].row_bits["a"])


def test_a_row_without_evidence_is_not_pruned():
    scores = random_scores(3, 7)
    scores[1] = 0
    plan = allocate_bits(table_of({"a": scores}), average_bits(16.0))
    assert plan.row_bits["a"][1] == 2


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_a_score_that_is_not_a_squared_error_is_refused(bad):
    scores = random_scores(3, 7)
    scores[1, 2] = bad
    with pytest.raises(CalibrationError, match="not finite"):
        allocate_bits(table_of({"a": scores}), average_bits(4.0))


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"average_bits_per_weight": 4.0, "max_bytes": 5},
        {"average_bits_per_weight": 17.0},
        {"max_bytes": 0},
        {"max_latency_ms": float("inf")},
    ],
)
def test_a_budget_is_a_sensible_limit(limits):
    with pytest.raises(BudgetError):
        BitBudget(**limits)


@pytest.mark.parametrize("method", ["qvla-paper", "qvla-code"])
def test_the_greedy_methods_meet_a_budget_of_bytes_and_are_not_better(method):
    table = table_of({"a": random_scores(64, 5), "b": random_scores(64, 6)}, columns=256)
    options = AllocationSettings(method=method, widths=(0, 2, 4, 8, 16))
    greedy = allocate_bits(table, BitBudget(max_bytes=15_000), settings=options)
    assert bytes_of(greedy) <= 15_000
    optimum = allocate_bits(
        table, BitBudget(max_bytes=15_000), settings=replace(options, method="optimal")
    )
    assert greedy.predicted_error >= optimum.predicted_error
    assert greedy.optimality_gap >= greedy.predicted_error - optimum.predicted_error - 1e-9


def test_the_public_code_averages_over_rows_however_long_they_are():
    table = table_of({"narrow": random_scores(50, 1), "wide": random_scores(50, 2)})
    table = replace(table, layers=(table.layers[0], replace(table.layers[1], columns=800)))
    options = AllocationSettings(method="qvla-code", widths=(0, 2, 4, 8, 16))
    plan = allocate_bits(table, average_bits(4.0), settings=options)
    rows = torch.cat(list(plan.row_bits.values())).float()
    assert 3.9 < rows.mean() <= 4.0


@given(seed=st.integers(0, 1000), tile=st.sampled_from([2, 8, 16]), limit=st.floats(2.5, 9))
@settings(max_examples=30, deadline=None)
def test_whole_tiles_of_rows_still_meet_the_budget(seed, tile, limit):
    table = table_of({"a": random_scores(64, seed), "b": random_scores(48, seed + 1)})
    options = AllocationSettings(tile_rows=tile)
    plan = allocate_bits(table, average_bits(limit), settings=options)
    assert plan.average_bits_per_weight <= limit
    for widths in plan.row_bits.values():
        for bits in WIDTHS[1:]:
            assert int((widths == bits).sum()) % tile == 0
    free = allocate_bits(table, average_bits(limit))
    assert plan.predicted_error >= free.predicted_error * (1 - 1e-9)
    assert plan.optimality_gap >= plan.predicted_error - free.predicted_error - 1e-9


def test_promotion_takes_the_rows_that_gain_most_and_never_lowers_one():
    scores = np.zeros((6, 3))
    scores[:, 1] = [5, 9, 7, 1, 8, 6]
    scores[:, 0] = 12
    level = np.array([1, 1, 1, 2, 1, 0])
    cost = np.tile([0, 4, 8], (6, 1))
    rounded = round_up_to_tiles(level, scores, cost, [6], tile_rows=2)
    assert rounded.tolist() == [1, 2, 1, 2, 1, 1]  # row 1 gains 9 / 4; row 5 completes a tile


def gated_network(rows: int, seed: int) -> tuple[SensitivityTable, Feed]:
    """Gate and up, some of whose rows do not matter, in front of a wide down."""
    gate, up, down = (random_scores(n, seed + i) for i, n in enumerate((rows, rows, 96)))
    gate[: rows // 2] *= 1e-6
    up[: rows // 2] *= 1e-6
    table = table_of({"gate": gate, "up": up, "down": down}, columns=256)
    layers = (*table.layers[:2], replace(table.layers[2], columns=rows))
    return replace(table, layers=layers), Feed(
        ("gate", "up"), torch.arange(rows), "down", "product"
    )


@pytest.mark.parametrize("size", [60_000, 90_000])
def test_what_pruned_rows_save_behind_them_is_spent_again(size):
    table, feed = gated_network(512, 0)
    plain = allocate_bits(table, BitBudget(max_bytes=size))
    plan = allocate_bits(
        table, BitBudget(max_bytes=size), settings=AllocationSettings(feeds=(feed,))
    )
    dead = (plan.row_bits["gate"] == 0) & (plan.row_bits["up"] == 0)
    assert dead.sum() > 100
    assert plan.row_bits["gate"].eq(0).equal(plan.row_bits["up"].eq(0)), "partners die together"
    assert plan.input_columns["down"].tolist() == torch.nonzero(~dead).flatten().tolist()
    assert bytes_of(plan) <= size
    assert plan.predicted_error < plain.predicted_error


def test_columns_that_save_no_block_are_not_removed():
    table, feed = gated_network(120, 0)
    plan = allocate_bits(table, average_bits(3.0), settings=AllocationSettings(feeds=(feed,)))
    assert (plan.row_bits["up"] == 0).any()
    assert plan.input_columns == {}


def test_a_uniform_plan_knows_its_histogram():
    table = table_of({"a": random_scores(5, 1)})
    assert uniform_plan(table, 4).bit_histogram == {0: 0, 2: 0, 3: 0, 4: 5, 8: 0, 16: 0}
    with pytest.raises(BudgetError, match="5 is not"):
        uniform_plan(table, 5)


@given(limit=st.floats(2.0, 16.0))
@settings(max_examples=40, deadline=None)
def test_an_even_spread_uses_two_neighbouring_widths_and_the_whole_budget(limit):
    table = table_of({"a": random_scores(96, 1), "b": random_scores(160, 2)})
    plan = spread_plan(table, average_bits(limit))
    used = [bits for bits, rows in plan.bit_histogram.items() if rows]
    places = [WIDTHS.index(bits) for bits in used]
    assert len(used) <= 2
    assert places[-1] - places[0] == len(used) - 1
    assert limit - 8 / 256 - 1e-9 <= plan.average_bits_per_weight <= limit
    for layer in plan.layers:  # every layer gets its share, whatever the scores say
        share = plan.row_bits[layer.name].float().mean()
        assert share == pytest.approx(plan.average_bits_per_weight, abs=0.15)


def test_an_even_spread_may_skip_a_width_and_pays_for_group_scales():
    table = table_of({"a": random_scores(96, 1)}, columns=256)
    plan = spread_plan(table, BitBudget(max_bytes=14_000), (2, 4, 8), 2_000, {"a": 128})
    assert {bits for bits, rows in plan.bit_histogram.items() if rows} == {2, 4}
    assert 11_900 < bytes_of(plan, group_columns=128) <= 12_000
    with pytest.raises(BudgetError, match="for 2 bits everywhere"):
        spread_plan(table, BitBudget(max_bytes=3_000))
