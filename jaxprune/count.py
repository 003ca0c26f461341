"""Counting over stacks of leaves: one fused read for many counts, laid out for one device or many.

A stack is one or more leaves of equal shape under a new first axis, its members. On one device
the others are merged into rows, which is free there. With several devices an axis may be sharded:
leaves stay by themselves and keep their axes, and only scalars travel.

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

from jaxprune.placement import on_one_device, split_axis

try:
    from jax import enable_x64
except ImportError:  # before jax 0.8
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

# Entries of a pool from which on it is counted in 64 bits: an int32 must hold all and one more.
WIDE = 2**31 - 1
# Elements of one reduced row on a single device: long enough to vectorise, short enough that XLA
# CPU has rows left to spread over its threads.
_ROW = 1024
# Leaves of at most this many entries are copied together with others of their shape.
_STACKED = 2**20

# Where no axis divides by the devices, leaves of at most this many entries are summed plainly.
_SMALL = 2**16

Stacks = list[tuple[tuple[int, ...], Any]]


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


def stacked(operands: Sequence[Any], specs: Sequence[Any], one_device: bool) -> Stacks:
    """Operands of equal shapes as one, with a new first axis, each beside the leaves it holds.

    Compile time then grows with the number of different shapes instead of that of leaves. The copy
    that it takes is freed with the selection. Across devices every operand stays by itself.
    """
    alike: dict[Any, list[int]] = {}
    for i, (x, spec) in enumerate(zip(operands, specs, strict=True)):
        leaves, treedef = jax.tree.flatten(x)
        kind = (treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        size = math.prod(spec.shape)
        if size:
            alike.setdefault(kind if one_device and size <= _STACKED else i, []).append(i)

    def stack(*xs: jax.Array) -> jax.Array:
        rows = [as_rows(x) if one_device else jnp.expand_dims(x, 0) for x in xs]
        return jnp.concatenate(rows) if len(rows) > 1 else rows[0]

    return [
        (tuple(members), jax.tree.map(stack, *(operands[i] for i in members)))
        for members in alike.values()
    ]


def per_member(x: jax.Array, ndim: int) -> jax.Array:
    """[n_members] against the entries of a stack of `ndim` axes."""
    return jnp.expand_dims(x, tuple(range(1, ndim)))


def count_true(flags: Sequence[jax.Array], is_whole: bool = False) -> jax.Array:
    """How often each of two or more bool arrays of one shape is set: int32[n_flags], saturating.

    With `is_whole` the arrays are what one shard has, and are counted as on one device.
    """
    if not flags[0].size:
        return jnp.zeros((len(flags),), jnp.int32)
    in_rows, wide = is_whole or on_one_device(flags), flags[0].size >= WIDE
    with counting(wide):
        views = [as_rows(f) if in_rows else jnp.expand_dims(f, 0) for f in flags]
        counts = count_each(views, jnp.int64 if wide else jnp.int32, in_rows)[0]
        return jnp.minimum(counts, np.iinfo(np.int32).max).astype(jnp.int32) if wide else counts


def count_each(flags: Sequence[jax.Array], dtype: Any, in_rows: bool) -> jax.Array:
    """How often each of two or more flags is set in each member of a stack: [n_members, n_flags].

    A variadic reduce is what keeps it one fused read on CPU: a plain sum stores the compare first
    and costs ten times as much. Rows are reduced by themselves, which gives XLA something to spread
    over threads. Across devices a variadic reduce would gather what each of them counted, where a
    plain sum adds it up on the way: the rows are reduced as before, within every shard, and their
    counts by plain sums. Not so where the stack is `in_rows`, as it is on one device.
    """
    sums = tuple(flag.astype(dtype) for flag in flags)
    if in_rows:
        for axis in (2, 1):
            sums = _reduced(sums, dtype, axis)
        return jnp.stack(sums, axis=1)
    shape, n_devices = flags[0].shape[1:], jax.device_count()
    axis, length = _row_in_shards(shape, n_devices)
    if length > 1:
        sums = tuple(split_axis(x, axis + 1, length) for x in sums)
        sums = _reduced(sums, dtype, axis + 2)
    elif math.prod(shape) > _SMALL and all(n % n_devices for n in shape):
        sums = _reduced(sums, dtype, *range(1, sums[0].ndim))  # most likely a copy on each device
    zero, axes = np.zeros((), np.dtype(dtype)), tuple(range(1, sums[0].ndim))
    return jnp.stack([lax.reduce(x, zero, lax.add, axes) for x in sums], axis=1)


def _reduced(sums: Sequence[jax.Array], dtype: Any, *axes: int) -> Any:
    zeros = (np.zeros((), np.dtype(dtype)),) * len(sums)
    return lax.reduce(sums, zeros, lambda a, b: tuple(map(operator.add, a, b)), axes)


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

    With several devices an axis may be sharded, and a reshape would gather it.
    """
    row = _row_length(x.size)
    flat = x.reshape(-1)
    if x.size % row:
        flat = lax.pad(flat, np.zeros((), np.dtype(x.dtype)), [(0, -x.size % row, 0)])
    return flat.reshape(1, -1, row)


@functools.cache
def _row_length(size: int) -> int:
    """The longest divisor of `size` up to `_ROW`; `_ROW` itself, by padding, when that is short."""
    if size <= _ROW:
        return size
    longest = next(n for n in range(_ROW, 0, -1) if size % n == 0)
    return longest if longest >= _ROW // 16 else _ROW


def hashed(rank: jax.Array) -> jax.Array:
    """A rank's place in a fixed shuffle of all 32-bit numbers but 0, which stays 0.

    Multiplications by odd numbers and shifted xors can be undone, so that different ranks stay
    different. No rank below 2**31 becomes the largest number.
    """
    h = rank.astype(jnp.uint32)
    for shift, factor in ((16, 0x9E3779B1), (15, 0x85EBCA77)):
        h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
    return (h ^ (h >> jnp.uint32(16))).astype(rank.dtype)


def ranks(shape: tuple[int, ...], top: jax.Array) -> jax.Array:
    """`top` for each member's first entry in row-major order, falling by one; [n_members, ...]."""
    rank = jnp.broadcast_to(per_member(top, len(shape)), shape)
    stride = 1
    for axis in range(len(shape) - 1, 0, -1):
        if shape[axis] > 1:
            index = lax.broadcasted_iota(top.dtype, shape, axis)
            rank = rank - index * jnp.asarray(stride, top.dtype)
        stride *= shape[axis]
    return rank
