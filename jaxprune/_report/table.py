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
      n_zero: how many of them are, or will be, zero; None where that is not known in advance,
        because the leaf shares a pool with others.
      note: why the leaf is not pruned, or what decides its sparsity.
      roles: the role of each axis, for a leaf that is pruned by them; else None.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    n_zero: int | None
    note: str = ""
    roles: tuple[str, ...] | None = None

    @property
    def sparsity(self) -> float | None:
        """Fraction of zeros, 0 for an empty leaf; None where it is not known."""
        return None if self.n_zero is None else self.n_zero / max(self.size, 1)


@dataclasses.dataclass(frozen=True)
class PoolReport:
    """Leaves that share a pool, so that only their total is known in advance.

    Attributes:
      paths: of the leaves.
      size: number of weights in all of them.
      n_zero: how many of them will be zero.
    """

    paths: tuple[str, ...]
    size: int
    n_zero: int


@dataclasses.dataclass(frozen=True)
class Report:
    """A table of leaves; `print` shows it as text.

    Attributes:
      title: the first line.
      leaves: one row per leaf, in the order of the tree.
      notes: lines below the table, such as rules that have no effect.
      pools: the leaves whose `n_zero` is None, by the pool that they share.
    """

    title: str
    leaves: tuple[LeafReport, ...]
    notes: tuple[str, ...] = ()
    pools: tuple[PoolReport, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights in all leaves."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def n_zero(self) -> int:
        """Number of zeros in all leaves."""
        known = sum(leaf.n_zero for leaf in self.leaves if leaf.n_zero is not None)
        return known + sum(pool.n_zero for pool in self.pools)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all leaves, including leaves that are not pruned."""
        return self.n_zero / max(self.size, 1)

    @property
    def _header(self) -> tuple[str, ...]:
        """The names of the columns; that of roles only where a leaf has some."""
        has_roles = any(leaf.roles is not None for leaf in self.leaves)
        return tuple(name for name in _HEADER if has_roles or name != "roles")

    def _rows(self) -> list[tuple[str, ...]]:
        total = LeafReport("total", (), "", self.size, self.n_zero)
        has_roles = "roles" in self._header
        rows = []
        for leaf in (*self.leaves, total):
            shape = "x".join(map(str, leaf.shape)) if leaf is not total else ""
            roles = (", ".join(leaf.roles or ()),) if has_roles else ()
            counts = (f"{leaf.size:,}", *_counts(leaf))
            rows.append((shown_path(leaf.path), shape, *roles, leaf.dtype, *counts, leaf.note))
        return rows

    def __str__(self) -> str:
        header = self._header
        table = [header, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for row in table:
            cells = [
                cell.rjust(width) if name in _NUMBERS else cell.ljust(width)
                for cell, width, name in zip(row, widths, header, strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([self.title, *lines, *self.notes])

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.title)
        for name in self._header:
            side = "right" if name in _NUMBERS else "left"
            table.add_column(name, justify=side, overflow="fold")
        rows = self._rows()
        for row in rows[:-1]:
            table.add_row(*map(Text, row))
        table.add_section()
        table.add_row(*map(Text, rows[-1]))
        return Group(table, *map(Text, self.notes))


def _counts(leaf: LeafReport) -> tuple[str, str]:
    """The cells of the nonzero weights and of the sparsity."""
    if leaf.n_zero is None or leaf.sparsity is None:
        return "?", "?"
    n_left = leaf.size - leaf.n_zero
    part = min(leaf.sparsity, 0.9999 if n_left else 1)  # 100% means all of them
    return f"{n_left:,}", f"{part:.2%}"


_HEADER = ("leaf", "shape", "roles", "dtype", "weights", "nonzero", "sparsity", "note")
_NUMBERS = ("weights", "nonzero", "sparsity")


def leaf_report(
    path: str,
    leaf: Any,
    n_zero: int | None,
    note: str,
    roles: tuple[str, ...] | None = None,
) -> LeafReport:
    """The row of a leaf, which need not be an array.

    Example:
      >>> leaf_report("lr", 0.1, 0, "not an array").dtype
      'float'
    """
    spec = spec_of(leaf)
    if spec is None:
        return LeafReport(path, (), type(leaf).__name__, 1, n_zero, note)
    return LeafReport(path, spec.shape, spec.dtype.name, spec.size, n_zero, note, roles)
