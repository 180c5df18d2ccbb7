"""How large the inputs of every layer are: the diagonal of the Hessian of its output error.

An error in a weight costs as much as the input that it multiplies is large. Vision transformers
have a few input channels that are far larger than the rest; a clip search that weighs all columns
alike spends its levels in the wrong place.
"""

from functools import partial

import torch
from torch import Tensor, nn

from qvla_ros.errors import CalibrationError
from qvla_ros.models.openvla_oft import OpenVlaOft
from qvla_ros.quantize.calibration import CalibrationSet


def measure_input_energy(network: OpenVlaOft, calibration: CalibrationSet) -> dict[str, Tensor]:
    """Mean square of each input column of every layer, over tokens and frames.

    Returns:
        Layer name to float32 ``[columns]``.

    Raises:
        CalibrationError: A layer never ran on the frames.
    """
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}

    def add(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        flat = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        sums[name] = sums.get(name, torch.zeros(flat.shape[1])) + flat.square().sum(0)
        tokens[name] = tokens.get(name, 0) + len(flat)

    layers = network.linear_layers()
    hooks = [
        network.get_submodule(layer.name).register_forward_hook(partial(add, layer.name))
        for layer in layers
    ]
    try:
        with torch.inference_mode():
            for frame in calibration.frames:
                network(frame)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        if layer.name not in sums:
            raise CalibrationError(f"the layer {layer.name!r} never ran on the calibration frames")
    # Clones: tensors made in inference mode cannot take part in later gradients.
    return {layer.name: (sums[layer.name] / tokens[layer.name]).clone() for layer in layers}
