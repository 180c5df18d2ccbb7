"""Action-space sensitivity of every row at every bit width, by Gauss-Newton probes.

For a layer ``Y = X W^T``, row ``r`` and candidate width ``b`` let ``e[t,r,b] = x_t . dW_r^b`` be the
change of the row's output at token ``t``. With random probes ``v``, ``E[v v^T] = M`` (the action
metric), and ``g[t,r] = d(v^T A) / dY[t,r]``:

    s[r,b] = E_x E_v ( sum_t g[t,r] e[t,r,b] )^2

is the expected squared action change to first order. Unlike the norm product of QVLA's eq. 6
(its Cauchy-Schwarz upper bound) it keeps sign and cancellation over tokens. One forward and a few
backward passes a frame give all rows of all layers at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qvla_ros.errors import CalibrationError
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.openvla_oft import ModelInputs, OpenVlaOft
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.input_energy import measure_input_energy
from qvla_ros.quantize.rounding import Rounding, round_clipped
from qvla_ros.quantize.widths import GRID_WIDTHS, WIDTHS

OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True, slots=True)
class SensitivityTable:
    """Score of every row at every width: expected squared action change, lower is better.

    Attributes:
        layers: In execution order.
        input_energy: Layer name to float32 ``[columns]``, see ``measure_input_energy``.
        scores: Layer name to float64 ``[rows, len(WIDTHS)]``; the column of 16 bits is zero.
        model_fingerprint: Of the model folder that was measured.
        calibration_fingerprint: Of the frames.
        probes: Random probes a frame.
        seed: Of the probes.
    """

    layers: tuple[LinearLayer, ...]
    input_energy: dict[str, Tensor]
    scores: dict[str, Tensor]
    model_fingerprint: str
    calibration_fingerprint: str
    probes: int
    seed: int


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """Choices of one measurement.

    Attributes:
        probes: Backward passes a frame.
        seed: Of the probes.
        rounding: How rows are rounded to each grid width.
    """

    probes: int = 4
    seed: int = 0
    rounding: Rounding = round_clipped


class _RowErrors:
    """Hooks on one layer: output changes in the forward pass, scores in the backward passes."""

    def __init__(
        self, layer: LinearLayer, module: nn.Linear, rounding: Rounding, energy: Tensor
    ) -> None:
        self.layer = layer
        weight = module.weight.detach().float()
        steps = [rounding(weight, bits, energy).dequantize() - weight for bits in GRID_WIDTHS]
        self._steps = torch.stack([-weight, *steps]).flatten(0, 1)  # widths 0, 2, 4, 8
        self.scores = torch.zeros(len(WIDTHS) - 1, layer.rows, dtype=torch.float64)
        self._errors: Tensor | None = None
        self._handle = module.register_forward_hook(self._after_forward)

    def _after_forward(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        tokens = inputs[0].detach().reshape(-1, self.layer.columns)
        errors = tokens @ self._steps.T
        self._errors = errors.view(len(tokens), len(WIDTHS) - 1, self.layer.rows)
        output.register_hook(self._after_backward)

    def _after_backward(self, gradient: Tensor) -> None:
        assert self._errors is not None
        slopes = gradient.reshape(-1, 1, self.layer.rows)
        change = (slopes * self._errors).sum(0)
        self.scores += change.double().square()

    def forget_frame(self) -> None:
        """Free what was kept for the backward passes."""
        self._errors = None

    def remove(self) -> None:
        """Take the hook off the network."""
        self._handle.remove()


def measure_sensitivity(
    network: OpenVlaOft,
    calibration: CalibrationSet,
    metric: ActionMetric,
    settings: MeasureSettings,
    model_fingerprint: str = "",
    on_progress: OnProgress | None = None,
) -> SensitivityTable:
    """Score all rows of all layers at all widths.

    Args:
        network: The float network (float32).
        calibration: Frames; every frame is one batch.
        metric: What counts as an action change.
        settings: Probes, seed and rounding.
        model_fingerprint: Recorded in the table.
        on_progress: Called after every frame.

    Raises:
        CalibrationError: A layer never ran, got no gradient, or has a score that is not finite.
    """
    layers = network.linear_layers()
    energy = measure_input_energy(network, calibration)
    meters = []
    for layer in layers:
        module = network.get_submodule(layer.name)
        if not isinstance(module, nn.Linear):
            raise ValueError(f"{layer.name} is not a float Linear: measure the float network")
        meters.append(_RowErrors(layer, module, settings.rounding, energy[layer.name]))
    generator = torch.Generator().manual_seed(settings.seed)
    try:
        for done, frame in enumerate(calibration.frames, start=1):
            _measure_frame(network, frame, metric.probes(settings.probes, generator))
            for meter in meters:
                meter.forget_frame()
            if on_progress is not None:
                on_progress(done, len(calibration.frames))
    finally:
        for meter in meters:
            meter.remove()
    samples = len(calibration.frames) * settings.probes
    return SensitivityTable(
        layers=tuple(layers),
        input_energy=energy,
        scores={meter.layer.name: _finished_scores(meter, samples) for meter in meters},
        model_fingerprint=model_fingerprint,
        calibration_fingerprint=calibration.fingerprint,
        probes=settings.probes,
        seed=settings.seed,
    )


def _measure_frame(network: OpenVlaOft, frame: ModelInputs, probes: Tensor) -> None:
    with torch.enable_grad():
        # Gradients of activations only: they start at the inputs, not at the (frozen) weights.
        inputs = ModelInputs(
            pixels=frame.pixels.clone().requires_grad_(True),
            token_ids=frame.token_ids,
            end_token_id=frame.end_token_id,
            state=frame.state.clone().requires_grad_(True),
        )
        actions = network(inputs)[0]
        for number, probe in enumerate(probes):
            torch.autograd.grad(
                (actions * probe).sum(),
                (inputs.pixels, inputs.state),
                retain_graph=number + 1 < len(probes),
            )


def _finished_scores(meter: _RowErrors, samples: int) -> Tensor:
    name = meter.layer.name
    scores = (meter.scores / samples).T  # [rows, widths without 16]
    if not torch.isfinite(scores).all():
        row = int((~torch.isfinite(scores)).any(1).nonzero()[0])
        raise CalibrationError(f"the score of row {row} of {name!r} is not finite")
    if not scores.any():
        raise CalibrationError(
            f"no gradient reached the layer {name!r}: every row would look free to prune"
        )
    return torch.cat([scores, torch.zeros(len(scores), 1, dtype=torch.float64)], dim=1)
