"""The subscriptions of a configured policy node."""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from qvla_ros.node.parameters import NodeParameters
from qvla_ros.node.session import Session
from qvla_ros.node.session_settings import NodePolicy, transports
from qvla_ros.node.transform_source import TransformSource
from qvla_ros.policy.frame_sync import STATE, Sample, camera_source
from qvla_ros.policy.pose_state import POSE, pose_sample, uses_joints, uses_pose
from qvla_ros.sensor_messages import stamp_to_ns

LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class Inputs:
    """Listens to cameras, state and instruction, and hands what comes to the session.

    Args:
        node: Whose subscriptions they are.
        session: Takes the samples.
        policy: Tells the cameras.
        parameters: Tell the transports and where the pose comes from.

    Raises:
        ConfigurationError: The parameters do not fit the policy, or there is no TF.
    """

    def __init__(
        self,
        node: LifecycleNode,
        session: Session,
        policy: NodePolicy,
        parameters: NodeParameters,
    ) -> None:
        self._node, self._session = node, session
        self._closers: list[Callable[[], object]] = []
        self._transforms: TransformSource | None = None
        with ExitStack() as undo:  # a subscription left behind would keep session and policy
            undo.callback(self.close)
            self._listen_to_cameras(transports(policy, parameters))
            if uses_joints(session.state_names):
                self._listen(JointState, "robot/state", partial(self._on, STATE))
            if uses_pose(session.state_names):
                self._listen_to_pose(parameters)
            self._listen(String, "instruction", self._on_instruction, LATCHED)
            undo.pop_all()

    def close(self) -> None:
        """Stop listening; a callback that is due already does nothing."""
        self._session = None
        while self._closers:
            self._closers.pop()()

    def look_up_transform(self) -> None:
        """Take the newest pose of TF, where that is its source."""
        if self._transforms is not None and self._session is not None:
            sample = self._transforms.newer_sample()
            if sample is not None:
                self._session.add(POSE, sample, self._now_ns())

    def _listen_to_cameras(self, transports_by_camera: Mapping[str, str]) -> None:
        for camera, transport in transports_by_camera.items():
            source, topic = camera_source(camera), f"camera/{camera}/image_raw"
            if transport == "compressed":
                self._listen(CompressedImage, f"{topic}/compressed", partial(self._on, source))
            else:
                self._listen(Image, topic, partial(self._on, source))

    def _listen_to_pose(self, parameters: NodeParameters) -> None:
        if parameters.pose_source == "topic":
            self._listen(PoseStamped, "robot/pose", self._on_pose)
            return
        child = parameters.pose_child
        self._transforms = TransformSource(self._node, parameters.pose_parent, child)
        self._closers.append(self._transforms.close)

    def _listen(
        self, kind: type, topic: str, callback: Callable, qos: QoSProfile = qos_profile_sensor_data
    ) -> None:
        # A copy: rclpy writes a topic's overrides into the profile that it is given.
        subscription = self._node.create_subscription(
            kind, topic, callback, copy.copy(qos), qos_overriding_options=overridable()
        )
        self._closers.append(partial(self._node.destroy_subscription, subscription))

    def _on(self, source: str, message: Any) -> None:
        if self._session is not None:
            sample = Sample(stamp_to_ns(message.header.stamp), message)
            self.look_up_transform()
            self._session.add(source, sample, self._now_ns())

    def _on_pose(self, message: PoseStamped) -> None:
        if self._session is None:
            return
        try:
            sample = pose_sample(message)
        except ValueError as error:
            self._session.refuse(POSE, str(error))
            return
        self._session.add(POSE, sample, self._now_ns())

    def _on_instruction(self, message: String) -> None:
        if self._session is not None:
            self._session.instruct(message.data, self._now_ns())

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds


def overridable() -> QoSOverridingOptions:
    """All usual policies of a topic can be set by parameters ``qos_overrides.*``."""
    return QoSOverridingOptions.with_default_policies()
