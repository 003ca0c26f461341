"""How much quality do structures lose that run fast or make small files?

A language model and a convolutional network are pruned to the same sparsities with every structure
of the library, and compared with small dense networks that have as many weights: narrower ones, and
for the language model also ones with a single layer. Widths are multiples of 20, which suits N:M
with 1:5, 1:10 and 1:20. Blocks at the edge of a layer can be smaller. Whole units (`units`) are
pruned until the network has the shape of the narrower one. All networks are trained alike. The
results also record the size of the file that `jaxprune.save` writes for the trained network.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from rich.table import Table

import jaxprune
from benchmarks.paper import digits, summary, text, tradeoff
from benchmarks.paper.digits import PlainNet
from benchmarks.paper.pruning import Pruning
from benchmarks.paper.recurrent import LanguageModel
from benchmarks.paper.study import (
    Network,
    Study,
    Task,
    dense_network,
    small_networks,
    sparse_network,
)
from benchmarks.paper.summary import SMALL_KINDS
from benchmarks.paper.units import Axes, Units, without_dead_units

SPARSITIES = (0.8, 0.9, 0.95)


def studies(size: str) -> list[Study]:
    """The studies in a size: "quick", "cpu" or "gpu".

    "cpu" has a second language model that is four times as wide, at 90% sparsity only.
    """
    few: dict[str, Any] = {"sparsities": (0.9,) if size == "quick" else SPARSITIES}
    widths = {"quick": (40, 20), "cpu": (80, 20), "gpu": (1280, 80)}[size]
    steps, chunk = {"quick": (40, 20), "cpu": (300, 100), "gpu": (3000, 200)}[size]
    short: dict[str, Any] = {"steps": 700} if size == "cpu" else {}
    language = dataclasses.replace(
        text.study(size),
        name="quality-lstm",
        title="Byte-level LSTM language model, bits per byte",
        module=_language_model,
        shallow=_one_layer,
        width=widths[0],
        **few,
        **short,
    )
    images = Study(
        "quality-cnn",
        "Seven convolutions on 100 training digits, test accuracy in percent",
        task=lambda: with_size(digits.make_task(32, 100), _cnn_axes, _cnn_sizes, _cnn_of),
        module=PlainNet,
        width=widths[1],
        measure="accuracy",
        lower_is_better=False,
        # The first kernel has nine rows: at 95% sparsity all of them would be dropped.
        exclude=("Conv_0/.*",),
        steps=steps,
        chunk=chunk,
        learning_rate=5e-3,
        seeds=2 if size == "quick" else 3,
        **few,
    )
    task = language.task
    language = dataclasses.replace(
        language, task=lambda: with_size(task(), _lstm_axes, _lstm_sizes, _lstm_of)
    )
    wide = dataclasses.replace(
        language,
        name="quality-wide",
        title=f"{language.title}, 320 units",
        width=320,
        learning_rate=1e-2,  # 2e-2 only suits narrow networks
        sparsities=(0.9,),
    )
    return [language, images, *([wide] if size == "cpu" else [])]


# The units of both networks


def _language_model(width: int, *, n_layers: int = 2) -> nn.Module:
    return LanguageModel(text.SYMBOLS, width, n_layers, embed=max(width // 2, 1))


_one_layer = functools.partial(_language_model, n_layers=1)


def _lstm_axes(module: Any) -> Axes:
    groups = ["embed", *(f"lstm_{i}" for i in range(module.n_layers))]
    axes: dict[str, tuple[tuple[str, ...], ...]] = {
        "embed/embedding": ((), ("embed",)),
        "softmax/kernel": ((groups[-1],), ()),
    }
    for below, name in itertools.pairwise(groups):
        axes |= {f"{name}/kernel": ((below, name), (name,) * 4), f"{name}/bias": ((name,) * 4,)}
    return axes


def _lstm_sizes(module: Any) -> dict[str, int]:
    return {"embed": module.embed} | {f"lstm_{i}": module.hidden for i in range(module.n_layers)}


def _lstm_of(sizes: Mapping[str, int]) -> nn.Module:
    return LanguageModel(text.SYMBOLS, sizes["lstm_0"], len(sizes) - 1, embed=sizes["embed"])


def _cnn_axes(module: Any) -> Axes:
    n_layers = len(module.stages)
    axes = {"logits/kernel": ((f"Conv_{n_layers - 1}",), ())}
    for i in range(n_layers):
        inputs = (f"Conv_{i - 1}",) if i else ()
        axes[f"Conv_{i}/kernel"] = ((), (), inputs, (f"Conv_{i}",))
        for name in ("scale", "bias", "mean", "var"):
            axes[f"BatchNorm_{i}/{name}"] = ((f"Conv_{i}",),)
    return axes


def _cnn_sizes(module: Any) -> dict[str, int]:
    return {f"Conv_{i}": times * module.width for i, (times, _) in enumerate(module.stages)}


def _cnn_of(sizes: Mapping[str, int]) -> nn.Module:
    return PlainNet(sizes["Conv_0"])


def _is_cnn(study: Study) -> bool:
    return study.module is PlainNet


def _units(study: Study, width: int) -> Units:
    axes_of, sizes_of = (_cnn_axes, _cnn_sizes) if _is_cnn(study) else (_lstm_axes, _lstm_sizes)
    large, small = study.module(study.width), study.module(width)
    return Units(axes_of(large), sizes_of(large), sizes_of(small))


# Networks


def structures(sparsity: float) -> dict[str, Any]:
    """Structures by kind; each reaches the sparsity up to rounding in small layers."""
    m = round(1 / (1 - sparsity))
    by_kind: dict[str, Any] = {"unstructured": jaxprune.Unstructured()}
    for width in (8, 16, 32):
        by_kind[f"blocks 1x{width}"] = jaxprune.Block((1, width), balanced=True)
    # Embeddings are looked up, not summed over, so their groups lie along the vector of a symbol.
    by_kind["N:M"] = {is_embedding: jaxprune.NM(1, m, axis=-1), ".*": jaxprune.NM(1, m, axis=-2)}
    return by_kind


def is_embedding(path: str, leaf: Any) -> bool:
    """Whether a leaf is an embedding; a function, because a network may have none."""
    del leaf
    return path.startswith("embed/")


def networks(study: Study, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> list[Network]:
    """The dense network, and one network of each kind for each sparsity."""
    all_networks = [dense_network(study, inputs)]
    n = all_networks[0].n_params
    for sparsity in study.sparsities:
        gradual = Pruning.gradual(sparsity, study.steps)
        rows = {}
        for kind, structure in structures(sparsity).items():
            pruning = dataclasses.replace(gradual, structure=structure)
            rows[kind] = sparse_network(study, f"{kind} {sparsity:g}", kind, pruning, inputs)
        names = {kind: f"{kind} {sparsity:g}" for kind in SMALL_KINDS}
        small, *others = small_networks(study, rows["unstructured"], names, inputs)
        with_units = dataclasses.replace(gradual, structure=_units(study, small.width))
        name, n_small = f"units {sparsity:g}", small.n_params
        units = Network(name, "units", study.width, with_units, sparsity, n, n_small)
        all_networks += [*rows.values(), units, small, *others]
    return all_networks


# Measurement


def with_size(
    task: Task,
    axes_of: Callable[[Any], Axes],
    sizes_of: Callable[[Any], Mapping[str, int]],
    module_of: Callable[[Mapping[str, int]], nn.Module],
) -> Task:
    """The task, which then also measures the file of the network that would be deployed.

    Dropped units are removed first, and the quality must stay the same.

    Raises:
      ValueError: when measured, if removing the dropped units changes the quality.
    """

    def measure(module: nn.Module, variables: Any, data: Any) -> dict[str, float]:
        measured = task.measure(module, variables, data)
        small, sizes = without_dead_units(axes_of(module), sizes_of(module), variables)
        if sizes != sizes_of(module):
            measured_again = task.measure(module_of(sizes), small, data)
            for name, value in measured_again.items():
                if abs(value - measured[name]) > 1e-3 * abs(value):
                    raise ValueError(
                        f"{name} is {value} after dropped units are removed, and was "
                        f"{measured[name]} before; it must not change."
                    )
        return measured | {"file_bytes": file_bytes(small), "bytes": 4 * n_weights(small)}

    return task._replace(measure=measure)


def file_bytes(variables: Any) -> int:
    """Bytes of the file that `jaxprune.save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network"
        jaxprune.save(path, variables)
        return path.stat().st_size


def n_weights(variables: Any) -> int:
    """Number of entries in all arrays of a tree."""
    return sum(x.size for x in jax.tree.leaves(variables))


# Table and plots


def table(results: dict[str, Any], study: Study) -> Table:
    """A table of the quality of each kind at each sparsity."""
    by_case = {(row["kind"], row["sparsity"]): row for row in results["summary"]}
    table_ = Table(title=study.title)
    table_.add_column("")
    for sparsity in study.sparsities:
        table_.add_column(f"{100 * sparsity:g}%", justify="right", no_wrap=True)
    for kind in tradeoff.KINDS:
        rows = [by_case.get((kind, sparsity)) for sparsity in study.sparsities]
        if any(rows):
            cells = (summary.shown(row) if row else "" for row in rows)
            table_.add_row(tradeoff.LABELS[kind], *cells)
    if ("dense", 0.0) in by_case:
        table_.add_row("dense, all weights", summary.shown(by_case["dense", 0.0]))
    return table_
