"""GPTQ (Frantar et al., ICLR 2023), with the settings that its public code recommends for Llama.

Asymmetric min-max grids a row, columns in activation order, damping 0.01, and second moments of
the inputs that the *already quantized* layers answer, group of layers by group of layers (the
code's ``--act-order --true-sequential``). Inputs stay as they are. The zero point is not rounded
to an integer, which is strictly finer than the public code's.

``gptq-clip`` shrinks each row's range by the weight's own error first, as the public quantizer's
``mse`` option does (there by the power 2.4, here by squares).
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.stages import Stage, State
from qvla_ros.quantize.bit_plan import BitPlan
from qvla_ros.quantize.compensation import Compensator
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.quantized_model import (
    LayerCodes,
    QuantizedLayer,
    QuantizedModel,
    apply_layer,
)
from qvla_ros.quantize.rivals.contest import Contest
from qvla_ros.quantize.rounding import GridSearch, range_grid


class Gptq:
    """See the module."""

    def __init__(self, contest: Contest, search: GridSearch = range_grid) -> None:
        self._contest, self._search = contest, search

    def quantize(self, max_bytes: int) -> QuantizedModel:
        """See ``Method``."""
        plan = self._contest.spread(max_bytes)
        twin = copy.deepcopy(self._contest.network)
        with torch.no_grad():
            states = [twin.first_state(batch) for batch in self._contest.calibration.batches()]
            layers: dict[str, QuantizedLayer] = {}
            for stage in twin.stages():
                for group in self._groups(twin, stage, states[0]):
                    moment = _moment(twin, group[0], stage, states)
                    for layer, done in self._rounded(twin, group, moment, plan).items():
                        layers[layer] = done
                        apply_layer(twin, done, {})
                states = [stage.run(state) for state in states]
        return QuantizedModel(layers)

    def _groups(self, twin: VlaNetwork, stage: Stage, state: State) -> list[list[LinearLayer]]:
        """The layers of a stage in order, those that read the very same tensor together."""
        layers = [layer for layer in self._contest.layers if stage.owns(layer.name)]
        seen: dict[str, Tensor] = {}
        if layers:
            _watch(twin, layers, stage, [state], lambda name, inputs: seen.update({name: inputs}))
        groups: list[list[LinearLayer]] = []
        for layer in layers:
            if groups and seen[groups[-1][0].name] is seen[layer.name]:
                groups[-1].append(layer)
            else:
                groups.append([layer])
        return groups

    def _rounded(
        self, twin: VlaNetwork, group: list[LinearLayer], moment: Tensor, plan: BitPlan
    ) -> dict[str, QuantizedLayer]:
        compensator = Compensator(moment)
        done = {}
        for layer in group:
            weight = linear_weight(twin, layer).float()
            codes = LayerCodes(layer, plan.row_bits[layer.name], weight)
            for bits, index in codes.rows_by_width():
                grid = self._search(weight[index], bits, torch.ones(layer.columns))
                codes.put(index, grid, compensator.round(weight[index], grid, bits))
            done[layer.name] = codes.finished()
        return done


def _moment(twin: VlaNetwork, layer: LinearLayer, stage: Stage, states: list[State]) -> Tensor:
    total = torch.zeros(layer.columns, layer.columns)

    def add(name: str, inputs: Tensor) -> None:
        tokens = inputs.reshape(-1, layer.columns)
        total.addmm_(tokens.T, tokens)

    _watch(twin, [layer], stage, states, add)
    return total


def _watch(
    network: VlaNetwork,
    layers: list[LinearLayer],
    stage: Stage,
    states: list[State],
    look: Callable[[str, Tensor], None],
) -> None:
    """Run a stage on every batch and look at the inputs of some of its layers."""

    def tap(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda module, inputs: look(name, inputs[0])

    handles = [
        network.get_submodule(layer.name).register_forward_pre_hook(tap(layer.name))
        for layer in layers
    ]
    try:
        for state in states:
            stage.run(state)
    finally:
        for handle in handles:
            handle.remove()
