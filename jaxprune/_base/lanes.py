"""How a GPU counts the entries that reach each of seven cuts: in seven lanes of one sum.

XLA for GPUs stores what a reduction reads where that seems cheaper than computing it anew for each
operand of the reduction. Seven flags are seven operands: so the keys of most scores were stored in
every pass, and a flag for each entry in a pass over ties. With one operand, nothing is stored for
an entry, whatever its score is computed from.

An entry is 1 in the lane of how many of the cuts it reaches, and in none if it reaches all of them.
To count entries at or above cuts, it is those that it does not reach. A lane has 9 bits of 64:
short rows are summed in lanes, and their counts go on in 32 bits.
"""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import as_rows, count_in_shards, enable_x64, reduced, row_in_shards
from jaxprune._base.sharding import n_devices, split_axis

# How many cuts an entry is compared with in one read. XLA for CPUs fuses up to 15 operands of a
# reduction; 7 cost about one memory read. On GPUs, their lanes fit into 64 bits.
N_CUTS = 7
_LANE_BITS = 9
# The longest row that is summed in lanes.
LONGEST_ROW = 2**_LANE_BITS - 1
# The counts of more rows than this need two kernels: one for each leaf, which counts its parts, and
# one that adds up the parts of all leaves.
_MANY_ROWS = 2**11
_N_PARTS = 2**7  # of a leaf
# The most sums of rows on each of many devices that are few.
_FEW_SUMS = 2**12
# The longest row where rows are fewer.
_SHORT_ROW = 2**7


def lanes_of(
    numbers: jax.Array, cuts: Sequence[jax.Array], *, reaches: Any, below: bool
) -> jax.Array:
    """The lanes of each entry, uint64 in the shape of the entries.

    Args:
      numbers: the entries.
      cuts: seven arrays that broadcast to their shape. For every entry they rise from one array to
        the next.
      reaches: whether a number reaches a cut, `>=` or `>`.
      below: whether to count the entries that do not reach the cuts; otherwise those that do.
    """
    # Three comparisons find the place among rising cuts.
    of_four = reaches(numbers, cuts[3])
    of_two = reaches(numbers, jnp.where(of_four, cuts[5], cuts[1]))
    upper, lower = jnp.where(of_two, cuts[6], cuts[4]), jnp.where(of_two, cuts[2], cuts[0])
    of_one = reaches(numbers, jnp.where(of_four, upper, lower))
    with enable_x64(True):
        first_bit: Any = 0
        for flag, n_cuts in ((of_four, 4), (of_two, 2), (of_one, 1)):
            if_reached, if_not = (n_cuts, 0) if below else (0, n_cuts)
            bits = np.uint64(if_reached * _LANE_BITS), np.uint64(if_not * _LANE_BITS)
            first_bit += jnp.where(flag, *bits)
        return lax.shift_left(jnp.ones_like(first_bit), first_bit)


def row_sums(lanes: jax.Array, *, in_parts: bool) -> jax.Array:
    """The lanes of rows, [n_members, rows].

    Args:
      lanes: of the entries in rows of at most `LONGEST_ROW`, [n_members, rows, row].
      in_parts: whether rows may be divided, which they are if they are few and long.
    """
    n_members, n_rows, row = lanes.shape
    part = next(n for n in range(min(row, _SHORT_ROW), 0, -1) if row % n == 0)
    # Every row is one block of threads. For few of them, XLA would store the lanes of all entries.
    if in_parts and n_members * n_rows < _MANY_ROWS and part >= _SHORT_ROW // 8:
        lanes = lanes.reshape(n_members, -1, part)
    return _sum(lanes, 2)


def rows_at_cuts(sums: jax.Array, below: bool) -> list[jax.Array]:
    """How many entries of each row lie below each cut, or reach it; uint32[n_members, rows] each.

    Args:
      sums: the `row_sums` of whole rows, [n_members, rows].
      below: as for `lanes_of`.
    """
    counts = _counts(sums)
    return at_cuts([lax.index_in_dim(counts, i, 1, keepdims=False) for i in range(N_CUTS)], below)


