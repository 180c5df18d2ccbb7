"""The comparison of methods as a figure and as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.atomic_file import atomic_file
from qvla_ros.evaluate.figure_style import INK, add_grid, new_figure, series_colour, styled
from qvla_ros.evaluate.method_summary import Judgement
from qvla_ros.evaluate.report import Report
from qvla_ros.quantize.rivals.registry import METHODS, OURS, REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*<>hd8p"


def plot_errors(judged: Sequence[Judgement]) -> "Figure":
    """Action error, and success where it was measured, against size of file; a line a method."""
    success = any(one.success is not None for one in judged)
    with styled():
        figure = new_figure(10.4, 4.6 if not success else 7.4)
        panels = figure.subplots(2 if success else 1, 1, squeeze=False, sharex=True).flatten()
        methods = dict.fromkeys(one.cell.method for one in judged)
        for place, method in enumerate(methods):
            cells = [one for one in judged if one.cell.method == method and one.error is not None]
            _draw_errors(panels[0], place, method, sorted(cells, key=_size))
            if success:
                _draw_success(panels[1], place, sorted(cells, key=_size))
        panels[0].set_yscale("log")
        panels[0].set_ylabel("mean action error, held out")
        panels[-1].set_xlabel("checkpoint, MB")
        for axes in panels:
            add_grid(axes)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
        return figure


def _size(one: Judgement) -> float:
    return one.cell.file_bytes / 1e6


def _draw_errors(axes: "Axes", place: int, method: str, cells: Sequence[Judgement]) -> None:
    sizes = [_size(one) for one in cells]
    means = [one.error.mean for one in cells if one.error is not None]
    if method == REFERENCE:
        axes.axhline(means[0], color=INK, linewidth=0.8, linestyle=":", label=method)
        return
    axes.plot(
        sizes,
        means,
        marker=_MARKERS[place % len(_MARKERS)],
        markersize=4,
        linewidth=2.0 if method == OURS else 1.0,
        linestyle="--" if METHODS[method].ablation else "-",
        color=series_colour(place),
        label=method,
    )
    if method == OURS:
        lows = [one.error.low for one in cells if one.error is not None]
        highs = [one.error.high for one in cells if one.error is not None]
        axes.fill_between(sizes, lows, highs, color=series_colour(place), alpha=0.18, linewidth=0)


def _draw_success(axes: "Axes", place: int, cells: Sequence[Judgement]) -> None:
    for one in cells:
        if one.success is None:
            continue
        low, high = one.success.interval
        axes.plot([_size(one)] * 2, [low, high], color=series_colour(place), linewidth=1.0)
        axes.plot(
            [_size(one)],
            [one.success.rate],
            marker=_MARKERS[place % len(_MARKERS)],
            color=series_colour(place),
        )
    axes.set_ylabel("success in closed loop")
    axes.set_ylim(0, 1)


def write_figure(judged: Sequence[Judgement], stem: Path) -> None:
    """``stem.svg`` and ``stem.png``."""
    figure = plot_errors(judged)
    with styled():
        for kind in ("svg", "png"):
            with atomic_file(stem.with_suffix(f".{kind}")) as file:
                figure.savefig(file, format=kind, dpi=160, facecolor="white")


def write_comparison(judged: Sequence[Judgement], facts: Mapping[str, str], path: Path) -> None:
    """The page: figure, every cell, what the methods are, and what was compared."""
    report = Report("Methods at equal bytes", "held-out action error by the deployed kernels")
    report.add_figure(
        plot_errors(judged),
        "Mean absolute difference to the float32 policy, normalised units; band: 95 % of ours.",
    )
    report.add_table(
        ["method", "bits", "bytes", "budget", "error", "95 %", "minus ours", "95 %", "flips"],
        [_row(one) for one in judged],
        "Minus ours: paired by frame, moving blocks of one second.",
    )
    named = dict.fromkeys(one.cell.method for one in judged)
    report.add_heading("Methods")
    report.add_table(["name", "what it is"], [[name, METHODS[name].title] for name in named])
    report.add_heading("Compared on")
    report.add_table(["what", "which"], [[key, value] for key, value in facts.items()])
    report.write(path)


def _row(one: Judgement) -> list[object]:
    cell = one.cell
    head = [cell.method, f"{cell.bits:g}", cell.file_bytes, cell.budget_bytes]
    if one.error is None:
        return [*head, "no fit", "", "", "", ""]
    row: list[object] = [
        *head,
        f"{one.error.mean:.5f}",
        f"{one.error.low:.5f} … {one.error.high:.5f}",
    ]
    if one.against_ours is None:
        return [*row, "", "", cell.gripper_flips]
    other = one.against_ours
    return [
        *row,
        f"{other.mean:+.5f}",
        f"{other.low:+.5f} … {other.high:+.5f}",
        cell.gripper_flips,
    ]
