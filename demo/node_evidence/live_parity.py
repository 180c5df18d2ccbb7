"""The demo's checkpoint live, recorded with its inputs, and replayed: the same chunks? no trips?"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from demo.node_evidence.processes import ROOT, running, use_private_domain
from qvla_ros.cli.main import main as qvla
from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.parity import CHUNK_TYPE, Parity, Planner, check_parity
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.msg import ActionChunk
from qvla_ros.node.parameters import STRATEGIES, NodeParameters
from qvla_ros.node.session_settings import (
    NodePolicy,
    chunk_strategy,
    policy_card,
    scheduler_settings,
)
from qvla_ros.policy.policy import Policy, load_policy

CHUNKS = "/policy/action_chunk"
COMPLETE = QoSProfile(depth=1000)
CONFIG = ROOT / "config" / "libero.yaml"
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CLEAN_DROPS = ("superseded", "flushed", "not_serving", "missing_")
"""How the reasons begin of what is dropped on a healthy robot: newer came first, or the service was
just begun or ended."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What the live runs and their replays gave.

    Attributes:
        parity: The published chunks against the replay, by the node's strategy.
        drops: Inputs and chunks that a limit refused although the recordings are clean.
        samples: Images and states received.
        limits: The limits that the node served under, as ``qvla limits`` wrote them, with the
            false-positive rate of each on bags that it was not made of.
    """

    parity: dict[str, Parity]
    drops: dict[str, int]
    samples: int
    limits: dict[str, Any]


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
            self._record(topic, CompressedImage, COMPLETE)
        self._record(layout.state, JointState, COMPLETE)
        self._record(layout.instruction, String, LATCHED)
        self._record(CHUNKS, ActionChunk, COMPLETE)
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
    """Measure limits on some bags, serve others under them by every strategy, record and replay.

    Raises:
        ConfigurationError: The limits could not be measured, or the node did not serve.
    """
    use_private_domain()
    layout = BagLayout.of_robot(ROBOT_CONSTANTS["libero"])
    policy = load_policy(checkpoint)
    parity, samples, trips = dict[str, Parity](), 0, Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limits = folder / "limits.yaml"
        words = ["limits", *map(str, limit_bags), "--checkpoint", str(checkpoint)]
        if qvla([*words, "--out", str(limits)]) != 0:
            raise ConfigurationError("qvla limits failed")
        for strategy in STRATEGIES:
            parameters = {"limits_file": str(limits), "chunk_strategy": strategy}
            recorder = _record_live(checkpoint, parameters, played_bags, folder / strategy, layout)
            planner = _planner(policy, parameters)
            parity[strategy] = check_parity(
                policy, folder / strategy, layout, CHUNKS, planner=planner
            )
            samples += recorder.samples
            trips += Counter(
                {why: n for why, n in recorder.drops.items() if not why.startswith(CLEAN_DROPS)}
            )
        content = yaml.safe_load(limits.read_text())
    return LiveRun(parity, dict(trips), samples, content)


def _planner(policy: Policy, parameters: Mapping[str, str]) -> Planner:
    """As the node plans with these parameters."""
    configured = yaml.safe_load(CONFIG.read_text())["/**/policy"]["ros__parameters"]
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in configured.items()
    }
    node = NodeParameters(**{**given, **parameters})
    served = cast(NodePolicy, policy)  # whose names are properties
    strategy = chunk_strategy(policy_card(served, node), policy.horizon)
    return Planner(scheduler_settings(served, node), strategy)


def _record_live(
    checkpoint: Path,
    parameters: Mapping[str, str],
    bags: Sequence[Path],
    out: Path,
    layout: BagLayout,
) -> Recorder:
    given = {"checkpoint": checkpoint, **parameters}
    with running("qvla_ros.node.main", given, params_file=CONFIG):
        rclpy.init()
        recorder = Recorder(out, layout)
        executor = SingleThreadedExecutor()
        executor.add_node(recorder)
        try:
            _start(recorder, executor)
            play = [sys.executable, "-m", "demo.play_bag", *map(str, bags)]
            play += ["--listeners", "2", "--log", "/dev/null"]
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
