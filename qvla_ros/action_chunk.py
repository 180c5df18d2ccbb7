"""What a policy answers: a short open-loop sequence of actions, dated by its observation."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """``horizon`` actions, the i-th one due at ``observed_at_ns + i * period_ns``.

    Attributes:
        observed_at_ns: Stamp of the observation that the chunk answers, nanoseconds.
        period_ns: Time between two actions, nanoseconds.
        actions: ``float32 [horizon, action_dim]`` in robot units (after un-normalisation).
    """

    observed_at_ns: int
    period_ns: int
    actions: np.ndarray

    def __post_init__(self) -> None:
        if self.actions.dtype != np.float32 or self.actions.ndim != 2:
            raise ValueError(
                f"actions must be float32 [horizon, action_dim], "
                f"not {self.actions.dtype} {list(self.actions.shape)}"
            )
        if self.period_ns <= 0:
            raise ValueError(f"period_ns must be positive, not {self.period_ns}")

    @property
    def horizon(self) -> int:
        """Number of actions in the chunk."""
        return self.actions.shape[0]

    @property
    def ends_at_ns(self) -> int:
        """First instant that the chunk no longer covers, nanoseconds."""
        return self.observed_at_ns + self.horizon * self.period_ns
