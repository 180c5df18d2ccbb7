"""What a quantization did, as a page: bits, scores, predicted against measured, worst layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from qvla_ros.checkpoint.manifest import Manifest
from qvla_ros.evaluate.plan_figures import (
    plot_bit_histogram,
    plot_bits_per_layer,
    plot_score_distribution,
    plot_score_scatter,
    plot_worst_layers,
)
from qvla_ros.evaluate.report import Report
from qvla_ros.quantize.bit_plan import BitPlan
from qvla_ros.quantize.score_check import RowMeasurement, rank_correlations
from qvla_ros.quantize.sensitivity import SensitivityTable
from qvla_ros.quantize.widths import WIDTHS


@dataclass(frozen=True, slots=True)
class WeighedCheckpoint:
    """What a report needs of a packed checkpoint.

    Attributes:
        manifest: As read.
        file_bytes: Size of the file.
    """

    manifest: Manifest
    file_bytes: int


@dataclass(frozen=True, slots=True)
class QuantizationResults:
    """What there is to report, by the names that the page shows; any of it may be missing.

    Attributes:
        checkpoints: Packed checkpoints.
        plans: Bit plans.
        tables: Sensitivity tables.
        exact: Exact measurements of single rows.
    """

    checkpoints: dict[str, WeighedCheckpoint] = field(default_factory=dict)
    plans: dict[str, BitPlan] = field(default_factory=dict)
    tables: dict[str, SensitivityTable] = field(default_factory=dict)
    exact: dict[str, Sequence[RowMeasurement]] = field(default_factory=dict)

    def table_of(self, plan: BitPlan) -> SensitivityTable | None:
        """The first table of the same model and the same frames."""
        for table in self.tables.values():
            if (table.model_fingerprint, table.calibration_fingerprint) == (
                plan.model_fingerprint,
                plan.calibration_fingerprint,
            ):
                return table
        return None


def quantization_report(results: QuantizationResults, facts: Mapping[str, str]) -> Report:
    """The page.

    Args:
        results: What it shows.
        facts: About the machine and the program, for the subtitle.
    """
    subtitle = " · ".join(f"{name} {value}" for name, value in facts.items())
    report = Report("Quantization", subtitle)
    if results.checkpoints:
        _add_checkpoints(report, results)
    for name, plan in results.plans.items():
        report.add_heading(f"Where the bits went: {name}")
        add_plan(report, plan, results.table_of(plan))
    for name, table in results.tables.items():
        report.add_heading(f"Scores: {name}")
        add_scores(report, table)
    for name, rows in results.exact.items():
        report.add_heading(f"Predicted against measured: {name}")
        _add_exact(report, rows, results.tables)
    return report


def _add_checkpoints(report: Report, results: QuantizationResults) -> None:
    report.add_table(
        (
            *("checkpoint", "bytes", "bits a weight", "budget"),
            *("measured on", "action error", "gripper flips", "squared error", "predicted"),
        ),
        [
            (
                name,
                f"{one.file_bytes:,}",
                f"{one.manifest.plan.average_bits_per_weight:.3f}",
                _named(one.manifest.plan.budget),
                *_told(one.manifest.quality),
                _predicted(results.plans.get(f"{name}.plan.safetensors")),
            )
            for name, one in results.checkpoints.items()
        ],
        "Action errors are mean absolute errors in normalised units against the float model, "
        "measured with the packed file and the deployed kernels when it was written. The "
        "prediction is the sum of the scores of single rows: it knows of no interplay.",
    )


def _told(quality: Mapping[str, float]) -> tuple[str, str, str, str]:
    """Frames, error, flips, squared error of a checkpoint's own figures."""
    for kind in ("heldout", "calibration"):
        if f"{kind}_action_error" in quality:
            error, rms, flips, frames = (
                quality.get(f"{kind}_{name}", math.nan)
                for name in ("action_error", "action_error_rms", "gripper_flips", "frames")
            )
            return f"{frames:.0f} {kind} frames", f"{error:.5f}", f"{flips:.0f}", f"{rms**2:.3g}"
    return "nothing", "–", "–", "–"


def _predicted(plan: BitPlan | None) -> str:
    if plan is None or math.isnan(plan.predicted_error):
        return "–"
    return f"{plan.predicted_error:.3g}"


def _named(values: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:,.0f}"
        if value == round(value)
        else f"{name.replace('_', ' ')} {value:g}"
        for name, value in values.items()
    )


