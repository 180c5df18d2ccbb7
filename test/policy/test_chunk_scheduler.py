"""Timelines in integer nanoseconds; nobody sleeps."""

import threading

import numpy as np
import pytest

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.policy.chunk_scheduler import (
    ChunkScheduler,
    Hold,
    ScheduledAction,
    SchedulerSettings,
)
from qvla_ros.policy.reasons import DropReason

MS = 1_000_000
PERIOD = 50 * MS
START = 1_700_000_000_000_000_000


def scheduler(ttl_ms: int = 300, age_ms: int = 200, **more: int) -> ChunkScheduler:
    return ChunkScheduler(SchedulerSettings(ttl_ms * MS, age_ms * MS, **more))


def chunk(observed_ms: int, horizon: int = 8, first: float = 0.0) -> ActionChunk:
    actions = np.arange(horizon, dtype=np.float32)[:, None] + np.float32(first)
    return ActionChunk(START + observed_ms * MS, PERIOD, np.repeat(actions, 2, axis=1))


def at(milliseconds: int) -> int:
    return START + milliseconds * MS


def test_without_a_chunk_it_holds():
    assert scheduler().action_at(at(0)) == Hold("no_chunk")


def test_the_stale_prefix_is_dropped_by_stamp():
    subject = scheduler()
    acceptance = subject.accept(chunk(0), at(120))
    assert acceptance.dropped is None
    assert acceptance.first_index == 2
    due = subject.action_at(at(120))
    assert isinstance(due, ScheduledAction)
    assert (due.index, due.age_ns) == (2, 120 * MS)
    np.testing.assert_array_equal(due.action, [2, 2])


@pytest.mark.parametrize(
    ("now_ns", "index"),
    [(0, 0), (50 * MS - 1, 0), (50 * MS, 1), (100 * MS - 1, 1), (299 * MS, 5)],
)
def test_an_action_lasts_from_its_stamp_to_the_next_one(now_ns, index):
    subject = scheduler()
    subject.accept(chunk(0), at(0))
    due = subject.action_at(START + now_ns)
    assert isinstance(due, ScheduledAction)
    assert due.index == index


def test_the_time_to_live_ends_in_a_hold_to_the_nanosecond():
    subject = scheduler(ttl_ms=300)
    subject.accept(chunk(0), at(0))
    assert isinstance(subject.action_at(at(300) - 1), ScheduledAction)
    assert subject.action_at(at(300)) == Hold("expired")


def test_a_chunk_whose_horizon_is_shorter_than_the_time_to_live_is_exhausted():
    subject = scheduler(ttl_ms=10_000)
    subject.accept(chunk(0, horizon=4), at(0))
    assert isinstance(subject.action_at(at(200) - 1), ScheduledAction)
    assert subject.action_at(at(200)) == Hold("exhausted")


def test_a_newer_chunk_takes_over_and_tells_the_jump_at_the_seam():
    subject = scheduler()
    assert subject.accept(chunk(0), at(10)).seam_jump is None
    acceptance = subject.accept(chunk(100, first=10.0), at(160))
    assert acceptance.seam_jump is not None
    # At 160 ms the old chunk is at action 3, the new one at action 1, which is worth 11.
    np.testing.assert_array_equal(acceptance.seam_jump, [8, 8])
    due = subject.action_at(at(160))
    assert isinstance(due, ScheduledAction)
    np.testing.assert_array_equal(due.action, [11, 11])
    assert acceptance.planned is due.chunk


def test_a_seam_after_a_gap_has_no_jump():
    subject = scheduler(ttl_ms=100)
    subject.accept(chunk(0), at(0))
    assert subject.accept(chunk(150), at(160)).seam_jump is None


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_refuses_the_whole_chunk(poison):
    subject = scheduler()
    bad = chunk(0)
    bad.actions[7, 1] = poison
    assert subject.accept(bad, at(0)).dropped is DropReason.NON_FINITE
    assert subject.action_at(at(0)) == Hold("no_chunk")


def test_a_refused_chunk_leaves_the_current_one_alone():
    subject = scheduler()
    subject.accept(chunk(0), at(0))
    bad = chunk(50)
    bad.actions[0, 0] = np.nan
    subject.accept(bad, at(60))
    due = subject.action_at(at(60))
    assert isinstance(due, ScheduledAction)
    assert due.chunk.observed_at_ns == at(0)


def test_a_chunk_that_is_ready_after_its_time_to_live_is_refused():
    subject = scheduler(ttl_ms=300)
    assert subject.accept(chunk(0), at(300)).dropped is DropReason.EXPIRED
    assert subject.accept(chunk(0), at(300) - 1).dropped is None


