"""Chunks as controllers want them; one small class an output, and no clock."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from nav_msgs.msg import Path
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk
from qvla_ros.node.adapter_parameters import AdapterParameters
from qvla_ros.node.chunk_follower import FollowedChunk
from qvla_ros.node.conversions import ns_to_duration, ns_to_stamp
from qvla_ros.node.declaration import UNSET
from qvla_ros.policy.rotation import quaternion_of_euler, rotation_vector

STOP_TICKS = 5
"""How often a stop is repeated before the adapter is silent."""


class Output(Protocol):
    """How chunks become one kind of message."""

    kind: type
    topic: str

    def on_chunk(self, chunk: FollowedChunk) -> object | None:
        """The message for a new chunk; ``ConfigurationError`` if it does not fit this output."""

    def on_tick(self, chunk: FollowedChunk | None, now_ns: int) -> object | None:
        """The message for this instant; without a chunk the robot is to stop."""


class TrajectoryOutput:
    """A ``JointTrajectory`` for each chunk, and one point where the joints are for a stop.

    Row *i* is reached at ``stamp + (i + 1) * step``, with the observation's stamp: a controller
    drops the waypoints that have passed. Velocities are finite differences, the last one is 0, so
    that every release of joint_trajectory_controller takes it.
    """

    kind, topic = JointTrajectory, "joint_trajectory"

    def __init__(self, parameters: AdapterParameters) -> None:
        self._parameters = parameters
        self._seen: dict[str, tuple[float, int]] = {}
        self._joint_names: list[str] = []
        self._owes_stop = False

    def on_joints(self, message: JointState, now_ns: int) -> None:
        """Remember where the joints are; several publishers may tell of some joints each."""
        for name, position in zip(message.name, message.position, strict=False):
            if math.isfinite(position):
                self._seen[name] = (position, now_ns)

    def blindness(self, now_ns: int) -> str:
        """Why a stop could not be sent now; empty if it could."""
        missing = [name for name in self._joint_names if not self._is_fresh(name, now_ns)]
        if not missing and any(self._is_fresh(name, now_ns) for name in self._seen):
            return ""
        which = f" of {', '.join(missing)}" if missing else ""
        owed = "; a stop is owed" if self._owes_stop else ""
        limit_s = self._parameters.max_joint_age_s
        return f"no position{which} on joint_states within {limit_s:g} s{owed}"

    def _is_fresh(self, name: str, now_ns: int) -> bool:
        _, seen_ns = self._seen.get(name, (math.nan, -1))
        # A clock that was set back makes nothing young again.
        return 0 <= seen_ns <= now_ns <= seen_ns + self._parameters.max_joint_age_ns

    def on_chunk(self, chunk: FollowedChunk) -> JointTrajectory:
        """The rows as waypoints."""
        _require_kind(chunk.message, (ActionChunk.ACTION_JOINT_POSITION,))
        if not chunk.message.absolute:
            raise ConfigurationError("joint_trajectory wants absolute joint positions")
        columns = chosen_columns(chunk.message, self._parameters)
        step_s = chunk.step_ns / 1e9
        kept = min(
            len(chunk.rows), -(-(chunk.valid_until_ns - chunk.observed_ns) // chunk.step_ns)
        )
        rows = chunk.rows[:kept, columns]
        speeds = np.gradient(rows, step_s, axis=0) if kept > 1 else np.zeros_like(rows)
        speeds[-1] = 0.0
        self._joint_names = joint_names(chunk.message, columns, self._parameters)
        self._owes_stop = True
        message = JointTrajectory(joint_names=self._joint_names)
        message.header.stamp = chunk.message.header.stamp
        message.points = [_point(rows[i], speeds[i], (i + 1) * chunk.step_ns) for i in range(kept)]
        return message

    def on_tick(self, chunk: FollowedChunk | None, now_ns: int) -> JointTrajectory | None:
        """Nothing while a chunk is followed; the present joints, once, when none is any more.

        A stop needs joints that were just seen: an old pose would pull the arm back. Until there
        are some it stays owed.
        """
        if chunk is not None or not self._owes_stop or self.blindness(now_ns):
            return None
        self._owes_stop = False
        message = JointTrajectory(joint_names=self._joint_names)
        message.header.stamp = ns_to_stamp(now_ns)
        still = np.array([self._seen[name][0] for name in self._joint_names])
        message.points = [_point(still, np.zeros_like(still), self._parameters.stop_ns)]
        return message


class TwistOutput:
    """A ``TwistStamped`` each tick, as MoveIt Servo wants it; zeros for a stop."""

    kind, topic = TwistStamped, "twist"

    def __init__(self, parameters: AdapterParameters) -> None:
        self._parameters = parameters
        self._frame_id = ""
        self._stops_left = 0

    def on_chunk(self, chunk: FollowedChunk) -> None:
        """Only a check: the numbers go out tick by tick."""
        self._columns(chunk.message)

    def on_tick(self, chunk: FollowedChunk | None, now_ns: int) -> TwistStamped | None:
        """The row that is due as velocities."""
        if chunk is None:
            self._stops_left -= 1
            return self._message(np.zeros(6), now_ns) if self._stops_left >= 0 else None
        self._frame_id, self._stops_left = chunk.message.header.frame_id, STOP_TICKS
        motion = chunk.row(now_ns)[self._columns(chunk.message)]
        if chunk.message.rotation == ActionChunk.ROTATION_EULER_XYZ:
            motion = np.concatenate([motion[:3], rotation_vector(quaternion_of_euler(motion[3:]))])
        if chunk.message.action_kind == ActionChunk.ACTION_EEF_DELTA:
            motion = motion / (chunk.step_ns / 1e9)
        return self._message(motion, now_ns)

    def _columns(self, message: ActionChunk) -> list[int]:
        _require_kind(message, (ActionChunk.ACTION_EEF_DELTA, ActionChunk.ACTION_EEF_TWIST))
        columns = chosen_columns(message, self._parameters)
        turns = (ActionChunk.ROTATION_AXIS_ANGLE, ActionChunk.ROTATION_EULER_XYZ)
        if len(columns) != 6 or message.rotation not in turns:
            raise ConfigurationError(
                "twist wants six columns, three of them axis_angle or euler_xyz: set the "
                f"parameter columns; the chunk has {', '.join(message.names)}"
            )
        return columns

    def _message(self, motion: np.ndarray, now_ns: int) -> TwistStamped:
        message = TwistStamped()
        message.header.stamp = ns_to_stamp(now_ns)
        message.header.frame_id = self._frame_id
        numbers = [float(value) for value in motion]
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = numbers
        return message


class ArrayOutput:
    """A ``Float64MultiArray`` each tick, for forward_command_controller.

    For a stop the last positions are repeated, and velocities are zero.
    """

    kind, topic = Float64MultiArray, "commands"

    def __init__(self, parameters: AdapterParameters) -> None:
        self._parameters = parameters
        self._stop: np.ndarray | None = None
        self._stops_left = 0

    def on_chunk(self, chunk: FollowedChunk) -> None:
        """Only a check: the numbers go out tick by tick."""
        kinds = (ActionChunk.ACTION_JOINT_POSITION, ActionChunk.ACTION_JOINT_VELOCITY)
        _require_kind(chunk.message, kinds)
        chosen_columns(chunk.message, self._parameters)

    def on_tick(self, chunk: FollowedChunk | None, now_ns: int) -> Float64MultiArray | None:
        """The row that is due."""
        if chunk is None:
            self._stops_left -= 1
            if self._stop is None or self._stops_left < 0:
                return None
            return Float64MultiArray(data=self._stop.tolist())
        row = chunk.row(now_ns)[chosen_columns(chunk.message, self._parameters)]
        moves = chunk.message.action_kind == ActionChunk.ACTION_JOINT_VELOCITY
        self._stop, self._stops_left = (np.zeros_like(row) if moves else row), STOP_TICKS
        return Float64MultiArray(data=row.tolist())


OUTPUTS = {"joint_trajectory": TrajectoryOutput, "twist": TwistOutput, "array": ArrayOutput}


def gripper_command(
    chunk: FollowedChunk, now_ns: int, parameters: AdapterParameters
) -> Float64 | None:
    """The gripper's column in the units of its controller, never beyond open and closed."""
    message = chunk.message
    if message.gripper_index < 0 or message.gripper_open == message.gripper_closed:
        return None
    value = chunk.row(now_ns)[message.gripper_index]
    share = (value - message.gripper_closed) / (message.gripper_open - message.gripper_closed)
    closed, opened = parameters.gripper_closed, parameters.gripper_open
    return Float64(data=float(closed + np.clip(share, 0.0, 1.0) * (opened - closed)))


