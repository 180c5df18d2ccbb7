"""Between ROS messages and the project's own words; no cv_bridge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import CompressedImage, Image, JointState

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk as ActionChunkMessage
from qvla_ros.node.parameters import ACTION_KINDS, ROTATIONS, NodeParameters

SECOND_NS = 1_000_000_000

# Encoding to its channels, and the place of red, green and blue among them.
_ENCODINGS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}


def stamp_to_ns(stamp: Time) -> int:
    """Nanoseconds of a stamp."""
    return stamp.sec * SECOND_NS + stamp.nanosec


def ns_to_stamp(nanoseconds: int) -> Time:
    """The stamp of nanoseconds."""
    seconds, rest = divmod(nanoseconds, SECOND_NS)
    return Time(sec=seconds, nanosec=rest)


def ns_to_duration(nanoseconds: int) -> Duration:
    """The duration of nanoseconds."""
    seconds, rest = divmod(nanoseconds, SECOND_NS)
    return Duration(sec=seconds, nanosec=rest)


def image_to_rgb(message: Image | CompressedImage) -> np.ndarray:
    """The pixels of a camera's message as ``uint8 [height, width, 3]`` RGB.

    Raises:
        ConfigurationError: The encoding is not supported.
        ValueError: The message contradicts itself or cannot be decoded.
    """
    if isinstance(message, CompressedImage):
        return _decode(message)
    if message.encoding not in _ENCODINGS:
        raise ConfigurationError(
            f"image encoding {message.encoding!r} is not supported: publish one of "
            f"{', '.join(_ENCODINGS)}"
        )
    channels, order = _ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0:
        raise ValueError(f"the image is empty: {width} x {height}")
    if step < width * channels:
        raise ValueError(
            f"step {step} is too small for {width} pixels of {message.encoding} "
            f"({width * channels} bytes)"
        )
    if len(message.data) != step * height:
        raise ValueError(
            f"the image has {len(message.data)} bytes, not step * height = {step * height}"
        )
    rows = np.frombuffer(message.data, dtype=np.uint8).reshape(height, step)
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    return np.ascontiguousarray(pixels[:, :, list(order)])


def _decode(message: CompressedImage) -> np.ndarray:
    if "compressedDepth" in message.format:
        raise ConfigurationError(
            f"image format {message.format!r} is a depth image: subscribe to the color camera"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size == 0:
        raise ValueError("the compressed image is empty")
    # A camera's stream has no orientation of its own; a stray EXIF tag must not turn it.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(data, flags)
    except cv2.error as error:
        raise ValueError(f"the compressed image cannot be decoded: {error}") from error
    if pixels is None:
        raise ValueError(
            f"{data.size} bytes of format {message.format!r} cannot be decoded as an image"
        )
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def state_from_message(message: JointState, names: Sequence[str]) -> np.ndarray:
    """The robot's state as ``float32 [len(names)]``.

    Args:
        message: Its ``position`` is used, in the units of the model's training data.
        names: What to pick, in the model's order.

    Raises:
        ConfigurationError: A name is missing.
        ValueError: The message contradicts itself, or a value is not finite.
    """
    if len(message.name) != len(message.position):
        raise ValueError(
            f"the state has {len(message.name)} names but {len(message.position)} positions"
        )
    places = {name: place for place, name in enumerate(message.name)}
    missing = [name for name in names if name not in places]
    if missing:
        raise ConfigurationError(
            f"the state lacks {', '.join(missing)}; it has {', '.join(message.name)}: "
            "set the parameter state_names"
        )
    state = np.asarray([message.position[places[name]] for name in names], dtype=np.float32)
    if not np.isfinite(state).all():
        raise ValueError("the state holds a value that is not finite")
    return state


@dataclass(frozen=True, slots=True)
class PolicyCard:
    """What every chunk of one configured policy has in common.

    Attributes:
        model_id: Kind of model.
        checkpoint_sha256: Of the packed checkpoint's file, hexadecimal.
        quant_tag: The quantization in words.
        action_names: Name of each column.
        parameters: The node's parameters, for what the actions mean.
    """

    model_id: str
    checkpoint_sha256: str
    quant_tag: str
    action_names: tuple[str, ...]
    parameters: NodeParameters

    @property
    def gripper_index(self) -> int:
        """The gripper's column, -1 if there is none.

        Raises:
            ConfigurationError: The configured name is not a column.
        """
        name = self.parameters.gripper_name
        if not name:
            return -1
        if name not in self.action_names:
            raise ConfigurationError(
                f"parameter gripper_name is {name!r}, but the actions are "
                f"{', '.join(self.action_names)}"
            )
        return self.action_names.index(name)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one observation was asked about, to be told again with its chunk.

    Attributes:
        instruction: The task.
        instruction_ns: When the node received it, nanoseconds.
        state_ns: Header stamp of the robot state, nanoseconds.
        episode_id: Number of the episode.
    """

    instruction: str
    instruction_ns: int
    state_ns: int
    episode_id: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is known only when a chunk is sent.

    Attributes:
        seq: Number of the chunk since activation.
        now_ns: The node's clock, nanoseconds.
        valid_until_ns: First instant at which the chunk may no longer be followed.
        first_step_jump: Largest change of a column at the seam, NaN if unknown.
        stage_ms: Stage name to milliseconds.
    """

    seq: int
    now_ns: int
    valid_until_ns: int
    first_step_jump: float
    stage_ms: Mapping[str, float]


def chunk_message(
    chunk: ActionChunk, card: PolicyCard, asked: Asked, delivery: Delivery
) -> ActionChunkMessage:
    """The message that carries ``chunk``; ``ValueError`` if a value of it is not finite."""
    if not np.isfinite(chunk.actions).all():
        raise ValueError("a chunk with a value that is not finite must not be published")
    message = _blank_message(card, asked, delivery)
    message.header.stamp = ns_to_stamp(chunk.observed_at_ns)
    message.horizon, message.dim = chunk.actions.shape
    message.step_dt = ns_to_duration(chunk.period_ns)
    message.data = chunk.actions.ravel().tolist()
    message.proprio_stamp = ns_to_stamp(asked.state_ns)
    return message


def hold_message(
    reason: str, card: PolicyCard, asked: Asked, delivery: Delivery
) -> ActionChunkMessage:
    """The message that revokes all chunks before it: no rows, and the reason why."""
    message = _blank_message(card, asked, delivery)
    message.header.stamp = ns_to_stamp(delivery.now_ns)
    message.dim = len(card.action_names)
    message.hold_reason = reason
    return message


def _blank_message(card: PolicyCard, asked: Asked, delivery: Delivery) -> ActionChunkMessage:
    parameters = card.parameters
    message = ActionChunkMessage(
        schema_version=ActionChunkMessage.SCHEMA_VERSION,
        model_id=card.model_id,
        checkpoint_sha256=card.checkpoint_sha256,
        quant_tag=card.quant_tag,
        episode_id=asked.episode_id,
        seq=delivery.seq,
        instruction=asked.instruction,
        instruction_stamp=ns_to_stamp(asked.instruction_ns),
        action_kind=ACTION_KINDS[parameters.action_kind],
        absolute=parameters.absolute,
        rotation=ROTATIONS[parameters.rotation],
        names=list(card.action_names),
        gripper_index=card.gripper_index,
        gripper_open=parameters.gripper_open,
        gripper_closed=parameters.gripper_closed,
        valid_until=ns_to_stamp(delivery.valid_until_ns),
        first_step_jump=delivery.first_step_jump,
        publish_stamp=ns_to_stamp(delivery.now_ns),
        stage_names=list(delivery.stage_ms),
        stage_ms=[float(value) for value in delivery.stage_ms.values()],
    )
    message.header.frame_id = parameters.frame_id
    return message
