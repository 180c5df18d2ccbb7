"""The one look of all figures: transparent, legible on light and on dark paper."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from qvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#6b7280"
GRID = "#9ca3af"
WIDTH_COLOURS = {
    0: "#a8adb5",
    2: "#4fbfa0",
    3: "#38a9c4",
    4: "#2f8fdc",
    8: "#5b57d6",
    16: "#c44a98",
}
"""Colour of each bit width, the same in every figure."""

SERIES_COLOURS = ("#2f6fe4", "#e8833a", "#2fa37c", "#b04ac4", "#c9a227", "#d9485f", "#5f8aa8")
"""Colours of series in the order in which they are given; ours comes first."""

_SETTINGS = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "qvla",
    "figure.dpi": 100,
}


def require_matplotlib() -> None:
    """Checks that figures can be drawn.

    Raises:
        ConfigurationError: Matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "the report needs matplotlib, which is not installed: pip install 'qvla_ros[report]'"
        ) from None


def styled() -> AbstractContextManager[None]:
    """A context in which figures are drawn and saved in our style; nothing global is changed.

    Raises:
        ConfigurationError: Matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    return matplotlib.rc_context(_SETTINGS)  # type: ignore[arg-type]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure in inches, without the global state of pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    return figure


def add_grid(axes: "Axes", axis: str = "y") -> None:
    """Faint lines to read values by; no background."""
    axes.patch.set_alpha(0.0)
    axes.grid(True, axis=axis, color=GRID, alpha=0.28, linewidth=0.6)  # type: ignore[arg-type]
    axes.tick_params(length=0 if axis == "both" else 2.5)


def series_colour(index: int) -> str:
    """Colour of the ``index``-th series."""
    return SERIES_COLOURS[index % len(SERIES_COLOURS)]
