"""Means and standard deviations over runs, verdicts and tables of a study.

Two networks tie when their means differ by at most two standard errors of the difference.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.paper.study import Network, Study

Row = dict[str, Any]

# Small dense networks: narrower ones, and ones with half the layers.
SMALL_KINDS = ("small dense", "shallow dense")


def row_of(network: Network) -> Row:
    """The entry of a network in the results file."""
    row = network._asdict()
    row.pop("pruning")
    return row


def read(path: Path) -> dict[str, Any] | None:
    """The results in a file; None if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else None


def summarize(results: dict[str, Any], measure: str) -> list[Row]:
    """One row per network with finished runs: mean and sample standard deviation of the measure.

    The standard deviation of a single run is None.
    """
    rows = []
    for network in results["networks"]:
        values = [r[measure] for r in results["runs"] if r["network"] == network["name"]]
        if values:
            sd = statistics.stdev(values) if len(values) > 1 else None
            rows.append(network | {"n": len(values), "mean": statistics.fmean(values), "sd": sd})
    return rows


def compare(row: Row, base: Row, lower_is_better: bool) -> tuple[float, str]:
    """The difference of the means, and "better", "worse" or "tie"; with one seed, "one seed"."""
    difference = row["mean"] - base["mean"]
    if row["sd"] is None or base["sd"] is None:
        return difference, "one seed"
    error = math.sqrt(sum(r["sd"] ** 2 / r["n"] for r in (row, base)))
    if abs(difference) <= 2 * error:
        return difference, "tie"
    return difference, "better" if (difference < 0) == lower_is_better else "worse"


def pairs(summary: Sequence[Row], lower_is_better: bool) -> list[tuple[Row, Row]]:
    """Pairs of a sparse row and the better small dense row of the same sparsity, if both exist."""
    best: dict[float, Row] = {}
    for row in (row for row in summary if row["kind"] in SMALL_KINDS):
        other = best.get(row["sparsity"])
        if other is None or (row["mean"] < other["mean"]) == lower_is_better:
            best[row["sparsity"]] = row
    sparse = (row for row in summary if row["kind"] == "sparse")
    return [(row, best[row["sparsity"]]) for row in sparse if row["sparsity"] in best]


def shown(row: Row) -> str:
    """Formats the mean, and the standard deviation if there is one."""
    return f"{row['mean']:.3f}" + ("" if row["sd"] is None else f" ± {row['sd']:.3f}")


def table(results: dict[str, Any], study: Study) -> Table:
    """A table of large-sparse against the better small dense network, one row per sparsity."""
    rows = results["summary"]
    out = Table(title=study.title)
    names = ("sparsity", "nonzero", "large sparse", "small nonzero", "small dense", "difference")
    for name in names:
        out.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row["kind"] == "dense":
            out.add_row("dense", f"{row['n_nonzero']:,}", shown(row), "", "", "")
    for row, small in pairs(rows, study.lower_is_better):
        difference, verdict = compare(row, small, study.lower_is_better)
        kind = ", half the layers" if small["kind"] == "shallow dense" else ""
        counts = f"{row['n_nonzero']:,}", shown(row), f"{small['n_nonzero']:,}", shown(small) + kind
        out.add_row(f"{100 * row['sparsity']:g}%", *counts, f"{difference:+.3f}, {verdict}")
    return out


def variants_table(results: dict[str, Any], study: Study, reference: str) -> Table:
    """A table of every network, each compared with the network named `reference`."""
    rows = results["summary"]
    base = next((row for row in rows if row["name"] == reference), None)
    out = Table(title=study.title)
    for name in ("", "nonzero", study.measure, f"against {reference}"):
        out.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for row in rows:
        cell = ""
        if base is not None and row is not base:
            difference, verdict = compare(row, base, study.lower_is_better)
            cell = f"{difference:+.3f}, {verdict}"
        out.add_row(row["name"], f"{row['n_nonzero']:,}", shown(row), cell)
    return out
