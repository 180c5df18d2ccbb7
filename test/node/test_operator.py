"""What an operator can do, and what a fault or a hang leaves to be done; over real DDS."""

from collections.abc import Callable, Iterator

import pytest
from node.served_node import FAILURE, SUCCESS, Served

from qvla_ros.sensor_messages import stamp_to_ns


@pytest.fixture
def commanding_targets(robot) -> Iterator[Served]:
    served = Served(robot, publish_command=True, absolute=True, reset_cooldown_s=0.2)
    yield served
    served.close()


def serve(robot, served) -> None:
    served.activate()
    robot.say("go")
    assert robot.until(lambda: robot.chunks != [], meanwhile=robot.sense)


def serves_again(robot) -> bool:
    before = len(robot.chunks)
    return robot.until(lambda: len(robot.chunks) > before, meanwhile=robot.sense)


def test_pause_holds_and_resume_begins_a_new_episode(robot, served) -> None:
    serve(robot, served)
    assert robot.tell("pause").success
    assert robot.until(lambda: robot.holds == ["paused"])
    seen = len(served.policy.seen)
    robot.until(lambda: False, 0.4, meanwhile=robot.sense)
    assert (len(served.policy.seen), robot.messages[-1].hold_reason) == (seen, "paused")
    assert robot.until(lambda: robot.heartbeats[-1].state == "paused")
    assert robot.tell("resume").success
    assert serves_again(robot)
    assert robot.chunks[-1].episode_id > robot.chunks[0].episode_id


def moves(robot) -> bool:
    """Whether targets beyond the first row come, and the last of them has been taken."""
    before = len(robot.commands)
    fresh = lambda: any(c.position[0] > 0 for c in robot.commands[before:])  # noqa: E731
    return robot.until(fresh, meanwhile=robot.sense)


def commanded_at(robot, act: Callable[[], None]) -> int:
    """How many commands are made by an act or after it."""
    began_ns = robot.now_ns()
    act()
    robot.spin(0.3)
    return sum(stamp_to_ns(command.header.stamp) >= began_ns for command in robot.commands)


def stays_silent(robot, seconds: float = 0.5) -> bool:
    """Whether nothing is commanded, though everything is sensed."""
    robot.spin(0.2)  # what is on its way
    robot.commands.clear()
    robot.until(lambda: False, seconds, meanwhile=robot.sense)
    return robot.commands == []


def test_a_start_does_not_send_the_target_of_before_the_stop(
    robot, commanding_targets: Served
) -> None:
    serve(robot, commanding_targets)
    assert moves(robot)
    assert robot.tell("stop").success
    robot.spin(0.2)  # now the arm may be moved by hand
    robot.commands.clear()
    assert robot.tell("start").success
    robot.spin(0.5)
    assert robot.commands == [], "nothing was inferred yet"
    assert moves(robot)


def test_while_paused_one_hold_is_commanded_and_then_nothing(
    robot, commanding_targets: Served
) -> None:
    serve(robot, commanding_targets)
    assert moves(robot)
    assert commanded_at(robot, commanding_targets.node.pause) == 1
    assert stays_silent(robot), "a teleoperator moves the arm now"
    assert robot.tell("reset").success
    assert stays_silent(robot), "a reset during a pause moves nothing either"
    assert robot.tell("resume").success
    robot.spin(0.3)
    assert robot.commands == [], "the target of before the pause is forgotten"
    assert moves(robot)


def test_a_reset_holds_once_and_commands_nothing_before_the_next_answer(
    robot, commanding_targets: Served
) -> None:
    serve(robot, commanding_targets)
    assert moves(robot)
    commanding_targets.policy.gate.clear()
    assert commanded_at(robot, commanding_targets.node.reset) == 1
    assert stays_silent(robot), "no inference has ended yet"
    commanding_targets.policy.gate.set()
    assert moves(robot)


def test_start_and_stop_lead_through_the_lifecycle(robot, served) -> None:
    assert robot.tell("start").success
    robot.say("go")
    assert serves_again(robot)
    assert robot.tell("stop").success
    assert robot.until(lambda: robot.holds == ["deactivated"])
    assert robot.until(lambda: robot.heartbeats and robot.heartbeats[-1].state == "inactive")
    assert robot.tell("start").success
    assert serves_again(robot)


