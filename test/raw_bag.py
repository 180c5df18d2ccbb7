"""A bag that tests write message by message, so that it can be wrong in every way."""

from pathlib import Path

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.image_codec import encode_jpeg

START_NS = 1_000_000_000
PERIOD_NS = 50_000_000
PRIMARY = "/camera/primary/image_raw/compressed"
WRIST = "/camera/wrist/image_raw/compressed"
STATE_NAMES = ("x", "y")
ACTION_NAMES = ("dx",)
LAYOUT = BagLayout({"primary": PRIMARY, "wrist": WRIST}, STATE_NAMES, ACTION_NAMES)
STORE = get_typestore(Stores.ROS2_JAZZY)


class RawBag:
    """A bag written message by message, so that it can be wrong in every way."""

    def __init__(self, path: Path, plugin: StoragePlugin = StoragePlugin.MCAP) -> None:
        self.path = path
        self._writer = Writer(path, version=9, storage_plugin=plugin)
        self._writer.open()
        self._connections: dict[str, object] = {}
        self.recording_delay_ns = 0
        self.store = STORE  # knows the types of all messages that are put

    def header(self, stamp_ns: int) -> object:
        time = STORE.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 1_000_000_000))
        return STORE.types["std_msgs/msg/Header"](stamp=time, frame_id="")

    def declare(self, topic: str, kind: str) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self.store
            )

    def put(self, topic: str, stamp_ns: int, message: object) -> None:
        kind = message.__msgtype__
        self.declare(topic, kind)
        data = self.store.serialize_cdr(message, kind)
        recorded_ns = stamp_ns + self.recording_delay_ns
        self._writer.write(self._connections[topic], recorded_ns, data)

    def jpeg(self, topic: str, stamp_ns: int, data: bytes) -> None:
        message = STORE.types["sensor_msgs/msg/CompressedImage"](
            self.header(stamp_ns), "jpeg", np.frombuffer(data, np.uint8)
        )
        self.put(topic, stamp_ns, message)

    def raw(self, topic: str, stamp_ns: int, encoding: str, rows: np.ndarray, width: int) -> None:
        message = STORE.types["sensor_msgs/msg/Image"](
            header=self.header(stamp_ns),
            height=rows.shape[0],
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=rows.shape[1],
            data=rows.reshape(-1),
        )
        self.put(topic, stamp_ns, message)

    def joints(self, topic: str, stamp_ns: int, values: list[float], names=None) -> None:
        if names is None:
            names = ACTION_NAMES if topic == "/robot/action" else STATE_NAMES
        message = STORE.types["sensor_msgs/msg/JointState"](
            self.header(stamp_ns),
            list(names),
            np.array(values, np.float64),
            np.zeros(0),
            np.zeros(0),
        )
        self.put(topic, stamp_ns, message)

    def pose(self, topic: str, stamp_ns: int, position: list[float], turn: tuple) -> None:
        kinds = (STORE.types[f"geometry_msgs/msg/{name}"] for name in ("Point", "Quaternion"))
        parts = [kind(*values) for kind, values in zip(kinds, (position, turn), strict=True)]
        pose = STORE.types["geometry_msgs/msg/Pose"](*parts)
        kind = STORE.types["geometry_msgs/msg/PoseStamped"]
        self.put(topic, stamp_ns, kind(self.header(stamp_ns), pose))

    def say(self, stamp_ns: int, sentence: str) -> None:
        self.put("/instruction", stamp_ns, STORE.types["std_msgs/msg/String"](sentence))

    def close(self) -> Path:
        self._writer.close()
        return self.path


def plain_jpeg(value: int) -> bytes:
    return encode_jpeg(np.full((8, 8, 3), value, np.uint8))


def usable_bag(
    path: Path,
    length: int = 3,
    plugin: StoragePlugin = StoragePlugin.MCAP,
    leave_out: str = "",
    damaged_wrist_image: int = -1,
) -> RawBag:
    """All topics of an episode; the caller may add what is wrong with it and closes it."""
    bag = RawBag(path, plugin)
    bag.say(START_NS, "go")
    for index in range(length):
        stamp_ns = START_NS + index * PERIOD_NS
        wrist = plain_jpeg(100) if index != damaged_wrist_image else b"no image"
        bag.jpeg(PRIMARY, stamp_ns, plain_jpeg(10 * index))
        bag.jpeg(WRIST, stamp_ns, wrist)
        if "state" not in leave_out:
            bag.joints("/robot/state", stamp_ns, [index, 0.5])
        if "action" not in leave_out:
            bag.joints("/robot/action", stamp_ns, [index])
    return bag
