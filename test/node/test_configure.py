"""What the node checks before it may serve, and what it takes in."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_policy import FakePolicy
from geometry_msgs.msg import PoseStamped
from node.served_node import FAILURE, SUCCESS, Served
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, JointState

from qvla_ros.image_codec import encode_jpeg
from qvla_ros.node.conversions import ns_to_stamp
from qvla_ros.node.main import load_configured

Serve = Callable[..., Served]


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


def limits_file(folder: Path, upper: float) -> str:
    entry = "{lower: -1000.0, upper: %s, max_step: 1000.0}"
    lines = [
        f"  row: {entry % 1000.0}",
        f"  state: {entry % upper}",
        f"  grip: {entry % 1000.0}",
    ]
    path = folder / "limits.yaml"
    path.write_text("limits:\n" + "\n".join(lines) + "\n")
    return str(path)


def test_a_checkpoint_too_big_for_the_memory_is_refused_before_it_is_loaded(
    robot, serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "big.qvla.safetensors"
    with path.open("wb") as file:
        file.truncate(4 * 10**12)  # sparse
    served = serve(checkpoint=str(path))
    served.loading_error = AssertionError("it must not be loaded")
    assert served.node.trigger_configure() == FAILURE
    assert "MB are available" in served.node._trouble
    assert robot.until(lambda: any("MB are available" in text for text in robot.status_texts))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(serve: Serve, packed_checkpoint: Path) -> None:
    served = serve(checkpoint=str(packed_checkpoint), device="cuda")
    served.node._load = load_configured
    assert served.node.trigger_configure() == FAILURE
    assert "device 'cuda'" in served.node._trouble
    served.node.set_parameters([Parameter("device", value="cpu")])
    assert served.node.trigger_configure() == SUCCESS


def test_a_wrong_answer_to_the_golden_input_is_refused(serve: Serve) -> None:
    served = serve()
    served.policy.golden_actions = np.zeros((8, 3), np.float32)
    assert served.node.trigger_configure() == FAILURE
    assert "self-test failed: the answer to the golden input differs" in served.node._trouble
    served.policy.golden_actions = None
    assert served.node.trigger_configure() == SUCCESS


def test_a_chunk_beyond_its_limits_is_refused_as_a_whole_and_latches_a_fault(
    robot, serve: Serve, tmp_path: Path
) -> None:
    served = serve(limits_file=limits_file(tmp_path, upper=0.2), failure_limit=3)
    served.activate()
    robot.say("go")
    assert robot.until(lambda: "faulted" in robot.holds, meanwhile=robot.sense)
    assert (robot.chunks, served.drops()["out_of_limits"]) == ([], 3)
    assert "state is 0.25, its limits are -1000 to 0.2" in served.node._session.loop.fault_reason


def test_where_it_may_clamp_the_chunk_tells_how_many_values(
    robot, serve: Serve, tmp_path: Path
) -> None:
    limits = limits_file(tmp_path, upper=0.2)
    serve(limits_file=limits, out_of_limits="clamp").activate()
    robot.say("go")
    assert robot.until(lambda: robot.chunks != [], meanwhile=robot.sense)
    assert list(robot.chunks[0].data[1::3]) == pytest.approx([0.2] * 8)
    assert robot.chunks[0].clipped_count == 8


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"chunk_strategy": "ensemble", "rotation": "quaternion_xyzw"}, "would average rotations"),
        (
            {"chunk_strategy": "blend", "rotation": "axis_angle", "absolute": True},
            "would average rotations",
        ),
        ({"image_transports": ["raw", "raw", "raw"]}, "3 entries"),
        ({"image_orientations": ["flip", "flip", "flip"]}, "3 entries"),
        ({"state_names": ["pose.x", "pose.z"], "pose_source": "tf"}, "tf2_ros is not installed"),
    ],
)
def test_what_contradicts_itself_is_refused(
    serve: Serve, parameters: dict, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tf2_ros", None)
    served = serve(**parameters)
    assert served.node.trigger_configure() == FAILURE
    assert reason in served.node._trouble


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"state_names": ["pose.x", "pose.z"], "pose_source": "tf"}, "tf2_ros is not installed"),
        ({"qos_overrides./instruction.subscription.reliability": "perhaps"}, "perhaps"),
        ({"qos_overrides./instruction.subscription.depth": "one"}, "depth"),
    ],
    ids=["no tf", "no such reliability", "wrong type"],
)
def test_a_configure_that_fails_at_an_input_keeps_nothing_of_the_policy(
    robot, serve: Serve, parameters: dict, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscriptions made before kept it, so that each new try needed its memory once more."""
    monkeypatch.setitem(__import__("sys").modules, "tf2_ros", None)
    served = serve(**parameters)
    before = len(list(served.node.subscriptions))
    served.policy = FakePolicy()
    policy = weakref.ref(served.policy)
    assert served.node.trigger_configure() == FAILURE
    assert reason in served.node._trouble
    assert len(list(served.node.subscriptions)) == before
    served.policy = FakePolicy()
    robot.spin(0.1)  # the executor has seen that they are gone
    gc.collect()
    assert policy() is None


