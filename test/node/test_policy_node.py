"""The node with a policy that can be foreseen, over real DDS inside of one process."""

from collections.abc import Iterator

import numpy as np
import pytest
from node.served_node import FAILURE, SUCCESS, Served
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image

from qvla_ros.errors import CheckpointError
from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.sensor_messages import stamp_to_ns


@pytest.fixture
def commanding(robot) -> Iterator[Served]:
    served = Served(robot, publish_command=True, gripper_name="grip")
    yield served
    served.close()


def test_what_is_sensed_is_answered_with_chunks(robot, served: Served) -> None:
    served.activate()
    robot.say("pick up the bowl")
    assert robot.until(lambda: len(robot.chunks) >= 3, meanwhile=robot.sense)
    chunk = robot.chunks[-1]
    assert (chunk.horizon, chunk.dim, chunk.instruction) == (8, 3, "pick up the bowl")
    assert list(chunk.data[:6]) == [0, 0.25, 100, 1, 0.25, 100]
    stamps = [stamp_to_ns(chunk.header.stamp) for chunk in robot.chunks]
    assert stamps == sorted(set(stamps))
    assert stamps[-1] == served.policy.seen[-1].stamp_ns
    assert [chunk.seq for chunk in robot.chunks] == list(range(len(robot.chunks)))


def test_chunks_are_requested_at_half_of_the_horizon(robot, served: Served) -> None:
    served.activate()
    robot.say("go")
    assert robot.until(lambda: len(robot.chunks) >= 4, meanwhile=robot.sense)
    stamps = np.array([stamp_to_ns(chunk.header.stamp) for chunk in robot.chunks])
    assert (np.diff(stamps) >= 187_500_000).all()


def test_without_an_instruction_nothing_is_inferred(robot, served: Served) -> None:
    served.activate()
    robot.until(lambda: served.drops().get("missing_instruction", 0) > 2, meanwhile=robot.sense)
    assert (robot.messages, served.policy.seen) == ([], [])


def test_stale_stamps_give_no_chunk_and_are_counted(robot, served: Served) -> None:
    served.activate()
    robot.say("go")
    reached = robot.until(
        lambda: served.drops().get("stale_observation", 0) > 5,
        meanwhile=lambda: robot.sense(age_s=0.4),
    )
    assert reached
    assert (robot.messages, served.policy.seen) == ([], [])


def test_a_missing_camera_gives_no_chunk_and_is_named_in_the_diagnostics(
    robot, served: Served
) -> None:
    served.activate()
    robot.say("go")
    del robot.cameras["wrist"]
    wanted = "waiting for camera_wrist"
    reached = robot.until(
        lambda: any(wanted in s.message for array in robot.statuses for s in array.status),
        meanwhile=robot.sense,
    )
    assert reached
    assert served.drops()["missing_camera_wrist"] > 0
    assert (robot.chunks, served.policy.seen) == ([], [])


def test_a_bad_image_is_counted_and_a_good_one_after_it_is_used(robot, served: Served) -> None:
    served.activate()
    robot.say("go")

    good, bad = robot.cameras["primary"], robot.cameras["wrist"]
    robot.cameras = {"primary": good}

    def sense_only_badly() -> None:
        image = Image(encoding="rgb8", height=4, width=4, step=12, data=b"short")
        image.header.stamp = ns_to_stamp(robot.now_ns())
        bad.publish(image)
        robot.sense()

    assert robot.until(
        lambda: served.drops().get("bad_message", 0) > 1, meanwhile=sense_only_badly
    )
    assert served.policy.seen == []
    robot.cameras = {"primary": good, "wrist": bad}
    assert robot.until(lambda: len(robot.chunks) > 0, meanwhile=robot.sense)


def test_a_chunk_with_a_nan_is_never_published_and_latches_a_fault(robot, served: Served) -> None:
    served.policy.poisoned = True
    served.activate()
    robot.say("go")
    assert robot.until(lambda: "faulted" in robot.holds, meanwhile=robot.sense)
    assert robot.chunks == []
    assert served.drops()["non_finite"] == 5
    served.policy.poisoned = False
    assert not robot.tell("reset").success, "the fault is fresh"
    robot.spin(0.3)
    assert robot.tell("reset").success
    assert robot.until(lambda: len(robot.chunks) > 0, meanwhile=robot.sense)


def test_another_instruction_revokes_the_chunks_and_begins_an_episode(
    robot, served: Served
) -> None:
    served.activate()
    robot.say("first")
    assert robot.until(lambda: len(robot.chunks) > 0, meanwhile=robot.sense)
    robot.say("first")
    before = len(robot.chunks)
    assert robot.until(lambda: len(robot.chunks) > before, meanwhile=robot.sense)
    assert robot.holds == [], "the same instruction again changes nothing"
    robot.say("second")
    assert robot.until(lambda: robot.chunks[-1].instruction == "second", meanwhile=robot.sense)
    assert robot.holds == ["instruction_changed"]
    assert robot.chunks[-1].episode_id == robot.chunks[0].episode_id + 1
    hold = next(message for message in robot.messages if message.horizon == 0)
    later = robot.messages[robot.messages.index(hold) + 1 :]
    assert {message.instruction for message in later} == {"second"}


