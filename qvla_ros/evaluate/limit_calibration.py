"""Limits of actions that clean recordings keep, and how often they would have refused a chunk.

The limits are those of ``policy.action_limits``, which the node reads and judges chunks by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.episode import RecordedActions
from qvla_ros.policy.action_limits import ActionLimits

LEAST_SPAN = 1e-3
"""A dimension that never moves is given the margin of this span, in robot units."""


@dataclass(frozen=True, slots=True)
class Trips:
    """How many chunks go beyond limits.

    Attributes:
        chunks: Judged.
        refused: Beyond any limit.
        by_limit: ``[action_dim, 3]``, beyond lower, upper and max_step of each dimension.
    """

    chunks: int
    refused: int
    by_limit: np.ndarray

    def __add__(self, other: "Trips") -> "Trips":
        """Both together."""
        return Trips(
            self.chunks + other.chunks,
            self.refused + other.refused,
            self.by_limit + other.by_limit,
        )

    def named(self, names: Sequence[str]) -> dict[str, int]:
        """The limits that refused a chunk, e.g. ``"dx.upper"``, with how many."""
        fields = ("lower", "upper", "max_step")
        return {
            f"{name}.{field}": int(count)
            for name, counts in zip(names, self.by_limit, strict=True)
            for field, count in zip(fields, counts, strict=True)
            if count
        }


@dataclass(frozen=True, slots=True)
class CalibratedLimits:
    """Limits, and what they did to recordings that they were not made of.

    Attributes:
        limits: Of all recordings.
        margin: Share of each dimension's span that was added on both sides, and of the greatest
            step that was added to it.
        chunks: Chunks that the limits were made of.
        heldout: Each recording judged by limits of all the others; ``None`` with only one.
    """

    limits: ActionLimits
    margin: float
    chunks: int
    heldout: Trips | None

    def to_yaml(self, provenance: Mapping[str, object]) -> dict[str, object]:
        """The content of a limits file: plain values."""
        names, columns = self.limits.names, ("lower", "upper", "max_step")
        table = {column: getattr(self.limits, column).tolist() for column in columns}
        rates = None if self.heldout is None else self.heldout.by_limit / self.heldout.chunks
        return {
            "limits": {
                name: {column: table[column][index] for column in columns}
                for index, name in enumerate(names)
            },
            "false_positive_rate": None
            if rates is None
            else {
                name: dict(zip(columns, rates[index].tolist(), strict=True))
                for index, name in enumerate(names)
            },
            "provenance": {
                **provenance,
                "margin": self.margin,
                "chunks": self.chunks,
                "heldout_chunks": 0 if self.heldout is None else self.heldout.chunks,
                "heldout_refused": 0 if self.heldout is None else self.heldout.refused,
            },
        }


def windows(actions: RecordedActions, horizon: int, period_ns: int) -> np.ndarray:
    """Recorded actions as the chunks that a policy would have had to say.

    Args:
        actions: As recorded, at any rate.
        horizon: Actions in a chunk.
        period_ns: Time between two actions.

    Returns:
        ``float32 [chunks, horizon, action_dim]``, one for each step from which on nothing is
        missing.
    """
    first_ns, last_ns = int(actions.stamps_ns[0]), int(actions.stamps_ns[-1])
    times_ns = np.arange(first_ns, last_ns + 1, period_ns, dtype=np.int64)
    steps = actions.at(times_ns, period_ns // 2)
    if len(steps) < horizon:
        return np.zeros((0, horizon, steps.shape[1]), np.float32)
    chunks = np.lib.stride_tricks.sliding_window_view(steps, horizon, axis=0).swapaxes(1, 2)
    return chunks[np.isfinite(chunks).all(axis=(1, 2))]


def count_trips(limits: ActionLimits, chunks: np.ndarray) -> Trips:
    """Judge ``chunks [n, horizon, action_dim]``, robot units; what is not finite trips nothing."""
    steps = np.abs(np.diff(chunks, axis=1))
    beyond = np.stack(
        [
            (chunks < limits.lower).any(axis=1),
            (chunks > limits.upper).any(axis=1),
            (steps > limits.max_step).any(axis=1),
        ],
        axis=-1,
    )
    refused = int(beyond.any(axis=(1, 2)).sum())
    return Trips(len(chunks), refused, beyond.sum(axis=0))


def calibrate_limits(
    recordings: Sequence[np.ndarray], names: Sequence[str], margin: float
) -> CalibratedLimits:
    """Limits that all chunks of all recordings keep, and their false-positive rate.

    Args:
        recordings: One a bag, ``float32 [chunks, horizon, action_dim]`` in robot units.
        names: Of the action dimensions.
        margin: See ``CalibratedLimits``.

    Raises:
        CalibrationError: A recording holds no chunk, or one that is not finite.
    """
    for index, chunks in enumerate(recordings):
        if len(chunks) == 0:
            raise CalibrationError(
                f"bag {index + 1} of {len(recordings)} holds no uninterrupted chunk of actions: "
                "record for longer, or leave it out"
            )
        if not np.isfinite(chunks).all():
            raise CalibrationError(
                f"bag {index + 1} of {len(recordings)} gives an action that is not finite"
            )
    heldout = None
    if len(recordings) > 1:
        for index, chunks in enumerate(recordings):
            others = [one for place, one in enumerate(recordings) if place != index]
            trips = count_trips(_limits(others, names, margin), chunks)
            heldout = trips if heldout is None else heldout + trips
    total = sum(map(len, recordings))
    return CalibratedLimits(_limits(recordings, names, margin), margin, total, heldout)


def _limits(recordings: Sequence[np.ndarray], names: Sequence[str], margin: float) -> ActionLimits:
    values = np.concatenate(recordings)
    lower, upper = values.min(axis=(0, 1)), values.max(axis=(0, 1))
    step = np.abs(np.diff(values, axis=1)).max(axis=(0, 1), initial=0.0)
    extra = margin * np.maximum(upper - lower, LEAST_SPAN)
    max_step = step + margin * np.maximum(step, LEAST_SPAN)
    return ActionLimits(tuple(names), lower - extra, upper + extra, max_step.astype(np.float32))
