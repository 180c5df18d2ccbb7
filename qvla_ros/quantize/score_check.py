"""Does a score rank rows as quantizing them one at a time does? Rank correlations, by stratum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qvla_ros.models.linear_layer import LinearLayer
from qvla_ros.models.network import VlaNetwork
from qvla_ros.quantize.action_metric import ActionMetric
from qvla_ros.quantize.calibration import CalibrationSet
from qvla_ros.quantize.exact import RowStep, in_float64, measure_edits
from qvla_ros.quantize.layer_evidence import LayerEvidence
from qvla_ros.quantize.sensitivity import MeasureSettings, measure_sensitivity
from qvla_ros.quantize.widths import WIDTHS

RoundedRows = Callable[[str, Tensor, int], Tensor]
"""Maps a layer's name, row indices ``int64 [n]`` and a width to the rows' new values ``[n, columns]``."""

ScoreTables = Mapping[str, Mapping[str, Tensor]]
"""Name of a score to layer name to ``[rows, len(WIDTHS)]``."""

_KINDS = {
    "qkv": "attn qkv",
    "proj": "attn out",
    "fc1": "mlp in",
    "fc2": "mlp out",
}
_FEWEST = 8  # rows of a stratum, below which its rank correlation says nothing


@dataclass(frozen=True, slots=True)
class RowChoice:
    """Which rows are measured.

    Attributes:
        count: How many, drawn uniformly over all rows of all layers.
        widths: At which widths each of them.
        seed: Of the draw.
    """

    count: int
    widths: tuple[int, ...] = (2, 4, 8)
    seed: int = 0

    def draw(self, layers: Sequence[LinearLayer]) -> list[tuple[LinearLayer, int]]:
        """Layer and row index of each chosen row."""
        every = [(layer, row) for layer in layers for row in range(layer.rows)]
        rng = np.random.default_rng(self.seed)
        chosen = rng.choice(len(every), size=min(self.count, len(every)), replace=False)
        return [every[index] for index in np.sort(chosen)]


@dataclass(frozen=True, slots=True)
class RowMeasurement:
    """One row at one width.

    Attributes:
        layer: Where the row is.
        row: Its index.
        bits: Width that it was rounded to.
        exact: What the network does: mean squared action change.
    """

    layer: LinearLayer
    row: int
    bits: int
    exact: float


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rank correlations over the rows of one kind at one width.

    Attributes:
        part: ``"vision"`` or ``"language"``; ``"all"`` for all rows.
        kind: Kind of layer, e.g. ``"mlp out"`` or ``"gate_proj"``; ``"all"`` for all rows.
        bits: Width.
        rows: How many rows.
        spearman: Name of a score to its rank correlation; ``None``: too few rows.
    """

    part: str
    kind: str
    bits: int
    rows: int
    spearman: dict[str, float | None]


