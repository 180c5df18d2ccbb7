"""The messages that the node sends."""

import math

import numpy as np
import pytest

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.errors import ConfigurationError
from qvla_ros.msg import ActionChunk as ActionChunkMessage
from qvla_ros.node.conversions import (
    Asked,
    Delivery,
    PolicyCard,
    chunk_message,
    hold_message,
    ns_to_stamp,
)
from qvla_ros.node.parameters import NodeParameters
from qvla_ros.sensor_messages import stamp_to_ns


def test_stamps_survive_both_ways() -> None:
    for nanoseconds in (0, 999_999_999, 1_000_000_000, 1_700_000_000_123_456_789):
        assert stamp_to_ns(ns_to_stamp(nanoseconds)) == nanoseconds


PARAMETERS = NodeParameters(
    action_kind="eef_delta", rotation="axis_angle", frame_id="base", gripper_name="grip"
)
CARD = PolicyCard("openvla-oft", "ab" * 32, "4.00 bits/weight", ("dx", "grip"), PARAMETERS)
ASKED = Asked("pick", 7_000_000_005, 9_000_000_001, 3)
DELIVERY = Delivery(4, 10_100_000_000, 10_200_000_000, 0.5, {"model": 12.5}, 0, 10_050_000_000)


def test_a_chunk_tells_everything_that_is_needed_to_follow_it() -> None:
    actions = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    message = chunk_message(
        ActionChunk(10_000_000_002, 50_000_000, actions), CARD, ASKED, DELIVERY
    )
    assert (message.horizon, message.dim) == (3, 2)
    assert list(message.data) == [1, 2, 3, 4, 5, 6]
    assert stamp_to_ns(message.header.stamp) == 10_000_000_002
    assert message.header.frame_id == "base"
    assert stamp_to_ns(message.step_dt) == 50_000_000
    assert stamp_to_ns(message.valid_until) == 10_200_000_000
    assert stamp_to_ns(message.publish_stamp) == 10_100_000_000
    assert stamp_to_ns(message.accepted_stamp) == 10_050_000_000
    assert stamp_to_ns(message.proprio_stamp) == 9_000_000_001
    assert stamp_to_ns(message.instruction_stamp) == 7_000_000_005
    assert (message.instruction, message.episode_id, message.seq) == ("pick", 3, 4)
    assert message.schema_version == ActionChunkMessage.SCHEMA_VERSION
    assert message.action_kind == ActionChunkMessage.ACTION_EEF_DELTA
    assert message.rotation == ActionChunkMessage.ROTATION_AXIS_ANGLE
    assert (message.names, message.gripper_index) == (["dx", "grip"], 1)
    assert (message.checkpoint_sha256, message.quant_tag) == ("ab" * 32, "4.00 bits/weight")
    assert (message.stage_names, list(message.stage_ms)) == (["model"], [12.5])
    assert (message.first_step_jump, message.hold_reason) == (0.5, "")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_chunk_that_is_not_finite_has_no_message(value: float) -> None:
    chunk = ActionChunk(0, 1, np.array([[0, value]], np.float32))
    with pytest.raises(ValueError, match="not finite"):
        chunk_message(chunk, CARD, ASKED, DELIVERY)


def test_a_hold_has_no_rows_and_tells_why() -> None:
    message = hold_message("deactivated", CARD, ASKED, DELIVERY)
    assert (message.horizon, len(message.data), message.hold_reason) == (0, 0, "deactivated")


def test_a_gripper_that_is_no_column_is_refused() -> None:
    card = PolicyCard("m", "", "", ("dx", "dy"), PARAMETERS)
    with pytest.raises(ConfigurationError, match=r"'grip'.*dx, dy"):
        _ = card.gripper_index
