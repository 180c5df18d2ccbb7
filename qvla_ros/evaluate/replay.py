"""A recorded episode through the robot's own processing and scheduler, without ROS."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.episode import Episode
from qvla_ros.evaluate.fidelity import ActionError, ChunkPairs, Grippers
from qvla_ros.evaluate.latency import stage_times_ms, warm_up
from qvla_ros.evaluate.replay_result import (
    ActionTraces,
    ReplayResult,
    SeamJumps,
    pooled_error,
)
from qvla_ros.evaluate.timeline import Timeline, run_timeline
from qvla_ros.policy.chunk_scheduler import (
    ChunkScheduler,
    Hold,
    ScheduledAction,
    SchedulerSettings,
)
from qvla_ros.policy.inference import ServedPolicy
from qvla_ros.policy.stage_times import StageTimes


class ActionScale(Protocol):
    """The part of processing that maps robot units to the network's space."""

    def normalized_actions(self, actions: np.ndarray) -> np.ndarray:
        """Robot units ``[..., action_dim]`` to about [-1, 1]; affine in each dimension."""


class ReplayedPolicy(ServedPolicy, Protocol):
    """What the replay needs of a policy."""

    @property
    def action_names(self) -> Sequence[str]:
        """One name an action dimension."""

    @property
    def processing(self) -> ActionScale:
        """The pre- and post-processing."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How the robot is simulated.

    Attributes:
        scheduler: The scheduler's limits.
        latency_ns: Simulated time of every inference; ``None`` takes the time that it really
            took, so that the run depends on the machine.
        warmup_count: Inferences before the first observation, left out of all figures.
    """

    scheduler: SchedulerSettings
    latency_ns: int | None = None
    warmup_count: int = 2

    def __post_init__(self) -> None:
        if (self.latency_ns is not None and self.latency_ns < 0) or self.warmup_count < 0:
            raise ValueError(f"latency and warm-up cannot be negative: {self}")


