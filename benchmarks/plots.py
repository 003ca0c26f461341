"""Pictures of the results of `python -m benchmarks`, drawn from the rows of their JSON files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_step import BASE
from benchmarks.common import Row
from benchmarks.pictures import STYLES, has_matplotlib, panels, percent, save
from benchmarks.public_methods import READ
from benchmarks.topk_methods import COLD, JAXPRUNE

# The names in the tables of the README.
_LABELS = {READ: "one read of the weights", "sort": "jnp.sort", "top_k": "lax.top_k"}
_LABELS |= {
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "sequential sparsegpt": "sequential SparseGPT",
    "sparsegpt, then distilled": "SparseGPT, then distilled",
}
_KINDS = {
    "bf16": "normal, bfloat16",
    "zeros90": "90 % zeros",
    "constant": "all equal",
    "zero": "all zero",
    "heavy": "heavy tails",
}


def draw(name: str, rows: Sequence[Row], json_path: Path) -> list[Path]:
    """Draws the pictures of one benchmark and returns their files; none without matplotlib."""
    if not has_matplotlib():
        return []
    files = []
    for suffix, picture in PICTURES.get(name, {}).items():
        figure = picture(rows)
        if figure is not None:
            files.append(save(figure, json_path.with_name(f"{json_path.stem}{suffix}.png")))
    return files


def _style(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """The look of a method of selection: jaxprune is thick and blue, one read is black."""
    if method == READ:
        return {"color": "black", "marker": "", "linestyle": "--"}
    if method == COLD:
        return STYLES[0] | {"linewidth": 3}
    others = [m for m in methods if m not in (READ, *JAXPRUNE)]
    return STYLES[1 + others.index(method) % (len(STYLES) - 1)]


def _against_size(rows: Sequence[Row]) -> Any:
    shown = [r for r in rows if r["case"] in ("size", "input") and r["keep"] == 0.2]
    shown = [r for r in shown if (r["kind"], r["dtype"]) == ("normal", "float32")]
    # A warm start takes as long as a cold one, within the noise: its curve would hide the other.
    shown = [r for r in shown if r["method"] != JAXPRUNE[1]]
    if not shown:
        return None
    figure, [axes] = panels(1, 1, 4.8)
    methods = list(dict.fromkeys(r["method"] for r in shown))
    for method in methods:
        line = sorted((r["n"], r["median_ms"]) for r in shown if r["method"] == method)
        n, ms = zip(*line, strict=True)
        label = _LABELS.get(method, method)
        axes.loglog(n, ms, markersize=5, label=label, **_style(method, methods))
    title = "Time to find the largest 20 % of the weights, float32"
    axes.set(xlabel="number of weights", ylabel="milliseconds, median", title=title)
    figure.legend(loc="outside right center")
    return figure


def _inputs(rows: Sequence[Row]) -> Any:
    shown = [r for r in rows if r["case"] == "input"]
    if not shown:
        return None
    largest = max(r["n"] for r in shown)
    shown = [r for r in shown if r["n"] == largest]
    methods = [m for m in dict.fromkeys(r["method"] for r in shown) if m not in (READ, JAXPRUNE[1])]
    kinds = list(dict.fromkeys(r["kind"] for r in shown))
    figure, [axes] = panels(1, 1, 1.2 + 0.5 * len(kinds))
    for i, method in enumerate(methods):
        reads = {r["kind"]: r["x_read"] for r in shown if r["method"] == method}
        places = [kinds.index(kind) + 0.7 * ((i + 0.5) / len(methods) - 0.5) for kind in reads]
        style = _style(method, methods) | {"linestyle": "", "markersize": 7}
        axes.plot(list(reads.values()), places, label=_LABELS.get(method, method), **style)
    axes.set_yticks(range(len(kinds)), [_KINDS.get(kind, kind) for kind in kinds])
    axes.invert_yaxis()
    title = f"Time to find the largest 20 % of {largest:,} weights, by their distribution"
    axes.set(xscale="log", xlabel="time divided by one read of the weights", title=title)
    figure.legend(loc="outside right center")
    return figure


def _overhead(rows: Sequence[Row]) -> Any:
    shown = [r for r in rows if r["case"] == "step" and r["method"] != BASE]
    if not shown:
        return None
    tasks = list(dict.fromkeys((r["task"], r["dtype"]) for r in shown))
    methods = list(dict.fromkeys(r["method"] for r in shown))
    figure, [axes] = panels(1, 1, 1.4 + 0.4 * len(tasks))
    for i, method in enumerate(methods):
        by_task = {(r["task"], r["dtype"]): r for r in shown if r["method"] == method}
        shift = 0.6 * ((i + 0.5) / len(methods) - 0.5)
        places = [tasks.index(task) + shift for task in by_task]
        style = STYLES[i] | {"linestyle": "", "markersize": 7}
        quiet, average = ([r[k] for r in by_task.values()] for k in ("x_adamw", "x_amortised"))
        axes.plot(quiet, places, label=f"{method}, step without a fire", **style)
        style |= {"marker": "|", "markersize": 9, "markeredgewidth": 2}
        axes.plot(average, places, label=f"{method}, average with a fire every 100 steps", **style)
    axes.set_yticks(range(len(tasks)), [f"{task}, {dtype}" for task, dtype in tasks])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    title = "A training step with pruning against the optimizer alone (below 1 is noise)"
    axes.set(xlabel="time divided by that of adamw alone", title=title)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _algorithms(rows: Sequence[Row]) -> Any:
    """Accuracy by algorithm, in the order of the table in the README: best at the highest level."""
    shown = [r for r in rows if r["sparsity"] > 0]
    if not shown:
        return None
    levels = sorted({r["sparsity"] for r in shown})
    at_highest = {r["method"]: r["mean"] for r in shown if r["sparsity"] == levels[-1]}
    names = sorted(at_highest, key=at_highest.__getitem__, reverse=True)
    figure, [axes] = panels(1, 1, 1.5 + 0.32 * len(names))
    for k, sparsity in enumerate(levels):
        by_method = {r["method"]: r for r in shown if r["sparsity"] == sparsity}
        places = {name: i + 0.22 * (k - (len(levels) - 1) / 2) for i, name in enumerate(names)}
        points = [(by_method[n], place) for n, place in places.items() if n in by_method]
        means, spreads = [percent([r[k] for r, _ in points]) for k in ("mean", "spread")]
        style = STYLES[k] | {"linestyle": "", "markersize": 6, "capsize": 2}
        label = f"{sparsity:.0%} zeros".replace("%", " %")
        axes.errorbar(means, [place for _, place in points], xerr=spreads, label=label, **style)
    for r in rows:
        if not r["sparsity"]:
            axes.axvline(100 * r["mean"], color="black", linewidth=1, label="dense")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    title = "Test accuracy by algorithm: mean and standard deviation over seeds"
    axes.set(xlabel="test accuracy, %", title=title)
    figure.legend(loc="outside lower center", ncols=len(levels) + 1)
    return figure


def _minilm(rows: Sequence[Row]) -> Any:
    """Cosine to the dense embeddings by target, a marker for each method; lines span the draws."""
    shown = [r for r in rows if r["case"] == "quality"]
    if not shown:
        return None
    title = "Pruned sentence encoder: mean cosine to the embeddings of the dense one"
    figure, axes = panels(2, 2, 4.1, title)
    targets = list(dict.fromkeys(r["target"] for r in shown))
    methods = list(dict.fromkeys(r["method"] for r in shown))
    titles = {"same": "text of the kind used for calibration", "other": "text of another kind"}
    for panel, (kind, panel_title) in zip(axes, titles.items(), strict=True):
        for k, method in enumerate(methods):
            style = STYLES[k % len(STYLES)] | {"linestyle": "", "markersize": 6}
            for i, target in enumerate(targets):
                values = [
                    r[f"cosine_{kind}_kind"]
                    for r in shown
                    if (r["target"], r["method"]) == (target, method)
                ]
                if values:
                    x = i + (k - (len(methods) - 1) / 2) * 0.15
                    panel.plot([x, x], [min(values), max(values)], color=style["color"])
                    panel.plot(x, sum(values) / len(values), **style)
            panel.plot([], [], label=_LABELS.get(method, method), **style)
        panel.set_xticks(range(len(targets)), targets)
        panel.set(xlabel="zeros", title=panel_title)
    axes[0].set_ylabel("mean cosine")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    lowest = min(panel.get_ylim()[0] for panel in axes)
    for panel in axes:
        panel.set_ylim(lowest, 1)
    return figure


PICTURES: dict[str, dict[str, Callable[[Sequence[Row]], Any]]] = {
    "select": {"": _against_size, "-inputs": _inputs},
    "step": {"": _overhead},
    "algorithms": {"": _algorithms},
    "minilm": {"": _minilm},
}
