"""One pass of the search: how many entries of each pool reach each of its cuts.

The data are read once. XLA fuses scores, comparisons and counts into the read, so a pass stores
nothing for each entry.
"""

import math
import operator
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import (
    count_each,
    count_in_rows,
    count_rows,
    per_member,
    sum_rows,
)
from jaxprune._base.sharding import SumOnce, in_lanes, summed_in_shards
from jaxprune._topk.bracket import N_CUTS, Counts, cuts_in
from jaxprune._topk.candidates import Gathered
from jaxprune._topk.problem import Problem
from jaxprune._topk.ranks import (
    Members,
    cuts_in_members,
    first_ranks,
    lowest_order,
    member_bases,
    member_sizes,
    tie_order,
)
from jaxprune._topk.stacks import Stack

Compare = Callable[[jax.Array, jax.Array], jax.Array]


class Counted(NamedTuple):
    """What a pass counts.

    Attributes:
      counts: how many entries of each pool reach each cut, or lie below it.
      rows: of some stacks, for each cut, how many entries of each row lie below it.
      in_rows: the positions of these stacks.
    """

    counts: Counts
    rows: list[list[jax.Array]]
    in_rows: Sequence[int]


def keys_reaching(table: jax.Array, problem: Problem, in_rows: Sequence[int] = ()) -> Counted:
    """How many entries of each pool have a key that reaches each cut.

    Entries below a cut are counted, and subtracted: an integer can be below the smallest cut, but
    not all cuts can be one less.

    Args:
      table: the cuts, in a table of `bracket.py`.
      problem: the selection.
      in_rows: positions of the stacks whose rows are counted, too.
    """
    # The barrier ties the read to the loop's own values. Without it XLA computes keys once outside
    # the loop and keeps them: several times the memory, and slower.
    xs, table = lax.optimization_barrier(([stack.x for stack in problem.stacks], table))
    integers = [problem.integers(*pair) for pair in zip(problem.stacks, xs, strict=True)]
    sizes = np.array(problem.pools.sizes) * problem.n_parts
    total = jnp.asarray(sizes, table.dtype)
    return _keys_reaching(cuts_in(table), integers, total, problem, in_rows)


def keys_reaching_in(
    table: jax.Array, gathered: dict[int, Gathered], n_lo: jax.Array, problem: Problem
) -> Counted:
    """`keys_reaching` where some stacks are only read in gathered rows.

    Args:
      table: the cuts, inside the brackets that the rows were gathered for.
      gathered: the gathered rows of stacks, by position.
      n_lo: how many entries reach the lower end of these brackets, [n_pools].
      problem: the selection.
    """
    xs, table = lax.optimization_barrier(([stack.x for stack in problem.stacks], table))
    integers, total = [], np.array(problem.pools.sizes)
    is_gathered = np.zeros(total.shape, bool)
    for i, (stack, x) in enumerate(zip(problem.stacks, xs, strict=True)):
        is_gathered[stack.pool_of] = i in gathered
        integers.append(gathered[i].integers if i in gathered else problem.integers(stack, x))
    total = jnp.where(is_gathered, n_lo, jnp.asarray(total, n_lo.dtype))
    return _keys_reaching(cuts_in(table), integers, total, problem, (), skip=gathered)


def _keys_reaching(
    cuts: jax.Array,
    integers: list[jax.Array],
    total: jax.Array,
    problem: Problem,
    in_rows: Sequence[int],
    skip: Container[int] = (),
) -> Counted:
    member_cuts = [stack.form.cuts(stack.of_members(cuts)) for stack in problem.stacks]
    counted = _pool_counts(integers, member_cuts, operator.lt, problem, in_rows)
    n_below = counted.counts.n
    if problem.one_device:
        n_below -= _padding_below(member_cuts, problem, skip)
    return counted._replace(counts=Counts(n_below, total))


def _padding_below(
    member_cuts: list[jax.Array], problem: Problem, skip: Container[int]
) -> jax.Array:
    """How many entries that only pad the rows of a stack lie below each cut, [n_pools, N_CUTS]."""
    total: Any = np.uint32(0)
    for i, (stack, cuts) in enumerate(zip(problem.stacks, member_cuts, strict=True)):
        shape = jax.tree.leaves(stack.x)[0].shape
        n_padding = 0 if stack.is_sliced else math.prod(shape[1:]) - stack.size
        if n_padding and i not in skip:
            zeros = jax.tree.map(lambda x: jnp.zeros((1, 1, 1), x.dtype), stack.x)
            is_below = (problem.integers(stack, zeros)[0] < cuts).astype(problem.pools.pool_dtype)
            total += _by_pool([is_below * is_below.dtype.type(n_padding)], [stack], problem)
    return total * problem.n_parts


