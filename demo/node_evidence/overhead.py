"""What the node itself costs: camera stamp to chunk, less the model's time, over DDS."""

from dataclasses import dataclass

import numpy as np
import rclpy

from demo.node_evidence.processes import running, use_private_domain
from demo.node_evidence.sensor_node import SensorNode
from qvla_ros.msg import ActionChunk
from qvla_ros.sensor_messages import stamp_to_ns

WIDTH, HEIGHT, RATE_HZ = 640, 480, 30.0
SETTLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds from the cameras' stamp until the chunk was handed to DDS.

    Attributes:
        overhead_ms: Less what the policy itself took, one for each chunk.
        frames: Frames sent.
    """

    overhead_ms: np.ndarray
    frames: int

    def percentile(self, share: float) -> float:
        """A percentile, ms."""
        return float(np.percentile(self.overhead_ms, share))


def measure_overhead(duration_s: float) -> Overhead:
    """Two raw cameras of 640 x 480 at 30 Hz, a policy that answers at once, every frame asked."""
    use_private_domain()
    parameters = {
        "checkpoint": "stand-in",
        "request_period_s": 0.001,
        "sync_wait_s": 0.1,
        "warmup_count": 0,
    }
    chunks: list[ActionChunk] = []
    with running("demo.node_evidence.stand_in_node", parameters):
        rclpy.init()
        sensors = SensorNode(WIDTH, HEIGHT, chunks.append)
        try:
            sensors.wait_until_active()
            sensors.say("go")
            sensors.send_at(RATE_HZ, SETTLE_S)
            chunks.clear()
            sensors.send_at(RATE_HZ, duration_s)
            sensors.spin_until(lambda: False, 0.2)
        finally:
            sensors.close()
    return Overhead(
        np.array([_overhead_ms(chunk) for chunk in chunks if chunk.horizon]),
        round(duration_s * RATE_HZ),
    )


def _overhead_ms(chunk: ActionChunk) -> float:
    whole_ns = stamp_to_ns(chunk.publish_stamp) - stamp_to_ns(chunk.header.stamp)
    return whole_ns / 1e6 - float(sum(chunk.stage_ms))
