"""From a rosbag2 folder to its messages, in the order of recording, without ROS.

Everything that depends on ``rosbags`` when *reading* stands here. It is an optional extra, so it is
imported when a bag is opened.
"""

import importlib
import sqlite3
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qvla_ros.errors import CalibrationError, ConfigurationError
from qvla_ros.sensor_messages import stamp_to_ns

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
class BagMessage:
    """One message.

    Attributes:
        topic: Where it was sent.
        recorded_ns: When it was recorded, nanoseconds.
        stamp_ns: The header's stamp, or the time of recording for messages without a header.
        message: The deserialized ROS message.
    """

    topic: str
    recorded_ns: int
    stamp_ns: int
    message: Any


@dataclass(frozen=True, slots=True)
class BagContent:
    """The wanted topics of a bag.

    Attributes:
        path: The bag's folder, for error messages.
        messages: In the order of recording.
        metadata: The bag's custom data.
    """

    path: Path
    messages: tuple[BagMessage, ...]
    metadata: Mapping[str, str]

    def of(self, topic: str) -> list[BagMessage]:
        """The messages of one topic."""
        return [one for one in self.messages if one.topic == topic]

    def error(self, topic: str, message: str) -> CalibrationError:
        """An error that names the bag and the topic."""
        return CalibrationError(f"bag {self.path}, topic {topic}: {message}")


def read_bag(
    path: Path, wanted: Mapping[str, Collection[str]], optional: Collection[str] = ()
) -> BagContent:
    """Read the wanted topics of a rosbag2 folder (MCAP or SQLite).

    Args:
        path: The bag's folder.
        wanted: Topic to the message types that it may have, e.g. ``"std_msgs/msg/String"``.
        optional: Topics among them that the bag may do without.

    Raises:
        CalibrationError: The bag is missing, damaged or empty, it lacks a topic, or a topic has
            another type; the message names the bag and the topic.
        ConfigurationError: ``rosbags`` is not installed.
    """
    if not (path / "metadata.yaml").is_file():
        raise CalibrationError(
            f"bag {path} is not a rosbag2 folder: it has no metadata.yaml; name the folder that "
            "ros2 bag record has made, and finish an interrupted recording with ros2 bag reindex"
        )
    with _damage_reported(path):
        bag = _read(path, wanted, optional)
    for topic in wanted:
        if topic not in optional and not bag.of(topic):
            raise bag.error(topic, "the bag is empty: the topic has no messages")
    return bag


def _read(
    path: Path, wanted: Mapping[str, Collection[str]], optional: Collection[str]
) -> BagContent:
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)  # for old SQLite bags, which define no types
    messages = []
    with AnyReader([path], default_typestore=store) as reader:
        present = {connection.topic: connection.msgtype for connection in reader.connections}
        _check_topics(path, wanted, optional, present)
        connections = [each for each in reader.connections if each.topic in wanted]
        # Without connections the reader would give all messages.
        stream = reader.messages(connections) if connections else ()
        for connection, recorded_ns, data in stream:
            message = reader.deserialize(data, connection.msgtype)
            stamp_ns = _stamp_ns(message, recorded_ns)
            messages.append(BagMessage(connection.topic, recorded_ns, stamp_ns, message))
        promised = sum(connection.msgcount for connection in connections)
        if len(messages) < promised:
            raise EOFError(f"{len(messages)} of {promised} messages are there")
    information = yaml.safe_load((path / "metadata.yaml").read_text())
    custom = information["rosbag2_bagfile_information"].get("custom_data") or {}
    metadata = {str(key): str(value) for key, value in custom.items()}
    return BagContent(path, tuple(messages), metadata)


def _check_topics(
    path: Path,
    wanted: Mapping[str, Collection[str]],
    optional: Collection[str],
    present: Mapping[str, str],
) -> None:
    missing = sorted(set(wanted) - set(present) - set(optional))
    if missing:
        raise CalibrationError(
            f"bag {path} has no topic {', '.join(missing)}; it has "
            f"{', '.join(sorted(present)) or 'none at all'}; record the missing ones or name "
            "the topics that stand for them"
        )
    for topic in sorted(wanted.keys() & present.keys()):
        if present[topic] not in wanted[topic]:
            raise CalibrationError(
                f"bag {path}, topic {topic}: holds {present[topic]}, but has to hold "
                f"{' or '.join(wanted[topic])}"
            )


def _stamp_ns(message: Any, recorded_ns: int) -> int:
    header = getattr(message, "header", None)
    return recorded_ns if header is None else stamp_to_ns(header.stamp)


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
