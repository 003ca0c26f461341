"""A table of leaves: `print` shows it as plain text, and rich as one of its tables.

It knows how many weights of each leaf are zero, and nothing else about pruning.
"""

import dataclasses
from typing import Any

from jaxprune._base.paths import shown_path, spec_of


@dataclasses.dataclass(frozen=True)
class LeafReport:
    """One leaf of a report.

    Attributes:
      path: its keys, joined by `/`.
      shape: its shape.
      dtype: the name of its dtype.
      size: number of weights.
      n_zero: how many of them are, or will be, zero.
      note: why the leaf is not pruned, or what decides its sparsity.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    n_zero: int
    note: str = ""

    @property
    def sparsity(self) -> float:
        """Fraction of zeros; 0 for an empty leaf."""
        return self.n_zero / max(self.size, 1)


@dataclasses.dataclass(frozen=True)
class Report:
    """A table of leaves; `print` shows it as text.

    Attributes:
      title: the first line.
      leaves: one row per leaf, in the order of the tree.
      notes: lines below the table, such as rules that match nothing.
    """

    title: str
    leaves: tuple[LeafReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights in all leaves."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def n_zero(self) -> int:
        """Number of zeros in all leaves."""
        return sum(leaf.n_zero for leaf in self.leaves)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all leaves, including leaves that are not pruned."""
        return self.n_zero / max(self.size, 1)

    def _rows(self) -> list[tuple[str, ...]]:
        total = LeafReport("total", (), "", self.size, self.n_zero)
        rows = []
        for leaf in (*self.leaves, total):
            shape = "x".join(map(str, leaf.shape)) if leaf is not total else ""
            n_left = leaf.size - leaf.n_zero
            part = f"{min(leaf.sparsity, 0.9999 if n_left else 1):.2%}"  # 100% means all of them
            counts = (f"{leaf.size:,}", f"{n_left:,}", part)
            rows.append((shown_path(leaf.path), shape, leaf.dtype, *counts, leaf.note))
        return rows

    def __str__(self) -> str:
        table = [_HEADER, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for row in table:
            cells = [
                cell.rjust(width) if name in _NUMBERS else cell.ljust(width)
                for cell, width, name in zip(row, widths, _HEADER, strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([self.title, *lines, *self.notes])

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.title)
        for name in _HEADER:
            side = "right" if name in _NUMBERS else "left"
            table.add_column(name, justify=side, overflow="fold")
        rows = self._rows()
        for row in rows[:-1]:
            table.add_row(*map(Text, row))
        table.add_section()
        table.add_row(*map(Text, rows[-1]))
        return Group(table, *map(Text, self.notes))


_HEADER = ("leaf", "shape", "dtype", "weights", "nonzero", "sparsity", "note")
_NUMBERS = ("weights", "nonzero", "sparsity")


def leaf_report(path: str, leaf: Any, n_zero: int, note: str) -> LeafReport:
    """The row of a leaf, which need not be an array.

    Example:
      >>> leaf_report("lr", 0.1, 0, "not an array").dtype
      'float'
    """
    spec = spec_of(leaf)
    if spec is None:
        return LeafReport(path, (), type(leaf).__name__, 1, n_zero, note)
    return LeafReport(path, spec.shape, spec.dtype.name, spec.size, n_zero, note)
