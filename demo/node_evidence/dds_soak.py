"""The real policy node behind the real fault injector, each a process, over DDS."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import rclpy
from diagnostic_msgs.msg import DiagnosticArray

from demo.node_evidence.chunk_guard import ChunkGuard
from demo.node_evidence.processes import resident_bytes, running, use_private_domain
from demo.node_evidence.sensor_node import SensorNode
from demo.node_evidence.stand_in_policy import ACTION_NAMES, write_limits
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


@dataclass(frozen=True, slots=True)
class DdsSoakResult:
    """What came of it.

    Attributes:
        faults: Faults that the injector counted, by kind.
        unsafe: Unsafe chunks by kind.
        chunks: Chunks received.
        memory_growth_bytes: The policy node's resident memory at the end, less that after the
            first fifth.
    """

    faults: dict[str, int]
    unsafe: dict[str, int]
    chunks: int
    memory_growth_bytes: int

    @property
    def fault_count(self) -> int:
        """All faults."""
        return sum(self.faults.values())


def soak_over_dds(duration_s: float) -> DdsSoakResult:
    """Send frames through the injector for a while and look at every chunk."""
    use_private_domain()
    with TemporaryDirectory() as folder:
        limits = write_limits(Path(folder))
        guard = ChunkGuard(read_limits(limits, ACTION_NAMES), TTL_NS)
        parameters = {
            "checkpoint": "stand-in",
            "limits_file": limits,
            "request_period_s": 0.05,
            "failure_limit": 1000,
        }
        remaps = {name: f"faulty/{name}" for name in INPUTS}
        with (
            running("demo.node_evidence.stand_in_node", parameters, remaps) as node,
            running("qvla_ros.node.fault_injector", FAULTS),
        ):
            return _soak(duration_s, guard, lambda: resident_bytes(node))


def _soak(duration_s: float, guard: ChunkGuard, resident: Callable[[], int]) -> DdsSoakResult:
    rclpy.init()
    sensors = SensorNode(16, 16, guard.look)
    counts: dict[str, int] = {}

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(": faults"):
                counts.update({value.key: int(value.value) for value in status.values})

    sensors.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    try:
        sensors.wait_until_active()
        sensors.say("go")
        sensors.send_at(RATE_HZ, duration_s / 5)
        settled = resident()
        sensors.send_at(RATE_HZ, duration_s * 4 / 5)
        sensors.spin_until(lambda: False, 1.5)  # the injector's last counts
        growth = resident() - settled
    finally:
        sensors.close()
    return DdsSoakResult(counts, dict(guard.unsafe), guard.chunks, growth)
