"""A policy for fault injection, and a loop around it that tests lead by gates and a clock."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from qvla_ros.action_chunk import ActionChunk
from qvla_ros.observation import Observation
from qvla_ros.policy.chunk_scheduler import ChunkScheduler, SchedulerSettings
from qvla_ros.policy.inference import Inference
from qvla_ros.policy.inference_loop import Answer, InferenceLoop, LoopSettings

MS = 1_000_000
PERIOD = 50 * MS


def observation(stamp_ns: int) -> Observation:
    return Observation(stamp_ns, {}, np.zeros(8, np.float32), "do it")


def answer(seen: Observation, value: float = 0.0) -> Inference:
    actions = np.full((8, 7), value, np.float32)
    chunk = ActionChunk(seen.stamp_ns, PERIOD, actions)
    return Inference(chunk, {"process": 1.0, "model": 20.0, "postprocess": 0.5})


class GatedPolicy:
    """For fault injection: waits at a gate in every inference, then does what the test ordered."""

    horizon = 8
    period_ns = PERIOD

    def __init__(self, behaviour: Callable[[Observation], Inference] = answer) -> None:
        self.behaviour = behaviour
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.seen: list[int] = []

    def memory_bytes(self) -> dict[str, int]:
        return {"weights": 1234}

    def infer(self, seen: Observation) -> Inference:
        self.seen.append(seen.stamp_ns)
        self.entered.release()
        assert self.gate.acquire(timeout=10)
        return self.behaviour(seen)

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=10)


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


class Bench:
    """A loop with a gated policy and a clock that the test moves."""

    def __init__(self, behaviour=answer, **settings):
        self.policy = GatedPolicy(behaviour)
        self.clock = ManualClock()
        self.scheduler = ChunkScheduler(SchedulerSettings(300 * MS, 200 * MS))
        self.out: queue.Queue[Answer[int]] = queue.Queue()
        self.loop = InferenceLoop(
            self.policy,
            self.scheduler,
            self.out.put,
            self.clock,
            LoopSettings(**{"warmup_count": 0, **settings}),
        )

    def offer(self, stamp_ns=None):
        stamp_ns = self.clock.now_ns if stamp_ns is None else stamp_ns
        self.loop.offer(observation(stamp_ns), stamp_ns)

    def serve_one(self):
        """One observation all the way to ``on_chunk``."""
        self.clock.now_ns += 50 * MS
        self.offer()
        self.policy.wait_entered()
        self.policy.gate.release()
        return self.out.get(timeout=10).inference

    def fail_one(self):
        self.clock.now_ns += 50 * MS
        self.offer()
        self.policy.wait_entered()
        self.policy.gate.release()

    def health(self):
        return self.loop.health(self.clock.now_ns)

    def drops(self):
        return self.health().drops

    def join(self):
        assert self.loop._run.thread is not None
        self.loop._run.thread.join(10)
        assert not self.loop._run.thread.is_alive()


@contextmanager
def started_benches() -> Iterator[Callable[..., Bench]]:
    """A maker of benches that serve, all of which are stopped at the end."""
    made: list[Bench] = []

    def make(*args, **settings) -> Bench:
        made.append(Bench(*args, **settings))
        made[-1].loop.start()
        return made[-1]

    yield make
    for bench in made:
        bench.policy.gate.release(1000)
        assert bench.loop.stop(10)
