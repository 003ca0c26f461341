"""The paper's other findings, on one language model at one sparsity.

How often masks are recomputed, where pruning begins and ends, gradual against one-shot, masks that
grow back against masks that do not, and how the layers share the sparsity. Every variant ends with
the same nonzeros, and differs from the reference in one thing.
"""

from __future__ import annotations

import dataclasses
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
_OFTEN = (10, 50, 100, 250, 500, 1000)


def study(size: str) -> Study:
    """The language model of `text`, for fewer sparsities and for more ways to prune."""
    return dataclasses.replace(
        text.study(size),
        name="findings",
        title="Byte-level language model at 90%, bits per byte: ways to prune",
        sparsities=(SPARSITY,),
        seeds=2 if size == "quick" else 3,
    )


def variants(steps: int) -> dict[str, Pruning]:
    """Every way to prune, by name; the reference first."""
    usual = Pruning.gradual(SPARSITY, steps)

    def at(begin: float, end: float) -> Pruning:
        return dataclasses.replace(usual, begin=int(begin * steps), end=int(end * steps))

    found = {REFERENCE: usual}
    for every in _OFTEN:
        if every <= usual.end - usual.begin and every != usual.every:
            found[f"every {every} steps"] = dataclasses.replace(usual, every=every)
    for begin, end in ((0.0, 0.3), (0.0, 0.6), (0.3, 0.6), (0.3, 0.9), (0.0, 0.99)):
        found[f"from {begin:.0%} to {end:.0%} of the steps"] = at(begin, end)
    for when in (0.0, 0.1, 0.6, 0.9):
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
    """Sparsity with the learning rate, and the variants; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    files = [path.with_name(f"{path.stem}{suffix}.png") for suffix in ("-schedule", "")]
    _schedule(study).savefig(files[0], dpi=150)
    _variants(results, study).savefig(files[1], dpi=150)
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
