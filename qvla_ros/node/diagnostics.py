"""What the policy's health looks like on ``/diagnostics``."""

from collections.abc import Mapping, Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.policy.health import PolicyHealth, Verdict


def level(verdict: Verdict) -> bytes:
    """A verdict as ``DiagnosticStatus.level``, which is one byte in Python."""
    return bytes([int(verdict)])


def idle_status(name: str, message: str, verdict: Verdict) -> DiagnosticStatus:
    """The status of a node that does not serve, e.g. one that could not be configured."""
    return DiagnosticStatus(name=name, message=message, level=level(verdict))


def health_status(
    name: str,
    hardware_id: str,
    health: PolicyHealth,
    input_drops: Mapping[str, int],
    waiting_for: Sequence[str],
) -> DiagnosticStatus:
    """The status of a node that serves.

    Args:
        name: Name of the status.
        hardware_id: What is run, e.g. the model and its quantization.
        health: Of the inference loop.
        input_drops: What was dropped before it reached the loop, by reason.
        waiting_for: Inputs that are missing now.
    """
    verdict, reasons = health.verdict, list(health.reasons)
    if waiting_for:
        verdict = max(verdict, Verdict.WARN)
        reasons.append(f"waiting for {', '.join(waiting_for)}")
    return DiagnosticStatus(
        name=name,
        hardware_id=hardware_id,
        message="; ".join(reasons) or "serving",
        level=level(verdict),
        values=[
            KeyValue(key=key, value=value)
            for key, value in _values(health, input_drops, waiting_for).items()
        ],
    )


def diagnostic_array(status: DiagnosticStatus, now_ns: int) -> DiagnosticArray:
    """The message for one status."""
    message = DiagnosticArray(status=[status])
    message.header.stamp = ns_to_stamp(now_ns)
    return message


def _values(
    health: PolicyHealth, input_drops: Mapping[str, int], waiting_for: Sequence[str]
) -> dict[str, str]:
    age = "" if health.chunk_age_ns is None else f"{health.chunk_age_ns / 1e6:.1f}"
    values = {
        "state": health.state.value,
        "chunks": str(health.chunks),
        "chunk_age_ms": age,
        "deadline_misses": str(health.deadline_misses),
        "waiting_for": ", ".join(waiting_for),
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


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {key: first.get(key, 0) + second.get(key, 0) for key in {*first, *second}}
