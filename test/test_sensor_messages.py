"""Messages to arrays, and every way in which a message can be bad."""

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from qvla_ros.errors import ConfigurationError
from qvla_ros.image_codec import ORIENTATIONS, decode_compressed, encode_jpeg, turned
from qvla_ros.sensor_messages import image_to_rgb, positions_by_name, stamp_to_ns

RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
ALPHA = np.full((2, 3, 1), 255, np.uint8)
BGR = RGB[:, :, ::-1]
PIXELS = {
    "rgb8": RGB,
    "bgr8": BGR,
    "rgba8": np.concatenate([RGB, ALPHA], axis=2),
    "bgra8": np.concatenate([BGR, ALPHA], axis=2),
}


def raw_image(encoding: str, pixels: np.ndarray, padding: int = 0) -> SimpleNamespace:
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=7)
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=rows.shape[1], data=rows.tobytes()
    )


def compressed(data: bytes, kind: str = "jpeg") -> SimpleNamespace:
    return SimpleNamespace(format=kind, data=data)


def joints(names: list[str], positions: list[float]) -> SimpleNamespace:
    return SimpleNamespace(name=names, position=positions)


@pytest.mark.parametrize("encoding", PIXELS)
@pytest.mark.parametrize("padding", [0, 5])
def test_a_raw_image_becomes_rgb(encoding: str, padding: int) -> None:
    image = image_to_rgb(raw_image(encoding, PIXELS[encoding], padding))
    assert image.dtype == np.uint8
    assert np.array_equal(image, RGB)


def test_a_grey_image_gives_three_equal_channels() -> None:
    image = image_to_rgb(raw_image("mono8", RGB[:, :, :1], padding=1))
    assert np.array_equal(image, np.repeat(RGB[:, :, :1], 3, axis=2))


def test_the_data_of_a_raw_image_may_be_an_array() -> None:
    message = raw_image("bgr8", BGR)
    message.data = np.frombuffer(message.data, np.uint8)
    assert np.array_equal(image_to_rgb(message), RGB)


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
    assert np.array_equal(image_to_rgb(compressed(data, "png")), red)


def test_the_format_of_image_transport_is_understood() -> None:
    data = encode_jpeg(np.full((16, 16, 3), 90, np.uint8))
    assert image_to_rgb(compressed(data, "rgb8; jpeg compressed bgr8")).shape == (16, 16, 3)


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"compressed image|cannot be decoded"):
        image_to_rgb(compressed(data))


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_a_truncated_image_is_refused_instead_of_filled_with_grey(ending: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    whole = cv2.imencode(ending, pixels)[1].tobytes()
    assert decode_compressed(whole + b"\0\0").shape == (32, 32, 3)
    for kept in (0.1, 0.5, 0.9):
        with pytest.raises(ValueError, match=r"truncated|cannot be decoded"):
            decode_compressed(whole[: int(len(whole) * kept)])


def test_a_compressed_depth_image_is_refused_by_its_format() -> None:
    with pytest.raises(ConfigurationError, match="depth image"):
        image_to_rgb(compressed(b"1234", "16UC1; compressedDepth"))


def test_positions_are_picked_by_name_in_the_order_that_is_asked_for() -> None:
    picked = positions_by_name(joints(["a", "b", "c"], [1.0, 2.0, 3.0]), ["c", "a"])
    assert picked.dtype == np.float32
    assert picked.tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("message", "error", "reason"),
    [
        (joints(["a"], [1.0]), ConfigurationError, "lacks b; it has a"),
        (joints([], []), ConfigurationError, "lacks a, b; it has no names"),
        (joints(["a", "b"], [1.0]), ValueError, "2 names but 1 positions"),
        (joints(["a", "b"], [1.0, math.nan]), ValueError, "not finite"),
        (joints(["a", "b"], [1.0, math.inf]), ValueError, "not finite"),
    ],
)
def test_bad_joints_are_refused(message: SimpleNamespace, error: type, reason: str) -> None:
    with pytest.raises(error, match=reason):
        positions_by_name(message, ["a", "b"])


def test_a_stamp_is_nanoseconds() -> None:
    assert stamp_to_ns(SimpleNamespace(sec=1_700_000_000, nanosec=5)) == 1_700_000_000_000_000_005


def test_an_image_is_turned_in_each_of_four_ways():
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    expected = {
        "as_is": image,
        "rotate_180": image[::-1, ::-1],
        "mirror": image[:, ::-1],
        "flip": image[::-1],
    }
    assert set(ORIENTATIONS) == set(expected)
    for orientation, pixels in expected.items():
        assert np.array_equal(turned(image, orientation), pixels), orientation
