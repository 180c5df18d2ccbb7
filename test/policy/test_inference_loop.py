"""The worker thread, led by gates and not by sleeping."""

import pytest
from policy.loop_bench import MS, Bench, answer, started_benches

from qvla_ros.errors import ConfigurationError
from qvla_ros.policy.chunk_scheduler import Hold, ScheduledAction
from qvla_ros.policy.health import LoopState
from qvla_ros.policy.inference_loop import HUNG_LIMIT


@pytest.fixture
def benches():
    with started_benches() as make:
        yield make


def test_an_observation_becomes_a_chunk_that_is_scheduled(benches):
    bench = benches()
    inference = bench.serve_one()
    assert inference.chunk.observed_at_ns == bench.clock.now_ns
    assert isinstance(bench.scheduler.action_at(bench.clock.now_ns), ScheduledAction)


def test_the_newest_observation_wins_and_the_others_are_counted(benches):
    bench = benches()
    first = bench.clock.now_ns
    bench.offer()
    bench.policy.wait_entered()
    for _ in range(3):
        bench.clock.now_ns += 10 * MS
        bench.offer()
    bench.policy.gate.release(2)
    bench.policy.wait_entered()
    bench.out.get(timeout=10)
    bench.out.get(timeout=10)
    assert bench.policy.seen == [first, first + 30 * MS]
    assert bench.drops() == {"superseded": 2}


def test_an_observation_too_old_when_its_turn_comes_reaches_no_policy(benches):
    bench = benches()
    bench.offer()
    bench.policy.wait_entered()
    stale = bench.clock.now_ns
    bench.offer(stale)
    bench.clock.now_ns += 201 * MS
    bench.policy.gate.release()
    bench.out.get(timeout=10)
    bench.serve_one()
    assert bench.policy.seen == [stale, bench.clock.now_ns]
    assert bench.drops() == {"stale_observation": 1}


def test_an_answer_that_comes_after_its_time_to_live_is_not_handed_out(benches):
    bench = benches()
    bench.offer()
    bench.policy.wait_entered()
    bench.clock.now_ns += 300 * MS
    bench.policy.gate.release()
    late = bench.serve_one()
    assert late.chunk.observed_at_ns == bench.clock.now_ns
    assert bench.out.empty()
    assert bench.drops() == {"expired": 1}


def test_a_flush_refuses_the_observation_that_waits_and_the_one_under_way(benches):
    bench = benches()
    bench.offer()
    bench.policy.wait_entered()
    bench.clock.now_ns += 10 * MS
    bench.offer()
    bench.scheduler.flush("instruction_changed")
    bench.policy.gate.release()
    bench.serve_one()
    assert len(bench.policy.seen) == 2
    assert bench.out.empty()
    # The one that waited may also be replaced by the last offer before the worker looks at it.
    drops = bench.drops()
    assert drops["flushed"] + drops.get("superseded", 0) == 2


def test_stop_joins_the_worker_and_what_it_was_doing_is_refused(benches):
    bench = benches()
    bench.offer()
    bench.policy.wait_entered()
    assert bench.loop.stop(timeout_s=0) is False
    bench.policy.gate.release()
    assert bench.loop.stop() is True
    assert bench.out.empty()
    assert bench.scheduler.action_at(bench.clock.now_ns) == Hold("stopped")
    assert bench.drops() == {"flushed": 1}


def test_stop_is_harmless_twice_and_before_the_first_start():
    bench = Bench()
    assert bench.loop.stop()
    bench.loop.start()
    assert bench.loop.stop()
    assert bench.loop.stop()
    assert bench.loop.state is LoopState.STOPPED
    assert bench.scheduler.status(0).flushes == {"stopped": 1}


def test_it_serves_again_after_a_stop(benches):
    bench = benches()
    bench.serve_one()
    bench.loop.stop()
    bench.offer()
    bench.loop.start()
    bench.loop.start()
    bench.serve_one()
    assert bench.drops() == {"not_serving": 1}
    assert bench.health().chunks == 2


def test_an_answer_brings_back_what_was_handed_over_with_its_observation(benches):
    bench = benches()
    bench.offer()
    bench.policy.wait_entered()
    bench.policy.gate.release()
    given = bench.out.get(timeout=10)
    assert given.about == given.inference.chunk.observed_at_ns == bench.clock.now_ns
    assert given.acceptance.dropped is None


def test_after_a_hang_a_new_worker_serves_and_the_late_answer_is_refused(benches):
    bench = benches()
    bench.offer()
    bench.policy.wait_entered()
    assert bench.loop.stop(timeout_s=0) is False
    bench.loop.start()
    bench.clock.now_ns += 50 * MS
    bench.offer()
    bench.policy.wait_entered()
    bench.policy.gate.release(2)
    answers = [bench.out.get(timeout=10).about]
    (late,) = bench.loop._left_behind
    late.join(10)
    assert answers == [bench.clock.now_ns]
    assert bench.out.empty()
    assert bench.drops() == {"flushed": 1}


def test_a_fault_of_a_worker_left_behind_does_not_stop_the_new_one(benches):
    bench = benches()
    bench.offer()
    bench.policy.wait_entered()
    bench.loop.stop(timeout_s=0)
    bench.loop.start()

    def broken(_):
        raise RuntimeError("device lost")

    bench.policy.behaviour = broken
    bench.policy.gate.release()
    (late,) = bench.loop._left_behind
    late.join(10)
    bench.policy.behaviour = answer
    bench.serve_one()
    assert bench.loop.fault_reason is None


def test_it_gives_up_when_too_many_inferences_never_end(benches):
    bench = benches()
    for _ in range(HUNG_LIMIT):
        bench.clock.now_ns += MS
        bench.offer()
        bench.policy.wait_entered()
        bench.loop.stop(timeout_s=0)
        if _ < HUNG_LIMIT - 1:
            bench.loop.start()
    with pytest.raises(ConfigurationError, match="never ended"):
        bench.loop.start()


def test_an_observation_offered_while_stopped_is_counted():
    bench = Bench()
    bench.offer()
    assert bench.drops() == {"not_serving": 1}