def replay(
    policy: ReplayedPolicy,
    episode: Episode,
    settings: ReplaySettings,
    reference: ReplayedPolicy | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ReplayResult:
    """Replays ``episode`` on simulated time and compares the actions.

    The reference policy is given the same observations at the same simulated instants and the
    same latencies, so all difference between the two is in their actions.

    Args:
        policy: What is judged.
        episode: At least one observation.
        settings: How the robot is simulated.
        reference: What else to compare with, e.g. the float policy.
        on_progress: Called with steps done and steps in all, over both policies.

    Raises:
        CalibrationError: The episode is empty, or its actions have another size than the policy's.
    """
    _check_episode(policy, episode)
    progress = _Progress(len(episode.observations) * (2 if reference else 1), on_progress)
    warm_up(policy, episode.observations[0], settings.warmup_count)

    def latency(_: int, measured_ns: int) -> int:
        return measured_ns if settings.latency_ns is None else settings.latency_ns

    scheduler = ChunkScheduler(settings.scheduler)
    timeline = run_timeline(policy, episode.observations, scheduler, latency, progress.first)
    shadow = None
    if reference is not None:
        shadow = _shadow(reference, episode, settings, timeline, progress.second)
    return _Measurement(policy, episode, timeline, shadow).result()


def _check_episode(policy: ReplayedPolicy, episode: Episode) -> None:
    if not episode.observations:
        raise CalibrationError(
            "the episode holds no observation: record the cameras and the state"
        )
    size = len(policy.action_names)
    if episode.actions is not None and episode.actions.shape[1] != size:
        raise CalibrationError(
            f"the episode's actions have {episode.actions.shape[1]} dimensions, the policy's "
            f"{size} ({', '.join(policy.action_names)})"
        )


@dataclass(frozen=True, slots=True)
class _Progress:
    """Two passes over the observations as one count."""

    total: int
    report: Callable[[int, int], None] | None

    def first(self, done: int, _: int) -> None:
        if self.report is not None:
            self.report(done, self.total)

    def second(self, done: int, count: int) -> None:
        self.first(self.total - count + done, count)


def _shadow(
    reference: ReplayedPolicy,
    episode: Episode,
    settings: ReplaySettings,
    timeline: Timeline,
    on_progress: Callable[[int, int], None],
) -> Timeline:
    latencies = {one.index: one.ended_ns - one.began_ns for one in timeline.served}

    def latency(index: int, _: int) -> int:
        return latencies.get(index, 0)

    scheduler = ChunkScheduler(settings.scheduler)
    return run_timeline(reference, episode.observations, scheduler, latency, on_progress)


class _Measurement:
    """What is computed from the timelines; normalised action space throughout."""

    def __init__(
        self,
        policy: ReplayedPolicy,
        episode: Episode,
        timeline: Timeline,
        shadow: Timeline | None,
    ) -> None:
        self._names = tuple(policy.action_names)
        self._normalize = policy.processing.normalized_actions
        self._horizon = policy.horizon
        self._episode = episode
        self._timeline = timeline
        self._shadow = shadow
        self._stamps = np.array([one.stamp_ns for one in episode.observations], dtype=np.int64)

    def result(self) -> ReplayResult:
        status = self._timeline.status
        pairs, reference_pairs = self._recorded_pairs(), self._reference_pairs()
        times = StageTimes(window=max(1, len(self._timeline.served)))
        for one in self._timeline.served:
            times.add(stage_times_ms(one.timed))
        executed = self._executed_counts()
        return ReplayResult(
            name=str(self._episode.metadata.get("name", "episode")),
            action_names=self._names,
            steps=len(self._stamps),
            duration_s=float(self._stamps[-1] - self._stamps[0]) / 1e9,
            inferences=len(self._timeline.served),
            chunks=status.chunks,
            holds=dict(Counter(o.reason for o in self._timeline.due if isinstance(o, Hold))),
            drops=status.drops,
            deadline_misses=status.deadline_misses,
            stages=times.summary(),
            latency_ms=tuple(one.timed.wall_ns / 1e6 for one in self._timeline.served),
            executed_steps=tuple(executed.tolist()),
            recorded_error=self._error(pairs, executed),
            reference_error=self._error(reference_pairs, executed),
            seams=self._seams(),
            traces=self._traces(),
            recorded_pairs=pairs,
            reference_pairs=reference_pairs,
        )

    def _error(self, pairs: ChunkPairs | None, executed: np.ndarray) -> ActionError | None:
        return pooled_error([pairs], executed, Grippers.by_name(self._names))

    def _executed_counts(self) -> np.ndarray:
        indices = [one.index for one in self._timeline.due if isinstance(one, ScheduledAction)]
        return np.bincount(np.array(indices, dtype=np.int64), minlength=self._horizon)

    def _chunks(self, timeline: Timeline) -> dict[int, np.ndarray]:
        return {
            one.index: self._normalize(one.timed.inference.chunk.actions)
            for one in timeline.served
        }

    def _recorded_pairs(self) -> ChunkPairs | None:
        if self._episode.actions is None or not self._timeline.served:
            return None
        recorded = self._normalize(self._episode.actions)
        windows = [self._steps_due(one.timed.inference.chunk) for one in self._timeline.served]
        predicted = np.stack(list(self._chunks(self._timeline).values()))
        target = np.stack([recorded[np.maximum(window, 0)] for window in windows])
        valid = np.stack([window >= 0 for window in windows])
        return ChunkPairs(predicted, target, valid & _are_finite(predicted))

    def _steps_due(self, chunk: ActionChunk) -> np.ndarray:
        """For each action of ``chunk`` the recorded step at its due time, -1 where is none."""
        due = chunk.observed_at_ns + np.arange(chunk.horizon, dtype=np.int64) * chunk.period_ns
        nearest = np.searchsorted(self._stamps, due - chunk.period_ns // 2)
        inside = np.minimum(nearest, len(self._stamps) - 1)
        close = np.abs(self._stamps[inside] - due) <= chunk.period_ns // 2
        return np.where(close, inside, -1)

    def _reference_pairs(self) -> ChunkPairs | None:
        if self._shadow is None:
            return None
        ours, theirs = self._chunks(self._timeline), self._chunks(self._shadow)
        both = [index for index in ours if index in theirs]
        if not both:
            return None
        predicted = np.stack([ours[index] for index in both])
        target = np.stack([theirs[index] for index in both])
        valid = _are_finite(predicted) & _are_finite(target)
        return ChunkPairs(predicted, target, np.repeat(valid, self._horizon, axis=1))

    def _seams(self) -> SeamJumps:
        jumps = [
            # A difference of actions is scaled by the slope alone.
            np.abs(self._normalize(one.seam_jump) - self._normalize(np.zeros_like(one.seam_jump)))
            for one in self._timeline.acceptances
            if one.seam_jump is not None
        ]
        return SeamJumps.of(np.array(jumps).reshape(-1, len(self._names)))

    def _traces(self) -> ActionTraces:
        recorded = self._episode.actions
        return ActionTraces(
            times_s=(self._stamps - self._stamps[0]) / 1e9,
            executed=self._trace(self._timeline),
            recorded=None if recorded is None else self._normalize(recorded),
            reference=None if self._shadow is None else self._trace(self._shadow),
        )

    def _trace(self, timeline: Timeline) -> np.ndarray:
        trace = np.full((len(timeline.due), len(self._names)), np.nan, np.float32)
        for row, due in zip(trace, timeline.due, strict=True):
            if isinstance(due, ScheduledAction):
                row[:] = self._normalize(due.action)
        return trace


def _are_finite(chunks: np.ndarray) -> np.ndarray:
    """``bool [chunks, 1]``: the scheduler refuses a chunk as a whole, so it counts as a whole."""
    return np.isfinite(chunks).all(axis=(1, 2))[:, None]
