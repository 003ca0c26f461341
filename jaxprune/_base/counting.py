"""Counting over stacks of leaves: one fused read for many counts, laid out for one device or many.

On one device the axes of a leaf are merged into rows, which is free there. With several devices an
axis may be sharded: leaves keep their axes, and only scalars travel.

Counts are 32 bits wide where that is enough, and else 64, whatever `jax_enable_x64` says.
"""

import contextlib
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.sharding import n_devices, on_one_device, on_tpu, split_axis

try:
    from jax import enable_x64
except ImportError:  # before jax 0.8
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

# Entries of a pool from which on it is counted in 64 bits: an int32 must hold all and one more.
WIDE = 2**31 - 1
# Elements of one reduced row on a single device: long enough to vectorise, short enough that XLA
# CPU has rows left to spread over its threads.
_ROW = 1024
# The most that 32 bits hold.
_MOST = 2**32 - 1
# Where no axis divides by the devices, leaves of at most this many entries are summed plainly.
_SMALL = 2**16


def counting(is_wide: bool) -> Any:
    """A context in which 64-bit integers stay so, where they are needed; scores stay out of it."""
    return enable_x64(True) if is_wide else contextlib.nullcontext()


def is_wide(counts: Any) -> bool:
    """Whether an array of counts is one of 64 bits, which only `counting` keeps so."""
    return counts.dtype.itemsize == 8


def as_counts(table: Any) -> jax.Array:
    """Host integers as int32, or as int64 where one of them needs it."""
    table = np.asarray(table)
    wide = bool(table.size) and int(table.max()) >= WIDE
    with counting(wide):
        return jnp.asarray(table, jnp.int64 if wide else jnp.int32)


def take(counts: jax.Array, index: Any) -> jax.Array:
    """`counts[index]`, as wide as they are."""
    with counting(is_wide(counts)):
        return counts[index]


def total(x: jax.Array) -> jax.Array:
    """The sum of an array of flags or small counts, an int32, or an int64 where it needs to be."""
    wide = x.size * (8 if x.dtype == jnp.uint8 else 1) >= WIDE
    with counting(wide):
        return jnp.sum(x, dtype=jnp.int64 if wide else jnp.int32)


def per_member(x: jax.Array, ndim: int) -> jax.Array:
    """[n_members] against the entries of a stack of `ndim` axes."""
    return jnp.expand_dims(x, tuple(range(1, ndim)))


def count_true(flags: Sequence[jax.Array], is_local: bool = False) -> jax.Array:
    """How often each of two or more bool arrays of one shape is set: int32[n_flags], saturating.

    With `is_local` the arrays are what one shard has.
    """
    if not flags[0].size:
        return jnp.zeros((len(flags),), jnp.int32)
    is_local, wide = is_local or on_one_device(flags), flags[0].size >= WIDE
    with counting(wide):
        members = [jnp.expand_dims(flag, 0) for flag in flags]
        counts = count_each(members, jnp.int64 if wide else jnp.int32, is_local)[0]
        return jnp.minimum(counts, np.iinfo(np.int32).max).astype(jnp.int32) if wide else counts


def count_each(flags: Sequence[jax.Array], dtype: Any, is_local: bool) -> jax.Array:
    """How often each of two or more flags is set in each member of a stack: [n_members, n_flags].

    A variadic reduce is what keeps it one fused read on CPU: a plain sum stores the compare first
    and costs ten times as much. Rows are reduced by themselves, which gives XLA something to spread
    over threads. Across devices a variadic reduce would gather what each of them counted, where a
    plain sum adds it up on the way: the rows are reduced as before, within every shard, and their
    counts by plain sums. Not so where the stack `is_local`, all on one device.
    """
    if on_tpu(flags):
        return _count_plainly(flags, dtype)
    if not is_local:
        return _count_in_shards(flags, dtype)
    return count_rows([as_rows(flag) for flag in flags], dtype)


