"""The end of the search in large leaves: only a few rows are still read.

After two passes over 1e7 weights, a bracket holds about 100 of them. Every pass counts row by row
anyway, so the rows that hold these entries are known. They are gathered, and the search goes on in
them alone: a pass then costs a few percent of one over the whole leaf, and ties cost next to
nothing. Where very many entries are equal, only the row is needed through which the cut goes.

This is for pools that are one leaf each, on one device, with ties by index.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base import counting
from jaxprune._base.counting import per_member
from jaxprune._base.sharding import on_tpu
from jaxprune._topk.bracket import columns
from jaxprune._topk.problem import Problem
from jaxprune._topk.stacks import Stack, of_entries

# Leaves of at least this many rows are searched in this way.
_MANY_ROWS = 2**11
# On a GPU, leaves must have this many times as many rows.
_GPU_ROWS = 4
# If there are more of them, none is: every one adds to the time of compiling.
_MOST_STACKS = 4
# At most one in this many rows is gathered.
_ONE_ROW_OF = 64


class Rows(NamedTuple):
    """How many entries of each row of a stack lie below the ends of its bracket.

    Both are [n_members, rows].
    """

    below_lo: jax.Array
    below_hi: jax.Array


class Gathered(NamedTuple):
    """The gathered rows of a stack; one entry for each member.

    Attributes:
      integers: the signed integers of the entries, [n_members, n, row]. Those of entries that are
        not in the bracket are the largest of their type.
      first_ranks: the rank of the first entry of each row, [n_members, n].
      is_tied: whether all entries in the bracket are equal, [n_members]. Then the first of the
        gathered rows is the one that the cut goes through.
      n_above: how many of these entries lie in earlier rows, [n_members]; 0 if not tied.
      n_tied: how many of them lie in the row, [n_members].
    """

    integers: jax.Array
    first_ranks: jax.Array
    is_tied: jax.Array
    n_above: jax.Array
    n_tied: jax.Array

    def bracket_of_row(self, n_keep: jax.Array) -> tuple[jax.Array, ...]:
        """Where the search through the tie order of tied members starts: in the row of the cut.

        Args:
          n_keep: how many of the equal entries to keep, [n_members].

        Returns:
          The lowest rank of the row, the rank above its highest, how many of the equal entries lie
          in it, and how many of these to keep, all in the dtype of `n_keep`.
        """
        first = self.first_ranks[:, 0]
        last = jnp.maximum(first - self.integers.shape[2], 0) + 1
        lo, hi, n_tied, n_above = (
            x.astype(n_keep.dtype) for x in (last, first + 1, self.n_tied, self.n_above)
        )
        return lo, hi, n_tied, n_keep - n_above

    def ranks(self) -> jax.Array:
        """The rank of each entry in its member, in the shape of `integers`."""
        column = lax.broadcasted_iota(self.first_ranks.dtype, self.integers.shape, 2)
        return self.first_ranks[:, :, None] - column


def large_stacks(problem: Problem) -> list[int]:
    """The positions of the stacks whose search ends in gathered rows."""
    n_members = sum(len(stack.pool_of) for stack in problem.stacks)
    one_leaf_each = n_members == len(set(problem.pools.pool_of)) == len(problem.pools.sizes)
    if not (problem.one_device and problem.ties == "index" and one_leaf_each):
        return []
    if problem.skips_finished:
        return []
    if problem.axis_name is not None or on_tpu(jax.tree.leaves([x.x for x in problem.stacks])):
        return []  # on a TPU the compiler would store keys of all rows
    many = _MANY_ROWS * (_GPU_ROWS if problem.is_gpu else 1)
    large = [i for i, stack in enumerate(problem.stacks) if _is_large(stack, many)]
    return large if len(large) <= _MOST_STACKS else []


def _is_large(stack: Stack, many_rows: int) -> bool:
    shape = _shape(stack)
    return stack.size < counting.WIDE and len(shape) > 2 and shape[1] >= many_rows


def _shape(stack: Stack) -> tuple[int, ...]:
    return jax.tree.leaves(stack.x)[0].shape


def most_candidates(problem: Problem, large: list[int]) -> np.ndarray:
    """How many entries may be left in the bracket of each pool when its rows are gathered.

    0 for pools that are not large. Padding may be in one row more.
    """
    most = np.zeros(len(problem.pools.sizes), np.uint32)
    for i in large:
        stack = problem.stacks[i]
        most[stack.pool_of] = _shape(stack)[1] // _ONE_ROW_OF - 1
    return most


def all_rows(stack: Stack) -> Rows:
    """The rows of a stack before the search: nothing is below the bracket, nothing above it."""
    n_members, rows, row = _shape(stack)
    return Rows(
        jnp.zeros((n_members, rows), jnp.uint32), jnp.full((n_members, rows), row, jnp.uint32)
    )


def narrowed_rows(rows: Rows, counts: Sequence[jax.Array], new_ends: jax.Array) -> Rows:
    """The rows after one pass.

    Args:
      rows: before it.
      counts: for each cut, how many entries of each row lie below it, [n_members, rows].
      new_ends: which cuts became the ends of the bracket, [n_members, 2]; see `new_ends_in`.
    """
    return Rows(*(_at_end(*pair, counts) for pair in zip(rows, columns(new_ends), strict=True)))


def _at_end(old: jax.Array, end: jax.Array, counts: Sequence[jax.Array]) -> jax.Array:
    """The count of each row at the cut that is the new end; `old` where there is none."""
    end = lax.broadcast_in_dim(end, old.shape, (0,))
    for i, count in enumerate(counts, 1):
        old = lax.select(end == i, count, old)
    return old


def gather(
    stack: Stack, rows: Rows, lo: jax.Array, hi: jax.Array, n_keep: jax.Array, problem: Problem
) -> Gathered:
    """Gathers the rows of a stack that hold entries in the bracket.

    Args:
      stack: the stack.
      rows: its rows.
      lo: the lower end of the bracket of each member, a key.
      hi: its upper end.
      n_keep: how many of the entries in the bracket to keep.
      problem: the selection.
    """
    _, n_rows, row = _shape(stack)
    n_inside = (rows.below_hi - rows.below_lo).astype(jnp.int32)
    n_before = jnp.cumsum(n_inside, axis=1) - n_inside
    wanted = n_keep.astype(jnp.int32)[:, None]
    holds_cut = (n_before < wanted) & (wanted <= n_before + n_inside)
    is_tied = (hi - lo <= jnp.ones_like(lo))[:, None]
    is_needed = jnp.where(is_tied, holds_cut, n_inside > 0)
    places = lax.broadcasted_iota(jnp.int32, is_needed.shape, 1)
    n_gathered = n_rows // _ONE_ROW_OF
    places = jnp.where(is_needed, places, jnp.int32(n_rows))
    # Sorting without stability is twice as fast.
    order = lax.sort(places, dimension=1, is_stable=False)[:, :n_gathered]
    index = jnp.minimum(order, jnp.int32(n_rows - 1))
    take = lambda x: jnp.take_along_axis(x, index[:, :, None], axis=1, mode="promise_in_bounds")
    integers = problem.integers(stack, of_entries(take, stack.x), exact=True)
    first_ranks = jnp.asarray(stack.size, problem.pools.rank_dtype) - index * row
    column = lax.broadcasted_iota(jnp.int32, integers.shape, 2)
    is_real = (order < n_rows)[:, :, None] & (column < first_ranks[:, :, None])
    low, high = (per_member(stack.form.cuts(end), 3) for end in (lo, hi))
    is_inside = (integers >= low) & (integers < high) & is_real
    outside = np.iinfo(np.dtype(integers.dtype)).max
    of_cut = lambda n: jnp.sum(jnp.where(holds_cut & is_tied, n, jnp.zeros_like(n)), axis=1)
    return Gathered(
        integers=jnp.where(is_inside, integers, jnp.asarray(outside, integers.dtype)),
        first_ranks=first_ranks,
        is_tied=is_tied[:, 0],
        n_above=of_cut(n_before),
        n_tied=of_cut(n_inside),
    )
