"""Quantize a whole network by a plan, each layer on what the quantized layers before it answer.

Stage by stage, in execution order, the float and the quantized network see the same frames. For a
layer with float inputs x and quantized inputs y, both weighted by how much the action depends on
each token:

1. *Drift correction.* The weight moves towards the one whose answers on y are nearest to the float
   answers on x: ``W + DRIFT * W E[(x - y) y^T] (E[y y^T] + ridge)^-1``. Half the way: all of it
   fits the calibration frames better and held-out frames worse.
2. *Compensated rounding* of the rows, each at its width, under ``E[y y^T]``.
3. *Bias correction.* Where the layer has a bias, it takes up the mean error that is left. So a
   pruned row answers its mean.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qvla_ros.checkpoint.layout import layer_from_tensors, layer_to_tensors
from qvla_ros.errors import ConfigurationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.bit_plan import BitPlan
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.compensation import Compensator
from qvla_ros.quantize.drift import Drift
from qvla_ros.quantize.file_size import planned_spec
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.layer_evidence import ACTION_SHARE
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.quantized_model import (
    LayerCodes,
    QuantizedLayer,
    QuantizedModel,
    apply_layer,
    fake_quantized,
    rounded_activations,
)
from qvla_ros.quantize.rounding import Grid, clipped_grid
from qvla_ros.quantize.stage_inputs import GrowingStage, StageInputs

DRIFT = 0.5
"""How far the weight moves towards what fits the quantized inputs best."""

OnProgress = Callable[[int, int], None]


def reconstruct(
    network: VlaNetwork,
    plan: BitPlan,
    calibration: CalibrationSet,
    on_progress: OnProgress | None = None,
    journal: Journal | None = None,
) -> QuantizedModel:
    """Choose the codes of all layers.

    Args:
        network: The float network; it is left as it is.
        plan: Widths, and the token weights of the frames.
        calibration: The frames that were measured.
        on_progress: Called after every stage.
        journal: Where finished stages are kept, to go on after an interruption.

    Raises:
        ConfigurationError: The frames are not those of the plan.
    """
    if plan.calibration_fingerprint != calibration.fingerprint:
        raise ConfigurationError(
            "the calibration frames are not those that the plan was measured on: give the same "
            "bags and the same number of frames, or measure and plan again"
        )
    work = _Reconstruction(network, plan, calibration)
    total = len(work.stages)
    for index in range(total):
        part = f"stage-{index:04d}"
        kept = None if journal is None else journal.load(part)
        if kept is None:
            work.quantize_stage(index)
            if journal is not None:
                journal.save(part, work.stage_tensors(index))
        else:
            work.take_stage(index, kept)
        if on_progress is not None:
            on_progress(index + 1, total)
    return QuantizedModel(work.layers, work.overrides)


class _Reconstruction:
    """Both networks between two stages."""

    def __init__(self, network: VlaNetwork, plan: BitPlan, calibration: CalibrationSet) -> None:
        self._network = network
        self._twin = fake_quantized(network, QuantizedModel({}))
        self._plan = plan
        self.stages = network.stages()
        self._twin_stages = self._twin.stages()
        batches = calibration.batches()
        with torch.no_grad():
            self._exact = [network.first_state(batch) for batch in batches]
            self._states = [self._twin.first_state(batch) for batch in batches]
        self.layers: dict[str, QuantizedLayer] = {}
        self.overrides: dict[str, Tensor] = {}

    def layers_of(self, index: int) -> list[LinearLayer]:
        return [layer for layer in self._plan.layers if self.stages[index].owns(layer.name)]

    def quantize_stage(self, index: int) -> None:
        """Quantize the layers of a stage, and move the frames behind it."""
        layers = self.layers_of(index)
        exact = StageInputs(self._network, self.stages[index], layers, self._exact)
        growing = GrowingStage(self._twin, self._twin_stages[index], layers, self._states)
        for group in exact.groups() if layers else []:
            true, seen = exact.take(group), growing.inputs(group[0])
            for layer in group:
                self._quantize(layer, true, seen)
                growing.finish(layer)
        self._exact, self._states = exact.after, growing.after()

    def go_on(self, index: int) -> None:
        """Move the frames behind a stage that is quantized already."""
        with torch.no_grad():
            self._exact = [self.stages[index].run(state) for state in self._exact]
            self._states = [self._twin_stages[index].run(state) for state in self._states]

    def _drift(
        self, layer: LinearLayer, weight: Tensor, true: Sequence[Tensor], seen: Sequence[Tensor]
    ) -> Drift:
        weights = self._token_weights(layer)
        drift = Drift(weight, self._plan.input_columns.get(layer.name), len(weights))
        done = 0
        for exact, inputs in zip(true, seen, strict=True):
            if self._plan.activation_bits.get(layer.name) == 8:
                inputs = rounded_activations(inputs)
            drift.add(exact, inputs, weights[done : done + len(exact)])
            done += len(exact)
        return drift

    def _token_weights(self, layer: LinearLayer) -> Tensor:
        """``[tokens]`` of sum 1: partly all alike, partly by the action's slopes."""
        slopes = self._plan.token_weights[layer.name].clamp_min(0.0)
        mean = slopes.mean().clamp_min(torch.finfo(torch.float32).tiny)
        return ((1 - ACTION_SHARE) + ACTION_SHARE * slopes / mean) / slopes.numel()

    def _quantize(
        self, layer: LinearLayer, true: Sequence[Tensor], seen: Sequence[Tensor]
    ) -> None:
        weight = linear_weight(self._network, layer).float()
        drift = self._drift(layer, weight, true, seen)
        kept = self._plan.input_columns.get(layer.name)
        compensator = Compensator(drift.moment)
        corrected = drift.correction(compensator).mul_(DRIFT)
        corrected += weight if kept is None else weight[:, kept.long()]
        codes = LayerCodes(layer, self._plan.row_bits[layer.name], corrected)
        for bits, index in codes.rows_by_width():
            rows = corrected[index]
            grid: Grid = clipped_grid(rows, bits, drift.moment.diagonal())
            codes.put(index, grid, compensator.round(rows, grid, bits))
        finished = codes.finished(self._plan.activation_bits.get(layer.name, 16), kept)
        self.layers[layer.name] = finished
        bias = self._network.get_submodule(layer.name).bias
        if isinstance(bias, Tensor):
            error = weight @ drift.exact_mean - finished.stored_values() @ drift.mean
            self.overrides[f"{layer.name}.bias"] = (bias + error).to(torch.bfloat16).float()
        apply_layer(self._twin, finished, self.overrides)

    def stage_tensors(self, index: int) -> dict[str, Tensor]:
        """Everything that the stage decided."""
        tensors: dict[str, Tensor] = {}
        for layer in self.layers_of(index):
            tensors |= layer_to_tensors(self.layers[layer.name].packed)
            bias = self.overrides.get(f"{layer.name}.bias")
            if bias is not None:
                tensors[f"{layer.name}.bias"] = bias
        return tensors

    def take_stage(self, index: int, tensors: dict[str, Tensor]) -> None:
        """The stage as ``stage_tensors`` said."""
        for layer in self.layers_of(index):
            name = layer.name
            packed = layer_from_tensors(planned_spec(self._plan, layer), tensors)
            self.layers[name] = QuantizedLayer(layer, packed)
            if f"{name}.bias" in tensors:
                self.overrides[f"{name}.bias"] = tensors[f"{name}.bias"]
            apply_layer(self._twin, self.layers[name], self.overrides)
        self.go_on(index)
