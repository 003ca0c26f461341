"""Counts the parameters of the paper's networks at full size, without data or memory.

Every network is built by `jax.eval_shape` and pruned by `jaxprune.plan` by the rules of the paper.
Weights are the leaves with at least two axes. Biases, batch norm and the score vector of the
attention are counted separately, because the paper does not count them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.table import Table
from rich.text import Text

import jaxprune
from benchmarks.paper.convolutional import InceptionV3, MobileNetV1
from benchmarks.paper.published import PAPER, QUALITY, SIZES, Size
from benchmarks.paper.recurrent import LanguageModel, Translator
from benchmarks.paper.storage import Overhead, overhead_of
from jaxprune._report.table import Report


class Network(NamedTuple):
    """A published network.

    Attributes:
      module: its definition.
      inputs: shape and dtype of each argument, for one example.
      exclude: path regexes of the weights that the paper does not prune.
      rule: what is pruned and what is not, in words.
    """

    module: nn.Module
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    exclude: tuple[str, ...]
    rule: str


class Counts(NamedTuple):
    """The counts of one row, and the plan from which they come.

    Attributes:
      weights: parameters in leaves with at least two axes, pruned or not.
      never_pruned: those weights in leaves that are never pruned.
      others: parameters in other leaves: biases, batch norm and so on.
      nonzero: weights that remain.
      report: the plan of every leaf.
    """

    weights: int
    never_pruned: int
    others: int
    nonzero: int
    report: Report


def _images(side: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),)


_TOKENS = jax.ShapeDtypeStruct((1, 5), jnp.int32)
_NO_DEPTHWISE = ("first/.*", "depthwise_.*")


def _mobilenet(width: float) -> Network:
    rule = "all pointwise and dense kernels, not the first convolution or the depthwise ones"
    return Network(MobileNetV1(width=width), _images(224), _NO_DEPTHWISE, rule)


def _ptb(hidden: int, dropout: float, scale: float) -> Network:
    module = LanguageModel(10_000, hidden, dropout=dropout, scale=scale)
    return Network(module, (_TOKENS,), (), "embedding, LSTM and softmax")


def _wikitext(hidden: int, dropout: float) -> Network:
    module = LanguageModel(33_278, hidden, tied=True, dropout=dropout)
    return Network(module, (_TOKENS,), (), "the embedding, which is also the softmax, and the LSTM")


NETWORKS: dict[str, Network] = {
    "InceptionV3": Network(InceptionV3(), _images(299), (), "all convolution and dense kernels"),
    "MobileNet v1": _mobilenet(1.0),
    "MobileNet v1, width 0.75": _mobilenet(0.75),
    "MobileNet v1, width 0.5": _mobilenet(0.5),
    "MobileNet v1, width 0.25": _mobilenet(0.25),
    "PTB LSTM small": _ptb(200, 0.0, 0.1),
    "PTB LSTM medium": _ptb(650, 0.5, 0.05),
    "PTB LSTM large": _ptb(1500, 0.65, 0.04),
    "GNMT": Network(
        Translator((36_548, 36_548), 1024, dropout=0.2, scale=0.1),
        (_TOKENS, _TOKENS),
        ("attention/.*",),
        "embeddings, LSTM and softmax, not the projections of the attention",
    ),
    "WikiText-2 LSTM small": _wikitext(200, 0.2),
    "WikiText-2 LSTM medium": _wikitext(650, 0.5),
    "WikiText-2 LSTM large": _wikitext(1500, 0.65),
}


@functools.cache
def variables_of(name: str) -> Any:
    """Shapes and dtypes of all variables of a network."""
    network = NETWORKS[name]
    return jax.eval_shape(network.module.init, jax.random.key(0), *network.inputs)


def count(size: Size) -> Counts:
    """The counts of a row, from `jaxprune.plan`."""
    network = NETWORKS[size.network]
    params = variables_of(size.network)["params"]
    report = jaxprune.plan(
        params, size.sparsity, exclude=network.exclude, overrides=dict(size.overrides)
    )
    kernels = [leaf for leaf in report.leaves if len(leaf.shape) > 1]
    weights = sum(leaf.size for leaf in kernels)
    never = sum(leaf.size for leaf in kernels if leaf.note.startswith("excluded"))
    return Counts(weights, never, report.size - weights, weights - report.n_zero, report)


def in_digits_of(n: int, printed: str) -> str:
    """Formats `n` like `printed`: in millions with as many decimals, or in full.

    Example:
      >>> in_digits_of(4_209_088, "4.21M"), in_digits_of(8_591_700, "8,591,700")
      ('4.21M', '8,591,700')
    """
    if not printed.endswith("M"):
        return f"{n:,}"
    decimals = len(printed.partition(".")[2].removesuffix("M"))
    return f"{n / 1e6:.{decimals}f}M"


def agrees(size: Size, counts: Counts) -> bool | None:
    """Whether our count prints in the same digits; None if the source printed none."""
    if size.printed is None:
        return None
    return in_digits_of(counts.nonzero, size.printed) == size.printed


def percent(sparsity: float) -> str:
    """Formats `0.975` as `97.5%`, and `0.0` as `dense`."""
    return f"{100 * sparsity:g}%" if sparsity else "dense"


def rows() -> list[tuple[Size, Counts, Overhead]]:
    """The rows of the tables: published size, our counts, and storage."""
    counted = []
    for size in SIZES:
        counts = count(size)
        counted.append((size, counts, overhead_of(counts.report.leaves)))
    return counted


def show(print_: Callable[[Any], None]) -> None:
    """Prints the tables of sizes, storage and quality."""
    counted = rows()
    for part in (_size_table(counted), *_notes(counted), _storage_table(counted), _quality_table()):
        print_(part)


def _new_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _size_table(counted: Sequence[tuple[Size, Counts, Overhead]]) -> Table:
    columns = ("sparsity", "weights", "never pruned", "others", "nonzero", "printed", "agrees")
    table = _new_table("Nonzero weights: counted and printed", ("network",), columns)
    previous = ""
    for size, counts, _ in counted:
        if size.network != previous:
            table.add_section()
        numbers = (counts.weights, counts.never_pruned, counts.others, counts.nonzero)
        verdict = {True: "yes", False: "no", None: ""}[agrees(size, counts)]
        name = size.network if size.network != previous else ""
        cells = (f"{n:,}" for n in numbers)
        table.add_row(name, percent(size.sparsity), *cells, size.printed or "", verdict)
        previous = size.network
    return table


def _notes(counted: Sequence[tuple[Size, Counts, Overhead]]) -> list[Text]:
    notes = [
        "weights: leaves with at least two axes, which the sources count. others: biases, batch "
        "norm, the score of the attention; never pruned, and not counted by the sources. printed: "
        f"{PAPER}, and the Distiller tutorial for WikiText-2. Rows without it are not checked."
    ]
    for size, *_ in counted:
        row = f"{size.network}, {percent(size.sparsity)}"
        if size.why:
            notes.append(f"{row}: {size.why}")
        if size.overrides:
            levels = ", ".join(f"{rule} {percent(s)}" for rule, s in size.overrides)
            notes.append(f"{row}: {levels}, as in its published schedule.")
    for name in ("InceptionV3", "MobileNet v1", "PTB LSTM large", "GNMT"):
        notes.append(f"{name}, pruned: {NETWORKS[name].rule}.")
    return [Text(note, style="dim") for note in notes]


def _storage_table(counted: Sequence[tuple[Size, Counts, Overhead]]) -> Table:
    columns = ("sparsity", "values", "bit mask", "CSR", "CSR(C)", "run bits", "smallest / dense")
    table = _new_table(
        "Storage in MB: float32 nonzeros, and their positions", ("network",), columns
    )
    for size, counts, overhead in counted:
        if not size.sparsity:
            continue  # a dense network stores no positions
        values, dense = 4 * counts.nonzero / 1e6, 4 * counts.weights / 1e6
        positions = [bits / 8e6 for bits in overhead[:3]]
        best = f"{(values + min(positions)) / dense:.3f}"
        numbers = (f"{x:.2f}" for x in (values, *positions))
        table.add_row(size.network, percent(size.sparsity), *numbers, f"{overhead.run_bits}", best)
    return table


def _quality_table() -> Table:
    table = _new_table(
        "Published quality, to compare with your own runs", ("network", "measure"), ("values",)
    )
    table.add_column("source")
    for (network, measure, source), group in itertools.groupby(QUALITY, lambda q: (*q[:2], q[4])):
        values = ", ".join(f"{percent(q.sparsity)} {q.value}" for q in group)
        table.add_row(network, measure, values, source)
    return table
