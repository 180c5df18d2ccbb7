"""What the node itself costs: camera stamp to chunk, less the policy's own time, over DDS."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy

from demo.node_evidence.processes import running, use_private_domain
from demo.node_evidence.sensor_node import SensorNode
from qvla_ros.models.golden_input import golden_observation
from qvla_ros.msg import ActionChunk
from qvla_ros.observation import Observation
from qvla_ros.policy.policy import load_policy
from qvla_ros.sensor_messages import stamp_to_ns

WIDTH, HEIGHT, RATE_HZ = 640, 480, 30.0
SETTLE_S = 3.0
PROCESSED = 200
PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds from the cameras' stamp, one entry a chunk; what the policy took is left out.

    Attributes:
        sent_ms: Until the node handed the chunk to DDS, as its ``publish_stamp`` says.
        arrived_ms: Until a callback of the sensors' process had the chunk.
        sensed_ms: Until the sensors had handed all of the frame to DDS; it is part of the others.
        frames: Frames sent.
        load: Processes that ran or waited on this machine in the minute before, on average.
    """

    sent_ms: np.ndarray
    arrived_ms: np.ndarray
    sensed_ms: np.ndarray
    frames: int
    load: float

    def to_json(self) -> dict[str, object]:
        """The figures of ``evidence/node.json``."""
        found: dict[str, object] = {
            "overhead_ms_p99": _percentiles(self.sent_ms)["p99"],
            "overhead_ms": _percentiles(self.sent_ms),
            "overhead_ms_until_arrival": _percentiles(self.arrived_ms),
            "overhead_ms_of_which_sensors": _percentiles(self.sensed_ms),
            "overhead_ms_after_the_sensors": _percentiles(self.sent_ms - self.sensed_ms),
            "overhead_chunks": len(self.sent_ms),
            "overhead_frames": self.frames,
            "overhead_load_before": round(self.load, 2),
        }
        return found


def measure_overhead(duration_s: float) -> Overhead:
    """Two raw cameras of 640 x 480 at 30 Hz, a policy that answers at once, every frame asked.

    Included are: sending a state and two images by the sensors' process, transport, making
    Python's messages, synchronisation, decoding, the passage to the inference thread, the
    scheduler's judgement, and making the chunk's message. What a policy does with the pixels is
    its own time, see ``processing_ms``.
    """
    use_private_domain()
    parameters = {
        "checkpoint": "stand-in",
        "request_period_s": 0.001,
        "sync_wait_s": 0.1,
        "warmup_count": 0,
    }
    arrived: list[tuple[int, ActionChunk]] = []
    load = os.getloadavg()[0]
    with running("demo.node_evidence.stand_in_node", parameters):
        rclpy.init()
        sensors = SensorNode(WIDTH, HEIGHT, lambda chunk: arrived.append((time.time_ns(), chunk)))
        try:
            sensors.start_the_policy_node()
            sensors.say("go")
            sensors.send_at(RATE_HZ, SETTLE_S)
            sensors.spin_until(lambda: False, 0.2)
            arrived.clear()
            sensors.send_ns.clear()
            sensors.send_at(RATE_HZ, duration_s)
            sensors.spin_until(lambda: False, 0.2)
        finally:
            sensors.close()
    answers = [(at_ns, chunk) for at_ns, chunk in arrived if chunk.horizon]
    return Overhead(
        np.array([_sent_ms(chunk) for _, chunk in answers]),
        np.array([_since_ms(chunk, at_ns) for at_ns, chunk in answers]),
        np.array([sensors.send_ns[stamp_to_ns(c.header.stamp)] for _, c in answers]) / 1e6,
        round(duration_s * RATE_HZ),
        load,
    )


def processing_ms(checkpoint: Path) -> dict[str, object]:
    """What a real policy takes to make its network's input of two such images, milliseconds."""
    policy = load_policy(checkpoint)
    question = golden_observation(policy.image_names, policy.state_dim)
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    images = dict.fromkeys(policy.image_names, pixels)
    seen = Observation(0, images, question.state, question.instruction)
    took = []
    for _ in range(PROCESSED):
        began = time.perf_counter()
        policy.processing.prepare(seen)
        took.append(1e3 * (time.perf_counter() - began))
    return {"processing_ms": _percentiles(np.array(took))}


def _sent_ms(chunk: ActionChunk) -> float:
    return _since_ms(chunk, stamp_to_ns(chunk.publish_stamp))


def _since_ms(chunk: ActionChunk, now_ns: int) -> float:
    return (now_ns - stamp_to_ns(chunk.header.stamp)) / 1e6 - float(sum(chunk.stage_ms))


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(values, share)), 3) for share in PERCENTILES}
