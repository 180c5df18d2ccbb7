"""Which action the valid chunks mean at one instant."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qvla_ros.action_chunk import ActionChunk


class ChunkStrategy(Protocol):
    """How overlapping chunks become one action.

    A blend or a temporal ensemble is another class with this shape and a greater ``depth``.
    """

    @property
    def depth(self) -> int:
        """How many chunks, the newest ones, the scheduler must remember."""

    def action(self, chunks: Sequence[ActionChunk], now_ns: int) -> np.ndarray:
        """The action ``float32 [action_dim]`` due at ``now_ns``.

        Args:
            chunks: Chunks valid at ``now_ns``, the newest observation last; never empty.
            now_ns: The instant asked for, nanoseconds.
        """


@dataclass(frozen=True, slots=True)
class LatestOnly:
    """The newest chunk alone decides."""

    depth: int = 1

    def action(self, chunks: Sequence[ActionChunk], now_ns: int) -> np.ndarray:
        """The action of the newest chunk that is due at ``now_ns``, ``float32 [action_dim]``."""
        newest = chunks[-1]
        return newest.actions[action_index(newest, now_ns)]


def action_index(chunk: ActionChunk, now_ns: int) -> int:
    """The index of the action of ``chunk`` that is due at ``now_ns``.

    It may reach or pass ``chunk.horizon``: then the chunk is exhausted. Before the observation's
    stamp it is 0.
    """
    return max(0, (now_ns - chunk.observed_at_ns) // chunk.period_ns)
