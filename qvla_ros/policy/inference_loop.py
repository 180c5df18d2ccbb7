"""The worker that turns the newest observation into chunks, and tells how it fares."""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from qvla_ros.errors import ConfigurationError, QvlaError
from qvla_ros.observation import Observation
from qvla_ros.policy.chunk_scheduler import ChunkScheduler
from qvla_ros.policy.health import TOTAL_STAGE, HealthFacts, LoopState, PolicyHealth, assess
from qvla_ros.policy.inference import Inference, ServedPolicy
from qvla_ros.policy.memory import process_memory
from qvla_ros.policy.reasons import DropReason
from qvla_ros.policy.schedule import Acceptance
from qvla_ros.policy.stage_times import StagePercentiles, StageTimes

_LOG = logging.getLogger(__name__)

HUNG_LIMIT = 3
"""Workers left behind in inferences that do not end, before no other is started."""

About = TypeVar("About")


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How the loop serves.

    Attributes:
        warmup_count: First inferences after a start that the percentiles leave out.
        stage_window: Inferences that the percentiles look back on.
        failure_limit: Inferences failed in a row that latch a fault.
        silence_limit_ns: Longer without a chunk while serving is an error in the health.
    """

    warmup_count: int = 2
    stage_window: int = 1000
    failure_limit: int = 5
    silence_limit_ns: int = 2_000_000_000

    def __post_init__(self) -> None:
        if self.warmup_count < 0 or min(self.stage_window, self.failure_limit) < 1:
            raise ValueError(f"the loop's settings are out of range: {self}")


@dataclass(frozen=True, slots=True)
class Answer(Generic[About]):
    """An accepted inference.

    Attributes:
        inference: What the policy said.
        acceptance: What the scheduler made of it.
        about: What was handed over with the observation.
        accepted_ns: When the scheduler took it.
    """

    inference: Inference
    acceptance: Acceptance
    about: About
    accepted_ns: int


@dataclass(frozen=True, slots=True)
class _Offer(Generic[About]):
    observation: Observation
    about: About
    epoch: int


@dataclass(slots=True)
class _Run(Generic[About]):
    """One start of the worker; its own stop flag, so that a late worker cannot serve again."""

    times: StageTimes
    last_chunk_ns: int
    thread: threading.Thread | None = None
    pending: _Offer[About] | None = None
    busy: bool = False
    stopping: bool = False
    failures_in_a_row: int = 0


class InferenceLoop(Generic[About]):
    """Serves a policy from one worker thread, always on the newest observation.

    Args:
        policy: What answers the observations. A start after an inference that hangs calls it from
            a second thread.
        scheduler: Judges observations and chunks, and keeps what is to be executed.
        on_chunk: Called on the worker thread with each accepted inference.
        clock_ns: The present on the clock of the observations' stamps.
        settings: How the loop serves.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        scheduler: ChunkScheduler,
        on_chunk: Callable[[Answer[About]], None],
        clock_ns: Callable[[], int] = time.time_ns,
        settings: LoopSettings | None = None,
    ) -> None:
        self._policy = policy
        self._policy_memory = policy.memory_bytes()  # asked once: it walks through the network
        self._scheduler = scheduler
        self._on_chunk = on_chunk
        self._clock_ns = clock_ns
        self._settings = settings or LoopSettings()
        self._wake = threading.Condition()
        self._state = LoopState.STOPPED
        self._fault: tuple[str, str] | None = None
        self._run = self._new_run()
        self._left_behind: list[threading.Thread] = []

    @property
    def state(self) -> LoopState:
        """What the loop is doing."""
        with self._wake:
            return self._state

    @property
    def fault_reason(self) -> str | None:
        """Why the loop faulted, in one line; ``None`` if it did not."""
        with self._wake:
            return self._fault[0] if self._fault else None

    def start(self) -> None:
        """Starts serving with a new worker; does nothing if it does already.

        A worker of an earlier start whose inference has not ended is left behind: what it answers
        is refused.

        Raises:
            ConfigurationError: A fault is latched, or ``HUNG_LIMIT`` workers are left behind.
        """
        with self._wake:
            if self._state is LoopState.RUNNING:
                return
            if self._fault is not None:
                raise ConfigurationError(
                    f"the policy is faulted ({self._fault[0]}): reset the fault, then start"
                )
            threads = [*self._left_behind, *([self._run.thread] if self._run.thread else [])]
            self._left_behind = [thread for thread in threads if thread.is_alive()]
            if len(self._left_behind) >= HUNG_LIMIT:
                raise ConfigurationError(
                    f"{len(self._left_behind)} inferences never ended: restart the process"
                )
            run = self._new_run()
            run.thread = threading.Thread(
                target=self._work, args=(run,), name="qvla-inference", daemon=True
            )
            self._run = run
            self._state = LoopState.RUNNING
            run.thread.start()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Stops serving, flushes the scheduler and waits for the worker; harmless when stopped.

        What an inference under way answers is refused. Once this has returned true, ``on_chunk``
        is not called until the next ``start``. A latched fault stays.

        Args:
            timeout_s: How long to wait for the inference under way; ``None`` for as long as it
                takes.

        Returns:
            Whether the worker has ended.
        """
        with self._wake:
            run = self._run
            if run.thread is threading.current_thread():
                raise ValueError("the inference loop cannot be stopped from its own worker")
            was_running = self._state is LoopState.RUNNING
            self._close(run, LoopState.STOPPED)
        if was_running:
            self._scheduler.flush("stopped")
        if run.thread is None:
            return True
        run.thread.join(timeout_s)
        return not run.thread.is_alive()

    def reset_fault(self) -> None:
        """Forgets a latched fault; the loop stays stopped until ``start``."""
        with self._wake:
            if self._fault is not None:
                self._fault = None
                self._state = LoopState.STOPPED

    def offer(self, observation: Observation, about: About) -> None:
        """Hands over an observation; never blocks on inference, and the newest one wins.

        Args:
            observation: The policy's input.
            about: Given back with the answer.
        """
        offer = _Offer(observation, about, self._scheduler.epoch)
        dropped = None
        with self._wake:
            if self._state is not LoopState.RUNNING:
                dropped = DropReason.NOT_SERVING
            else:
                if self._run.pending is not None:
                    dropped = DropReason.SUPERSEDED
                self._run.pending = offer
                self._wake.notify_all()
        if dropped is not None:
            self._scheduler.drop(dropped)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is pending or under way; whether that came in time."""
        with self._wake:
            run = self._run
            return self._wake.wait_for(
                lambda: run.stopping or not (run.busy or run.pending), timeout_s
            )

    def health(self, now_ns: int) -> PolicyHealth:
        """The state of the policy at ``now_ns``, on the loop's clock."""
        status = self._scheduler.status(now_ns)
        memory = {**self._policy_memory, **process_memory()}
        with self._wake:
            stages = self._run.times.summary()
            verdict, reasons = assess(self._facts(now_ns, stages.get(TOTAL_STAGE)))
            return PolicyHealth(
                state=self._state,
                verdict=verdict,
                reasons=reasons,
                fault="\n".join(self._fault).strip() if self._fault else None,
                stages=stages,
                chunks=status.chunks,
                chunk_age_ns=status.chunk_age_ns,
                drops=status.drops,
                deadline_misses=status.deadline_misses,
                memory=memory,
            )

    def _facts(self, now_ns: int, total: StagePercentiles | None) -> HealthFacts:
        horizon_ns = self._policy.horizon * self._policy.period_ns
        return HealthFacts(
            state=self._state,
            fault_reason=self._fault[0] if self._fault else None,
            total=total,
            cover_ns=min(horizon_ns, self._scheduler.settings.ttl_ns),
            horizon_ns=horizon_ns,
            silence_ns=now_ns - self._run.last_chunk_ns,
            silence_limit_ns=self._settings.silence_limit_ns,
            failures_in_a_row=self._run.failures_in_a_row,
        )

    def _new_run(self) -> _Run[About]:
        times = StageTimes(self._settings.warmup_count, self._settings.stage_window)
        return _Run(times, last_chunk_ns=self._clock_ns())

    def _close(self, run: _Run[About], state: LoopState) -> None:
        """Ends the service of ``run``; the lock is held."""
        run.stopping = True
        if run.pending is not None:
            run.pending = None
            self._scheduler.drop(DropReason.NOT_SERVING)
        if run is self._run and self._state is LoopState.RUNNING:
            self._state = state
        self._wake.notify_all()

    def _work(self, run: _Run[About]) -> None:
        try:
            while (offer := self._take(run)) is not None:
                self._serve(offer, run)
        except Exception as error:  # the outermost frame: whatever it is, stop and say so
            self._latch(run, f"{type(error).__name__}: {error}", traceback.format_exc())

    def _take(self, run: _Run[About]) -> _Offer[About] | None:
        with self._wake:
            run.busy = False
            self._wake.notify_all()
            self._wake.wait_for(lambda: run.stopping or run.pending is not None)
            offer, run.pending = run.pending, None
            run.busy = offer is not None and not run.stopping
            return offer if run.busy else None

    def _serve(self, offer: _Offer[About], run: _Run[About]) -> None:
        stamp_ns = offer.observation.stamp_ns
        if self._scheduler.admit(stamp_ns, self._clock_ns(), offer.epoch) is not None:
            return
        try:
            inference = self._policy.infer(offer.observation)
        except (QvlaError, ValueError) as error:
            self._scheduler.drop(DropReason.INFERENCE_FAILED)
            self._count_failure(run, f"{type(error).__name__}: {error}", traceback.format_exc())
            return
        now_ns = self._clock_ns()
        acceptance = self._scheduler.accept(inference.chunk, now_ns, offer.epoch)
        self._record(run, inference, now_ns - stamp_ns)
        if acceptance.dropped is DropReason.NON_FINITE:
            self._count_failure(run, "the chunk holds a value that is not finite", "")
        elif acceptance.dropped is DropReason.OUT_OF_LIMITS:
            self._count_failure(run, f"the chunk is out of its limits: {acceptance.violation}", "")
        elif acceptance.dropped is None:
            with self._wake:
                run.failures_in_a_row = 0
                run.last_chunk_ns = now_ns
            self._on_chunk(Answer(inference, acceptance, offer.about, now_ns))

    def _record(self, run: _Run[About], inference: Inference, stamp_to_chunk_ns: int) -> None:
        with self._wake:
            run.times.add(
                {
                    **inference.stage_ms,
                    TOTAL_STAGE: inference.total_ms,
                    "stamp_to_chunk": stamp_to_chunk_ns / 1e6,
                }
            )

    def _count_failure(self, run: _Run[About], reason: str, trace: str) -> None:
        _LOG.warning("inference failed: %s", reason)
        with self._wake:
            run.failures_in_a_row += 1
            count = run.failures_in_a_row
        if count >= self._settings.failure_limit:
            self._latch(run, f"{count} inferences failed in a row, the last one: {reason}", trace)

    def _latch(self, run: _Run[About], reason: str, trace: str) -> None:
        with self._wake:
            if run.stopping:  # a worker left behind says nothing about the present service
                _LOG.warning("an inference that was given up failed: %s", reason)
                return
            _LOG.error("the policy is faulted: %s\n%s", reason, trace)
            self._fault = (reason, trace)
            self._close(run, LoopState.FAULTED)
        self._scheduler.flush("faulted")
