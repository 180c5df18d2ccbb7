"""How far one policy's actions are from others, in normalised action space."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from qvla_ros.models.processing import ProcessingSettings


@dataclass(frozen=True, slots=True)
class ChunkPairs:
    """Chunks and what they are compared with, normalised to about [-1, 1].

    Attributes:
        predicted: ``float [samples, horizon, action_dim]``.
        target: The same shape; values where ``valid`` is false do not count.
        valid: ``bool [samples, horizon]``: false where there is nothing to compare with.
    """

    predicted: np.ndarray
    target: np.ndarray
    valid: np.ndarray

    def __post_init__(self) -> None:
        if self.predicted.ndim != 3 or self.predicted.shape != self.target.shape:
            raise ValueError(
                "predicted and target must both be [samples, horizon, action_dim], not "
                f"{list(self.predicted.shape)} and {list(self.target.shape)}"
            )
        if self.valid.dtype != np.bool_ or self.valid.shape != self.predicted.shape[:2]:
            raise ValueError(
                f"valid must be bool {list(self.predicted.shape[:2])}, "
                f"not {self.valid.dtype} {list(self.valid.shape)}"
            )

    @classmethod
    def whole(cls, predicted: np.ndarray, target: np.ndarray) -> "ChunkPairs":
        """Pairs of which every step counts."""
        return cls(predicted, target, np.ones(predicted.shape[:2], bool))

    @classmethod
    def joined(cls, pairs: Sequence["ChunkPairs"]) -> "ChunkPairs":
        """All samples of ``pairs``, e.g. of several episodes, in one."""
        return cls(
            np.concatenate([one.predicted for one in pairs]),
            np.concatenate([one.target for one in pairs]),
            np.concatenate([one.valid for one in pairs]),
        )


class ActionScale(Protocol):
    """The part of processing that knows what the numbers of an action mean."""

    @property
    def settings(self) -> ProcessingSettings:
        """Names and ranges."""

    def normalized_actions(self, actions: np.ndarray) -> np.ndarray:
        """Robot units ``[..., action_dim]`` to the network's space; affine in each dimension."""


@dataclass(frozen=True, slots=True)
class Grippers:
    """Which action dimensions open and close, and where the middle is.

    Attributes:
        dimensions: Indices into an action.
        middles: For each of them the normalised value between open and closed.
    """

    dimensions: tuple[int, ...] = ()
    middles: tuple[float, ...] = ()

    @classmethod
    def of(cls, scale: ActionScale) -> "Grippers":
        """The dimensions whose name contains ``gripper``, halfway through their range.

        A gripper that the network's space leaves alone has its own range there, any other one
        that of all dimensions.
        """
        settings = scale.settings
        middle = np.add(settings.action_low, settings.action_high) / 2
        middles = scale.normalized_actions(middle)
        names = settings.robot.action_names
        found = tuple(index for index, name in enumerate(names) if "gripper" in name)
        return cls(found, tuple(float(middles[index]) for index in found))


@dataclass(frozen=True, slots=True)
class ActionError:
    """Errors over all steps that count, normalised units.

    Attributes:
        mean_l1: Mean absolute error over steps and dimensions.
        rms: Root of the mean square error over steps and dimensions.
        executed_l1: As ``mean_l1``, each step of the chunk weighted by how often it is executed.
        l1_by_dimension: Mean absolute error of each action dimension.
        l1_by_step: Mean absolute error of each step of the chunk; NaN where none counts.
        gripper_flips: Gripper values on the other side of the middle than the target.
        gripper_values: Gripper values compared.
        steps: Steps compared.
    """

    mean_l1: float
    rms: float
    executed_l1: float
    l1_by_dimension: tuple[float, ...]
    l1_by_step: tuple[float, ...]
    gripper_flips: int
    gripper_values: int
    steps: int

    def to_json(self) -> dict[str, object]:
        """A JSON object; a step that was never compared is ``null``."""
        plain = asdict(self)
        plain["l1_by_step"] = [None if np.isnan(one) else one for one in self.l1_by_step]
        return plain


def action_error(
    pairs: ChunkPairs,
    step_weights: np.ndarray | None = None,
    grippers: Grippers | None = None,
) -> ActionError:
    """The error of ``pairs.predicted`` against ``pairs.target``.

    Args:
        pairs: What to compare.
        step_weights: ``[horizon]``, not negative, e.g. how often each step of a chunk is
            executed; ``None`` weighs all alike.
        grippers: Dimensions whose flips are counted; they stay in the other measures too.

    Raises:
        ValueError: No step counts, a value that counts is not finite, or the weights do not fit.
    """
    if not pairs.valid.any():
        raise ValueError("there is no step to compare")
    difference = (pairs.predicted.astype(np.float64) - pairs.target)[pairs.valid]
    if not np.isfinite(difference).all():
        raise ValueError("actions to compare must be finite")
    absolute = np.abs(difference)
    step_of = np.broadcast_to(np.arange(pairs.valid.shape[1]), pairs.valid.shape)[pairs.valid]
    flips, values = _count_flips(pairs, grippers or Grippers())
    return ActionError(
        mean_l1=float(absolute.mean()),
        rms=float(np.sqrt(np.square(difference).mean())),
        executed_l1=_weighted(absolute.mean(axis=1), step_of, step_weights, pairs.valid.shape[1]),
        l1_by_dimension=tuple(absolute.mean(axis=0).tolist()),
        l1_by_step=_by_step(absolute.mean(axis=1), step_of, pairs.valid.shape[1]),
        gripper_flips=flips,
        gripper_values=values,
        steps=len(absolute),
    )


def _weighted(
    errors: np.ndarray, step_of: np.ndarray, weights: np.ndarray | None, horizon: int
) -> float:
    if weights is None:
        return float(errors.mean())
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (horizon,) or not (weights >= 0).all():
        raise ValueError(f"step_weights must be {horizon} numbers that are not negative")
    each = weights[step_of]
    if each.sum() == 0:
        raise ValueError("step_weights give no weight to any step that counts")
    return float((errors * each).sum() / each.sum())


def _by_step(errors: np.ndarray, step_of: np.ndarray, horizon: int) -> tuple[float, ...]:
    counts = np.bincount(step_of, minlength=horizon)
    sums = np.bincount(step_of, weights=errors, minlength=horizon)
    means = np.full(horizon, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return tuple(means.tolist())


def _count_flips(pairs: ChunkPairs, grippers: Grippers) -> tuple[int, int]:
    chosen = list(grippers.dimensions)
    predicted = pairs.predicted[pairs.valid][:, chosen] > grippers.middles
    target = pairs.target[pairs.valid][:, chosen] > grippers.middles
    return int((predicted != target).sum()), int(predicted.size)