def add_plan(report: Report, plan: BitPlan, table: SensitivityTable | None) -> None:
    """Bits of every layer and part, and the layers that the plan pays most for."""
    report.add_text(f"Budget: {_named(plan.budget.to_json())}.")
    report.add_tiles(_plan_tiles(plan))
    names = [layer.name for layer in plan.layers]
    counts = {
        bits: [int((plan.row_bits[name] == bits).sum()) for name in names] for bits in WIDTHS
    }
    report.add_figure(
        plot_bits_per_layer(names, [layer.part for layer in plan.layers], counts),
        "Average bits of each layer, and the share of its rows at each width.",
    )
    parts = dict.fromkeys(layer.part for layer in plan.layers)
    report.add_figure(
        plot_bit_histogram({part: _shares(plan, part) for part in parts}),
        "Share of the weights at each width.",
    )
    if table is None:
        report.add_text("No sensitivity table of this plan is at hand: no scores are shown.")
        return
    paid = [_paid(plan, table, name) for name in names]
    report.add_figure(
        plot_worst_layers(names, paid, "predicted squared action change"),
        "The layers that the plan pays most for.",
    )
    report.add_table(
        ("layer", "bits a weight", "predicted error", "share of all"),
        [
            (
                plan.layers[index].name,
                f"{float(plan.row_bits[names[index]].float().mean()):.2f}",
                f"{paid[index]:.3g}",
                f"{paid[index] / (sum(paid) or 1):.1%}",
            )
            for index in np.argsort(paid)[::-1][:15]
        ],
        "The same in figures: sums of the scores of the chosen widths.",
    )


def _plan_tiles(plan: BitPlan) -> dict[str, str]:
    tiles = {"bits a weight": f"{plan.average_bits_per_weight:.3f}"}
    if not math.isnan(plan.predicted_error):
        tiles["predicted squared action change"] = f"{plan.predicted_error:.3g}"
    if not math.isnan(plan.optimality_gap):
        tiles["of it above a proven bound"] = f"{plan.optimality_gap:.2g}"
    removed = sum(layer.columns - plan.stored_columns(layer) for layer in plan.layers)
    return tiles | {
        "columns removed": f"{removed:,}",
        "layers with int8 inputs": f"{len(plan.activation_bits)} of {len(plan.layers)}",
    }


def _shares(plan: BitPlan, part: str) -> dict[int, float]:
    layers = [layer for layer in plan.layers if layer.part == part]
    total = sum(layer.weights for layer in layers)
    return {
        bits: sum(int((plan.row_bits[one.name] == bits).sum()) * one.columns for one in layers)
        / total
        for bits in WIDTHS
    }


def _paid(plan: BitPlan, table: SensitivityTable, name: str) -> float:
    levels = torch.searchsorted(torch.tensor(WIDTHS, dtype=torch.uint8), plan.row_bits[name])
    return float(table.scores[name].gather(1, levels[:, None]).sum())


def add_scores(report: Report, table: SensitivityTable) -> None:
    """How the scores of all rows are spread."""
    scores = torch.cat([table.scores[layer.name] for layer in table.layers]).numpy()
    report.add_figure(
        plot_score_distribution(
            {bits: scores[:, index] for index, bits in enumerate(WIDTHS) if bits < 16}
        ),
        f"Expected squared action change of quantizing a single row; {len(scores):,} rows, "
        f"{table.probes} probes a frame.",
    )


def _add_exact(
    report: Report, rows: Sequence[RowMeasurement], tables: Mapping[str, SensitivityTable]
) -> None:
    layers = {row.layer for row in rows}
    fitting = [table for table in tables.values() if layers <= set(table.layers)]
    if not fitting:
        report.add_text("No sensitivity table of these layers is at hand.")
        return
    scores = fitting[0].scores
    pairs = {}
    for bits in sorted({row.bits for row in rows}):
        chosen = [row for row in rows if row.bits == bits]
        level = WIDTHS.index(bits)
        predicted = [float(scores[one.layer.name][one.row, level]) for one in chosen]
        pairs[bits] = (np.array(predicted), np.array([one.exact for one in chosen]))
    report.add_figure(
        plot_score_scatter(pairs),
        "Each dot is a row that was quantized alone: its score, and what the network really does.",
    )
    report.add_table(
        ("part", "layers", "bits", "rows", "Spearman"),
        [
            (one.part, one.kind, one.bits, one.rows, _rank(one.spearman["score"]))
            for one in rank_correlations(rows, {"score": scores})
        ],
        "Rank correlation of score and measurement; strata of few rows have none.",
    )


def _rank(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
