"""Action-space sensitivity of every row at every bit width, by Gauss-Newton probes.

For a layer ``Y = X W^T``, row ``r`` and candidate width ``b`` let ``dW_r^b`` be the change of the
row when it is rounded. With random probes ``v``, ``E[v v^T] = M`` (the action metric), and
``g[t,r] = d(v^T A) / dY[t,r]``:

    s[r,b] = E_x E_v ( sum_t g[t,r] x_t . dW_r^b )^2 = E_x E_v < d(v^T A) / dW_r, dW_r^b >^2

is the expected squared action change to first order. Unlike the norm product of QVLA's eq. 6
(its Cauchy-Schwarz upper bound) it keeps sign and cancellation over tokens. One sweep backwards
through the network gives all rows of all layers at all widths. ``dW`` is that of the compensated
rounding, with inputs weighted by how much the action depends on each token.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.candidates import Candidates
from qvla_ros.quantize.gradient_sweep import GradientSweep
from qvla_ros.quantize.journal import Journal
from qvla_ros.quantize.kept_states import KeptStates
from qvla_ros.quantize.layer_evidence import InputMoments, LayerEvidence, RowScores
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.rounding import GridSearch, clipped_grid

OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""

WEIGHT_PROBES = 2
"""Probes that weigh the tokens before anything is rounded; more change little."""


@dataclass(frozen=True, slots=True)
class SensitivityTable:
    """Score of every row at every width: expected squared action change, lower is better.

    Attributes:
        layers: In execution order.
        scores: Layer name to float64 ``[rows, len(WIDTHS)]``; the column of 16 bits is zero.
        token_weights: Layer name to float32 ``[tokens]`` of all frames, frame after frame: mean
            squared gradient of the action with respect to each token's output, by which
            reconstruction weighs tokens.
        model_fingerprint: Of the model folder that was measured.
        calibration_fingerprint: Of the frames.
        probes: Random probes a frame.
        seed: Of the probes.
    """

    layers: tuple[LinearLayer, ...]
    scores: dict[str, Tensor]
    token_weights: dict[str, Tensor]
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
        search: Of the grids.
        compensate: Whether the scores are those of compensated rounding.
    """

    probes: int = 8
    seed: int = 0
    search: GridSearch = clipped_grid
    compensate: bool = True


def measure_sensitivity(
    network: VlaNetwork,
    calibration: CalibrationSet,
    metric: ActionMetric,
    settings: MeasureSettings | None = None,
    model_fingerprint: str = "",
    on_progress: OnProgress | None = None,
    on_layer: Callable[[LayerEvidence], None] | None = None,
    journal: Journal | None = None,
) -> SensitivityTable:
    """Score all rows of all layers at all widths.

    Args:
        network: The float network (float32).
        calibration: Frames.
        metric: What counts as an action change.
        settings: Probes, seed and rounding.
        model_fingerprint: Recorded in the table.
        on_progress: Called after every stage of the network.
        on_layer: Called with every layer that is measured now (not with those of the journal).
        journal: Where finished stages are kept, to go on after an interruption.

    Raises:
        CalibrationError: A layer never ran, got no gradient, or has a score that is not finite.
    """
    settings = settings or MeasureSettings()
    kept = KeptStates(None if journal is None else journal.folder)
    batches = calibration.batches()
    sweep = GradientSweep(network, batches, metric, settings.probes, settings.seed, kept)
    found = _Findings(journal)
    first = found.resume(sweep)
    for index in reversed(range(first)):
        for evidence in _measure_stage(network, sweep, index, settings):
            found.add(evidence)
            if on_layer is not None:
                on_layer(evidence)
        found.stage_done(sweep, index)
        if on_progress is not None:
            on_progress(len(sweep.stages) - index, len(sweep.stages))
    layers = tuple(network.linear_layers())
    return SensitivityTable(
        layers=layers,
        scores={layer.name: found.scores[layer.name] for layer in layers},
        token_weights={layer.name: found.token_weights[layer.name] for layer in layers},
        model_fingerprint=model_fingerprint,
        calibration_fingerprint=calibration.fingerprint,
        probes=settings.probes,
        seed=settings.seed,
    )


def _measure_stage(
    network: VlaNetwork, sweep: GradientSweep, index: int, settings: MeasureSettings
) -> list[LayerEvidence]:
    layers = sweep.layers_of(index)
    moments = {layer.name: InputMoments(layer) for layer in layers}
    if layers:
        sweep.show(index, lambda seen: moments[seen.layer.name].add(seen), WEIGHT_PROBES)
    plain, candidates, scores = {}, {}, {}
    for layer in layers:
        name = layer.name
        plain[name], moment = moments.pop(name).finished()
        weight = linear_weight(network, layer).float()
        candidates[name] = Candidates.of(weight, moment, settings.search, settings.compensate)
        scores[name] = RowScores(layer, candidates[name])
    sweep.leave(index, lambda seen: scores[seen.layer.name].add(seen))
    return [
        LayerEvidence(
            layer,
            plain[layer.name],
            candidates[layer.name],
            scores[layer.name].scores(),
            scores[layer.name].slope_energy(),
            scores[layer.name].token_weights(),
        )
        for layer in layers
    ]


class _Findings:
    """What is measured so far, in memory and in the journal."""

    def __init__(self, journal: Journal | None) -> None:
        self.scores: dict[str, Tensor] = {}
        self.token_weights: dict[str, Tensor] = {}
        self._journal = journal
        self._saved = time.monotonic()

    def add(self, evidence: LayerEvidence) -> None:
        self.scores[evidence.layer.name] = evidence.scores
        self.token_weights[evidence.layer.name] = evidence.token_weights

    def stage_done(self, sweep: GradientSweep, index: int) -> None:
        """Keep everything, if it is worth the writing."""
        journal = self._journal
        if journal is None or time.monotonic() - self._saved < journal.interval_s:
            return
        parts = {"scores/": self.scores, "token_weights/": self.token_weights}
        tensors = {
            prefix + name: tensor
            for prefix, part in parts.items()
            for name, tensor in part.items()
        }
        slopes = {f"slopes/{name}": tensor for name, tensor in sweep.slopes().items()}
        stage = torch.tensor([index])
        journal.save("sweep", {**tensors, **slopes, "stage": stage})
        self._saved = time.monotonic()

    def resume(self, sweep: GradientSweep) -> int:
        """Number of stages that are still to be measured."""
        kept = None if self._journal is None else self._journal.load("sweep")
        if kept is None:
            return len(sweep.stages)
        index = int(kept.pop("stage"))
        slopes: dict[str, Tensor] = {}
        for name, tensor in kept.items():
            kind, rest = name.split("/", 1)
            {"scores": self.scores, "token_weights": self.token_weights, "slopes": slopes}[kind][
                rest
            ] = tensor
        sweep.go_to(index, slopes)
        return index
