"""Chunks as controllers want them."""

from dataclasses import replace

import numpy as np
import pytest
from node.chunk_messages import MS, START, chunk
from sensor_msgs.msg import JointState

from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk
from qvla_ros.node.adapter_outputs import (
    STOP_TICKS,
    ArrayOutput,
    TrajectoryOutput,
    TwistOutput,
    gripper_command,
    preview_path,
)
from qvla_ros.node.adapter_parameters import AdapterParameters
from qvla_ros.node.chunk_follower import ChunkFollower, FollowedChunk
from qvla_ros.sensor_messages import stamp_to_ns

PARAMETERS = AdapterParameters()
JOINTS = {"action_kind": ActionChunk.ACTION_JOINT_POSITION, "absolute": True, "gripper_index": 2}
MOTION = "dx dy dz drx dry drz grip"
DELTAS = {
    "action_kind": ActionChunk.ACTION_EEF_DELTA,
    "rotation": ActionChunk.ROTATION_AXIS_ANGLE,
    "gripper_index": 6,
    "gripper_open": 1.0,
}


def followed(rows, names: str, **fields) -> FollowedChunk:
    result = ChunkFollower(0).take(chunk(0, rows, names, **fields), START + 10 * MS)
    assert result is not None
    return result


def joint_chunk(rows: int = 4, **fields) -> FollowedChunk:
    numbers = np.array([[i, -2.0 * i, 1.0] for i in range(rows)])
    return followed(numbers, "a b grip", **{**JOINTS, **fields})


def motion_chunk(**fields) -> FollowedChunk:
    rows = np.tile([0.01, 0, -0.02, 0, 0, 0.05, 1.0], (4, 1))
    return followed(rows, MOTION, **{**DELTAS, **fields})


