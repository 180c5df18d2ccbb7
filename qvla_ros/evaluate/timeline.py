"""The robot's loop on simulated time: one episode through a policy and the scheduler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qvla_ros.errors import QvlaError
from qvla_ros.evaluate.latency import TimedInference, time_inference
from qvla_ros.observation import Observation
from qvla_ros.policy.chunk_scheduler import (
    Acceptance,
    ChunkScheduler,
    Hold,
    ScheduledAction,
    SchedulerStatus,
)
from qvla_ros.policy.inference import ServedPolicy
from qvla_ros.policy.reasons import DropReason

LatencyModel = Callable[[int, int], int]
"""From an observation's index and its measured time to how long inference takes, nanoseconds."""


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
        due: For each observation's stamp, what the robot was to do at that instant.
        status: The scheduler's counts at the end.
    """

    served: tuple[Served, ...]
    acceptances: tuple[Acceptance, ...]
    due: tuple[ScheduledAction | Hold, ...]
    status: SchedulerStatus


def run_timeline(
    policy: ServedPolicy,
    observations: Sequence[Observation],
    scheduler: ChunkScheduler,
    latency: LatencyModel,
    on_progress: Callable[[int, int], None] | None = None,
) -> Timeline:
    """Gives each observation at its stamp to the loop and asks the scheduler at each stamp.

    As on the robot the newest observation wins while inference is under way, and the instruction's
    change flushes. At one instant a chunk that is ready comes first, then the observation, then
    the question for the action.

    Args:
        policy: What answers.
        observations: Their stamps rise.
        scheduler: A fresh one.
        latency: How long each inference takes on simulated time.
        on_progress: Called with observations done and observations in all.
    """
    _check_stamps(observations)
    loop = _SimulatedLoop(policy, scheduler, latency)
    due: list[ScheduledAction | Hold] = []
    for index, observation in enumerate(observations):
        now_ns = observation.stamp_ns
        loop.advance(now_ns)
        if index and observation.instruction != observations[index - 1].instruction:
            scheduler.flush("instruction_changed")
        loop.offer(_Offer(index, observation, scheduler.epoch), now_ns)
        loop.advance(now_ns)
        due.append(scheduler.action_at(now_ns))
        if on_progress is not None:
            on_progress(index + 1, len(observations))
    status = scheduler.status(observations[-1].stamp_ns)
    return Timeline(tuple(loop.served), tuple(loop.acceptances), tuple(due), status)


def _check_stamps(observations: Sequence[Observation]) -> None:
    if not observations:
        raise ValueError("an episode without observations has no timeline")
    for index in range(1, len(observations)):
        if observations[index].stamp_ns <= observations[index - 1].stamp_ns:
            raise ValueError(f"the stamp of observation {index} is not later than the one before")


@dataclass(frozen=True, slots=True)
class _Offer:
    index: int
    observation: Observation
    epoch: int


class _SimulatedLoop:
    """``InferenceLoop`` without the thread: the same decisions at simulated instants."""

    def __init__(
        self, policy: ServedPolicy, scheduler: ChunkScheduler, latency: LatencyModel
    ) -> None:
        self.served: list[Served] = []
        self.acceptances: list[Acceptance] = []
        self._policy = policy
        self._scheduler = scheduler
        self._latency = latency
        self._under_way: tuple[Served, int] | None = None
        self._pending: _Offer | None = None

    def offer(self, offer: _Offer, now_ns: int) -> None:
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
            self.acceptances.append(self._scheduler.accept(chunk, served.ended_ns, epoch))
            pending, self._pending = self._pending, None
            if pending is not None:
                self._begin(pending, served.ended_ns)

    def _begin(self, offer: _Offer, now_ns: int) -> None:
        stamp_ns = offer.observation.stamp_ns
        if self._scheduler.admit(stamp_ns, now_ns, offer.epoch) is not None:
            return
        try:
            timed = time_inference(self._policy, offer.observation)
        except (QvlaError, ValueError):
            self._scheduler.drop(DropReason.INFERENCE_FAILED)
            return
        ended_ns = now_ns + self._latency(offer.index, timed.wall_ns)
        served = Served(offer.index, now_ns, ended_ns, timed)
        self.served.append(served)
        self._under_way = (served, offer.epoch)
