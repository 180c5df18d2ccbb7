"""The one JPEG codec of demonstrations, bags and closed loop, so that all see the same pixels."""

import cv2
import numpy as np

from qvla_ros.errors import CalibrationError

JPEG_QUALITY = 95

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"


def encode_jpeg(image: np.ndarray) -> bytes:
    """Compress ``uint8 [height, width, 3]`` RGB at the quality of a robot's camera driver."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not encoded:
        raise ValueError(f"OpenCV could not encode an image of shape {list(image.shape)}")
    return data.tobytes()


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decompress to ``uint8 [height, width, 3]`` RGB.

    PNG data, which some camera drivers publish under the same message, is understood as well.

    Raises:
        CalibrationError: The bytes are no image, or a truncated one.
    """
    if data.startswith(_JPEG_START) and not data.rstrip(b"\0").endswith(_JPEG_END):
        raise CalibrationError(  # OpenCV would fill the rest with grey
            f"the JPEG of {len(data)} bytes is truncated; record the camera again"
        )
    buffer = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if buffer.size else None
    if image is None:
        raise CalibrationError(
            f"{buffer.size} bytes are neither a JPEG nor a PNG image; record the camera again"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def through_jpeg(image: np.ndarray) -> np.ndarray:
    """The pixels that a subscriber would see: compressed and decompressed once."""
    return decode_jpeg(encode_jpeg(image))
