"""The best units of each column of an array: groups that lie side by side along its last axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.counting import counting, is_wide

# In so many parts, what is stored twice while it is transposed is a small part of the whole.
_PARTS = 8


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
    """A matrix of `n` rows, transposed: the rows are computed some at a time.

    So a GPU stores only some of them twice.

    Args:
      rows_of: computes so many rows from the first of them on, which may be a traced number.
      n: at least 1.
    """
    n_of_part = -(-n // _PARTS)
    some = jax.eval_shape(lambda: rows_of(0, n_of_part))

    def with_part(i: Any, columns: jax.Array) -> jax.Array:
        # The last part may begin in the one before it. These rows are computed twice.
        first = jnp.minimum(i * n_of_part, n - n_of_part)
        return lax.dynamic_update_slice_in_dim(columns, rows_of(first, n_of_part).T, first, 1)

    columns = jnp.zeros((some.shape[1], n), some.dtype)
    return lax.fori_loop(0, -(-n // n_of_part), with_part, columns)
