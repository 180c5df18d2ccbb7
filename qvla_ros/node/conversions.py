"""From the project's own words to ROS messages; the way back is ``qvla_ros.sensor_messages``."""

import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Duration, Time

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk as ActionChunkMessage
from qvla_ros.node.parameters import ACTION_KINDS, ROTATIONS, NodeParameters
from qvla_ros.sensor_messages import SECOND_NS


def ns_to_stamp(nanoseconds: int) -> Time:
    """The stamp of nanoseconds."""
    seconds, rest = divmod(nanoseconds, SECOND_NS)
    return Time(sec=seconds, nanosec=rest)


def ns_to_duration(nanoseconds: int) -> Duration:
    """The duration of nanoseconds."""
    seconds, rest = divmod(nanoseconds, SECOND_NS)
    return Duration(sec=seconds, nanosec=rest)


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
        state_ns: Header stamp of the robot state, nanoseconds; 0 if the model takes none.
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
        clipped_count: Values that were clamped to their limits.
        accepted_ns: When the scheduler took the chunk, nanoseconds.
    """

    seq: int
    now_ns: int
    valid_until_ns: int
    first_step_jump: float
    stage_ms: Mapping[str, float]
    clipped_count: int = 0
    accepted_ns: int = 0


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
    # An array passes the setter as it is; a list would be looked at number by number.
    message.data = array.array("f", chunk.actions.tobytes())
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
        clipped_count=delivery.clipped_count,
        first_step_jump=delivery.first_step_jump,
        accepted_stamp=ns_to_stamp(delivery.accepted_ns),
        publish_stamp=ns_to_stamp(delivery.now_ns),
        stage_names=list(delivery.stage_ms),
        stage_ms=[float(value) for value in delivery.stage_ms.values()],
    )
    message.header.frame_id = parameters.frame_id
    return message
