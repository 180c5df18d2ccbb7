"""Limits of actions: what they let through, and what they would have refused."""

import numpy as np
import pytest
import yaml

from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.episode import RecordedActions
from qvla_ros.evaluate.limit_calibration import (
    LEAST_SPAN,
    calibrate_limits,
    count_trips,
    windows,
)
from qvla_ros.evaluate.rate_bound import upper_bound
from qvla_ros.policy.action_limits import read_limits

PERIOD = 50


def chunks(*rows: list[float]) -> np.ndarray:
    """Chunks of one dimension."""
    return np.array(rows, np.float32)[:, :, None]


def test_every_step_without_a_gap_behind_it_begins_a_window():
    stamps = np.array([0, 50, 100, 150, 300, 350, 400]) + 1000
    actions = RecordedActions(stamps, np.arange(7, dtype=np.float32)[:, None])
    found = windows(actions, horizon=3, period_ns=PERIOD)
    np.testing.assert_array_equal(found[..., 0], [[0, 1, 2], [1, 2, 3], [4, 5, 6]])
    assert windows(actions, horizon=9, period_ns=PERIOD).shape == (0, 9, 1)


def test_actions_at_another_rate_are_taken_at_the_steps_of_the_robot():
    actions = RecordedActions(np.arange(0, 400, 10), np.arange(40, dtype=np.float32)[:, None])
    found = windows(actions, horizon=4, period_ns=PERIOD)
    np.testing.assert_array_equal(found[0, :, 0], [0, 5, 10, 15])


def test_limits_are_what_was_seen_and_a_margin():
    found = calibrate_limits([chunks([0, 1, 3], [1, 2, 4])], ["dx"], margin=0.5).limits
    assert (found.lower[0], found.upper[0], found.max_step[0]) == (-2, 6, 3)
    assert found.lower.dtype == found.max_step.dtype == np.float32


def test_a_dimension_that_never_moves_leaves_room_for_noise():
    found = calibrate_limits([chunks([1, 1])], ["dx"], margin=0.5).limits
    assert found.lower[0] == pytest.approx(1 - LEAST_SPAN / 2)
    assert found.max_step[0] == pytest.approx(LEAST_SPAN / 2)


def test_what_the_limits_were_made_of_never_trips_them():
    random = np.random.default_rng(0)
    recordings = [random.normal(size=(20, 8, 3)).astype(np.float32) for _ in range(3)]
    found = calibrate_limits(recordings, ["a", "b", "c"], margin=0.0)
    for one in recordings:
        assert count_trips(found.limits, one).refused == 0
        assert all(found.limits.violation(chunk) is None for chunk in one)


def test_each_recording_is_judged_by_limits_of_the_others():
    recordings = [chunks([0, 1], [0, 1]), chunks([0, 1], [1, 0]), chunks([0, 1], [0, 5])]
    found = calibrate_limits(recordings, ["dx"], margin=0.0)
    assert found.heldout is not None
    assert (found.heldout.trips.chunks, found.heldout.trips.refused) == (6, 1)
    assert found.heldout.trips.named(["dx"]) == {"dx.upper": 1, "dx.max_step": 1}
    assert (found.heldout.recordings, found.heldout.refused) == (3, 1)
    assert found.heldout.bound == pytest.approx(upper_bound(1, 3))


def test_the_least_margin_refuses_nothing_and_a_smaller_one_does():
    random = np.random.default_rng(1)
    recordings = [random.normal(size=(20, 8, 2)).astype(np.float32) for _ in range(4)]
    tight = calibrate_limits(recordings, ["a", "b"], margin=0.0).heldout
    assert tight is not None
    assert tight.refused > 0
    least = tight.least_margin
    for margin, refused in ((least * 1.001, False), (least * 0.999, True)):
        heldout = calibrate_limits(recordings, ["a", "b"], margin).heldout
        assert heldout is not None
        assert (heldout.refused > 0) == refused


def test_a_chunk_is_counted_for_every_limit_that_it_breaks_and_the_node_agrees():
    limits = calibrate_limits([chunks([-1, 0, 1])], ["dx"], margin=0.0).limits
    judged = chunks([0, 1, 0], [-2, -1, 0], [0, 0, 2], [0, 0, np.nan])
    trips = count_trips(limits, judged)
    assert trips.by_limit.tolist() == [[1, 1, 1]]
    assert (trips.chunks, trips.refused) == (4, 2)
    assert [limits.violation(one) is None for one in judged[:3]] == [True, False, False]


def test_one_recording_gives_limits_and_no_rate():
    found = calibrate_limits([chunks([0, 1])], ["dx"], margin=0.0)
    assert found.heldout is None
    assert found.to_yaml({})["false_positive_rate"] is None


def test_the_file_is_read_by_the_node(tmp_path):
    recordings = [chunks([0, 1]), chunks([0, 2])]
    found = calibrate_limits(recordings, ["dx"], margin=0.1)
    path = tmp_path / "limits.yaml"
    content = found.to_yaml({"source": "here"})
    path.write_text(yaml.safe_dump(content))
    read = read_limits(path, ["dx"])
    for field in ("lower", "upper", "max_step"):
        np.testing.assert_array_equal(getattr(read, field), getattr(found.limits, field))
    assert content["false_positive_rate"] == {"dx": {"lower": 0.0, "upper": 0.5, "max_step": 0.5}}
    assert content["provenance"] == {
        "source": "here", "margin": 0.1, "chunks": 2, "heldout_chunks": 2, "heldout_refused": 1,
        "heldout_bags": 2, "heldout_bags_refused": 1, "refused_bags_at_most": upper_bound(1, 2),
        "least_margin": 1.0,
    }  # fmt: skip


def test_a_recording_without_a_chunk_is_refused():
    with pytest.raises(CalibrationError, match="bag 2 of 2 holds no uninterrupted chunk"):
        calibrate_limits([chunks([0, 1]), np.zeros((0, 2, 1), np.float32)], ["dx"], 0.1)


def test_an_action_that_is_not_finite_limits_nothing():
    with pytest.raises(CalibrationError, match=r"bag 1 of 1 .* not finite"):
        calibrate_limits([chunks([0, np.nan])], ["dx"], 0.1)


def test_the_step_of_chunks_of_one_action_is_that_from_one_chunk_to_the_next():
    recordings = [chunks([0], [2]), chunks([1], [2])]
    found = calibrate_limits(recordings, ["dx"], margin=0.0)
    assert (found.limits.lower[0], found.limits.upper[0], found.limits.max_step[0]) == (0, 2, 2)
    assert found.limits.violation(np.array([[1.5]], np.float32)) is None
    assert found.heldout is not None
    assert found.heldout.trips.named(["dx"]) == {"dx.lower": 1}
