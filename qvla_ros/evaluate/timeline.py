"""The robot's loop on simulated time: one episode through a policy and the scheduler."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qvla_ros.errors import CalibrationError, QvlaError
from qvla_ros.evaluate.episode import Episode
from qvla_ros.evaluate.latency import TimedInference, time_inference
from qvla_ros.observation import Observation
from qvla_ros.policy.chunk_scheduler import ChunkScheduler
from qvla_ros.policy.frame_sync import Pace
from qvla_ros.policy.inference import ServedPolicy
from qvla_ros.policy.reasons import DropReason
from qvla_ros.policy.schedule import Acceptance, Hold, ScheduledAction, SchedulerStatus

LatencyModel = Callable[[int, int], int]
"""From an observation's index and its measured time to how long inference takes, nanoseconds."""


@dataclass(frozen=True, slots=True)
class Robot:
    """The parts of the robot that have a memory; fresh ones for each run.

    Attributes:
        scheduler: Keeps the chunks.
        pace: Which observations are used.
        failure_limit: Inferences failed in a row that stop it for good.
    """

    scheduler: ChunkScheduler
    pace: Pace
    failure_limit: int


@dataclass(frozen=True, slots=True)
class Served:
    """One inference of the timeline.

    Attributes:
        index: Which observation it answers.
        began_ns: When it began, simulated time.
        ended_ns: When its chunk was ready, simulated time.
        timed: The answer, and how long it really took.
    """

    index: int
    began_ns: int
    ended_ns: int
    timed: TimedInference


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened.

    Attributes:
        served: Inferences that gave a chunk, in order.
        acceptances: What became of the chunks that were ready before the end.
        times_ns: ``int64 [instants]`` at which the robot asked for its action, a period apart.
        due: What it was to do at each of them.
        status: The scheduler's counts at the end.
        bad_messages: Observations that were due and could not be decoded.
        fault: Why the robot would have stopped for good; ``None`` if it would not.
    """

    served: tuple[Served, ...]
    acceptances: tuple[Acceptance, ...]
    times_ns: np.ndarray
    due: tuple[ScheduledAction | Hold, ...]
    status: SchedulerStatus
    bad_messages: int
    fault: str | None


def run_timeline(
    policy: ServedPolicy,
    episode: Episode,
    robot: Robot,
    latency: LatencyModel,
    on_progress: Callable[[int, int], None] | None = None,
) -> Timeline:
    """Gives the policy what is due when it is ready, and asks the scheduler at each step.

    As on the robot the newest observation wins while inference is under way, and another
    instruction revokes all chunks. At one instant a chunk that is ready comes first, then the
    instruction, the observation, and the question for the action.

    Args:
        policy: What answers.
        episode: At least one observation.
        robot: A fresh one.
        latency: How long each inference takes on simulated time.
        on_progress: Called with observations done and observations in all.
    """
    if not episode.observations:
        raise ValueError("an episode without observations has no timeline")
    first_ns, last_ns = int(episode.ready_ns[0]), int(episode.ready_ns[-1])
    times_ns = np.arange(first_ns, last_ns + 1, policy.period_ns, dtype=np.int64)
    scheduler, pace = robot.scheduler, robot.pace
    loop = _SimulatedLoop(policy, robot, latency)
    eyes = _Eyes(episode, scheduler, pace)
    due: list[ScheduledAction | Hold] = []
    for now_ns, kind, index in _events(episode, times_ns):
        loop.advance(now_ns)
        if kind == _REVOKED:
            scheduler.flush("instruction_changed")
            pace.due_ns = 0
        elif kind == _STEP:
            due.append(scheduler.action_at(now_ns))
        else:
            offer = eyes.look(index)
            if offer is not None:
                loop.offer(offer, now_ns)
                loop.advance(now_ns)
            if on_progress is not None:
                on_progress(index + 1, len(episode.observations))
    status = scheduler.status(last_ns)
    return Timeline(
        tuple(loop.served),
        tuple(loop.acceptances),
        times_ns,
        tuple(due),
        status,
        eyes.bad_messages,
        loop.fault,
    )


_REVOKED, _READY, _STEP = range(3)


def _events(episode: Episode, times_ns: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Instant, kind and index, in order."""
    events = [(now_ns, _REVOKED, index) for index, now_ns in enumerate(episode.revoked_ns)]
    events += [(now_ns, _READY, index) for index, now_ns in enumerate(episode.ready_ns.tolist())]
    events += [(now_ns, _STEP, index) for index, now_ns in enumerate(times_ns.tolist())]
    return iter(sorted(events))


