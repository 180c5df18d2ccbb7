"""The real policy node behind the real fault injector, each a process, over DDS."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import rclpy
from diagnostic_msgs.msg import DiagnosticArray

from demo.node_evidence.chunk_guard import REFUSALS, ChunkGuard
from demo.node_evidence.processes import resident_bytes, running, use_private_domain
from demo.node_evidence.sensor_node import SensorNode
from demo.node_evidence.soak_result import SoakResult
from demo.node_evidence.stand_in_policy import ACTION_NAMES, SPOILT, write_limits
from qvla_ros.policy.action_limits import read_limits

RATE_HZ = 100.0
TTL_NS = 400_000_000
INPUTS = ("camera/primary/image_raw", "camera/wrist/image_raw", "robot/state")
FAULTS = {
    "drop": 0.1,
    "duplicate": 0.1,
    "reorder": 0.1,
    "delay": 0.1,
    "delay_s": 0.3,
    "jitter_s": 0.01,
    "pause_every_s": 10.0,
    "pause_s": 0.7,
    "bad_encoding": 0.1,
    "bad_size": 0.1,
    "not_finite": 0.2,
    "stamp_jump": 0.1,
}


def soak_over_dds(duration_s: float, strategy: str) -> SoakResult:
    """Send frames through the injector for a while and look at every chunk.

    Args:
        duration_s: How long.
        strategy: The node's ``chunk_strategy``.
    """
    use_private_domain()
    with TemporaryDirectory() as folder:
        limits = write_limits(Path(folder))
        guard = ChunkGuard(read_limits(limits, ACTION_NAMES), TTL_NS)
        parameters = {
            "checkpoint": SPOILT,
            "limits_file": limits,
            "chunk_strategy": strategy,
            "request_period_s": 0.05,
            "failure_limit": 1000,
        }
        remaps = {name: f"faulty/{name}" for name in INPUTS}
        with (
            running("demo.node_evidence.stand_in_node", parameters, remaps) as node,
            running("qvla_ros.node.fault_injector", FAULTS),
        ):
            return _soak(duration_s, guard, lambda: resident_bytes(node))


def _soak(duration_s: float, guard: ChunkGuard, resident: Callable[[], int]) -> SoakResult:
    rclpy.init()
    sensors = SensorNode(16, 16, guard.look)
    faults: dict[str, int] = {}
    refused = dict.fromkeys(REFUSALS, 0)

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            told = {value.key: value.value for value in status.values}
            if status.name.endswith(": faults"):
                faults.update({kind: int(count) for kind, count in told.items()})
            for reason in REFUSALS:
                refused[reason] = int(told.get(f"drops_{reason}", refused[reason]))

    sensors.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    try:
        sensors.start_the_policy_node()
        sensors.say("go")
        sensors.send_at(RATE_HZ, duration_s / 5)
        settled = resident()
        sensors.send_at(RATE_HZ, duration_s * 4 / 5)
        sensors.spin_until(lambda: False, 1.5)  # the last counts
        growth = resident() - settled
    finally:
        sensors.close()
    return SoakResult(faults, dict(guard.unsafe), refused, guard.chunks, duration_s, growth)
