"""The two pictures: accuracy against nonzeros, and sparsity and accuracy over the steps.

They are readable at a width of 900 pixels and on any background. Networks differ in colour and in
marker or dashes; the colours can be told apart by the colour-blind (Okabe & Ito, 2008).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from jaxprune._files.atomic import atomic_file
from jaxprune.demo.config import DISTRIBUTIONS
from jaxprune.demo.data import Data, load
from jaxprune.demo.network import n_biases_of
from jaxprune.demo.report import percent

OVER_STEPS = "sparsity_and_accuracy.png"
AGAINST_NONZEROS = "accuracy_against_nonzeros.png"

_BLACK = "#000000"
# Of nonzeros, so that no bar hides another.
_SHIFTS = {"uniform": 0.97, "ERK": 0.99, "narrower dense": 1.01, "shallower dense": 1.03}
_STYLES = {
    "uniform": {"color": "#0072B2", "marker": "o", "ls": "-", "label": "large, uniform sparsity"},
    "ERK": {"color": "#009E73", "marker": "^", "ls": "-", "label": "large, ERK sparsity"},
    "narrower dense": {
        "color": "#D55E00",
        "marker": "s",
        "ls": "--",
        "label": "small dense, narrower",
    },
    "shallower dense": {
        "color": "#CC79A7",
        "marker": "v",
        "ls": "-.",
        "label": "small dense, three of five layers",
    },
}
_SIZE = {"font.size": 11, "axes.titlesize": 11, "legend.fontsize": 10.5}
_DPI = 200  # 1,800 pixels, shown at half their size
_N_EXAMPLES = 6


def write_pictures(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draws both pictures of a finished job into `folder`, and returns their paths."""
    drawings = {AGAINST_NONZEROS: against_nonzeros, OVER_STEPS: over_steps}
    for name, draw in drawings.items():
        with matplotlib.style.context(["default", _SIZE]):
            figure = draw(results)
            FigureCanvasAgg(figure)  # whichever backend the user has chosen
            with atomic_file(folder / name) as file:
                figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
    return [folder / name for name in drawings]


def against_nonzeros(results: dict[str, Any]) -> Figure:
    """Examples of the images; accuracy of all networks against the parameters that are not zero."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = cast(Any, figure.subfigures(2, 1, height_ratios=(1, 4.8)))
    config = results["config"]
    _show_examples(above, load(config["n_digits"], 1, config["n_test"]))
    axes = below.subplots()
    summary = results["summary"]
    dense = summary[0]
    for kind, style in _STYLES.items():
        rows = [row for row in summary if row["kind"] == kind]
        moved = [row | {"n_nonzero": row["n_nonzero"] * _SHIFTS[kind]} for row in rows]
        _line(axes, [dense, *moved], style)
    _line(axes, [dense], {"color": _BLACK, "marker": "D", "ls": "none", "label": "large, dense"})
    levels = {row["n_nonzero"]: row["sparsity"] for row in summary if row["kind"] == "ERK"}
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([*levels, dense["n_nonzero"]]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(
            lambda n, _: f"{n:,.0f}\n" + (f"{percent(levels[n])} pruned" if n in levels else "all")
        )
    )
    axes.set(xlabel="nonzero parameters, biases included", ylabel="read correctly (%)")
    axes.set_title(f"Large and sparse, or small and dense?  {_mean(results)}")
    axes.legend(loc="lower right")
    _tidy(axes)
    return figure


def _show_examples(figure: SubFigure, data: Data) -> None:
    figure.suptitle("What the networks read: numbers composed of real handwritten digits", size=11)
    for i, axes in enumerate(figure.subplots(1, _N_EXAMPLES, squeeze=False)[0]):
        axes.axis("off")
        if i < len(data.test_images):
            axes.imshow(data.test_images[i, ..., 0], cmap="gray_r", vmin=0, vmax=1)
            axes.set_title("".join(map(str, data.test_labels[i].tolist())), y=-0.6, size=11)


def over_steps(results: dict[str, Any]) -> Figure:
    """Above, sparsity over the steps; below, mean and spread of the accuracy, by distribution."""
    figure = Figure(figsize=(9, 6.8), layout="constrained")
    panels = figure.subplot_mosaic(
        [["sparsity"] * len(DISTRIBUTIONS), list(DISTRIBUTIONS)], height_ratios=(2, 3.4)
    )
    summary = results["summary"]
    levels = sorted({row["sparsity"] for row in summary if row["kind"] in DISTRIBUTIONS})
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.2, 0.9, len(levels)))
    dashes = ("-", "--", "-.", ":")
    styles = {0.0: {"color": _BLACK, "ls": (0, (1, 1)), "label": "dense"}}
    for i, (level, shade) in enumerate(zip(levels, shades, strict=True)):
        styles[level] = {"color": shade, "ls": dashes[i % 4], "label": percent(level)}
    for kind in DISTRIBUTIONS:
        axes = panels[kind]
        for row in summary:
            if row["kind"] in ("dense", kind):
                steps, sparsity, mean, spread = _history(results, row)
                style = {**styles[row["sparsity"]], "lw": 2}
                axes.plot(steps, mean, **style)
                axes.fill_between(
                    steps, mean - spread, mean + spread, color=style["color"], alpha=0.15, lw=0
                )
                if row["kind"] == "uniform":
                    panels["sparsity"].plot(steps, sparsity, **style)
        axes.set_title(f"{kind} sparsity")
        axes.set(xlabel="step", ylim=(0, 100))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)  # curves end anywhere
    panels["uniform"].set_ylabel("read correctly (%)")
    panels["sparsity"].set(xlabel="step", ylabel="zeros in kernels (%)", ylim=(-3, 103))
    panels["sparsity"].set_title("Sparsity, the same for both distributions")
    panels["sparsity"].legend(loc="lower right", ncols=2)
    for axes in panels.values():
        axes.set_xlim(0, results["config"]["steps"])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _tidy(axes)
    figure.suptitle(f"Accuracy during gradual pruning  {_mean(results)}", size=12)
    return figure


def _history(results: dict[str, Any], row: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """Steps, sparsity of the kernels, mean accuracy and its spread in percent, one per chunk.

    For a sparse network, entries before pruning begins are left out. Until then it is trained as
    the dense network is, and differs only by the rounding of another compiled program.
    """
    runs = [run for run in results["runs"] if run["network"] == row["name"]]
    n_weights = row["n_params"] - n_biases_of(row["widths"])
    zeros = 100 * np.mean([run["n_zero"] for run in runs], 0) / n_weights
    accuracy = 100 * np.array([run["n_correct"] for run in runs]) / results["config"]["n_test"]
    steps = np.arange(1, len(zeros) + 1) * results["config"]["steps_per_chunk"]
    spread = accuracy.std(0, ddof=1) if len(runs) > 1 else np.zeros(len(steps))
    first = max(int(np.argmax(zeros > 0)) - 1, 0)
    return steps[first:], zeros[first:], accuracy.mean(0)[first:], spread[first:]


def _line(axes: Axes, rows: Sequence[dict[str, Any]], style: dict[str, Any]) -> None:
    """A point with its spread for each row, joined by a line."""
    axes.errorbar(
        [row["n_nonzero"] for row in rows],
        [100 * row["accuracy_mean"] for row in rows],
        [100 * (row["accuracy_sd"] or 0.0) for row in rows],
        capsize=4,
        ms=7,
        lw=1.8,
        mec="white",
        **style,
    )


def _mean(results: dict[str, Any]) -> str:
    n = results["config"]["n_seeds"]
    return f"(mean ± standard deviation, {n} seeds)" if n > 1 else "(one seed)"


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
