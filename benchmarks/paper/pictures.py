"""The pictures of the paper's studies, drawn from their results files alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.paper import paired, story, tradeoff
from benchmarks.paper.summary import Row
from benchmarks.pictures import DENSE, STYLES, has_matplotlib, panels, percent, save

_UNITS = {"accuracy": "test accuracy, %", "bits_per_byte": "bits per byte", "bleu": "BLEU"}
# Only these curves of the findings are drawn over the steps; more would overlap.
_CURVES = {
    "dense": DENSE | {"linewidth": 1.5},
    "gradual": {"color": STYLES[0]["color"], "linewidth": 3},
    "regrowth": {"color": STYLES[4]["color"], "linestyle": "--", "linewidth": 1.5},
    "every 1000 steps": {"color": STYLES[2]["color"], "linestyle": "-.", "linewidth": 1.5},
    "one-shot at 0%": {"color": STYLES[3]["color"], "linestyle": ":", "linewidth": 2.5},
    "one-shot at 60%": {"color": STYLES[1]["color"], "linestyle": (0, (5, 1)), "linewidth": 1.5},
}
_SERIES = {
    "ERK": ("large, pruned with ERK", STYLES[2]),
    "sparse": ("large, pruned uniformly", STYLES[0]),
    "small dense": ("small dense, narrower", STYLES[1]),
    "shallow dense": ("small dense, half the layers", STYLES[3]),
}


def draw(results: dict[str, Any], path: Path) -> list[Path]:
    """Draws the pictures of one study next to its results file; none without matplotlib."""
    if not has_matplotlib():
        return []
    return [
        save(picture(results, path), path.with_name(f"{path.stem}{suffix}.png"))
        for suffix, picture in pictures_of(results["study"]).items()
    ]


def pictures_of(study: str) -> dict[str, Callable[[dict[str, Any], Path], Any]]:
    """The pictures of a study: the end of the file name, and the function that draws it."""
    if study == "findings":
        return {"-schedule": _schedule, "-training": _training, "": _variants}
    if study.startswith("quality"):
        return {"": _quality}
    if study.startswith("fashion"):
        return {"": _paired}
    if study == "lstm-one-layer":
        return {"": _against_nonzeros}
    return {"": _against_nonzeros, "-training": _over_steps}


def unit(results: dict[str, Any]) -> str:
    """The measure of a study with its unit, as on the axis."""
    measure = results["config"]["measure"]
    return _UNITS.get(measure, measure.replace("_", " "))


# Large-sparse against small-dense


def overview(folder: Path) -> Path | None:
    """Draws quality against nonzeros, a panel per study; None if there are no results."""
    results_by_name = story.load(folder)
    parts = [part for part in story.PARTS if part.name in results_by_name]
    if not parts or not has_matplotlib():
        return None
    title = "Large and sparse, or small and dense? Mean and standard deviation over seeds"
    figure, axes = panels(len(parts), 2, 3.0, title)
    for panel, part in zip(axes, parts, strict=True):
        _compare(panel, results_by_name[part.name]["summary"])
        task = "translation, " if part.name.startswith("seq2seq") else ""
        panel.set(ylabel=part.axis, title=task + part.head.split(",")[0])
        panel.get_legend().remove()  # it would cover points of some panels
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return save(figure, folder / "paper-cpu.png")


def _against_nonzeros(results: dict[str, Any], path: Path) -> Any:
    figure, [axes] = panels(1, 1, 4.4, results["title"])
    _compare(axes, results["summary"])
    axes.set(ylabel=unit(results))
    return figure


def _paired(results: dict[str, Any], path: Path) -> Any:
    """Quality against nonzeros, and the differences from the better small dense networks."""
    figure, (left, right) = panels(2, 2, 4.4, results["title"])
    _compare(left, results["summary"])
    left.set(ylabel=unit(results), title="Mean and standard deviation over seeds")
    levels = results["config"]["sparsities"]
    for k, kind in enumerate(("ERK", "sparse")):
        points = [(i, paired.against_small(results, kind, s)) for i, s in enumerate(levels)]
        shown = [(i + 0.12 * (k - 0.5), d) for i, d in points if d is not None]
        if shown:
            label, style = _SERIES[kind]
            means, bars = zip(*((d.mean, 2 * (d.error or 0)) for _, d in shown), strict=True)
            style = style | {"linestyle": "", "markersize": 6, "capsize": 3}
            right.errorbar([x for x, _ in shown], means, bars, label=label, **style)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xticks(range(len(levels)), [f"{100 * s:g}" for s in levels])
    right.set(xlabel="zeros, %", ylabel="points better than the better small dense")
    right.set_title("Paired difference, two standard errors")
    if right.get_legend_handles_labels()[0]:
        right.legend()
    return figure


def _compare(axes: Any, rows: list[Row]) -> None:
    """Quality against nonzeros: a curve for each kind of networks."""
    from matplotlib.ticker import EngFormatter

    for kind, (label, style) in _SERIES.items():
        line = sorted((r for r in rows if r["kind"] == kind), key=lambda row: row["n_nonzero"])
        if not line:
            continue
        x, y, sd = ([row[name] for row in line] for name in ("n_nonzero", "mean", "sd"))
        error = [value or 0 for value in sd]
        axes.errorbar(x, y, error, markersize=5, capsize=2, linewidth=1.3, label=label, **style)
    for row in rows:
        if row["kind"] == "dense":
            star = DENSE | {"linestyle": "", "markersize": 9, "capsize": 2, "label": "large, dense"}
            axes.errorbar(row["n_nonzero"], row["mean"], row["sd"] or 0, **star)
    axes.set(xscale="log", xlabel="nonzero parameters")
    _round_ticks(axes, EngFormatter(sep=""))  # 10k
    axes.legend()


def _round_ticks(axes: Any, formatter: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _over_steps(results: dict[str, Any], path: Path) -> Any:
    """Sparsity and training loss over the steps; colours run from low to high sparsity."""
    import matplotlib

    figure, (left, right) = panels(2, 2, 4.0, results["title"])
    runs_of: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        runs_of.setdefault(run["network"], []).append(run)
    kinds = ("dense", "sparse")
    networks = [n for n in results["networks"] if n["kind"] in kinds and n["name"] in runs_of]
    colours = matplotlib.colormaps["viridis_r"]
    for i, network in enumerate(networks):
        runs = runs_of[network["name"]]
        is_dense = network["kind"] == "dense"
        style = (
            {"color": "black"} if is_dense else {"color": colours(0.2 + 0.8 * i / len(networks))}
        )
        style["label"] = "dense" if is_dense else f"{100 * network['sparsity']:g} % zeros"
        steps = _steps(results, len(runs[0]["losses"]))
        left.plot(steps, percent([n / network["n_params"] for n in runs[0]["n_zero"]]), **style)
        chunks = zip(*(r["losses"] for r in runs), strict=True)
        right.plot(steps, [statistics.fmean(chunk) for chunk in chunks], **style)
    left.set(xlabel="step", ylabel="zeros in all parameters, %", title="Sparsity")
    every = results["config"]["chunk"]
    right.set(xlabel="step", ylabel="nats", title=f"Training loss, mean of {every} steps")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _steps(results: dict[str, Any], n: int) -> list[int]:
    return [results["config"]["chunk"] * (i + 1) for i in range(n)]


# The other findings


def _schedule(results: dict[str, Any], path: Path) -> Any:
    """Figure 1 of the paper: sparsity, and the learning rate with which the network recovers."""
    import numpy as np
    import optax

    from benchmarks.paper.pruning import Pruning

    config = results["config"]
    schedule = Pruning.gradual(config["sparsities"][0], config["steps"]).schedule()
    steps = np.arange(config["steps"])
    rate = np.asarray(optax.cosine_decay_schedule(config["learning_rate"], config["steps"])(steps))
    figure, axes = panels(2, 1, 2.1, "When to prune: while the learning rate is still high")
    zeros = percent([schedule.sparsity(int(step)) for step in steps])
    axes[0].plot(steps, zeros, color=STYLES[0]["color"], label="sparsity of the pruned leaves")
    axes[1].plot(steps, rate, color=STYLES[1]["color"], label="learning rate")
    axes[0].set(ylabel="zeros, %", ylim=(0, 100))
    axes[1].set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    for panel, place in zip(axes, ("lower right", "upper right"), strict=True):
        panel.legend(loc=place)
    return figure


def _training(results: dict[str, Any], path: Path) -> Any:
    """Sparsity and held-out quality during training: the drop at each fire, and the recovery."""
    figure, axes = panels(2, 1, 3.2, "Ways to prune to 90 %: sparsity and quality during training")
    for name, style in _CURVES.items():
        [network] = [n for n in results["networks"] if n["name"] == name] or [None]
        runs = [r for r in results["runs"] if r["network"] == name]
        if not runs or network is None:
            continue
        curves = [r[f"{results['config']['measure']}_over_steps"] for r in runs]
        line = {key: value for key, value in style.items() if key != "marker"} | {"label": name}
        steps = _steps(results, len(curves[0]))
        zeros = percent([n / network["n_params"] for n in runs[0]["n_zero"]])
        axes[0].plot(steps, zeros, drawstyle="steps-post", **line)
        axes[1].plot(steps, [statistics.fmean(v) for v in zip(*curves, strict=True)], **line)
    axes[0].set(ylabel="zeros in all parameters, %", ylim=(-3, 100))
    axes[1].set(xlabel="step", ylabel=f"{unit(results)}, held-out text")
    axes[1].sharex(axes[0])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _variants(results: dict[str, Any], path: Path) -> Any:
    """A row for each way to prune, in the order of the table, with that of the reference marked."""
    rows = results["summary"]
    figure, [axes] = panels(1, 1, 0.28 * len(rows) + 1.3, results["title"])
    looks = {"dense": DENSE, "gradual": STYLES[1]}
    for i, row in enumerate(rows):
        style = looks.get(row["name"], STYLES[0]) | {"linestyle": "", "markersize": 7}
        axes.errorbar(row["mean"], i, xerr=row["sd"] or 0, capsize=3, **style)
        if row["name"] == "gradual":
            axes.axvline(row["mean"], color=STYLES[1]["color"], linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel=f"{unit(results)}, mean and standard deviation over seeds")
    return figure


# Quality against size and speed


def _quality(results: dict[str, Any], path: Path) -> Any:
    latency = path.with_name(path.name.replace(f"paper-{results['study']}", "inference"))
    measured = list(tradeoff.panels(results, latency))
    columns = 2 if len(measured) > 1 else 1
    figure, axes = panels(len(measured), columns, 3.6, results["title"])
    for panel, (title, label, x_of) in zip(axes, measured, strict=True):
        for row in results["summary"]:
            if row["kind"] == "dense" and (x := x_of(row)) is not None:
                panel.plot([x], [row["mean"]], linestyle="", markersize=11, label="dense", **DENSE)
        for i, kind in enumerate(tradeoff.KINDS):
            points = list(_points(results["summary"], kind, x_of))
            if points:
                x, y, sd = zip(*points, strict=True)
                style = STYLES[i] | {"markersize": 6, "capsize": 2, "linewidth": 1.2}
                style["markerfacecolor"] = "none"  # some points lie on each other
                panel.errorbar(x, y, sd, label=tradeoff.LABELS[kind], **style)
        panel.set(xscale="log", xlabel=label, ylabel=unit(results), title=title)
        _round_ticks(panel, "{x:,g}")
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    return figure


def _points(
    rows: list[Row], kind: str, x_of: Callable[[Row], float | None]
) -> Iterator[tuple[float, float, float]]:
    for row in rows:
        if row["kind"] == kind and (x := x_of(row)) is not None:
            yield x, row["mean"], row["sd"] or 0
