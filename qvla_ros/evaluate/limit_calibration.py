"""Limits of actions that clean recordings keep, and how often they would have refused a chunk.

The limits are those of ``policy.action_limits``, which the node reads and judges chunks by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.episode import RecordedActions
from qvla_ros.evaluate.rate_bound import upper_bound
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
class HeldOut:
    """Each recording judged by limits of all the others.

    The chunks of a recording are alike, so recordings are what counts as independent.

    Attributes:
        trips: Of all chunks.
        recordings: Judged.
        refused: Recordings with a chunk that was refused.
        least_margin: The least margin with which none would have been.
    """

    trips: Trips
    recordings: int
    refused: int
    least_margin: float

    @property
    def bound(self) -> float:
        """At 95 %, at most this share of clean recordings has a chunk that is refused."""
        return upper_bound(self.refused, self.recordings)


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
    heldout: HeldOut | None

    def to_yaml(self, provenance: Mapping[str, object]) -> dict[str, object]:
        """The content of a limits file: plain values."""
        names, columns = self.limits.names, ("lower", "upper", "max_step")
        table = {column: getattr(self.limits, column).tolist() for column in columns}
        heldout, rates = self.heldout, None
        if heldout is not None:
            rates = heldout.trips.by_limit / heldout.trips.chunks
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
                "heldout_chunks": 0 if heldout is None else heldout.trips.chunks,
                "heldout_refused": 0 if heldout is None else heldout.trips.refused,
                "heldout_bags": 0 if heldout is None else heldout.recordings,
                "heldout_bags_refused": 0 if heldout is None else heldout.refused,
                "refused_bags_at_most": 1.0 if heldout is None else heldout.bound,
                "least_margin": None if heldout is None else heldout.least_margin,
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

    The greatest step is looked for within chunks, and from the first row of one to that of the
    next: a chunk of one action has no other.

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
    total = sum(map(len, recordings))
    heldout = _held_out(recordings, names, margin) if len(recordings) > 1 else None
    return CalibratedLimits(_limits(recordings, names, margin), margin, total, heldout)


def _held_out(recordings: Sequence[np.ndarray], names: Sequence[str], margin: float) -> HeldOut:
    trips: list[Trips] = []
    margins: list[float] = []
    for index, chunks in enumerate(recordings):
        others = [one for place, one in enumerate(recordings) if place != index]
        trips.append(count_trips(_limits(others, names, margin), chunks))
        margins.append(_margin_needed(others, chunks))
    total = trips[0]
    for one in trips[1:]:
        total += one
    refused = sum(one.refused > 0 for one in trips)
    return HeldOut(total, len(recordings), refused, max(margins))


def _margin_needed(others: Sequence[np.ndarray], chunks: np.ndarray) -> float:
    """The least margin with which limits of ``others`` let all of ``chunks`` through."""
    seen, wanted = _Extremes.of(others), _Extremes.of([chunks])
    span = np.maximum(seen.upper - seen.lower, LEAST_SPAN)
    step = np.maximum(seen.step, LEAST_SPAN)
    beyond = (
        (seen.lower - wanted.lower) / span,
        (wanted.upper - seen.upper) / span,
        (wanted.step - seen.step) / step,
    )
    return max(0.0, float(np.max(beyond)))


@dataclass(frozen=True, slots=True)
class _Extremes:
    """Least, greatest and greatest change of each dimension, ``[action_dim]``."""

    lower: np.ndarray
    upper: np.ndarray
    step: np.ndarray

    @classmethod
    def of(cls, recordings: Sequence[np.ndarray]) -> "_Extremes":
        values = np.concatenate(recordings)
        within = np.abs(np.diff(values, axis=1)).max(axis=(0, 1), initial=0.0)
        between = [
            np.abs(np.diff(one[:, 0], axis=0)).max(axis=0, initial=0.0) for one in recordings
        ]
        steps = np.max([within, *between], axis=0)
        return cls(values.min(axis=(0, 1)), values.max(axis=(0, 1)), steps)


def _limits(recordings: Sequence[np.ndarray], names: Sequence[str], margin: float) -> ActionLimits:
    seen = _Extremes.of(recordings)
    extra = margin * np.maximum(seen.upper - seen.lower, LEAST_SPAN)
    max_step = seen.step + margin * np.maximum(seen.step, LEAST_SPAN)
    lower, upper = seen.lower - extra, seen.upper + extra
    return ActionLimits(tuple(names), lower, upper, max_step.astype(np.float32))
