"""What goes wrong on a robot, row by row of the documentation's table, over real DDS."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_policy import FakePolicy
from geometry_msgs.msg import TwistStamped
from node.served_node import FAILURE, SUCCESS, Served
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, JointState

from demo.node_evidence.processes import running
from qvla_ros.node.adapter_node import AdapterNode
from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.main import load_configured
from qvla_ros.observation import Observation
from qvla_ros.policy.inference import Inference
from qvla_ros.sensor_messages import stamp_to_ns

Serve = Callable[..., Served]
MS = 1_000_000


class Slow(FakePolicy):
    """Takes ``took_s`` for an answer, and says so."""

    took_s = 0.0

    def infer(self, observation: Observation) -> Inference:
        time.sleep(self.took_s)
        return Inference(super().infer(observation).chunk, {"model": 1e3 * self.took_s})


class Erring(FakePolicy):
    """Cannot answer."""

    def infer(self, observation: Observation) -> Inference:
        if observation.stamp_ns != 0:  # not the self-test's
            raise ValueError("the prompt is too long")
        return super().infer(observation)


class NotFinite(FakePolicy):
    """Answers with a NaN, the golden question too."""

    def infer(self, observation: Observation) -> Inference:
        inference = super().infer(observation)
        inference.chunk.actions[3, 1] = np.nan
        return inference


@pytest.fixture
def serve(robot) -> Iterator[Serve]:
    """Make a node with other parameters; it is closed with the test."""
    made: list[Served] = []

    def make(**parameters: object) -> Served:
        made.append(Served(robot, **parameters))
        return made[-1]

    yield make
    for served in made:
        served.close()


def says(robot, text: str, level: bytes | None = None) -> bool:
    """Whether ``/diagnostics`` said so lately."""
    return any(
        text in status.message and level in (None, status.level)
        for array in robot.statuses[-3:]
        for status in array.status
    )


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_checkpoint_that_cannot_be_read_leaves_the_node_unconfigured_until_it_can(
    robot, serve: Serve, packed_checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "a.qvla.safetensors"
    data = bytearray(packed_checkpoint.read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    if damage == "altered":
        data[-100] ^= 0xFF
    if damage != "missing":
        path.write_bytes(data)
    served = serve(checkpoint=str(path))
    served.node._load = load_configured
    assert served.node.trigger_configure() == FAILURE
    assert robot.until(lambda: says(robot, str(path), b"\x02")), robot.status_texts
    assert served.node._state_machine.current_state[1] == "unconfigured"
    path.write_bytes(packed_checkpoint.read_bytes())
    assert served.node.trigger_configure() == SUCCESS


def test_a_self_test_that_is_not_finite_is_refused(robot, serve: Serve) -> None:
    served = serve()
    served.policy = NotFinite()
    assert served.node.trigger_configure() == FAILURE
    wanted = "self-test failed: the answer holds a value that is not finite"
    assert robot.until(lambda: says(robot, wanted, b"\x02"))


def test_a_golden_answer_that_is_not_finite_is_refused(robot, serve: Serve) -> None:
    served = serve()
    served.policy.golden_actions = np.full((8, 3), np.nan, np.float32)
    assert served.node.trigger_configure() == FAILURE
    assert robot.until(lambda: says(robot, "self-test failed: the answer to the golden", b"\x02"))


def test_an_observation_that_grew_old_behind_an_inference_is_not_begun(
    robot, serve: Serve
) -> None:
    served = serve(request_period_s=0.001)
    served.policy.gate.clear()
    served.activate()
    robot.say("go")
    assert robot.until(lambda: served.policy.seen != [], meanwhile=robot.sense)
    robot.sense()
    robot.spin(0.4)
    loop = served.node._session.loop
    assert "stale_observation" not in loop.health(robot.now_ns()).drops, "it was fresh on arrival"
    served.policy.gate.set()
    stale = lambda: loop.health(robot.now_ns()).drops.get("stale_observation", 0)  # noqa: E731
    assert robot.until(lambda: stale() == 1)
    assert len(served.policy.seen) == 1


def test_an_observation_that_grew_old_before_it_was_complete_is_not_put_together(
    robot, serve: Serve
) -> None:
    """It waits for a wrist image as new as the first camera's; until that comes it is too old."""
    served = serve(sync_wait_s=10.0, max_skew_s=1.0)
    served.activate()
    robot.say("go")
    cameras, sync = robot.cameras, served.node._session.sync
    for _ in range(3):  # single best-effort messages may be lost
        for name, age_s, wait_s in (
            ("wrist", 0.03, 0.0),
            ("primary", 0.0, 0.4),
            ("wrist", 0, 0.2),
        ):
            robot.cameras = {name: cameras[name]}
            robot.sense(age_s)
            robot.spin(wait_s)
    assert sync.drops.get("stale_observation", 0) >= 1
    assert (robot.messages, served.policy.seen) == ([], [])


