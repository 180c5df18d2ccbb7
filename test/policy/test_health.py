"""What the inference loop says about itself."""

import numpy as np
import pytest
from policy.loop_bench import MS, Bench, answer, started_benches

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.policy.health import LoopState, Verdict
from qvla_ros.policy.inference import Inference


@pytest.fixture
def benches():
    with started_benches() as make:
        yield make


def test_the_percentiles_leave_the_warm_up_out(benches):
    costs = iter([900.0, 800.0, 20.0, 20.0])

    def timed(seen):
        chunk = ActionChunk(seen.stamp_ns, 50 * MS, np.zeros((8, 7), np.float32))
        return Inference(chunk, {"model": next(costs)})

    bench = benches(timed, warmup_count=2)
    for _ in range(4):
        bench.serve_one()
    stages = bench.health().stages
    assert set(stages) == {"model", "total", "stamp_to_chunk"}
    assert stages["model"].count == 2
    assert stages["model"].maximum == 20.0


def test_inference_slower_than_the_horizon_is_an_error(benches):
    def slow(seen):
        return Inference(answer(seen).chunk, {"model": 400.0})

    bench = benches(slow)
    bench.serve_one()
    health = bench.health()
    assert health.verdict is Verdict.ERROR
    assert "horizon 400 ms" in health.reasons[0]


def test_inference_that_leaves_gaps_between_chunks_is_a_warning(benches):
    def slow(seen):
        return Inference(answer(seen).chunk, {"model": 160.0})

    bench = benches(slow)
    bench.serve_one()
    health = bench.health()
    assert health.verdict is Verdict.WARN
    assert "half of the 300 ms" in health.reasons[0]


def test_silence_is_a_warning_and_then_an_error(benches):
    bench = benches(silence_limit_ns=2_000 * MS)
    bench.serve_one()
    bench.clock.now_ns += 300 * MS
    assert bench.health().verdict is Verdict.OK
    bench.clock.now_ns += 200 * MS
    health = bench.health()
    assert health.verdict is Verdict.WARN
    assert health.reasons == ("no new chunk for 0.5 s",)
    bench.clock.now_ns += 2_000 * MS
    assert bench.health().verdict is Verdict.ERROR


def test_a_stopped_loop_is_not_blamed_for_its_silence():
    bench = Bench()
    bench.clock.now_ns += 60_000 * MS
    health = bench.health()
    assert (health.state, health.verdict) == (LoopState.STOPPED, Verdict.OK)
    assert health.chunk_age_ns is None


def test_the_health_tells_the_memory_of_the_policy():
    assert Bench().health().memory["weights"] == 1234
