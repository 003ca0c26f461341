"""The search for the cuts that keep exactly the wanted number of entries in each pool.

Every pool has a bracket: a range of keys, with the number of entries that reach its lower end and
its upper end. A pass places a few cuts inside each bracket, counts the entries that reach each cut,
and narrows the bracket to the part that contains the wanted count. All pools advance together, in
one loop. Where more entries share the last key than may be kept, a second loop searches the order
of these tied entries in the same way; if there are none, it makes no pass.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import counting, is_wide
from jaxprune._base.float_bits import bits_of
from jaxprune._topk.bracket import (
    Aim,
    Bracket,
    Counts,
    aim_in,
    bracket_in,
    new_ends_in,
    step,
    table_to_start,
    table_with,
)
from jaxprune._topk.candidates import (
    Gathered,
    Rows,
    all_rows,
    gather,
    large_stacks,
    most_candidates,
    narrowed_rows,
)
from jaxprune._topk.count import (
    keys_reaching,
    keys_reaching_in,
    n_compared,
    n_read,
    ties_reaching,
    ties_reaching_on_gpu,
)
from jaxprune._topk.first_cuts import first_cuts
from jaxprune._topk.problem import Problem
from jaxprune._topk.ranks import PoolRanks, cut_above_all
from jaxprune._topk.tally import Counted


class Cuts(NamedTuple):
    """An entry is kept if its key is above `key`, or equal to it and its tie order reaches `tie`.

    One of each per pool, or per member of a stack. `tie` is 1 where all tied entries are kept, as
    every entry reaches it.
    """

    key: jax.Array
    tie: jax.Array


class Ended(NamedTuple):
    """How a search ended.

    Attributes:
      known: the cuts of each pool; None if the table has an aim.
      table: that of the search through the order of ties; None if the cuts are known.
    """

    known: Cuts | None
    table: Any = None

    def cuts(self) -> Cuts:
        """The cuts of each pool. On a CPU, what reads them computes them in its own kernel."""
        if self.known is not None:
            return self.known
        n_keep, _, key = aim_in(self.table)
        return Cuts(key, bracket_in(self.table).exact_end(n_keep))


def search(problem: Problem, n_keep: jax.Array, start: jax.Array | None) -> Ended:
    """Finds cuts that keep exactly `n_keep` entries of each pool.

    With a mapped axis, counts are summed over it, so every one of its members gets the same cuts.

    Args:
      problem: the selection.
      n_keep: integer[n_pools], clipped to [0, entries of the pool].
      start: float[n_pools], thresholds to start from, or None.
    """
    whole, n_keep = _whole_bracket(problem, n_keep)
    one = jnp.ones_like(n_keep)
    if not problem.stacks:  # all leaves are empty
        return Ended(Cuts(whole.lo, one))
    fraction = n_keep / jnp.maximum(whole.n_lo, 1)
    cuts = first_cuts(fraction.astype(jnp.float32), problem, start)
    if problem.axis_name is not None:
        cuts = lax.pmax(cuts, problem.axis_name)
    large = large_stacks(problem)
    rows = [all_rows(problem.stacks[i]) for i in large]
    aim = Aim(n_keep, whole.n_lo, whole.lo) if problem.is_on_cpu else None
    state = SearchState(table_with(whole, cuts, aim, _has_ends(problem, rows)), rows)
    count = lambda table: keys_reaching(table, problem, large)
    table, rows = _narrowed(state, n_keep, count, problem, most_candidates(problem, large))
    by_key, n_keep = bracket_in(table), _n_keep_in(table, n_keep, problem)
    gathered: dict[int, Gathered] = {}
    if large:
        for i, stack_rows in zip(large, rows, strict=True):
            of_members = problem.stacks[i].of_members
            lo, hi, n_keep_inside = map(of_members, (by_key.lo, by_key.hi, n_keep - by_key.n_hi))
            gathered[i] = gather(problem.stacks[i], stack_rows, lo, hi, n_keep_inside, problem)
        by_key = _narrowed_in(gathered, by_key, n_keep, problem)
    return _with_ties(by_key, gathered, n_keep, problem)


def _narrowed_in(
    gathered: dict[int, Gathered], bracket: Bracket, n_keep: jax.Array, problem: Problem
) -> Bracket:
    """Narrows the brackets further by reading the gathered rows, and all of the other stacks."""
    aim = None
    if problem.is_on_cpu:
        aim = Aim(n_keep, n_read(gathered, bracket.n_lo, problem), bracket.lo)
    state = SearchState(table_to_start(bracket, n_keep, aim, _has_ends(problem)), [])
    count = lambda table: keys_reaching_in(table, gathered, bracket.n_lo, problem)
    return bracket_in(_narrowed(state, n_keep, count, problem)[0])


def _with_ties(
    by_key: Bracket, gathered: dict[int, Gathered], n_keep: jax.Array, problem: Problem
) -> Ended:
    """The cuts that the brackets of keys give, after a search through the order of ties."""
    one, zero = jnp.ones_like(n_keep), jnp.zeros_like(n_keep)
    is_exact = by_key.is_exact(n_keep)
    # Elsewhere a single key is left, and more entries have it than may be kept.
    key = jnp.where(is_exact, by_key.exact_end(n_keep), by_key.lo)
    sizes = jnp.asarray(np.array(problem.pools.sizes), n_keep.dtype)
    end = cut_above_all(sizes * n_keep.dtype.type(problem.n_parts), problem.ties)
    n_tied, n_keep_tied, lo = by_key.n_lo - by_key.n_hi, n_keep - by_key.n_hi, one
    for i, rows in gathered.items():
        stack = problem.stacks[i]
        of_pools = (lo, end, n_tied, n_keep_tied)
        in_row = rows.bracket_of_row(stack.of_members(n_keep_tied))
        lo, end, n_tied, n_keep_tied = (
            stack.in_pools(jnp.where(rows.is_tied, new, stack.of_members(old)), old)
            for old, new in zip(of_pools, in_row, strict=True)
        )
    tied = Bracket(
        lo=jnp.where(is_exact, one, lo),
        hi=end,
        n_lo=jnp.where(is_exact, one, n_tied),
        n_hi=zero,
    )
    n_keep_tied = jnp.where(is_exact, one, n_keep_tied)
    aim = Aim(n_keep_tied, n_compared(gathered, problem), key) if problem.is_on_cpu else None
    state = SearchState(table_to_start(tied, n_keep_tied, aim, _has_ends(problem)), [])
    if problem.is_gpu:
        ranks = [PoolRanks.of(stack, problem) for stack in problem.stacks]
        count = lambda table: ties_reaching_on_gpu(table, key, gathered, ranks, problem)
    else:
        key_in = lambda table: aim_in(table).key if problem.is_on_cpu else key
        count = lambda table: ties_reaching(table, key_in(table), gathered, problem)
    table, _ = _narrowed(state, n_keep_tied, count, problem)
    if problem.is_on_cpu:
        return Ended(None, table)
    return Ended(Cuts(key, bracket_in(table).exact_end(n_keep_tied)))


def _has_ends(problem: Problem, rows: Sequence[Rows] = ()) -> bool:
    """Whether the table of a loop says which cuts the ends of the brackets are."""
    return bool(rows) or not problem.is_on_cpu


def _n_keep_in(table: jax.Array, n_keep: jax.Array, problem: Problem) -> jax.Array:
    """How many entries are to reach the cut; read from the table if it has an aim."""
    return aim_in(table).n_keep if problem.is_on_cpu else n_keep


class SearchState(NamedTuple):
    """The carry of a search loop.

    Attributes:
      table: the brackets, and the cuts of the next pass; see `bracket.py`.
      rows: the rows of each large stack.
    """

    table: jax.Array
    rows: list[Rows]


def _narrowed(
    state: SearchState,
    n_keep: jax.Array,
    count: Callable[[jax.Array], Counted],
    problem: Problem,
    rest: Any = 0,
) -> tuple[jax.Array, list[Rows]]:
    """The table whose brackets have an exact end each, or nothing between their ends.

    Args:
      state: where to start.
      n_keep: how many entries are to reach the cut, [n_pools].
      count: counts how many entries reach each cut of a table; one read of the data.
      problem: the selection.
      rest: brackets with at most this many entries need not be narrowed further, [n_pools].
    """

    def one_pass(state: SearchState) -> SearchState:
        counted = count(state.table)
        # From the counts alone, so that JAX traces one step for all loops.
        counts, wanted = counted.counts, n_keep
        if problem.is_on_cpu:
            counts, wanted = Counts(counts.n), None
        table, rows = step(state.table, counts, wanted), []
        for i, before, row_counts in zip(counted.in_rows, state.rows, counted.rows, strict=True):
            new_ends = problem.stacks[i].of_members(new_ends_in(table))
            rows.append(narrowed_rows(before, row_counts, new_ends))
        return SearchState(table, rows)

    def is_unfinished(state: SearchState) -> jax.Array:
        bracket, wanted = bracket_in(state.table), _n_keep_in(state.table, n_keep, problem)
        n_inside = bracket.n_lo - bracket.n_hi
        return jnp.any(~bracket.is_done(wanted) & (n_inside > jnp.asarray(rest, n_inside.dtype)))

    state = lax.while_loop(is_unfinished, one_pass, state)
    return state.table, state.rows


def _whole_bracket(problem: Problem, n_keep: jax.Array) -> tuple[Bracket, jax.Array]:
    """The bracket of all possible keys, and how many entries to keep, [n_pools]."""
    pools = problem.pools
    dtype = pools.pool_dtype
    sizes = jnp.asarray(np.array(pools.sizes), dtype) * dtype(problem.n_parts)
    n_keep = _clipped(n_keep, [size * problem.n_parts for size in pools.sizes]).astype(dtype)
    above_all = [bits_of(score_dtype).nan_key + 1 for score_dtype in pools.score_dtypes]
    zero = jnp.zeros_like(sizes)
    hi = jnp.asarray(np.array(above_all), dtype)
    return Bracket(lo=zero, hi=hi, n_lo=sizes, n_hi=zero), n_keep


def _clipped(n_keep: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Counts in [0, size], in the dtype that they have, where no comparison can overflow."""
    largest = [min(size, int(jnp.iinfo(n_keep.dtype).max)) for size in sizes]
    with counting(is_wide(n_keep)):
        bounds = jnp.asarray(np.array(largest, n_keep.dtype))
        return jnp.minimum(jnp.maximum(n_keep, jnp.zeros_like(n_keep)), bounds)