def test_stamps_from_the_future_are_not_used(robot, serve: Serve) -> None:
    served = serve()
    served.activate()
    robot.say("go")
    ahead = lambda: robot.sense(age_s=-0.5)  # noqa: E731
    assert robot.until(lambda: served.drops().get("future_stamp", 0) > 5, meanwhile=ahead)
    assert (robot.messages, served.policy.seen) == ([], [])


def test_a_frame_that_comes_again_is_answered_once(robot, serve: Serve) -> None:
    served = serve(request_period_s=0.001, max_observation_age_s=10.0)
    served.activate()
    robot.say("go")
    assert robot.until(lambda: robot.chunks != [], meanwhile=robot.sense)
    robot.spin(0.2)
    frozen, before = robot.now_ns(), len(served.policy.seen)
    robot.now_ns = lambda: frozen
    assert robot.until(lambda: served.drops().get("out_of_order", 0) > 5, meanwhile=robot.sense)
    assert len(served.policy.seen) <= before + 1


def test_the_state_missing_is_named_and_nothing_is_inferred(robot, serve: Serve) -> None:
    served = serve()
    served.activate()
    robot.say("go")
    robot.state = robot.create_publisher(JointState, "elsewhere/state", 1)
    assert robot.until(lambda: says(robot, "waiting for state", b"\x01"), meanwhile=robot.sense)
    assert served.drops()["missing_state"] > 0
    assert (robot.chunks, served.policy.seen) == ([], [])


@pytest.mark.parametrize(
    ("state", "image"),
    [
        ({"position": [float("nan"), 0.5]}, {}),
        ({"name": ["x", "z"]}, {}),
        ({"name": ["x"]}, {}),
        ({}, {"encoding": "yuv422"}),
        ({}, {"height": 9}),
        ({}, {"step": 1}),
    ],
    ids=["nan", "mismatched names", "too few names", "wrong encoding", "wrong size", "step"],
)
def test_a_message_that_cannot_be_used_is_dropped_counted_and_gives_no_chunk(
    robot, serve: Serve, state: dict, image: dict
) -> None:
    served = serve()
    served.activate()
    robot.say("go")

    def sense_badly() -> None:
        stamp = ns_to_stamp(robot.now_ns())
        joints = JointState(**{"name": ["x", "y"], "position": [0.5, 0.5], **state})
        joints.header.stamp = stamp
        robot.state.publish(joints)
        good = {"encoding": "rgb8", "height": 4, "width": 4, "step": 12, "data": bytes(48)}
        for camera in robot.cameras.values():
            pixels = Image(**{**good, **image})
            pixels.header.stamp = stamp
            camera.publish(pixels)

    assert robot.until(lambda: served.drops().get("bad_message", 0) > 2, meanwhile=sense_badly)
    assert (robot.messages, served.policy.seen) == ([], [])
    assert robot.until(lambda: robot.chunks != [], meanwhile=robot.sense), "good ones are used"


