"""What the policy's health looks like on ``/diagnostics``."""

from collections.abc import Mapping, Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.node.session import Session
from qvla_ros.policy.health import LoopState, PolicyHealth, Verdict
from qvla_ros.policy.machine_state import MachineState, machine_state

Finding = tuple[Verdict, str]


def level(verdict: Verdict) -> bytes:
    """A verdict as ``DiagnosticStatus.level``, which is one byte in Python."""
    return bytes([int(verdict)])


def idle_status(name: str, message: str, verdict: Verdict) -> DiagnosticStatus:
    """The status of a node that does not serve, e.g. one that could not be configured."""
    return DiagnosticStatus(name=name, message=message, level=level(verdict))


def serving_status(name: str, session: Session, now_ns: int) -> DiagnosticStatus:
    """The status of a node that is to serve."""
    health, machine = session.loop.health(now_ns), machine_state()
    waiting_for = session.sync.waiting_for(now_ns)
    findings = [
        *input_findings(health, waiting_for),
        *machine_findings(health.memory, machine, session.card.parameters),
    ]
    values = {
        **health_values(health, session.sync.drops),
        **machine_values(machine),
        "waiting_for": ", ".join(waiting_for),
        "episode_id": str(session.episode_id),
    }
    hardware_id = f"{session.card.model_id} {session.card.quant_tag}"
    return health_status(name, hardware_id, health, findings, values)


def input_findings(health: PolicyHealth, waiting_for: Sequence[str]) -> list[Finding]:
    """What is wrong around the loop of a node that is to serve."""
    findings = []
    if health.state is LoopState.STOPPED:
        findings.append((Verdict.ERROR, "the loop is stopped although the node is active"))
    if waiting_for:
        findings.append((Verdict.WARN, f"waiting for {', '.join(waiting_for)}"))
    return findings


def machine_findings(
    memory: Mapping[str, int], machine: MachineState, parameters: NodeParameters
) -> list[Finding]:
    """What is wrong with the machine, by the thresholds among the parameters."""
    findings = []
    available = memory.get("machine_available")
    if available is not None and available < parameters.memory_reserve_mb * 1_000_000:
        findings.append((Verdict.WARN, f"only {available / 1e6:.0f} MB of memory are available"))
    if memory.get("process_swap", 0) > 0:
        swapped = memory["process_swap"] / 1e6
        findings.append((Verdict.WARN, f"{swapped:.0f} MB of this process are swapped out"))
    hottest = machine.hottest_c
    if hottest is not None and hottest > parameters.temperature_warn_c:
        findings.append((Verdict.WARN, f"the machine is at {hottest:.0f} degC"))
    if machine.throttled_by:
        findings.append((Verdict.WARN, f"throttled by {', '.join(machine.throttled_by)}"))
    return findings


def health_status(
    name: str,
    hardware_id: str,
    health: PolicyHealth,
    findings: Sequence[Finding],
    values: Mapping[str, str],
) -> DiagnosticStatus:
    """The loop's own verdict and what else was found, as one status."""
    verdict = max([health.verdict, *(verdict for verdict, _ in findings)])
    reasons = [*health.reasons, *(reason for _, reason in findings)]
    return DiagnosticStatus(
        name=name,
        hardware_id=hardware_id,
        message="; ".join(reasons) or "serving",
        level=level(verdict),
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )


def diagnostic_array(status: DiagnosticStatus, now_ns: int) -> DiagnosticArray:
    """The message for one status."""
    message = DiagnosticArray(status=[status])
    message.header.stamp = ns_to_stamp(now_ns)
    return message


def health_values(health: PolicyHealth, input_drops: Mapping[str, int]) -> dict[str, str]:
    """Key to value of the loop's figures.

    Args:
        health: Of the inference loop.
        input_drops: What was dropped before it reached the loop, by reason.
    """
    age = "" if health.chunk_age_ns is None else f"{health.chunk_age_ns / 1e6:.1f}"
    values = {
        "state": health.state.value,
        "chunks": str(health.chunks),
        "chunk_age_ms": age,
        "deadline_misses": str(health.deadline_misses),
    }
    for stage, times in health.stages.items():
        values[f"{stage}_p50_ms"] = f"{times.p50:.3f}"
        values[f"{stage}_p95_ms"] = f"{times.p95:.3f}"
        values[f"{stage}_p99_ms"] = f"{times.p99:.3f}"
        values[f"{stage}_count"] = str(times.count)
    for reason, count in sorted(_sum(health.drops, input_drops).items()):
        values[f"drops_{reason}"] = str(count)
    for kind, size in sorted(health.memory.items()):
        values[f"memory_{kind}_bytes"] = str(size)
    if health.fault is not None:
        values["fault"] = health.fault
    return values


def machine_values(machine: MachineState) -> dict[str, str]:
    """Key to value of what the system tells."""
    hottest = machine.hottest_c
    told = {
        "governor": machine.governor,
        "power_mode": machine.power_mode,
        "hottest_c": None if hottest is None else f"{hottest:.0f}",
        "throttled_by": ", ".join(machine.throttled_by) or None,
    }
    return {key: value for key, value in told.items() if value is not None}


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {key: first.get(key, 0) + second.get(key, 0) for key in {*first, *second}}
