"""Floats by their bits: keys that sort like them, and an honest test for zero.

Integer comparisons are exact where float ones are not: XLA on CPU takes subnormals for zero, and
NaN compares with nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def keyed_dtype(dtype: Any) -> np.dtype:
    """The dtype in which floats of a dtype are keyed: their own, but for one-byte floats."""
    # One-byte floats have a dozen bit layouts (some put NaN at -0); all of them widen exactly.
    return np.dtype(dtype) if np.dtype(dtype).itemsize > 1 else np.dtype(np.float32)


def bits_of(dtype: Any) -> tuple[Any, int, int]:
    """The unsigned integer type of a float type, its sign bit, and the bits of its infinity."""
    n_bits = 8 * np.dtype(dtype).itemsize
    unsigned = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[n_bits]
    infinity = int(np.asarray(np.inf, dtype).view(np.dtype(unsigned)))
    return unsigned, 1 << (n_bits - 1), infinity


def order_key(scores: jax.Array) -> jax.Array:
    """Unsigned integers that sort like the scores: at least 1, NaN highest, -0.0 equal to 0.0."""
    scores = scores.astype(keyed_dtype(scores.dtype))
    unsigned, sign, infinity = bits_of(scores.dtype)
    bits = lax.bitcast_convert_type(scores, unsigned)
    bits = jnp.where(bits == unsigned(sign), unsigned(0), bits)
    key = jnp.where(bits >= unsigned(sign), ~bits, bits | unsigned(sign))
    is_nan = (bits & unsigned(sign - 1)) > unsigned(infinity)
    return jnp.where(is_nan, unsigned((sign | infinity) + 1), key)


def key_value(key: jax.Array, dtype: Any) -> jax.Array:
    """The float of a dtype that a key stands for, clipped to [-inf, inf]; undoes `order_key`."""
    unsigned, sign, infinity = bits_of(dtype)
    lowest = (2 * sign - 1) & ~(sign | infinity)
    key = jnp.clip(key, key.dtype.type(lowest), key.dtype.type(sign | infinity)).astype(unsigned)
    bits = jnp.where(key >= unsigned(sign), key & unsigned(sign - 1), ~key)
    return lax.bitcast_convert_type(bits, dtype)


def is_nonzero(x: jax.Array) -> jax.Array:
    """Whether each entry differs from zero, subnormals included."""
    if jnp.iscomplexobj(x):
        return is_nonzero(x.real) | is_nonzero(x.imag)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x if x.dtype == bool else x != 0
    if x.dtype.itemsize == 1:
        x = x.astype(jnp.float32)
    n_bits = 8 * x.dtype.itemsize
    unsigned = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[n_bits]
    return (lax.bitcast_convert_type(x, unsigned) & unsigned(2 ** (n_bits - 1) - 1)) != 0