def count_rows(flags: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """`count_each` of members that are in rows, [n_members, rows, row]."""
    sums = _reduced([flag.astype(jnp.uint32) for flag in flags], 2)
    return jnp.stack(_reduced([x.astype(dtype) for x in sums], 1), axis=1)


def _count_in_shards(flags: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """`count_each` across devices, rows first."""
    sums = [flag.astype(dtype) for flag in flags]
    shape, n = flags[0].shape[1:], n_devices(flags)
    axis, length = _row_in_shards(shape, n)
    if length > 1:
        sums = _reduced([split_axis(x, axis + 1, length) for x in sums], axis + 2)
    elif math.prod(shape) > _SMALL and all(k % n for k in shape):
        sums = _reduced(sums, *range(1, sums[0].ndim))  # most likely a copy on each device
    return jnp.stack([_summed(x) for x in sums], axis=1)


def _count_plainly(flags: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """`count_each` by plain sums of 32 bits: the TPU compiler makes one read of all of them.

    It stores all flags for a variadic reduce of flags in another shape, and of a 64-bit sum over
    devices it makes a gather of as many numbers as there are devices.
    """
    shape = flags[0].shape
    slice_size = math.prod(shape[2:])
    if slice_size > _MOST:
        return jnp.stack([_summed(flag.astype(dtype)) for flag in flags], axis=1)
    n_slices = _MOST // max(slice_size, 1)  # so many can't overflow
    total = jnp.zeros((shape[0], len(flags)), dtype)
    for first in range(0, shape[1] if len(shape) > 1 else 1, n_slices):
        some = flags
        if len(shape) > 1 and shape[1] > n_slices:
            index = lax.broadcasted_iota(jnp.uint32, shape, 1)
            mine = (index >= jnp.uint32(first)) & (index < jnp.uint32(first + n_slices))
            some = [flag & mine for flag in flags]
        counts = [_summed(flag.astype(jnp.uint32)) for flag in some]
        total += jnp.stack(counts, axis=1).astype(dtype)
    return total


def _summed(x: jax.Array) -> jax.Array:
    """[n_members, ...] as [n_members]."""
    return lax.reduce(x, np.zeros((), np.dtype(x.dtype)), lax.add, tuple(range(1, x.ndim)))


def _reduced(sums: Sequence[jax.Array], *axes: int) -> Any:
    zeros = tuple(np.zeros((), np.dtype(x.dtype)) for x in sums)
    return lax.reduce(tuple(sums), zeros, lambda a, b: tuple(map(operator.add, a, b)), axes)


@functools.cache
def _row_in_shards(shape: tuple[int, ...], n_devices: int) -> tuple[int, int]:
    """An axis and the longest rows, up to `_ROW`, that no sharding of it cuts.

    However many of the devices an axis is spread over, rows that divide its part of a device lie
    within shards: splitting them off moves nothing. Of equally good axes it is the last.
    """
    parts = [n // n_devices if n % n_devices == 0 else 1 for n in shape]
    rows = [next(k for k in range(min(n, _ROW), 0, -1) if n % k == 0) if n else 1 for n in parts]
    best = max(range(len(rows)), key=lambda i: (rows[i], i), default=0)
    return best, rows[best] if rows else 1


def as_rows(x: jax.Array) -> jax.Array:
    """A leaf as [1, rows, row], padded with zeros; for one device, where merging axes is free.

    With several devices an axis may be sharded, and a reshape would gather it. On a TPU memory is
    in tiles, and other rows than those along the last axis would be another layout.
    """
    row = _row_length(x.size)
    if on_tpu([x]) and x.ndim > 1 and _ROW // 8 <= x.shape[-1] <= min(16 * _ROW, x.size // 16):
        row = x.shape[-1]
    if x.size % row == 0:
        return x.reshape(1, -1, row)
    flat = lax.pad(x.reshape(-1), np.zeros((), np.dtype(x.dtype)), [(0, -x.size % row, 0)])
    return flat.reshape(1, -1, row)


@functools.cache
def _row_length(size: int) -> int:
    """The longest divisor of `size` up to `_ROW`; `_ROW` itself, by padding, when that is short."""
    if size <= _ROW:
        return size
    longest = next(n for n in range(_ROW, 0, -1) if size % n == 0)
    return longest if longest >= _ROW // 16 else _ROW
