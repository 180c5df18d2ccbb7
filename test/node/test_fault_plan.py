"""Injected faults: each is what it says, and is counted."""

import itertools
import math
from dataclasses import fields
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from qvla_ros.errors import ConfigurationError
from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.fault_injector import FaultInjector
from qvla_ros.node.fault_parameters import FaultParameters
from qvla_ros.node.fault_plan import FaultPlan
from qvla_ros.sensor_messages import image_to_rgb, positions_by_name, stamp_to_ns

MS = 1_000_000
STATE = JointState(name=["x", "y"], position=[1.0, 2.0])
STATE.header.stamp = ns_to_stamp(10_000 * MS)
IMAGE = Image(encoding="rgb8", height=2, width=2, step=6, data=bytes(12))


def sent(plan: FaultPlan, at_ms: int) -> list[Any]:
    return [message for _, message in plan.due(at_ms * MS)]


def after(parameters: FaultParameters, message: Any = STATE) -> tuple[FaultPlan, list[Any]]:
    plan = FaultPlan(parameters)
    plan.take("t", message, 0)
    return plan, sent(plan, 0)


def test_without_faults_every_message_passes_at_once_and_unchanged():
    plan, out = after(FaultParameters())
    assert out == [STATE]
    assert not plan.counts


def test_dropped_and_duplicated_messages_are_counted():
    plan, out = after(FaultParameters(drop=1.0))
    assert (out, plan.counts) == ([], {"drop": 1})
    plan, out = after(FaultParameters(duplicate=1.0))
    assert (out, plan.counts) == ([STATE, STATE], {"duplicate": 1})


def test_a_delayed_message_comes_late():
    plan, out = after(FaultParameters(delay=1.0, delay_s=0.3))
    assert (out, sent(plan, 299), sent(plan, 300)) == ([], [], [STATE])


def test_jitter_spreads_the_messages_over_its_span():
    plan = FaultPlan(FaultParameters(jitter_s=0.1))
    for _ in range(200):
        plan.take("t", STATE, 0)
    early, late = len(sent(plan, 50)), len(sent(plan, 100))
    assert early + late == 200
    assert 60 < early < 140


def test_a_reordered_message_comes_after_its_successor():
    plan = FaultPlan(FaultParameters(reorder=1.0))
    plan.take("t", "first", 0)
    assert sent(plan, 0) == []
    plan.take("t", "second", 0)
    assert sent(plan, 0) == ["second", "first"]


def test_in_a_pause_nothing_comes():
    plan = FaultPlan(FaultParameters(pause_every_s=1.0, pause_s=0.2))
    for at in range(0, 3000, 100):
        plan.take("t", STATE, at * MS)
    assert len(sent(plan, 3000)) == 24
    assert plan.counts == {"pause": 6}


@pytest.mark.parametrize("fault", ["bad_encoding", "bad_size", "not_finite"])
def test_a_spoilt_state_cannot_be_used_and_the_original_is_left_alone(fault):
    plan, (bad,) = after(FaultParameters(**{fault: 1.0}))
    assert plan.counts == {fault: 1}
    with pytest.raises((ConfigurationError, ValueError)):
        positions_by_name(bad, ["x", "y"])
    assert positions_by_name(STATE, ["x", "y"]).tolist() == [1, 2]


@pytest.mark.parametrize("fault", ["bad_encoding", "bad_size"])
@pytest.mark.parametrize("message", [IMAGE, CompressedImage(format="jpeg", data=b"\xff\xd8" * 9)])
def test_a_spoilt_image_cannot_be_decoded(fault, message):
    _, (bad,) = after(FaultParameters(**{fault: 1.0}), message)
    with pytest.raises((ConfigurationError, ValueError)):
        image_to_rgb(bad)
    assert image_to_rgb(IMAGE).shape == (2, 2, 3)


def is_finite(message: PoseStamped) -> bool:
    place, turn = message.pose.position, message.pose.orientation
    return all(map(math.isfinite, (place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w)))