def at_cuts(counts: Sequence[jax.Array], below: bool) -> list[jax.Array]:
    """How many entries lie below each cut, or reach it, from how many are in each lane."""
    sums = list(itertools.accumulate(counts, operator.add))
    return sums if below else sums[::-1]


def count_members(sums: Sequence[jax.Array], dtype: Any) -> list[jax.Array]:
    """How many entries of each member are in each lane, [n_members, N_CUTS] for each array.

    Args:
      sums: the `row_sums` of arrays on one device, [n_members, rows] each.
      dtype: of the counts.
    """
    counts = [_part_counts(x, dtype) for x in sums]
    in_parts = [x for x in counts if x.shape[2] > 1]
    joined: Any = None
    if in_parts:
        # If the counts of members are added up, XLA would add up the parts in the same sum, and
        # divide that into more kernels: hence the barrier.
        joined = lax.optimization_barrier(reduced([jnp.concatenate(in_parts)], 2)[0])
    members, first = [], 0
    for x in counts:
        if joined is None or x.shape[2] == 1:
            members.append(x[:, :, 0])
        else:
            members.append(lax.slice_in_dim(joined, first, first + len(x)))
            first += len(x)
    return members


def _part_counts(sums: jax.Array, dtype: Any) -> jax.Array:
    """How many entries of each part of each member are in each lane, [n_members, N_CUTS, parts]."""
    n_members, n_rows = sums.shape
    n_parts = _N_PARTS if n_rows > _MANY_ROWS else 1
    length = -(-n_rows // n_parts)
    with enable_x64(True):
        padded = lax.pad(sums, np.uint64(0), ((0, 0, 0), (0, n_parts * length - n_rows, 0)))
        in_parts = padded.reshape(n_members, n_parts, length)
    return reduced([_counts(in_parts).astype(dtype)], 3)[0]


def count_on_devices(lanes: jax.Array, dtype: Any) -> jax.Array:
    """How many entries of one member are in each lane, [1, N_CUTS]; it may lie on many devices.

    Args:
      lanes: of the entries, [1, ...].
      dtype: of the counts.
    """
    axis, length = row_in_shards(lanes.shape[1:], n_devices([lanes]), LONGEST_ROW)
    if length == 1:
        flags = [x.astype(bool) for x in jnp.moveaxis(_counts(lanes), 1, 0)]
        return count_in_shards(flags, dtype)
    sums = _sum(split_axis(lanes, axis + 1, length), axis + 2)
    # Where the new axis lies decides how many kernels XLA makes: of many sums one less if it is the
    # last one, of few sums if it is the first one. Seen in programs for an H100.
    is_last = sums.size // n_devices([sums]) > _FEW_SUMS
    counts = _counts(sums, sums.ndim if is_last else 1).astype(dtype)
    others = range(1, sums.ndim) if is_last else range(2, counts.ndim)
    return reduced([counts], *others)[0]


def local_row_sums(lanes: jax.Array) -> jax.Array:
    """The lanes of rows of one array on one device, [1, rows].

    Args:
      lanes: of the entries, [1, ...].
    """
    return row_sums(as_rows(lanes, LONGEST_ROW), in_parts=True)


def _sum(lanes: jax.Array, axis: int) -> jax.Array:
    """The sums of lanes over an axis of at most `LONGEST_ROW` entries."""
    with enable_x64(True):
        return reduced([lanes], axis)[0]


def _counts(lanes: jax.Array, axis: int = 1) -> jax.Array:
    """The counts in the lanes, uint32; the lanes are a new axis."""
    with enable_x64(True):
        first_bits = np.arange(N_CUTS, dtype=np.uint64) * np.uint64(_LANE_BITS)
        others = [i for i in range(lanes.ndim + 1) if i != axis]
        shifts = jnp.asarray(np.expand_dims(first_bits, others))
        return (jnp.expand_dims(lanes, axis) >> shifts).astype(jnp.uint32) & np.uint32(LONGEST_ROW)
