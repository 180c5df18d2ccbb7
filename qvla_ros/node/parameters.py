"""The node's parameters, each declared once: here."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk

ACTION_KINDS = {
    "unspecified": ActionChunk.ACTION_UNSPECIFIED,
    "joint_position": ActionChunk.ACTION_JOINT_POSITION,
    "joint_delta": ActionChunk.ACTION_JOINT_DELTA,
    "joint_velocity": ActionChunk.ACTION_JOINT_VELOCITY,
    "eef_pose": ActionChunk.ACTION_EEF_POSE,
    "eef_delta": ActionChunk.ACTION_EEF_DELTA,
    "eef_twist": ActionChunk.ACTION_EEF_TWIST,
}
ROTATIONS = {
    "none": ActionChunk.ROTATION_NONE,
    "axis_angle": ActionChunk.ROTATION_AXIS_ANGLE,
    "euler_xyz": ActionChunk.ROTATION_EULER_XYZ,
    "quaternion_xyzw": ActionChunk.ROTATION_QUATERNION_XYZW,
    "6d": ActionChunk.ROTATION_6D,
}
TRANSPORTS = ("raw", "compressed")
UNSET = ("",)  # rclpy cannot tell the type of an empty list


def _parameter(
    default: Any,
    description: str,
    limits: tuple[float, float] | None = None,
    choices: Sequence[str] = (),
    read_only: bool = False,
) -> Any:
    metadata = {
        "description": description,
        "limits": limits,
        "choices": tuple(choices),
        "read_only": read_only,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class NodeParameters:
    """The values that a configured node runs with; the fields' metadata declares them to ROS."""

    checkpoint: str = _parameter("", "Path of the packed checkpoint (*.qvla.safetensors).")
    threads: int = _parameter(0, "Threads of the inference; 0 leaves it to torch.", (0, 256))
    image_transport: str = _parameter(
        "raw", "How the cameras are published.", choices=TRANSPORTS, read_only=True
    )
    state_names: tuple[str, ...] = _parameter(
        UNSET,
        "Names to pick from robot/state, in the model's order; one empty name stands for the "
        "names in the checkpoint.",
    )
    request_period_s: float = _parameter(
        0.0, "Least time between two inferences, s; 0 is half of the chunk's horizon.", (0.0, 60.0)
    )
    chunk_ttl_s: float = _parameter(
        0.0,
        "A chunk may be followed until its observation is this old, s; 0 is the chunk's horizon.",
        (0.0, 60.0),
    )
    max_observation_age_s: float = _parameter(
        0.25, "An observation older than this is not used, s.", (0.001, 60.0)
    )
    max_skew_s: float = _parameter(
        0.05, "How much older than the first camera's image another input may be, s.", (0.0, 10.0)
    )
    sync_wait_s: float = _parameter(
        0.02, "How long to wait for inputs as new as the first camera's image, s.", (0.0, 10.0)
    )
    future_tolerance_s: float = _parameter(
        0.02, "How far a stamp may lie after the node's clock, s.", (0.0, 10.0)
    )
    warmup_count: int = _parameter(
        2, "First inferences that the percentiles leave out.", (0, 1000)
    )
    failure_limit: int = _parameter(5, "Inferences failed in a row that latch a fault.", (1, 1000))
    action_kind: str = _parameter(
        "unspecified", "What the numbers of an action drive.", choices=tuple(ACTION_KINDS)
    )
    absolute: bool = _parameter(False, "Whether actions are targets (true) or changes (false).")
    rotation: str = _parameter(
        "none", "How rotations are written in an action.", choices=tuple(ROTATIONS)
    )
    frame_id: str = _parameter("", "Frame of Cartesian actions.")
    gripper_name: str = _parameter("", "Name of the gripper's column of an action; empty: none.")
    gripper_open: float = _parameter(1.0, "Value of an open gripper.")
    gripper_closed: float = _parameter(0.0, "Value of a closed gripper.")
    publish_command: bool = _parameter(
        False,
        "Whether to publish the action that is due on robot/command; off is a dry run.",
        read_only=True,
    )

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            choices, value = entry.metadata["choices"], getattr(self, entry.name)
            if choices and value not in choices:
                raise ConfigurationError(
                    f"parameter {entry.name} is {value!r}: choose one of {', '.join(choices)}"
                )
            limits = entry.metadata["limits"]
            if limits is not None and not limits[0] <= value <= limits[1]:
                raise ConfigurationError(
                    f"parameter {entry.name} is {value}: it must be in {limits[0]} to {limits[1]}"
                )

    @property
    def chosen_state_names(self) -> tuple[str, ...]:
        """The names to pick from the robot's state; empty for those in the checkpoint."""
        return () if self.state_names == UNSET else self.state_names


def descriptor(entry: dataclasses.Field) -> ParameterDescriptor:
    """What ROS tools show of a parameter and check it against."""
    metadata = entry.metadata
    message = ParameterDescriptor(
        description=metadata["description"], read_only=metadata["read_only"]
    )
    if metadata["choices"]:
        message.additional_constraints = "one of " + ", ".join(metadata["choices"])
    if metadata["limits"] is not None:
        low, high = metadata["limits"]
        if isinstance(entry.default, int):
            message.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
        else:
            message.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return message


def declare_parameters(node: Node) -> None:
    """Declare every field of ``NodeParameters`` on ``node``."""
    for entry in dataclasses.fields(NodeParameters):
        default = list(entry.default) if isinstance(entry.default, tuple) else entry.default
        node.declare_parameter(entry.name, default, descriptor(entry))


def read_parameters(node: Node) -> NodeParameters:
    """The present values.

    Raises:
        ConfigurationError: A value is out of its range or not one of its choices.
    """
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(NodeParameters):
        value = node.get_parameter(entry.name).value
        values[entry.name] = tuple(value) if isinstance(entry.default, tuple) else value
    return NodeParameters(**values)
