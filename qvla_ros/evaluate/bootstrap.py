"""How sure a mean over frames is, when neighbouring frames are much alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_TAILS = (2.5, 97.5)  # percent


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval.

    Attributes:
        mean: Over all frames.
        low: 2.5 % of the resampled means are below.
        high: 2.5 % of the resampled means are above.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Blocks:
    """The frames of one episode, and how many of them are drawn together.

    Attributes:
        frames: Number of frames.
        length: Consecutive frames of a block; as long as frames stay alike.
    """

    frames: int
    length: int

    def __post_init__(self) -> None:
        if self.length < 1 or self.frames < 1:
            raise ValueError(f"blocks of {self.length} frames among {self.frames}")

    def draw(self, rng: np.random.Generator, resamples: int) -> np.ndarray:
        """Moving blocks from anywhere in the episode: ``int64 [resamples, frames]``."""
        length = min(self.length, self.frames)
        count = -(-self.frames // length)
        starts = rng.integers(0, self.frames - length + 1, size=(resamples, count, 1))
        return (starts + np.arange(length)).reshape(resamples, -1)[:, : self.frames]


def mean_interval(
    values: np.ndarray, episodes: Sequence[Blocks], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Moving-block bootstrap of the mean: blocks are drawn within each episode.

    For two methods, give the differences of their errors frame by frame: the pairing keeps what
    is hard about a frame out of the interval.

    Args:
        values: ``float [frames]``, episode after episode.
        episodes: Frames and block length of each episode.
        seed: Of the draws; the same for the same frames.
        resamples: Number of draws.

    Raises:
        ValueError: The episodes have another number of frames than ``values``.
    """
    if sum(one.frames for one in episodes) != len(values):
        raise ValueError(f"{len(values)} values for episodes of {episodes}")
    rng = np.random.default_rng(seed)
    totals = np.zeros(resamples)
    start = 0
    for one in episodes:
        part = np.asarray(values[start : start + one.frames], dtype=np.float64)
        totals += part[one.draw(rng, resamples)].sum(axis=1)
        start += one.frames
    low, high = np.percentile(totals / len(values), _TAILS)
    return Interval(float(np.mean(values)), float(low), float(high))