def test_a_trajectory_reaches_each_row_one_step_later_and_ends_at_rest():
    message = TrajectoryOutput(PARAMETERS).on_chunk(joint_chunk())
    assert message.joint_names == ["a", "b"]
    assert stamp_to_ns(message.header.stamp) == START
    times = [point.time_from_start.nanosec // MS for point in message.points]
    assert times == [50, 100, 150, 200]
    assert [list(point.positions) for point in message.points] == [[i, -2 * i] for i in range(4)]
    speeds = [list(point.velocities) for point in message.points]
    np.testing.assert_allclose(speeds, [[20, -40], [20, -40], [20, -40], [0, 0]], rtol=1e-5)


def test_a_chunk_of_one_action_is_one_waypoint_at_rest():
    message = TrajectoryOutput(PARAMETERS).on_chunk(joint_chunk(rows=1))
    (point,) = message.points
    assert (list(point.positions), list(point.velocities)) == ([0, 0], [0, 0])


def test_a_trajectory_ends_where_the_chunk_is_no_longer_valid():
    until = chunk(0, np.zeros((2, 1)), "a").valid_until
    message = TrajectoryOutput(PARAMETERS).on_chunk(joint_chunk(rows=8, valid_until=until))
    assert len(message.points) == 2


def a_moving_trajectory() -> TrajectoryOutput:
    output = TrajectoryOutput(replace(PARAMETERS, joint_names=("j1", "j2")))
    output.on_chunk(joint_chunk())
    return output


def see(output: TrajectoryOutput, at_ns: int, **joints: float) -> None:
    output.on_joints(JointState(name=list(joints), position=list(joints.values())), at_ns)


def test_a_stopped_trajectory_holds_the_joints_where_they_are_and_only_once():
    output = TrajectoryOutput(replace(PARAMETERS, joint_names=("j1", "j2")))
    see(output, START, j2=2.0, x=9.0, j1=1.0)
    assert output.on_tick(None, START) is None, "nothing was sent, nothing is to be stopped"
    following = joint_chunk()
    output.on_chunk(following)
    assert output.on_tick(following, START) is None
    stop = output.on_tick(None, START + 99 * MS)
    assert (stop.joint_names, list(stop.points[0].positions)) == (["j1", "j2"], [1.0, 2.0])
    assert list(stop.points[0].velocities) == [0, 0]
    assert output.on_tick(None, START + 100 * MS) is None


def test_a_stop_is_owed_until_the_joints_are_seen():
    output = a_moving_trajectory()
    assert output.on_tick(None, START) is None, "they were never seen"
    see(output, START, j1=1.0)
    assert output.on_tick(None, START) is None, "one of them is not"
    assert (
        output.blindness(START) == "no position of j2 on joint_states within 0.1 s; a stop is owed"
    )
    see(output, START + 10 * MS, j2=2.0)
    assert output.blindness(START + 10 * MS) == ""
    stop = output.on_tick(None, START + 10 * MS)
    assert list(stop.points[0].positions) == [1.0, 2.0], "two publishers may tell of them"
    assert output.on_tick(None, START + 20 * MS) is None


def test_a_stop_does_not_pull_the_arm_back_to_where_it_was_seen_long_ago():
    output = a_moving_trajectory()
    see(output, START, j1=1.0, j2=2.0)
    late = START + 101 * MS
    assert output.on_tick(None, late) is None, "the stream has died in mid-motion"
    assert output.blindness(late).endswith("a stop is owed")
    see(output, late + MS, j1=1.5, j2=float("nan"))
    assert output.on_tick(None, late + MS) is None, "a position that is not finite is none"
    see(output, late + 2 * MS, j1=1.5, j2=2.5)
    assert list(output.on_tick(None, late + 2 * MS).points[0].positions) == [1.5, 2.5]


def test_joints_seen_before_the_clock_was_set_back_are_not_fresh():
    output = a_moving_trajectory()
    see(output, START + 5_000 * MS, j1=1.0, j2=2.0)
    assert output.on_tick(None, START) is None


def test_before_the_first_trajectory_it_is_told_whether_any_joints_are_seen():
    output = TrajectoryOutput(PARAMETERS)
    assert output.blindness(START) == "no position on joint_states within 0.1 s"
    see(output, START, j1=1.0)
    assert output.blindness(START) == ""


def test_a_twist_is_the_change_divided_by_the_step_and_zeros_at_the_end():
    output = TwistOutput(PARAMETERS)
    twist = output.on_tick(motion_chunk(), START + 60 * MS)
    assert (twist.twist.linear.x, twist.twist.linear.z) == (
        pytest.approx(0.2),
        pytest.approx(-0.4),
    )
    assert twist.twist.angular.z == pytest.approx(1.0)
    assert stamp_to_ns(twist.header.stamp) == START + 60 * MS
    stops = [output.on_tick(None, START) for _ in range(STOP_TICKS + 2)]
    assert [stop is None for stop in stops] == [False] * STOP_TICKS + [True] * 2
    assert stops[0].twist.linear.x == 0


def test_euler_changes_become_a_turn_about_one_axis():
    chunk_ = motion_chunk(rotation=ActionChunk.ROTATION_EULER_XYZ)
    assert TwistOutput(PARAMETERS).on_tick(chunk_, START).twist.angular.z == pytest.approx(1.0)


def test_a_twist_that_is_one_already_is_not_divided():
    chunk_ = motion_chunk(action_kind=ActionChunk.ACTION_EEF_TWIST)
    assert TwistOutput(PARAMETERS).on_tick(chunk_, START).twist.linear.x == pytest.approx(0.01)


def test_an_array_repeats_positions_and_zeroes_velocities_for_a_stop():
    positions, velocities = ArrayOutput(PARAMETERS), ArrayOutput(PARAMETERS)
    assert positions.on_tick(None, START) is None
    at = START + 120 * MS
    assert positions.on_tick(joint_chunk(), at).data.tolist() == [2, -4]
    assert positions.on_tick(None, at).data.tolist() == [2, -4]
    moving = joint_chunk(action_kind=ActionChunk.ACTION_JOINT_VELOCITY)
    assert velocities.on_tick(moving, at).data.tolist() == [2, -4]
    assert velocities.on_tick(None, at).data.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("output", "chunk_", "parameters", "reason"),
    [
        (TrajectoryOutput, motion_chunk(), {}, "action_kind is 5"),
        (TrajectoryOutput, joint_chunk(absolute=False), {}, "absolute"),
        (TrajectoryOutput, joint_chunk(), {"joint_names": ("j1",)}, "1 names for 2 columns"),
        (ArrayOutput, motion_chunk(), {}, "action_kind is 5"),
        (ArrayOutput, joint_chunk(), {"columns": ("c",)}, "names c; the chunk has a, b, grip"),
        (TwistOutput, joint_chunk(), {}, "action_kind is 1"),
        (TwistOutput, motion_chunk(), {"columns": ("dx",)}, "six columns"),
        (TwistOutput, motion_chunk(rotation=ActionChunk.ROTATION_6D), {}, "six columns"),
    ],
)
def test_a_chunk_that_does_not_fit_an_output_is_refused(output, chunk_, parameters, reason):
    with pytest.raises(ConfigurationError, match=reason):
        output(replace(PARAMETERS, **parameters)).on_chunk(chunk_)


@pytest.mark.parametrize(
    ("value", "position"), [(1.0, 0.08), (0.0, 0.0), (0.5, 0.04), (7.0, 0.08)]
)
def test_the_gripper_moves_between_closed_and_open_and_never_beyond(value, position):
    parameters = replace(PARAMETERS, gripper_open=0.08)
    rows = np.tile([0, 0, 0, 0, 0, 0, value], (2, 1))
    command = gripper_command(followed(rows, MOTION, **DELTAS), START, parameters)
    assert command.data == pytest.approx(position)


def test_the_preview_sums_up_changes_and_is_silent_about_joints():
    path = preview_path(motion_chunk())
    assert [pose.pose.position.x for pose in path.poses] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert stamp_to_ns(path.poses[1].header.stamp) == START + 50 * MS
    assert preview_path(joint_chunk()) is None
