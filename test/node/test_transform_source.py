"""Poses from TF, with a stand-in for tf2_ros, which the wheels do not have.

The stand-in's listener takes single transforms from ``/tf`` over DDS; the tree that tf2 keeps of
them is not tested here.
"""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from node.served_node import SUCCESS, Served
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from std_srvs.srv import Trigger

from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.transform_source import TransformSource


class NoTransformError(Exception):
    """As tf2_ros.TransformException."""


class Buffer:
    """As tf2_ros.Buffer: on a node it makes a service, and watches the node's clock."""

    def __init__(self, node: Node | None) -> None:
        self.known: TransformStamped | None = None
        if node is None:
            return
        self.srv = node.create_service(Trigger, "tf2_frames", lambda asked, told: told)
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1))
        self.jump_handle = node.get_clock().create_jump_callback(
            threshold, post_callback=self.jumped
        )

    def jumped(self, jump: object) -> None:
        self.known = None

    def lookup_transform(self, parent: str, child: str, time: object) -> TransformStamped:
        if self.known is None:
            raise NoTransformError(f"{parent} to {child} is not known")
        return self.known


def test_each_transform_is_given_once_and_none_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = SimpleNamespace(unregister=lambda: None)
    stand_in = SimpleNamespace(
        Buffer=Buffer,
        TransformListener=lambda buffer, node: listener,
        TransformException=NoTransformError,
    )
    monkeypatch.setitem(__import__("sys").modules, "tf2_ros", stand_in)
    source = TransformSource(None, "base", "tool")
    assert source.newer_sample() is None
    known = TransformStamped()
    known.header.stamp = ns_to_stamp(5_000_000_007)
    known.transform.translation.y = 0.5
    source._buffer.known = known
    sample = source.newer_sample()
    assert (sample.stamp_ns, sample.message["pose.y"]) == (5_000_000_007, 0.5)
    assert source.newer_sample() is None
    source.close()


class Listener:
    """As tf2_ros.TransformListener, for one transform a message."""

    def __init__(self, buffer: Buffer, node: object) -> None:
        self._node = node
        take = lambda transform: setattr(buffer, "known", transform)  # noqa: E731
        self._subscription = node.create_subscription(TransformStamped, "/tf", take, 10)

    def unregister(self) -> None:
        self._node.destroy_subscription(self._subscription)


def test_proprioception_from_tf_is_in_step_with_the_cameras(
    robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = SimpleNamespace(
        Buffer=Buffer, TransformListener=Listener, TransformException=NoTransformError
    )
    monkeypatch.setitem(__import__("sys").modules, "tf2_ros", stand_in)
    transforms = robot.create_publisher(TransformStamped, "/tf", 10)
    served = Served(robot, state_names=["pose.x", "pose.rz"], pose_source="tf")

    def sense() -> None:
        told = TransformStamped()
        told.header.stamp = ns_to_stamp(robot.now_ns())
        told.transform.translation.x = 0.5
        told.transform.rotation.z = told.transform.rotation.w = 0.5**0.5
        transforms.publish(told)
        robot.sense()

    try:
        served.activate()
        robot.say("go")
        robot.until(lambda: served.drops().get("missing_pose", 0) > 0, meanwhile=robot.sense)
        assert served.policy.seen == [], "without a transform nothing is inferred"
        assert robot.until(lambda: len(robot.chunks) >= 2, meanwhile=sense)
        seen = served.policy.seen[-1]
        assert seen.state.tolist() == pytest.approx([0.5, np.pi / 2])
        before = len(served.policy.seen)
        out_of_step = lambda: served.drops().get("out_of_step_pose", 0) > 3  # noqa: E731
        assert robot.until(out_of_step, meanwhile=robot.sense), "an old transform is not used"
        assert len(served.policy.seen) <= before + 2
        assert served.node.trigger_deactivate() == SUCCESS
        buffer = weakref.ref(served.node._inputs._transforms._buffer)
        services = len(list(served.node.services))
        assert served.node.trigger_cleanup() == SUCCESS
        assert len(list(served.node.services)) == services - 1, "tf2_frames is gone"
        robot.spin(0.1)
        gc.collect()
        assert buffer() is None, "each configure would add one"
    finally:
        served.close()
