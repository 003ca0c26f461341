"""One pass of the search: how many entries of each pool reach each of its cuts.

The data are read once. XLA fuses scores, comparisons and counts into the read, so a pass stores
nothing for each entry.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import count_each, count_rows, per_member
from jaxprune._base.sharding import SumOnce, in_lanes, summed_in_shards
from jaxprune._topk.first_cuts import N_CUTS
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


def keys_reaching(cuts: jax.Array, problem: Problem) -> jax.Array:
    """How many entries of each pool have a key that reaches each cut, [n_pools, N_CUTS].

    Entries below a cut are counted, and subtracted: an integer can be below the smallest cut, but
    not all cuts can be one less.
    """
    # The barrier ties the read to the loop's own values. Without it XLA computes keys once outside
    # the loop and keeps them: several times the memory, and slower.
    xs, cuts = lax.optimization_barrier(([stack.x for stack in problem.stacks], cuts))
    integers, member_cuts = [], []
    for stack, x in zip(problem.stacks, xs, strict=True):
        integers.append(problem.integers(stack, x))
        member_cuts.append(stack.form.cuts(cuts[stack.pool_of]))
    n_below = _pool_counts(integers, member_cuts, operator.lt, problem)
    sizes = np.array(problem.pools.sizes)[:, None] * problem.n_parts
    reaching = jnp.asarray(sizes, n_below.dtype) - n_below
    return reaching + _padding_below(member_cuts, problem) if problem.one_device else reaching


def _padding_below(member_cuts: list[jax.Array], problem: Problem) -> jax.Array:
    """How many entries that only pad the rows of a stack lie below each cut, [n_pools, N_CUTS]."""
    total: Any = np.uint32(0)
    for stack, cuts in zip(problem.stacks, member_cuts, strict=True):
        shape = jax.tree.leaves(stack.x)[0].shape
        n_padding = 0 if stack.is_sliced else math.prod(shape[1:]) - stack.size
        if n_padding:
            zeros = jax.tree.map(lambda x: jnp.zeros((1, 1, 1), x.dtype), stack.x)
            is_below = (problem.integers(stack, zeros)[0] < cuts).astype(problem.pools.pool_dtype)
            total += _by_pool([is_below * is_below.dtype.type(n_padding)], [stack], problem)
    return total * problem.n_parts


def ties_reaching(cuts: jax.Array, tied_key: jax.Array, problem: Problem) -> jax.Array:
    """How many entries with the tied key of their pool reach each cut through the tie order.

    Args:
      cuts: [n_pools, N_CUTS], through the tie order of each pool.
      tied_key: [n_pools].
      problem: the selection.
    """
    xs = [stack.x for stack in problem.stacks]
    sizes = [member_sizes(stack, problem.pools) for stack in problem.stacks]
    xs, sizes, cuts, tied_key, first = lax.optimization_barrier(
        (xs, sizes, cuts, tied_key, first_ranks(problem))
    )
    orders, member_cuts = [], []
    for stack, x, size in zip(problem.stacks, xs, sizes, strict=True):
        members = Members(member_bases(stack, first), size)
        integers = problem.integers(stack, x, exact=True)
        tied = per_member(stack.form.cuts(tied_key[stack.pool_of]), integers.ndim)
        order = tie_order(integers.shape, members, problem.ties)
        orders.append(jnp.where(integers == tied, order, lowest_order(members, problem.ties)))
        member_cuts.append(cuts_in_members(cuts[stack.pool_of], members, problem.ties))
    return _pool_counts(orders, member_cuts, operator.gt, problem)


def _pool_counts(
    numbers: list[jax.Array], member_cuts: list[jax.Array], compare: Compare, problem: Problem
) -> jax.Array:
    """Counts how many numbers of each pool compare with each of its cuts, [n_pools, N_CUTS].

    Args:
      numbers: of each stack, [n_members, ...].
      member_cuts: of each stack, [n_members, N_CUTS].
      compare: a comparison of an entry with a cut.
      problem: the selection.
    """

    def add_up(
        numbers: list[jax.Array], once: SumOnce | None, member_cuts: list[jax.Array]
    ) -> jax.Array:
        counts = []
        for i, stack in enumerate(problem.stacks):
            args = numbers[i], member_cuts[i], compare, stack, problem
            count = _count_members(*args, once is not None)
            counts.append(count if once is None else once(i, count))
        return _by_pool(counts, problem.stacks, problem)

    counts = summed_in_shards(add_up, numbers, member_cuts)
    if problem.axis_name is None:
        return counts
    add = lambda x: lax.psum(x, problem.axis_name)
    return in_lanes(add, counts, max(problem.pools.sizes), problem.n_parts, counts.dtype)


def _count_members(
    numbers: jax.Array,
    cuts: jax.Array,
    compare: Compare,
    stack: Stack,
    problem: Problem,
    in_shard: bool,
) -> jax.Array:
    """Counts how many numbers of each member compare with each of its cuts, [n_members, N_CUTS].

    The slices of a long leaf are counted as one member: they belong to the same pool.
    """
    dtype = problem.pools.pool_dtype
    flags = [compare(numbers, per_member(cuts[:, j], numbers.ndim)) for j in range(N_CUTS)]
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
    joined = jnp.concatenate(counts)
    if n_pools == 1:
        return jnp.sum(joined, axis=0, keepdims=True, dtype=joined.dtype)
    order = np.argsort(pool_of, kind="stable")
    if np.array_equal(pool_of[order], np.arange(n_pools)):
        return joined[order]
    return jnp.zeros((n_pools, N_CUTS), joined.dtype).at[pool_of].add(joined)
