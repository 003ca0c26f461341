"""Sums and largest values of neighbours along an axis, such as the scores of weights in a block.

`any_of` and `any_of_neighbours` do the same for masks, as bytes: XLA for CPUs reduces those three
to nine times as fast as bools.

XLA for CPUs gives a sum over an axis to a library of kernels, which first stores what it sums. For
blocks of 16 scores that takes eight times as long as to read the weights: the scores need as much
memory as the leaf, in new pages. A reduction of two arrays at once is a kernel of XLA, which
computes the scores while it reads the weights. So the neighbours are split into two halves.

On CPUs, the order of a sum is therefore always the same: each half from its first entry on, then
both, then the last entry of an odd number.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.sharding import on_cpu, on_one_device, split_axis, whole_along

_MOST_SLICES = 16  # one slice for each of so many neighbours; more would take long to compile


def pooled(x: jax.Array, axis: int, length: int, pooling: str) -> jax.Array:
    """The sum or the largest of every `length` neighbours along an axis.

    Args:
      x: floats.
      axis: of the neighbours, from 0. The last ones may be fewer.
      length: how many neighbours there are, at least 2.
      pooling: `"mean"` for the sum, or `"max"`.
    """
    n_last = x.shape[axis] % length
    if not n_last:
        return _pooled(x, axis, length, pooling)
    fill = x.dtype.type(-jnp.inf if pooling == "max" else 0)
    padding = [(0, (length - n_last) * (i == axis), 0) for i in range(x.ndim)]
    if not (on_cpu([x]) and on_one_device(x)):
        return _pooled(lax.pad(x, fill, padding), axis, length, pooling)
    # On a CPU, padding would store all of the array.
    n_others = x.shape[axis] - n_last
    others, last = (
        lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, n_others), (n_others, None))
    )
    parts = [others, lax.pad(last, fill, padding)]
    return lax.concatenate([_pooled(part, axis, length, pooling) for part in parts], axis)


def any_of_neighbours(mask: jax.Array, axis: int, length: int) -> jax.Array:
    """Whether any of every `length` neighbours along an axis is nonzero; the last may be fewer."""
    if not mask.shape[axis]:
        return mask.astype(bool)
    padding = [(0, -mask.shape[i] % length * (i == axis)) for i in range(mask.ndim)]
    if any(after for _, after in padding):
        mask = jnp.pad(mask, padding)
    if length > _MOST_SLICES:
        return any_of(split_axis(mask, axis, length), (axis + 1,))
    neighbours = [lax.slice_in_dim(mask, i, None, length, axis) for i in range(length)]
    return functools.reduce(lax.bitwise_or, neighbours).astype(bool)


def any_of(mask: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Whether any entry along these axes is nonzero: bool."""
    return jnp.max(mask.astype(jnp.uint8), axes, initial=0).astype(bool)


def _pooled(x: jax.Array, axis: int, length: int, pooling: str) -> jax.Array:
    """`pooled` of an array in which no neighbours are fewer."""
    x = split_axis(x, axis, length)
    inner = axis + 1
    if not on_cpu([x]):
        return (jnp.max if pooling == "max" else jnp.sum)(x, axis=inner)
    combine, neutral = (lax.max, -jnp.inf) if pooling == "max" else (lax.add, 0)
    # A block may lie across devices; the sum of two sums of parts would be rounded differently.
    x = whole_along(x, inner)
    half = length // 2
    halves = [lax.slice_in_dim(x, i * half, (i + 1) * half, axis=inner) for i in range(2)]

    def both(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        return [combine(*pair) for pair in zip(a, b, strict=True)]

    total = combine(*lax.reduce(halves, [x.dtype.type(neutral)] * 2, both, (inner,)))
    if length % 2:
        total = combine(total, lax.index_in_dim(x, length - 1, inner, keepdims=False))
    return total
