"""The adapter over real DDS, beside a policy node."""

from collections.abc import Callable, Iterator

import pytest
from geometry_msgs.msg import TwistStamped
from node.served_node import Served
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from qvla_ros.node.adapter_node import AdapterNode
from qvla_ros.node.adapter_outputs import STOP_TICKS

Adapt = Callable[..., AdapterNode]


@pytest.fixture
def adapt(robot) -> Iterator[Adapt]:
    made: list[AdapterNode] = []

    def make(**parameters: object) -> AdapterNode:
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        made.append(AdapterNode(overrides))
        robot.executor_of_all.add_node(made[-1])
        return made[-1]

    yield make
    for node in made:
        node.destroy_node()


@pytest.fixture
def arm(robot) -> Iterator[Served]:
    served = Served(
        robot, action_kind="joint_position", absolute=True, gripper_name="grip", gripper_open=200.0
    )
    served.activate()
    robot.say("go")
    yield served
    served.close()


def says(robot, text: str, level: bytes) -> bool:
    """Whether ``/diagnostics`` said so."""
    return any(
        text in status.message and level == status.level
        for array in robot.statuses
        for status in array.status
    )


def test_without_being_told_it_only_shows_what_it_would_send(robot, arm, adapt: Adapt) -> None:
    adapt(output="joint_trajectory")
    shown, sent = [], []
    topic = "adapter/dry_run/joint_trajectory"
    robot.create_subscription(JointTrajectory, topic, shown.append, 10)
    robot.create_subscription(JointTrajectory, "joint_trajectory", sent.append, 10)
    assert robot.until(lambda: len(shown) >= 2, meanwhile=robot.sense)
    assert shown[0].joint_names == ["row", "state"]
    assert [point.positions[0] for point in shown[0].points] == list(range(8))
    assert sent == []
    assert "joint_trajectory" not in [name for name, _ in robot.get_topic_names_and_types()]


def test_when_the_policy_falls_silent_a_live_adapter_stops_the_arm(
    robot, arm, adapt: Adapt
) -> None:
    adapt(output="joint_trajectory", dry_run=False, heartbeat_timeout_s=0.3)
    sent = []
    robot.create_subscription(JointTrajectory, "joint_trajectory", sent.append, 10)
    joints = robot.create_publisher(JointState, "joint_states", 10)

    def sense() -> None:
        joints.publish(JointState(name=["row", "state"], position=[0.5, 0.75]))
        robot.sense()

    assert robot.until(lambda: len(sent) >= 2, meanwhile=sense)
    robot.executor_of_all.remove_node(arm.node)  # as if its process hung
    assert robot.until(lambda: len(sent[-1].points) == 1, timeout_s=5, meanwhile=sense)
    assert list(sent[-1].points[0].positions) == [0.5, 0.75]
    assert robot.until(lambda: any("no heartbeat" in text for text in robot.status_texts))


def test_chunks_of_the_wrong_kind_are_told_and_not_sent(robot, arm, adapt: Adapt) -> None:
    adapt(output="twist", dry_run=False)
    sent = []
    robot.create_subscription(TwistStamped, "twist", sent.append, 10)
    reached = robot.until(
        lambda: any("action_kind is 1" in text for text in robot.status_texts),
        meanwhile=robot.sense,
    )
    assert reached
    assert sent == []


def test_a_stop_without_joints_is_an_error_and_is_sent_as_soon_as_they_are_seen(
    robot, arm, adapt: Adapt
) -> None:
    adapt(output="joint_trajectory", dry_run=False, max_joint_age_s=0.5)
    sent = []
    robot.create_subscription(JointTrajectory, "joint_trajectory", sent.append, 10)
    assert robot.until(lambda: len(sent) >= 1, meanwhile=robot.sense)
    assert robot.tell("stop").success
    assert robot.until(lambda: says(robot, "no position of row, state on joint_states", b"\x02"))
    assert robot.until(lambda: says(robot, "a stop is owed", b"\x02"))
    assert all(len(message.points) > 1 for message in sent)
    joints = robot.create_publisher(JointState, "joint_states", 10)
    state = JointState(name=["row", "state"], position=[0.5, 0.75])
    see = lambda: joints.publish(state)  # noqa: E731
    assert robot.until(lambda: len(sent[-1].points) == 1, meanwhile=see)
    assert list(sent[-1].points[0].positions) == [0.5, 0.75]
    robot.statuses.clear()
    assert robot.until(lambda: says(robot, "holding", b"\x00"), meanwhile=see)


class Recorder:
    """In the place of a publisher: what was sent, and whether it was waited for."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def publish(self, message: object) -> None:
        self.calls.append(message)

    def wait_for_all_acked(self, timeout: Duration) -> bool:
        assert 0 < timeout.nanoseconds <= 1e9, "a process must end in time"
        self.calls.append("waited")
        return True


def test_an_adapter_that_ends_repeats_the_stop_and_waits_until_it_has_arrived(
    robot, arm, adapt: Adapt
) -> None:
    """The process ended at once, and could take its only stop along."""
    adapter = adapt(output="array", dry_run=False)
    moved: list[Float64MultiArray] = []
    robot.create_subscription(Float64MultiArray, "commands", moved.append, 10)
    assert robot.until(lambda: len(moved) >= 2, meanwhile=robot.sense)
    adapter._commands = Recorder()
    adapter.close("SIGTERM")
    *stops, waited = adapter._commands.calls
    assert (len(stops), waited) == (STOP_TICKS, "waited")
    assert {stop.data.tolist()[1] for stop in stops} == {0.25}
