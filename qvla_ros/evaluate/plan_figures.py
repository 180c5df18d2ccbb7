"""Figures about a bit plan and the scores behind it, from plain arrays."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qvla_ros.evaluate.figure_style import (
    GRID,
    INK,
    WIDTH_COLOURS,
    add_grid,
    new_figure,
    series_colour,
    styled,
)
from qvla_ros.quantize.score_check import spearman

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS_A_WIDTH = 1500


def plot_bits_per_layer(
    names: Sequence[str], parts: Sequence[str], counts: Mapping[int, Sequence[int]]
) -> "Figure":
    """Average bits and the share of each bit width, layer after layer, by part of the network.

    Args:
        names: One name a layer, in the network's order.
        parts: The part of each layer, e.g. ``"vision"``; a run of one part is set apart.
        counts: Bit width to the number of rows of each layer at it.
    """
    widths = sorted(counts, reverse=True)
    rows = np.array([counts[width] for width in widths], dtype=np.float64)
    share = rows / np.maximum(rows.sum(axis=0), 1)
    average = (share * np.array(widths)[:, None]).sum(axis=0)
    places, spans = _places(parts)
    with styled():
        figure = new_figure(10.4, 4.2)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
        _draw_average(top, places, average, spans)
        base = np.zeros(len(names))
        for width, part in zip(widths, share, strict=True):
            bottom.bar(
                places, part, 0.86, base, color=WIDTH_COLOURS.get(width), label=f"{width} bits"
            )
            base = base + part
        bottom.set_ylabel("share of rows")
        bottom.set_ylim(0, 1)
        bottom.set_xlabel(f"{len(names)} layers in the order of the network")
        bottom.set_xticks([])
        bottom.set_xlim(places[0] - 1, places[-1] + 1)
        bottom.patch.set_alpha(0.0)
        figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower right", ncols=6)
        return figure


def _places(parts: Sequence[str]) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Where each layer stands, and where each run of one part begins and ends."""
    places: list[float] = []
    spans: list[tuple[str, float, float]] = []
    place = 0.0
    for index, part in enumerate(parts):
        if index and part != parts[index - 1]:
            place += 1.5
        if not spans or spans[-1][0] != part or spans[-1][2] != place - 1:
            spans.append((part, place, place))
        spans[-1] = (part, spans[-1][1], place)
        places.append(place)
        place += 1
    return np.array(places), spans


def _draw_average(
    axes: "Axes", places: np.ndarray, average: np.ndarray, spans: list[tuple[str, float, float]]
) -> None:
    axes.vlines(places, 0, average, color=GRID, linewidth=0.8, alpha=0.6)
    axes.plot(places, average, "o", markersize=3, color=series_colour(0))
    axes.set_ylabel("average bits")
    axes.set_ylim(bottom=0)
    for part, first, last in spans:
        axes.annotate(
            part,
            ((first + last) / 2, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontweight="bold",
            color=INK,
        )
    add_grid(axes)


def plot_bit_histogram(shares: Mapping[str, Mapping[int, float]]) -> "Figure":
    """The share of weights at each bit width.

    Args:
        shares: Label (a part or a plan) to bit width to share of the weights, 0 to 1.
    """
    widths = sorted({width for one in shares.values() for width in one})
    with styled():
        figure = new_figure(10.4, 0.55 * len(shares) + 0.9)
        axes = figure.subplots()
        labels = list(shares)[::-1]
        left = np.zeros(len(labels))
        for width in widths:
            values = np.array([shares[label].get(width, 0.0) for label in labels])
            bars = axes.barh(
                labels, values, 0.62, left, color=WIDTH_COLOURS.get(width), label=f"{width} bits"
            )
            texts = [f"{value:.0%}" if value >= 0.04 else "" for value in values]
            axes.bar_label(bars, texts, label_type="center", color="white", fontsize=8)
            left = left + values
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        axes.patch.set_alpha(0.0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=6)
        return figure


def plot_score_distribution(scores: Mapping[int, np.ndarray]) -> "Figure":
    """How the predicted scores of rows are spread, over orders of magnitude.

    Args:
        scores: Bit width to the predicted score of each row at it; zeros are left out.
    """
    positive = {w: np.asarray(s)[np.asarray(s) > 0] for w, s in sorted(scores.items())}
    positive = {width: values for width, values in positive.items() if len(values)}
    with styled():
        figure = new_figure(10.4, 2.8)
        axes = figure.subplots()
        if positive:
            everything = np.log10(np.concatenate(list(positive.values())))
            bins = np.logspace(everything.min(), everything.max() + 1e-6, 70)
            for width, values in positive.items():
                colour = WIDTH_COLOURS.get(width, INK)
                axes.hist(values, bins.tolist(), color=colour, alpha=0.25)
                axes.hist(
                    values, bins.tolist(), color=colour, histtype="step", label=f"{width} bits"
                )
        axes.set_xscale("log")
        axes.set_xlabel("predicted score of a row (action error that its rounding adds)")
        axes.set_ylabel("rows")
        if positive:
            axes.legend(loc="upper left")
        add_grid(axes)
        return figure


def plot_score_scatter(pairs: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> "Figure":
    """Predicted against measured scores of single rows, one panel a bit width.

    Args:
        pairs: Bit width to predicted and measured score, ``[rows]`` each, positive.
    """
    with styled():
        figure = new_figure(max(4.0, 3.4 * len(pairs)), 3.5)
        panels = figure.subplots(1, max(1, len(pairs)), squeeze=False).flatten()
        for axes, (width, (predicted, measured)) in zip(
            panels, sorted(pairs.items()), strict=False
        ):
            _scatter(axes, width, np.asarray(predicted), np.asarray(measured))
        panels[0].set_ylabel("measured, the row alone quantized")
        return figure


def _scatter(axes: "Axes", width: int, predicted: np.ndarray, measured: np.ndarray) -> None:
    shown = np.linspace(0, len(predicted) - 1, min(len(predicted), _POINTS_A_WIDTH)).astype(int)
    axes.scatter(
        predicted[shown],
        measured[shown],
        s=9,
        linewidths=0,
        alpha=0.55,
        color=WIDTH_COLOURS.get(width, INK),
    )
    both = np.concatenate([predicted, measured])
    both = both[both > 0]
    if len(both):
        ends = [both.min(), both.max()]
        axes.plot(ends, ends, color=GRID, linewidth=0.9, linestyle="--", zorder=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    rank_correlation = spearman(predicted, measured)
    axes.set_title(f"{width} bits · {len(predicted)} rows · Spearman {rank_correlation:.2f}")
    axes.set_xlabel("predicted")
    add_grid(axes, "both")


def plot_worst_layers(
    names: Sequence[str], values: Sequence[float], measure: str, count: int = 15
) -> "Figure":
    """The layers with the greatest values, the worst on top.

    Args:
        names: One name a layer.
        values: One number a layer.
        measure: What the numbers are.
        count: How many layers to show.
    """
    order = np.argsort(np.asarray(values, dtype=np.float64))[::-1][:count][::-1]
    with styled():
        figure = new_figure(10.4, 0.21 * len(order) + 0.8)
        axes = figure.subplots()
        axes.barh(
            [names[index] for index in order],
            [values[index] for index in order],
            0.7,
            color=series_colour(0),
        )
        axes.set_xlabel(measure)
        axes.margins(y=0.02)
        add_grid(axes, "x")
        return figure