@pytest.mark.parametrize("seed", range(8))
def test_a_spoilt_pose_is_not_finite_and_the_original_is_left_alone(seed):
    """It was passed on unspoilt, and other faults ended the injector."""
    pose = PoseStamped()
    pose.pose.orientation.w = 1.0
    plan, (bad,) = after(FaultParameters(seed=seed, not_finite=1.0), pose)
    assert plan.counts == {"not_finite": 1}
    assert (is_finite(bad), is_finite(pose)) == (False, True)


@pytest.mark.parametrize("fault", ["bad_encoding", "bad_size", "not_finite"])
@pytest.mark.parametrize(
    "message",
    [JointState(), JointState(name=["x"], velocity=[1.0]), String(data="go"), DiagnosticStatus()],
    ids=["no joints", "no positions", "instruction", "a name that is no list"],
)
def test_what_cannot_have_a_fault_passes_unspoilt_and_uncounted(fault, message):
    plan, (out,) = after(FaultParameters(**{fault: 1.0}), message)
    assert (out, plan.counts) == (message, {})


@pytest.mark.parametrize("fault", ["bad_encoding", "bad_size"])
def test_a_pose_has_neither_an_encoding_nor_a_size(fault):
    plan, (out,) = after(FaultParameters(**{fault: 1.0}), PoseStamped())
    assert (out, plan.counts) == (PoseStamped(), {})


def test_what_has_no_stamp_cannot_jump():
    plan, (out,) = after(FaultParameters(stamp_jump=1.0), String(data="go"))
    assert (out.data, plan.counts) == ("go", {})


def test_a_stamp_jumps_before_or_after():
    plan = FaultPlan(FaultParameters(stamp_jump=1.0, stamp_jump_s=5.0))
    for _ in range(20):
        plan.take("t", STATE, 0)
    stamps = {stamp_to_ns(message.header.stamp) // MS for message in sent(plan, 0)}
    assert stamps == {5_000, 15_000}
    assert stamp_to_ns(STATE.header.stamp) == 10_000 * MS


def test_the_clock_itself_stays_wrong_until_the_next_jump():
    plan = FaultPlan(FaultParameters(stamp_jump=0.2, stamp_jump_s=5.0))
    for second in range(100, 200):
        plan.take("clock", Clock(clock=ns_to_stamp(second * 1000 * MS)), 0)
    read = [stamp_to_ns(message.clock) // (1000 * MS) for message in sent(plan, 0)]
    wrong = [before - now for before, now in zip(range(100, 200), read, strict=True)]
    assert set(wrong) == {0, 5}
    changes = sum(a != b for a, b in itertools.pairwise(wrong)) + (wrong[0] != 0)
    assert changes == plan.counts["stamp_jump"]


def test_the_same_seed_gives_the_same_faults():
    def run(seed: int) -> list[bool]:
        plan = FaultPlan(FaultParameters(seed=seed, drop=0.5, not_finite=0.3))
        for _ in range(50):
            plan.take("t", STATE, 0)
        return [math.isfinite(sum(message.position)) for message in sent(plan, 0)]

    assert run(1) == run(1) != run(2)


def test_a_share_beyond_one_is_refused():
    with pytest.raises(ConfigurationError, match="drop is 2"):
        FaultParameters(drop=2.0)
    assert all(entry.metadata["description"].endswith(".") for entry in fields(FaultParameters))


def test_the_node_passes_messages_on_spoilt_and_tells_the_counts(robot):
    topics = ["robot/state:sensor_msgs/msg/JointState"]
    overrides = [Parameter("topics", value=topics), Parameter("not_finite", value=1.0)]
    node = FaultInjector(overrides)
    robot.executor_of_all.add_node(node)
    got: list[JointState] = []
    robot.create_subscription(JointState, "faulty/robot/state", got.append, 10)
    try:
        assert robot.until(lambda: len(got) >= 3, meanwhile=robot.sense)
        assert not math.isfinite(sum(got[0].position))
        assert robot.until(lambda: any("faults injected" in t for t in robot.status_texts))
    finally:
        node.destroy_node()


def test_an_unknown_type_of_message_is_refused(robot):
    with pytest.raises(ConfigurationError, match="'x/msg/Y' is no known message"):
        FaultInjector([Parameter("topics", value=["a:x/msg/Y"])])
