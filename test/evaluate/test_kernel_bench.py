"""What the kernel bench times, counts and says; never how fast anything is."""

import itertools

import pytest
import torch

from qvla_ros.evaluate import kernel_bench, turns
from qvla_ros.evaluate.kernel_bench import (
    BASELINE,
    PACKINGS,
    ROW_SHARES,
    SHAPES,
    bench_kernels,
    synthetic_layer,
)
from qvla_ros.evaluate.turns import (
    median_interval,
    relative_speed,
    speed_interval,
    time_in_turns,
)
from qvla_ros.kernels.operand import LinearOperand
from qvla_ros.kernels.quantized_linear import QuantizedLinear
from qvla_ros.kernels.reference import dequantize, linear_reference


@pytest.fixture(scope="module")
def bench():
    return bench_kernels([(64, 128), (48, 130)], [1, 17], repeats=1)


def test_every_shape_and_number_of_tokens_is_timed(bench) -> None:
    cases = [(t.rows, t.columns, t.tokens) for t in bench.times]
    assert cases == [(64, 128, 1), (64, 128, 17), (48, 130, 1), (48, 130, 17)]


def test_our_candidates_stand_beside_those_of_torch(bench) -> None:
    expected = {"bf16", BASELINE, *(packing.name for packing in PACKINGS)}
    for times in bench.times:
        assert times.milliseconds.keys() >= expected
        assert times.milliseconds.keys() == times.speed.keys()
        assert times.speed[BASELINE] == 1.0
        assert all(value > 0 for value in times.milliseconds.values())


def test_it_says_which_kernel_multiplied_and_why(bench) -> None:
    assert bench.kernels.keys() == {packing.name for packing in PACKINGS}
    assert all("CPU" in reason for reason in bench.kernels.values())


def test_resident_bytes_count_codes_scales_and_every_index() -> None:
    layer = synthetic_layer(64, 128, PACKINGS[0])
    ratio = bench_kernels([(64, 128)], [1], 1).resident_weight_ratio["a16"]
    pruned = 64 - layer.stored_rows  # which the file's order of rows does not name
    assert ratio == pytest.approx((layer.nbytes + 4 * pruned + 4 * 64) / (2 * 64 * 128))


def test_layers_of_true_size_take_less_than_a_third_of_bf16() -> None:
    layer = synthetic_layer(4096, 4096, PACKINGS[0])
    assert QuantizedLinear(layer).memory_bytes() <= 0.32 * 2 * 4096 * 4096


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.name)
def test_a_synthetic_layer_has_the_widths_in_their_shares_and_mixed(packing) -> None:
    layer = synthetic_layer(1000, 130, packing)
    bits = layer.bits_per_row()
    shares = {width: int((bits == width).sum()) / 1000 for width in ROW_SHARES}
    assert shares == pytest.approx(ROW_SHARES, abs=0.002)
    assert bool((bits.diff() < 0).any() and (bits.diff() > 0).any())
    assert layer.activation_bits == packing.activation_bits
    groups = {s.group_columns for s in layer.segments if s.bits != 16}
    assert groups == ({128} if packing.groups else {None})
    assert bool(torch.isfinite(dequantize(layer)).all())


def test_the_shares_are_a_whole_of_4_3_bits() -> None:
    assert sum(ROW_SHARES.values()) == pytest.approx(1)
    mean = sum(bits * share for bits, share in ROW_SHARES.items())
    assert mean == pytest.approx(4.3)


def test_the_shapes_are_those_of_the_models() -> None:
    assert (4096, 4096) in SHAPES["language"]
    assert (1152, 4304) in SHAPES["vision"]  # columns that are no multiple of 128


def test_the_copies_that_are_multiplied_in_turn_are_equal_and_lie_apart(monkeypatch) -> None:
    monkeypatch.setattr(kernel_bench, "_ROTATED_BYTES", 3 * 64 * 128)
    layer = synthetic_layer(64, 128, PACKINGS[0])
    seen = []

    def spy(x: torch.Tensor, operand: LinearOperand) -> torch.Tensor:
        seen.append(operand.packed.segments[0].codes.data_ptr())
        return linear_reference(x, operand)

    product = kernel_bench._packed_product(torch.ones(1, 128), layer, spy)
    results = [product() for _ in range(12)]
    assert len(set(seen)) > 1
    assert seen[0] in seen[1:]  # they come round again
    assert all(torch.equal(result, results[0]) for result in results)


def test_candidates_take_turns_after_one_round_that_does_not_count() -> None:
    calls: list[str] = []
    seconds = time_in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    rounds = [calls[i : i + 2] for i in range(0, 8, 2)]
    assert all(sorted(turn) == ["a", "b"] for turn in rounds)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_a_lead_in_runs_before_each_one_that_counts_and_is_not_timed(monkeypatch) -> None:
    calls: list[str] = []
    clock = itertools.count(0, 10)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: calls.append("clock") or next(clock))
    assert time_in_turns({"a": lambda: calls.append("run")}, 1, lead_in=2) == {"a": [10]}
    assert calls == ["run", "run", "run", "clock", "run", "clock"]


def test_each_run_is_measured_by_itself(monkeypatch) -> None:
    clock = itertools.count(0, 10)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))
    assert time_in_turns({"a": lambda: None}, 2) == {"a": [10, 10]}


def test_speed_is_the_median_over_the_turns_so_that_one_disturbance_does_not_count() -> None:
    seconds = {"base": [1.0, 1.0, 9.0], "twice as fast": [0.5, 0.5, 0.5]}
    assert relative_speed(seconds, "base") == {"base": 1.0, "twice as fast": 2.0}


@pytest.mark.parametrize(
    ("count", "expected"), [(1, (0, 0)), (5, (0, 4)), (6, (0, 5)), (10, (1, 8)), (25, (7, 17))]
)
def test_the_interval_of_a_median_is_that_of_the_binomial_distribution(count, expected) -> None:
    assert median_interval(list(range(count))[::-1]) == expected


def test_the_interval_of_a_speed_is_of_the_turns_own_ratios() -> None:
    seconds = {"base": [1.0, 3.0], "other": [0.5, 1.0]}
    assert speed_interval(seconds, "base") == {"base": (1.0, 1.0), "other": (2.0, 3.0)}


def test_the_order_of_the_turns_changes() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    time_in_turns(runs, 10)
    assert len({tuple(calls[i : i + 3]) for i in range(3, 33, 3)}) > 1
