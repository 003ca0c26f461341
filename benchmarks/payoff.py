"""`python -m benchmarks.payoff` writes the tables of docs/payoff.md from `benchmarks/results`.

In the page each table lies between `<!-- NAME -->` and `<!-- end -->`. If its results are missing,
the page names the command that measures them instead. A test checks that the page is up to date.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.paper import summary, tradeoff

PAGE = Path(__file__).parents[1] / "docs" / "payoff.md"
RESULTS = Path(__file__).parent / "results"
_SPARSITIES = (0.8, 0.9, 0.95)
_PACKED = ("packed 1x8", "packed 1x16", "packed 1x32")
_FASTER = (*_PACKED, "scipy CSR", "torch CSR", "narrower dense", "one dense layer")
_DENSE = ("jax x @ w", "jax w @ x", "onnxruntime", "torch", "numpy")

Lines = list[str]


def read(name: str) -> dict[str, Any] | None:
    """The results of a benchmark; None if there is no file."""
    path = RESULTS / f"{name}-cpu.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: str, rows: list[list[str]]) -> Lines:
    """Lines of a Markdown table; columns of numbers are aligned right."""
    words = {"structure", "network", "method", "best dense, ms"}
    rule = (
        "---" if i == 0 or name in words else "---:" for i, name in enumerate(head.split(" | "))
    )
    return [f"| {head} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]


# Quality beside speed and size


def language(study: str = "quality-lstm") -> Lines | None:
    """Quality, file size and speed of the language model with each structure."""
    results, latency, tasks = read(f"paper-{study}"), read("inference"), tradeoff.NETWORKS[study]
    if results is None:
        return None
    rows = []
    for row in _in_order(results):
        cells = [*_first_cells(row), summary.shown(row), _kilobytes(results, row)]
        for task in tasks:
            cells.append(_speed(latency, task, row))
        rows.append(cells)
    head = "sparsity | structure | nonzeros | bits per byte | file, kB | "
    return table(head + " | ".join(task.removeprefix("LSTM ") for task in tasks), rows)


def wide() -> Lines | None:
    """Quality, file size and speed of the wider language model with each structure."""
    return language("quality-wide")


def images() -> Lines | None:
    """Accuracy and file size of the convolutional network with each structure."""
    results = read("paper-quality-cnn")
    if results is None:
        return None
    rows = [
        [*_first_cells(row), summary.shown(row), _kilobytes(results, row)]
        for row in _in_order(results)
    ]
    lines = table("sparsity | structure | nonzeros | accuracy, % | file, kB", rows)
    if not results["finished"]:
        n = len(results["networks"]) * results["config"]["seeds"] - len(results["runs"])
        lines += ["", f"{n} runs are missing: add `--resume` to the command."]
    return lines


def _in_order(results: dict[str, Any]) -> list[dict[str, Any]]:
    order = ["dense", *tradeoff.KINDS]
    return sorted(results["summary"], key=lambda r: (r["sparsity"], order.index(r["kind"])))


def _first_cells(row: dict[str, Any]) -> list[str]:
    kind = tradeoff.LABELS.get(row["kind"], row["kind"])
    return [f"{100 * row['sparsity']:g} %", kind, f"{row['n_nonzero']:,}"]


def _kilobytes(results: dict[str, Any], row: dict[str, Any]) -> str:
    return f"{tradeoff.bytes_of(results, row) / 1e3:.1f}"


def _speed(latency: dict[str, Any] | None, task: str, row: dict[str, Any]) -> str:
    if latency is None:
        return ""
    speedups = [
        tradeoff.speedup(latency, task, row["kind"], row["sparsity"], state)
        for state in ("warm", "cold")
    ]
    return "" if None in speedups else " / ".join(f"{x:.1f}" for x in speedups)


# Speed


def one_core() -> Lines | None:
    """Inference at batch 1 on one core, at every sparsity."""
    return _inference("inference", lambda r: r["batch"] == 1 and r["cores"] == 1)


def other_batches() -> Lines | None:
    """Inference at the other batch sizes, and on all cores, at 90%."""
    return _inference(
        "inference", lambda r: (r["batch"], r["cores"]) != (1, 1) and r["sparsity"] == 0.9
    )


def other_processor() -> Lines | None:
    """Inference at batch 1 on one core of another processor, at 90%."""
    return _inference(
        "inference-intel", lambda r: (r["batch"], r["cores"], r["sparsity"]) == (1, 1, 0.9)
    )


def _inference(name: str, is_shown: Callable[[dict[str, Any]], bool]) -> Lines | None:
    results = read(name)
    if results is None:
        return None
    cases: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in filter(is_shown, results["rows"]):
        case = r["task"], r["cores"], r["batch"], r["sparsity"]
        cases.setdefault(case, {})[r["method"]] = r
    rows = []
    columns = [m for m in _FASTER if any(m in methods for methods in cases.values())]
    for (task, count, batch, sparsity), methods in cases.items():
        dense = [methods[m] for m in _DENSE if m in methods]
        best = min(dense, key=lambda r: r["median_ms"])
        cells = [task, str(count), str(batch), f"{100 * sparsity:g} %"]
        cells.append(f"{best['method']} {best['median_ms']:.3f}")
        for m in columns:
            r = methods.get(m)
            cells.append(f"{r['x_warm']:.1f} / {r['x_cold']:.1f}" if r else "")
        rows.append(cells)
    return table(
        "network | cores | batch | sparsity | best dense, ms | " + " | ".join(columns), rows
    )


def losses() -> Lines | None:
    """Inference with BCOO and with bfloat16, which are slower than dense."""
    results = read("inference")
    rows = [
        [r["method"], r["task"], str(r["cores"]), str(r["batch"]), f"{r['x_warm']:.2f}"]
        for r in (results or {"rows": []})["rows"]
        if r["method"] in ("jax BCOO", "jax bfloat16") and r["sparsity"] == 0.9
    ]
    head = "method | network | cores | batch | times the speed of dense"
    return table(head, rows) if rows else None


def files() -> Lines | None:
    """File sizes of ten million weights in each format."""
    results = read("files")
    if results is None:
        return None
    rows = [r for r in results["rows"] if "smaller" in r and r["dtype"] == "float32"]
    smaller = {(r["method"], r["sparsity"]): f"{r['smaller']:.1f}" for r in rows}
    names = ("jaxprune.save", "np.savez_compressed", "bitmask", "delta uint8", "CSR int32", "bound")
    return table(
        "times smaller than dense | 80 % | 90 % | 95 %",
        [[name, *(smaller[name, s] for s in _SPARSITIES)] for name in names],
    )


def litert() -> Lines | None:
    """Times and file sizes of the LiteRT recipe."""
    results = read("litert")
    if results is None:
        return None
    rows = [
        [f"{100 * r['sparsity']:g} %", r["method"], f"{r['median_ms']:.2f}"]
        + [f"{r['x_dense']:.1f}", f"{r['bytes'] / 1e6:.1f}"]
        for r in results["rows"]
    ]
    return table("sparsity | structure | ms | times faster | file, MB", rows)


def shrunk() -> Lines | None:
    """Size and speed before and after `shrink` removes half of the channels."""
    results = read("shrink")
    if results is None:
        return None
    timed = [r for r in results["rows"] if r["case"] == "shrink"]
    rows = {(r["task"], r["batch"], r["cores"], r["method"]): r for r in timed}
    cores = sorted({key[2] for key in rows})
    columns = [(batch, n) for batch in (1, 8) for n in cores]
    lines = []
    for task in dict.fromkeys(key[0] for key in rows):
        before, after = (rows[task, 1, 1, method]["numbers"] for method in ("dense", "50% cut"))
        speedups = [f"{rows[task, *column, '50% cut']['x_dense']:.1f}" for column in columns]
        lines.append([task, f"{before:,}", f"{after:,}", *speedups])
    heads = [f"batch {batch}, {n} core{'s' if n > 1 else ''}" for batch, n in columns]
    return table(" | ".join(["network", "numbers", "shrunk", *heads]), lines)


_TABLES: dict[str, tuple[Callable[[], Lines | None], str]] = {
    "language": (language, "python -m benchmarks.paper quality --only lstm"),
    "wide": (wide, "python -m benchmarks.paper quality --only wide"),
    "images": (images, "python -m benchmarks.paper quality --only cnn"),
    "one_core": (one_core, "python -m benchmarks inference"),
    "other_batches": (other_batches, "python -m benchmarks inference"),
    "other_processor": (other_processor, "python -m benchmarks inference"),
    "losses": (losses, "python -m benchmarks inference"),
    "shrunk": (shrunk, "python -m benchmarks shrink"),
    "files": (files, "python -m benchmarks files"),
    "litert": (litert, "python -m benchmarks litert"),
}


def page(text: str) -> str:
    """Returns the text of the page with every table rewritten from the results."""
    for name, (make, command) in _TABLES.items():
        lines = make() or [f"Not measured yet: `{command}`."]
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        body = "\n".join(["", *lines, "", ""])
        text, n = re.subn(pattern, lambda m: m[1] + body + m[2], text, flags=re.DOTALL)  # noqa: B023
        if n != 1:
            raise ValueError(f"docs/payoff.md has {n} places for the table {name}; it needs one.")
    return text


def main() -> None:
    """Rewrites docs/payoff.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.payoff", description=main.__doc__)
    parser.parse_args()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
