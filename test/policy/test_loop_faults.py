"""What the inference loop does when inference fails."""

import pytest
from policy.loop_bench import MS, Bench, answer, started_benches

from qvla_ros.errors import ConfigurationError, UnsupportedModelError
from qvla_ros.policy.chunk_scheduler import Hold
from qvla_ros.policy.health import LoopState, Verdict


@pytest.fixture
def benches():
    with started_benches() as make:
        yield make


def broken(_):
    raise RuntimeError("device lost")


def test_an_unforeseen_error_faults_the_loop_and_keeps_the_traceback(benches):
    bench = benches(broken)
    bench.fail_one()
    bench.join()
    health = bench.health()
    assert health.state is LoopState.FAULTED
    assert health.verdict is Verdict.ERROR
    assert health.reasons == ("faulted: RuntimeError: device lost",)
    assert health.fault is not None
    assert "in broken" in health.fault
    bench.offer()
    assert bench.drops() == {"not_serving": 1}
    assert bench.scheduler.action_at(bench.clock.now_ns) == Hold("faulted")


def test_a_fault_stays_until_it_is_reset(benches):
    bench = benches(broken)
    bench.fail_one()
    bench.join()
    bench.loop.stop()
    with pytest.raises(ConfigurationError, match=r"device lost.*reset"):
        bench.loop.start()
    bench.loop.reset_fault()
    bench.policy.behaviour = answer
    bench.loop.start()
    bench.serve_one()
    assert bench.loop.fault_reason is None
    assert bench.health().verdict is Verdict.OK


def test_an_error_in_the_callback_faults_the_loop_even_a_value_error():
    bench = Bench()

    def refuse(_):
        raise ValueError("cannot publish")

    bench.loop._on_chunk = refuse
    bench.loop.start()
    bench.fail_one()
    bench.join()
    assert bench.loop.fault_reason == "ValueError: cannot publish"


@pytest.mark.parametrize("error", [UnsupportedModelError("no"), ValueError("no")])
def test_one_failed_inference_is_a_drop_and_the_next_one_is_served(benches, error):
    bench = benches()

    def fail(_):
        raise error

    bench.policy.behaviour = fail
    bench.fail_one()
    # The gate is passed again only when the failure has been counted.
    bench.clock.now_ns += 50 * MS
    bench.offer()
    bench.policy.wait_entered()
    health = bench.health()
    assert health.drops == {"inference_failed": 1}
    assert health.verdict is Verdict.WARN
    assert health.reasons == ("1 inferences failed in a row",)
    bench.policy.behaviour = answer
    bench.policy.gate.release()
    bench.out.get(timeout=10)
    assert bench.health().verdict is Verdict.OK


def test_failures_in_a_row_latch_a_fault_at_their_limit(benches):
    def fail(_):
        raise ValueError("bad image")

    bench = benches(fail, failure_limit=3)
    for _ in range(3):
        bench.fail_one()
    bench.join()
    reason = bench.loop.fault_reason
    assert reason is not None
    assert reason.startswith("3 inferences failed in a row")
    assert "bad image" in reason


def test_a_good_inference_between_failures_starts_the_count_anew(benches):
    order = iter("ffgffg")

    def mixed(seen):
        if next(order) == "f":
            raise ValueError("bad image")
        return answer(seen)

    bench = benches(mixed, failure_limit=3)
    for _ in range(2):
        bench.fail_one()
        bench.fail_one()
        bench.serve_one()
    assert bench.loop.state is LoopState.RUNNING


def test_chunks_that_are_not_finite_are_never_handed_out_and_latch_a_fault(benches):
    def poisoned(seen):
        return answer(seen, value=float("nan"))

    bench = benches(poisoned, failure_limit=2)
    bench.fail_one()
    bench.fail_one()
    bench.join()
    assert bench.out.empty()
    assert bench.drops() == {"non_finite": 2}
    assert "not finite" in (bench.loop.fault_reason or "")


def test_it_cannot_be_stopped_from_its_own_worker():
    bench = Bench()
    bench.loop._on_chunk = lambda _: bench.loop.stop()
    bench.loop.start()
    bench.fail_one()
    bench.join()
    assert "own worker" in (bench.loop.fault_reason or "")
