"""Scores divided by the scale of their leaf, so that leaves of different scales compete."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._base.sharding import typed_like
from jaxprune._recipe.traits import Traits


def normalized(scores: jax.Array, by: bool | str, traits: Traits) -> jax.Array:
    """The scores of a leaf as they compete with those of other leaves; zeros stay zeros.

    Args:
      scores: one for each weight.
      by: as `Distribution.normalized`.
      traits: of the structure of the leaf; weights that do not exist do not count.
    """
    return scores.astype(jnp.float32) / scale_of(scores, by, traits) if by else scores


def scale_of(scores: jax.Array, by: bool | str, traits: Traits) -> jax.Array:
    """What `normalized` divides the scores of a leaf by, as float32."""
    scores = scores.astype(jnp.float32)
    squares: Any = scores * scores
    if traits.exists is not None:
        exists = typed_like(jnp.asarray(traits.exists), scores)
        squares = jnp.where(exists, squares, jnp.zeros_like(squares))
    n = 1 if by == "l2" else max(scores.size - traits.n_absent, 1)
    scale = jnp.sqrt(jnp.sum(squares) / n)
    return jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