@dataclass(frozen=True, slots=True)
class _Offer:
    index: int
    observation: Observation
    epoch: int


@dataclass(slots=True)
class _Eyes:
    """What of an episode the policy is asked about."""

    episode: Episode
    scheduler: ChunkScheduler
    pace: Pace
    bad_messages: int = 0

    def look(self, index: int) -> _Offer | None:
        """An observation, if it is due and can be decoded."""
        paced_ns = int(self.episode.paced_ns[index])
        if not self.pace.is_due(paced_ns):
            return None
        try:
            observation = self.episode.observations[index]
        except CalibrationError:
            self.bad_messages += 1
            return None
        self.pace.used(paced_ns)
        return _Offer(index, observation, self.scheduler.epoch)


class _SimulatedLoop:
    """``InferenceLoop`` without the thread: the same decisions at simulated instants."""

    def __init__(self, policy: ServedPolicy, robot: Robot, latency: LatencyModel) -> None:
        self.served: list[Served] = []
        self.acceptances: list[Acceptance] = []
        self.fault: str | None = None
        self._policy = policy
        self._scheduler = robot.scheduler
        self._failure_limit = robot.failure_limit
        self._failures_in_a_row = 0
        self._latency = latency
        self._under_way: tuple[Served, int] | None = None
        self._pending: _Offer | None = None

    def offer(self, offer: _Offer, now_ns: int) -> None:
        if self.fault is not None:
            return
        if self._under_way is None:
            self._begin(offer, now_ns)
            return
        if self._pending is not None:
            self._scheduler.drop(DropReason.SUPERSEDED)
        self._pending = offer

    def advance(self, now_ns: int) -> None:
        """Lets everything happen that is over by ``now_ns``."""
        while self._under_way is not None and self._under_way[0].ended_ns <= now_ns:
            served, epoch = self._under_way
            self._under_way = None
            chunk = served.timed.inference.chunk
            acceptance = self._scheduler.accept(chunk, served.ended_ns, epoch)
            self.acceptances.append(acceptance)
            if acceptance.dropped in (DropReason.NON_FINITE, DropReason.OUT_OF_LIMITS):
                self._fail(acceptance.violation or "the chunk is not finite")
            elif acceptance.dropped is None:
                self._failures_in_a_row = 0
            pending, self._pending = self._pending, None
            if pending is not None:
                self._begin(pending, served.ended_ns)

    def _begin(self, offer: _Offer, now_ns: int) -> None:
        stamp_ns = offer.observation.stamp_ns
        if self._scheduler.admit(stamp_ns, now_ns, offer.epoch) is not None:
            return
        try:
            timed = time_inference(self._policy, offer.observation)
        except (QvlaError, ValueError) as error:
            self._scheduler.drop(DropReason.INFERENCE_FAILED)
            self._fail(str(error))
            return
        ended_ns = now_ns + self._latency(offer.index, timed.wall_ns)
        served = Served(offer.index, now_ns, ended_ns, timed)
        self.served.append(served)
        self._under_way = (served, offer.epoch)

    def _fail(self, reason: str) -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row < self._failure_limit:
            return
        self.fault = (
            f"{self._failures_in_a_row} inferences failed in a row, the last one: {reason}"
        )
        if self._pending is not None:
            self._scheduler.drop(DropReason.NOT_SERVING)
            self._pending = None
        self._scheduler.flush("faulted")
