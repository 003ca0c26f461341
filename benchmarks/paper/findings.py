"""The paper's other findings, on one language model at one sparsity.

How often masks are recomputed, where pruning begins and ends, gradual against one-shot, masks that
grow back against masks that do not, and how the layers share the sparsity. Every variant ends with
the same nonzeros, and differs from the reference in one thing.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich.table import Table

from benchmarks.paper import summary, text
from benchmarks.paper.pruning import Pruning
from benchmarks.paper.study import Network, Study, n_params_of, sparse_network

SPARSITY = 0.9
REFERENCE = "gradual"
# Below this, a smoke test: some of the variants.
_FEW_STEPS = 100
_OFTEN = (10, 100, 250, 500, 1000)
_WINDOWS = ((0.0, 0.3), (0.3, 0.6), (0.3, 0.9), (0.0, 0.99))
_AT_ONCE = (0.0, 0.6, 0.9)
# The curves that are drawn over the steps: more would hide each other.
_CURVES = ("dense", REFERENCE, "every 1000 steps", "one-shot at 0%", "one-shot at 60%", "regrowth")


def study(size: str) -> Study:
    """The language model of `text`, narrower and for longer, measured after every chunk.

    There are 4,000 steps so that 1,000 of them fit twice between the first fire and the last.
    """
    usual = dataclasses.replace(
        text.study(size),
        name="findings",
        title="Byte-level language model at 90%, bits per byte: ways to prune",
        sparsities=(SPARSITY,),
        track=True,
    )
    if size == "quick":
        return usual
    task = functools.partial(text.make_task, 16, 32, 64, 1024)
    return dataclasses.replace(usual, task=task, width=48, steps=4000, chunk=200)


def variants(steps: int) -> dict[str, Pruning]:
    """Every way to prune, by name; the reference first."""
    usual = Pruning.gradual(SPARSITY, steps)

    def at(begin: float, end: float) -> Pruning:
        return dataclasses.replace(usual, begin=int(begin * steps), end=int(end * steps))

    found = {REFERENCE: usual}
    for every in _OFTEN:
        if every <= usual.end - usual.begin and every != usual.every:
            found[f"every {every} steps"] = dataclasses.replace(usual, every=every)
    for begin, end in _WINDOWS:
        found[f"from {begin:.0%} to {end:.0%} of the steps"] = at(begin, end)
    for when in _AT_ONCE:
        found[f"one-shot at {when:.0%}"] = at(when, when)
    found["regrowth"] = dataclasses.replace(usual, regrow=True)
    found["ERK"] = dataclasses.replace(usual, spread="erk")
    found["global"] = dataclasses.replace(usual, spread="global")
    return found


def networks(study: Study, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> list[Network]:
    """The dense network, and one row for each variant."""
    n = n_params_of(study, study.width, inputs)
    chosen = variants(study.steps)
    if study.steps < _FEW_STEPS:
        chosen = {
            name: chosen[name] for name in (REFERENCE, "one-shot at 60%", "regrowth", "global")
        }
    dense = Network("dense", "dense", study.width, None, 0.0, n, n)
    return [dense] + [
        sparse_network(study, name, "variant", pruning, inputs) for name, pruning in chosen.items()
    ]


def table(results: dict[str, Any], study: Study) -> Table:
    """Every variant against the reference."""
    return summary.variants_table(results, study, REFERENCE)


def draw(results: dict[str, Any], study: Study, path: Path) -> list[Path]:
    """Sparsity with the learning rate, training, and the variants; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    figures = {
        "-schedule": _schedule(study),
        "-training": _training(results, study),
        "": _variants(results, study),
    }
    files = []
    for suffix, figure in figures.items():
        files.append(path.with_name(f"{path.stem}{suffix}.png"))
        figure.savefig(files[-1], dpi=150)
    return files


def _schedule(study: Study) -> Any:
    """The paper's figure 1: the sparsity function, and the learning rate that heals after it."""
    from matplotlib.figure import Figure

    schedule = Pruning.gradual(SPARSITY, study.steps).schedule()
    rate = optax.cosine_decay_schedule(study.learning_rate, study.steps)
    steps = np.arange(study.steps)
    figure = Figure((6.4, 4.0), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    left.plot(steps, [schedule.sparsity(int(s)) for s in steps], color="tab:blue")
    right.plot(steps, np.asarray(rate(steps)), color="tab:orange")
    left.set(xlabel="step", title="When to prune: while the learning rate is still high")
    left.set_ylabel("sparsity", color="tab:blue")
    right.set_ylabel("learning rate", color="tab:orange")
    return figure


def _training(results: dict[str, Any], study: Study) -> Any:
    """Sparsity and quality over training: the fall at each way to prune, and its recovery."""
    from matplotlib.figure import Figure

    figure = Figure((11.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for network in results["networks"]:
        runs = [r for r in results["runs"] if r["network"] == network["name"]]
        if not runs or network["name"] not in _CURVES:
            continue
        steps = [study.chunk * (i + 1) for i in range(study.steps // study.chunk)]
        curves = (r[f"{study.measure}_over_steps"] for r in runs)
        left.plot(steps, [n / network["n_params"] for n in runs[0]["n_zero"]])
        means = [statistics.fmean(now) for now in zip(*curves, strict=True)]
        right.plot(steps, means, label=network["name"])
    left.set(xlabel="step", ylabel="fraction of zeros", title="Sparsity")
    right.set(xlabel="step", ylabel=study.measure.replace("_", " "), title="Held-out text")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25, lw=0.6)
    return figure


def _variants(results: dict[str, Any], study: Study) -> Any:
    from matplotlib.figure import Figure

    rows = results["summary"][::-1]
    figure = Figure((7.0, 0.3 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    colors = {"dense": "gray", REFERENCE: "black"}
    for i, row in enumerate(rows):
        color = colors.get(row["name"], "tab:blue")
        axes.errorbar(row["mean"], i, xerr=row["sd"] or 0, marker="o", capsize=3, color=color)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set(xlabel=study.measure.replace("_", " "), title=study.title)
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.25, lw=0.6)
    return figure
