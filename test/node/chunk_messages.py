"""Action chunks as a policy node sends them, for tests of those who follow them."""

from typing import Any

import numpy as np

from qvla_ros.msg import ActionChunk, Heartbeat
from qvla_ros.node.conversions import ns_to_duration, ns_to_stamp

MS = 1_000_000
START = 1_000_000 * MS


def chunk(at_ms: int, rows: Any, names: str, age_ms: int = 10, **fields: Any) -> ActionChunk:
    """A chunk observed ``at_ms`` and sent ``age_ms`` later, 50 ms a row."""
    data = np.asarray(rows, np.float32)
    observed = START + at_ms * MS
    message = ActionChunk(
        schema_version=ActionChunk.SCHEMA_VERSION,
        names=names.split(),
        horizon=data.shape[0],
        dim=data.shape[1],
        data=data.ravel().tolist(),
        step_dt=ns_to_duration(50 * MS),
        gripper_index=-1,
        episode_id=1,
        publish_stamp=ns_to_stamp(observed + age_ms * MS),
        valid_until=ns_to_stamp(observed + len(data) * 50 * MS),
    )
    message.header.stamp = ns_to_stamp(observed)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def hold(at_ms: int, episode_id: int = 2) -> ActionChunk:
    message = chunk(at_ms, np.zeros((0, 1)), "a", episode_id=episode_id)
    message.hold_reason = "paused"
    return message


def beat(at_ms: int, episode_id: int = 1, serving: bool = True) -> Heartbeat:
    message = Heartbeat(episode_id=episode_id, serving=serving)
    message.header.stamp = ns_to_stamp(START + at_ms * MS)
    return message
