"""A robot's sensors for measurements: two cameras and a state, sent as fast as asked for."""

import struct
import time
from collections.abc import Callable
from typing import Any

import rclpy
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk
from qvla_ros.sensor_messages import SECOND_NS

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CDR_HEADER_BYTES = 4


class SensorNode(Node):
    """Sends frames and collects what the policy node answers.

    Messages are serialized once and only their stamps are written anew: a camera driver does not
    spend Python's time on its pixels, and the measurement should not either.

    Args:
        width: Of an image, pixels.
        height: Of an image, pixels.
        on_chunk: Called with each message of the policy node.

    Attributes:
        send_ns: Each frame's stamp to the time from then until all of it was handed to DDS,
            nanoseconds.
    """

    def __init__(self, width: int, height: int, on_chunk: Callable[[ActionChunk], None]) -> None:
        super().__init__("sensors")
        self._cameras = [
            self.create_publisher(Image, f"camera/{name}/image_raw", qos_profile_sensor_data)
            for name in ("primary", "wrist")
        ]
        self._state = self.create_publisher(JointState, "robot/state", qos_profile_sensor_data)
        self._instruction = self.create_publisher(String, "instruction", LATCHED)
        self.create_subscription(ActionChunk, "policy/action_chunk", on_chunk, 100)
        pixels = bytes(width * height * 3)
        image = Image(encoding="rgb8", height=height, width=width, step=3 * width, data=pixels)
        state = JointState(name=["x", "y"], position=[0.5, 0.5])
        self._image_bytes, self._state_bytes = map(_stampable, (image, state))
        self.send_ns: dict[int, int] = {}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def now_ns(self) -> int:
        """The clock of the stamps."""
        return self.get_clock().now().nanoseconds

    def say(self, text: str) -> None:
        """Tell the task."""
        self._instruction.publish(String(data=text))

    def send_frame(self) -> int:
        """Send state and images that were sensed now; returns when that was."""
        now_ns = self.now_ns()
        image = _stamped(self._image_bytes, now_ns)
        for camera in self._cameras:
            camera.publish(image)
        self._state.publish(_stamped(self._state_bytes, now_ns))
        self.send_ns[now_ns] = self.now_ns() - now_ns
        return now_ns

    def spin_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Let callbacks run until something is reached; whether it was in time."""
        end = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > end:
                return False
            self._executor.spin_once(timeout_sec=0.005)
        return True

    def send_at(self, rate_hz: float, duration_s: float) -> None:
        """Send frames evenly for a while."""
        due = time.monotonic()
        end = due + duration_s
        while due < end:
            self.send_frame()
            due += 1 / rate_hz
            while (left := due - time.monotonic()) > 0:
                self._executor.spin_once(timeout_sec=left)

    def start_the_policy_node(self, timeout_s: float = 60.0) -> None:
        """Start it by its service, and wait until it is active.

        Raises:
            ConfigurationError: It refused, and why: there would be nothing to measure.
        """
        answer = self.call(Trigger, "policy/start", Trigger.Request(), timeout_s)
        if not answer.success:
            raise ConfigurationError(f"the policy node does not start: {answer.message}")
        state = self.call(GetState, "policy/get_state", GetState.Request(), timeout_s)
        if state.current_state.id != State.PRIMARY_STATE_ACTIVE:
            raise ConfigurationError(f"the policy node is {state.current_state.label}, not active")

    def call(self, kind: type, name: str, request: Any, timeout_s: float) -> Any:
        """Call a service; ``TimeoutError`` if there is no answer in time."""
        client = self.create_client(kind, name)
        try:
            if not self.spin_until(client.service_is_ready, timeout_s):
                raise TimeoutError(f"{name} did not appear within {timeout_s:.0f} s")
            answer = client.call_async(request)
            if not self.spin_until(answer.done, timeout_s):
                raise TimeoutError(f"{name} did not answer within {timeout_s:.0f} s")
            return answer.result()
        finally:
            self.destroy_client(client)

    def close(self) -> None:
        """Leave the domain."""
        self._executor.shutdown()
        self.destroy_node()
        rclpy.try_shutdown()


def _stampable(message: Image | JointState) -> bytearray:
    return bytearray(serialize_message(message))


def _stamped(serialized: bytearray, now_ns: int) -> bytes:
    """The message with another stamp: the first field of a header, which comes first."""
    struct.pack_into("<iI", serialized, CDR_HEADER_BYTES, *divmod(now_ns, SECOND_NS))
    return bytes(serialized)
