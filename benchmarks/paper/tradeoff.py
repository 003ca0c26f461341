"""Plots of quality against the size of the file, and against measured speed.

`python -m benchmarks inference` measures speed as a ratio to the fastest dense method. The network
with 320 units is measured itself. The network with 80 units is too small for a meaningful latency,
so its quality is plotted against the speed of wider networks at the same sparsity; whether those
would lose as much quality is not known.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KINDS = ("unstructured", "blocks 1x8", "blocks 1x16", "blocks 1x32", "N:M", "units", "small dense")
# The method that runs each kind. N:M has none: nothing on a CPU runs it faster than dense.
METHODS = {
    "unstructured": "scipy CSR",
    **{f"blocks 1x{width}": f"packed 1x{width}" for width in (8, 16, 32)},
    "units": "narrower dense",
    "small dense": "narrower dense",
}
NETWORKS = {
    "quality-lstm": ("LSTM 2 x 650", "LSTM 2 x 1500"),
    "quality-wide": ("LSTM 2 x 320",),
}
XOf = Callable[[dict[str, Any]], float | None]


def bytes_of(results: dict[str, Any], row: dict[str, Any]) -> float:
    """Mean size of the files of a network, over its runs."""
    return statistics.fmean(
        run["file_bytes"] for run in results["runs"] if run["network"] == row["name"]
    )


def speedup(
    latency: dict[str, Any], task: str, kind: str, sparsity: float, state: str
) -> float | None:
    """Speed relative to the fastest dense method, at batch 1 on one core; None if not measured.

    It is 1 for dense networks, and for N:M, which runs as a dense network.
    """
    if kind not in METHODS:
        return 1.0
    case = (task, METHODS[kind], sparsity, 1, 1)
    for row in latency["rows"]:
        row_case = tuple(row[name] for name in ("task", "method", "sparsity", "batch", "cores"))
        if row_case == case:
            return row[f"x_{state}"]
    return None


def draw(results: dict[str, Any], measure: str, path: Path, latency: Path | None) -> list[Path]:
    """Draws one panel for file size and one for each network in `NETWORKS`.

    Returns:
      The PNG file; none without matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    panels = list(_panels(results, latency))
    figure = _figure(results, measure, panels)
    file = path.with_suffix(".png")
    figure.savefig(file, dpi=150)
    return [file]


def _panels(results: dict[str, Any], latency: Path | None) -> Iterator[tuple[str, XOf]]:
    yield "file, kB", lambda row: bytes_of(results, row) / 1e3
    if latency is None or not latency.exists():
        return
    times = json.loads(latency.read_text())
    for task in NETWORKS.get(results["study"], ()):

        def speed_of(row: dict[str, Any], task: str = task) -> float | None:
            return speedup(times, task, row["kind"], row["sparsity"], "cold")

        yield f"times faster than dense: {task}, batch 1, one core, cold", speed_of


def _figure(results: dict[str, Any], measure: str, panels: list[tuple[str, XOf]]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure((5.2 * len(panels), 4.4), layout="constrained")
    figure.suptitle(results["title"], fontsize=10)
    for axes, (label, x_of) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for i, kind in enumerate(KINDS):
            rows = [r for r in results["summary"] if r["kind"] == kind]
            points = [(x, r["mean"], r["sd"] or 0) for r in rows if (x := x_of(r)) is not None]
            if points:
                x, y, sd = zip(*points, strict=True)
                axes.errorbar(
                    x, y, sd, marker="o", ms=4, capsize=2, lw=1, label=kind, color=f"C{i}"
                )
        for row in results["summary"]:
            if row["kind"] == "dense" and (x := x_of(row)) is not None:
                axes.plot([x], [row["mean"]], "k*", ms=9, label="dense, all weights")
        axes.set(xscale="log", xlabel=label, ylabel=measure.replace("_", " "))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
