"""Counting the true entries of several flags in one fused read, on one device or many.

On one device the axes of an array are merged into rows, which costs nothing there. With several
devices an axis may be sharded, so arrays keep their axes and only counts cross devices.

Counts have 32 bits where that is enough, else 64, independently of `jax_enable_x64`.
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

from jaxprune._base.sharding import n_devices, on_cpu, on_tpu, split_axis

try:
    from jax import enable_x64
except ImportError:  # before jax 0.8
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

# From this many entries on, counts have 64 bits: an int32 must hold the count of all, plus one.
WIDE = 2**31 - 1
# The longest row that is reduced on one device: long enough to vectorise, short enough that XLA
# CPU has rows left to spread over its threads.
_ROW = 1024
# A CPU reads at most this many entries in one thread: starting others would take as long.
SHORT = 2**17
# Rows of this length are long enough along the last axis.
_SHORT_ROW = 64
# XLA for CPUs splits the reduction of more numbers than this to one, which takes three kernels.
_SPLIT = 32
# The largest number of 32 bits.
_MOST = 2**32 - 1
# If the number of devices divides no axis, arrays of at most this many entries get plain sums.
_SMALL = 2**16


def counting(is_wide: bool) -> Any:
    """A context that allows 64-bit integers if `is_wide`. Call no user function inside it."""
    return enable_x64(True) if is_wide else contextlib.nullcontext()


def is_wide(counts: Any) -> bool:
    """Whether counts have 64 bits; operations on them then need the `counting` context."""
    return counts.dtype.itemsize == 8


def as_counts(table: Any) -> jax.Array:
    """Python or NumPy integers as an int32 array, or int64 if one of them needs it."""
    table = np.asarray(table)
    wide = bool(table.size) and int(table.max()) >= WIDE
    with counting(wide):
        return jnp.asarray(table, jnp.int64 if wide else jnp.int32)


def take(counts: jax.Array, index: Any) -> jax.Array:
    """`counts[index]`, in the dtype of `counts`."""
    with counting(is_wide(counts)):
        return counts[index]


def total(x: jax.Array) -> jax.Array:
    """The sum of a bool array, or of uint8 counts up to 8: an int32, or an int64 if needed."""
    wide = x.size * (8 if x.dtype == jnp.uint8 else 1) >= WIDE
    with counting(wide):
        return jnp.sum(x, dtype=jnp.int64 if wide else jnp.int32)


def sum_of_counts(counts: jax.Array, most: int) -> jax.Array:
    """The sum of counts that is at most `most`: an int32, or an int64 if they or it need that."""
    wide = is_wide(counts) or most >= WIDE
    with counting(wide):
        return jnp.sum(counts, dtype=jnp.int64 if wide else jnp.int32)


def per_member(x: jax.Array, ndim: int) -> jax.Array:
    """Appends axes to `x`, [n_members], so that it broadcasts against [n_members, ...]."""
    return jnp.expand_dims(x, tuple(range(1, ndim)))


def equal_parts(n: int, most: int) -> list[slice]:
    """Parts of a sequence of length `n`: of equal length, up to `most` and more than half of it.

    If there is no such length, all parts but the last have length `most`.

    Example:
      >>> [part.stop for part in equal_parts(12, 5)], [part.stop for part in equal_parts(7, 5)]
      ([4, 8, 12], [5, 7])
    """
    lengths = range(min(most, n), most // 2, -1)
    length = next((k for k in lengths if n % k == 0), most)
    return [slice(i, min(i + length, n)) for i in range(0, n, length)]


def count_each(flags: Sequence[jax.Array], dtype: Any, is_local: bool) -> jax.Array:
    """Counts the true entries of each flag, per member: [n_members, n_flags].

    On CPU a variadic reduce makes one fused read of all flags, of which there must be two at least;
    a plain sum stores the comparison first, which takes ten times as long. Rows are reduced first,
    so that XLA can spread them over threads. Across devices a variadic reduce would gather the
    counts of all of them, where plain sums are all-reduced: there the rows within each shard are
    reduced by a variadic reduce, and the row counts by plain sums.

    Args:
      flags: bool arrays of one shape, [n_members, ...].
      dtype: of the counts.
      is_local: whether the arrays lie on one device, or are the part that one shard holds.
    """
    if on_tpu(flags):
        return _count_on_tpu(flags, dtype)
    if not is_local:
        return count_in_shards(flags, dtype)
    longest = _longest_row(flags)
    return count_rows([as_rows(flag, longest) for flag in flags], dtype)


def _longest_row(flags: Sequence[jax.Array]) -> int:
    """The longest rows to count in; 0 for the usual ones. A CPU counts few entries in one thread.

    Then there are no counts of rows to sum up.
    """
    size = flags[0].size
    return size if len(flags) * size <= SHORT and on_cpu(flags) else 0


def count_rows(flags: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """`count_each` of members that are already in rows, [n_members, rows, row]."""
    return sum_rows(count_in_rows(flags), dtype)


def count_in_rows(flags: Sequence[jax.Array]) -> list[jax.Array]:
    """The number of true entries of every row, uint32[n_members, rows] for each of the flags."""
    return list(reduced([flag.astype(jnp.uint32) for flag in flags], 2))


def sum_rows(row_counts: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """The sums of counts of rows, [n_members, n_flags]."""
    return jnp.stack(reduced([count.astype(dtype) for count in row_counts], 1), axis=1)


def count_in_shards(flags: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """`count_each` across devices, rows first."""
    counts = [flag.astype(dtype) for flag in flags]
    shape, n = flags[0].shape[1:], n_devices(flags)
    axis, length = row_in_shards(shape, n, _ROW)
    if length > 1:
        counts = reduced([split_axis(count, axis + 1, length) for count in counts], axis + 2)
        stacked = jnp.stack(counts)  # their sums are one kernel of a GPU, and one all-reduce
        return reduced([stacked], *range(2, stacked.ndim))[0].T
    elif math.prod(shape) > _SMALL and all(k % n for k in shape):
        # No axis can be sharded over all devices: most likely each holds a copy.
        counts = reduced(counts, *range(1, counts[0].ndim))
    return jnp.stack([_summed(count) for count in counts], axis=1)


def _count_on_tpu(flags: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """`count_each` by plain sums of 32 bits, which the TPU compiler merges into one read.

    For a variadic reduce of reshaped flags it stores all the flags. For a 64-bit sum over devices
    it gathers as many numbers as there are devices.
    """
    shape = flags[0].shape
    slice_size = math.prod(shape[2:])
    if slice_size > _MOST:
        return jnp.stack([_summed(flag.astype(dtype)) for flag in flags], axis=1)
    if math.prod(shape[1:]) <= _MOST:
        counts = [_summed(flag.astype(jnp.uint32)) for flag in flags]
        return jnp.stack(counts, axis=1).astype(dtype)
    # A 32-bit count of a slice can't overflow.
    of_slices = [_summed(flag.astype(jnp.uint32), n_kept=2) for flag in flags]
    return jnp.stack([jnp.sum(n.astype(dtype), axis=1) for n in of_slices], axis=1)


def _summed(x: jax.Array, n_kept: int = 1) -> jax.Array:
    """The sum over all axes but the first `n_kept`, as one reduction."""
    return lax.reduce(x, np.zeros((), np.dtype(x.dtype)), lax.add, tuple(range(n_kept, x.ndim)))


def reduced(arrays: Sequence[jax.Array], *axes: int) -> Any:
    """The sums of several arrays over some axes, as one variadic reduction."""
    zeros = tuple(np.zeros((), np.dtype(x.dtype)) for x in arrays)
    return lax.reduce(tuple(arrays), zeros, lambda a, b: tuple(map(operator.add, a, b)), axes)


def sum_along(x: jax.Array, axis: int) -> jax.Array:
    """The sums of integers along an axis, as one reduction."""
    if x.shape[axis] <= _SPLIT or not on_cpu([x]):
        return reduced([x], axis)[0]
    # XLA does not split a reduction with two results. It would remove one that is not used, so
    # both are: the second is the first one with the other sign.
    total, negative = reduced([x, -x], axis)
    return jnp.maximum(total, -negative)


def any_of(flags: jax.Array) -> jax.Array:
    """Whether any of the flags is True, [n], as one reduction."""
    return jnp.any(flags) if _is_one_kernel(flags) else _n_true(flags) > 0


def all_of(flags: jax.Array) -> jax.Array:
    """Whether all of the flags are True, [n], as one reduction."""
    return jnp.all(flags) if _is_one_kernel(flags) else _n_true(~flags) == 0


def _is_one_kernel(flags: jax.Array) -> bool:
    return flags.size <= _SPLIT or not on_cpu([flags])


def _n_true(flags: jax.Array) -> jax.Array:
    return sum_along(flags.astype(jnp.int32), 0)


@functools.cache
def row_in_shards(shape: tuple[int, ...], n_devices: int, longest: int) -> tuple[int, int]:
    """An axis with long rows, up to `longest`, that no sharding divides, and their length.

    A row whose length divides the part of the axis on one of all devices lies within one shard,
    however many of the devices the axis is sharded over, so splitting it off moves no data. The
    last axis is chosen if its rows are long enough: XLA for GPUs stores what is summed over
    another. Else it is the axis with the longest rows.
    """
    parts = [n // n_devices if n % n_devices == 0 else 1 for n in shape]
    rows = [next(k for k in range(min(n, longest), 0, -1) if n % k == 0) if n else 1 for n in parts]
    if rows and rows[-1] >= _SHORT_ROW:
        return len(rows) - 1, rows[-1]
    best = max(range(len(rows)), key=lambda i: (rows[i], i), default=0)
    return best, rows[best] if rows else 1


def as_rows(x: jax.Array, longest: int = 0) -> jax.Array:
    """An array on one device as [1, rows, row], padded with zeros; rows of up to `longest` entries.

    Merging axes costs nothing there. With several devices an axis may be sharded, and a reshape
    would gather it. On a TPU memory is tiled, and rows that are not along the last axis would need
    another memory layout.
    """
    row = _row_length(x.size, longest or _ROW)
    if on_tpu([x]) and x.ndim > 1 and _ROW // 8 <= x.shape[-1] <= min(16 * _ROW, x.size // 16):
        row = x.shape[-1]
    if x.size % row == 0:
        return x.reshape(1, -1, row)
    flat = lax.pad(x.reshape(-1), np.zeros((), np.dtype(x.dtype)), [(0, -x.size % row, 0)])
    return flat.reshape(1, -1, row)


def joined_rows(xs: Sequence[jax.Array], longest: int) -> jax.Array:
    """`as_rows` of several arrays of equal shape on one device, as one array, [n, rows, row].

    If no row needs padding they are joined first. That is one operation to compile for each array
    less, and XLA for GPUs takes long to decide which of them to fuse.
    """
    row = _row_length(xs[0].size, longest)
    if not xs[0].ndim or xs[0].size % row:
        return jnp.concatenate([as_rows(x, longest) for x in xs])
    joined = jnp.concatenate(list(xs)) if len(xs) > 1 else xs[0]
    return joined.reshape(len(xs), -1, row)


@functools.cache
def _row_length(size: int, longest: int) -> int:
    """The longest divisor of `size` up to `longest`; that itself, by padding, if it is short."""
    if size <= longest:
        return size
    row = next(n for n in range(longest, 0, -1) if size % n == 0)
    return row if row >= longest // 16 else longest
