"""The pure step on arrays: land dropped weights on zero, find those that are not.

Everything here takes lists of the leaves that are pruned, or plain trees, and knows no optimizer.
Masks are applied by selecting, never by multiplying: NaN times zero is NaN, and -1.0 times zero is
-0.0.
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import WIDE, count_true, counting
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import path_str, shown_path
from jaxprune._base.sharding import summed_in_shards, typed_like


def land(param: jax.Array, update: jax.Array, mask: jax.Array) -> jax.Array:
    """The update that leaves a kept weight alone and takes a dropped one to exactly +0.0.

    `p + (-p)` is +0.0 for every finite `p` in every float format, as long as `-p` is not rounded:
    hence the wider of the two dtypes. A NaN update cannot survive at a dropped weight.
    """
    dtype = wider_dtype(param.dtype, update.dtype)
    return jnp.where(mask.astype(bool), update.astype(dtype), -param.astype(dtype))


def wider_dtype(a: Any, b: Any) -> Any:
    """The dtype that holds both exactly, under strict promotion as well."""
    if a == b:
        return a
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def keep(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x` where the mask keeps it, +0.0 elsewhere."""
    mask = typed_like(mask, x)
    narrow = x.dtype in (jnp.bfloat16, jnp.float16)
    return _keep_bits(x, mask) if narrow else jnp.where(mask.astype(bool), x, jnp.zeros_like(x))


@jax.custom_jvp
def _keep_bits(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`keep` on the bits of a 16-bit float, which XLA CPU would widen to float32 for the select."""
    bits = lax.bitcast_convert_type(x, jnp.uint16)
    bits = jnp.where(mask.astype(bool), bits, jnp.zeros_like(bits))
    return lax.bitcast_convert_type(bits, x.dtype)


@_keep_bits.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    dx = tangents[0]
    return _keep_bits(*primals), jnp.where(primals[1].astype(bool), dx, jnp.zeros_like(dx))


def count_violations(params: Sequence[jax.Array], masks: Sequence[jax.Array]) -> jax.Array:
    """How many dropped weights are not zero, int32, saturating."""
    dropped = [~m.astype(bool) for m in masks]
    moved = [d & is_nonzero(p) for p, d in zip(params, dropped, strict=True)]
    wide = sum(d.size for d in dropped) >= WIDE

    def add_up(flags: Sequence[jax.Array], once: Any) -> jax.Array:
        total = jnp.zeros((), jnp.int64 if wide else jnp.int32)
        for i in range(len(moved)):
            # Two counts, both used: XLA turns one into the slow form that count_true avoids.
            n, n_dropped = count_true(flags[i :: len(moved)], once is not None).astype(total.dtype)
            n = jnp.minimum(n, n_dropped)
            total += n if once is None else once(i, n)
        return total

    with counting(wide):
        total = summed_in_shards(add_up, [*moved, *dropped])
        return jnp.minimum(total, np.iinfo(np.int32).max).astype(jnp.int32)


def full_mask(leaf: Any, dtype: Any) -> jax.Array:
    """A mask that keeps everything, on the devices of the leaf; a scalar for a non-array."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return jnp.ones(jnp.shape(leaf) if isinstance(leaf, (int, float, complex)) else (), dtype)
    if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != bool:
        return jnp.ones(leaf.shape, dtype)  # PRNG keys
    full = jnp.ones_like(leaf, dtype=dtype)
    if not isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return full
    # A constant has no place of its own, and under `jit` on Auto axes lands on one device, as the
    # moments of adam do. What is chosen by the leaf lies where the leaf does; XLA then sees that
    # both choices are the same and reads nothing.
    return jnp.where(leaf != leaf, full, full)


@jax.custom_jvp
def _straight_through(param: jax.Array, mask: jax.Array) -> jax.Array:
    return keep(param, mask)


@_straight_through.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    return _straight_through(*primals), tangents[0]


def straight_through(params: chex.ArrayTree, masks: chex.ArrayTree) -> chex.ArrayTree:
    """Params masked in the forward pass, with the gradient of the identity.

    Dropped weights count as zero in the loss but still receive the gradient of what takes their
    place, so they may grow and return (Bengio et al. 2013, arXiv:1308.3432).

    Args:
      params: any tree of arrays.
      masks: a tree of the same structure; nonzero means kept.

    Returns:
      A tree like `params`, +0.0 at every dropped weight.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w, mask = jnp.array([1.0, 2.0]), jnp.array([True, False])
      >>> jax.grad(lambda w: (3.0 * straight_through(w, mask)).sum())(w).tolist()
      [3.0, 3.0]
    """
    return jax.tree_util.tree_map_with_path(_straight_through_leaf, params, masks)


def _straight_through_leaf(path: tuple[Any, ...], param: Any, mask: Any) -> jax.Array:
    if jnp.shape(param) != jnp.shape(mask):
        raise ValueError(
            f"{shown_path(path_str(path))}: the mask has shape {jnp.shape(mask)} but the param "
            f"has shape {jnp.shape(param)}. Pass masks like the params, such as "
            "jaxprune.get_masks(opt_state)."
        )
    return _straight_through(param, mask)
