"""What the methods want to know of the float network, measured once and kept on disk.

One gradient sweep gives the second moments of all inputs and, with them, the four score tables
that are compared; one more forward pass gives the largest and the mean magnitudes of the inputs.
A layer's moments are read from disk when they are asked for, so that memory holds one at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from qvla_ros.atomic_file import atomic_file
from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.layer_evidence import LayerEvidence
from qvla_ros.quantize.linear_weight import linear_weight
from qvla_ros.quantize.rivals.scores import inverse_factor_scores, norm_products, row_errors
from qvla_ros.quantize.rounding import codes_on, nearest_grid, values_of
from qvla_ros.quantize.sensitivity import MeasureSettings, SensitivityTable, measure_sensitivity
from qvla_ros.quantize.storage import load_table, save_table
from qvla_ros.quantize.widths import GRID_WIDTHS

GAUSS_NEWTON, NORM_PRODUCT = "gauss-newton", "norm-product"
QVLA_PAPER, QVLA_CODE = "qvla-paper", "qvla-code"
TABLES = (GAUSS_NEWTON, NORM_PRODUCT, QVLA_PAPER, QVLA_CODE)
"""Scores: ours; the norm product of our roundings; those of QVLA's paper and of its code."""


@dataclass(frozen=True, slots=True, eq=False)
class InputStatistics:
    """The inputs of one layer of the float network, over all calibration tokens.

    Attributes:
        moment: ``E[x x^T]``, float32 ``[columns, columns]``.
        peak: ``max |x|``, float32 ``[columns]``.
        magnitude: ``E |x|``, float32 ``[columns]``.
    """

    moment: Tensor
    peak: Tensor
    magnitude: Tensor


class Evidence:
    """The measurements of one network on one calibration set, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def table(self, name: str) -> SensitivityTable:
        """One of ``TABLES``."""
        return load_table(self._folder / f"{name}.safetensors")

    def inputs(self, layer: LinearLayer) -> InputStatistics:
        """The inputs of a layer."""
        moment = load_file(self._folder / f"moment.{layer.name}.safetensors")["moment"]
        size = load_file(self._folder / "magnitudes.safetensors")
        return InputStatistics(moment, size[f"peak/{layer.name}"], size[f"mean/{layer.name}"])

    def kept(self, name: str, make: Callable[[], SensitivityTable]) -> SensitivityTable:
        """A table that a method derives, made once and kept with the others."""
        path = self._folder / f"{name}.safetensors"
        if not path.exists():
            save_table(make(), path)
        return load_table(path)

    def kept_numbers(self, name: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """One number a layer, made once and kept."""
        path = self._folder / f"{name}.safetensors"
        if not path.exists():
            found = make()
            self._write(name, {key: torch.tensor(value).double() for key, value in found.items()})
        return {key: float(value) for key, value in load_file(path).items()}

    @property
    def finished(self) -> bool:
        """Whether everything has been measured."""
        return (self._folder / "magnitudes.safetensors").exists()

    def measure(
        self,
        network: VlaNetwork,
        calibration: CalibrationSet,
        metric: ActionMetric,
        settings: MeasureSettings,
        model_fingerprint: str,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Measure all of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        scores: dict[str, dict[str, Tensor]] = {name: {} for name in TABLES[1:]}

        def take(seen: LayerEvidence) -> None:
            name = seen.layer.name
            self._write(f"moment.{name}", {"moment": seen.moment})
            tokens = len(seen.token_weights) / len(calibration.frames)
            for table, found in _rival_scores(network, seen, tokens).items():
                scores[table][name] = found

        ours = measure_sensitivity(
            network, calibration, metric, settings, model_fingerprint, on_progress, take
        )
        save_table(ours, self._folder / f"{GAUSS_NEWTON}.safetensors")
        for name, found in scores.items():
            save_table(replace(ours, scores=found), self._folder / f"{name}.safetensors")
        self._write("magnitudes", _magnitudes(network, calibration))

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        with atomic_file(self._folder / f"{name}.safetensors") as file:
            file.write(save({key: value.contiguous() for key, value in tensors.items()}))


def _rival_scores(network: VlaNetwork, seen: LayerEvidence, tokens: float) -> dict[str, Tensor]:
    weight = linear_weight(network, seen.layer).float()
    energy = seen.moment.diagonal()
    grids = [nearest_grid(weight, bits, energy) for bits in GRID_WIDTHS]
    nearest = [
        values_of(codes_on(weight, grid, bits), grid)
        for grid, bits in zip(grids, GRID_WIDTHS, strict=True)
    ]
    steps = torch.stack([torch.zeros_like(weight), *nearest]) - weight
    return {
        NORM_PRODUCT: norm_products(
            row_errors(seen.candidates.values() - weight, seen.moment), seen.slope_energy, tokens
        ),
        QVLA_PAPER: norm_products(row_errors(steps, seen.moment), seen.slope_energy, tokens),
        QVLA_CODE: inverse_factor_scores(steps, seen.moment),
    }


def scores_of_same_steps(
    network: VlaNetwork, frames: int, seen: LayerEvidence
) -> dict[str, Tensor]:
    """The rivals' scores of the very roundings that ours scores, ``[rows, len(WIDTHS)]`` each."""
    steps = seen.candidates.values() - linear_weight(network, seen.layer).float()
    errors, tokens = row_errors(steps, seen.moment), len(seen.token_weights) / frames
    return {
        NORM_PRODUCT: norm_products(errors, seen.slope_energy, tokens),
        QVLA_CODE: inverse_factor_scores(steps, seen.moment),
    }


def _magnitudes(network: VlaNetwork, calibration: CalibrationSet) -> dict[str, Tensor]:
    """Largest and mean magnitude of every input column."""
    peaks: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def tap(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
            size = inputs[0].flatten(0, -2).abs()
            peak, total = size.amax(0), size.sum(0)
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0) + len(size)

        return look

    handles = [
        network.get_submodule(layer.name).register_forward_pre_hook(tap(layer.name))
        for layer in network.linear_layers()
    ]
    try:
        with torch.no_grad():
            for batch in calibration.batches():
                network(batch)
    finally:
        for handle in handles:
            handle.remove()
    means = {f"mean/{name}": total / counts[name] for name, total in sums.items()}
    return {f"peak/{name}": peak for name, peak in peaks.items()} | means
