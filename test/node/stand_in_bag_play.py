"""Stands in for ``ros2 bag play BAG --clock HZ --delay S --remap FROM:=TO...``, not in the wheels.

It publishes the messages as they were recorded, and ``/clock`` in the bag's time.
"""

import argparse
import sys
import time
from pathlib import Path

import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.highlevel import AnyReader
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String

from qvla_ros.node.conversions import ns_to_stamp

KINDS = {
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "sensor_msgs/msg/JointState": JointState,
    "std_msgs/msg/String": String,
}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bag", type=Path)
    parser.add_argument("--clock", type=float, required=True)
    parser.add_argument("--delay", type=float, required=True)
    parser.add_argument("--remap", nargs="+", default=[])
    if words[:2] != ["bag", "play"]:
        raise SystemExit(f"only bag play is stood in for, not {words}")
    options = parser.parse_args(words[2:])
    other_names = dict(rule.split(":=") for rule in options.remap)
    with AnyReader([options.bag]) as reader:
        messages = [
            (
                recorded_ns,
                other_names.get(connection.topic, connection.topic),
                KINDS[connection.msgtype],
                bytes(data),
            )
            for connection, recorded_ns, data in reader.messages()
        ]
    rclpy.init()
    node = rclpy.create_node("rosbag2_player")
    clock = node.create_publisher(Clock, "/clock", 10)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    senders = {
        topic: node.create_publisher(kind, topic, latched if kind is String else 10)
        for _, topic, kind, _ in messages
    }
    first_ns = messages[0][0]
    clock.publish(Clock(clock=ns_to_stamp(first_ns)))
    time.sleep(options.delay)
    began_ns = time.monotonic_ns()
    for recorded_ns, topic, _, data in messages:
        while (now_ns := first_ns + time.monotonic_ns() - began_ns) < recorded_ns:
            clock.publish(Clock(clock=ns_to_stamp(now_ns)))
            time.sleep(min(1 / options.clock, (recorded_ns - now_ns) / 1e9))
        clock.publish(Clock(clock=ns_to_stamp(recorded_ns)))
        senders[topic].publish(data)
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
