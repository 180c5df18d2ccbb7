"""The exact action change of quantizing one row alone: the oracle of the score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qvla_ros.models.openvla_oft import ModelInputs, OpenVlaOft
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.packing import fake_quantize, linear_weight
from qvla_ros.quantize.rounding import Rounding
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.widths import WIDTHS


@dataclass(frozen=True, slots=True)
class RowMeasurement:
    """One row at one width.

    Attributes:
        layer: Name of the layer.
        row: Index of the row.
        bits: Width that it was rounded to.
        score: What the sensitivity table predicts.
        exact: What the network does: mean squared action change.
    """

    layer: str
    row: int
    bits: int
    score: float
    exact: float


def measure_rows_exactly(
    network: OpenVlaOft,
    calibration: CalibrationSet,
    table: SensitivityTable,
    metric: ActionMetric,
    rounding: Rounding,
    choice: "RowChoice",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[RowMeasurement]:
    """Quantize single rows, one at a time, and look at the action.

    The network runs in float64: at 8 bits one row changes the action by less than the noise of
    float32. It is float32 again afterwards, with its weights unchanged.
    """
    rows = choice.draw(table)
    network.double()
    frames = [_double(frame) for frame in calibration.frames]
    measured = []
    try:
        reference = [_actions(network, frame) for frame in frames]
        for done, (name, row) in enumerate(rows, start=1):
            layer = next(layer for layer in table.layers if layer.name == name)
            weight = linear_weight(network, layer)
            original = weight[row].clone()
            for bits in choice.widths:
                step = fake_quantize(
                    original[None].float(),
                    torch.tensor([bits], dtype=torch.uint8),
                    rounding,
                    table.input_energy[name],
                )
                weight[row] = step[0]
                changes = [
                    metric.squared_error(_actions(network, frame), answer).item()
                    for frame, answer in zip(frames, reference, strict=True)
                ]
                score = float(table.scores[name][row, WIDTHS.index(bits)])
                measured.append(RowMeasurement(name, row, bits, score, float(np.mean(changes))))
            weight[row] = original
            if on_progress is not None:
                on_progress(done, len(rows))
    finally:
        network.float()
    return measured


@dataclass(frozen=True, slots=True)
class RowChoice:
    """Which rows are measured.

    Attributes:
        count: How many, drawn uniformly over all rows of all layers.
        widths: At which widths each of them.
        seed: Of the draw.
    """

    count: int
    widths: Sequence[int] = (2, 4, 8)
    seed: int = 0

    def draw(self, table: SensitivityTable) -> list[tuple[str, int]]:
        """Layer name and row index of each chosen row."""
        every = [(layer.name, row) for layer in table.layers for row in range(layer.rows)]
        rng = np.random.default_rng(self.seed)
        chosen = rng.choice(len(every), size=min(self.count, len(every)), replace=False)
        return [every[index] for index in np.sort(chosen)]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two ``[n]`` arrays; NaN for fewer than two values."""
    if len(first) < 2:
        return float("nan")
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]


def _double(frame: ModelInputs) -> ModelInputs:
    return ModelInputs(
        frame.pixels.double(), frame.token_ids, frame.end_token_id, frame.state.double()
    )


def _actions(network: OpenVlaOft, frame: ModelInputs) -> torch.Tensor:
    with torch.inference_mode():
        return network(frame).double()
