"""Masks at one bit per weight, packed along the last axis.

Every leaf keeps its rank, and so its sharding on the other axes. The bits that fill up the last
byte are set, so that they never count as dropped.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune._base.sharding import explicit_sharding, in_sharding, typed_like


def bit_mask_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the packed mask of a leaf.

    Example:
      >>> bit_mask_shape((3, 20)), bit_mask_shape(())
      ((3, 3), ())
    """
    return (*shape[:-1], -(-shape[-1] // 8)) if shape else ()


def to_bits(mask: jax.Array) -> jax.Array:
    """Eight entries to a byte, the first in the lowest bit; a scalar stays as it is.

    Args:
      mask: nonzero means kept.

    Returns:
      uint8 of `bit_mask_shape(mask.shape)`.

    Example:
      >>> to_bits(jnp.array([True, False, True])).tolist()
      [253]
    """
    if not mask.ndim:
        return mask.astype(jnp.uint8)
    if not mask.size:
        return jnp.zeros(bit_mask_shape(mask.shape), jnp.uint8)
    fill = [(0, 0)] * (mask.ndim - 1) + [(0, -mask.shape[-1] % 8)]
    flags = jnp.pad(_whole_bytes(mask).astype(bool), fill, constant_values=True)
    return jnp.packbits(flags, axis=-1, bitorder="little")


def from_bits(bits: jax.Array, like: Any) -> jax.Array:
    """The bool mask of the array (or shape) `like`. It fuses into whatever reads it.

    Example:
      >>> from_bits(jnp.array([253], jnp.uint8), jnp.zeros(3)).tolist()
      [True, False, True]
    """
    if not bits.ndim:
        return bits.astype(bool)
    if not bits.size:
        return jnp.ones(like.shape, bool)
    flags = jnp.unpackbits(_whole_bytes(bits, 1), axis=-1, bitorder="little").astype(bool)
    flags = lax.slice_in_dim(flags, 0, like.shape[-1], axis=-1)
    return typed_like(flags, like)


def full_bits(leaf: Any) -> jax.Array:
    """A packed mask that keeps everything, on the devices of the leaf."""
    if not leaf.ndim:
        return jnp.ones((), jnp.uint8)
    every_8th = lax.slice_in_dim(_whole_bytes(leaf), 0, leaf.shape[-1], 8, axis=-1)
    return jnp.full_like(every_8th, 0xFF, dtype=jnp.uint8)


def bits_typed_like(bits: jax.Array, like: Any) -> jax.Array:
    """A packed mask with the sharding of its array, as far as shards hold whole bytes."""
    named = _sharding_of_bytes(like, 8) if bits.ndim else None
    return bits if named is None else in_sharding(bits, named)


def _whole_bytes(x: Any, per_byte: int = 8) -> Any:
    """On an Explicit mesh, `x` with a whole last axis where its shards do not hold whole bytes."""
    named = _sharding_of_bytes(x, per_byte)
    return x if named is None else in_sharding(x, named)


def _sharding_of_bytes(x: Any, per_byte: int) -> NamedSharding | None:
    named = explicit_sharding(x)
    if named is None or len(named.spec) < x.ndim or named.spec[-1] is None:
        return named
    axes = named.spec[-1] if isinstance(named.spec[-1], tuple) else (named.spec[-1],)
    if x.shape[-1] % (per_byte * math.prod(named.mesh.shape[axis] for axis in axes)) == 0:
        return named
    return NamedSharding(named.mesh, PartitionSpec(*named.spec[:-1], None))
