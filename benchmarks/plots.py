"""Plots of the benchmark results: time against size, difficult inputs, overhead of a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_step import BASE
from benchmarks.common import Row
from benchmarks.topk_methods import COLD, JAXPRUNE, READ

_COLORS = {READ: "black", COLD: "tab:green", JAXPRUNE[1]: "tab:olive"}


def draw(name: str, rows: Sequence[Row], json_path: Path) -> list[Path]:
    """Draws the plots of one benchmark and returns their PNG files; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    plots = {
        "select": {"": _against_size, "-inputs": _inputs},
        "step": {"": _overhead},
        "algorithms": {"": _algorithms},
        "minilm": {"": _minilm},
    }.get(name, {})
    files = []
    for suffix, plot in plots.items():
        figure = plot(rows)
        if figure is not None:
            files.append(json_path.with_name(f"{json_path.stem}{suffix}.png"))
            figure.savefig(files[-1], dpi=150)
    return files


def _figure(width: float = 7, height: float = 5) -> Any:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _against_size(rows: Sequence[Row]) -> Any:
    shown = [
        r for r in rows if r["case"] == "size" and r["dtype"] == "float32" and r["keep"] == 0.2
    ]
    if not shown:
        return None
    figure, axes = _figure()
    for method in dict.fromkeys(r["method"] for r in shown):
        line = sorted((r["n"], r["median_ms"]) for r in shown if r["method"] == method)
        color = _COLORS.get(method)
        style = {"color": color, "linewidth": 2.5} if color else {"alpha": 0.8}
        n, ms = zip(*line, strict=True)
        axes.loglog(n, ms, marker="o", markersize=3, label=method, **style)
    axes.set(xlabel="weights", ylabel="milliseconds", title="Mask of the largest 20%, float32")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _inputs(rows: Sequence[Row]) -> Any:
    shown = [r for r in rows if r["case"] == "input"]
    if not shown:
        return None
    largest = max(r["n"] for r in shown)
    shown = [r for r in shown if r["n"] == largest]
    methods = [m for m in dict.fromkeys(r["method"] for r in shown) if m != READ]
    kinds = list(dict.fromkeys(r["kind"] for r in shown))
    figure, axes = _figure(10)
    for i, method in enumerate(methods):
        reads = {r["kind"]: r["x_read"] for r in shown if r["method"] == method}
        places = [kinds.index(kind) + 0.8 * (i / len(methods) - 0.5) for kind in reads]
        color = _COLORS.get(method)
        axes.bar(
            places,
            list(reads.values()),
            0.8 / len(methods),
            align="edge",
            label=method,
            color=color,
        )
    axes.set(
        yscale="log",
        ylabel="time / one read of the weights",
        title=f"{largest:.0e} weights, keep 20%",
    )
    axes.set_xticks(range(len(kinds)), kinds)
    axes.legend(frameon=False, ncols=4)
    return figure


def _overhead(rows: Sequence[Row]) -> Any:
    shown = [r for r in rows if r["case"] == "step" and r["method"] != BASE]
    if not shown:
        return None
    tasks = list(dict.fromkeys((r["task"], r["dtype"]) for r in shown))
    methods = list(dict.fromkeys(r["method"] for r in shown))
    figure, axes = _figure(8, 1 + 0.5 * len(tasks))
    for i, method in enumerate(methods):
        by_task = {(r["task"], r["dtype"]): r for r in shown if r["method"] == method}
        places = [tasks.index(task) + 0.8 * (i / len(methods) - 0.5) for task in by_task]
        height = 0.8 / len(methods)
        quiet = [100 * (r["x_adamw"] - 1) for r in by_task.values()]
        axes.barh(places, quiet, height, align="edge", label=f"{method}, quiet", color=f"C{i}")
        amortised = [100 * (r["x_amortised"] - 1) for r in by_task.values()]
        label = f"{method}, a fire every 100 steps"
        axes.plot(amortised, [p + height / 2 for p in places], "|", color="black", label=label)
    axes.set_yticks(range(len(tasks)), [f"{task} {dtype}" for task, dtype in tasks])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="overhead over adamw alone, %", title="Overhead of pruning per step")
    axes.legend(frameon=False)
    return figure


def _algorithms(rows: Sequence[Row]) -> Any:
    shown = [r for r in rows if r["sparsity"] > 0]
    if not shown:
        return None
    levels = sorted({r["sparsity"] for r in shown})
    at_highest = {r["method"]: r["mean"] for r in shown if r["sparsity"] == levels[-1]}
    names = sorted(at_highest, key=at_highest.__getitem__)
    figure, axes = _figure(8, 6)
    for k, sparsity in enumerate(levels):
        by_method = {r["method"]: r for r in shown if r["sparsity"] == sparsity}
        places = [i + 0.25 * (k - (len(levels) - 1) / 2) for i in range(len(names))]
        axes.errorbar(
            [by_method[n]["mean"] if n in by_method else None for n in names],
            places,
            xerr=[by_method[n]["spread"] if n in by_method else 0 for n in names],
            fmt="o",
            label=f"{sparsity:.0%}",
        )
    for r in rows:
        if not r["sparsity"]:
            axes.axvline(r["mean"], color="black", linewidth=1, label="dense")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("test accuracy, mean and standard deviation over seeds")
    axes.legend(frameon=False)
    return figure


def _minilm(rows: Sequence[Row]) -> Any:
    """Cosine to the dense embeddings by target, a marker for each method; lines span the draws."""
    shown = [r for r in rows if r["case"] == "quality"]
    if not shown:
        return None
    from matplotlib.figure import Figure

    figure = Figure((9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    targets = list(dict.fromkeys(r["target"] for r in shown))
    methods = list(dict.fromkeys(r["method"] for r in shown))
    for axes, kind in zip(panels, ("same", "other"), strict=True):
        for k, method in enumerate(methods):
            for i, target in enumerate(targets):
                values = [
                    r[f"cosine_{kind}_kind"]
                    for r in shown
                    if (r["target"], r["method"]) == (target, method)
                ]
                if not values:
                    continue
                x, style = i + (k - (len(methods) - 1) / 2) * 0.15, _MARKERS[k]
                axes.plot([x, x], [min(values), max(values)], color=style["color"])
                mean = sum(values) / len(values)
                axes.plot(x, mean, linestyle="", label=method if i == 0 else None, **style)
        axes.set_xticks(range(len(targets)), targets)
        axes.set(
            xlabel="zeros", title=f"Text of {'the same' if kind == 'same' else 'another'} kind"
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("mean cosine to the dense embedding")
    panels[0].legend(loc="lower left", fontsize="small")
    return figure


# Colours of Okabe and Ito, which the colour-blind can tell apart.
_MARKERS = (
    {"color": "#000000", "marker": "o"},
    {"color": "#E69F00", "marker": "s"},
    {"color": "#56B4E9", "marker": "^"},
    {"color": "#0072B2", "marker": "v"},
    {"color": "#D55E00", "marker": "D"},
)
