"""The look of all pictures in results/: for README width, the colour-blind and any background.

A picture is at most 9 inches wide, so that text of 9 points has 12 pixels when the picture is shown
900 pixels wide. Curves differ in colour, marker and dashes; the colours are those of Okabe and Ito.
The background is opaque white, which can be read on light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH = 9.0  # inches
DPI = 150
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
    {"color": "#E69F00", "marker": "v", "linestyle": "-"},
    {"color": "#56B4E9", "marker": "P", "linestyle": "--"},
    {"color": "#7F3C8D", "marker": "X", "linestyle": "-."},
    {"color": "#666666", "marker": "h", "linestyle": ":"},
)
DENSE: dict[str, Any] = {"color": "#000000", "marker": "*"}


def panels(n: int, columns: int, height: float, title: str = "") -> tuple[Any, list[Any]]:
    """A figure of README width with `n` panels of a height in inches, row by row."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = math.ceil(n / columns)
    with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8.5}):
        figure = Figure((WIDTH, rows * height), layout="constrained")
        if title:
            figure.suptitle(title, fontsize=11)
        axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[n:]:
        unused.remove()
    for panel in axes[:n]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3, linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, axes[:n]


def percent(values: Sequence[float]) -> list[float]:
    """Fractions as percent."""
    return [100 * value for value in values]


def save(figure: Any, path: Path) -> Path:
    """Writes the picture as PNG."""
    figure.savefig(path, dpi=DPI, facecolor="white")
    return path


def has_matplotlib() -> bool:
    """Whether pictures can be drawn; chooses the backend that needs no screen."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    return True
