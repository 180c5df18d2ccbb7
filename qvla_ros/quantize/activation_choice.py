"""Which layers may read 8-bit activations: by the exact action error of each, alone.

A layer's inputs are rounded token by token, as the integer kernel does, and the action is looked
at: no proxy is needed, for there are only some hundreds of layers. The cheapest layers go first,
as long as the sum of their errors stays within a share of what the weights cost anyway.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.bit_plan import BitPlan
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.exact import measure_edits
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.quantized_model import fake_quantized, rounded_activations
from qvla_ros.quantize.reconstruction import reconstruct

ERROR_SHARE = 0.4
"""Squared action error that 8-bit activations may add, as a share of that of the weights: the
root of the sum grows by a factor of 1.18."""


def activation_errors(
    network: VlaNetwork,
    calibration: CalibrationSet,
    metric: ActionMetric,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Mean squared action change of rounding the inputs of each layer, one layer at a time.

    Args:
        network: The float network.
        calibration: Frames.
        metric: What counts as an action change.
        on_progress: Called with (done, total).
    """
    layers = network.linear_layers()
    edits = [{one.name: partial(_with_rounded_inputs, network, one)} for one in layers]
    errors = measure_edits(network, calibration, metric, edits, on_progress=on_progress)
    return {layer.name: float(error) for layer, error in zip(layers, errors, strict=True)}


def _with_rounded_inputs(
    network: VlaNetwork, layer: LinearLayer, inputs: Tensor, outputs: Tensor
) -> Tensor:
    change = rounded_activations(inputs) - inputs
    return outputs + change @ linear_weight(network, layer).T


def choose_activations(
    errors: Mapping[str, float], weight_error: float, share: float = ERROR_SHARE
) -> dict[str, int]:
    """Layer name to 8, of the layers whose inputs may be rounded.

    Args:
        errors: Of each layer alone, see ``activation_errors``.
        weight_error: Squared action error of the rounded weights.
        share: Of that error that may be added.
    """
    chosen: dict[str, int] = {}
    left = share * weight_error
    for name, error in sorted(errors.items(), key=lambda item: (item[1], item[0])):
        left -= error
        if left < 0:
            break
        chosen[name] = 8
    return chosen


def plan_activations(
    network: VlaNetwork,
    plan: BitPlan,
    calibration: CalibrationSet,
    metric: ActionMetric,
    errors: Mapping[str, float],
    on_progress: Callable[[int, int], None] | None = None,
) -> BitPlan:
    """The plan with 8-bit activations where they add little to what its weights cost.

    What the weights cost is measured, not predicted: they are reconstructed once with 16-bit
    activations.

    Args:
        network: The float network.
        plan: Widths of the rows.
        calibration: The frames that were measured.
        metric: What counts as an action change.
        errors: See ``activation_errors``.
        on_progress: Called after every stage of the reconstruction.
    """
    plan = replace(plan, activation_bits={})
    twin = fake_quantized(network, reconstruct(network, plan, calibration, on_progress))
    changes = []
    with torch.inference_mode():
        for batch in calibration.batches():
            changes.append(metric.squared_error(twin(batch), network(batch)))
    weight_error = float(torch.cat(changes).mean())
    return replace(plan, activation_bits=choose_activations(errors, weight_error))
