"""Play recorded episodes over DDS in real time, stamped anew: ``python -m demo.play_bag BAG...``.

Every message leaves when it was sensed, moved to now; the recorded actions stay at home. Which
frame got which stamp is written down, so that chunks can be compared with the frames they answer.
"""

import argparse
import json
import time
from pathlib import Path

import rclpy
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String

from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.sensor_messages import stamp_to_ns

PACE = "/camera/primary/image_raw/compressed"
TYPES = {
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "sensor_msgs/msg/JointState": JointState,
    "std_msgs/msg/String": String,
}
SKIPPED = ("/robot/action",)
LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
COMPLETE = QoSProfile(depth=100)  # reliable: a recorder beside the node is to miss nothing
LISTENERS_S = 10.0
GAP_S = 1.0  # between two episodes


class BagPlayer(Node):
    """Publishes the messages of bags at the pace of their recording.

    Args:
        listeners: Subscriptions of each topic to wait for, at most ten seconds.
    """

    def __init__(self, listeners: int) -> None:
        super().__init__("bag_player")
        self._listeners = listeners
        self._senders: dict[str, Publisher] = {}

    def wait_for_policy(self, name: str, timeout_s: float) -> None:
        """Wait until the lifecycle node is active.

        Raises:
            TimeoutError: It is not in time.
        """
        client = self.create_client(GetState, f"{name}/get_state")
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if client.wait_for_service(timeout_sec=1.0):
                future = client.call_async(GetState.Request())
                rclpy.spin_until_future_complete(self, future, timeout_sec=2.0)
                answer = future.result()
                if answer and answer.current_state.id == State.PRIMARY_STATE_ACTIVE:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"{name} did not become active within {timeout_s:.0f} s")

    def play(self, bag: Path, log: list[dict]) -> None:
        """Play one bag; ``log`` gets the stamps of its frames, as recorded and as sent."""
        with AnyReader([bag]) as reader:
            messages = [
                (stamp, connection.topic, TYPES[connection.msgtype], data)
                for connection, stamp, data in reader.messages()
                if connection.topic not in SKIPPED
            ]
        for _, topic, kind, _ in messages:
            self._publisher(topic, kind)
        self._wait_for_listeners()
        first = messages[0][0]
        shift = time.time_ns() - first
        for stamp, topic, kind, data in messages:
            time.sleep(max(0.0, (stamp + shift - time.time_ns()) / 1e9))
            message = deserialize_message(bytes(data), kind)
            if hasattr(message, "header"):
                sensed = stamp_to_ns(message.header.stamp)
                message.header.stamp = ns_to_stamp(sensed + shift)
                if topic == PACE:
                    log.append({"bag": str(bag), "recorded": sensed, "sent": sensed + shift})
            self._publisher(topic, kind).publish(message)

    def _wait_for_listeners(self) -> None:
        end = time.monotonic() + LISTENERS_S
        while time.monotonic() < end:
            counts = [one.get_subscription_count() for one in self._senders.values()]
            if min(counts) >= self._listeners:
                break
            time.sleep(0.05)
        time.sleep(0.3)  # until they know of this end too

    def _publisher(self, topic: str, kind: type) -> Publisher:
        if topic not in self._senders:
            qos = LATCHED if kind is String else COMPLETE
            self._senders[topic] = self.create_publisher(kind, topic, qos)
        return self._senders[topic]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bags", nargs="+", type=Path)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--policy", default="/policy", help="lifecycle node to wait for")
    parser.add_argument("--timeout", type=float, default=90.0, help="seconds to wait for it")
    parser.add_argument("--listeners", type=int, default=1, help="to wait for, of each topic")
    parser.add_argument("--log", type=Path, required=True, help="JSON file of the frames' stamps")
    arguments = parser.parse_args()
    rclpy.init()
    player = BagPlayer(arguments.listeners)
    log: list[dict] = []
    try:
        player.wait_for_policy(arguments.policy, arguments.timeout)
        for _ in range(arguments.repeat):
            for bag in arguments.bags:
                player.play(bag, log)
                time.sleep(GAP_S)
    finally:
        arguments.log.write_text(json.dumps(log))
        player.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
