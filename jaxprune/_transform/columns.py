"""The best units of each column of an array: groups that lie side by side along its last axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.counting import counting, is_wide

# With this many steps, only a small part is stored twice while it is transposed.
_STEPS = 8


def picked_in_columns(
    pick: Callable[..., tuple[jax.Array, jax.Array]], units: Any, allowed: Any, n_keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best units of each column along the last axis, and the thresholds of the columns."""
    axes = (-1, None if allowed is None else -1, None)
    return jax.vmap(pick, axes, (-1, 0))(units, allowed, n_keep)


def in_rows(units_of: Callable[[], Any], n_keep: jax.Array) -> Any:
    """What `units_of` returns; XLA for GPUs lays out everything that it reads in rows.

    A search through columns is fastest if these are transposed. XLA would transpose the params,
    too, and on every step. It chooses the layouts of a branch without regard to the rest of the
    program, so it transposes only what this branch returns.

    Args:
      units_of: computes the units and which of them may be kept, from arrays that it refers to.
      n_keep: how many units are kept. The branch is taken if no number is negative, which XLA can't
        know beforehand.
    """
    zeros = lambda: jax.tree.map(jnp.zeros_like, units_of())
    with counting(is_wide(n_keep)):
        is_taken = jnp.all(n_keep >= 0)
    return lax.cond(is_taken, units_of, zeros)


def by_columns(rows_of: Callable[[Any, int], jax.Array], n: int) -> jax.Array:
    """A matrix, transposed: some rows of each of its parts are computed at a time.

    So a GPU stores only these rows twice.

    Args:
      rows_of: `(first, n) -> [parts, n, columns]`, the `n` rows of every part that begin at row
        `first`, which may be a traced number.
      n: how many rows each part has, at least 1.
    """
    n_at_once = -(-n // _STEPS)
    spec = jax.eval_shape(lambda: rows_of(0, n_at_once))
    n_parts, _, n_columns = spec.shape

    def with_rows(i: Any, columns: jax.Array) -> jax.Array:
        # The last rows may begin among those before them, which are then computed twice.
        first = jnp.minimum(i * n_at_once, n - n_at_once)
        rows = rows_of(first, n_at_once).transpose(2, 0, 1)
        return lax.dynamic_update_slice_in_dim(columns, rows, first, 2)

    columns = jnp.zeros((n_columns, n_parts, n), spec.dtype)
    columns = lax.fori_loop(0, -(-n // n_at_once), with_rows, columns)
    return columns.reshape(n_columns, n_parts * n)
