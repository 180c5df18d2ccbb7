"""Looks at every chunk that a policy node sends, with the eyes of a robot."""

from collections import Counter

import numpy as np

from qvla_ros.msg import ActionChunk
from qvla_ros.policy.action_limits import ActionLimits
from qvla_ros.sensor_messages import stamp_to_ns


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
        self.chunks = self.holds = 0
        self.unsafe: Counter[str] = Counter()

    def look(self, message: ActionChunk) -> None:
        """Judge one message by its own stamps; messages come in the order of sending."""
        if message.horizon == 0:
            self.holds += 1
            self._revoked_episode = message.episode_id - 1
            return
        self.chunks += 1
        stamp_ns, sent_ns = stamp_to_ns(message.header.stamp), stamp_to_ns(message.publish_stamp)
        actions = np.asarray(message.data, np.float32).reshape(message.horizon, message.dim)
        if not np.isfinite(actions).all():
            self.unsafe["not_finite"] += 1
        elif self._limits.violation(actions) is not None:
            self.unsafe["out_of_limits"] += 1
        if sent_ns >= stamp_to_ns(message.valid_until) or sent_ns - stamp_ns >= self._ttl_ns:
            self.unsafe["stale"] += 1
        if message.episode_id <= self._revoked_episode:
            self.unsafe["revoked"] += 1
        if (message.episode_id, stamp_ns) <= self._newest:
            self.unsafe["not_newer"] += 1
        self._newest = (message.episode_id, stamp_ns)
