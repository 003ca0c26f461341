"""The other findings of the paper, on one language model at one sparsity.

The variants differ in how often masks are recomputed, in when pruning begins and ends, in gradual
or one-shot pruning, in whether weights can return, and in how layers share the sparsity. Every
variant ends with the same number of nonzeros and differs from the reference in one respect.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from rich.table import Table

from benchmarks.paper import summary, text
from benchmarks.paper.pruning import Pruning
from benchmarks.paper.study import Network, Study, dense_network, sparse_network

SPARSITY = 0.9
REFERENCE = "gradual"
# With fewer steps than this, a smoke test, only some of the variants are trained.
_FEW_STEPS = 100
_OFTEN = (10, 100, 250, 500, 1000)
_WINDOWS = ((0.0, 0.3), (0.3, 0.6), (0.3, 0.9), (0.0, 0.99))
_AT_ONCE = (0.0, 0.6, 0.9)


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
    chosen = variants(study.steps)
    if study.steps < _FEW_STEPS:
        chosen = {
            name: chosen[name] for name in (REFERENCE, "one-shot at 60%", "regrowth", "global")
        }
    return [dense_network(study, inputs)] + [
        sparse_network(study, name, "variant", pruning, inputs) for name, pruning in chosen.items()
    ]


def table(results: dict[str, Any], study: Study) -> Table:
    """A table of every variant compared with the reference."""
    return summary.variants_table(results, study, REFERENCE)