def test_errors_of_the_policy_latch_a_fault_with_the_reason(robot, serve: Serve) -> None:
    served = serve(failure_limit=3)
    served.policy = Erring()
    served.activate()
    robot.say("go")
    assert robot.until(lambda: "faulted" in robot.holds, meanwhile=robot.sense)
    assert (robot.chunks, served.drops()["inference_failed"]) == ([], 3)
    assert robot.until(lambda: says(robot, "the prompt is too long", b"\x02"))


def test_an_inference_that_hangs_is_an_error_after_the_limit_of_silence(
    robot, serve: Serve
) -> None:
    served = serve(silence_limit_s=0.5)
    served.policy.gate.clear()
    served.activate()
    robot.say("go")
    assert robot.until(lambda: says(robot, "no new chunk for", b"\x02"), meanwhile=robot.sense)
    assert robot.chunks == []


def test_inferences_longer_than_the_horizon_are_an_error_and_their_chunks_not_sent(
    robot, serve: Serve
) -> None:
    served = serve(warmup_count=0, max_observation_age_s=5.0)
    served.policy = Slow()
    served.activate()
    served.policy.took_s = 0.45
    robot.say("go")
    assert robot.until(lambda: says(robot, "p95", b"\x02"), 30, meanwhile=robot.sense)
    assert robot.chunks == []
    assert served.drops()["expired"] > 0


def test_rows_that_have_passed_while_it_was_inferred_are_not_commanded(
    robot, serve: Serve
) -> None:
    served = serve(publish_command=True, gripper_name="grip", request_period_s=0.001)
    served.policy = Slow()
    served.activate()
    served.policy.took_s = 0.12
    robot.say("go")
    assert robot.until(lambda: len(robot.chunks) >= 5, meanwhile=robot.sense)
    rows = {command.position[0] for command in robot.commands if command.position[1] > 0}
    assert rows
    assert min(rows) >= 2, "0.12 s are two steps and more"


def test_little_memory_is_a_warning_while_it_serves_on(robot, serve: Serve) -> None:
    served = serve(memory_reserve_mb=1_000_000)
    served.activate()
    robot.say("go")
    wanted = "MB of memory are available"
    assert robot.until(lambda: says(robot, wanted, b"\x01"), meanwhile=robot.sense)
    assert robot.until(lambda: len(robot.chunks) >= 2, meanwhile=robot.sense)


def test_when_the_node_is_killed_the_adapter_stops_the_robot_at_the_chunks_end(robot) -> None:
    parameters = {
        "checkpoint": "stand-in", "action_kind": "eef_delta", "rotation": "axis_angle",
        "gripper_name": "gripper",
    }  # fmt: skip
    overrides = [Parameter("dry_run", value=False), Parameter("heartbeat_timeout_s", value=0.0)]
    adapter = AdapterNode(overrides)
    robot.executor_of_all.add_node(adapter)
    twists: list[tuple[int, TwistStamped]] = []
    keep = lambda twist: twists.append((robot.now_ns(), twist))  # noqa: E731
    robot.create_subscription(TwistStamped, "twist", keep, 10)
    try:
        with running("demo.node_evidence.stand_in_node", parameters) as node:
            assert robot.tell("start").success
            robot.say("go")
            moved = lambda: any(twist.twist.linear.x for _, twist in twists)  # noqa: E731
            assert robot.until(moved, meanwhile=robot.sense)
            node.kill()
            robot.spin(0.2)  # what is under way
            told = len(robot.messages)
            robot.spin(1.0)
        assert (len(robot.messages), robot.holds) == (told, []), "the node could not tell of it"
        ends_ns = stamp_to_ns(robot.chunks[-1].valid_until)
        moving = [at_ns for at_ns, twist in twists if twist.twist.linear.x]
        assert twists[-1][1].twist.linear.x == 0
        assert max(moving) < ends_ns + 200 * MS, "the last message may be under way for a moment"
    finally:
        adapter.destroy_node()
