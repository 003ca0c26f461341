"""Quality against the size of the file, and against measured speed.

`python -m benchmarks inference` measures speed as a ratio to the fastest dense method. The network
with 320 units is measured itself. The network with 80 units is too small for a meaningful latency,
so its quality is plotted against the speed of wider networks at the same sparsity; whether those
would lose as much quality is not known.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_PRUNED = ("unstructured", "blocks 1x8", "blocks 1x16", "blocks 1x32", "N:M", "units")
KINDS = (*_PRUNED, "small dense", "shallow dense")
LABELS = {kind: kind for kind in KINDS} | {"shallow dense": "small dense, one layer"}
# The method that runs each kind. N:M has none: nothing on a CPU runs it faster than dense.
METHODS = {
    "unstructured": "scipy CSR",
    **{f"blocks 1x{width}": f"packed 1x{width}" for width in (8, 16, 32)},
    "units": "narrower dense",
    "small dense": "narrower dense",
    "shallow dense": "one dense layer",
}
NETWORKS = {
    "quality-lstm": ("LSTM 2 x 650", "LSTM 2 x 1500"),
    "quality-wide": ("LSTM 2 x 320",),
}
XOf = Callable[[dict[str, Any]], float | None]


def bytes_of(results: dict[str, Any], row: dict[str, Any]) -> float:
    """Mean size of the files of a network, over its runs."""
    return statistics.fmean(
        run["file_bytes"] for run in results["runs"] if run["network"] == row["name"]
    )


def speedup(
    latency: dict[str, Any], task: str, kind: str, sparsity: float, state: str
) -> float | None:
    """Speed relative to the fastest dense method, at batch 1 on one core; None if not measured.

    It is 1 for dense networks, and for N:M, which runs as a dense network.
    """
    if kind not in METHODS:
        return 1.0
    case = (task, METHODS[kind], sparsity, 1, 1)
    for row in latency["rows"]:
        row_case = tuple(row[name] for name in ("task", "method", "sparsity", "batch", "cores"))
        if row_case == case:
            return row[f"x_{state}"]
    return None


def panels(results: dict[str, Any], latency: Path) -> Iterator[tuple[str, str, XOf]]:
    """The panels of the picture: a title, the label of the x axis, and x of a row.

    One shows the size of the file, and one the speed of each network in `NETWORKS`, if measured.
    """
    yield "Size of the file", "kB", lambda row: bytes_of(results, row) / 1e3
    if not latency.exists():
        return
    times = json.loads(latency.read_text())
    for task in NETWORKS.get(results["study"], ()):

        def speed_of(row: dict[str, Any], task: str = task) -> float | None:
            return speedup(times, task, row["kind"], row["sparsity"], "cold")

        label = "times as fast as dense (batch 1, one core, cold cache)"
        yield f"Speed of an {task}", label, speed_of
