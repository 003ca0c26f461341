"""`Sensitivity`, the table that `sensitivity` computes and `sparsities_for` reads."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxprune._base.same_values import same_values
from jaxprune._base.text_table import Table


@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivity:
    """The loss with each group of leaves pruned alone; `print` shows it as a table.

    Attributes:
      rules: a regex for each group; for a single leaf, one that matches its path alone.
      sparsities: the sparsities that were tried, rising.
      losses: float64[n_groups, n_sparsities].
      dense_loss: the loss with nothing pruned.
      sizes: int64[n_groups], the number of weights in each group.
      n_zero: int64[n_groups, n_sparsities], how many of them were zero.
      grouped: whether the groups are those of the argument `groups`, instead of single leaves.
      fixed: whether a structure prescribes the sparsity of its leaves, as `NM` does.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> loss = lambda params: jnp.sum(params["w"])
      >>> table = jaxprune.sensitivity(loss, {"w": jnp.ones((2, 2))}, (0.25, 0.5))
      >>> table.losses.tolist(), table.dense_loss, table.n_zero.tolist()
      ([[3.0, 2.0]], 4.0, [[1, 2]])
    """

    rules: tuple[str, ...]
    sparsities: tuple[float, ...]
    losses: np.ndarray
    dense_loss: float
    sizes: np.ndarray
    n_zero: np.ndarray
    grouped: bool = False
    fixed: bool = False

    def __eq__(self, other: object) -> bool:
        """Whether another table has the same values; a loss that is NaN is equal to another."""
        if not isinstance(other, Sensitivity):
            return NotImplemented
        pairs = zip(vars(self).items(), vars(other).values(), strict=True)
        return all(same_values(x, y) if name in _NUMBERS else x == y for (name, x), y in pairs)

    def __hash__(self) -> int:
        return hash((self.rules, self.sparsities, self.grouped, self.fixed))

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        row = "group" if self.grouped else "leaf"
        header = [row, "weights", *(f"{sparsity:.1%}" for sparsity in self.sparsities)]
        rows = [
            [rule, f"{size:,}", *(f"{loss:.4g}" for loss in losses)]
            for rule, size, losses in zip(self.rules, self.sizes, self.losses, strict=True)
        ]
        title = f"sensitivity: loss with one {row} pruned; {self.dense_loss:.4g} with none"
        return Table(header, rows, title, numbers=header[1:], n_fixed=2)

    def to_dict(self) -> dict[str, Any]:
        """The table as a dictionary for JSON.

        `pandas.DataFrame(table.to_dict()["rows"])` has one row for each leaf and sparsity.

        Returns:
          `dense_loss` and `rows`, each with `rule`, `weights`, `sparsity`, `n_zero` and `loss`. A
          loss that is not finite is None, because JSON has no other number for it.

        Example:
          >>> import jax.numpy as jnp, jaxprune
          >>> loss = lambda params: jnp.sum(params["w"])
          >>> table = jaxprune.sensitivity(loss, {"w": jnp.ones((2, 2))}, (0.25, 0.5))
          >>> table.to_dict()["rows"][1]
          {'rule': 'w', 'weights': 4, 'sparsity': 0.5, 'n_zero': 2, 'loss': 2.0}
        """
        rows = [
            {"rule": rule, "weights": int(self.sizes[i]), "sparsity": float(sparsity)}
            | {"n_zero": int(self.n_zero[i, k]), "loss": _finite(self.losses[i, k])}
            for i, rule in enumerate(self.rules)
            for k, sparsity in enumerate(self.sparsities)
        ]
        return {"dense_loss": _finite(self.dense_loss), "rows": rows}


_NUMBERS = ("losses", "dense_loss", "sizes", "n_zero")


def _finite(loss: Any) -> float | None:
    """A loss for JSON."""
    return float(loss) if math.isfinite(loss) else None


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
Sensitivity.__module__ = "jaxprune"
__test__ = {"Sensitivity": Sensitivity}
