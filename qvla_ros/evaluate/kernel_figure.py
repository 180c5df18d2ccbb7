"""The figure of ``qvla bench kernels --plot``: speeds by shape and number of tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qvla_ros.evaluate.figure_style import (
    GRID,
    INK,
    SERIES_COLOURS,
    add_grid,
    new_figure,
    styled,
)
from qvla_ros.evaluate.kernel_bench import BASELINE, PACKINGS, KernelTimes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 2
_PANEL = (5.2, 2.3)  # inches
_COLOURS = (*SERIES_COLOURS, GRID)
_GAP = 0.2  # between two numbers of tokens, as a share of their distance


def plot_speeds(times: Sequence[KernelTimes]) -> "Figure":
    """A panel a shape, a group of bars a number of tokens; whiskers are 95 % intervals.

    Raises:
        ConfigurationError: Matplotlib is not installed.
    """
    shapes = list(dict.fromkeys((one.rows, one.columns) for one in times))
    ours = [packing.name for packing in PACKINGS]
    others = [name for one in times for name in one.speed if name not in (*ours, BASELINE)]
    names = list(dict.fromkeys([*ours, *others]))
    columns = min(_COLUMNS, len(shapes))
    lines = -(-len(shapes) // columns)
    with styled():
        figure = new_figure(_PANEL[0] * columns, _PANEL[1] * lines + 0.5)
        panels = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, shape in zip(panels, shapes, strict=False):
            _draw(axes, [one for one in times if (one.rows, one.columns) == shape], names)
            axes.set_title(f"{shape[0]} x {shape[1]}")
        for axes in panels[len(shapes) :]:
            axes.set_visible(False)
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=len(names))
        return figure


def _draw(axes: "Axes", times: Sequence[KernelTimes], names: Sequence[str]) -> None:
    width = (1 - _GAP) / len(names)
    for index, name in enumerate(names):
        there = [(place, one) for place, one in enumerate(times) if name in one.speed]
        heights = [one.speed[name] for _, one in there]
        bounds = [one.speed_interval[name] for _, one in there]
        below = [h - low for h, (low, _) in zip(heights, bounds, strict=True)]
        above = [high - h for h, (_, high) in zip(heights, bounds, strict=True)]
        axes.bar(
            [place + (index - (len(names) - 1) / 2) * width for place, _ in there],
            heights,
            0.9 * width,
            yerr=[below, above],
            color=_COLOURS[index % len(_COLOURS)],
            ecolor=INK,
            error_kw={"elinewidth": 0.7},
            label=name,
        )
    axes.set_ylim(0, 1.3 * max(max(one.speed.values()) for one in times))
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(times)), [str(one.tokens) for one in times])
    axes.set_xlabel("tokens")
    axes.set_ylabel("speed, prepacked bf16 = 1")
    add_grid(axes)
