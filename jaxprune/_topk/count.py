"""One pass of the search: how many entries of each pool reach each of its cuts.

The data are read once. XLA fuses scores, comparisons and counts into the read, so a pass stores
nothing for each entry.
"""

import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import per_member
from jaxprune._topk.bracket import N_CUTS, Counts, aim_in, bracket_in, cuts_in
from jaxprune._topk.candidates import Gathered
from jaxprune._topk.problem import Problem
from jaxprune._topk.ranks import (
    Members,
    PoolRanks,
    cuts_in_members,
    first_ranks,
    lowest_order,
    member_bases,
    member_sizes,
    order_in_pool,
    tie_order,
)
from jaxprune._topk.stacks import of_entries
from jaxprune._topk.tally import ABOVE, BELOW, NOT_ABOVE, REACHING, Counted, by_pool, pool_counts


def keys_reaching(table: jax.Array, problem: Problem, in_rows: Sequence[int] = ()) -> Counted:
    """How many entries of each pool have a key that reaches each cut.

    Entries below a cut are counted, and subtracted: an integer can be below the smallest cut, but
    not all cuts can be one less.

    Args:
      table: the cuts, in a table of `bracket.py`.
      problem: the selection.
      in_rows: positions of the stacks whose rows are counted, too.
    """
    if problem.skips_finished:
        return _of_unfinished(keys_reaching, table, problem)
    # The barrier ties the read to the loop's own values. Without it XLA computes keys once outside
    # the loop and keeps them: several times the memory, and slower.
    sources, table = lax.optimization_barrier((problem.sources(), table))
    pairs = zip(problem.stacks, sources, strict=True)
    integers = [problem.integers(stack, problem.read(stack, source)) for stack, source in pairs]
    sizes = np.array(problem.pools.sizes) * problem.n_parts
    total = jnp.asarray(sizes, table.dtype)
    return _keys_reaching(table, integers, total, problem, in_rows)


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
    sources, table = lax.optimization_barrier((problem.sources(), table))
    integers = []
    for i, (stack, source) in enumerate(zip(problem.stacks, sources, strict=True)):
        entries = gathered[i].integers if i in gathered else None
        integers.append(
            problem.integers(stack, problem.read(stack, source)) if entries is None else entries
        )
    total = n_read(gathered, n_lo, problem)
    return _keys_reaching(table, integers, total, problem, (), skip=gathered)


def n_read(gathered: Container[int], n_lo: jax.Array, problem: Problem) -> jax.Array:
    """How many entries of each pool reach the smallest key that `keys_reaching_in` can count.

    Args:
      gathered: as for `keys_reaching_in`.
      n_lo: as for `keys_reaching_in`.
      problem: the selection.
    """
    total = np.array(problem.pools.sizes)
    is_gathered = np.zeros(total.shape, bool)
    for i, stack in enumerate(problem.stacks):
        is_gathered[stack.pool_of] = i in gathered
    return jnp.where(is_gathered, n_lo, jnp.asarray(total, n_lo.dtype))


def _keys_reaching(
    table: jax.Array,
    integers: list[jax.Array],
    total: jax.Array,
    problem: Problem,
    in_rows: Sequence[int],
    skip: Container[int] = (),
) -> Counted:
    member_cuts = [
        stack.form.cuts(stack.of_members(cuts_in(of_stack)))
        for stack, of_stack in zip(problem.stacks, _for_stacks(table, problem), strict=True)
    ]
    counted = pool_counts(integers, member_cuts, BELOW, problem, in_rows)
    n_below = counted.counts.n
    if problem.one_device:
        n_below -= _padding_below(member_cuts, problem, skip)
    return counted._replace(counts=Counts(n_below, total))


def _of_unfinished(
    count: Callable[[jax.Array, Problem], Counted], table: jax.Array, problem: Problem
) -> Counted:
    """Counts stack by stack, and reads none whose brackets are done.

    A step leaves such brackets as they are, whatever is counted.

    Args:
      count: counts the entries of one stack, given the table of its pools.
      table: of all pools.
      problem: the selection.
    """
    is_done = bracket_in(table).is_done(aim_in(table).n_keep)
    counts = []
    for stack in problem.stacks:
        nothing = lambda table: jnp.zeros((len(table), N_CUTS), table.dtype)
        of_stack = lambda table, stack=stack: count(table, problem.alone(stack)).counts.n
        finished = jnp.all(stack.of_members(is_done))
        counts.append(lax.cond(finished, nothing, of_stack, stack.of_members(table)))
    return Counted(Counts(by_pool(counts, problem.stacks, problem)), [], ())


