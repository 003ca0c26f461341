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
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from jaxprune.demo.report import percent
from jaxprune.demo.store import write_atomically

OVER_STEPS = "sparsity_and_accuracy.png"
AGAINST_NONZEROS = "accuracy_against_nonzeros.png"

_SPARSE, _SMALL, _DENSE = "#1f6fb4", "#d9731a", "#222222"


def write_pictures(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draws both pictures of finished results into `folder`; returns their paths."""
    drawings = {OVER_STEPS: over_steps, AGAINST_NONZEROS: against_nonzeros}
    for name, draw in drawings.items():
        figure = draw(results)
        FigureCanvasAgg(figure)  # Agg whatever the user's backend is
        write_atomically(folder / name, lambda path, f=figure: f.savefig(path, dpi=150))
    return [folder / name for name in drawings]


def over_steps(results: dict[str, Any]) -> Figure:
    """Above, the fraction of parameters that is zero; below, the test accuracy, mean and spread."""
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    rows = [row for row in results["summary"] if row["kind"] != "small dense"]
    blues = matplotlib.colormaps["viridis_r"](np.linspace(0.2, 1, max(len(rows) - 1, 1)))
    lowest = 1.0
    for row, colour in zip(rows, [_DENSE, *blues], strict=True):
        runs = [run for run in results["runs"] if run["network"] == row["name"]]
        zeros = np.mean([run["n_zero"] for run in runs], 0) / row["n_params"]
        accuracy = np.array([run["n_correct"] for run in runs]) / results["n_test"]
        steps = np.arange(1, len(zeros) + 1) * results["config"]["steps_per_chunk"]
        mean, spread = accuracy.mean(0), _spread(accuracy)
        label = "dense" if row["kind"] == "dense" else f"{percent(row['sparsity'])} sparse"
        style = {"color": colour, "lw": 1.8, "ls": "--" if row["kind"] == "dense" else "-"}
        above.plot([0, *steps], [0, *zeros], label=label, **style)
        below.plot(steps, mean, **style)
        below.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.12, lw=0)
        lowest = min(lowest, float(mean[len(mean) // 5 :].min()))
    above.set(ylabel="parameters that are zero", ylim=(-0.03, 1.03))
    bottom = max(0.0, math.floor(lowest * 50 - 0.5) / 50)
    below.set(ylabel="test accuracy", xlabel="step", ylim=(bottom, 1.0), xlim=(0, None))
    above.set_title("Gradual pruning, and the accuracy on the way")
    above.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (above, below):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _tidy(axes)
    n = results["config"]["n_seeds"]
    below.annotate(
        f"mean ± standard deviation, {n} seeds" if n > 1 else "one seed",
        (0.99, 0.03), xycoords="axes fraction", ha="right", color="0.35", fontsize=9,
    )  # fmt: skip
    return figure


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
        ("sparse", "large, pruned by jaxprune", _SPARSE, "o"),
        ("small dense", "small dense", _SMALL, "s"),
    ):
        rows = [row for row in summary if row["kind"] == kind]
        _curve(axes, [dense, *rows], color=colour, ls=":", lw=1.5, capsize=0, elinewidth=0)
        _curve(axes, rows, color=colour, marker=marker, ls="none", lw=1.5, capsize=3, label=name)
    for row in summary:
        if row["kind"] == "sparse":
            above = row["accuracy_mean"] + (row["accuracy_sd"] or 0.0)
            axes.annotate(
                percent(row["sparsity"]), (row["n_nonzero"], above), xytext=(0, 5),
                textcoords="offset points", ha="center", color=_SPARSE, fontsize=9,
            )  # fmt: skip
    _curve(axes, [dense], color=_DENSE, marker="D", ls="none", capsize=3, label="dense")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(
        xlabel="nonzero parameters, biases included", ylabel="test accuracy after the last step"
    )
    n = results["config"]["n_seeds"]
    spread = f"mean ± standard deviation over {n} seeds" if n > 1 else "one seed"
    axes.set_title(f"Large and sparse, or small and dense?  ({spread})")
    axes.legend(frameon=False, loc="lower right")
    _tidy(axes)
    return figure


def _curve(axes: Axes, rows: Sequence[dict[str, Any]], **style: Any) -> None:
    axes.errorbar(
        [row["n_nonzero"] for row in rows],
        [row["accuracy_mean"] for row in rows],
        [row["accuracy_sd"] or 0.0 for row in rows],
        **style,
    )


def _spread(accuracy: np.ndarray) -> np.ndarray:
    if len(accuracy) == 1:
        return np.zeros(accuracy.shape[1:])
    return accuracy.std(0, ddof=1)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
