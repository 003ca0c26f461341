"""Norms of scores that neither overflow nor lose small scores.

Squares leave the range of float32 where scores are below 1e-19 or above 1e19: all norms would be 0
or inf, and units be dropped by their index. So scores are divided by a power of two before they are
squared. This rounds nothing: ordinary scores have the same norm as without it, bit for bit.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.float_bits import power_of_two


def norm_over(scores: jax.Array, axes: tuple[int, ...], norm: int) -> jax.Array:
    """The sum (norm 1) or the Euclidean norm (norm 2) of scores over axes, float32 or wider.

    Example:
      >>> norm_over(jnp.array([[3.0, 1.0], [4.0, 0.0]]), (0,), 2).tolist()
      [5.0, 1.0]
      >>> norm_over(jnp.full((4, 1), 2.0**-100), (0,), 2).tolist() == [2.0**-99]
      True
    """
    scores = widened(scores)
    if norm == 1:
        return jnp.sum(scores, axes)
    unit = power_of_two(largest(scores, axes, keepdims=True))
    parts = scores / unit
    return jnp.sqrt(jnp.sum(parts * parts, axes)) * lax.squeeze(unit, axes)


def norm_of_norms(norms: Sequence[jax.Array]) -> jax.Array:
    """The Euclidean norm of several parts of each unit, from the norm of each part.

    Args:
      norms: [n_units] each, at least 0; the result has the dtype of the first.
    """
    if len(norms) == 1:
        return norms[0]
    norms = [norm.astype(norms[0].dtype) for norm in norms]
    unit = norms[0]
    for norm in norms[1:]:
        unit = jnp.maximum(unit, norm)
    unit = power_of_two(unit)
    total = jnp.zeros_like(unit)
    for norm in norms:
        part = norm / unit
        total = total + part * part
    return jnp.sqrt(total) * unit


def widened(scores: jax.Array) -> jax.Array:
    """The scores as float32, or as they are if they are wider."""
    return scores if scores.dtype == jnp.float64 else scores.astype(jnp.float32)


def largest(scores: jax.Array, axes: tuple[int, ...], keepdims: bool = False) -> jax.Array:
    """The largest absolute score over axes; 0 where there is none, NaN where one is NaN."""
    return jnp.max(jnp.abs(scores), axes, keepdims=keepdims, initial=0.0)
