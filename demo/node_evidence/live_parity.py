"""The demo's checkpoint live, recorded with its inputs, and replayed: the same chunks? no trips?"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from demo.node_evidence.processes import ROOT, running, use_private_domain
from qvla_ros.cli.main import main as qvla
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.parity import CHUNK_TYPE, Parity, check_parity
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.msg import ActionChunk
from qvla_ros.policy.policy import load_policy

CHUNKS = "/policy/action_chunk"
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CLEAN_DROPS = ("superseded", "flushed", "not_serving", "missing_instruction")
"""What is dropped on a healthy robot: newer came first, or the service was just begun or ended."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What the live run and its replay gave.

    Attributes:
        parity: The published chunks against the replay.
        drops: Inputs and chunks that a limit refused although the recordings are clean.
        samples: Images and states received.
        false_positive_rate: Of each limit of each action dimension, on bags that it was not made
            of, as ``qvla limits`` measured it.
    """

    parity: Parity
    drops: dict[str, int]
    samples: int
    false_positive_rate: dict[str, dict[str, float]]


class Recorder(Node):
    """Writes messages as they come, as ``ros2 bag record`` does."""

    def __init__(self, path: Path, layout: BagLayout) -> None:
        super().__init__("recorder")
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._store = get_typestore(Stores.ROS2_JAZZY)
        definition = (ROOT / "msg" / "ActionChunk.msg").read_text()
        self._store.register(get_types_from_msg(definition, CHUNK_TYPE))
        self.samples, self.drops = 0, dict[str, int]()
        for topic in layout.images.values():
            self._record(topic, CompressedImage, qos_profile_sensor_data)
        self._record(layout.state, JointState, qos_profile_sensor_data)
        self._record(layout.instruction, String, LATCHED)
        self._record(CHUNKS, ActionChunk, QoSProfile(depth=100))
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def close(self) -> None:
        """End the bag."""
        self._writer.close()
        self.destroy_node()

    def _record(self, topic: str, kind: Any, qos: QoSProfile) -> None:
        package, name = kind.__module__.split(".")[0], kind.__name__
        connection = self._writer.add_connection(
            topic, f"{package}/msg/{name}", typestore=self._store
        )
        self.create_subscription(kind, topic, partial(self._on_message, connection), qos, raw=True)

    def _on_message(self, connection: Any, data: bytes) -> None:
        self.samples += "chunk" not in connection.topic and "instruction" not in connection.topic
        self._writer.write(connection, time.time_ns(), data)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            for entry in status.values:
                if entry.key.startswith("drops_"):
                    self.drops[entry.key.removeprefix("drops_")] = int(entry.value)


def live_parity(
    checkpoint: Path, limit_bags: Sequence[Path], played_bags: Sequence[Path]
) -> LiveRun:
    """Measure limits on some bags, serve others under them, record, and replay the recording.

    Raises:
        ConfigurationError: The limits could not be measured, or the node did not serve.
    """
    use_private_domain()
    layout = BagLayout.of_robot(ROBOT_CONSTANTS["libero"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limits = folder / "limits.yaml"
        words = ["limits", *map(str, limit_bags), "--checkpoint", str(checkpoint)]
        if qvla([*words, "--out", str(limits)]) != 0:
            raise ConfigurationError("qvla limits failed")
        recorder = _record_live(checkpoint, limits, played_bags, folder / "bag", layout)
        parity = check_parity(load_policy(checkpoint), folder / "bag", layout, CHUNKS)
        rates = yaml.safe_load(limits.read_text())["false_positive_rate"]
    trips = {why: n for why, n in recorder.drops.items() if why not in CLEAN_DROPS}
    return LiveRun(parity, trips, recorder.samples, rates)


def _record_live(
    checkpoint: Path, limits: Path, bags: Sequence[Path], out: Path, layout: BagLayout
) -> Recorder:
    parameters = {"checkpoint": checkpoint, "limits_file": limits}
    config = ROOT / "config" / "libero.yaml"
    with running("qvla_ros.node.main", parameters, params_file=config):
        rclpy.init()
        recorder = Recorder(out, layout)
        executor = SingleThreadedExecutor()
        executor.add_node(recorder)
        try:
            _start(recorder, executor)
            play = [sys.executable, "-m", "demo.play_bag", *map(str, bags), "--log", "/dev/null"]
            player = subprocess.Popen(play, cwd=ROOT)
            while player.poll() is None:
                executor.spin_once(timeout_sec=0.05)
            end = time.monotonic() + 2.5  # the last chunk, and one more diagnosis
            while time.monotonic() < end:
                executor.spin_once(timeout_sec=0.05)
            if player.returncode != 0:
                raise ConfigurationError("the bags could not be played to the node")
        finally:
            recorder.close()
            executor.shutdown()
            rclpy.try_shutdown()
    return recorder


def _start(node: Node, executor: SingleThreadedExecutor) -> None:
    client = node.create_client(Trigger, "policy/start")
    client.wait_for_service(timeout_sec=60)
    answer = client.call_async(Trigger.Request())
    executor.spin_until_future_complete(answer, timeout_sec=120)
    if not answer.done() or not answer.result().success:
        raise ConfigurationError("the node could not be started")
