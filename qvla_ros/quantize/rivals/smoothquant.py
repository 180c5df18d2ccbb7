"""SmoothQuant (Xiao et al., ICML 2023): move the outliers of the inputs into the weights.

``s_j = max|x_j|^a / max|w_j|^(1-a)`` with ``a`` = 0.5, folded into the norms before attention and
MLP; weights round to nearest, symmetric, a scale a row; inputs of all layers are rounded to int8
token by token (the paper's O1). W8A8 at 8 bits; at other budgets the weights are narrower.
"""

import copy
from functools import cached_property

import torch

from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.quantized_model import QuantizedModel
from qvla_ros.quantize.rivals.by_plan import nearest_on, rounded
from qvla_ros.quantize.rivals.contest import Contest
from qvla_ros.quantize.rivals.folding import changed_parameters, fold, norm_groups
from qvla_ros.quantize.rounding import nearest_grid

ALPHA = 0.5
_SMALLEST = 1e-5  # of magnitudes and scales, as in the public code


class SmoothQuant:
    """See the module."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """See ``Method``."""
        twin = self._smoothed
        return rounded(
            twin,
            self._contest.spread(max_bytes),
            lambda layer, rows, bits: nearest_on(
                nearest_grid, rows, bits, torch.ones(layer.columns)
            ),
            activation_bits=8,
            overrides=changed_parameters(self._contest.network, twin),
        )

    @cached_property
    def _smoothed(self) -> VlaNetwork:
        twin = copy.deepcopy(self._contest.network)
        layers = {layer.name: layer for layer in self._contest.layers}
        for group in norm_groups(twin):
            peak = self._contest.evidence.inputs(layers[group.layers[0]]).peak
            weights = [
                twin.get_submodule(name).get_parameter("weight").detach() for name in group.layers
            ]
            largest = torch.cat(weights).abs().amax(0)
            scale = peak.clamp_min(_SMALLEST) ** ALPHA / largest.clamp_min(_SMALLEST) ** (
                1 - ALPHA
            )
            fold(twin, group, scale.clamp_min(_SMALLEST))
        return twin
