"""Figures about actions and time. Each takes plain arrays and returns a Matplotlib figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qvla_ros.evaluate.figure_style import (
    GRID,
    INK,
    add_grid,
    new_figure,
    series_colour,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LATENCY_BINS = 40


def plot_action_traces(
    times_s: np.ndarray, traces: Mapping[str, np.ndarray], names: Sequence[str]
) -> "Figure":
    """Actions over the episode, one panel a dimension.

    Args:
        times_s: ``[steps]`` seconds.
        traces: Label to ``[steps, action_dim]``, normalised; NaN leaves a gap. The first one is
            drawn on top.
        names: One name an action dimension.
    """
    with styled():
        figure = new_figure(10.4, 0.78 * len(names) + 0.7)
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False).flatten()
        for dimension, (axes, name) in enumerate(zip(panels, names, strict=True)):
            for index, (label, values) in reversed(list(enumerate(traces.items()))):
                _trace(axes, times_s, values[:, dimension], label, index)
            axes.set_ylabel(name, rotation=0, ha="right", va="center", fontweight="bold")
            axes.margins(x=0.01)
            add_grid(axes)
        panels[-1].set_xlabel("time, s")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper right", ncols=len(labels))
        return figure


def _trace(axes: "Axes", times: np.ndarray, values: np.ndarray, label: str, index: int) -> None:
    first = index == 0
    axes.plot(
        times,
        values,
        label=label,
        color=series_colour(index),
        # The second one is wide, so that it is seen behind a first one that follows it closely.
        linewidth=(1.25, 4.0)[index] if index < 2 else 1.9,
        alpha=1.0 if first else 0.5,
        zorder=3 if first else 2,
    )


def plot_error_by_dimension(
    names: Sequence[str],
    errors: Mapping[str, Sequence[float]],
    measure: str = "L1, normalised",
) -> "Figure":
    """Grouped bars: the error of each action dimension, a bar for each label (ours first).

    Args:
        names: One name an action dimension.
        errors: Label to one number a dimension.
        measure: What the numbers are.
    """
    with styled():
        figure = new_figure(10.4, 3.0)
        axes = figure.subplots()
        places = np.arange(len(names))
        width = 0.76 / max(1, len(errors))
        for index, (label, values) in enumerate(errors.items()):
            offset = (index - (len(errors) - 1) / 2) * width
            axes.bar(
                places + offset, values, width * 0.92, label=label, color=series_colour(index)
            )
        axes.set_xticks(places, names)
        axes.set_ylabel(measure)
        add_grid(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.14), ncols=max(1, len(errors)))
        return figure


def plot_latency(milliseconds: Mapping[str, Sequence[float]]) -> "Figure":
    """Latency in the order of calls, and how it is distributed, with p50 and p99.

    Args:
        milliseconds: Label to all durations; labels without any are left out.
    """
    present = {label: np.asarray(one) for label, one in milliseconds.items() if len(one)}
    with styled():
        figure = new_figure(10.4, 3.0)
        line, histogram = figure.subplots(1, 2, width_ratios=[3, 2])
        if present:
            everything = np.concatenate(list(present.values()))
            low, high = everything.min(), max(everything.max(), everything.min() + 0.1)
            bins = np.linspace(low, high, _LATENCY_BINS + 1)
            for index, (label, values) in enumerate(present.items()):
                _latency_series((line, histogram), label, values, bins, series_colour(index))
            line.legend(loc="upper left", bbox_to_anchor=(0, 1.16), ncols=len(present))
        line.set_xlabel("inference")
        line.set_ylabel("ms")
        line.set_ylim(bottom=0)
        histogram.set_xlabel("ms   (line p50, dashed p99)")
        histogram.set_ylabel("inferences")
        add_grid(line)
        add_grid(histogram)
        return figure


def _latency_series(
    panels: "tuple[Axes, Axes]", label: str, values: np.ndarray, bins: np.ndarray, colour: str
) -> None:
    line, histogram = panels
    line.plot(values, ".", markersize=3.2, color=colour, label=label)
    histogram.hist(values, bins=bins.tolist(), color=colour, alpha=0.6)
    for quantile, dashes in ((50, "-"), (99, "--")):
        histogram.axvline(float(np.percentile(values, quantile)), color=colour, linestyle=dashes)


def plot_drift(
    drifts: Mapping[str, Sequence[tuple[float, float]]],
    measure: str = "L1, normalised",
) -> "Figure":
    """The error of the executed actions over the time since the episode's start.

    Args:
        drifts: Label to pairs of seconds and error.
        measure: What the error is.
    """
    with styled():
        figure = new_figure(10.4, 2.7)
        axes = figure.subplots()
        for index, (label, points) in enumerate(drifts.items()):
            values = np.array(points).reshape(-1, 2)
            axes.plot(
                values[:, 0],
                values[:, 1],
                "o-",
                markersize=3,
                linewidth=1.3,
                color=series_colour(index),
                label=label,
            )
        axes.set_xlabel("time, s")
        axes.set_ylabel(measure)
        axes.set_ylim(bottom=0)
        add_grid(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.18), ncols=4)
        return figure


def plot_executed_steps(counts: Sequence[int]) -> "Figure":
    """How often each step of a chunk was executed: what latency makes of the horizon.

    Args:
        counts: One count a step of the chunk.
    """
    with styled():
        figure = new_figure(5.2, 2.4)
        axes = figure.subplots()
        bars = axes.bar(np.arange(len(counts)), counts, 0.75, color=series_colour(0))
        axes.bar_label(bars, color=INK, fontsize=8)
        axes.set_xticks(np.arange(len(counts)))
        axes.set_xlabel("step of the chunk")
        axes.set_ylabel("times executed")
        axes.spines["left"].set_color(GRID)
        add_grid(axes)
        return figure
