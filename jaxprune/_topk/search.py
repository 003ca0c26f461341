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
from jaxprune._topk.candidates import (
    Gathered,
    Rows,
    all_rows,
    gather,
    large_stacks,
    most_candidates,
    narrowed_rows,
)
from jaxprune._topk.count import Counted, keys_reaching, keys_reaching_in, ties_reaching
from jaxprune._topk.first_cuts import LADDER, N_CUTS, first_cuts
from jaxprune._topk.problem import Problem
from jaxprune._topk.ranks import cut_above_all


class Cuts(NamedTuple):
    """An entry is kept if its key is above `key`, or equal to it and its tie order reaches `tie`.

    One of each per pool, or per member of a stack. `tie` is 1 where all tied entries are kept, as
    every entry reaches it.
    """

    key: jax.Array
    tie: jax.Array


class Bracket(NamedTuple):
    """Where the search stands; every field has one entry per pool.

    `n_lo` entries reach `lo` and `n_hi` reach `hi`, where `n_lo >= n_keep >= n_hi`.
    """

    lo: jax.Array
    hi: jax.Array
    n_lo: jax.Array
    n_hi: jax.Array

    def is_exact(self, n_keep: jax.Array) -> jax.Array:
        """Whether one end of the bracket is reached by exactly `n_keep` entries."""
        return (self.n_lo == n_keep) | (self.n_hi == n_keep)

    def exact_end(self, n_keep: jax.Array) -> jax.Array:
        """The end that exactly `n_keep` entries reach, if there is one; else `hi`."""
        return jnp.where(self.n_lo == n_keep, self.lo, self.hi)


def search(problem: Problem, n_keep: jax.Array, start: jax.Array | None) -> Cuts:
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
        return Cuts(whole.lo, one)
    fraction = n_keep / jnp.maximum(whole.n_lo, 1)
    opening = _clip_inside(whole, first_cuts(fraction.astype(jnp.float32), problem, start))
    if problem.axis_name is not None:
        opening = lax.pmax(opening, problem.axis_name)
    large = large_stacks(problem)
    state = SearchState(whole, opening, [all_rows(problem.stacks[i]) for i in large])
    count = lambda cuts: keys_reaching(cuts, problem, large)
    by_key, rows = _narrowed(state, n_keep, count, problem, most_candidates(problem, large))
    gathered: dict[int, Gathered] = {}
    if large:
        for i, stack_rows in zip(large, rows, strict=True):
            pool_of = problem.stacks[i].pool_of
            lo, hi, n_keep_inside = (
                x[pool_of] for x in (by_key.lo, by_key.hi, n_keep - by_key.n_hi)
            )
            gathered[i] = gather(problem.stacks[i], stack_rows, lo, hi, n_keep_inside, problem)
        by_key = _narrowed_in(gathered, by_key, n_keep, problem)
    return _with_ties(by_key, gathered, n_keep, problem)


def _narrowed_in(
    gathered: dict[int, Gathered], bracket: Bracket, n_keep: jax.Array, problem: Problem
) -> Bracket:
    """Narrows the brackets further by reading the gathered rows, and all of the other stacks."""
    opening = _next_cuts(bracket, n_keep, jnp.zeros(n_keep.shape, bool))
    count = lambda cuts: keys_reaching_in(cuts, gathered, bracket.n_lo, problem)
    return _narrowed(SearchState(bracket, opening, []), n_keep, count, problem)[0]


