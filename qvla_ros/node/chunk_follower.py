"""What a consumer of action chunks must check before it moves a robot; pure, time is an argument."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from qvla_ros.msg import ActionChunk, Heartbeat
from qvla_ros.sensor_messages import stamp_to_ns

FUTURE_TOLERANCE_NS = 20_000_000
"""How far a stamp may lie after the clock."""


@dataclass(frozen=True, slots=True)
class FollowedChunk:
    """A message with its numbers in order.

    Attributes:
        message: As received.
        rows: ``float64 [horizon, dim]``.
        observed_ns: When row 0 is due.
        step_ns: Time between two rows.
        valid_until_ns: First instant at which it may no longer be followed.
    """

    message: ActionChunk
    rows: np.ndarray
    observed_ns: int
    step_ns: int
    valid_until_ns: int

    def row(self, now_ns: int) -> np.ndarray:
        """The row that is due, ``float64 [dim]``; the first one before its time."""
        return self.rows[max(0, (now_ns - self.observed_ns) // self.step_ns)]


class ChunkFollower:
    """Keeps the chunk that may be followed; when in doubt, none.

    ``now_ns`` is on the clock of the stamps; ``steady_ns`` goes on while a simulation is paused.

    Args:
        heartbeat_timeout_ns: Longer without a heartbeat and nothing is followed; 0 needs none.
    """

    def __init__(self, heartbeat_timeout_ns: int) -> None:
        self._timeout_ns = heartbeat_timeout_ns
        self._chunk: FollowedChunk | None = None
        self._published_ns = 0
        self._beat_ns: int | None = None
        self.refused: Counter[str] = Counter()

    def take(self, message: ActionChunk, now_ns: int) -> FollowedChunk | None:
        """Follow a chunk from now on; ``None`` if it is a hold or is refused (and counted)."""
        published_ns = stamp_to_ns(message.publish_stamp)
        if self._published_ns > now_ns + FUTURE_TOLERANCE_NS:  # the clock jumped back
            self._chunk, self._published_ns = None, 0
        if published_ns <= self._published_ns:
            self.refused["out_of_order"] += 1
            return None
        self._published_ns = published_ns
        self._chunk = None
        if message.horizon == 0:
            return None
        reason = _refusal(message, now_ns)
        if reason is not None:
            self.refused[reason] += 1
            return None
        rows = np.asarray(message.data, np.float64).reshape(message.horizon, message.dim)
        observed_ns, step_ns = stamp_to_ns(message.header.stamp), stamp_to_ns(message.step_dt)
        end_ns = min(stamp_to_ns(message.valid_until), observed_ns + len(rows) * step_ns)
        self._chunk = FollowedChunk(message, rows, observed_ns, step_ns, end_ns)
        return self._chunk

    def beat(self, message: Heartbeat, steady_ns: int) -> None:
        """Note a heartbeat; one of a later episode, or of a node that stopped, revokes the chunk."""
        self._beat_ns = steady_ns
        chunk = self._chunk
        if chunk is None or stamp_to_ns(message.header.stamp) <= self._published_ns:
            return
        if not message.serving or message.episode_id > chunk.message.episode_id:
            self._chunk = None

    def due(self, now_ns: int, steady_ns: int) -> FollowedChunk | None:
        """The chunk that may be followed now."""
        chunk = self._chunk
        if chunk is None or now_ns >= chunk.valid_until_ns:
            return None
        if now_ns + FUTURE_TOLERANCE_NS < chunk.observed_ns:
            return None
        return chunk if self.is_alive(steady_ns) else None

    def is_alive(self, steady_ns: int) -> bool:
        """Whether the policy node was heard in time."""
        if self._timeout_ns == 0:
            return True
        return self._beat_ns is not None and steady_ns - self._beat_ns <= self._timeout_ns


def _refusal(message: ActionChunk, now_ns: int) -> str | None:
    if message.schema_version != ActionChunk.SCHEMA_VERSION:
        return "schema_version"
    sizes_fit = len(message.data) == message.horizon * message.dim
    if not sizes_fit or len(message.names) != message.dim or stamp_to_ns(message.step_dt) <= 0:
        return "contradictory"
    if not np.isfinite(np.asarray(message.data)).all():
        return "non_finite"
    if stamp_to_ns(message.header.stamp) > now_ns + FUTURE_TOLERANCE_NS:
        return "future_stamp"
    return "expired" if now_ns >= stamp_to_ns(message.valid_until) else None
