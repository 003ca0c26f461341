"""The tables and the picture of docs/paper.md, from the results files alone.

Large-sparse beside small-dense for every study, and every finding against its reference; what is
not a tie by `summary.compare` is set in bold.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.paper import summary
from benchmarks.paper.summary import Row


class Part(NamedTuple):
    """One study: its file, the head of its column, the axis of its panel, and how to read it."""

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
_COLORS = {"sparse": "tab:blue", "small dense": "tab:orange"}


def load(folder: Path, backend: str = "cpu") -> dict[str, dict[str, Any]]:
    """Results by study, of those that are in the folder."""
    names = [*(part.name for part in PARTS), "findings"]
    found = {name: summary.read(folder / f"paper-{name}-{backend}.json") for name in names}
    return {name: results for name, results in found.items() if results is not None}


def _value(row: Row, decimals: int) -> str:
    return f"{row['mean']:.{decimals}f} ± {row['sd'] or 0:.{decimals}f}"


def _cell(part: Part, row: Row, small: Row) -> str:
    _, verdict = summary.compare(row, small, part.lower_is_better)
    ours, theirs = (_value(r, part.decimals) for r in (row, small))
    if verdict == "better":
        ours = f"**{ours}**"
    elif verdict == "worse":
        theirs = f"**{theirs}**"
    return f"{ours} / {theirs}"


def comparison(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: sparse / small dense at each sparsity, one column for each study."""
    parts = [part for part in PARTS if part.name in found]
    yield f"| sparsity | {' | '.join(part.head for part in parts)} |"
    yield f"|---:|{'---|' * len(parts)}"
    dense = (next(r for r in found[part.name]["summary"] if r["kind"] == "dense") for part in parts)
    values = (_value(row, part.decimals) for part, row in zip(parts, dense, strict=True))
    yield f"| dense | {' | '.join(values)} |"
    columns = [
        {row["sparsity"]: _cell(part, row, small) for row, small in summary.pairs(rows)}
        for part, rows in ((part, found[part.name]["summary"]) for part in parts)
    ]
    for sparsity in sorted({s for column in columns for s in column}):
        cells = " | ".join(column.get(sparsity, "") for column in columns)
        yield f"| {100 * sparsity:g} % | {cells} |"


def variants(found: dict[str, dict[str, Any]], reference: str = "gradual") -> Iterator[str]:
    """Lines of Markdown: every way to prune, against the reference."""
    rows = found["findings"]["summary"]
    base = next(row for row in rows if row["name"] == reference)
    yield f"| method | bits per byte | against {reference} |"
    yield "|---|---:|---|"
    for row in rows:
        difference, verdict = summary.compare(row, base, lower_is_better=True)
        against = f"{difference:+.3f}, {verdict}" if row is not base else ""
        against = against if verdict == "tie" or row is base else f"**{against}**"
        yield f"| {row['name']} | {row['mean']:.3f} ± {row['sd']:.3f} | {against} |"


def draw(found: dict[str, dict[str, Any]], path: Path) -> Path:
    """A panel of quality against nonzeros for each study. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    parts = [part for part in PARTS if part.name in found]
    figure = Figure((3.1 * len(parts), 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, part in zip(all_axes, parts, strict=True):
        _panel(axes, part, found[part.name]["summary"])
    all_axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    return path


def _panel(axes: Any, part: Part, rows: list[Row]) -> None:
    dense = [row for row in rows if row["kind"] == "dense"]
    for kind, color in _COLORS.items():
        line = sorted(
            dense + [row for row in rows if row["kind"] == kind], key=lambda row: row["n_nonzero"]
        )
        x, y = [row["n_nonzero"] for row in line], [row["mean"] for row in line]
        label = "large, sparse" if kind == "sparse" else "small, dense"
        error = [row["sd"] or 0 for row in line]
        axes.errorbar(x, y, error, marker="o", ms=3, capsize=2, lw=1.2, color=color, label=label)
    axes.set(xscale="log", xlabel="nonzero parameters", ylabel=part.axis)
    axes.xaxis.set_minor_formatter("")  # the labels of a narrow range run into each other
    axes.set_title(part.head.split(",")[0], fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.6)
