"""Score functions: how much each weight is worth. Larger means keep.

A score is elementwise in one leaf: `(params, grads, key) -> scores`, arrays of one shape. It runs
inside the selection's own read of the weights and is never stored.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def magnitude(params: Any, grads: Any = None, key: Any = None) -> jax.Array:
    """|w|, the score of Zhu & Gupta (2017); the modulus of a complex weight.

    Args:
      params: one leaf, any inexact dtype.
      grads: unused.
      key: unused.

    Returns:
      Scores of the shape of `params`, real and at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> magnitude(jnp.array([-2.0, 0.5])).tolist()
      [2.0, 0.5]
    """
    del grads, key
    if params.dtype in (jnp.bfloat16, jnp.float16):
        # XLA CPU takes the abs of these by way of float32, which is four times slower.
        bits = lax.bitcast_convert_type(params, jnp.uint16) & jnp.uint16(0x7FFF)
        return lax.bitcast_convert_type(bits, params.dtype)
    return jnp.abs(params)
