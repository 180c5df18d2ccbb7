"""The values that the scheduler takes and gives."""

from dataclasses import dataclass

import numpy as np

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.policy.action_limits import ActionLimits
from qvla_ros.policy.reasons import DropReason

MILLISECOND_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """The limits in time, nanoseconds, and of the actions.

    Attributes:
        ttl_ns: A chunk may be executed until its observation is this old.
        max_observation_age_ns: An older observation is not given to the policy.
        future_tolerance_ns: How far a stamp may lie after the clock, for clocks slightly apart.
        limits: What actions may be; ``None`` for any finite value. They are kept by what is
            planned, and its step also from what is followed to the first action of a new plan.
        clamp: Force a chunk into ``limits`` instead of refusing the whole of it.
    """

    ttl_ns: int
    max_observation_age_ns: int
    future_tolerance_ns: int = 20 * MILLISECOND_NS
    limits: ActionLimits | None = None
    clamp: bool = False

    def __post_init__(self) -> None:
        if self.ttl_ns <= 0 or self.max_observation_age_ns <= 0 or self.future_tolerance_ns < 0:
            raise ValueError(f"the scheduler's limits must be positive: {self}")

    def valid_until_ns(self, chunk: ActionChunk) -> int:
        """First instant at which ``chunk`` may no longer be executed, nanoseconds."""
        return min(chunk.observed_at_ns + self.ttl_ns, chunk.ends_at_ns)


@dataclass(frozen=True, slots=True)
class ScheduledAction:
    """The action to execute now.

    Attributes:
        action: ``float32 [action_dim]``, robot units.
        index: Its place in ``chunk``.
        age_ns: Time since the observation behind it was sensed.
        chunk: The newest chunk as it was planned, which the action comes from.
    """

    action: np.ndarray
    index: int
    age_ns: int
    chunk: ActionChunk


@dataclass(frozen=True, slots=True)
class Hold:
    """No action is due: stay where you are. ``reason`` is a ``HoldReason`` or a flush's cause."""

    reason: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of a chunk.

    Attributes:
        dropped: Why it was refused, ``None`` if it is now the current one.
        planned: What is to be executed if nothing newer comes: the chunk, mixed with those before
            it where the strategy does so, and clamped. ``None`` if it was refused.
        first_index: The first action still due; those before it were the stale prefix.
        seam_jump: ``float32 [action_dim]``, absolute change of the action due now from the chunk
            before; ``None`` if there was no valid one before, or the chunk was refused.
        clipped_count: Values that were clamped.
        violation: Which limit refused it, in words; empty if none did.
    """

    dropped: DropReason | None
    planned: ActionChunk | None = None
    first_index: int = 0
    seam_jump: np.ndarray | None = None
    clipped_count: int = 0
    violation: str = ""


@dataclass(frozen=True, slots=True)
class SchedulerStatus:
    """Counts since the scheduler was made, and the state at one instant.

    Attributes:
        chunks: Chunks accepted.
        drops: Observations and chunks not used, by reason.
        flushes: Flushes by cause.
        deadline_misses: Chunks that ran out before a successor was accepted.
        chunk_age_ns: Age of the current chunk's observation, ``None`` without a chunk.
        has_action: Whether an action is due now.
    """

    chunks: int
    drops: dict[str, int]
    flushes: dict[str, int]
    deadline_misses: int
    chunk_age_ns: int | None
    has_action: bool
