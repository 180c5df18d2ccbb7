"""The figure of ``make evidence-closed-loop``: success by width, and by held-out action error."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qvla_ros.atomic_file import atomic_file
from qvla_ros.evaluate.figure_style import GRID, INK, add_grid, new_figure, series_colour, styled
from qvla_ros.quantize.rivals.registry import OURS, REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREDICTOR = "heldout_action_error"
_MARKERS = "oooooooDDDDDDD"  # a second one where the colours begin again


def write_figure(cells: Sequence[dict], path: Path) -> None:
    """Draw all cells of ``evidence/closed-loop.json`` to an SVG; bars are Wilson's 95 %.

    Some cells have more initial states than others, and they are not equally hard: each cell is
    drawn as a share of what BF16 solves of its own ones.

    Raises:
        ConfigurationError: Matplotlib is not installed.
    """
    reference = next((one for one in cells if one["method"] == REFERENCE), None)
    methods = sorted(
        {one["method"] for one in cells} - {REFERENCE}, key=lambda name: (name != OURS, name)
    )
    with styled():
        figure = new_figure(8.4, 3.6)
        by_width, by_error = figure.subplots(1, 2, sharey=True)
        for axes, key in ((by_width, "bits"), (by_error, PREDICTOR)):
            if reference is not None:
                low, share, high = _shares(reference)
                axes.axhspan(low, high, color=GRID, alpha=0.25, linewidth=0)
                axes.axhline(share, color=INK, linewidth=0.8)
            for place, method in enumerate(methods):
                _draw(axes, place, [one for one in cells if one["method"] == method], key)
            add_grid(axes)
            axes.set_ylim(-0.03, 1.16)
        by_width.set_ylabel("success, share of BF16's")
        by_width.set_xlabel("bits of the budget")
        by_width.set_xticks(sorted({one["bits"] for one in cells if one["method"] != REFERENCE}))
        by_error.set_xlabel("held-out action error")
        by_error.set_xscale("log")
        figure.legend(
            *by_width.get_legend_handles_labels(),
            loc="outside upper center",
            ncols=math.ceil(len(methods) / 2),
        )
        with atomic_file(path) as file:
            figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})


def _draw(axes: "Axes", place: int, cells: Sequence[dict], key: str) -> None:
    ordered = sorted(cells, key=lambda one: one[key])
    shares = [_shares(one) for one in ordered]
    axes.errorbar(
        [one[key] for one in ordered],
        [share for _, share, _ in shares],
        yerr=[
            [max(0.0, share - low) for low, share, _ in shares],
            [max(0.0, high - share) for _, share, high in shares],
        ],
        marker=_MARKERS[place % len(_MARKERS)],
        markersize=4,
        linewidth=1.2 if key == "bits" else 0,
        elinewidth=0.8,
        color=series_colour(place),
        label=ordered[0]["method"],
    )


def _shares(one: dict) -> tuple[float, float, float]:
    """Lower bound, success and upper bound, as shares of BF16's success on the same states."""
    against = one["against_bf16"]
    whole = 1.0 if isinstance(against, str) else against["other_successes"] / against["n"]
    low, high = one["wilson_95"]
    return low / whole, one["successes"] / one["n"] / whole, high / whole
