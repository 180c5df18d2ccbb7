"""How much a change of the action matters: a diagonal metric in normalised action space."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ActionMetric:
    """``||a||^2 = sum over time and dimension of weight * a^2``, weights of mean 1.

    Attributes:
        weights: float32 ``[horizon, action_dim]``, not negative.
    """

    weights: Tensor

    @classmethod
    def uniform(cls, horizon: int, action_dim: int) -> "ActionMetric":
        """Every step and every dimension counts the same."""
        return cls(torch.ones(horizon, action_dim))

    def squared_error(self, actions: Tensor, reference: Tensor) -> Tensor:
        """Mean weighted squared error, ``[batch]``; both arguments ``[batch, horizon, dim]``."""
        return ((actions - reference).square() * self.weights).mean(dim=(1, 2))

    def probes(self, count: int, generator: torch.Generator) -> Tensor:
        """Random signs scaled so that ``E[v v^T]`` is the metric: ``[count, horizon, dim]``."""
        shape = (count, *self.weights.shape)
        signs = torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
        return signs * (self.weights / self.weights.numel()).sqrt()