def test_an_override_of_one_topics_qos_leaves_the_others_alone(serve: Serve) -> None:
    name = "qos_overrides./camera/primary/image_raw.subscription.reliability"
    served = serve(**{name: "reliable"})
    assert served.node.trigger_configure() == SUCCESS
    chosen = {one.topic_name: one.qos_profile.reliability for one in served.node.subscriptions}
    assert chosen["/camera/primary/image_raw"] == ReliabilityPolicy.RELIABLE
    assert chosen["/camera/wrist/image_raw"] == ReliabilityPolicy.BEST_EFFORT
    assert chosen["/robot/state"] == ReliabilityPolicy.BEST_EFFORT
    assert qos_profile_sensor_data.reliability == ReliabilityPolicy.BEST_EFFORT


def test_cameras_may_come_raw_and_compressed_beside_each_other(robot, serve: Serve) -> None:
    serve(image_transports=["raw", "compressed"]).activate()
    robot.say("go")
    del robot.cameras["wrist"]
    wrist = robot.create_publisher(
        CompressedImage, "camera/wrist/image_raw/compressed", qos_profile_sensor_data
    )
    jpeg = encode_jpeg(np.full((16, 16, 3), 50, np.uint8))

    def sense() -> None:
        image = CompressedImage(format="jpeg", data=jpeg)
        image.header.stamp = ns_to_stamp(robot.now_ns())
        wrist.publish(image)
        robot.sense()

    assert robot.until(lambda: robot.chunks != [], meanwhile=sense)


def test_images_are_turned_for_the_model_camera_by_camera(robot, serve: Serve) -> None:
    served = serve(image_orientations=["as_is", "rotate_180"])
    served.activate()
    robot.say("go")
    image = Image(encoding="mono8", height=1, width=2, step=2, data=bytes([0, 200]))
    state = JointState(name=["x", "y"], position=[0.0, 0.0])

    def sense() -> None:
        state.header.stamp = image.header.stamp = ns_to_stamp(robot.now_ns())
        robot.state.publish(state)
        for camera in robot.cameras.values():
            camera.publish(image)

    assert robot.until(lambda: served.policy.seen != [], meanwhile=sense)
    seen = served.policy.seen[0].images
    assert seen["primary"][0, :, 0].tolist() == [0, 200]
    assert seen["wrist"][0, :, 0].tolist() == [200, 0]


def test_proprioception_may_come_from_a_pose_and_from_joints(robot, serve: Serve) -> None:
    served = serve(state_names=["pose.rz", "x"])
    served.activate()
    robot.say("go")
    poses = robot.create_publisher(PoseStamped, "robot/pose", qos_profile_sensor_data)

    def sense() -> None:
        pose = PoseStamped()
        pose.header.stamp = ns_to_stamp(robot.now_ns())
        pose.pose.orientation.z = pose.pose.orientation.w = 0.5**0.5
        poses.publish(pose)
        robot.sense()

    assert robot.until(lambda: served.policy.seen != [], meanwhile=sense)
    assert served.policy.seen[0].state.tolist() == pytest.approx([np.pi / 2, 0.25])


def test_a_blend_is_what_is_sent(robot, serve: Serve) -> None:
    served = serve(chunk_strategy="blend", blend_s=5.0, gripper_name="grip")
    served.activate()
    robot.say("go")
    assert robot.until(lambda: len(robot.chunks) >= 2, meanwhile=robot.sense)
    rows = list(robot.chunks[1].data[0::3])
    assert rows != list(range(8)), "still near the first chunk"
    assert rows[2] > 2
    assert list(robot.chunks[1].data[2::3]) == [100.0] * 8, "the gripper is not blended"
