"""A recorded episode through the robot's own processing and scheduler, without ROS."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qvla_ros.errors import CalibrationError
from qvla_ros.evaluate.episode import Episode
from qvla_ros.evaluate.fidelity import ActionError, ActionScale, ChunkPairs, Grippers
from qvla_ros.evaluate.latency import stage_times_ms, warm_up
from qvla_ros.evaluate.limit_calibration import count_trips
from qvla_ros.evaluate.replay_result import ActionTraces, ReplayResult, SeamJumps, pooled_error
from qvla_ros.evaluate.timeline import Robot, Timeline, run_timeline
from qvla_ros.observation import Observation
from qvla_ros.policy.chunk_scheduler import ChunkScheduler
from qvla_ros.policy.chunk_strategy import ChunkStrategy
from qvla_ros.policy.frame_sync import Pace
from qvla_ros.policy.inference import ServedPolicy
from qvla_ros.policy.schedule import Hold, ScheduledAction, SchedulerSettings
from qvla_ros.policy.stage_times import StageTimes


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
        request_interval_ns: Least time between two images that the policy is asked about; see
            ``policy.frame_sync.request_interval_ns``.
        latency_ns: Simulated time of every inference; ``None`` takes the time that it really
            took, so that the run depends on the machine.
        warmup_count: Inferences before the first observation, left out of all figures.
        failure_limit: Inferences failed in a row that stop the robot for good.
        strategy: What overlapping chunks become; ``None``: the newest one decides.
    """

    scheduler: SchedulerSettings
    request_interval_ns: int = 0
    latency_ns: int | None = None
    warmup_count: int = 2
    failure_limit: int = 5
    strategy: ChunkStrategy | None = None

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
        on_progress: Called with observations done and observations in all, over both policies.

    Raises:
        CalibrationError: The episode is empty, none of its observations can be decoded, or its
            actions have another size than the policy's.
    """
    _check_episode(policy, episode)
    progress = _Progress(len(episode.observations) * (2 if reference else 1), on_progress)
    warm_up(policy, _first_usable(episode), settings.warmup_count)

    def run(
        one: ReplayedPolicy,
        latency: Callable[[int, int], int],
        report: Callable[[int, int], None],
    ) -> Timeline:
        scheduler = ChunkScheduler(settings.scheduler, settings.strategy)
        robot = Robot(scheduler, Pace(settings.request_interval_ns), settings.failure_limit)
        return run_timeline(one, episode, robot, latency, report)

    def simulated(_: int, measured_ns: int) -> int:
        return measured_ns if settings.latency_ns is None else settings.latency_ns

    timeline, shadow = run(policy, simulated, progress.first), None
    if reference is not None:
        latencies = {one.index: one.ended_ns - one.began_ns for one in timeline.served}
        shadow = run(reference, lambda index, _: latencies.get(index, 0), progress.second)
    return _Measurement(policy, episode, settings, timeline, shadow).result()


def _check_episode(policy: ReplayedPolicy, episode: Episode) -> None:
    if not episode.observations:
        raise CalibrationError(
            "the episode holds no observation: record the cameras and the state"
        )
    size = len(policy.action_names)
    if episode.actions is not None and episode.actions.values.shape[1] != size:
        raise CalibrationError(
            f"the episode's actions have {episode.actions.values.shape[1]} dimensions, the "
            f"policy's {size} ({', '.join(policy.action_names)})"
        )


def _first_usable(episode: Episode) -> Observation:
    troubles = []
    for index in range(len(episode.observations)):
        try:
            return episode.observations[index]
        except CalibrationError as error:
            troubles.append(error)
    raise troubles[0]


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


class _Measurement:
    """What is computed from the timelines; normalised action space throughout."""

    def __init__(
        self,
        policy: ReplayedPolicy,
        episode: Episode,
        settings: ReplaySettings,
        timeline: Timeline,
        shadow: Timeline | None,
    ) -> None:
        self._names = tuple(policy.action_names)
        self._normalize = policy.processing.normalized_actions
        self._grippers = Grippers.of(policy.processing)
        self._horizon = policy.horizon
        self._period_ns = policy.period_ns
        self._episode = episode
        self._limits = settings.scheduler.limits
        self._timeline = timeline
        self._shadow = shadow

    def result(self) -> ReplayResult:
        timeline, status = self._timeline, self._timeline.status
        pairs, reference_pairs = self._recorded_pairs(), self._reference_pairs()
        times = StageTimes(window=max(1, len(timeline.served)))
        for one in timeline.served:
            times.add(stage_times_ms(one.timed))
        executed = self._executed_counts()
        bad = {"bad_message": timeline.bad_messages} if timeline.bad_messages else {}
        return ReplayResult(
            name=str(self._episode.metadata.get("name", "episode")),
            action_names=self._names,
            grippers=self._grippers,
            steps=len(timeline.times_ns),
            duration_s=float(timeline.times_ns[-1] - timeline.times_ns[0]) / 1e9,
            inferences=len(timeline.served),
            chunks=status.chunks,
            holds=dict(Counter(one.reason for one in timeline.due if isinstance(one, Hold))),
            drops=dict(Counter(self._episode.drops) + Counter(status.drops) + Counter(bad)),
            trips=self._trips(),
            deadline_misses=status.deadline_misses,
            fault=timeline.fault,
            stages=times.summary(),
            latency_ms=tuple(one.timed.wall_ns / 1e6 for one in timeline.served),
            executed_steps=tuple(executed.tolist()),
            recorded_error=self._error(pairs, executed),
            reference_error=self._error(reference_pairs, executed),
            seams=self._seams(),
            traces=self._traces(),
            recorded_pairs=pairs,
            reference_pairs=reference_pairs,
        )

    def _error(self, pairs: ChunkPairs | None, executed: np.ndarray) -> ActionError | None:
        return pooled_error([pairs], executed, self._grippers)

    def _executed_counts(self) -> np.ndarray:
        indices = [one.index for one in self._timeline.due if isinstance(one, ScheduledAction)]
        return np.bincount(np.array(indices, dtype=np.int64), minlength=self._horizon)

    def _trips(self) -> dict[str, int]:
        if self._limits is None or not self._timeline.served:
            return {}
        chunks = [one.timed.inference.chunk.actions for one in self._timeline.served]
        return count_trips(self._limits, np.stack(chunks)).named(self._names)

    def _chunks(self, timeline: Timeline) -> dict[int, np.ndarray]:
        return {
            one.index: self._normalize(one.timed.inference.chunk.actions)
            for one in timeline.served
        }

    def _recorded(self, times_ns: np.ndarray) -> np.ndarray | None:
        if self._episode.actions is None:
            return None
        return self._normalize(self._episode.actions.at(times_ns, self._period_ns // 2))

    def _recorded_pairs(self) -> ChunkPairs | None:
        if not self._timeline.served:
            return None
        starts = [one.timed.inference.chunk.observed_at_ns for one in self._timeline.served]
        steps = np.arange(self._horizon, dtype=np.int64) * self._period_ns
        target = self._recorded(np.array(starts, dtype=np.int64)[:, None] + steps)
        if target is None:
            return None
        predicted = np.stack(list(self._chunks(self._timeline).values()))
        valid = np.isfinite(target).all(axis=2) & _are_finite(predicted)
        return ChunkPairs(predicted, target, valid)

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
        times_ns = self._timeline.times_ns
        return ActionTraces(
            times_s=(times_ns - times_ns[0]) / 1e9,
            executed=self._trace(self._timeline),
            recorded=self._recorded(times_ns),
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