def measure_rows(
    network: VlaNetwork,
    calibration: CalibrationSet,
    metric: ActionMetric,
    rounded: RoundedRows,
    choice: RowChoice,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[RowMeasurement]:
    """Quantize single rows, one at a time, and look at the action, in float64.

    Args:
        network: The float32 network; unchanged afterwards.
        calibration: Frames.
        metric: What counts as an action change.
        rounded: How rows are rounded.
        choice: Which rows, at which widths.
        on_progress: Called with (done, total) of rows times widths.
    """
    drawn = [(layer, row, bits) for layer, row in choice.draw(network.linear_layers())
             for bits in choice.widths]  # fmt: skip
    edits = []
    for layer, row, bits in drawn:
        index = torch.tensor([row])
        old = network.get_submodule(layer.name).get_parameter("weight").detach()[index]
        step = rounded(layer.name, index, bits).double() - old.double()
        edits.append({layer.name: RowStep(index, step)})
    with in_float64(network):
        exact = measure_edits(network, calibration, metric, edits, on_progress=on_progress)
    return [
        RowMeasurement(*place, float(change)) for place, change in zip(drawn, exact, strict=True)
    ]


class DrawnRows:
    """What a measurement of sensitivity rounds the drawn rows to: the very steps of its scores.

    Args:
        drawn: Layer and row index of each row.
    """

    def __init__(self, drawn: Sequence[tuple[LinearLayer, int]]) -> None:
        self._rows: dict[str, list[int]] = {}
        for layer, row in drawn:
            self._rows.setdefault(layer.name, []).append(row)
        self._values: dict[str, Tensor] = {}

    def keep(self, evidence: LayerEvidence) -> None:
        """Take the rows of one measured layer (``on_layer`` of ``measure_sensitivity``)."""
        rows = self._rows.get(evidence.layer.name)
        if rows is not None:
            self._values[evidence.layer.name] = evidence.candidates.values(rows)

    def rounded(self, name: str, rows: Tensor, bits: int) -> Tensor:
        """The new values, float32 ``[n, columns]``; as ``measure_rows`` asks for them."""
        places = [self._rows[name].index(row) for row in rows.tolist()]
        return self._values[name][WIDTHS.index(bits), places]


def check_scores(
    network: VlaNetwork,
    calibration: CalibrationSet,
    metric: ActionMetric,
    settings: MeasureSettings,
    choice: RowChoice,
    rivals: Callable[[LayerEvidence], Mapping[str, Tensor]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Stratum]:
    """Measure the scores of all rows and the exact change of some, on the same frames.

    Args:
        network: The float32 network; unchanged afterwards.
        calibration: Frames of both measurements.
        metric: What counts as an action change.
        settings: Of the scores.
        choice: Which rows are measured exactly, at which widths.
        rivals: Maps what is known of a layer to other scores ``[rows, len(WIDTHS)]``, by name.
        on_progress: Called with (done, total) of the exact measurements.

    Returns:
        Rank correlations of ``"ours"`` and of each rival; see ``rank_correlations``.
    """
    drawn = DrawnRows(choice.draw(network.linear_layers()))
    tables: dict[str, dict[str, Tensor]] = {"ours": {}}

    def take(evidence: LayerEvidence) -> None:
        drawn.keep(evidence)
        tables["ours"][evidence.layer.name] = evidence.scores
        for name, scores in (rivals(evidence) if rivals is not None else {}).items():
            tables.setdefault(name, {})[evidence.layer.name] = scores

    measure_sensitivity(network, calibration, metric, settings, on_layer=take)
    measured = measure_rows(network, calibration, metric, drawn.rounded, choice, on_progress)
    return rank_correlations(measured, tables)


def rank_correlations(measured: Sequence[RowMeasurement], tables: ScoreTables) -> list[Stratum]:
    """How well each score ranks the measured rows: all together, then by part, kind and width."""
    widths = sorted({one.bits for one in measured})
    strata = [_stratum("all", "all", bits, measured, tables) for bits in widths]
    kinds = dict.fromkeys((one.layer.part, kind_of(one.layer)) for one in measured)
    for part, kind in sorted(kinds, reverse=True):
        chosen = [one for one in measured if (one.layer.part, kind_of(one.layer)) == (part, kind)]
        strata += [_stratum(part, kind, bits, chosen, tables) for bits in widths]
    return strata


def kind_of(layer: LinearLayer) -> str:
    """What a layer does in its block, e.g. ``"mlp out"`` or ``"gate_proj"``."""
    if ".patch_embed." in layer.name:
        return "patch embed"
    last = layer.name.rsplit(".", 1)[-1]
    return _KINDS.get(last, last)


def as_text(strata: Sequence[Stratum]) -> str:
    """The strata as a table."""
    names = list(strata[0].spearman) if strata else []
    head = f"{'part':<10}{'layers':<14}{'bits':>5}{'rows':>7}"
    lines = [head + "".join(f"{name:>16}" for name in names)]
    for one in strata:
        values = (one.spearman[name] for name in names)
        cells = "".join(
            f"{'-' if value is None else format(value, '.3f'):>16}" for value in values
        )
        lines.append(f"{one.part:<10}{one.kind:<14}{one.bits:>5}{one.rows:>7}" + cells)
    return "\n".join(lines)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two ``[n]`` arrays; NaN for fewer than two values."""
    if len(first) < 2:
        return float("nan")
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _stratum(
    part: str, kind: str, bits: int, measured: Sequence[RowMeasurement], tables: ScoreTables
) -> Stratum:
    chosen = [one for one in measured if one.bits == bits]
    exact = np.array([one.exact for one in chosen])
    level = WIDTHS.index(bits)
    correlation: dict[str, float | None] = {}
    for name, table in tables.items():
        scores = np.array([float(table[one.layer.name][one.row, level]) for one in chosen])
        enough = len(chosen) >= _FEWEST
        correlation[name] = round(spearman(scores, exact), 4) if enough else None
    return Stratum(part, kind, bits, len(chosen), correlation)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]
