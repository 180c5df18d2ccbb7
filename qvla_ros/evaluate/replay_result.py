"""What a replay found, and how several of them become one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from qvla_ros.evaluate.fidelity import ActionError, ChunkPairs, Grippers, action_error
from qvla_ros.policy.stage_times import StagePercentiles, percentiles


@dataclass(frozen=True, slots=True)
class SeamJumps:
    """How far the due action jumped when a chunk took over from a valid one, normalised units.

    Attributes:
        count: Seams.
        mean: Mean over seams of the greatest jump of any dimension.
        maximum: The greatest jump of any seam.
        mean_by_dimension: Mean jump of each action dimension.
    """

    count: int
    mean: float
    maximum: float
    mean_by_dimension: tuple[float, ...]

    @classmethod
    def of(cls, jumps: np.ndarray) -> "SeamJumps":
        """From absolute jumps ``[seams, action_dim]``; all zero without a seam."""
        if len(jumps) == 0:
            return cls(0, 0.0, 0.0, (0.0,) * jumps.shape[1])
        greatest = jumps.max(axis=1)
        by_dimension = tuple(jumps.mean(axis=0).tolist())
        return cls(len(jumps), float(greatest.mean()), float(greatest.max()), by_dimension)


@dataclass(frozen=True, slots=True)
class ActionTraces:
    """What was to be done at each observation's stamp, normalised units.

    Attributes:
        times_s: ``[steps]`` seconds since the first observation.
        executed: ``[steps, action_dim]`` of the policy, NaN where it held.
        recorded: As recorded, or ``None``.
        reference: Of the reference policy, NaN where it held; or ``None``.
    """

    times_s: np.ndarray
    executed: np.ndarray
    recorded: np.ndarray | None
    reference: np.ndarray | None

    def drift(
        self, against: np.ndarray | None, window_s: float = 1.0
    ) -> tuple[tuple[float, float], ...]:
        """Mean absolute difference of the executed from other actions over the episode.

        Args:
            against: ``recorded`` or ``reference``.
            window_s: Length of the windows that are averaged over.

        Returns:
            Start of each window in seconds with its error; windows without an action are left
            out; empty if there is nothing to compare with.
        """
        if against is None:
            return ()
        error = np.abs(self.executed - against).mean(axis=1)
        window_of = (self.times_s // window_s).astype(np.int64)
        acted = np.isfinite(error)
        return tuple(
            (float(window * window_s), float(error[acted & (window_of == window)].mean()))
            for window in np.unique(window_of[acted])
        )


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """One episode replayed.

    Attributes:
        name: Name of the episode.
        action_names: One name an action dimension.
        grippers: Which of them open and close.
        steps: Instants at which an action was asked for.
        duration_s: From the first of them to the last.
        inferences: Inferences that gave a chunk.
        chunks: Chunks that the scheduler accepted.
        holds: Instants without an action, by reason.
        drops: Samples, observations and chunks not used, by reason.
        trips: Chunks that go beyond a limit, by limit; only where limits are given.
        deadline_misses: Chunks that ran out before a successor was accepted.
        fault: Why the robot would have stopped for good; ``None`` if it would not.
        stages: Stage name to percentiles of the real time, milliseconds, warm-up left out.
        latency_ms: Real time of each inference, in order.
        executed_steps: How often each step of a chunk was executed.
        recorded_error: Chunks against the recorded actions; ``None`` without a recording.
        reference_error: Chunks against the reference policy's; ``None`` without one.
        seams: Jumps where chunks meet.
        traces: Actions over the episode (left out of the JSON).
        recorded_pairs, reference_pairs: What the errors were computed of (left out of the JSON).
    """

    name: str
    action_names: tuple[str, ...]
    grippers: Grippers
    steps: int
    duration_s: float
    inferences: int
    chunks: int
    holds: dict[str, int]
    drops: dict[str, int]
    trips: dict[str, int]
    deadline_misses: int
    fault: str | None
    stages: dict[str, StagePercentiles]
    latency_ms: tuple[float, ...]
    executed_steps: tuple[int, ...]
    recorded_error: ActionError | None
    reference_error: ActionError | None
    seams: SeamJumps
    traces: ActionTraces = field(repr=False)
    recorded_pairs: ChunkPairs | None = field(repr=False)
    reference_pairs: ChunkPairs | None = field(repr=False)

    def to_json(self) -> dict[str, object]:
        """A JSON object of everything but the arrays."""
        return {
            "name": self.name,
            "action_names": list(self.action_names),
            "steps": self.steps,
            "duration_s": self.duration_s,
            "inferences": self.inferences,
            "chunks": self.chunks,
            "holds": self.holds,
            "drops": self.drops,
            "trips": self.trips,
            "deadline_misses": self.deadline_misses,
            "fault": self.fault,
            "latency_ms": {name: asdict(one) for name, one in self.stages.items()},
            "executed_steps": list(self.executed_steps),
            "error_against_recorded": _error_json(self.recorded_error),
            "error_against_reference": _error_json(self.reference_error),
            "seam_jumps": asdict(self.seams),
            "drift_from_recorded": _drift_json(self.traces.drift(self.traces.recorded)),
            "drift_from_reference": _drift_json(self.traces.drift(self.traces.reference)),
        }


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """Several episodes as one; errors are over all their samples together.

    Attributes:
        episodes: How many.
        steps, inferences, chunks, deadline_misses: Sums.
        holds, drops, trips: Sums, by reason.
        faults: Name of each episode in which the robot would have stopped for good, and why.
        latency: Percentiles of the real time of all inferences, milliseconds.
        recorded_error: Against the recorded actions; ``None`` where nothing was recorded.
        reference_error: Against the reference policy; ``None`` without one.
        seam_maximum: The greatest jump at any seam.
    """

    episodes: int
    steps: int
    inferences: int
    chunks: int
    deadline_misses: int
    holds: dict[str, int]
    drops: dict[str, int]
    trips: dict[str, int]
    faults: dict[str, str]
    latency: StagePercentiles | None
    recorded_error: ActionError | None
    reference_error: ActionError | None
    seam_maximum: float

    @property
    def mean_error(self) -> float | None:
        """Mean absolute error against the reference, else against the recording, if any."""
        error = self.reference_error or self.recorded_error
        return None if error is None else error.mean_l1

    def to_json(self) -> dict[str, object]:
        """A JSON object."""
        plain = asdict(self)
        plain["recorded_error"] = _error_json(self.recorded_error)
        plain["reference_error"] = _error_json(self.reference_error)
        return plain


def summarize(results: Sequence[ReplayResult]) -> ReplaySummary:
    """All episodes of at least one replay together."""
    latency_ms = [one for result in results for one in result.latency_ms]
    executed = np.sum([result.executed_steps for result in results], axis=0)
    grippers = results[0].grippers
    return ReplaySummary(
        episodes=len(results),
        steps=sum(one.steps for one in results),
        inferences=sum(one.inferences for one in results),
        chunks=sum(one.chunks for one in results),
        deadline_misses=sum(one.deadline_misses for one in results),
        holds=_added([one.holds for one in results]),
        drops=_added([one.drops for one in results]),
        trips=_added([one.trips for one in results]),
        faults={one.name: one.fault for one in results if one.fault is not None},
        latency=percentiles(latency_ms) if latency_ms else None,
        recorded_error=pooled_error([one.recorded_pairs for one in results], executed, grippers),
        reference_error=pooled_error([one.reference_pairs for one in results], executed, grippers),
        seam_maximum=max(one.seams.maximum for one in results),
    )


def pooled_error(
    pairs: Sequence[ChunkPairs | None], executed_steps: np.ndarray, grippers: Grippers
) -> ActionError | None:
    """The error over all samples of ``pairs``; ``None`` if there is nothing to compare.

    Args:
        pairs: One entry an episode.
        executed_steps: ``[horizon]`` how often each step of a chunk was executed.
        grippers: Dimensions whose flips are counted.
    """
    present = [one for one in pairs if one is not None]
    if not present:
        return None
    joined = ChunkPairs.joined(present)
    if not joined.valid.any():
        return None
    weighable = (joined.valid.any(axis=0) & (executed_steps > 0)).any()
    return action_error(joined, executed_steps if weighable else None, grippers)


def _added(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _error_json(error: ActionError | None) -> dict[str, object] | None:
    return None if error is None else error.to_json()


def _drift_json(drift: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    return [{"time_s": time, "l1": error} for time, error in drift]
