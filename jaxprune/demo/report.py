"""What the runs amount to: means, spreads, paired differences, the table, and the result in words.

Networks are compared seed by seed, because runs of the same seed see the same batches. Two networks
tie if the mean of these differences is at most two standard errors from zero.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxprune.demo.config import DISTRIBUTIONS, SMALL

_ENOUGH_SEEDS = 4
NEXT = (
    "What to read next: README.md shows how to prune in your own training loop with one more line. "
    "docs/paper.md answers the same question for language models, translation and other images."
)


def summarize(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per network: its sizes, its accuracy after the last step, and its differences.

    `accuracy_sd` is the sample standard deviation over the seeds. `minus_dense` and `minus_small`
    are the mean differences from the dense network and, for sparse networks, from the better of the
    small dense ones with as many nonzeros; `minus_dense_se` and `minus_small_se` are their standard
    errors. A value is None where there is nothing to compare, or only one seed to compute a spread
    from.
    """
    accuracies = {network["name"]: [] for network in results["networks"]}
    for run in results["runs"]:
        accuracies[run["network"]].append(run["accuracy"])
    small: dict[float, list[str]] = {}
    for network in results["networks"]:
        if network["kind"] in SMALL:
            small.setdefault(network["sparsity"], []).append(network["name"])
    better = {level: max(names, key=lambda n: sum(accuracies[n])) for level, names in small.items()}
    rows = []
    for network in results["networks"]:
        runs = accuracies[network["name"]]
        row = {
            **network,
            "n_seeds": len(runs),
            "accuracy_mean": statistics.fmean(runs),
            "accuracy_sd": _spread(runs),
        }
        partners = {
            "minus_dense": None if network["kind"] == "dense" else "dense",
            "minus_small": better[network["sparsity"]] if _is_sparse(network) else None,
        }
        for name, partner in partners.items():
            row[name], row[f"{name}_se"] = None, None
            if partner is not None:
                pairs = [a - b for a, b in zip(runs, accuracies[partner], strict=True)]
                sd = _spread(pairs)
                row[name] = statistics.fmean(pairs)
                row[f"{name}_se"] = None if sd is None else sd / math.sqrt(len(pairs))
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _is_sparse(row: dict[str, Any]) -> bool:
    return row["kind"] in DISTRIBUTIONS


def verdict(row: dict[str, Any], difference: str = "minus_small") -> str:
    """`"better"`, `"worse"` or `"tie"`; or `"one seed"`, which is not enough for a verdict."""
    mean, se = row[difference], row[f"{difference}_se"]
    if se is None:
        return "one seed"
    if abs(mean) <= 2 * se:
        return "tie"
    return "better" if mean > 0 else "worse"


def table(results: dict[str, Any]) -> Group:
    """The results as a table of at most 80 columns, its caption, and the result in words."""
    summary = results["summary"]
    out = Table(title="Three-digit numbers read correctly, in %", title_justify="left")
    out.add_column("network", no_wrap=True)
    for name in ("nonzeros", "correct", "vs small dense", "vs dense"):
        out.add_column(name, justify="right", no_wrap=True)
    sparsity = 0.0
    for row in summary:
        if row["sparsity"] != sparsity:
            out.add_section()
            sparsity = row["sparsity"]
        out.add_row(
            label(row),
            f"{row['n_nonzero']:,}",
            _with_spread(row["accuracy_mean"], row["accuracy_sd"]),
            *(_difference(row, name) for name in ("minus_small", "minus_dense")),
        )
    lines = [caption(results), "", answer(summary), NEXT]
    return Group(out, *map(Text, lines))


def label(row: dict[str, Any]) -> str:
    """The name of a row in the table and in the pictures."""
    return f"{percent(row['sparsity'])} {row['kind']}" if _is_sparse(row) else row["kind"]


def _with_spread(mean: float, spread: float | None) -> str:
    return f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _difference(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    tie = "= " if verdict(row, name) == "tie" else ""
    return f"{tie}{'+' if row[name] >= 0 else ''}{_with_spread(row[name], row[f'{name}_se'])}"


def caption(results: dict[str, Any]) -> str:
    """What was the same for all networks, what the numbers are, and what counts as a tie."""
    config = results["config"]
    n = config["n_seeds"]
    spreads = (
        f"Mean ± standard deviation over {n} seeds; differences: mean over the seeds ± its "
        "standard error; =: a tie, at most two standard errors from zero. "
        if n > 1
        else "One seed. "
    )
    n_params = results["summary"][0]["n_params"]
    return (
        f"{spreads}All three digits of a number must be right; {config['n_test']:,} test images, "
        f"composed of digits that no training image has. All networks have the same images, "
        f"batches, optimizer (AdamW) and {config['steps']:,} steps. Uniform and ERK: the dense "
        f"network of {n_params:,} parameters, pruned while it trains. Uniform has the same "
        "sparsity in every layer, as in the paper; ERK, which we recommend, has less in small "
        "layers. The small dense networks have as many parameters as the sparse ones have "
        "nonzeros: narrower layers, or three of the five layers. Sparse networks are compared "
        "with the better of the two."
    )


def answer(summary: Sequence[dict[str, Any]]) -> str:
    """The result in one sentence, computed from the numbers: where sparse wins, ties and loses."""
    sparse = [row for row in summary if _is_sparse(row)]
    parts = []
    for kind in dict.fromkeys(row["kind"] for row in sparse):
        rows = [row for row in sparse if row["kind"] == kind]
        parts.append(f"with {kind} sparsity it {_verdicts(rows)}")
    n_seeds = summary[0]["n_seeds"]
    few = f" (only {n_seeds} seeds: a first answer)" if 1 < n_seeds < _ENOUGH_SEEDS else ""
    return (
        "Result: the large network pruned, against small dense ones of as many nonzeros: "
        f"{'; '.join(parts)}{few}."
    )


def _verdicts(rows: Sequence[dict[str, Any]]) -> str:
    words = {
        "better": "is better at",
        "tie": "ties at",
        "worse": "is worse at",
        "one seed": "has no verdict, with one seed, at",
    }
    at = {v: [percent(row["sparsity"]) for row in rows if verdict(row) == v] for v in words}
    return _listed([f"{text} {_listed(at[v])}" for v, text in words.items() if at[v]])


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def percent(fraction: float) -> str:
    """`0.9` as `90%`, `0.985` as `98.5%`."""
    return f"{100 * fraction:g}%"