def _with_ties(
    by_key: Bracket, gathered: dict[int, Gathered], n_keep: jax.Array, problem: Problem
) -> Cuts:
    """The cuts that the brackets of keys give, after a search through the order of ties."""
    one, zero = jnp.ones_like(n_keep), jnp.zeros_like(n_keep)
    is_exact = by_key.is_exact(n_keep)
    # Elsewhere a single key is left, and more entries have it than may be kept.
    key = jnp.where(is_exact, by_key.exact_end(n_keep), by_key.lo)
    sizes = jnp.asarray(np.array(problem.pools.sizes), n_keep.dtype)
    end = cut_above_all(sizes * n_keep.dtype.type(problem.n_parts), problem.ties)
    n_tied, n_keep_tied, lo = by_key.n_lo - by_key.n_hi, n_keep - by_key.n_hi, one
    for i, rows in gathered.items():
        pool_of = problem.stacks[i].pool_of
        of_pools = (lo, end, n_tied, n_keep_tied)
        in_row = rows.bracket_of_row(n_keep_tied[pool_of])
        lo, end, n_tied, n_keep_tied = (
            old.at[pool_of].set(jnp.where(rows.is_tied, new, old[pool_of]))
            for old, new in zip(of_pools, in_row, strict=True)
        )
    tied = Bracket(
        lo=jnp.where(is_exact, one, lo),
        hi=end,
        n_lo=jnp.where(is_exact, one, n_tied),
        n_hi=zero,
    )
    n_keep_tied = jnp.where(is_exact, one, n_keep_tied)
    opening = _next_cuts(tied, n_keep_tied, jnp.zeros(one.shape, bool))
    count = lambda cuts: ties_reaching(cuts, key, gathered, problem)
    by_tie, _ = _narrowed(SearchState(tied, opening, []), n_keep_tied, count, problem)
    return Cuts(key, by_tie.exact_end(n_keep_tied))


class SearchState(NamedTuple):
    """The carry of a search loop.

    Attributes:
      bracket: where the search stands.
      cuts: those of the next pass, [n_pools, N_CUTS].
      rows: the rows of each large stack.
    """

    bracket: Bracket
    cuts: jax.Array
    rows: list[Rows]


def _narrowed(
    state: SearchState,
    n_keep: jax.Array,
    count: Callable[[jax.Array], Counted],
    problem: Problem,
    rest: Any = 0,
) -> tuple[Bracket, list[Rows]]:
    """Narrows every bracket until one of its ends is exact, or nothing lies between the two.

    Args:
      state: where to start.
      n_keep: how many entries are to reach the cut, [n_pools].
      count: counts how many entries reach each cut; one read of the data.
      problem: the selection.
      rest: brackets with at most so many entries need not be narrowed further, [n_pools].
    """

    def is_done(bracket: Bracket) -> jax.Array:
        return bracket.is_exact(n_keep) | (bracket.hi - bracket.lo <= jnp.ones_like(bracket.lo))

    def one_pass(state: SearchState) -> SearchState:
        old, counted = state.bracket, count(state.cuts)
        new, enough, few = _narrow(old, state.cuts, counted.counts, n_keep, is_done(old))
        n_sections = jnp.full_like(old.lo, N_CUTS + 1)
        narrowed_little = (new.hi - new.lo) > (old.hi - old.lo) // n_sections
        rows = []
        for i, before, row_counts in zip(counted.in_rows, state.rows, counted.rows, strict=True):
            pool_of = problem.stacks[i].pool_of
            rows.append(narrowed_rows(before, row_counts, enough[pool_of], few[pool_of]))
        return SearchState(new, _next_cuts(new, n_keep, narrowed_little), rows)

    def is_unfinished(state: SearchState) -> jax.Array:
        n_inside = state.bracket.n_lo - state.bracket.n_hi
        return jnp.any(~is_done(state.bracket) & (n_inside > jnp.asarray(rest, n_inside.dtype)))

    state = lax.while_loop(is_unfinished, one_pass, state)
    return state.bracket, state.rows


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


