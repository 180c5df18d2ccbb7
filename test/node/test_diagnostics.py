"""The health of the loop as diagnostics."""

from qvla_ros.node.diagnostics import diagnostic_array, health_status, idle_status
from qvla_ros.policy.health import LoopState, PolicyHealth, Verdict
from qvla_ros.policy.stage_times import percentiles


def health(verdict: Verdict = Verdict.OK, reasons: tuple[str, ...] = ()) -> PolicyHealth:
    return PolicyHealth(
        state=LoopState.RUNNING,
        verdict=verdict,
        reasons=reasons,
        fault=None,
        stages={"model": percentiles([1.0, 2.0, 3.0])},
        chunks=5,
        chunk_age_ns=12_000_000,
        drops={"superseded": 2, "stale_observation": 1},
        deadline_misses=1,
        memory={"weights": 1024},
    )


def test_the_values_name_stages_drops_and_memory() -> None:
    status = health_status("n", "h", health(), {"stale_observation": 4, "missing_state": 1}, [])
    values = {entry.key: entry.value for entry in status.values}
    assert values["model_p50_ms"] == "2.000"
    assert {"model_p95_ms", "model_p99_ms"} <= set(values)
    assert values["chunk_age_ms"] == "12.0"
    assert values["memory_weights_bytes"] == "1024"
    assert (values["drops_superseded"], values["drops_missing_state"]) == ("2", "1")
    assert values["drops_stale_observation"] == "5", "drops before and in the loop add up"
    assert (status.level, status.message) == (b"\x00", "serving")


def test_a_missing_input_is_a_warning_that_names_it() -> None:
    status = health_status("n", "h", health(), {}, ["camera_wrist", "instruction"])
    assert (status.level, status.message) == (b"\x01", "waiting for camera_wrist, instruction")


def test_an_error_stays_an_error() -> None:
    status = health_status("n", "h", health(Verdict.ERROR, ("too slow",)), {}, ["state"])
    assert (status.level, status.message) == (b"\x02", "too slow; waiting for state")


def test_the_message_carries_one_status_and_a_stamp() -> None:
    message = diagnostic_array(idle_status("n", "not configured", Verdict.WARN), 1_500_000_000)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1, 500_000_000)
    assert [status.message for status in message.status] == ["not configured"]
