"""A pose as named numbers beside those of the robot's ``JointState``; node and bags use it."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from qvla_ros.policy.frame_sync import STATE, Frame, Sample
from qvla_ros.policy.rotation import rotation_vector
from qvla_ros.sensor_messages import stamp_to_ns

POSE = "pose"
"""The name under which the pose's samples are kept and counted."""

POSE_PREFIX = "pose."
"""Names of the proprioception that begin so come from a pose, e.g. ``pose.x``, ``pose.rz``."""


def uses_pose(names: Sequence[str]) -> bool:
    """Whether a pose is wanted."""
    return any(name.startswith(POSE_PREFIX) for name in names)


def uses_joints(names: Sequence[str]) -> bool:
    """Whether a ``JointState`` is wanted."""
    return not all(name.startswith(POSE_PREFIX) for name in names)


def pose_numbers(position: Any, orientation: Any) -> dict[str, float]:
    """Name to number of a ``Point`` or ``Vector3`` and a ``Quaternion``; m and rad.

    Raises:
        ValueError: The quaternion is no rotation.
    """
    quaternion = (orientation.x, orientation.y, orientation.z, orientation.w)
    numbers = {"x": position.x, "y": position.y, "z": position.z}
    numbers |= dict(zip(("rx", "ry", "rz"), rotation_vector(quaternion), strict=True))
    numbers |= dict(zip(("qx", "qy", "qz", "qw"), quaternion, strict=True))
    return {POSE_PREFIX + name: float(value) for name, value in numbers.items()}


def pose_sample(message: Any) -> Sample:
    """A sample for the synchronisation of a ``PoseStamped``; its message is name to number.

    Raises:
        ValueError: The quaternion is no rotation.
    """
    pose = message.pose
    return Sample(stamp_to_ns(message.header.stamp), pose_numbers(pose.position, pose.orientation))


def with_pose(frame: Frame) -> Frame:
    """``frame`` with the pose's numbers among those of the robot's state."""
    pose = frame.samples.get(POSE)
    if pose is None:
        return frame
    joints = frame.samples.get(STATE)
    merged = SimpleNamespace(name=list(pose.message), position=list(pose.message.values()))
    stamp_ns = pose.stamp_ns
    if joints is not None:
        merged.name = [*joints.message.name, *merged.name]
        merged.position = [*joints.message.position, *merged.position]
        stamp_ns = min(stamp_ns, joints.stamp_ns)
    return dataclasses.replace(frame, samples={**frame.samples, STATE: Sample(stamp_ns, merged)})
