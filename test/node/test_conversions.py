"""Messages to arrays and back, and every way in which a message can be bad."""

import math

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image, JointState

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk as ActionChunkMessage
from qvla_ros.node.conversions import (
    Asked,
    Delivery,
    PolicyCard,
    chunk_message,
    hold_message,
    image_to_rgb,
    ns_to_stamp,
    stamp_to_ns,
    state_from_message,
)
from qvla_ros.node.parameters import NodeParameters

RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
ALPHA = np.full((2, 3, 1), 255, np.uint8)
BGR = RGB[:, :, ::-1]
PIXELS = {
    "rgb8": RGB,
    "bgr8": BGR,
    "rgba8": np.concatenate([RGB, ALPHA], axis=2),
    "bgra8": np.concatenate([BGR, ALPHA], axis=2),
}


def raw_image(encoding: str, pixels: np.ndarray, padding: int = 0) -> Image:
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    return Image(
        encoding=encoding, height=height, width=width, step=rows.shape[1], data=rows.tobytes()
    )


@pytest.mark.parametrize("encoding", PIXELS)
@pytest.mark.parametrize("padding", [0, 5])
def test_a_raw_image_becomes_rgb(encoding: str, padding: int) -> None:
    image = image_to_rgb(raw_image(encoding, PIXELS[encoding], padding))
    assert image.dtype == np.uint8
    assert np.array_equal(image, RGB)


def test_a_grey_image_gives_three_equal_channels() -> None:
    image = image_to_rgb(raw_image("mono8", RGB[:, :, :1], padding=1))
    assert np.array_equal(image, np.repeat(RGB[:, :, :1], 3, axis=2))


def test_an_unknown_encoding_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'16UC1' is not supported.*rgb8"):
        image_to_rgb(raw_image("16UC1", RGB))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": 8}, "step 8 is too small"),
        ({"height": 3}, "18 bytes, not step"),
        ({"height": 0}, "empty"),
        ({"width": 0}, "empty"),
    ],
)
def test_an_image_that_contradicts_itself_is_refused(change: dict, reason: str) -> None:
    message = raw_image("rgb8", RGB)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ValueError, match=reason):
        image_to_rgb(message)


def test_a_compressed_image_becomes_rgb() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, :, 0] = 200
    data = cv2.imencode(".png", red[:, :, ::-1])[1].tobytes()
    assert np.array_equal(image_to_rgb(CompressedImage(format="png", data=data)), red)


def test_the_format_of_image_transport_is_understood() -> None:
    data = cv2.imencode(".jpg", np.full((16, 16, 3), 90, np.uint8))[1].tobytes()
    message = CompressedImage(format="rgb8; jpeg compressed bgr8", data=data)
    assert image_to_rgb(message).shape == (16, 16, 3)


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"compressed image|cannot be decoded"):
        image_to_rgb(CompressedImage(format="jpeg", data=data))


def test_a_compressed_depth_image_is_refused_by_its_format() -> None:
    with pytest.raises(ConfigurationError, match="depth image"):
        image_to_rgb(CompressedImage(format="16UC1; compressedDepth", data=b"1234"))


def test_the_state_is_picked_by_name() -> None:
    message = JointState(name=["a", "b", "c"], position=[1.0, 2.0, 3.0])
    state = state_from_message(message, ["c", "a"])
    assert state.dtype == np.float32
    assert state.tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("message", "error", "reason"),
    [
        (JointState(name=["a"], position=[1.0]), ConfigurationError, "lacks b; it has a"),
        (JointState(name=["a", "b"], position=[1.0]), ValueError, "2 names but 1 positions"),
        (JointState(name=["a", "b"], position=[1.0, math.nan]), ValueError, "not finite"),
        (JointState(name=["a", "b"], position=[1.0, math.inf]), ValueError, "not finite"),
    ],
)
def test_a_bad_state_is_refused(message: JointState, error: type, reason: str) -> None:
    with pytest.raises(error, match=reason):
        state_from_message(message, ["a", "b"])


def test_stamps_survive_both_ways() -> None:
    for nanoseconds in (0, 999_999_999, 1_000_000_000, 1_700_000_000_123_456_789):
        assert stamp_to_ns(ns_to_stamp(nanoseconds)) == nanoseconds


PARAMETERS = NodeParameters(
    action_kind="eef_delta", rotation="axis_angle", frame_id="base", gripper_name="grip"
)
CARD = PolicyCard("openvla-oft", "ab" * 32, "4.00 bits/weight", ("dx", "grip"), PARAMETERS)
ASKED = Asked("pick", 7_000_000_005, 9_000_000_001, 3)
DELIVERY = Delivery(4, 10_100_000_000, 10_200_000_000, 0.5, {"model": 12.5})


def test_a_chunk_tells_everything_that_is_needed_to_follow_it() -> None:
    actions = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    message = chunk_message(
        ActionChunk(10_000_000_002, 50_000_000, actions), CARD, ASKED, DELIVERY
    )
    assert (message.horizon, message.dim) == (3, 2)
    assert list(message.data) == [1, 2, 3, 4, 5, 6]
    assert stamp_to_ns(message.header.stamp) == 10_000_000_002
    assert message.header.frame_id == "base"
    assert stamp_to_ns(message.step_dt) == 50_000_000
    assert stamp_to_ns(message.valid_until) == 10_200_000_000
    assert stamp_to_ns(message.publish_stamp) == 10_100_000_000
    assert stamp_to_ns(message.proprio_stamp) == 9_000_000_001
    assert stamp_to_ns(message.instruction_stamp) == 7_000_000_005
    assert (message.instruction, message.episode_id, message.seq) == ("pick", 3, 4)
    assert message.schema_version == ActionChunkMessage.SCHEMA_VERSION
    assert message.action_kind == ActionChunkMessage.ACTION_EEF_DELTA
    assert message.rotation == ActionChunkMessage.ROTATION_AXIS_ANGLE
    assert (message.names, message.gripper_index) == (["dx", "grip"], 1)
    assert (message.checkpoint_sha256, message.quant_tag) == ("ab" * 32, "4.00 bits/weight")
    assert (message.stage_names, list(message.stage_ms)) == (["model"], [12.5])
    assert (message.first_step_jump, message.hold_reason) == (0.5, "")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_chunk_that_is_not_finite_has_no_message(value: float) -> None:
    chunk = ActionChunk(0, 1, np.array([[0, value]], np.float32))
    with pytest.raises(ValueError, match="not finite"):
        chunk_message(chunk, CARD, ASKED, DELIVERY)


def test_a_hold_has_no_rows_and_tells_why() -> None:
    message = hold_message("deactivated", CARD, ASKED, DELIVERY)
    assert (message.horizon, len(message.data), message.hold_reason) == (0, 0, "deactivated")


def test_a_gripper_that_is_no_column_is_refused() -> None:
    card = PolicyCard("m", "", "", ("dx", "dy"), PARAMETERS)
    with pytest.raises(ConfigurationError, match=r"'grip'.*dx, dy"):
        _ = card.gripper_index
