"""Bit patterns of floats: integer keys that sort like the floats, and an exact test for nonzero.

Integer comparisons are exact where float comparisons are not: XLA on CPU treats subnormals as zero,
and every comparison with NaN is false.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import counting, is_wide


class FloatBits(NamedTuple):
    """The bit layout of a float type of 16, 32 or 64 bits."""

    unsigned: Any  # the unsigned integer type of the same size
    sign: int  # the sign bit
    infinity: int  # the bits of inf

    @property
    def nan_key(self) -> int:
        """The `order_key` of NaN, the largest that there is."""
        return self.sign + self.infinity + 1

    @property
    def lowest_key(self) -> int:
        """The `order_key` of -inf, the smallest that there is."""
        return self.sign - self.infinity


def bits_of(dtype: Any) -> FloatBits:
    """The bit layout of a float type."""
    n_bits = 8 * np.dtype(dtype).itemsize
    unsigned = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[n_bits]
    infinity = int(np.asarray(np.inf, dtype).view(np.dtype(unsigned)))
    return FloatBits(unsigned, 1 << (n_bits - 1), infinity)


def has_zero(dtype: Any) -> bool:
    """Whether a dtype has a zero. All have but float8_e8m0fnu, which is for scales."""
    return np.dtype(dtype).name != "float8_e8m0fnu"


def can_compute(dtype: Any) -> bool:
    """Whether JAX computes with a dtype. It has arrays of 6-bit floats, but no operations."""
    return not np.dtype(dtype).name.startswith("float6_")


def keyed_dtype(dtype: Any) -> np.dtype:
    """The dtype whose bits make the key of a float dtype: float32 for one-byte floats, else itself.

    One-byte floats have a dozen bit layouts (in some, NaN is at -0); float32 holds all exactly.
    """
    return np.dtype(dtype) if np.dtype(dtype).itemsize > 1 else np.dtype(np.float32)


def order_key(scores: jax.Array) -> jax.Array:
    """Unsigned integers that sort like the scores: at least 1, NaN highest, -0.0 equal to 0.0."""
    scores = scores.astype(keyed_dtype(scores.dtype))
    layout = bits_of(scores.dtype)
    unsigned, sign = layout.unsigned, layout.unsigned(layout.sign)
    bits = lax.bitcast_convert_type(scores, unsigned)
    # The bits of -x are those of x and the sign bit, so their negative is `sign` minus those of x.
    key = jnp.where(bits >= sign, unsigned(0) - bits, bits | sign)
    is_nan = (bits & unsigned(layout.sign - 1)) > unsigned(layout.infinity)
    return jnp.where(is_nan, unsigned(layout.nan_key), key)


def key_value(key: jax.Array, dtype: Any) -> jax.Array:
    """The float of this dtype that has the key, clipped to [-inf, inf]; the inverse of `order_key`.

    Args:
      key: in any unsigned integer type that holds the keys of the dtype.
      dtype: one of those that `keyed_dtype` returns.
    """
    unsigned, sign, infinity = bits_of(dtype)
    lowest, highest = key.dtype.type(sign - infinity), key.dtype.type(sign + infinity)
    key = jnp.clip(key, lowest, highest).astype(unsigned)
    bits = jnp.where(key >= unsigned(sign), key & unsigned(sign - 1), unsigned(0) - key)
    return lax.bitcast_convert_type(bits, dtype)


def power_of_two(x: jax.Array) -> jax.Array:
    """The largest power of two that is no larger than a float, which is at least 0.

    It is clipped so that it and its reciprocal are normal numbers: XLA takes subnormal ones for
    zero, and may multiply by the reciprocal where a program divides. Those of inf and NaN are the
    largest.

    Args:
      x: of 32 or 64 bits.

    Example:
      >>> x = jnp.array([5.0, 0.75, 0.0], jnp.float32)
      >>> power_of_two(x).tolist() == [4.0, 0.5, 2.0**-126]
      True
    """
    unsigned, _, infinity = bits_of(x.dtype)
    exponent = lax.bitcast_convert_type(x, unsigned) & unsigned(infinity)
    least = float(jnp.finfo(x.dtype).tiny)
    return jnp.clip(lax.bitcast_convert_type(exponent, x.dtype), least, 1 / least)


def is_nonzero(x: jax.Array) -> jax.Array:
    """Whether each entry of an array of any numeric dtype differs from zero; subnormals do."""
    if jnp.iscomplexobj(x):
        return is_nonzero(x.real) | is_nonzero(x.imag)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x if x.dtype == bool else x != 0
    if x.dtype.itemsize == 1:
        x = x.astype(jnp.float32)
    unsigned, sign, _ = bits_of(x.dtype)
    with counting(is_wide(x)):  # which an array may be although 64-bit types are off
        return (lax.bitcast_convert_type(x, unsigned) & unsigned(sign - 1)) != 0
