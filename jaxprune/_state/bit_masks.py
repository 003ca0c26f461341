"""Bit masks: masks with one bit per weight, eight neighbours along the last axis to a byte.

A bit mask has the rank of its param, so that every axis but the last can be sharded as the param
is. Padding bits in the last byte are set, so that they never count as dropped weights. Users ask
for bit masks with `prune(..., packed=True)`.

Functions with `n_batch_axes` also accept the masks of a state made under `vmap`. The leading axes
are then those of its members, and a param is a scalar if it has no other axis.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune._base.paths import shape_of, shown_path
from jaxprune._base.sharding import (
    explicit_sharding,
    in_sharding,
    on_gpu,
    split_axis,
    typed_like,
)


def bit_mask_shape(shape: tuple[int, ...], n_batch_axes: int = 0) -> tuple[int, ...]:
    """The shape of the bit mask of a param with this shape.

    Example:
      >>> bit_mask_shape((3, 20)), bit_mask_shape(()), bit_mask_shape((9,), n_batch_axes=1)
      ((3, 3), (), (9,))
    """
    return (*shape[:-1], -(-shape[-1] // 8)) if len(shape) > n_batch_axes else shape


def is_mask_shape(mask_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a mask or a bit mask of a param with this shape has the shape of a mask.

    Example:
      >>> [is_mask_shape(mask, (3, 20)) for mask in ((3, 20), (3, 3), (3, 2))]
      [True, True, False]
    """
    return mask_shape in (shape, bit_mask_shape(shape))


def widths_of(leaves: Sequence[Any], batch: tuple[int, ...] = ()) -> jax.Array:
    """The length of the last axis of each leaf: int32[*batch, n_leaves], 1 for a scalar.

    Args:
      leaves: arrays, whose leading axes are those of `batch`.
      batch: the shape of `prune_step` in their state.

    Example:
      >>> widths_of([jnp.ones((4, 20)), 1.0]).tolist()
      [20, 1]
      >>> widths_of([jnp.ones((2, 20)), jnp.ones(2)], batch=(2,)).tolist()
      [[20, 1], [20, 1]]
    """
    widths = [(1, *shape_of(leaf)[len(batch) :])[-1] for leaf in leaves]
    return jnp.asarray(np.broadcast_to(np.array(widths, np.int32), (*batch, len(widths))))


def width_of_each(widths: Any) -> list[int]:
    """The length of the last axis of each leaf, on the host.

    Args:
      widths: int32[..., n_leaves]. A state made under `vmap` has one row per member; all rows are
        the same.
    """
    widths = np.asarray(widths)
    return widths.reshape(-1, widths.shape[-1])[0].tolist() if widths.size else []


def are_parts(width: int, whole: int) -> bool:
    """Whether bit masks of this width, one after the other, are a bit mask of the whole axis.

    Example:
      >>> are_parts(20, 20), are_parts(16, 64), are_parts(4, 64), are_parts(16, 20)
      (True, True, False, False)
    """
    return width == whole or (width > 0 and width % 8 == 0 and whole % width == 0)


def split_bits(path: str, shape: tuple[int, ...], width: int, fix: str = "") -> str:
    """The message for a bit mask that does not have the width that its state says."""
    return (
        f"{shown_path(path)}: the state says that the last axis of this leaf has {width} weights, "
        f"but the bit mask of shape {shape} is that of a longer or shorter axis. If tx.init ran "
        "inside a map (shard_map) that splits the last axis, the state has the length of one part: "
        f"call tx.init(params) outside the map{fix and '; '}{fix}. Otherwise, the state belongs to "
        "other params."
    )


def to_bits(mask: jax.Array, n_batch_axes: int = 0) -> jax.Array:
    """The bit mask of a mask. The first of eight entries is the lowest bit of its byte.

    Args:
      mask: nonzero means kept.
      n_batch_axes: how many leading axes are those of members.

    Returns:
      uint8 with shape `bit_mask_shape(mask.shape, n_batch_axes)`. A scalar mask takes a whole byte,
      0 or 1.

    Example:
      >>> to_bits(jnp.array([True, False, True])).tolist()
      [253]
    """
    if mask.ndim <= n_batch_axes:
        return mask.astype(jnp.uint8)
    if not mask.size:
        return jnp.zeros(bit_mask_shape(mask.shape), jnp.uint8)
    padding = [(0, 0)] * (mask.ndim - 1) + [(0, -mask.shape[-1] % 8)]
    flags = jnp.pad(_in_whole_bytes(mask).astype(bool), padding, constant_values=True)
    if not on_gpu([flags]):
        return jnp.packbits(flags, axis=-1, bitorder="little")
    # XLA for GPUs fuses this into what reads the bits, and a sum only into what makes the flags.
    in_bytes = split_axis(flags.astype(jnp.uint8), mask.ndim - 1, 8)
    bits = [lax.index_in_dim(in_bytes, i, -1, keepdims=False) << np.uint8(i) for i in range(8)]
    return functools.reduce(operator.or_, bits)


