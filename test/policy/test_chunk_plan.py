"""Every strategy keeps the limits in what it sends and executes, not only in what is said."""

import numpy as np
import pytest

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.policy.action_limits import ActionLimits
from qvla_ros.policy.chunk_scheduler import ChunkScheduler
from qvla_ros.policy.chunk_strategy import Blend, ChunkStrategy, Ensemble, LatestOnly
from qvla_ros.policy.reasons import DropReason
from qvla_ros.policy.schedule import Hold, ScheduledAction, SchedulerSettings

MS = 1_000_000
PERIOD = 50 * MS
ALL = np.array([True])
STRATEGIES = [LatestOnly(), Blend(ALL, 100 * MS), Ensemble(ALL, 8)]
BY_NAME = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda one: type(one).__name__)


def limits(max_step: float) -> ActionLimits:
    return ActionLimits(("dx",), *(np.array([one], np.float32) for one in (-2, 2, max_step)))


def scheduler(strategy: ChunkStrategy, max_step: float, clamp: bool = False) -> ChunkScheduler:
    settings = SchedulerSettings(400 * MS, 400 * MS, limits=limits(max_step), clamp=clamp)
    return ChunkScheduler(settings, strategy)


def constant(observed_ms: int, value: float) -> ActionChunk:
    return ActionChunk(observed_ms * MS, PERIOD, np.full((8, 1), value, np.float32))


def due(subject: ChunkScheduler, at_ms: int) -> float | Hold:
    scheduled = subject.action_at(at_ms * MS)
    return float(scheduled.action[0]) if isinstance(scheduled, ScheduledAction) else scheduled


@BY_NAME
def test_chunks_that_keep_the_limits_and_together_do_not_are_refused(strategy):
    """Each was judged as the policy said it: what blend and ensemble made of both was not, and
    steps of 0.5 were sent under a limit of 0.1."""
    subject = scheduler(strategy, 0.1)
    subject.accept(constant(0, 0.0), 10 * MS)
    refused = subject.accept(constant(200, 1.0), 210 * MS)
    assert refused.dropped is DropReason.OUT_OF_LIMITS
    assert "dx changes by" in refused.violation
    assert subject.status(210 * MS).drops == {"out_of_limits": 1}
    assert due(subject, 210) == 0.0, "the chunk before is followed on"
    assert due(subject, 399) == 0.0
    assert due(subject, 400) == Hold("exhausted")


@BY_NAME
def test_a_refused_chunk_is_not_mixed_with_later_ones(strategy):
    subject = scheduler(strategy, 0.1)
    subject.accept(constant(0, 0.0), 10 * MS)
    subject.accept(constant(100, 1.0), 110 * MS)
    planned = subject.accept(constant(200, 0.0), 210 * MS).planned
    assert planned is not None
    assert not planned.actions.any()


@BY_NAME
def test_after_a_hold_a_chunk_is_judged_by_itself(strategy):
    subject = scheduler(strategy, 0.1)
    subject.accept(constant(0, 0.0), 10 * MS)
    assert subject.accept(constant(400, 1.0), 410 * MS).dropped is None
    subject.flush("instruction_changed")
    assert subject.accept(constant(500, 0.0), 510 * MS).dropped is None


def test_rows_that_have_passed_do_not_count_at_the_seam():
    subject = scheduler(LatestOnly(), 1.0)
    subject.accept(constant(0, 0.0), 0)
    rising = np.arange(8, dtype=np.float32)[:, None] / 4
    late = ActionChunk(100 * MS, PERIOD, rising - 1)
    assert subject.accept(late, 260 * MS).dropped is None  # at row 3, which is -0.25


@BY_NAME
@pytest.mark.parametrize("seed", range(5))
def test_what_is_clamped_is_within_the_limits_from_what_was_followed_on(strategy, seed):
    subject, random = scheduler(strategy, 0.3, clamp=True), np.random.default_rng(seed)
    clipped = 0
    for observed_ms in range(0, 4000, 70):
        rows = np.cumsum(random.uniform(-0.7, 0.7, (8, 1)), axis=0).astype(np.float32)
        now_ns = (observed_ms + 30) * MS
        followed = subject.action_at(now_ns)
        acceptance = subject.accept(ActionChunk(observed_ms * MS, PERIOD, rows), now_ns)
        assert acceptance.planned is not None
        path = acceptance.planned.actions[acceptance.first_index :]
        if isinstance(followed, ScheduledAction):
            path = np.concatenate([followed.action[None], path])
        assert limits(0.3).violation(path) is None
        clipped += acceptance.clipped_count
    assert clipped > 0


@BY_NAME
def test_what_is_executed_is_what_was_sent(strategy):
    subject = scheduler(strategy, 4.0)
    subject.accept(constant(0, 0.0), 10 * MS)
    planned = subject.accept(constant(130, 1.0), 175 * MS).planned
    assert planned is not None
    for at_ms in range(175, 530, 5):
        assert due(subject, at_ms) == planned.actions[(at_ms - 130) // 50, 0]
