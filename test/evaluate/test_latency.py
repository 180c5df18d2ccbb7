import json

import numpy as np
import pytest

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.evaluate.latency import measure_latency, warm_up
from qvla_ros.evaluate.machine import describe_machine
from qvla_ros.observation import Observation
from qvla_ros.policy.inference import Inference


class Recorder:
    """Remembers what it was asked; each answer claims to have cost more than the one before."""

    horizon = 2
    period_ns = 50_000_000

    def __init__(self) -> None:
        self.seen: list[int] = []

    def memory_bytes(self):
        return {}

    def infer(self, observation):
        self.seen.append(observation.stamp_ns)
        chunk = ActionChunk(observation.stamp_ns, self.period_ns, np.zeros((2, 1), np.float32))
        return Inference(chunk, {"process": 1.0, "model": float(len(self.seen))})


def observations(count: int) -> list[Observation]:
    return [Observation(stamp, {}, np.zeros(1, np.float32), "go") for stamp in range(count)]


def test_the_warm_up_is_run_and_left_out():
    policy = Recorder()
    result = measure_latency(policy, observations(3), count=4, warmup_count=2)
    assert policy.seen == [0, 0, 0, 1, 2, 0]
    assert result.stages["model"].p50 == pytest.approx(np.median([3, 4, 5, 6]))
    assert result.stages["total"].maximum == 7.0
    assert result.stages["wall"].count == len(result.wall_ms) == 4
    json.dumps(result.to_json(), allow_nan=False)


def test_progress_is_told_for_the_counted_calls():
    calls = []
    measure_latency(Recorder(), observations(1), 3, 1, lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("seen", "count"), [(0, 1), (1, 0)])
def test_nothing_to_measure_is_refused(seen, count):
    with pytest.raises(ValueError, match="at least one"):
        measure_latency(Recorder(), observations(seen), count)


def test_a_policy_that_cannot_answer_ends_the_warm_up_quietly():
    class Broken(Recorder):
        def infer(self, observation):
            super().infer(observation)
            raise ValueError("no answer")

    policy = Broken()
    warm_up(policy, observations(1)[0], 5)
    assert policy.seen == [0]


def test_what_the_system_does_not_tell_about_itself_is_unknown(tmp_path):
    machine = describe_machine(tmp_path)
    assert machine["governor"] == "unknown"
    assert all(machine.values())


def test_the_processor_and_the_clock_policy_are_read(tmp_path):
    governor = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("performance\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 3 GHz\n")
    machine = describe_machine(tmp_path)
    assert (machine["processor"], machine["governor"]) == ("Some CPU @ 3 GHz", "performance")
