import numpy as np
import pytest

from qvla_ros.policy.stage_times import StageTimes, percentiles


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1000])
def test_percentiles_are_those_of_numpy(count):
    values = np.random.default_rng(count).gamma(2.0, 10.0, count).tolist()
    result = percentiles(values)
    expected = np.percentile(values, [50, 95, 99])
    np.testing.assert_allclose([result.p50, result.p95, result.p99], expected)
    assert (result.maximum, result.count) == (max(values), count)


def test_percentiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        percentiles([])


def test_only_the_last_of_a_long_run_are_kept():
    times = StageTimes(window=10)
    for value in range(100):
        times.add({"model": float(value)})
    assert times.summary()["model"].count == 10
    assert times.summary()["model"].p50 == pytest.approx(94.5)


def test_the_warm_up_is_left_out_for_all_stages():
    times = StageTimes(warmup_count=2)
    for value in (1000.0, 900.0, 3.0):
        times.add({"process": value, "model": value})
    assert {name: one.maximum for name, one in times.summary().items()} == {
        "process": 3.0,
        "model": 3.0,
    }


def test_before_the_first_run_there_are_no_stages():
    assert StageTimes().summary() == {}


@pytest.mark.parametrize(("warmup", "window"), [(-1, 10), (0, 0)])
def test_a_senseless_window_is_refused(warmup, window):
    with pytest.raises(ValueError, match="out of range"):
        StageTimes(warmup, window)
