"""The tables of docs/paper.md, from the results files.

One table compares large-sparse with small-dense for every study: with the better of the networks
that are narrower and those that have half the layers (marked †). The other compares every finding
with its reference. Values that `summary.compare` does not call a tie are bold.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.paper import summary
from benchmarks.paper.summary import Row


class Part(NamedTuple):
    """One study: its name, the head of its column, the label of its panel, and its format."""

    name: str
    head: str
    axis: str
    lower_is_better: bool
    decimals: int


PARTS = (
    Part("lstm", "LSTM, bits per byte", "bits per byte", True, 2),
    Part("cnn-separable", "separable CNN, %", "accuracy, %", False, 1),
    Part("cnn-plain", "plain CNN, %", "accuracy, %", False, 1),
    Part("seq2seq-en-de", "en-de, BLEU", "BLEU", False, 1),
    Part("seq2seq-de-en", "de-en, BLEU", "BLEU", False, 1),
)

_IMAGE_NETWORKS = ("plain", "separable")


def load(folder: Path, backend: str = "cpu") -> dict[str, dict[str, Any]]:
    """Reads the results of all studies in a folder, by name; missing ones are omitted."""
    return _load(folder, backend, [*(part.name for part in PARTS), "findings"])


def load_paired(folder: Path, backend: str = "cpu") -> dict[str, dict[str, Any]]:
    """The same for the studies whose tables `paired` makes."""
    images = [f"fashion-{kind}{length}" for length in ("", "-long") for kind in _IMAGE_NETWORKS]
    return _load(folder, backend, [*images, "lstm-one-layer", "lstm-long"])


def _load(folder: Path, backend: str, names: list[str]) -> dict[str, dict[str, Any]]:
    results_by_name = {
        name: summary.read(folder / f"paper-{name}-{backend}.json") for name in names
    }
    return {name: results for name, results in results_by_name.items() if results is not None}


def _value(row: Row, decimals: int) -> str:
    return f"{row['mean']:.{decimals}f} ± {row['sd'] or 0:.{decimals}f}"


def _cell(part: Part, row: Row, small: Row) -> str:
    _, verdict = summary.compare(row, small, part.lower_is_better)
    sparse_value, small_value = (_value(r, part.decimals) for r in (row, small))
    if verdict == "better":
        sparse_value = f"**{sparse_value}**"
    elif verdict == "worse":
        small_value = f"**{small_value}**"
    return f"{sparse_value} / {small_value}{' †' if small['kind'] == 'shallow dense' else ''}"


def comparison(results_by_name: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of a Markdown table: sparse / small dense by sparsity, one column per study."""
    parts = [part for part in PARTS if part.name in results_by_name]
    yield f"| sparsity | {' | '.join(part.head for part in parts)} |"
    yield f"|---:|{'---|' * len(parts)}"
    dense = (
        next(r for r in results_by_name[part.name]["summary"] if r["kind"] == "dense")
        for part in parts
    )
    values = (_value(row, part.decimals) for part, row in zip(parts, dense, strict=True))
    yield f"| dense | {' | '.join(values)} |"
    columns = [
        {
            row["sparsity"]: _cell(part, row, small)
            for row, small in summary.pairs(rows, part.lower_is_better)
        }
        for part, rows in ((part, results_by_name[part.name]["summary"]) for part in parts)
    ]
    for sparsity in sorted({s for column in columns for s in column}):
        cells = " | ".join(column.get(sparsity, "") for column in columns)
        yield f"| {100 * sparsity:g} % | {cells} |"


def variants(
    results_by_name: dict[str, dict[str, Any]], reference: str = "gradual"
) -> Iterator[str]:
    """Lines of a Markdown table: every variant compared with the reference."""
    rows = results_by_name["findings"]["summary"]
    base = next(row for row in rows if row["name"] == reference)
    yield f"| method | bits per byte | against {reference} |"
    yield "|---|---:|---|"
    for row in rows:
        difference, verdict = summary.compare(row, base, lower_is_better=True)
        difference_cell = f"{difference:+.3f}, {verdict}" if row is not base else ""
        difference_cell = (
            difference_cell if verdict == "tie" or row is base else f"**{difference_cell}**"
        )
        yield f"| {row['name']} | {row['mean']:.3f} ± {row['sd']:.3f} | {difference_cell} |"
