"""How much a change of the action matters: a diagonal metric in normalised action space."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvla_ros.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class GripperMargin:
    """A gripper is a decision: a change counts by how near the answer is to the other decision.

    Attributes:
        dimensions: Indices into an action.
        threshold: Normalised value between open and closed.
        softness: Distance to the threshold, in normalised units, at which a change still counts;
            an answer on the threshold counts fully, one at five times this distance hardly.
    """

    dimensions: tuple[int, ...]
    threshold: float
    softness: float

    def __post_init__(self) -> None:
        if self.softness <= 0:
            raise ConfigurationError(f"the gripper's softness {self.softness} must be positive")

    def factor(self, answers: Tensor) -> Tensor:
        """1 on the threshold, falling to 0 on both sides (the slope of a logistic decision)."""
        distance = (answers - self.threshold) / self.softness
        return 1 - torch.tanh(distance / 2).square()


@dataclass(frozen=True, slots=True)
class ActionMetric:
    """``||a||^2 = mean over time and dimension of weight * a^2``, weights of mean 1.

    Attributes:
        weights: float32 ``[horizon, action_dim]``, not negative.
        gripper: Weighs the gripper's dimensions by their margin, frame by frame.
    """

    weights: Tensor
    gripper: GripperMargin | None = None

    @classmethod
    def uniform(cls, horizon: int, action_dim: int) -> "ActionMetric":
        """Every step and every dimension counts the same."""
        return cls(torch.ones(horizon, action_dim))

    @classmethod
    def weighted(
        cls,
        steps: Sequence[float],
        dimensions: Sequence[float],
        gripper: GripperMargin | None = None,
    ) -> "ActionMetric":
        """Weights a step (e.g. executed steps count more) times weights a dimension.

        Raises:
            ConfigurationError: A weight is negative or not finite, or all are zero.
        """
        weights = torch.outer(torch.tensor(steps).float(), torch.tensor(dimensions).float())
        if not torch.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise ConfigurationError(
                "the weights of action steps and dimensions must be finite, not negative and not "
                f"all zero: {list(steps)}, {list(dimensions)}"
            )
        return cls(weights / weights.mean(), gripper)

    def at(self, answers: Tensor) -> Tensor:
        """Weights at the answers ``[..., horizon, action_dim]``, the same shape."""
        weights = self.weights.to(answers.dtype).expand_as(answers).clone()
        if self.gripper is not None:
            chosen = list(self.gripper.dimensions)
            weights[..., chosen] *= self.gripper.factor(answers[..., chosen])
        return weights

    def squared_error(self, actions: Tensor, reference: Tensor) -> Tensor:
        """Mean weighted squared error, ``[batch]``; both arguments ``[batch, horizon, dim]``."""
        return ((actions - reference).square() * self.at(reference)).mean(dim=(1, 2))

    def probes(self, count: int, answers: Tensor, generator: torch.Generator) -> Tensor:
        """Random signs scaled so that ``E[v v^T]`` is the metric at the answers.

        Args:
            count: How many.
            answers: ``[frames, horizon, action_dim]``.
            generator: Of the signs.

        Returns:
            ``[count, frames, horizon, action_dim]``; a frame's signs do not depend on how many
            frames are answered together.
        """
        draws = [
            torch.randint(0, 2, (count, *frame.shape), generator=generator) * 2 - 1
            for frame in answers
        ]
        scale = (self.at(answers) / self.weights.numel()).sqrt()
        return torch.stack(draws, dim=1) * scale
