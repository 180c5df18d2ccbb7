"""Poses from TF."""

import importlib

from rclpy.node import Node
from rclpy.time import Time

from qvla_ros.errors import ConfigurationError
from qvla_ros.policy.frame_sync import Sample
from qvla_ros.policy.pose_state import pose_numbers
from qvla_ros.sensor_messages import stamp_to_ns


class TransformSource:
    """The newest pose that TF knows.

    Args:
        node: Listens to TF.
        parent: Frame in which the pose is told.
        child: Frame whose pose is told.

    Raises:
        ConfigurationError: There is no tf2_ros.
    """

    def __init__(self, node: Node, parent: str, child: str) -> None:
        try:
            tf2_ros = importlib.import_module("tf2_ros")
        except ImportError as error:
            raise ConfigurationError(
                "parameter pose_source is tf, but tf2_ros is not installed: install the ROS "
                "package tf2_ros_py, or publish robot/pose"
            ) from error
        self._node = node
        self._parent, self._child = parent, child
        self._errors = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)
        self._last_ns = 0

    def newer_sample(self) -> Sample | None:
        """The newest pose, if it is newer than the one given before."""
        try:
            found = self._buffer.lookup_transform(self._parent, self._child, Time())
        except self._errors:
            return None
        stamp_ns = stamp_to_ns(found.header.stamp)
        if stamp_ns == self._last_ns:
            return None
        self._last_ns = stamp_ns
        transform = found.transform
        return Sample(stamp_ns, pose_numbers(transform.translation, transform.rotation))

    def close(self) -> None:
        """Stop listening, and take back what the buffer has made on the node.

        tf2_ros leaves its service ``tf2_frames`` and its watch for jumps of the clock behind;
        each configure would add others. Releases differ in whether a buffer has them.
        """
        self._listener.unregister()
        service = getattr(self._buffer, "srv", None)
        if service is not None:
            self._node.destroy_service(service)
        watch = getattr(self._buffer, "jump_handle", None)
        if watch is not None:
            watch.unregister()