def _next_cuts(b: Bracket, n_keep: jax.Array, is_even: jax.Array) -> jax.Array:
    """Cuts inside each bracket, [n_pools, N_CUTS]: interpolated from the counts, or evenly spread.

    The interpolation assumes that entries are uniform within the bracket. Then the number of them
    in the first `x` of its width is binomial, which gives the expected place of the wanted count
    and its standard deviation; the cuts are spread around that place in multiples of it.

    Args:
      b: the brackets.
      n_keep: how many entries are to reach the cut, [n_pools].
      is_even: whether to divide the bracket evenly, because the last pass narrowed it little.
    """
    n_sections = jnp.asarray(N_CUTS + 1, b.lo.dtype)
    step = (b.hi - b.lo + n_sections - 1) // n_sections
    even = b.lo[:, None] + step[:, None] * jnp.arange(1, N_CUTS + 1, dtype=b.lo.dtype)[None, :]
    real = jnp.float64 if b.lo.dtype == jnp.uint64 else jnp.float32
    width, n_inside, n_below = (
        x.astype(real) for x in (b.hi - b.lo, b.n_lo - b.n_hi, b.n_lo - n_keep)
    )
    per_entry = width / jnp.maximum(n_inside, 1)
    variance = n_below * jnp.maximum(n_inside - n_below, 0) / jnp.maximum(n_inside, 1)
    spread = jnp.maximum(per_entry * jnp.sqrt(variance), 1)
    offset = (per_entry * n_below)[:, None] + spread[:, None] * jnp.asarray(LADDER, real)[None, :]
    # Rounding may carry the width just past the integer type; anything past `hi` is clipped below.
    offset = jnp.clip(offset, 0, (width * (1 - 2.0**-20))[:, None]).astype(b.lo.dtype)
    return _clip_inside(b, jnp.where(is_even[:, None], even, b.lo[:, None] + offset))


def _clip_inside(b: Bracket, cuts: jax.Array) -> jax.Array:
    """Clips the cuts to the inside of each bracket."""
    return jnp.clip(cuts, b.lo[:, None] + jnp.ones_like(cuts), b.hi[:, None] - jnp.ones_like(cuts))


def _narrow(
    old: Bracket, cuts: jax.Array, counts: jax.Array, n_keep: jax.Array, is_done: jax.Array
) -> tuple[Bracket, jax.Array, jax.Array]:
    """The brackets after one pass, and which cuts may be their lower and their upper ends.

    Those that are done stay the same.

    Args:
      old: the brackets before the pass.
      cuts: [n_pools, N_CUTS].
      counts: [n_pools, N_CUTS], how many entries reach each cut.
      n_keep: how many entries are to reach the cut, [n_pools].
      is_done: [n_pools].
    """
    # One reduction over the cuts and both ends makes all four fields: one kernel instead of eight.
    cuts = jnp.concatenate([old.lo[:, None], cuts, old.hi[:, None]], axis=1)
    counts = jnp.concatenate([old.n_lo[:, None], counts, old.n_hi[:, None]], axis=1)
    column = np.arange(N_CUTS + 2)[None]
    is_used = ~is_done[:, None] | (column == 0) | (column == N_CUTS + 1)
    enough = (counts >= n_keep[:, None]) & is_used & (column <= N_CUTS)
    few = (counts <= n_keep[:, None]) & is_used & (column > 0)
    zero, most = (np.dtype(cuts.dtype).type(x) for x in (0, np.iinfo(np.dtype(cuts.dtype)).max))
    lo, hi, n_lo, n_hi = lax.reduce(
        (
            jnp.where(enough, cuts, zero),
            jnp.where(few, cuts, most),
            jnp.where(enough, counts, most),
            jnp.where(few, counts, zero),
        ),
        (zero, most, most, zero),
        lambda a, b: tuple(f(x, y) for f, x, y in zip(_ENDS, a, b, strict=True)),
        (1,),
    )
    return Bracket(lo, hi, n_lo, n_hi), enough[:, 1:-1], few[:, 1:-1]


# How the fields of a bracket follow from the cuts that are candidates for them.
_ENDS = (lax.max, lax.min, lax.min, lax.max)
