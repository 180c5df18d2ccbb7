"""A policy of one camera, one action and no proprioception, as autoregressive OpenVLA is."""

from collections.abc import Iterator

import pytest
from fake_policy import FakePolicy
from node.served_node import FAILURE, Served
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState

from qvla_ros.sensor_messages import stamp_to_ns


@pytest.fixture
def stateless(robot) -> Iterator[Served]:
    served = Served(robot, publish_command=True, gripper_name="grip")
    served.policy = FakePolicy(
        image_names=("primary",), state_names=(), horizon=1, period_ns=200_000_000
    )
    yield served
    served.close()


def test_it_is_served_without_a_state_topic(robot, stateless: Served) -> None:
    robot.state = robot.create_publisher(JointState, "elsewhere/state", 1)
    stateless.activate()
    robot.say("go")
    assert robot.until(lambda: len(robot.chunks) >= 2, meanwhile=robot.sense)
    chunk = robot.chunks[-1]
    assert (chunk.horizon, chunk.dim, list(chunk.data)) == (1, 3, [0.0, 0.0, 100.0])
    assert stamp_to_ns(chunk.proprio_stamp) == 0
    assert stamp_to_ns(chunk.valid_until) - stamp_to_ns(chunk.header.stamp) == 200_000_000
    assert stateless.policy.seen[-1].state.shape == (0,)
    assert robot.until(lambda: robot.commands != [], meanwhile=robot.sense)
    assert not any("state" in reason for reason in stateless.drops())
    topics = dict(robot.get_subscriber_names_and_types_by_node("policy", "/"))
    assert "/robot/state" not in topics, "nothing is asked for that the policy does not want"


def test_names_of_a_state_that_the_model_does_not_take_are_refused(stateless: Served) -> None:
    stateless.node.set_parameters([Parameter("state_names", value=["x"])])
    assert stateless.node.trigger_configure() == FAILURE
    assert "state_names has 1 names, the model wants 0" in stateless.node._trouble


def test_an_answer_that_takes_longer_than_its_only_action_is_not_sent(
    robot, stateless: Served
) -> None:
    stateless.policy.gate.clear()
    stateless.activate()
    robot.say("go")
    assert robot.until(lambda: stateless.policy.seen != [], meanwhile=robot.sense)
    robot.until(lambda: False, 0.3, meanwhile=robot.sense)
    late = stateless.policy.seen[0].stamp_ns
    stateless.policy.gate.set()
    assert robot.until(lambda: stateless.drops().get("expired", 0) > 0, meanwhile=robot.sense)
    assert robot.until(lambda: robot.chunks != [], meanwhile=robot.sense)
    assert late not in [stamp_to_ns(chunk.header.stamp) for chunk in robot.chunks]
