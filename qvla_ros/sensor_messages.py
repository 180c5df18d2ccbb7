"""What sensors' messages say, as arrays: the same for rclpy's messages and those read from bags.

The functions take any object with the fields of the ROS message that they name.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.image_codec import decode_compressed, decode_raw

SECOND_NS = 1_000_000_000


def stamp_to_ns(stamp: Any) -> int:
    """Nanoseconds of a ``builtin_interfaces/Time``."""
    return stamp.sec * SECOND_NS + stamp.nanosec


def image_to_rgb(message: Any) -> np.ndarray:
    """The pixels of a camera's message as ``uint8 [height, width, 3]`` RGB, no cv_bridge.

    Args:
        message: A ``sensor_msgs/Image`` or ``sensor_msgs/CompressedImage``.

    Raises:
        ConfigurationError: The encoding is not supported.
        ValueError: The message contradicts itself or cannot be decoded.
    """
    if hasattr(message, "encoding"):
        return decode_raw(
            message.data, message.encoding, message.height, message.width, message.step
        )
    if "compressedDepth" in message.format:
        raise ConfigurationError(
            f"image format {message.format!r} is a depth image: subscribe to the color camera"
        )
    return decode_compressed(message.data)


def positions_by_name(message: Any, names: Sequence[str]) -> np.ndarray:
    """The named positions of a ``sensor_msgs/JointState``, ``float32 [len(names)]``.

    Args:
        message: May hold more than is asked for, in any order.
        names: What to pick, in the order of the answer.

    Raises:
        ConfigurationError: A name is missing.
        ValueError: The message contradicts itself, or a value is not finite.
    """
    if len(message.name) != len(message.position):
        raise ValueError(f"{len(message.name)} names but {len(message.position)} positions")
    places = {name: place for place, name in enumerate(message.name)}
    missing = [name for name in names if name not in places]
    if missing:
        raise ConfigurationError(
            f"it lacks {', '.join(missing)}; it has {', '.join(message.name) or 'no names'}"
        )
    values = np.asarray([message.position[places[name]] for name in names], dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds a value that is not finite")
    return values