def test_deactivation_stops_the_loop_and_then_sends_a_hold(robot, served: Served) -> None:
    served.activate()
    robot.say("go")
    assert robot.until(lambda: len(robot.chunks) > 0, meanwhile=robot.sense)
    assert served.node.trigger_deactivate() == SUCCESS
    assert robot.until(lambda: robot.holds == ["deactivated"])
    seen = len(served.policy.seen)
    robot.until(lambda: False, 0.5, meanwhile=robot.sense)
    assert robot.messages[-1].hold_reason == "deactivated"
    assert len(served.policy.seen) == seen
    assert served.node.trigger_activate() == SUCCESS
    before = len(robot.chunks)
    assert robot.until(lambda: len(robot.chunks) > before, meanwhile=robot.sense)
    assert robot.chunks[-1].instruction == "go", "the latched instruction stays"


def test_callbacks_go_on_while_an_inference_takes_long(robot, served: Served) -> None:
    served.policy.gate.clear()
    served.activate()
    robot.say("go")
    assert robot.until(lambda: len(served.policy.seen) == 1, meanwhile=robot.sense)
    assert robot.until(lambda: served.drops().get("superseded", 0) > 0, meanwhile=robot.sense)
    served.policy.gate.set()
    assert robot.until(lambda: len(robot.chunks) > 0, meanwhile=robot.sense)


def test_a_corrupt_checkpoint_leaves_the_node_unconfigured_and_it_can_be_tried_again(
    robot, served: Served
) -> None:
    served.loading_error = CheckpointError("a.qvla.safetensors: truncated")
    assert served.node.trigger_configure() == FAILURE
    assert served.node._state_machine.current_state[1] == "unconfigured"
    assert robot.until(
        lambda: any("truncated" in s.message for array in robot.statuses for s in array.status)
    )
    served.loading_error = None
    served.activate()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("checkpoint", "", "checkpoint is empty"),
        ("state_names", ["x"], "state_names has 1 names"),
        ("gripper_name", "hand", "gripper_name is 'hand'"),
        ("rotation", "euler", "rotation is 'euler': choose"),
        ("limits_file", "absent.yaml", "absent.yaml cannot be read"),
    ],
)
def test_parameters_that_do_not_fit_leave_the_node_unconfigured(
    served: Served, name: str, value: object, reason: str
) -> None:
    served.node.set_parameters([Parameter(name, value=value)])
    assert served.node.trigger_configure() == FAILURE
    assert reason in served.node._trouble


def test_a_configured_node_refuses_to_change_its_parameters(served: Served) -> None:
    assert served.node.trigger_configure() == SUCCESS
    (result,) = served.node.set_parameters([Parameter("max_skew_s", value=0.1)])
    assert not result.successful
    assert "unconfigured" in result.reason
    assert served.node.trigger_cleanup() == SUCCESS
    (result,) = served.node.set_parameters([Parameter("max_skew_s", value=0.1)])
    assert result.successful


def test_it_is_a_dry_run_unless_launched_otherwise(robot, served: Served) -> None:
    (result,) = served.node.set_parameters([Parameter("publish_command", value=True)])
    assert not result.successful
    served.activate()
    robot.say("go")
    assert robot.until(lambda: len(robot.chunks) > 0, meanwhile=robot.sense)
    robot.spin(0.3)
    assert robot.commands == []


def test_where_it_is_wanted_the_due_actions_are_commanded_and_a_hold_is_last(
    robot, commanding: Served
) -> None:
    commanding.activate()
    robot.say("go")
    assert robot.until(
        lambda: any(command.position[0] > 0 for command in robot.commands), meanwhile=robot.sense
    )
    assert robot.commands[0].name == ["row", "state", "grip"]
    rows = [command.position[0] for command in robot.commands]
    assert set(rows) <= set(range(8))
    assert commanding.node.trigger_deactivate() == SUCCESS
    assert robot.until(lambda: list(robot.commands[-1].position) == [0, 0, 100])


def test_the_last_command_is_waited_for_before_its_publisher_goes(
    robot, commanding: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    commanding.activate()
    robot.say("go")
    assert robot.until(lambda: robot.commands != [], meanwhile=robot.sense)
    waited: list[object] = []
    heard = Publisher.wait_for_all_acked

    def wait(publisher: Publisher, timeout: Duration) -> bool:
        waited.append(publisher)
        return heard(publisher, timeout)

    monkeypatch.setattr(Publisher, "wait_for_all_acked", wait)
    node = commanding.node
    publishers = {node._command_publisher, node._chunks}
    node.close("SIGTERM")
    assert publishers <= set(waited)


def test_every_transition_can_be_repeated(served: Served) -> None:
    for _ in range(2):
        served.activate()
        assert served.node.trigger_deactivate() == SUCCESS
        assert served.node.trigger_cleanup() == SUCCESS
    served.activate()
    assert served.node.trigger_shutdown() == SUCCESS
