"""A ROS domain of its own for each run, on this machine only, and a robot to talk to the node."""

import os
import random
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from node.served_node import Served
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from qvla_ros.msg import ActionChunk, Heartbeat
from qvla_ros.node.conversions import ns_to_stamp


@pytest.fixture(scope="session", autouse=True)
def ros_domain() -> Iterator[None]:
    """Keep these tests away from other robots, and from other runs on this machine."""
    os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randrange(1, 101))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    if os.environ.get("ROS_DISTRO") == "humble":  # newer ones warn of this variable
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    rclpy.init()
    yield
    rclpy.try_shutdown()


class Robot(Node):
    """Publishes what a robot senses, and collects what the policy node sends."""

    def __init__(self) -> None:
        super().__init__("robot")
        sensors = qos_profile_sensor_data
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.cameras = {
            name: self.create_publisher(Image, f"camera/{name}/image_raw", sensors)
            for name in ("primary", "wrist")
        }
        self.state = self.create_publisher(JointState, "robot/state", sensors)
        self.instruction = self.create_publisher(String, "instruction", latched)
        self.messages: list[ActionChunk] = []
        self.commands: list[JointState] = []
        self.statuses: list[DiagnosticArray] = []
        self.create_subscription(ActionChunk, "policy/action_chunk", self.messages.append, 10)
        self.create_subscription(JointState, "robot/command", self.commands.append, 10)
        self.heartbeats: list[Heartbeat] = []
        self.create_subscription(DiagnosticArray, "/diagnostics", self.statuses.append, 10)
        self.create_subscription(Heartbeat, "policy/heartbeat", self.heartbeats.append, 10)
        self.executor_of_all = SingleThreadedExecutor()
        self.executor_of_all.add_node(self)

    @property
    def chunks(self) -> list[ActionChunk]:
        return [message for message in self.messages if message.horizon > 0]

    @property
    def holds(self) -> list[str]:
        return [message.hold_reason for message in self.messages if message.horizon == 0]

    def now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    @property
    def status_texts(self) -> list[str]:
        return [status.message for array in self.statuses for status in array.status]

    def tell(self, verb: str) -> Trigger.Response:
        """Call one of the policy node's services."""
        client = self.create_client(Trigger, f"policy/{verb}")
        try:
            assert self.until(client.service_is_ready, 60)  # a process takes a while to start
            answer = client.call_async(Trigger.Request())
            assert self.until(answer.done)
            return answer.result()
        finally:
            self.destroy_client(client)

    def say(self, text: str) -> None:
        self.instruction.publish(String(data=text))

    def sense(self, age_s: float = 0.0, value: float = 0.25, size: int = 16) -> None:
        stamp = ns_to_stamp(self.now_ns() - round(age_s * 1e9))
        state = JointState(name=["x", "y"], position=[value, value])
        state.header.stamp = stamp
        self.state.publish(state)
        pixels = np.full((size, size, 3), 100, np.uint8).tobytes()
        for camera in self.cameras.values():
            image = Image(encoding="rgb8", height=size, width=size, step=3 * size, data=pixels)
            image.header.stamp = stamp
            camera.publish(image)

    def spin(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def until(
        self,
        reached: Callable[[], bool],
        timeout_s: float = 15.0,
        meanwhile: Callable[[], None] | None = None,
    ) -> bool:
        """Spin until something is reached, doing something at 20 Hz meanwhile."""
        end, due = time.monotonic() + timeout_s, 0.0
        while time.monotonic() < end:
            if reached():
                return True
            if meanwhile is not None and time.monotonic() >= due:
                meanwhile()
                due = time.monotonic() + 0.05
            self.executor_of_all.spin_once(timeout_sec=0.01)
        return reached()


@pytest.fixture
def served(robot) -> Iterator[Served]:
    served = Served(robot, reset_cooldown_s=0.2)
    yield served
    served.close()


@pytest.fixture
def robot() -> Iterator[Robot]:
    node = Robot()
    yield node
    node.executor_of_all.shutdown()
    node.destroy_node()
