"""What overlapping chunks mean together."""

import numpy as np
import pytest

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.policy.chunk_scheduler import ChunkScheduler
from qvla_ros.policy.chunk_strategy import Blend, Ensemble
from qvla_ros.policy.schedule import ScheduledAction, SchedulerSettings

MS = 1_000_000
PERIOD = 50 * MS
BOTH = np.array([True, True])


def chunk(observed_ms: int, value: float, gripper: float = 0.0) -> ActionChunk:
    actions = np.full((8, 2), value, np.float32)
    actions[:, 1] = gripper
    return ActionChunk(observed_ms * MS, PERIOD, actions)


def scheduler(strategy) -> ChunkScheduler:
    return ChunkScheduler(SchedulerSettings(400 * MS, 400 * MS), strategy)


def due(subject: ChunkScheduler, at_ms: int) -> list[float]:
    scheduled = subject.action_at(at_ms * MS)
    assert isinstance(scheduled, ScheduledAction)
    return scheduled.action.tolist()


def test_a_blend_passes_linearly_and_leaves_no_jump_at_the_seam():
    subject = scheduler(Blend(BOTH, 100 * MS))
    subject.accept(chunk(0, 1.0), 20 * MS)
    acceptance = subject.accept(chunk(100, 3.0), 150 * MS)
    np.testing.assert_array_equal(acceptance.seam_jump, [0, 0])
    assert [due(subject, at)[0] for at in (150, 175, 200, 250, 300)] == [1, 1, 2, 3, 3]


def test_a_blend_leaves_the_gripper_to_the_newest_chunk():
    subject = scheduler(Blend(np.array([True, False]), 100 * MS))
    subject.accept(chunk(0, 1.0, gripper=1.0), 20 * MS)
    subject.accept(chunk(100, 3.0, gripper=0.0), 150 * MS)
    assert due(subject, 150) == [1.0, 0.0]


def test_a_blend_with_a_chunk_that_has_ended_is_the_newest_alone():
    subject = scheduler(Blend(BOTH, 300 * MS))
    subject.accept(chunk(0, 1.0), 0)
    subject.accept(chunk(350, 3.0), 390 * MS)
    assert due(subject, 395)[0] < 1.1
    assert due(subject, 400)[0] == 3.0


@pytest.mark.parametrize(("decay", "mean"), [(0.0, 2.0), (1.0, 1.54), (-1.0, 2.46)])
def test_an_ensemble_weighs_the_valid_chunks_by_their_order(decay, mean):
    subject = scheduler(Ensemble(np.array([True, False]), depth=2, decay=decay))
    for at, value in ((0, 100.0), (50, 1.0), (100, 3.0)):
        subject.accept(chunk(at, value, gripper=value), at * MS)
    assert due(subject, 120) == [pytest.approx(mean, abs=0.01), 3.0]


def test_a_chunk_is_sent_as_it_will_be_executed():
    subject = scheduler(Blend(BOTH, 100 * MS))
    first = chunk(0, 1.0)
    assert subject.accept(first, 20 * MS).planned.actions.tolist() == first.actions.tolist()
    planned = subject.accept(chunk(100, 3.0), 150 * MS).planned
    assert planned.actions[:, 0].tolist() == [1, 1, 2, 3, 3, 3, 3, 3]
    for row in range(1, 8):
        assert due(subject, 100 + 50 * row) == planned.actions[row].tolist()
