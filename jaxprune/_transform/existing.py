"""Masks that drop every weight which does not exist; see `jaxprune._recipe.structural`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._base.sharding import placed_like, typed_like
from jaxprune._recipe.budget import Budget
from jaxprune._recipe.leaf import Leaf
from jaxprune._topk.bit_flags import BitFlags


def among_existing(
    leaves: Sequence[Leaf],
    params: Sequence[jax.Array],
    masks: Sequence[jax.Array | BitFlags] | None,
) -> Sequence[jax.Array | BitFlags] | None:
    """The weights that may be kept: those of the masks that exist.

    Args:
      leaves: how each pruned leaf is decided.
      params: the pruned leaves.
      masks: which weights may be kept if they exist; None for all.

    Returns:
      Masks in the dtypes of `masks`, or `masks` itself where all weights exist.
    """
    exist = [leaf.traits.exists for leaf in leaves]
    if all(exists is None for exists in exist):
        return masks
    if masks is None:
        masks = [jnp.ones_like(p, dtype=bool) for p in params]
    existing: list[jax.Array | BitFlags] = []
    for exists, mask, param in zip(exist, masks, params, strict=True):
        if exists is None:
            existing.append(mask)
        else:
            flags = mask.flags(param) if isinstance(mask, BitFlags) else mask
            existing.append(_only(flags, exists))
    return existing


def first_existing(budget: Budget, masks: Sequence[jax.Array]) -> list[jax.Array]:
    """The masks of all leaves of a tree, with every weight dropped that does not exist."""
    masks = list(masks)
    for i, leaf in zip(budget.chosen, budget.leaves, strict=True):
        if leaf.traits.exists is not None:
            masks[i] = placed_like(_only(masks[i], leaf.traits.exists), masks[i])
    return masks


def _only(mask: jax.Array, exists: Any) -> jax.Array:
    """The mask where weights exist, and zero elsewhere."""
    return jnp.where(typed_like(jnp.asarray(exists), mask), mask, jnp.zeros_like(mask))
