"""Percentiles of stage times over a bounded window."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class StagePercentiles:
    """Milliseconds of one stage: percentiles and maximum over the window, and its sample count."""

    p50: float
    p95: float
    p99: float
    maximum: float
    count: int


def percentiles(milliseconds: Sequence[float]) -> StagePercentiles:
    """Percentiles (linear between samples) of at least one duration; ``ValueError`` if none."""
    if len(milliseconds) == 0:
        raise ValueError("percentiles of no samples")
    p50, p95, p99 = np.percentile(np.asarray(milliseconds, dtype=np.float64), [50, 95, 99])
    return StagePercentiles(
        float(p50), float(p95), float(p99), float(max(milliseconds)), len(milliseconds)
    )


class StageTimes:
    """The last ``window`` durations of each stage, the first ``warmup_count`` runs left out.

    Not thread safe: the owner locks.
    """

    def __init__(self, warmup_count: int = 0, window: int = 1000) -> None:
        if warmup_count < 0 or window < 1:
            raise ValueError(f"warmup_count {warmup_count} or window {window} is out of range")
        self._window = window
        self._warmup_left = warmup_count
        self._stages: dict[str, deque[float]] = {}

    def add(self, stage_ms: Mapping[str, float]) -> None:
        """Records one run: stage name to milliseconds."""
        if self._warmup_left > 0:
            self._warmup_left -= 1
            return
        for name, value in stage_ms.items():
            self._stages.setdefault(name, deque(maxlen=self._window)).append(float(value))

    def summary(self) -> dict[str, StagePercentiles]:
        """Stage name to its percentiles; stages never recorded are absent."""
        return {name: percentiles(list(values)) for name, values in self._stages.items()}