@pytest.mark.parametrize("observed_ms", [0, 99, 100])
def test_a_chunk_that_answers_no_newer_observation_is_refused(observed_ms):
    subject = scheduler()
    subject.accept(chunk(100), at(120))
    assert subject.accept(chunk(observed_ms), at(130)).dropped is DropReason.NOT_NEWER


def test_a_chunk_begun_before_a_flush_is_refused_after_it():
    subject = scheduler()
    epoch = subject.epoch
    subject.flush("instruction_changed")
    assert subject.accept(chunk(0), at(10), epoch).dropped is DropReason.FLUSHED
    assert subject.admit(at(0), at(10), epoch) is DropReason.FLUSHED
    assert subject.accept(chunk(0), at(10), subject.epoch).dropped is None


def test_after_a_flush_it_holds_for_the_cause_of_the_flush():
    subject = scheduler()
    subject.accept(chunk(0), at(0))
    subject.flush("instruction_changed")
    assert subject.action_at(at(1)) == Hold("instruction_changed")
    assert subject.status(at(1)).flushes == {"instruction_changed": 1}


def test_an_observation_is_refused_one_nanosecond_past_its_age_limit():
    subject = scheduler(age_ms=200)
    assert subject.admit(at(0), at(200)) is None
    assert subject.admit(at(0), at(200) + 1) is DropReason.STALE_OBSERVATION


def test_a_stamp_slightly_in_the_future_is_tolerated_and_one_far_in_it_refused():
    subject = scheduler(future_tolerance_ns=20 * MS)
    assert subject.admit(at(20), at(0)) is None
    assert subject.admit(at(21), at(0)) is DropReason.FUTURE_STAMP
    assert subject.accept(chunk(21), at(0)).dropped is DropReason.FUTURE_STAMP
    assert subject.accept(chunk(20), at(0)).dropped is None
    due = subject.action_at(at(0))
    assert isinstance(due, ScheduledAction)
    assert due.index == 0


def test_when_the_clock_jumps_back_it_holds_and_then_serves_on_the_new_time():
    subject = scheduler()
    subject.accept(chunk(10_000), at(10_000))
    assert subject.action_at(at(0)) == Hold("clock_jumped_back")
    assert subject.accept(chunk(0), at(10)).dropped is None
    due = subject.action_at(at(10))
    assert isinstance(due, ScheduledAction)
    assert due.chunk.observed_at_ns == at(0)


def test_a_chunk_that_runs_out_is_one_deadline_miss_however_often_one_asks():
    subject = scheduler(ttl_ms=100)
    subject.accept(chunk(0), at(0))
    for now in (100, 110, 120):
        subject.action_at(at(now))
    assert subject.status(at(130)).deadline_misses == 1
    subject.accept(chunk(130), at(140))
    assert subject.status(at(150)).deadline_misses == 1
    # Nobody asked in between, but the next chunk came too late all the same.
    subject.accept(chunk(300), at(310))
    assert subject.status(at(310)).deadline_misses == 2


def test_a_flushed_chunk_misses_no_deadline():
    subject = scheduler(ttl_ms=100)
    subject.accept(chunk(0), at(0))
    subject.flush("stopped")
    assert subject.status(at(500)).deadline_misses == 0


def test_the_status_counts_by_reason_and_tells_the_age():
    subject = scheduler()
    assert subject.status(at(0)).chunk_age_ns is None
    subject.accept(chunk(0), at(40))
    subject.accept(chunk(0), at(50))
    subject.admit(at(0), at(900))
    subject.drop(DropReason.SUPERSEDED)
    status = subject.status(at(60))
    assert status.chunks == 1
    assert status.drops == {"not_newer": 1, "stale_observation": 1, "superseded": 1}
    assert status.chunk_age_ns == 60 * MS
    assert status.has_action
    assert not subject.status(at(999)).has_action


def test_many_threads_never_see_a_stale_or_torn_action():
    subject = scheduler(ttl_ms=300)
    wrong: list[object] = []

    def writer(offset: int) -> None:
        for step in range(300):
            value = step * 10 + offset
            subject.accept(chunk(value, first=float(value)), at(value + 5))

    def reader() -> None:
        for now in range(0, 3000, 3):
            due = subject.action_at(at(now))
            if isinstance(due, ScheduledAction):
                first = (due.chunk.observed_at_ns - START) // MS
                if due.age_ns >= 300 * MS or due.action[0] != first + due.index:
                    wrong.append(due)

    threads = [threading.Thread(target=writer, args=(offset,)) for offset in (0, 3)]
    threads += [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("limits", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(ValueError, match="limits"):
        SchedulerSettings(*limits)
