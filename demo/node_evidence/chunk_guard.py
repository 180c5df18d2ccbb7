"""Looks at every chunk that a policy node sends, with the eyes of a robot."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from qvla_ros.msg import ActionChunk
from qvla_ros.policy.action_limits import ActionLimits
from qvla_ros.policy.reasons import DropReason
from qvla_ros.sensor_messages import stamp_to_ns

REFUSALS = (DropReason.NON_FINITE.value, DropReason.OUT_OF_LIMITS.value)
"""Why a node sends no chunk because of what it says."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A chunk as a robot follows it."""

    message: ActionChunk
    rows: np.ndarray

    def index(self, now_ns: int) -> int:
        """The row that is due."""
        step_ns = stamp_to_ns(self.message.step_dt)
        return max(0, (now_ns - stamp_to_ns(self.message.header.stamp)) // step_ns)

    def followed_from(self, now_ns: int) -> np.ndarray:
        """The rows that are due from ``now_ns`` on until the chunk ends."""
        return self.rows[self.index(now_ns) : self.index(self.ends_ns - 1) + 1]

    @property
    def ends_ns(self) -> int:
        """When it may no longer be followed."""
        return stamp_to_ns(self.message.valid_until)

    def was_left_for(self, other: ActionChunk) -> bool:
        """Whether a robot followed it until it was given the other one."""
        mine = self.message
        is_next = (mine.episode_id, mine.seq + 1) == (other.episode_id, other.seq)
        return is_next and stamp_to_ns(other.accepted_stamp) < self.ends_ns


class ChunkGuard:
    """Counts chunks and what is unsafe about them.

    Args:
        limits: What actions may be.
        ttl_ns: How old an observation may be when its chunk is sent.
    """

    def __init__(self, limits: ActionLimits, ttl_ns: int) -> None:
        self._limits = limits
        self._ttl_ns = ttl_ns
        self._revoked_episode = -1
        self._newest = (-1, -1)
        self._before: _Sent | None = None
        self.chunks = self.holds = 0
        self.unsafe: Counter[str] = Counter()

    def look(self, message: ActionChunk) -> None:
        """Judge one message by its own stamps; messages come in the order of sending."""
        if message.horizon == 0:
            self.holds += 1
            self._revoked_episode = message.episode_id - 1
            self._before = None
            return
        self.chunks += 1
        stamp_ns, sent_ns = stamp_to_ns(message.header.stamp), stamp_to_ns(message.publish_stamp)
        rows = np.asarray(message.data, np.float32).reshape(message.horizon, message.dim)
        sent = _Sent(message, rows)
        path = self._path(sent)
        if not np.isfinite(rows).all():
            self.unsafe["not_finite"] += 1
        elif len(path) and self._limits.violation(path) is not None:
            self.unsafe["out_of_limits"] += 1
        self._before = sent
        if sent_ns >= stamp_to_ns(message.valid_until) or sent_ns - stamp_ns >= self._ttl_ns:
            self.unsafe["stale"] += 1
        if message.episode_id <= self._revoked_episode:
            self.unsafe["revoked"] += 1
        if (message.episode_id, stamp_ns) <= self._newest:
            self.unsafe["not_newer"] += 1
        self._newest = (message.episode_id, stamp_ns)

    def _path(self, sent: _Sent) -> np.ndarray:
        """What a robot does from when the node took the chunk, and just before, until its end."""
        taken_ns = stamp_to_ns(sent.message.accepted_stamp)
        path, before = sent.followed_from(taken_ns), self._before
        if before is None or not before.was_left_for(sent.message):
            return path
        return np.concatenate([before.followed_from(taken_ns)[:1], path])
