"""The health of the loop as diagnostics."""

import dataclasses

import pytest

from qvla_ros.node.diagnostics import (
    diagnostic_array,
    health_status,
    health_values,
    idle_status,
    input_findings,
    machine_findings,
    machine_values,
)
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.policy.health import LoopState, PolicyHealth, Verdict
from qvla_ros.policy.machine_state import MachineState
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
    values = health_values(health(), {"stale_observation": 4, "missing_state": 1})
    assert values["model_p50_ms"] == "2.000"
    assert {"model_p95_ms", "model_p99_ms"} <= set(values)
    assert values["chunk_age_ms"] == "12.0"
    assert values["memory_weights_bytes"] == "1024"
    assert (values["drops_superseded"], values["drops_missing_state"]) == ("2", "1")
    assert values["drops_stale_observation"] == "5", "drops before and in the loop add up"


def test_without_findings_the_node_is_serving() -> None:
    status = health_status("n", "h", health(), [], {"key": "value"})
    assert (status.level, status.message) == (b"\x00", "serving")
    assert [(entry.key, entry.value) for entry in status.values] == [("key", "value")]


def test_a_missing_input_is_a_warning_that_names_it() -> None:
    findings = input_findings(health(), ["camera_wrist", "instruction"])
    assert findings == [(Verdict.WARN, "waiting for camera_wrist, instruction")]


def test_a_stopped_loop_in_an_active_node_is_an_error() -> None:
    stopped = dataclasses.replace(health(), state=LoopState.STOPPED)
    ((verdict, reason),) = input_findings(stopped, [])
    assert (verdict, reason) == (
        Verdict.ERROR,
        "the loop is stopped although the node is active",
    )


def test_the_worst_finding_is_the_level_and_all_are_told() -> None:
    findings = [(Verdict.WARN, "waiting for state")]
    status = health_status("n", "h", health(Verdict.ERROR, ("too slow",)), findings, {})
    assert (status.level, status.message) == (b"\x02", "too slow; waiting for state")


COOL = MachineState("performance", None, 40.0, ())


@pytest.mark.parametrize(
    ("memory", "machine", "reason"),
    [
        ({"machine_available": 99_000_000}, COOL, "only 99 MB of memory are available"),
        ({"process_swap": 5_000_000}, COOL, "5 MB of this process are swapped out"),
        ({}, MachineState(None, None, 91.0, ()), "the machine is at 91 degC"),
        ({}, MachineState(None, None, None, ("cpufreq-cpu0",)), "throttled by cpufreq-cpu0"),
    ],
)
def test_a_machine_in_need_is_a_warning(memory, machine, reason) -> None:
    parameters = NodeParameters(memory_reserve_mb=100, temperature_warn_c=90.0)
    assert machine_findings(memory, machine, parameters) == [(Verdict.WARN, reason)]


def test_a_well_machine_is_not_mentioned() -> None:
    memory = {"machine_available": 10**9, "process_swap": 0}
    assert machine_findings(memory, COOL, NodeParameters(memory_reserve_mb=100)) == []
    assert machine_values(COOL) == {"governor": "performance", "hottest_c": "40"}


def test_the_message_carries_one_status_and_a_stamp() -> None:
    message = diagnostic_array(idle_status("n", "not configured", Verdict.WARN), 1_500_000_000)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1, 500_000_000)
    assert [status.message for status in message.status] == ["not configured"]
