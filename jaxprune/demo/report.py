"""Mean and spread of the accuracy over the runs of each network, and the table.

Two networks tie if their mean accuracies differ by at most two standard errors of the difference.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


def summarize(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per network: its sizes, and the accuracy after the last step over its seeds.

    The sample standard deviation is None if there is only one run.
    """
    rows = []
    for network in results["networks"]:
        runs = [r for r in results["runs"] if r["network"] == network["name"]]
        accuracies = [r["accuracy"] for r in runs]
        rows.append(
            {
                **network,
                "n_seeds": len(runs),
                "accuracy_mean": statistics.fmean(accuracies),
                "accuracy_sd": statistics.stdev(accuracies) if len(runs) > 1 else None,
            }
        )
    return rows


def compare(row: dict[str, Any], baseline: dict[str, Any]) -> tuple[float, str]:
    """The difference of the mean accuracies, and a verdict on the row.

    The verdict is "better", "worse" or "tie"; or "one seed", which is not enough for a verdict.
    """
    difference = row["accuracy_mean"] - baseline["accuracy_mean"]
    if row["accuracy_sd"] is None or baseline["accuracy_sd"] is None:
        return difference, "one seed"
    variances = (r["accuracy_sd"] ** 2 / r["n_seeds"] for r in (row, baseline))
    if abs(difference) <= 2 * math.sqrt(sum(variances)):
        return difference, "tie"
    return difference, "better" if difference > 0 else "worse"


def partners(summary: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each sparse row with the small dense row of the same sparsity."""
    small = {row["sparsity"]: row for row in summary if row["kind"] == "small dense"}
    return [(row, small[row["sparsity"]]) for row in summary if row["kind"] == "sparse"]


def table(results: dict[str, Any]) -> Group:
    """The results as a table of at most 80 columns, with a caption and the answer in words."""
    summary = results["summary"]
    dense = summary[0]
    small_of = {row["name"]: small for row, small in partners(summary)}
    out = Table(title="Test accuracy against nonzero parameters", title_justify="left")
    out.add_column("network")
    out.add_column("channels")
    for name in ("nonzero", "accuracy %", "- dense", "- small"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in summary:
        if row["kind"] == "sparse":
            out.add_section()
        sd = "" if row["accuracy_sd"] is None else f" ± {100 * row['accuracy_sd']:.2f}"
        small = small_of.get(row["name"])
        out.add_row(
            f"sparse {percent(row['sparsity'])}" if row["kind"] == "sparse" else row["kind"],
            "-".join(map(str, row["widths"])),
            f"{row['n_nonzero']:,}",
            f"{100 * row['accuracy_mean']:.2f}{sd}",
            "" if row is dense else _verdict(row, dense),
            "" if small is None else _verdict(row, small),
        )
    return Group(out, Text(caption(results)), Text(answer(summary)))


def caption(results: dict[str, Any]) -> str:
    """What was the same for all networks, what the numbers are, and what counts as a tie."""
    config = results["config"]
    n = config["n_seeds"]
    mean = f"mean ± standard deviation over {n} seeds" if n > 1 else "one seed"
    return (
        f"Accuracy after the last step on {results['n_test']:,} test images, {mean}. All networks "
        f"have the same {config['n_train']} training images, batches, optimizer (AdamW) and "
        f"{config['steps']:,} steps. Sparse: the dense network of "
        f"{results['summary'][0]['n_params']:,} parameters with every kernel pruned to this "
        "sparsity. Small dense: a narrower network with as many parameters as the sparse network "
        "above it has nonzeros, biases included. =: a tie, within two standard errors."
    )


def answer(summary: Sequence[dict[str, Any]]) -> str:
    """One sentence: at which sparsities the sparse network is better, ties, or is worse."""
    verdicts: dict[str, list[str]] = {}
    for row, small in partners(summary):
        verdicts.setdefault(compare(row, small)[1], []).append(f"{percent(row['sparsity'])}")
    words = {
        "better": "better at",
        "tie": "a tie at",
        "worse": "worse at",
        "one seed": "without a verdict (one seed) at",
    }
    parts = [f"{text} {', '.join(verdicts[v])}" for v, text in words.items() if v in verdicts]
    return f"Sparse against small dense of the same size: {'; '.join(parts)}."


def percent(fraction: float) -> str:
    """`0.9` as `90%`, `0.985` as `98.5%`."""
    return f"{100 * fraction:g}%"


def _verdict(row: dict[str, Any], baseline: dict[str, Any]) -> str:
    difference, verdict = compare(row, baseline)
    return f"{'= ' if verdict == 'tie' else ''}{100 * difference:+.2f}"