def test_a_start_that_cannot_be_says_so(robot, served) -> None:
    served.loading_error = OSError("no such disk")
    answer = robot.tell("start")
    assert (answer.success, "configure failed" in answer.message) == (False, True)
    assert "not active" in robot.tell("pause").message
    assert "not configured" in robot.tell("reset").message


def test_a_finalized_node_refuses_every_verb_and_lives_on(robot, served) -> None:
    serve(robot, served)
    assert served.node.trigger_shutdown() == SUCCESS
    answer = robot.tell("start")
    assert (answer.success, "configure is not possible now" in answer.message) == (False, True)
    assert {verb: robot.tell(verb).success for verb in ("pause", "resume", "reset")} == {
        "pause": False, "resume": False, "reset": False,
    }  # fmt: skip
    assert robot.tell("stop").message == "not active"
    robot.heartbeats.clear()
    assert robot.until(lambda: robot.heartbeats and not robot.heartbeats[-1].serving)


def test_reset_restores_service_while_an_inference_hangs(robot, served) -> None:
    served.activate()
    robot.say("go")
    served.policy.gate.clear()
    assert robot.until(lambda: served.policy.seen != [], meanwhile=robot.sense)
    hung = served.policy.seen[0].stamp_ns
    assert robot.tell("reset").success
    served.policy.gate.set()
    assert serves_again(robot)
    stamps = [
        chunk.header.stamp.sec * 10**9 + chunk.header.stamp.nanosec for chunk in robot.chunks
    ]
    assert hung not in stamps, "the late answer is refused"


def test_a_fault_can_be_reset_while_the_node_is_inactive(robot, served) -> None:
    served.policy.poisoned = True
    served.activate()
    robot.say("go")
    assert robot.until(lambda: "faulted" in robot.holds, meanwhile=robot.sense)
    assert robot.until(lambda: robot.heartbeats[-1].state == "faulted")
    assert not robot.heartbeats[-1].serving
    assert served.node.trigger_deactivate() == SUCCESS
    beats = len(robot.heartbeats)
    assert robot.until(lambda: len(robot.heartbeats) > beats + 1)
    assert robot.heartbeats[-1].state == "faulted", "inactive would hide it"
    assert served.node.trigger_activate() == FAILURE
    assert robot.until(lambda: any("not active; faulted" in text for text in robot.status_texts))
    served.policy.poisoned = False
    robot.spin(0.3)
    assert robot.tell("reset").success
    assert served.node.trigger_activate() == SUCCESS
    assert serves_again(robot)


def test_a_fault_is_told_during_a_pause_too(robot, served) -> None:
    served.policy.poisoned = True
    served.activate()
    robot.say("go")
    assert robot.until(lambda: "faulted" in robot.holds, meanwhile=robot.sense)
    assert robot.tell("pause").success
    robot.heartbeats.clear()
    robot.statuses.clear()
    assert robot.until(lambda: robot.heartbeats and robot.statuses)
    assert {beat.state for beat in robot.heartbeats} == {"faulted"}
    status = robot.statuses[0].status[0]
    assert (status.level, status.message.startswith("paused; faulted: ")) == (b"\x02", True)
    assert not robot.tell("resume").success, "a fault must be reset"
    served.policy.poisoned = False
    robot.spin(0.3)
    assert robot.tell("reset").success
    assert robot.until(lambda: robot.heartbeats[-1].state == "paused")
    assert robot.tell("resume").success
    assert serves_again(robot)


def test_a_stopped_loop_in_an_active_node_is_an_error_in_the_diagnostics(robot, served) -> None:
    serve(robot, served)
    served.node._session.loop.stop()
    wanted = "the loop is stopped although the node is active"
    assert robot.until(lambda: any(wanted in text for text in robot.status_texts))
    level = next(s.level for a in robot.statuses for s in a.status if wanted in s.message)
    assert level == b"\x02"
    assert robot.tell("reset").success
    assert serves_again(robot)


def test_the_heartbeat_comes_in_every_state_and_counts_the_episodes(robot, served) -> None:
    assert robot.until(lambda: len(robot.heartbeats) > 3)
    assert {beat.state for beat in robot.heartbeats} == {"unconfigured"}
    serve(robot, served)
    assert robot.until(lambda: robot.heartbeats[-1].serving, meanwhile=robot.sense)
    assert robot.heartbeats[-1].episode_id == robot.chunks[-1].episode_id
