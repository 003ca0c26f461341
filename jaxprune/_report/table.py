"""A table of leaves, as text, as HTML, as a dictionary, and as one of the tables of rich.

It knows how many weights of each leaf are zero, and nothing else about pruning.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from jaxprune._base.paths import shown_path, spec_of
from jaxprune._base.text_table import Table


@dataclasses.dataclass(frozen=True)
class LeafReport:
    """One leaf of a report.

    Attributes:
      path: its keys, joined by `/`.
      shape: its shape.
      dtype: the name of its dtype.
      size: number of weights; with `structural`, of those that exist.
      n_zero: how many of them are, or will be, zero; None where that is not known in advance,
        because the leaf shares a pool with others.
      note: why the leaf is not pruned, or what decides its sparsity.
      roles: the role of each axis, for a leaf that is pruned by them; else None.
      is_exact: whether `n_zero` is exact. In a plan it is an average where units of the leaf differ
        in size, such as blocks at its edges, and is printed as `~100`.

    Example:
      >>> LeafReport("fc/kernel", (80, 40), "float32", size=3_200, n_zero=2_880).sparsity
      0.9
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    n_zero: int | None
    note: str = ""
    roles: tuple[str, ...] | None = None
    is_exact: bool = True

    @property
    def sparsity(self) -> float | None:
        """Fraction of zeros, 0 for an empty leaf; None where it is not known."""
        return None if self.n_zero is None else self.n_zero / max(self.size, 1)

    def to_dict(self) -> dict[str, Any]:
        """The leaf as a dictionary for JSON, as in `Report.to_dict`.

        Example:
          >>> LeafReport("b", (4,), "float32", size=4, n_zero=3).to_dict()["nonzero"]
          1
        """
        return {
            "path": self.path,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "weights": self.size,
            "nonzero": None if self.n_zero is None else self.size - self.n_zero,
            "sparsity": self.sparsity,
            "exact": self.n_zero is not None and self.is_exact,
            "note": self.note,
            "roles": None if self.roles is None else list(self.roles),
        }


@dataclasses.dataclass(frozen=True)
class PoolReport:
    """Leaves that share a pool, so that only their total is known in advance.

    Attributes:
      paths: of the leaves.
      size: number of weights in all of them.
      n_zero: how many of them will be zero.
      is_exact: whether `n_zero` is exact. If units differ in size, it is the number for leaves that
        all lose the same part of their units.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
      >>> jaxprune.plan(params, 0.75, distribution=jaxprune.global_pool).pools
      (PoolReport(paths=('a', 'b'), size=32, n_zero=24, is_exact=True),)
    """

    paths: tuple[str, ...]
    size: int
    n_zero: int
    is_exact: bool = True


@dataclasses.dataclass(frozen=True)
class Report:
    """A table of leaves, as `plan` and `summarize` return it.

    `print` shows it as text of at most 80 columns, folding long paths and notes. A notebook shows
    it as a table.

    Attributes:
      title: the first line.
      leaves: one row per leaf, in the order of the tree.
      notes: lines below the table, such as rules that have no effect.
      pools: the leaves whose `n_zero` is None, by the pool that they share. In the plan of several
        transformations such a leaf may be in no pool, so that no zero counts twice.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> report = jaxprune.plan({"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}, 0.75)
      >>> {leaf.path: leaf.sparsity for leaf in report.leaves}, report.n_zero
      ({'bias': 0.0, 'kernel': 0.75}, 24)
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
    def is_exact(self) -> bool:
        """Whether `n_zero` is exact; it is printed as `~100` where it is not."""
        rows = (*(leaf for leaf in self.leaves if leaf.n_zero is not None), *self.pools)
        return all(row.is_exact for row in rows)

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
        total = LeafReport("total", (), "", self.size, self.n_zero, is_exact=self.is_exact)
        has_roles = "roles" in self._header
        rows = []
        for leaf in (*self.leaves, total):
            shape = "x".join(map(str, leaf.shape)) if leaf is not total else ""
            roles = (", ".join(leaf.roles or ()),) if has_roles else ()
            counts = (f"{leaf.size:,}", *_counts(leaf))
            rows.append((shown_path(leaf.path), shape, *roles, leaf.dtype, *counts, leaf.note))
        return rows

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        return Table(self._header, self._rows(), self.title, self.notes, _NUMBERS)

    def to_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON.

        `pandas.DataFrame(report.to_dict()["leaves"])` is the table, without its last row.

        Returns:
          `title`, `weights`, `nonzero`, `sparsity` and `exact` of all leaves, `leaves`, `pools` and
          `notes`. A leaf has `path`, `shape`, `dtype`, `weights`, `nonzero`, `sparsity`, `exact`,
          `note` and `roles`, with None for what is not known; a pool has `paths`, `weights`,
          `nonzero` and `exact`.

        Example:
          >>> import jax.numpy as jnp, jaxprune
          >>> report = jaxprune.summarize({"kernel": jnp.eye(4)})
          >>> report.to_dict()["leaves"][0]["nonzero"]
          4
        """
        total: dict[str, Any] = {"weights": self.size, "nonzero": self.size - self.n_zero}
        pools = [
            {
                "paths": list(pool.paths),
                "weights": pool.size,
                "nonzero": pool.size - pool.n_zero,
                "exact": pool.is_exact,
            }
            for pool in self.pools
        ]
        leaves = [leaf.to_dict() for leaf in self.leaves]
        content = {"leaves": leaves, "pools": pools, "notes": list(self.notes)}
        total |= {"sparsity": self.sparsity, "exact": self.is_exact}
        return {"title": self.title, **total, **content}

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title)
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
    about = "" if leaf.is_exact else "~"
    return f"{about}{n_left:,}", f"{about}{part:.2%}"


_HEADER = ("leaf", "shape", "roles", "dtype", "weights", "nonzero", "sparsity", "note")
_NUMBERS = ("weights", "nonzero", "sparsity")


def leaf_report(
    path: str,
    leaf: Any,
    n_zero: int | None,
    note: str,
    roles: tuple[str, ...] | None = None,
    n_absent: int = 0,
    is_exact: bool = True,
) -> LeafReport:
    """The row of a leaf, which need not be an array; `n_absent` of its weights do not exist.

    A number counts as a weight; anything else that is not an array, such as a function, does not.

    Example:
      >>> row = leaf_report("lr", 0.1, 0, "not an array")
      >>> row.dtype, row.size, leaf_report("activation", abs, 0, "not an array").size
      ('float', 1, 0)
    """
    spec = spec_of(leaf)
    if spec is None:
        size = int(isinstance(leaf, numbers.Number))
        return LeafReport(path, (), type(leaf).__name__, size, n_zero, note)
    size = spec.size - n_absent
    return LeafReport(path, spec.shape, spec.dtype.name, size, n_zero, note, roles, is_exact)


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# these classes belong to `jaxprune`.
LeafReport.__module__ = PoolReport.__module__ = Report.__module__ = "jaxprune"
__test__ = {"LeafReport": LeafReport, "PoolReport": PoolReport, "Report": Report}
