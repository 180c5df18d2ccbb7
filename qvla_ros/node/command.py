"""The action that is due as a named vector, and what to send when there is none."""

import numpy as np
from sensor_msgs.msg import JointState

from qvla_ros.node.conversions import PolicyCard, ns_to_stamp
from qvla_ros.policy.chunk_scheduler import Hold, ScheduledAction


class CommandSource:
    """Turns what the scheduler answers into commands; remembers the last one, for holds.

    A hold repeats the last command where actions are targets, and is zero where they are changes;
    the gripper keeps its last value in both. Before the first command, and after ``forget``, there
    is nothing to hold.
    """

    def __init__(self, card: PolicyCard) -> None:
        self._card = card
        self._last: np.ndarray | None = None

    def command(self, due: ScheduledAction | Hold, now_ns: int) -> JointState | None:
        """The command for ``now_ns``, or ``None`` if there is nothing to hold."""
        if isinstance(due, ScheduledAction):
            self._last = due.action
            return self._message(due.action, now_ns)
        if self._last is None:
            return None
        return self._message(self._held(self._last), now_ns)

    def forget(self) -> None:
        """Hold nothing from now on: others may move the robot, and the last command grows old."""
        self._last = None

    def _held(self, last: np.ndarray) -> np.ndarray:
        if self._card.parameters.absolute:
            return last
        held = np.zeros_like(last)
        gripper = self._card.gripper_index
        if gripper >= 0:
            held[gripper] = last[gripper]
        return held

    def _message(self, action: np.ndarray, now_ns: int) -> JointState:
        message = JointState(name=list(self._card.action_names), position=action.tolist())
        message.header.stamp = ns_to_stamp(now_ns)
        message.header.frame_id = self._card.parameters.frame_id
        return message
