"""The best units of each column of an array: groups that lie side by side along its last axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from jaxprune._base.sharding import on_gpu, on_one_device


def picked_in_columns(
    pick: Callable[..., tuple[jax.Array, jax.Array]], units: Any, allowed: Any, n_keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best units of each column along the last axis, and the thresholds of the columns."""
    axis = -1
    if on_gpu([units]) and on_one_device([units]):
        # A search through columns is fastest if these are transposed. XLA would lay out the params
        # in the same way, and transpose them on every step, if the layouts were left to it. Across
        # devices, it would gather what has a fixed layout.
        units, allowed = jax.tree.map(_transposed, (units, allowed))
        axis = 0
    axes = (axis, None if allowed is None else axis, None)
    kept, thresholds = jax.vmap(pick, axes, (axis, 0))(units, allowed, n_keep)
    return kept if axis else _transposed(kept, back=True), thresholds


def _transposed(x: jax.Array, back: bool = False) -> jax.Array:
    """A copy of `x` with its last axis moved to the front, or back."""
    moved = jnp.moveaxis(_row_major(x), 0, -1) if back else jnp.moveaxis(_row_major(x), -1, 0)
    return _row_major(moved)


def _row_major(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
