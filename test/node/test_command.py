"""What is commanded when there is an action, and when there is none."""

import numpy as np

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.node.command import CommandSource
from qvla_ros.node.conversions import PolicyCard
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.policy.chunk_scheduler import Hold, ScheduledAction
from qvla_ros.sensor_messages import stamp_to_ns

ACTION = np.array([0.5, -0.25, 1.0], np.float32)
DUE = ScheduledAction(ACTION, 0, 0, ActionChunk(0, 1, ACTION[None]))


def source(absolute: bool) -> CommandSource:
    parameters = NodeParameters(absolute=absolute, gripper_name="gripper", frame_id="base")
    return CommandSource(PolicyCard("m", "", "", ("dx", "dy", "gripper"), parameters))


def test_a_due_action_is_commanded_by_name() -> None:
    message = source(absolute=False).command(DUE, 1_000_000_007)
    assert message.name == ["dx", "dy", "gripper"]
    assert list(message.position) == [0.5, -0.25, 1.0]
    assert (stamp_to_ns(message.header.stamp), message.header.frame_id) == (1_000_000_007, "base")


def test_a_hold_of_changes_is_zero_but_keeps_the_gripper() -> None:
    commands = source(absolute=False)
    commands.command(DUE, 0)
    assert list(commands.command(Hold("expired"), 1).position) == [0, 0, 1.0]


def test_a_hold_of_targets_repeats_the_last_target() -> None:
    commands = source(absolute=True)
    commands.command(DUE, 0)
    assert list(commands.command(Hold("expired"), 1).position) == [0.5, -0.25, 1.0]


def test_before_the_first_action_there_is_nothing_to_hold() -> None:
    assert source(absolute=True).command(Hold("no_chunk"), 0) is None


def test_what_was_forgotten_is_never_held_again() -> None:
    commands = source(absolute=True)
    commands.command(DUE, 0)
    commands.forget()
    assert commands.command(Hold("deactivated"), 1) is None
    assert list(commands.command(DUE, 2).position) == [0.5, -0.25, 1.0]
    assert commands.command(Hold("expired"), 3) is not None
