"""How far a packed checkpoint, run by the deployed kernels, is from its float network."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from qvla_ros.errors import CheckpointError
from qvla_ros.evaluate.comparison import NormalizedActions
from qvla_ros.evaluate.fidelity import ActionError
from qvla_ros.models.network import ModelInputs
from qvla_ros.models.registry import LoadedModel
from qvla_ros.policy.policy import load_policy
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.estimate import CHECKED_FRAMES

T = TypeVar("T")


def deployed_error(
    checkpoint: Path,
    model: LoadedModel,
    frames: Sequence[ModelInputs],
    on_progress: Callable[[int, int], None] | None = None,
) -> ActionError:
    """Ask both about every frame; the checkpoint one at a time, as on a robot.

    Raises:
        CheckpointError: The checkpoint cannot be read, or it or the network answers something
            that is no finite number.
    """
    policy = load_policy(checkpoint)
    exact = NormalizedActions(_float_answers(model, frames))
    answers = []
    for done, frame in enumerate(frames, start=1):
        answers.append(policy.normalized_actions(frame)[0].numpy())
        if on_progress is not None:
            on_progress(done, len(frames))
    packed = NormalizedActions(np.stack(answers))
    for name, found in ((model.model_id, exact), (str(checkpoint), packed)):
        if not np.isfinite(found.values).all():
            raise CheckpointError(f"{name} answers actions that are no finite numbers")
    return packed.error_against(exact, model.processing)


def _float_answers(model: LoadedModel, frames: Sequence[ModelInputs]) -> np.ndarray:
    """Several frames together, so that weights that are fetched are fetched less often."""
    batches = CalibrationSet(tuple(frames), "").batches(CHECKED_FRAMES)
    with torch.no_grad():
        return np.concatenate([model.network(batch).numpy() for batch in batches])


def quality(error: ActionError, kind: str, frames: int) -> dict[str, float]:
    """The figures that a checkpoint's manifest carries.

    Args:
        error: As measured.
        kind: ``"heldout"``, or ``"calibration"`` if the frames were calibrated on.
        frames: How many.
    """
    return {
        f"{kind}_action_error": error.mean_l1,
        f"{kind}_action_error_rms": error.rms,
        f"{kind}_gripper_flips": float(error.gripper_flips),
        f"{kind}_frames": float(frames),
    }


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