def to_bits_like(mask: jax.Array, like: Any) -> jax.Array:
    """`to_bits`, with the sharding of its param on an Explicit mesh."""
    return bits_typed_like(to_bits(mask), like)


def from_bits(bits: jax.Array, like: Any, n_batch_axes: int = 0) -> jax.Array:
    """The bool mask of a bit mask, in the shape of `like`, an array or its shape and dtype.

    XLA fuses it into the operation that reads it, so no full mask is stored.

    Raises:
      ValueError: the bit mask has another dtype than uint8.

    Example:
      >>> from_bits(jnp.array([253], jnp.uint8), jnp.zeros(3)).tolist()
      [True, False, True]
    """
    if bits.dtype != jnp.uint8:
        raise ValueError(
            f"bit masks must have dtype uint8, got {bits.dtype}{list(bits.shape)}. Restore the "
            "checkpoint into the dtypes of tx.init(params), or convert the state: "
            "jaxprune.upgrade_state(tx, params, opt_state)."
        )
    if bits.ndim <= n_batch_axes:
        return bits.astype(bool)
    if not bits.size:
        return jnp.ones(like.shape, bool)
    whole = _in_whole_bytes(bits, entries_per_byte=1)
    flags = _unpacked(whole, like.dtype).astype(bool)
    flags = lax.slice_in_dim(flags, 0, like.shape[-1], axis=-1)
    return typed_like(flags, like)


def _unpacked(bits: jax.Array, dtype: Any) -> jax.Array:
    """The entries, 0 or 1, of the bit mask of a leaf with this dtype."""
    if not on_gpu([bits]):
        if dtype != jnp.float16:
            return jnp.unpackbits(bits, axis=-1, bitorder="little")
        # XLA for CPUs can't compile some programs that read single bits of bytes beside float16.
        bits = bits.astype(jnp.int32)
    # `unpackbits` compares with the eight powers of 2, for which an A100 starts a kernel.
    places = jnp.arange(8, dtype=bits.dtype).reshape((1,) * bits.ndim + (8,))
    flags = (jnp.expand_dims(bits, -1) >> places) & bits.dtype.type(1)
    return flags.reshape((*bits.shape[:-1], -1))


def full_bits(leaf: Any) -> jax.Array:
    """A bit mask that keeps everything, on the devices of the leaf."""
    if not leaf.ndim:
        return jnp.ones((), jnp.uint8)
    every_8th = lax.slice_in_dim(_in_whole_bytes(leaf), 0, leaf.shape[-1], 8, axis=-1)
    full = jnp.full_like(every_8th, 0xFF, dtype=jnp.uint8)
    if not isinstance(leaf, Tracer):
        return full
    return jnp.where(every_8th == 0, full, full)  # see `full_mask`


def bits_typed_like(bits: jax.Array, like: Any) -> jax.Array:
    """A bit mask with the sharding of its param on an Explicit mesh.

    The last axis is sharded only if the shards of the param hold whole bytes of the bit mask.
    """
    sharding = _whole_byte_sharding(like, 8) if bits.ndim else None
    return bits if sharding is None else in_sharding(bits, sharding)


def _in_whole_bytes(x: Any, entries_per_byte: int = 8) -> Any:
    """`x`, with its last axis gathered if, on an Explicit mesh, its shards split a byte."""
    sharding = _whole_byte_sharding(x, entries_per_byte)
    return x if sharding is None else in_sharding(x, sharding)


def _whole_byte_sharding(x: Any, entries_per_byte: int) -> NamedSharding | None:
    """The sharding of `x`, without that of the last axis if its shards do not hold whole bytes.

    None if `x` does not lie on an Explicit mesh.
    """
    sharding = explicit_sharding(x)
    if sharding is None or len(sharding.spec) < x.ndim or sharding.spec[-1] is None:
        return sharding
    last, mesh = sharding.spec[-1], sharding.mesh
    mesh_axes = last if isinstance(last, tuple) else (last,)
    n_shards = math.prod(mesh.shape[axis] for axis in mesh_axes)
    if x.shape[-1] % (entries_per_byte * n_shards) == 0:
        return sharding
    return NamedSharding(mesh, PartitionSpec(*sharding.spec[:-1], None))
