"""Limits of actions: what breaks them, and what a file of them must say."""

from pathlib import Path

import numpy as np
import pytest

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.errors import ConfigurationError
from qvla_ros.policy.action_limits import ActionLimits, read_limits
from qvla_ros.policy.chunk_scheduler import ChunkScheduler
from qvla_ros.policy.reasons import DropReason
from qvla_ros.policy.schedule import SchedulerSettings

LIMITS = ActionLimits(
    ("dx", "grip"),
    np.array([-1, 0], np.float32),
    np.array([1, 1], np.float32),
    np.array([0.5, 1], np.float32),
)
GOOD = np.array([[0, 0], [0.5, 1], [1, 0]], np.float32)


def test_what_touches_its_limits_is_within_them():
    assert LIMITS.violation(GOOD) is None
    assert LIMITS.clamp(GOOD)[1] == 0


@pytest.mark.parametrize(
    ("row", "column", "value", "reason"),
    [
        (2, 0, 1.01, r"dx is 1.01, its limits are -1 to 1"),
        (1, 1, -0.25, r"grip is -0.25"),
        (1, 0, -0.01, r"dx changes by 1.01 in one step, its limit is 0.5"),
    ],
)
def test_a_violation_names_the_dimension_and_the_limit(row, column, value, reason):
    actions = GOOD.copy()
    actions[row, column] = value
    assert reason in LIMITS.violation(actions)


def test_a_clamped_chunk_is_within_its_limits_and_the_changes_are_counted():
    wild = np.array([[-7, 0.5], [7, 0.5], [7, 2.0]], np.float32)
    clamped, count = LIMITS.clamp(wild)
    assert clamped.tolist() == [[-1, 0.5], [-0.5, 0.5], [0, 1]]
    assert count == 4
    assert LIMITS.violation(clamped) is None


def scheduler(clamp: bool) -> ChunkScheduler:
    return ChunkScheduler(SchedulerSettings(10**9, 10**9, limits=LIMITS, clamp=clamp))


def wild_chunk() -> ActionChunk:
    return ActionChunk(0, 50_000_000, GOOD * np.float32(3))


def test_the_scheduler_refuses_the_whole_chunk_and_says_which_limit():
    subject = scheduler(clamp=False)
    acceptance = subject.accept(wild_chunk(), 0)
    assert acceptance.dropped is DropReason.OUT_OF_LIMITS
    assert "dx is 3" in acceptance.violation
    assert subject.status(0).drops == {"out_of_limits": 1}
    assert not subject.status(0).has_action


def test_where_it_may_clamp_it_takes_the_clamped_chunk_and_tells_how_many():
    acceptance = scheduler(clamp=True).accept(wild_chunk(), 0)
    assert acceptance.clipped_count == 3
    assert LIMITS.violation(acceptance.planned.actions) is None


TEXT = """
limits:
  grip: {lower: 0, upper: 1.0, max_step: 1.0}
  dx: {lower: -1.0, upper: 1.0, max_step: 0.5}
false_positive_rate: {dx: 0.0}
"""


def test_a_file_is_read_in_the_order_of_the_actions(tmp_path: Path):
    path = tmp_path / "limits.yaml"
    path.write_text(TEXT)
    limits = read_limits(path, ("dx", "grip"))
    assert limits.lower.tolist() == [-1, 0]
    assert limits.max_step.tolist() == [0.5, 1]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("dx:", "dy:", "limits grip, dy; the actions are dx, grip"),
        ("max_step: 0.5", "max_step: .nan", r"limits.dx.max_step must be a finite number"),
        ("max_step: 0.5", "max: 0.5", r"limits.dx.max_step must be"),
        ("max_step: 0.5", "max_step: -1", "max_step < 0"),
        ("lower: 0,", "lower: 2,", "above the upper"),
        ("limits:", "limit:", "limits nothing"),
        ("limits:", "{", "cannot be read"),
    ],
)
def test_a_file_that_does_not_limit_these_actions_is_refused(tmp_path, old, new, reason):
    path = tmp_path / "limits.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ConfigurationError, match=reason):
        read_limits(path, ("dx", "grip"))


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent.yaml cannot be read"):
        read_limits(tmp_path / "absent.yaml", ("dx",))
