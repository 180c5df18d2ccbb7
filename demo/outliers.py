"""How far a network's inputs and weights are from even: what makes it hard to quantize."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qvla_ros.evaluate.bag_layout import BagLayout
from qvla_ros.evaluate.episode import read_episode
from qvla_ros.models.robot_constants import ROBOT_CONSTANTS
from qvla_ros.policy.policy import float_policy
from qvla_ros.quantize.calibration import calibration_set

FRAMES = 16


@torch.inference_mode()
def outliers(folder: Path, bags: Sequence[Path]) -> dict[str, float]:
    """Over the matrices of the language model: how large the largest is against the usual.

    Args:
        folder: A float model.
        bags: Frames are taken evenly over all of them.

    Returns:
        Median and largest over the matrices of two ratios: an input's largest magnitude in the
        largest column to that in the median column (``inputs_``), and the largest weight to the root
        mean square of its matrix (``weights_``).
    """
    policy = float_policy(folder)
    layout = BagLayout.of_robot(ROBOT_CONSTANTS["libero"])
    seen = [one for bag in bags for one in read_episode(bag, layout).observations]
    columns: dict[str, Tensor] = {}
    weights: dict[str, float] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        peaks = inputs[0].flatten(0, -2).abs().amax(0)
        columns[name] = torch.maximum(columns[name], peaks) if name in columns else peaks

    for name, module in policy.network.llama.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(partial(note, name))
            weights[name] = float(module.weight.abs().max() / module.weight.square().mean().sqrt())
    for batch in calibration_set(seen, policy.processing, FRAMES).batches():
        policy.normalized_actions(batch)
    inputs = [float(peaks.max() / peaks.median()) for peaks in columns.values()]
    return {
        f"{kind}_{which}": round(float(of(ratios)), 1)
        for kind, ratios in (("inputs", inputs), ("weights", [*weights.values()]))
        for which, of in (("median", np.median), ("largest", np.max))
    }
