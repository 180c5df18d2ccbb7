"""Write an episode as a rosbag2 folder (MCAP), without ROS."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qvla_ros.errors import ConfigurationError
from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.episode import Episode
from qvla_ros.image_codec import encode_jpeg
from qvla_ros.sensor_messages import SECOND_NS


class BagWriter:
    """An open bag; made by ``new_bag``. Log times equal the stamps."""

    def __init__(self, writer: Any) -> None:
        from rosbags.typesys import Stores, get_typestore

        self._writer = writer
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._connections: dict[str, Any] = {}

    def write_jpeg(self, topic: str, stamp_ns: int, frame: str, data: bytes) -> None:
        """Write a ``sensor_msgs/CompressedImage`` taken in the coordinate frame ``frame``."""
        message = self._type("sensor_msgs/msg/CompressedImage")(
            header=self._header(stamp_ns, frame),
            format="jpeg",
            data=np.frombuffer(data, np.uint8),
        )
        self._write(topic, stamp_ns, message)

    def write_joints(
        self, topic: str, stamp_ns: int, names: tuple[str, ...], values: np.ndarray
    ) -> None:
        """Write ``values`` as the positions of a ``sensor_msgs/JointState``."""
        message = self._type("sensor_msgs/msg/JointState")(
            header=self._header(stamp_ns, ""),
            name=list(names),
            position=np.asarray(values, np.float64),
            velocity=np.zeros(0),
            effort=np.zeros(0),
        )
        self._write(topic, stamp_ns, message)

    def write_latched_sentence(self, topic: str, stamp_ns: int, sentence: str) -> None:
        """Write a ``std_msgs/String`` that late subscribers receive too (transient local)."""
        message = self._type("std_msgs/msg/String")(data=sentence)
        self._write(topic, stamp_ns, message, latched=True)

    def _type(self, name: str) -> Any:
        return self._store.types[name]

    def _header(self, stamp_ns: int, frame: str) -> Any:
        seconds, nanoseconds = divmod(stamp_ns, SECOND_NS)
        stamp = self._type("builtin_interfaces/msg/Time")(sec=seconds, nanosec=nanoseconds)
        return self._type("std_msgs/msg/Header")(stamp=stamp, frame_id=frame)

    def _write(self, topic: str, stamp_ns: int, message: Any, latched: bool = False) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic,
                message.__msgtype__,
                typestore=self._store,
                offered_qos_profiles=[_quality_of_service(latched)],
            )
        data = self._store.serialize_cdr(message, message.__msgtype__)
        self._writer.write(self._connections[topic], stamp_ns, data)


@contextmanager
def new_bag(path: Path, metadata: Mapping[str, str]) -> Iterator[BagWriter]:
    """Open a bag that appears under ``path`` only when the context ends without an error.

    Raises:
        ConfigurationError: ``path`` exists already, or ``rosbags`` is not installed.
    """
    try:
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    except ImportError as error:
        raise ConfigurationError(
            f"bags cannot be written ({error}); install the writer with "
            "pip install 'qvla_ros[bag]'"
        ) from error
    if path.exists():
        raise ConfigurationError(f"{path} exists already; remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder) / path.name  # the bag's file is named after its folder
        writer = Writer(partial, version=9, storage_plugin=StoragePlugin.MCAP)
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        for key, value in sorted(metadata.items()):
            writer.set_custom_data(key, value)
        with writer:
            yield BagWriter(writer)
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        os.replace(partial, path)


def _quality_of_service(latched: bool) -> Any:
    from rosbags.interfaces import (
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )

    forever = QosTime(9223372036, 854775807)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1 if latched else 10,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=forever,
        lifespan=forever,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=forever,
        avoid_ros_namespace_conventions=False,
    )


def write_episode(path: Path, episode: Episode, layout: BagLayout) -> None:
    """Write a rosbag2 folder with MCAP storage, all or nothing.

    Images are compressed to JPEG here, so ``read_episode`` answers the pixels after compression:
    write what the camera saw, not what a bag has given. The instruction is written once, latched.

    Raises:
        ConfigurationError: ``path`` exists already, or ``rosbags`` is not installed.
        ValueError: The episode is empty, its instruction changes, or its actions are not in step
            with its observations.
    """
    observations, actions = episode.observations, episode.actions
    if len({seen.instruction for seen in observations}) != 1:
        raise ValueError("an episode that is written has one instruction: write a bag for each")
    stamps_ns = [seen.stamp_ns for seen in observations]
    if actions is not None and actions.stamps_ns.tolist() != stamps_ns:
        raise ValueError("an episode that is written has an action for each observation")
    with new_bag(path, episode.metadata) as bag:
        bag.write_latched_sentence(layout.instruction, stamps_ns[0], observations[0].instruction)
        for index, seen in enumerate(observations):
            for camera, topic in layout.images.items():
                jpeg = encode_jpeg(seen.images[camera])
                bag.write_jpeg(topic, seen.stamp_ns, camera, jpeg)
            bag.write_joints(layout.state, seen.stamp_ns, layout.state_names, seen.state)
            if actions is not None and layout.action is not None:
                action = actions.values[index]
                bag.write_joints(layout.action, seen.stamp_ns, layout.action_names, action)