def ties_reaching(
    table: jax.Array, tied_key: jax.Array, gathered: dict[int, Gathered], problem: Problem
) -> Counted:
    """How many entries with the tied key of their pool reach each cut through the tie order.

    Args:
      table: the cuts, through the tie order of each pool.
      tied_key: [n_pools].
      gathered: the rows to read of some stacks, by position.
      problem: the selection.
    """
    xs = [stack.x for stack in problem.stacks]
    sizes = [member_sizes(stack, problem.pools) for stack in problem.stacks]
    xs, gathered, sizes, table, tied_key, first = lax.optimization_barrier(
        (xs, gathered, sizes, table, tied_key, first_ranks(problem))
    )
    cuts = cuts_in(table)
    orders, member_cuts = [], []
    for i, (stack, x, size) in enumerate(zip(problem.stacks, xs, sizes, strict=True)):
        members = Members(member_bases(stack, first), size)
        if i in gathered:
            integers, order = gathered[i].integers, gathered[i].ranks()
        else:
            integers = problem.integers(stack, x, exact=True)
            order = tie_order(integers.shape, members, problem.ties)
        tied = per_member(stack.form.cuts(stack.of_members(tied_key)), integers.ndim)
        orders.append(jnp.where(integers == tied, order, lowest_order(members, problem.ties)))
        member_cuts.append(cuts_in_members(stack.of_members(cuts), members, problem.ties))
    return _pool_counts(orders, member_cuts, operator.gt, problem)


def _pool_counts(
    numbers: list[jax.Array],
    member_cuts: list[jax.Array],
    compare: Compare,
    problem: Problem,
    in_rows: Sequence[int] = (),
) -> Counted:
    """Counts how many numbers of each pool compare with each of its cuts.

    Args:
      numbers: of each stack, [n_members, ...].
      member_cuts: of each stack, [n_members, N_CUTS].
      compare: a comparison of an entry with a cut.
      problem: the selection.
      in_rows: positions of the stacks whose rows are counted, too; all lie on one device.
    """
    rows: list[list[jax.Array]] = []

    def add_up(
        numbers: list[jax.Array], once: SumOnce | None, member_cuts: list[jax.Array]
    ) -> jax.Array:
        counts = []
        for i, stack in enumerate(problem.stacks):
            flags = _flags(numbers[i], member_cuts[i], compare)
            if i in in_rows:
                rows.append(count_in_rows(flags))
                count = sum_rows(rows[-1], problem.pools.pool_dtype)
            else:
                count = _count_members(flags, stack, problem, once is not None)
            counts.append(count if once is None else once(i, count))
        return _by_pool(counts, problem.stacks, problem)

    counts = summed_in_shards(add_up, numbers, member_cuts)
    if problem.axis_name is None:
        return Counted(Counts(counts), rows, in_rows)
    add = lambda x: lax.psum(x, problem.axis_name)
    most = max(problem.pools.sizes)
    counts = in_lanes(add, counts, most, problem.n_parts, counts.dtype)
    return Counted(Counts(counts), rows, in_rows)


def _flags(numbers: jax.Array, cuts: jax.Array, compare: Compare) -> list[jax.Array]:
    """Compares the numbers of each member with each of its cuts, [n_members, N_CUTS]."""
    return [compare(numbers, per_member(cuts[:, j], numbers.ndim)) for j in range(N_CUTS)]


def _count_members(
    flags: list[jax.Array], stack: Stack, problem: Problem, in_shard: bool
) -> jax.Array:
    """Counts the true entries of each member, [n_members, N_CUTS].

    The slices of a long leaf are counted as one member: they belong to the same pool.
    """
    dtype = problem.pools.pool_dtype
    if stack.is_sliced:
        flags = [jnp.expand_dims(flag, 0) for flag in flags]
    elif problem.one_device:
        return count_rows(flags, dtype)
    return count_each(flags, dtype, problem.one_device or in_shard)


def _by_pool(counts: list[jax.Array], stacks: Sequence[Stack], problem: Problem) -> jax.Array:
    """Sums the counts of the members of each pool, [n_pools, N_CUTS]."""
    n_pools = len(problem.pools.sizes)
    pool_of = np.concatenate(
        [stack.pool_of[: len(count)] for stack, count in zip(stacks, counts, strict=True)]
    )
    joined = jnp.concatenate(counts) if len(counts) > 1 else counts[0]
    if np.array_equal(pool_of, np.arange(n_pools)):
        return joined
    if n_pools == 1:
        return jnp.sum(joined, axis=0, keepdims=True, dtype=joined.dtype)
    order = np.argsort(pool_of, kind="stable")
    if np.array_equal(pool_of[order], np.arange(n_pools)):
        return joined[order]
    return jnp.zeros((n_pools, N_CUTS), joined.dtype).at[pool_of].add(joined)
