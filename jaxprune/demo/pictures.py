"""The two pictures: sparsity and accuracy over the steps, and accuracy against nonzeros."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from jaxprune._files.atomic import atomic_file
from jaxprune.demo.report import percent

OVER_STEPS = "sparsity_and_accuracy.png"
AGAINST_NONZEROS = "accuracy_against_nonzeros.png"

_SPARSE, _SMALL, _DENSE = "#1f6fb4", "#d9731a", "#222222"


def write_pictures(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draws both pictures of a finished job into `folder`, and returns their paths."""
    drawings = {OVER_STEPS: over_steps, AGAINST_NONZEROS: against_nonzeros}
    for name, draw in drawings.items():
        figure = draw(results)
        FigureCanvasAgg(figure)  # whichever backend the user has chosen
        with atomic_file(folder / name) as file:
            figure.savefig(file, format="png", dpi=150)
    return [folder / name for name in drawings]


def over_steps(results: dict[str, Any]) -> Figure:
    """Above, the fraction of zero parameters; below, mean and spread of the test accuracy."""
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    rows = [row for row in results["summary"] if row["kind"] != "small dense"]
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.25, 1, max(len(rows) - 1, 1)))
    lowest = 1.0
    for row, colour in zip(rows, [_DENSE, *colours], strict=True):
        steps, zeros, mean, spread = _history(results, row)
        dense = row["kind"] == "dense"
        label = "dense" if dense else f"{percent(row['sparsity'])} sparse"
        style = {"color": colour, "lw": 1.8, "ls": "--" if dense else "-"}
        above.plot(steps, zeros, label=label, **style)
        below.plot(steps, mean, **style)
        below.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.13, lw=0)
        lowest = min(lowest, float(mean[len(mean) // 5 :].min()))
    above.set(ylabel="parameters that are zero", ylim=(-0.03, 1.03))
    bottom = max(0.0, math.floor(lowest * 50 - 0.5) / 50)
    right = results["config"]["steps"]
    below.set(ylabel="test accuracy", xlabel="step", ylim=(bottom, 1.0), xlim=(0, right))
    figure.suptitle(f"Accuracy during gradual pruning  ({_mean(results)})", size=11)
    above.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (above, below):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _tidy(axes)
    return figure


def _history(results: dict[str, Any], row: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """Steps, fraction of zeros, mean accuracy and its spread, one entry per chunk.

    For a sparse network, entries before pruning begins are left out: until then it is the dense
    network, bit by bit.
    """
    runs = [run for run in results["runs"] if run["network"] == row["name"]]
    zeros = np.mean([run["n_zero"] for run in runs], 0) / row["n_params"]
    accuracy = np.array([run["n_correct"] for run in runs]) / results["n_test"]
    steps = np.arange(1, len(zeros) + 1) * results["config"]["steps_per_chunk"]
    spread = accuracy.std(0, ddof=1) if len(runs) > 1 else np.zeros(len(steps))
    first = max(int(np.argmax(zeros > 0)) - 1, 0)
    return steps[first:], zeros[first:], accuracy.mean(0)[first:], spread[first:]


def against_nonzeros(results: dict[str, Any]) -> Figure:
    """Accuracy of sparse and of small dense networks against the parameters that are not zero."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    summary = results["summary"]
    dense = summary[0]
    sd = dense["accuracy_sd"] or 0.0
    level = dense["accuracy_mean"]
    axes.axhspan(level - sd, level + sd, color=_DENSE, alpha=0.08, lw=0)
    for kind, name, colour, marker in (
        ("sparse", "large, sparse", _SPARSE, "o"),
        ("small dense", "small, dense", _SMALL, "s"),
    ):
        rows = [row for row in summary if row["kind"] == kind]
        _line(axes, [dense, *rows], color=colour)
        _points(axes, rows, color=colour, marker=marker, label=name)
    for row in summary:
        if row["kind"] == "sparse":
            above = row["accuracy_mean"] + (row["accuracy_sd"] or 0.0)
            axes.annotate(
                percent(row["sparsity"]), (row["n_nonzero"], above), xytext=(0, 5),
                textcoords="offset points", ha="center", color=_SPARSE, fontsize=9,
            )  # fmt: skip
    _points(axes, [dense], color=_DENSE, marker="D", label="large, dense")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(
        xlabel="nonzero parameters, biases included", ylabel="test accuracy after the last step"
    )
    axes.set_title(f"Large and sparse, or small and dense?  ({_mean(results)})", size=11)
    axes.legend(frameon=False, loc="lower right")
    _tidy(axes)
    return figure


def _line(axes: Axes, rows: Sequence[dict[str, Any]], color: str) -> None:
    points = [(row["n_nonzero"], row["accuracy_mean"]) for row in rows]
    axes.plot(*zip(*points, strict=True), color=color, ls="-", lw=1.2, alpha=0.5)


def _points(axes: Axes, rows: Sequence[dict[str, Any]], **style: Any) -> None:
    axes.errorbar(
        [row["n_nonzero"] for row in rows],
        [row["accuracy_mean"] for row in rows],
        [row["accuracy_sd"] or 0.0 for row in rows],
        ls="none",
        capsize=3,
        ms=6.5,
        mec="white",
        **style,
    )


def _mean(results: dict[str, Any]) -> str:
    n = results["config"]["n_seeds"]
    return f"mean ± standard deviation over {n} seeds" if n > 1 else "one seed"


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
