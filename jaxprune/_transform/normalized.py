"""Scores divided by the scale of their leaf, so that leaves of different scales compete."""

import jax
import jax.numpy as jnp

from jaxprune._base.float_bits import power_of_two
from jaxprune._base.sharding import typed_like
from jaxprune._recipe.traits import Traits

# The range of scales. XLA may multiply by their reciprocals, and takes subnormal ones for zero.
_LEAST, _MOST = 2.0**-126, 2.0**126


def normalized(scores: jax.Array, by: bool | str, traits: Traits) -> jax.Array:
    """The scores of a leaf as they compete with those of other leaves; zeros stay zeros.

    Args:
      scores: one for each weight.
      by: as `Distribution.normalized`.
      traits: of the structure of the leaf; weights that do not exist do not count.
    """
    return scores.astype(jnp.float32) / scale_of(scores, by, traits) if by else scores


def scale_of(scores: jax.Array, by: bool | str, traits: Traits) -> jax.Array:
    """What `normalized` divides the scores of a leaf by, as float32; finite, and above zero.

    NaN and inf count as zeros. The others are divided by a power of two before they are squared, so
    that no square overflows and the squares that matter do not underflow. This rounds nothing, so
    ordinary scores have the same scale as without it, bit for bit.
    """
    scores = scores.astype(jnp.float32)
    counts = jnp.isfinite(scores)
    if traits.exists is not None:
        counts &= typed_like(jnp.asarray(traits.exists), scores)
    unit = power_of_two(jnp.max(jnp.abs(scores), initial=0.0, where=counts))
    parts = jnp.where(counts, scores, jnp.zeros_like(scores)) / unit
    n = 1 if by == "l2" else max(scores.size - traits.n_absent, 1)
    root = jnp.sqrt(jnp.sum(parts * parts) / float(n))  # an integer might not fit into an int32
    return jnp.clip(root * unit, _LEAST, _MOST)