def preview_path(chunk: FollowedChunk) -> Path | None:
    """Where the end effector is led; changes are summed up from the frame's origin."""
    message = chunk.message
    kinds = (ActionChunk.ACTION_EEF_DELTA, ActionChunk.ACTION_EEF_POSE)
    if message.action_kind not in kinds or message.dim < 3:
        return None
    places = chunk.rows[:, :3]
    if message.action_kind == ActionChunk.ACTION_EEF_DELTA:
        places = np.cumsum(places, axis=0)
    path = Path(header=message.header)
    for row, place in enumerate(places):
        pose = PoseStamped()
        pose.header.frame_id = message.header.frame_id
        pose.header.stamp = ns_to_stamp(chunk.observed_ns + row * chunk.step_ns)
        pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = map(float, place)
        path.poses.append(pose)
    return path


def chosen_columns(message: ActionChunk, parameters: AdapterParameters) -> list[int]:
    """The columns named by the parameter, or all but the gripper's."""
    if parameters.columns == UNSET:
        return [i for i in range(message.dim) if i != message.gripper_index]
    missing = [name for name in parameters.columns if name not in message.names]
    if missing:
        raise ConfigurationError(
            f"parameter columns names {', '.join(missing)}; the chunk has "
            f"{', '.join(message.names)}"
        )
    return [message.names.index(name) for name in parameters.columns]


def joint_names(
    message: ActionChunk, columns: Sequence[int], parameters: AdapterParameters
) -> list[str]:
    """The controller's names of the columns: the parameter's, or the chunk's own."""
    if parameters.joint_names == UNSET:
        return [message.names[column] for column in columns]
    if len(parameters.joint_names) != len(columns):
        raise ConfigurationError(
            f"parameter joint_names has {len(parameters.joint_names)} names for {len(columns)} "
            "columns"
        )
    return list(parameters.joint_names)


def _require_kind(message: ActionChunk, kinds: Sequence[int]) -> None:
    if message.action_kind not in kinds:
        raise ConfigurationError(
            f"the chunk's action_kind is {message.action_kind}, this output wants one of "
            f"{', '.join(map(str, kinds))} (see ActionChunk.msg)"
        )


def _point(position: np.ndarray, speed: np.ndarray, at_ns: int) -> JointTrajectoryPoint:
    return JointTrajectoryPoint(
        positions=position.tolist(),
        velocities=speed.tolist(),
        time_from_start=ns_to_duration(at_ns),
    )
