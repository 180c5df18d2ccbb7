"""How long a policy takes. One of the few places that read a clock."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from qvla_ros.errors import QvlaError
from qvla_ros.evaluate.machine import describe_machine
from qvla_ros.observation import Observation
from qvla_ros.policy.health import TOTAL_STAGE
from qvla_ros.policy.inference import Inference, ServedPolicy
from qvla_ros.policy.stage_times import StagePercentiles, StageTimes

WALL_STAGE = "wall"
"""Stage name of the time around the whole call, on the machine's clock."""


@dataclass(frozen=True, slots=True)
class TimedInference:
    """An inference and the time around it, nanoseconds of the machine's monotonic clock."""

    inference: Inference
    wall_ns: int


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """Latency after warm-up.

    Attributes:
        stages: Stage name to percentiles in milliseconds; ``"wall"`` is the whole call.
        wall_ms: Every counted call, in order.
        warmup_count: Calls left out before.
        machine: What it was measured on.
    """

    stages: dict[str, StagePercentiles]
    wall_ms: tuple[float, ...]
    warmup_count: int
    machine: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        return asdict(self)


def time_inference(policy: ServedPolicy, observation: Observation) -> TimedInference:
    """Runs the policy once and measures the time around it."""
    before = time.perf_counter_ns()
    inference = policy.infer(observation)
    return TimedInference(inference, time.perf_counter_ns() - before)


def warm_up(policy: ServedPolicy, observation: Observation, count: int) -> None:
    """Runs the policy ``count`` times for nothing; one that cannot answer is for later to tell."""
    for _ in range(count):
        try:
            policy.infer(observation)
        except (QvlaError, ValueError):
            return


def measure_latency(
    policy: ServedPolicy,
    observations: Sequence[Observation],
    count: int,
    warmup_count: int = 3,
    on_progress: Callable[[int, int], None] | None = None,
) -> LatencyResult:
    """Times ``count`` inferences over ``observations`` in turn, after a warm-up.

    Args:
        policy: What to time.
        observations: At least one.
        count: Inferences to time.
        warmup_count: Inferences before, left out.
        on_progress: Called with calls done and calls in all.
    """
    if not observations or count < 1:
        raise ValueError("at least one observation and one inference are needed")
    warm_up(policy, observations[0], warmup_count)
    times = StageTimes(window=count)
    wall_ms: list[float] = []
    for index in range(count):
        timed = time_inference(policy, observations[index % len(observations)])
        wall_ms.append(timed.wall_ns / 1e6)
        times.add(stage_times_ms(timed))
        if on_progress is not None:
            on_progress(index + 1, count)
    return LatencyResult(times.summary(), tuple(wall_ms), warmup_count, describe_machine())


def stage_times_ms(timed: TimedInference) -> dict[str, float]:
    """The stages of one inference with their sum and the time around it, milliseconds."""
    return {
        **timed.inference.stage_ms,
        TOTAL_STAGE: timed.inference.total_ms,
        WALL_STAGE: timed.wall_ns / 1e6,
    }
