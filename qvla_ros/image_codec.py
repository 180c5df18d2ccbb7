"""The one image codec of node, bags and simulator, so that all see the same pixels; no ROS."""

import cv2
import numpy as np

from qvla_ros.errors import ConfigurationError

JPEG_QUALITY = 95

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"

_FLIPS: dict[str, int | None] = {"as_is": None, "rotate_180": -1, "mirror": 1, "flip": 0}
"""How an image is turned, to OpenCV's code: mirror swaps left and right, flip top and bottom."""

ORIENTATIONS = tuple(_FLIPS)

# Encoding to its channels, and how OpenCV turns them into RGB; None: they are RGB.
_ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


def turned(image: np.ndarray, orientation: str) -> np.ndarray:
    """The image as the model was trained on it, where the camera gives it otherwise.

    Args:
        image: ``uint8 [height, width, 3]``.
        orientation: One of ``ORIENTATIONS``.
    """
    code = _FLIPS[orientation]
    return image if code is None else cv2.flip(image, code)


def encode_jpeg(image: np.ndarray) -> bytes:
    """Compress ``uint8 [height, width, 3]`` RGB at the quality of a robot's camera driver."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not encoded:
        raise ValueError(f"OpenCV could not encode an image of shape {list(image.shape)}")
    return data.tobytes()


def through_jpeg(image: np.ndarray) -> np.ndarray:
    """The pixels that a subscriber would see: compressed and decompressed once."""
    return decode_compressed(encode_jpeg(image))


def decode_compressed(data: bytes | np.ndarray) -> np.ndarray:
    """Decompress a JPEG or PNG file to ``uint8 [height, width, 3]`` RGB.

    Args:
        data: The file, as bytes or as ``uint8 [size]``.

    Raises:
        ValueError: The bytes are no image, or a truncated one.
    """
    buffer = np.frombuffer(data, np.uint8)
    if buffer.size == 0:
        raise ValueError("the compressed image is empty")
    if buffer[:2].tobytes() == _JPEG_START and not _ends_like_a_jpeg(buffer):
        # OpenCV would fill what is missing with grey.
        raise ValueError(f"the JPEG of {buffer.size} bytes is truncated")
    # A camera's stream has no orientation of its own; a stray EXIF tag must not turn it.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(buffer, flags)
    except cv2.error as error:
        raise ValueError(f"the compressed image cannot be decoded: {error}") from error
    if pixels is None:
        raise ValueError(f"{buffer.size} bytes cannot be decoded as a JPEG or PNG image")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _ends_like_a_jpeg(buffer: np.ndarray) -> bool:
    # Some drivers send their whole buffer, with zeros after the end of the file.
    return buffer.tobytes().rstrip(b"\0").endswith(_JPEG_END)


def decode_raw(
    data: bytes | np.ndarray, encoding: str, height: int, width: int, step: int
) -> np.ndarray:
    """Pixels whose rows may be padded, as ``uint8 [height, width, 3]`` RGB.

    The answer may share its memory with ``data``.

    Args:
        data: ``height * step`` bytes.
        encoding: One of ROS's names, e.g. ``"bgr8"``.
        height: Pixels from top to bottom.
        width: Pixels in a row.
        step: Bytes from one row to the next.

    Raises:
        ConfigurationError: The encoding is not supported.
        ValueError: The sizes contradict each other.
    """
    if encoding not in _ENCODINGS:
        raise ConfigurationError(
            f"image encoding {encoding!r} is not supported: publish one of {', '.join(_ENCODINGS)}"
        )
    channels, conversion = _ENCODINGS[encoding]
    if height == 0 or width == 0:
        raise ValueError(f"the image is empty: {width} x {height}")
    if step < width * channels:
        raise ValueError(
            f"step {step} is too small for {width} pixels of {encoding} ({width * channels} bytes)"
        )
    buffer = np.frombuffer(data, np.uint8)
    if buffer.size != step * height:
        raise ValueError(f"the image has {buffer.size} bytes, not step * height = {step * height}")
    rows = np.ascontiguousarray(buffer.reshape(height, step)[:, : width * channels])
    pixels = rows.reshape(height, width, channels)
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)
