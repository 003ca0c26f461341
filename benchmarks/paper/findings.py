"""The other findings of the paper, on one language model at one sparsity.

The variants differ in how often masks are recomputed, in when pruning begins and ends, in gradual
or one-shot pruning, in whether weights can return, and in how layers share the sparsity. Every
variant ends with the same number of nonzeros and differs from the reference in one respect.
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
# With fewer steps than this, a smoke test, only some of the variants are trained.
_FEW_STEPS = 100
_OFTEN = (10, 100, 250, 500, 1000)
_WINDOWS = ((0.0, 0.3), (0.3, 0.6), (0.3, 0.9), (0.0, 0.99))
_AT_ONCE = (0.0, 0.6, 0.9)
# Only these curves are drawn over the steps; more would overlap.
_CURVES = ("dense", REFERENCE, "every 1000 steps", "one-shot at 0%", "one-shot at 60%", "regrowth")


def study(size: str) -> Study:
    """The language model of `text`, but narrower, trained longer and measured after every chunk.

    It takes 4,000 steps, so that even with 1,000 steps between fires there are three of them.
    """
    base = dataclasses.replace(
        text.study(size),
        name="findings",
        title="Byte-level language model at 90%, bits per byte: ways to prune",
        sparsities=(SPARSITY,),
        track=True,
    )
    if size == "quick":
        return base
    task = functools.partial(text.make_task, 16, 32, 64, 1024)
    return dataclasses.replace(base, task=task, width=48, steps=4000, chunk=200)


def variants(steps: int) -> dict[str, Pruning]:
    """The pruning configurations by name; the reference is first."""
    reference = Pruning.gradual(SPARSITY, steps)

    def between(begin: float, end: float) -> Pruning:
        return dataclasses.replace(reference, begin=int(begin * steps), end=int(end * steps))

    by_name = {REFERENCE: reference}
    for every in _OFTEN:
        if every <= reference.end - reference.begin and every != reference.every:
            by_name[f"every {every} steps"] = dataclasses.replace(reference, every=every)
    for begin, end in _WINDOWS:
        by_name[f"from {begin:.0%} to {end:.0%} of the steps"] = between(begin, end)
    for fraction in _AT_ONCE:
        by_name[f"one-shot at {fraction:.0%}"] = between(fraction, fraction)
    by_name["regrowth"] = dataclasses.replace(reference, regrow=True)
    by_name["ERK"] = dataclasses.replace(reference, spread="erk")
    by_name["global"] = dataclasses.replace(reference, spread="global")
    return by_name


def networks(study: Study, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> list[Network]:
    """The dense network, then one network per variant."""
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
    """A table of every variant compared with the reference."""
    return summary.variants_table(results, study, REFERENCE)


def draw(results: dict[str, Any], study: Study, path: Path) -> list[Path]:
    """Draws the schedule, the training curves and the variants; no files without matplotlib."""
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
    """Figure 1 of the paper: sparsity, and the learning rate with which the network recovers."""
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
    """Sparsity and held-out quality during training: the drop at each fire, and the recovery."""
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
        means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
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
