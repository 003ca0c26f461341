"""Tables of pruned networks against small dense ones, with differences paired by seed.

Runs of the same seed see the same batches, so their difference varies less than each of them. A
difference is a tie if it is at most two standard errors from zero. If small dense networks are made
in two ways, narrower and with fewer layers, the comparison is with those that are better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from benchmarks.paper.summary import SMALL_KINDS, Row

if TYPE_CHECKING:
    from benchmarks.paper.study import Study

# The kinds of networks, and their columns in the table.
KINDS = {
    "sparse": "uniform",
    "ERK": "ERK",
    "small dense": "small dense, narrower",
    "shallow dense": "small dense, half the layers",
}
_PRUNED = ("sparse", "ERK")
# The measures of which lower values are better.
_LOWER_IS_BETTER = ("bits_per_byte",)


class Difference(NamedTuple):
    """Mean of the differences over the seeds that both networks have, and its standard error.

    Attributes:
      mean: mean difference; positive if the first network has the larger values.
      error: standard error of the mean; None with fewer than two seeds.
      n: number of seeds.
    """

    mean: float
    error: float | None
    n: int

    @property
    def is_tie(self) -> bool:
        """Whether the difference is within two standard errors of zero, or has no error."""
        return self.error is None or abs(self.mean) <= 2 * self.error


def values_of(results: dict[str, Any], name: str) -> dict[int, float]:
    """The measure of a network by seed, of its finished runs."""
    measure = results["config"]["measure"]
    return {run["seed"]: run[measure] for run in results["runs"] if run["network"] == name}


def difference(results: dict[str, Any], first: str, second: str) -> Difference | None:
    """The paired difference of two networks; None if no seed of both is finished."""
    a, b = values_of(results, first), values_of(results, second)
    pairs = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not pairs:
        return None
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Difference(statistics.fmean(pairs), error, len(pairs))


def network_of(results: dict[str, Any], kind: str, sparsity: float) -> Row | None:
    """The network of a kind and a sparsity; None if the study has none."""
    for row in results["networks"]:
        if (row["kind"], row["sparsity"]) == (kind, sparsity):
            return row
    return None


def missing(results: dict[str, Any]) -> list[str]:
    """The runs that are not finished, as `name (seeds)`."""
    seeds = range(results["config"]["seeds"])
    lines = []
    for row in results["networks"]:
        done = values_of(results, row["name"])
        left = [str(seed) for seed in seeds if seed not in done]
        if left:
            lines.append(f"{row['name']} (seed {', '.join(left)})")
    return lines


def _value(results: dict[str, Any], row: Row | None) -> str:
    values = list(values_of(results, row["name"]).values()) if row else []
    if not values:
        return "missing"
    seeds = results["config"]["seeds"]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    part = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
    return f"{statistics.fmean(values):.2f}{spread}{part}"


def small_network(results: dict[str, Any], sparsity: float) -> Row | None:
    """The small dense network with the better mean; None if none has a finished run."""
    rows = [network_of(results, kind, sparsity) for kind in SMALL_KINDS]
    sign = -1 if results["config"]["measure"] in _LOWER_IS_BETTER else 1
    means = {
        sign * statistics.fmean(values.values()): row
        for row in rows
        if row is not None and (values := values_of(results, row["name"]))
    }
    return means[max(means)] if means else None


def against_small(results: dict[str, Any], kind: str, sparsity: float) -> Difference | None:
    """The paired difference of a kind from the better small dense network; None if missing."""
    row, small = network_of(results, kind, sparsity), small_network(results, sparsity)
    if row is None or small is None:
        return None
    return difference(results, row["name"], small["name"])


def _against(results: dict[str, Any], kind: str, sparsity: float) -> str:
    """A cell: bold if the difference is no tie."""
    paired = against_small(results, kind, sparsity)
    if paired is None:
        return "missing"
    if paired.error is None:
        return f"{paired.mean:+.2f}, one seed"
    text = f"{paired.mean:+.2f} ± {paired.error:.2f}"
    return f"{text}, tie" if paired.is_tie else f"**{text}**"


def kinds_of(results: dict[str, Any]) -> dict[str, str]:
    """The kinds of networks that a study has, and their columns in the table."""
    kinds = {row["kind"] for row in results["networks"]}
    return {kind: name for kind, name in KINDS.items() if kind in kinds}


def head(results: dict[str, Any]) -> list[str]:
    """The names of the columns."""
    kinds = kinds_of(results)
    small = "better small dense" if kinds.keys() >= set(SMALL_KINDS) else "narrower"
    differences = [f"{KINDS[kind]} - {small}" for kind in _PRUNED if kind in kinds]
    return ["zeros", "nonzero parameters", *kinds.values(), *differences]


def cells(results: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of the table: dense first, then by sparsity; sparsities without runs are omitted."""
    dense = next(row for row in results["networks"] if row["kind"] == "dense")
    kinds = kinds_of(results)
    blank = [""] * (len(head(results)) - 3)
    yield ["dense", f"{dense['n_nonzero']:,}", _value(results, dense), *blank]
    for sparsity in results["config"]["sparsities"]:
        rows = [network_of(results, kind, sparsity) for kind in kinds]
        if not any(row and values_of(results, row["name"]) for row in rows):
            continue
        count = f"{rows[0]['n_nonzero']:,}" if rows[0] else ""
        values = [_value(results, row) for row in rows]
        pruned = [kind for kind in _PRUNED if kind in kinds]
        differences = [_against(results, kind, sparsity) for kind in pruned]
        yield [f"{100 * sparsity:g} %", count, *values, *differences]


def markdown(results: dict[str, Any]) -> Iterator[str]:
    """The lines of the table in Markdown."""
    yield f"| {' | '.join(head(results))} |"
    yield "|---:|---:|" + "---|" * (len(head(results)) - 2)
    for row in cells(results):
        yield f"| {' | '.join(row)} |"


def table(results: dict[str, Any], study: Study) -> Table:
    """The table for the console; below it, the runs that are missing."""
    left = missing(results)
    caption = f"Not finished: {'; '.join(left)}. Add --resume to train them." if left else None
    out = Table(title=study.title, caption=caption)
    for name in head(results):
        out.add_column(name, justify="right")
    for row in cells(results):
        out.add_row(*(cell.replace("**", "") for cell in row))
    return out


def gain(results: dict[str, Any], name: str, fraction: float = 1 / 3) -> float:
    """Mean gain of a network over the last `fraction` of its steps, from its tracked measure."""
    key = results["config"]["measure"] + "_over_steps"
    curves = [run[key] for run in results["runs"] if run["network"] == name]
    gains = [curve[-1] - curve[round(len(curve) * (1 - fraction)) - 1] for curve in curves]
    return statistics.fmean(gains)
