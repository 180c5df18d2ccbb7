"""Chunks in, the action that is due now out; nothing stale, nothing non-finite."""

import threading
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.policy.chunk_plan import clamped, make_plan
from qvla_ros.policy.chunk_strategy import Accepted, ChunkStrategy, LatestOnly, action_index
from qvla_ros.policy.reasons import DropReason, HoldReason
from qvla_ros.policy.schedule import (
    Acceptance,
    Hold,
    ScheduledAction,
    SchedulerSettings,
    SchedulerStatus,
)


@dataclass(slots=True)
class _Tally:
    chunks: int = 0
    deadline_misses: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    flushes: Counter[str] = field(default_factory=Counter)


class ChunkScheduler:
    """Keeps the chunks that may be executed and answers which action is due.

    Thread safe by one lock. It reads no clock: ``now_ns`` comes from the caller, on the clock of
    the observations' stamps, so a replay runs it on simulated time. When in doubt it holds.
    """

    def __init__(self, settings: SchedulerSettings, strategy: ChunkStrategy | None = None) -> None:
        self.settings = settings
        self._strategy: ChunkStrategy = strategy or LatestOnly()
        self._lock = threading.Lock()
        self._chunks: deque[Accepted] = deque(maxlen=self._strategy.depth)
        self._plan: ActionChunk | None = None  # the newest of them, as it is followed
        self._tally = _Tally()
        self._epoch = 0
        self._hold_reason: str = HoldReason.NO_CHUNK.value
        self._miss_noted = False

    @property
    def epoch(self) -> int:
        """Number of flushes so far; note it with an observation to have it refused after one."""
        with self._lock:
            return self._epoch

    def valid_until_ns(self, chunk: ActionChunk) -> int:
        """First instant at which ``chunk`` may no longer be executed, nanoseconds."""
        return self.settings.valid_until_ns(chunk)

    def admit(self, stamp_ns: int, now_ns: int, epoch: int | None = None) -> DropReason | None:
        """Whether inference on an observation of ``stamp_ns`` may begin at ``now_ns``.

        Args:
            stamp_ns: When the observation was sensed.
            now_ns: The present.
            epoch: ``epoch`` when the observation was taken; ``None`` for the present one.

        Returns:
            ``None`` if it may; else the reason, which has been counted as a drop.
        """
        with self._lock:
            reason = self._refusal_of_observation(stamp_ns, now_ns, epoch)
            if reason is not None:
                self._tally.drops[reason.value] += 1
            return reason

    def accept(self, chunk: ActionChunk, now_ns: int, epoch: int | None = None) -> Acceptance:
        """Makes ``chunk`` the current one, or refuses the whole of it and counts why.

        Args:
            chunk: The policy's answer.
            now_ns: The present.
            epoch: ``epoch`` when its observation was taken; ``None`` for the present one.
        """
        with self._lock:
            self._forget_after_clock_jump(now_ns)
            self._note_deadline_miss(now_ns)
            reason = self._refusal_of_chunk(chunk, now_ns, epoch)
            if reason is not None:
                return self._refuse(reason)
            return self._take_over(chunk, now_ns)

    def action_at(self, now_ns: int) -> ScheduledAction | Hold:
        """The action due at ``now_ns``, or ``Hold`` with the reason."""
        with self._lock:
            self._note_deadline_miss(now_ns)
            return self._due(now_ns)

    def flush(self, reason: str) -> None:
        """Forgets all chunks; observations of an earlier ``epoch`` will be refused.

        Args:
            reason: The cause, e.g. ``"instruction_changed"``: counted, and given by later holds.
        """
        with self._lock:
            self._flush(reason)

    def drop(self, reason: DropReason) -> None:
        """Counts an observation that was not used for a reason outside the scheduler."""
        with self._lock:
            self._tally.drops[reason.value] += 1

    def status(self, now_ns: int) -> SchedulerStatus:
        """The counts and the state at ``now_ns``, all from one instant."""
        with self._lock:
            self._note_deadline_miss(now_ns)
            current = self._current()
            return SchedulerStatus(
                chunks=self._tally.chunks,
                drops=dict(self._tally.drops),
                flushes=dict(self._tally.flushes),
                deadline_misses=self._tally.deadline_misses,
                chunk_age_ns=None if current is None else now_ns - current.observed_at_ns,
                has_action=isinstance(self._due(now_ns), ScheduledAction),
            )

    def _current(self) -> ActionChunk | None:
        return self._plan

    def _refusal_of_observation(
        self, stamp_ns: int, now_ns: int, epoch: int | None
    ) -> DropReason | None:
        if epoch is not None and epoch != self._epoch:
            return DropReason.FLUSHED
        if stamp_ns > now_ns + self.settings.future_tolerance_ns:
            return DropReason.FUTURE_STAMP
        if now_ns - stamp_ns > self.settings.max_observation_age_ns:
            return DropReason.STALE_OBSERVATION
        return None

    def _refusal_of_chunk(
        self, chunk: ActionChunk, now_ns: int, epoch: int | None
    ) -> DropReason | None:
        current = self._current()
        if epoch is not None and epoch != self._epoch:
            return DropReason.FLUSHED
        if not np.isfinite(chunk.actions).all():
            return DropReason.NON_FINITE
        if chunk.observed_at_ns > now_ns + self.settings.future_tolerance_ns:
            return DropReason.FUTURE_STAMP
        if now_ns >= self.valid_until_ns(chunk):
            return DropReason.EXPIRED
        if current is not None and chunk.observed_at_ns <= current.observed_at_ns:
            return DropReason.NOT_NEWER
        return None

    def _refuse(self, reason: DropReason, violation: str = "") -> Acceptance:
        self._tally.drops[reason.value] += 1
        return Acceptance(reason, violation=violation)

    def _take_over(self, chunk: ActionChunk, now_ns: int) -> Acceptance:
        before = self._due(now_ns)
        followed = before.action if isinstance(before, ScheduledAction) else None
        said, clipped = clamped(chunk, self.settings)
        accepted = Accepted(said, now_ns)
        mixed = [*self._chunks, accepted][-self._strategy.depth :]
        plan = make_plan(mixed, self._strategy, self.settings, followed)
        if plan.violation:
            return self._refuse(DropReason.OUT_OF_LIMITS, plan.violation)
        self._chunks.append(accepted)
        self._plan = plan.chunk
        self._tally.chunks += 1
        self._miss_noted = False
        first = plan.first_index
        jump = None if followed is None else np.abs(plan.chunk.actions[first] - followed)
        return Acceptance(None, plan.chunk, first, jump, clipped + plan.clipped_count)

    def _due(self, now_ns: int) -> ScheduledAction | Hold:
        current = self._current()
        if current is None:
            return Hold(self._hold_reason)
        if self._is_before(now_ns, current):
            return Hold(HoldReason.CLOCK_JUMPED_BACK.value)
        if now_ns >= current.ends_at_ns:
            return Hold(HoldReason.EXHAUSTED.value)
        if now_ns >= self.valid_until_ns(current):
            return Hold(HoldReason.EXPIRED.value)
        index = action_index(current, now_ns)
        return ScheduledAction(
            action=current.actions[index],
            index=index,
            age_ns=now_ns - current.observed_at_ns,
            chunk=current,
        )

    def _is_before(self, now_ns: int, chunk: ActionChunk) -> bool:
        return now_ns + self.settings.future_tolerance_ns < chunk.observed_at_ns

    def _forget_after_clock_jump(self, now_ns: int) -> None:
        # A chunk from the future would refuse every later one as "not newer" until the clock
        # caught up with it.
        current = self._current()
        if current is not None and self._is_before(now_ns, current):
            self._flush(HoldReason.CLOCK_JUMPED_BACK.value)

    def _note_deadline_miss(self, now_ns: int) -> None:
        current = self._current()
        if current is None or self._miss_noted:
            return
        if now_ns >= self.valid_until_ns(current):
            self._miss_noted = True
            self._tally.deadline_misses += 1

    def _flush(self, reason: str) -> None:
        self._chunks.clear()
        self._plan = None
        self._epoch += 1
        self._tally.flushes[reason] += 1
        self._hold_reason = reason
        self._miss_noted = False
