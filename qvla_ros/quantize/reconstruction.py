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

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from qvla_ros.errors import ConfigurationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.models.stages import Stage, State
from qvla_ros.quantize.bit_plan import BitPlan
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.compensation import Compensator
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

DRIFT = 0.5
"""How far the weight moves towards what fits the quantized inputs best."""

_RIDGE = 0.01  # share of the mean diagonal that keeps the correction small where little was seen

OnProgress = Callable[[int, int], None]


class _Drift:
    """Sums over tokens of one group of layers that read the same input."""

    def __init__(self, columns: int, kept: Tensor | None) -> None:
        self._kept = kept
        stored = columns if kept is None else len(kept)
        self.moment = torch.zeros(stored, stored)  # sum of y y^T over the kept columns
        self.cross = torch.zeros(columns, stored)  # sum of (x - y) y^T
        self.exact_mean = torch.zeros(columns)
        self.mean = torch.zeros(stored)

    def add(self, exact: Tensor, inputs: Tensor, weights: Tensor) -> None:
        """Take ``[tokens, columns]`` of both networks in, with ``[tokens]`` weights of sum 1."""
        stored = inputs if self._kept is None else inputs[:, self._kept.long()]
        weighted = stored * weights[:, None]
        self.moment += weighted.T @ stored
        self.cross += (exact - inputs).T @ weighted
        self.exact_mean += weights @ exact
        self.mean += weighted.sum(0)


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
        work.go_on(index)
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
        for group in self._groups(index):
            for layer, drift in zip(group, self._drifts(index, group), strict=True):
                self._quantize(layer, drift)

    def go_on(self, index: int) -> None:
        """Move the frames behind the stage."""
        with torch.no_grad():
            self._exact = [self.stages[index].run(state) for state in self._exact]
            self._states = [self._twin_stages[index].run(state) for state in self._states]

    def _groups(self, index: int) -> list[list[LinearLayer]]:
        """Layers of a stage in order, those that read the very same tensor together."""
        layers = self.layers_of(index)
        if not layers:
            return []
        inputs = _inputs(self._network, layers, self.stages[index], self._exact[0])
        groups: list[list[LinearLayer]] = []
        for layer in layers:
            if groups and inputs[groups[-1][0].name] is inputs[layer.name]:
                groups[-1].append(layer)
            else:
                groups.append([layer])
        return groups

    def _drifts(self, index: int, group: list[LinearLayer]) -> list[_Drift]:
        drifts = [_Drift(one.columns, self._plan.input_columns.get(one.name)) for one in group]
        first = group[0]
        weights = [self._token_weights(layer) for layer in group]
        done = 0
        for exact, state in zip(self._exact, self._states, strict=True):
            true = _inputs(self._network, [first], self.stages[index], exact)[first.name]
            seen = _inputs(self._twin, [first], self._twin_stages[index], state)[first.name]
            true, seen = (one.reshape(-1, first.columns) for one in (true, seen))
            for layer, drift, weight in zip(group, drifts, weights, strict=True):
                taken = seen
                if self._plan.activation_bits.get(layer.name) == 8:
                    taken = rounded_activations(seen)
                drift.add(true, taken, weight[done : done + len(true)])
            done += len(true)
        return drifts

    def _token_weights(self, layer: LinearLayer) -> Tensor:
        """``[tokens]`` of sum 1: partly all alike, partly by the action's slopes."""
        slopes = self._plan.token_weights[layer.name].clamp_min(0.0)
        mean = slopes.mean().clamp_min(torch.finfo(torch.float32).tiny)
        return ((1 - ACTION_SHARE) + ACTION_SHARE * slopes / mean) / slopes.numel()

    def _quantize(self, layer: LinearLayer, drift: _Drift) -> None:
        weight = linear_weight(self._network, layer).float()
        kept = self._plan.input_columns.get(layer.name)
        corrected = weight if kept is None else weight[:, kept.long()]
        corrected = corrected + DRIFT * _solve(weight @ drift.cross, drift.moment)
        codes = LayerCodes(layer, self._plan.row_bits[layer.name], corrected)
        compensator = Compensator(drift.moment)
        for bits, index in codes.rows_by_width():
            rows = corrected[index]
            grid: Grid = clipped_grid(rows, bits, drift.moment.diagonal())
            codes.put(index, grid, compensator.round(rows, grid, bits))
        finished = codes.finished(self._plan.activation_bits.get(layer.name, 16), kept)
        self.layers[layer.name] = finished
        bias = self._network.get_submodule(layer.name).bias
        if isinstance(bias, Tensor):
            stored = finished.stored_values()
            error = weight @ drift.exact_mean - stored @ drift.mean
            self.overrides[f"{layer.name}.bias"] = (bias + error).to(torch.bfloat16).float()
        apply_layer(self._twin, finished, self.overrides)

    def stage_tensors(self, index: int) -> dict[str, Tensor]:
        """Everything that the stage decided."""
        tensors: dict[str, Tensor] = {}
        for layer in self.layers_of(index):
            done = self.layers[layer.name]
            tensors |= {
                f"codes/{layer.name}": done.codes,
                f"scale/{layer.name}": done.grid.scale,
                f"zero/{layer.name}": done.grid.zero,
                f"weight/{layer.name}": done.weight,
            }
            bias = self.overrides.get(f"{layer.name}.bias")
            if bias is not None:
                tensors[f"bias/{layer.name}"] = bias
        return tensors

    def take_stage(self, index: int, tensors: dict[str, Tensor]) -> None:
        """The stage as ``stage_tensors`` said."""
        for layer in self.layers_of(index):
            name = layer.name
            self.layers[name] = QuantizedLayer(
                layer,
                self._plan.row_bits[name],
                tensors[f"codes/{name}"],
                Grid(tensors[f"scale/{name}"], tensors[f"zero/{name}"]),
                tensors[f"weight/{name}"],
                self._plan.activation_bits.get(name, 16),
                self._plan.input_columns.get(name),
            )
            if f"bias/{name}" in tensors:
                self.overrides[f"{name}.bias"] = tensors[f"bias/{name}"]
            apply_layer(self._twin, self.layers[name], self.overrides)


class _AllSeen(Exception):  # noqa: N818 (no error: it ends a stage early)
    """Every wanted input was read."""


def _inputs(
    network: VlaNetwork, layers: list[LinearLayer], stage: Stage, state: State
) -> dict[str, Tensor]:
    """What each of the layers reads when the stage runs; it runs no further than needed."""
    found: dict[str, Tensor] = {}

    def take(name: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        found[name] = inputs[0]
        if len(found) == len(layers):
            raise _AllSeen

    handles = [
        network.get_submodule(layer.name).register_forward_pre_hook(partial(take, layer.name))
        for layer in layers
    ]
    try:
        with torch.no_grad(), suppress(_AllSeen):
            stage.run(state)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _solve(right: Tensor, moment: Tensor) -> Tensor:
    """``right (moment + ridge)^-1`` for a symmetric ``moment``."""
    ridge = _RIDGE * float(moment.diagonal().mean())
    damped = moment.double() + torch.eye(len(moment), dtype=torch.double) * ridge
    return torch.cholesky_solve(right.double().T, torch.linalg.cholesky(damped)).T.float()
