"""The adapter node's parameters, each declared once: here."""

from dataclasses import dataclass

from qvla_ros.node.declaration import UNSET, check_values, parameter
from qvla_ros.sensor_messages import SECOND_NS


@dataclass(frozen=True, slots=True)
class AdapterParameters:
    """The values that the adapter runs with, all set at launch."""

    output: str = parameter(
        "twist",
        "What the controller takes: trajectory_msgs/JointTrajectory, geometry_msgs/TwistStamped "
        "or std_msgs/Float64MultiArray.",
        choices=("joint_trajectory", "twist", "array"),
        read_only=True,
    )
    dry_run: bool = parameter(
        True,
        "Send everything to ~/dry_run/... instead of to the controllers.",
        read_only=True,
    )
    columns: tuple[str, ...] = parameter(
        UNSET,
        "Names of the action's columns to use, in the controller's order; one empty name stands "
        "for all but the gripper's.",
        read_only=True,
    )
    joint_names: tuple[str, ...] = parameter(
        UNSET,
        "The controller's names of these columns; one empty name stands for the columns' own.",
        read_only=True,
    )
    rate_hz: float = parameter(
        50.0, "Commands a second of twist, array and gripper.", (1.0, 1000.0), read_only=True
    )
    heartbeat_timeout_s: float = parameter(
        0.5,
        "Longer without a heartbeat of the policy node stops the robot, s; 0 does not look.",
        (0.0, 60.0),
        read_only=True,
    )
    stop_s: float = parameter(
        0.1, "Time in which a trajectory is brought to its stop, s.", (0.01, 5.0), read_only=True
    )
    max_joint_age_s: float = parameter(
        0.1,
        "A trajectory is stopped where the joints were seen within this time, s; without them the "
        "stop stays owed, and /diagnostics says ERROR.",
        (0.001, 5.0),
        read_only=True,
    )
    gripper: bool = parameter(
        True, "Whether to send the gripper's column to gripper/command.", read_only=True
    )
    gripper_open: float = parameter(
        0.04, "The gripper controller's position of open.", read_only=True
    )
    gripper_closed: float = parameter(
        0.0, "The gripper controller's position of closed.", read_only=True
    )

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def stop_ns(self) -> int:
        """``stop_s`` in nanoseconds."""
        return round(self.stop_s * SECOND_NS)

    @property
    def max_joint_age_ns(self) -> int:
        """``max_joint_age_s`` in nanoseconds."""
        return round(self.max_joint_age_s * SECOND_NS)

    @property
    def heartbeat_timeout_ns(self) -> int:
        """``heartbeat_timeout_s`` in nanoseconds."""
        return round(self.heartbeat_timeout_s * SECOND_NS)
