"""What a consumer follows, on a clock that the test turns."""

import numpy as np
import pytest
from node.chunk_messages import MS, START, beat, chunk, hold

from qvla_ros.node.chunk_follower import ChunkFollower

ROWS = np.arange(4)[:, None]


def follower(timeout_ms: int = 0) -> ChunkFollower:
    return ChunkFollower(timeout_ms * MS)


def row_at(subject: ChunkFollower, at_ms: float, steady_ms: int = 0) -> float | None:
    now = START + round(at_ms * MS)
    due = subject.due(now, steady_ms * MS)
    return None if due is None else float(due.row(now)[0])


def take(subject: ChunkFollower, message, at_ms: int) -> bool:
    return subject.take(message, START + at_ms * MS) is not None


def test_the_row_that_is_due_is_found_by_the_stamp_until_the_chunk_ends():
    subject = follower()
    assert take(subject, chunk(0, ROWS, "a"), 60)
    assert [row_at(subject, at) for at in (60, 99.9, 100, 199.9, 200)] == [1, 1, 2, 3, None]


def test_a_hold_revokes_and_a_chunk_sent_before_it_is_refused():
    subject = follower()
    take(subject, chunk(0, ROWS, "a"), 20)
    assert not take(subject, hold(50), 60)
    assert row_at(subject, 70) is None
    assert not take(subject, chunk(20, ROWS, "a"), 70)
    assert subject.refused == {"out_of_order": 1}


@pytest.mark.parametrize(
    ("fields", "at_ms", "reason"),
    [
        ({"schema_version": 9}, 10, "schema_version"),
        ({"data": [0.0]}, 10, "contradictory"),
        ({"names": ["a", "b"]}, 10, "contradictory"),
        ({"data": [0.0, 1.0, np.nan, 3.0]}, 10, "non_finite"),
        ({}, 200, "expired"),
        ({}, -50, "future_stamp"),
    ],
)
def test_a_chunk_that_must_not_be_followed_is_refused_with_the_reason(fields, at_ms, reason):
    subject = follower()
    message = chunk(0, ROWS, "a")
    for name, value in fields.items():
        setattr(message, name, value)
    assert not take(subject, message, at_ms)
    assert (subject.refused, row_at(subject, 20)) == ({reason: 1}, None)


def test_without_a_heartbeat_nothing_is_followed():
    subject = follower(timeout_ms=300)
    take(subject, chunk(0, ROWS, "a"), 10)
    assert row_at(subject, 20, steady_ms=0) is None
    subject.beat(beat(15), 1000 * MS)
    assert row_at(subject, 20, steady_ms=1300) == 0
    assert row_at(subject, 20, steady_ms=1301) is None, "the simulated clock may stand still"


@pytest.mark.parametrize("later", [beat(30, episode_id=2), beat(30, serving=False)])
def test_a_heartbeat_revokes_what_a_lost_hold_should_have_revoked(later):
    subject = follower()
    take(subject, chunk(0, ROWS, "a"), 10)
    subject.beat(beat(20), 0)
    assert row_at(subject, 25) == 0
    subject.beat(later, 0)
    assert row_at(subject, 35) is None


def test_after_the_clock_jumped_back_new_chunks_are_followed():
    subject = follower()
    take(subject, chunk(60_000, ROWS, "a"), 60_010)
    assert row_at(subject, 0) is None
    assert take(subject, chunk(0, ROWS, "a"), 10)
    assert row_at(subject, 20) == 0


def test_a_restarted_node_counts_its_episodes_anew():
    subject = follower()
    take(subject, chunk(0, ROWS, "a", episode_id=40), 10)
    assert take(subject, chunk(100, ROWS, "a", episode_id=1), 110)
