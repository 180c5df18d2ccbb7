"""From a rosbag2 folder to dated samples: images, joint values and sentences, topic by topic.

Everything that depends on ``rosbags`` and on the layout of ROS messages when *reading* stands
here. ``rosbags`` is an optional extra, so it is imported when a bag is opened.
"""

import importlib
import sqlite3
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qvla_ros.errors import CalibrationError, ConfigurationError
from qvla_ros.evaluate.jpeg import decode_jpeg

_NANOSECONDS = 1_000_000_000

# What rosbags raises on damaged files besides its own errors ...
_DAMAGE = (
    AssertionError, EOFError, LookupError, MemoryError, OSError, OverflowError, RuntimeError,
    TypeError, ValueError, sqlite3.Error, struct.error,
)  # fmt: skip
# ... and what the libraries below it raise, which differ from version to version.
_DECODER_ERRORS = (
    ("apsw", "Error"),
    ("backports.zstd", "ZstdError"),
    ("compression.zstd", "ZstdError"),
    ("zstandard", "ZstdError"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One message.

    Attributes:
        stamp_ns: The header's stamp, or the time of recording for messages without a header.
        message: The deserialized ROS message.
    """

    stamp_ns: int
    message: Any


@dataclass(frozen=True, slots=True)
class BagSamples:
    """The wanted topics of a bag.

    Attributes:
        path: The bag's folder, for error messages.
        topics: Topic to its samples, ordered by stamp.
        metadata: The bag's custom data.
    """

    path: Path
    topics: Mapping[str, tuple[Sample, ...]]
    metadata: Mapping[str, str]

    def error(self, topic: str, message: str) -> CalibrationError:
        """An error that names the bag and the topic."""
        return CalibrationError(f"bag {self.path}, topic {topic}: {message}")

    def image(self, topic: str, index: int) -> np.ndarray:
        """Decode one image, ``uint8 [height, width, 3]`` RGB, compressed or raw."""
        message = self.topics[topic][index].message
        kind = message.__msgtype__
        try:
            if kind == "sensor_msgs/msg/CompressedImage":
                return decode_jpeg(message.data.tobytes())
            if kind == "sensor_msgs/msg/Image":
                return _raw_image(message)
        except CalibrationError as error:
            raise self.error(topic, f"image {index} cannot be decoded: {error}") from error
        raise self.error(
            topic, f"holds {kind}, but a camera has to publish CompressedImage or Image"
        )

    def joint_names(self, topic: str) -> tuple[str, ...]:
        """The names of the values of a ``sensor_msgs/JointState`` topic, the same throughout."""
        return tuple(self._joint_state(topic, 0).name)

    def joint_values(self, topic: str) -> np.ndarray:
        """All positions of a ``sensor_msgs/JointState`` topic, ``float32 [samples, values]``."""
        rows = []
        for index in range(len(self.topics[topic])):
            message = self._joint_state(topic, index)
            if tuple(message.name) != self.joint_names(topic):
                raise self.error(
                    topic,
                    f"the names change from {list(self.joint_names(topic))} to "
                    f"{message.name} at message {index}; give each source a topic of its own",
                )
            rows.append(np.asarray(message.position, np.float32))
            if len(rows[-1]) != len(rows[0]) or (
                message.name and len(message.name) != len(rows[0])
            ):
                raise self.error(
                    topic,
                    f"unequal lengths at message {index}: {len(message.name)} names, "
                    f"{len(rows[-1])} positions, and {len(rows[0])} positions at the start",
                )
            if not np.isfinite(rows[-1]).all():
                raise self.error(topic, f"message {index} holds a position that is not finite")
        return np.stack(rows)

    def sentence(self, topic: str, index: int) -> str:
        """The text of a ``std_msgs/String``."""
        message = self.topics[topic][index].message
        if message.__msgtype__ != "std_msgs/msg/String":
            raise self.error(
                topic, f"holds {message.__msgtype__}, but an instruction is a std_msgs/String"
            )
        return str(message.data)

    def _joint_state(self, topic: str, index: int) -> Any:
        message = self.topics[topic][index].message
        if message.__msgtype__ != "sensor_msgs/msg/JointState":
            raise self.error(
                topic, f"holds {message.__msgtype__}, but has to hold sensor_msgs/JointState"
            )
        return message


def read_samples(path: Path, topics: Collection[str]) -> BagSamples:
    """Read the given topics of a rosbag2 folder (MCAP or SQLite).

    Raises:
        CalibrationError: The bag is missing, damaged or empty, or it lacks a topic; the message
            names the bag and the topic.
        ConfigurationError: ``rosbags`` is not installed.
    """
    if not (path / "metadata.yaml").is_file():
        raise CalibrationError(
            f"bag {path} is not a rosbag2 folder: it has no metadata.yaml; name the folder that "
            "ros2 bag record has made, and finish an interrupted recording with ros2 bag reindex"
        )
    with _damage_reported(path):
        samples, metadata = _read_messages(path, topics)
    bag = BagSamples(path, samples, metadata)
    for topic in topics:
        _check_stamps(bag, topic)
    return bag


def _read_messages(
    path: Path, wanted: Collection[str]
) -> tuple[dict[str, tuple[Sample, ...]], dict[str, str]]:
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    found: dict[str, list[Sample]] = {topic: [] for topic in wanted}
    store = get_typestore(Stores.ROS2_HUMBLE)  # for SQLite bags, which do not define their types
    with AnyReader([path], default_typestore=store) as reader:
        _check_topics(path, wanted, {connection.topic for connection in reader.connections})
        connections = [each for each in reader.connections if each.topic in found]
        for connection, recorded_ns, data in reader.messages(connections):
            message = reader.deserialize(data, connection.msgtype)
            found[connection.topic].append(Sample(_stamp_ns(message, recorded_ns), message))
    information = yaml.safe_load((path / "metadata.yaml").read_text())
    custom = information["rosbag2_bagfile_information"].get("custom_data") or {}
    ordered = {
        topic: tuple(sorted(samples, key=lambda sample: sample.stamp_ns))
        for topic, samples in found.items()
    }
    return ordered, {str(key): str(value) for key, value in custom.items()}


def _check_topics(path: Path, wanted: Collection[str], present: Collection[str]) -> None:
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise CalibrationError(
            f"bag {path} has no topic {', '.join(missing)}; it has "
            f"{', '.join(sorted(present)) or 'none at all'}; record the missing ones or name "
            "the topics that stand for them"
        )


def _check_stamps(bag: BagSamples, topic: str) -> None:
    samples = bag.topics[topic]
    if not samples:
        raise bag.error(topic, "the bag is empty: the topic has no messages")
    for before, after in pairwise(samples):
        if after.stamp_ns <= before.stamp_ns:
            raise bag.error(
                topic,
                f"two messages have the stamp {after.stamp_ns} ns; their header stamps must say "
                "when they were sensed",
            )


def _stamp_ns(message: Any, recorded_ns: int) -> int:
    header = getattr(message, "header", None)
    if header is None:
        return recorded_ns
    return header.stamp.sec * _NANOSECONDS + header.stamp.nanosec


def _raw_image(message: Any) -> np.ndarray:
    """A ``sensor_msgs/Image``, whose rows may be padded to ``step`` bytes."""
    if message.encoding not in ("rgb8", "bgr8"):
        raise CalibrationError(
            f"the encoding is {message.encoding!r}; only rgb8 and bgr8 are understood"
        )
    height, width, step = message.height, message.width, message.step
    if step < 3 * width or message.data.size != height * step or not message.data.size:
        raise CalibrationError(
            f"{message.data.size} bytes do not make {height} rows of {step} bytes "
            f"for {width} pixels"
        )
    pixels = message.data.reshape(height, step)[:, : 3 * width].reshape(height, width, 3)
    return np.ascontiguousarray(pixels[:, :, ::-1] if message.encoding == "bgr8" else pixels)


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Turn what a damaged bag makes ``rosbags`` raise into one error that names the bag."""
    try:
        from rosbags.highlevel import AnyReaderError
        from rosbags.rosbag2 import ReaderError
        from rosbags.serde import SerdeError
        from rosbags.typesys import TypesysError
    except ImportError as error:
        raise ConfigurationError(
            f"bags cannot be read ({error}); install the reader with pip install 'qvla_ros[bag]'"
        ) from error
    own = (AnyReaderError, ReaderError, SerdeError, TypesysError)
    damage: tuple[type[Exception], ...] = (*own, *_DAMAGE, *_decoder_errors())
    try:
        yield
    except damage as error:
        raise CalibrationError(
            f"bag {path} is damaged or not supported ({type(error).__name__}: {error}); "
            "copy or record it again"
        ) from error


def _decoder_errors() -> tuple[type[Exception], ...]:
    found = []
    for module, name in _DECODER_ERRORS:
        try:
            found.append(getattr(importlib.import_module(module), name))
        except ImportError:
            continue  # this version of rosbags does without it
    return tuple(found)
