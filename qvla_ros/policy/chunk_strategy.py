"""Which action the valid chunks mean at one instant."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qvla_ros.action_chunk import ActionChunk


@dataclass(frozen=True, slots=True)
class Accepted:
    """A chunk and when it was taken, nanoseconds."""

    chunk: ActionChunk
    at_ns: int

    def row(self, now_ns: int) -> np.ndarray:
        """The chunk's own action due at ``now_ns``, ``float32 [action_dim]``."""
        return self.chunk.actions[action_index(self.chunk, now_ns)]


class ChunkStrategy(Protocol):
    """How overlapping chunks become one action."""

    @property
    def depth(self) -> int:
        """How many chunks, the newest ones, the scheduler must remember."""

    def action(self, chunks: Sequence[Accepted], now_ns: int) -> np.ndarray:
        """The action ``float32 [action_dim]`` due at ``now_ns``.

        Args:
            chunks: Chunks valid at ``now_ns``, the newest observation last; never empty.
            now_ns: The instant asked for, nanoseconds.
        """


@dataclass(frozen=True, slots=True)
class LatestOnly:
    """The newest chunk alone decides."""

    depth: int = 1

    def action(self, chunks: Sequence[Accepted], now_ns: int) -> np.ndarray:
        """The action of the newest chunk that is due at ``now_ns``, ``float32 [action_dim]``."""
        return chunks[-1].row(now_ns)


@dataclass(frozen=True, slots=True)
class Blend:
    """A linear passage from the chunk before to the newest one, from when that was taken.

    Attributes:
        averaged: ``bool [action_dim]``, the columns that may be averaged; the newest chunk decides
            the others (a gripper, a quaternion).
        duration_ns: How long the passage takes.
    """

    averaged: np.ndarray
    duration_ns: int
    depth: int = 2

    def action(self, chunks: Sequence[Accepted], now_ns: int) -> np.ndarray:
        """The passage's action at ``now_ns``, ``float32 [action_dim]``."""
        newest = chunks[-1].row(now_ns)
        passed = (now_ns - chunks[-1].at_ns) / self.duration_ns
        if len(chunks) == 1 or passed >= 1:
            return newest
        before, share = chunks[-2].row(now_ns), np.float32(max(0.0, passed))
        return np.where(self.averaged, before + share * (newest - before), newest)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The temporal ensemble of ACT (Zhao et al. 2023): weights ``exp(-decay * i)``, oldest first.

    Attributes:
        averaged: ``bool [action_dim]``, as in ``Blend``.
        depth: How many chunks count.
        decay: 0 weighs all chunks alike; above 0 older ones count more, below 0 newer ones.
    """

    averaged: np.ndarray
    depth: int
    decay: float = 0.01

    def action(self, chunks: Sequence[Accepted], now_ns: int) -> np.ndarray:
        """The weighted mean at ``now_ns``, ``float32 [action_dim]``."""
        rows = np.stack([chunk.row(now_ns) for chunk in chunks])
        weights = np.exp(-self.decay * np.arange(len(rows)))
        mean = (weights / weights.sum()) @ rows
        return np.where(self.averaged, mean, rows[-1]).astype(np.float32)


def action_index(chunk: ActionChunk, now_ns: int) -> int:
    """The index of the action of ``chunk`` that is due at ``now_ns``.

    It may reach or pass ``chunk.horizon``: then the chunk is exhausted. Before the observation's
    stamp it is 0.
    """
    return max(0, (now_ns - chunk.observed_at_ns) // chunk.period_ns)