def _for_stacks(x: Any, problem: Problem) -> list[Any]:
    """`x` once for each stack; XLA can't tell that they are equal where stacks share a pool.

    Otherwise, for two leaves of one shape on many devices, it computes once what is compared with
    both of them, shards that like one of them, and in every pass gathers the other one.
    """
    copies = [x] * len(problem.stacks)
    pools = {int(stack.pool_of[0]) for stack in problem.stacks}
    is_shared = not problem.one_device and len(pools) < len(copies)
    return lax.optimization_barrier(copies) if is_shared else copies


def _padding_below(
    member_cuts: list[jax.Array], problem: Problem, skip: Container[int]
) -> jax.Array:
    """How many entries that only pad the rows of a stack lie below each cut, [n_pools, N_CUTS]."""
    total: Any = np.uint32(0)
    for i, (stack, cuts) in enumerate(zip(problem.stacks, member_cuts, strict=True)):
        if stack.n_padding and i not in skip:
            zeros = of_entries(lambda x: jnp.zeros((1, 1, 1), x.dtype), stack.x)
            is_below = (problem.integers(stack, zeros)[0] < cuts).astype(problem.pools.pool_dtype)
            total += by_pool([is_below * is_below.dtype.type(stack.n_padding)], [stack], problem)
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
    if problem.skips_finished:
        count = lambda table, alone: ties_reaching(table, aim_in(table).key, {}, alone)
        return _of_unfinished(count, table, problem)
    sizes = [member_sizes(stack, problem.pools) for stack in problem.stacks]
    sources, gathered, sizes, table, tied_key, first = lax.optimization_barrier(
        (problem.sources(), gathered, sizes, table, tied_key, first_ranks(problem))
    )
    shared = _for_stacks((table, tied_key), problem)
    orders, member_cuts = [], []
    for i, (stack, source, size) in enumerate(zip(problem.stacks, sources, sizes, strict=True)):
        table, tied_key = shared[i]
        members = Members(member_bases(stack, first), size)
        if i in gathered:
            integers, order = gathered[i].integers, gathered[i].ranks()
        else:
            integers = problem.integers(stack, problem.read(stack, source), exact=True)
            order = tie_order(integers, members, problem.ties)
        tied = per_member(stack.form.cuts(stack.of_members(tied_key)), integers.ndim)
        orders.append(jnp.where(integers == tied, order, lowest_order(members, problem.ties)))
        cuts = stack.of_members(cuts_in(table))
        member_cuts.append(cuts_in_members(cuts, members, problem.ties))
    # With an aim, tables hold how many numbers are compared: all passes count those below a cut.
    comparison = NOT_ABOVE if problem.is_on_cpu else ABOVE
    return pool_counts(orders, member_cuts, comparison, problem)


def n_compared(gathered: dict[int, Gathered], problem: Problem) -> jax.Array:
    """How many numbers of each pool `ties_reaching` compares, with padding, [n_pools]."""
    total = np.zeros(len(problem.pools.sizes), np.int64)
    for i, stack in enumerate(problem.stacks):
        entries = gathered[i].integers if i in gathered else jax.tree.leaves(stack.x)[0]
        np.add.at(total, stack.pool_of, math.prod(entries.shape[1:]) * problem.n_parts)
    return jnp.asarray(total, problem.pools.pool_dtype)


def ties_reaching_on_gpu(
    table: jax.Array,
    tied_key: jax.Array,
    gathered: dict[int, Gathered],
    ranks: list[PoolRanks],
    problem: Problem,
) -> Counted:
    """`ties_reaching` for a GPU: a pass has no kernels for ranks, or for the cuts of members.

    Args:
      table: as for `ties_reaching`.
      tied_key: as for `ties_reaching`.
      gathered: as for `ties_reaching`.
      ranks: of each stack, computed outside the loop.
      problem: the selection.
    """
    sources, gathered, ranks, table, tied_key = lax.optimization_barrier(
        (problem.sources(), gathered, ranks, table, tied_key)
    )
    shared = _for_stacks((table, tied_key), problem)
    orders, member_cuts = [], []
    for i, (stack, source) in enumerate(zip(problem.stacks, sources, strict=True)):
        table, tied_key = shared[i]
        if i in gathered:  # a leaf that is a pool
            integers, order = gathered[i].integers, gathered[i].ranks().astype(ranks[i].first.dtype)
        else:
            integers = problem.integers(stack, problem.read(stack, source), exact=True)
            order = order_in_pool(ranks[i], integers, problem.ties, stack.n_padding)
        tied = per_member(stack.form.cuts(stack.of_members(tied_key)), integers.ndim)
        orders.append(jnp.where(integers == tied, order, order.dtype.type(0)))
        member_cuts.append(stack.of_members(cuts_in(table)))
    return pool_counts(orders, member_cuts, REACHING, problem)
