"""The simulated robot's side of the commands: what it was told, and what it is to do now."""

import numpy as np
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Float64

from qvla_ros.node.chunk_follower import FollowedChunk
from qvla_ros.node.sim_parameters import SimParameters
from qvla_ros.sensor_messages import stamp_to_ns

TWIST_TIMEOUT_NS = 100_000_000
"""A velocity older than this is not followed: the arm stands, as under a velocity controller."""

_TOLERANCE = 1e-6


class SimulatedArm:
    """Keeps the newest twist and gripper command; time is an argument.

    Args:
        parameters: Tell the gripper's range.
        period_ns: Time in which one action of the simulator is executed.
    """

    def __init__(self, parameters: SimParameters, period_ns: int) -> None:
        self._parameters = parameters
        self._period_s = period_ns / 1e9
        self._twist = np.zeros(6)
        self._twist_ns = 0
        self._opened = 1.0

    def reset(self) -> None:
        """Stand still with an open gripper, as an episode begins."""
        self._twist, self._twist_ns, self._opened = np.zeros(6), 0, 1.0

    def on_twist(self, message: TwistStamped) -> None:
        """Take the velocities."""
        linear, angular = message.twist.linear, message.twist.angular
        self._twist = np.array(
            [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z], np.float64
        )
        self._twist_ns = stamp_to_ns(message.header.stamp)

    def on_gripper(self, message: Float64) -> None:
        """Take the gripper's position."""
        closed, opened = self._parameters.gripper_closed, self._parameters.gripper_open
        self._opened = (message.data - closed) / (opened - closed)

    def action(self, now_ns: int) -> np.ndarray:
        """The simulator's action, ``float32 [7]``: motion in one step, and how open the gripper."""
        fresh = now_ns - self._twist_ns <= TWIST_TIMEOUT_NS
        motion = self._twist * self._period_s if fresh else np.zeros(6)
        return np.array([*motion, self._opened], np.float32)

    def does(self, chunk: FollowedChunk, now_ns: int) -> bool:
        """Whether the newest commands, given at ``now_ns``, are what ``chunk`` says."""
        if self._twist_ns != now_ns:
            return False
        row = np.array(chunk.row(now_ns))
        message = chunk.message
        span = message.gripper_open - message.gripper_closed
        row[-1] = np.clip((row[message.gripper_index] - message.gripper_closed) / span, 0.0, 1.0)
        return bool(np.abs(row - self.action(now_ns)).max() < _TOLERANCE)
