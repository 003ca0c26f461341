"""The search for the cuts that keep exactly the wanted number of entries in each pool.

Every pool has a bracket: a range of keys, with the number of entries that reach its lower end and
its upper end. A pass places a few cuts inside each bracket, counts the entries that reach each cut,
and narrows the bracket to the part that contains the wanted count. All pools advance together, in
one loop. Where more entries share the last key than may be kept, the search goes on through the
order of these tied entries.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import count_each, count_rows, counting, is_wide, per_member
from jaxprune._base.float_bits import bits_of
from jaxprune._base.sharding import SumOnce, in_lanes, summed_in_shards
from jaxprune._topk.first_cuts import LADDER, N_CUTS, first_cuts
from jaxprune._topk.problem import Problem
from jaxprune._topk.ranks import (
    Members,
    cut_above_all,
    cuts_in_members,
    first_ranks,
    member_bases,
    member_sizes,
    ranks_in_member,
    tie_order,
)
from jaxprune._topk.stacks import Stack


class Cuts(NamedTuple):
    """An entry is kept if its key is above `key`, or equal to it and its tie order reaches `tie`.

    One of each per pool, or per member of a stack.
    """

    key: jax.Array
    tie: jax.Array


class Bracket(NamedTuple):
    """Where the search stands; every field has one entry per pool.

    The search compares codes: the key of an entry, or, when the pool `is_tied`, the tie order of
    the entries whose key is `cuts.key`, and 0 for all others. `n_lo` entries have a code `>= lo`
    and `n_hi` have one `>= hi`, where `n_lo >= n_keep >= n_hi`.
    """

    lo: jax.Array
    hi: jax.Array
    n_lo: jax.Array
    n_hi: jax.Array
    n_keep: jax.Array  # how many entries to keep of those that the codes tell apart
    is_tied: jax.Array  # the key is settled, and the search is among the entries that have it
    is_even: jax.Array  # the last pass narrowed little, so the next one divides the bracket evenly
    is_done: jax.Array
    cuts: Cuts


class SearchState(NamedTuple):
    """The carry of the search loop."""

    bracket: Bracket
    is_first: jax.Array  # whether the next pass is the first one


def search(problem: Problem, n_keep: jax.Array, start: jax.Array | None) -> Cuts:
    """Finds cuts that keep exactly `n_keep` entries of each pool.

    With a mapped axis, counts are summed over it, so every one of its members gets the same cuts.

    Args:
      problem: the selection.
      n_keep: integer[n_pools], clipped to [0, entries of the pool].
      start: float[n_pools], thresholds to start from, or None.
    """
    bracket, tie_end = _whole_bracket(problem, n_keep)
    if not problem.stacks:  # all leaves are empty
        return bracket.cuts
    fraction = bracket.n_keep / jnp.maximum(bracket.n_lo, 1)
    opening = _clip_inside(bracket, first_cuts(fraction.astype(jnp.float32), problem, start))
    if problem.axis_name is not None:
        opening = lax.pmax(opening, problem.axis_name)

    def one_pass(state: SearchState) -> SearchState:
        cuts = jnp.where(state.is_first, opening, _next_cuts(state.bracket))
        counts = _count_pass(cuts, state.bracket, problem)
        bracket = _narrow(state.bracket, cuts, counts, tie_end)
        return SearchState(bracket, jnp.zeros_like(state.is_first))

    state = SearchState(bracket, is_first=jnp.ones((), bool))
    state = lax.while_loop(lambda state: jnp.any(~state.bracket.is_done), one_pass, state)
    return state.bracket.cuts


def _whole_bracket(problem: Problem, n_keep: jax.Array) -> tuple[Bracket, jax.Array]:
    """The bracket of all possible keys, and the upper end of a search among ties, [n_pools]."""
    pools = problem.pools
    dtype = pools.pool_dtype
    sizes = jnp.asarray(np.array(pools.sizes), dtype) * dtype(problem.n_parts)
    n_keep = _clipped(n_keep, [size * problem.n_parts for size in pools.sizes]).astype(dtype)
    zero = jnp.zeros_like(sizes)
    above_all = [bits_of(score_dtype).nan_key + 1 for score_dtype in pools.score_dtypes]
    hi = jnp.asarray(np.array(above_all), dtype)
    no = jnp.zeros(sizes.shape, bool)
    all_kept = n_keep == sizes
    bracket = Bracket(
        lo=zero,
        hi=hi,
        n_lo=sizes,
        n_hi=zero,
        n_keep=n_keep,
        is_tied=no,
        is_even=no,
        cuts=Cuts(key=jnp.where(all_kept, zero, hi), tie=zero),
        is_done=all_kept | (n_keep == 0),
    )
    return bracket, cut_above_all(sizes, problem.ties)


def _clipped(n_keep: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Counts in [0, size], in the dtype that they have, where no comparison can overflow."""
    largest = [min(size, int(jnp.iinfo(n_keep.dtype).max)) for size in sizes]
    with counting(is_wide(n_keep)):
        bounds = jnp.asarray(np.array(largest, n_keep.dtype))
        return jnp.minimum(jnp.maximum(n_keep, jnp.zeros_like(n_keep)), bounds)


def _next_cuts(b: Bracket) -> jax.Array:
    """Cuts inside each bracket, [n_pools, N_CUTS]: interpolated from the counts, or evenly spread.

    The interpolation assumes codes that are uniform within the bracket. Then the number of codes
    in the first `x` of its width is binomial, which gives the expected place of the wanted count
    and its standard deviation; the cuts are spread around that place in multiples of it.
    """
    n_sections = jnp.asarray(N_CUTS + 1, b.lo.dtype)
    step = (b.hi - b.lo + n_sections - 1) // n_sections
    even = b.lo[:, None] + step[:, None] * jnp.arange(1, N_CUTS + 1, dtype=b.lo.dtype)[None, :]
    real = jnp.float64 if b.lo.dtype == jnp.uint64 else jnp.float32
    width, n_inside, n_below = (
        x.astype(real) for x in (b.hi - b.lo, b.n_lo - b.n_hi, b.n_lo - b.n_keep)
    )
    per_entry = width / jnp.maximum(n_inside, 1)
    variance = n_below * jnp.maximum(n_inside - n_below, 0) / jnp.maximum(n_inside, 1)
    spread = jnp.maximum(per_entry * jnp.sqrt(variance), 1)
    offset = (per_entry * n_below)[:, None] + spread[:, None] * jnp.asarray(LADDER, real)[None, :]
    # Rounding may carry the width just past the integer type; anything past `hi` is clipped below.
    offset = jnp.clip(offset, 0, (width * (1 - 2.0**-20))[:, None]).astype(b.lo.dtype)
    return _clip_inside(b, jnp.where(b.is_even[:, None], even, b.lo[:, None] + offset))


def _clip_inside(b: Bracket, cuts: jax.Array) -> jax.Array:
    """Clips the cuts to the inside of each bracket."""
    return jnp.clip(cuts, b.lo[:, None] + jnp.ones_like(cuts), b.hi[:, None] - jnp.ones_like(cuts))


def _narrow(b: Bracket, cuts: jax.Array, counts: jax.Array, tie_end: jax.Array) -> Bracket:
    """The brackets after one pass; a pool is done when a cut has exactly the wanted count.

    Args:
      b: the brackets before the pass.
      cuts: [n_pools, N_CUTS].
      counts: [n_pools, N_CUTS], how many entries reach each cut.
      tie_end: [n_pools], above the tie order of every entry.
    """
    most = np.iinfo(np.dtype(b.lo.dtype)).max
    enough, few = counts >= b.n_keep[:, None], counts <= b.n_keep[:, None]
    lo = jnp.maximum(b.lo, jnp.max(jnp.where(enough, cuts, jnp.zeros_like(cuts)), axis=1))
    hi = jnp.minimum(b.hi, jnp.min(jnp.where(few, cuts, jnp.full_like(cuts, most)), axis=1))
    n_lo = jnp.minimum(
        b.n_lo, jnp.min(jnp.where(enough, counts, jnp.full_like(counts, most)), axis=1)
    )
    n_hi = jnp.maximum(b.n_hi, jnp.max(jnp.where(few, counts, jnp.zeros_like(counts)), axis=1))
    one = jnp.ones_like(lo)
    exact_lo, exact_hi = n_lo == b.n_keep, n_hi == b.n_keep
    exact_cut = jnp.where(exact_lo, lo, hi)
    is_exact = exact_lo | exact_hi
    # Only one key is left, and more entries have it than may be kept.
    starts_ties = ~is_exact & ~b.is_tied & (hi - lo == one)
    key = jnp.where(b.is_tied, b.cuts.key, jnp.where(is_exact, exact_cut, lo))
    new = Bracket(
        lo=jnp.where(starts_ties, one, lo),
        hi=jnp.where(starts_ties, tie_end, hi),
        n_lo=jnp.where(starts_ties, n_lo - n_hi, n_lo),
        n_hi=jnp.where(starts_ties, jnp.zeros_like(n_hi), n_hi),
        n_keep=jnp.where(starts_ties, b.n_keep - n_hi, b.n_keep),
        is_tied=b.is_tied | starts_ties,
        is_even=~starts_ties & ((hi - lo) > (b.hi - b.lo) // jnp.full_like(lo, N_CUTS + 1)),
        is_done=is_exact,
        cuts=Cuts(key, jnp.where(b.is_tied & is_exact, exact_cut, jnp.zeros_like(exact_cut))),
    )
    return jax.tree.map(lambda new, old: jnp.where(b.is_done, old, new), new, b)


def _count_pass(cuts: jax.Array, bracket: Bracket, problem: Problem) -> jax.Array:
    """Counts how many entries of each pool reach each of its cuts, [n_pools, N_CUTS]."""
    # The barrier ties the read to the loop's own values. Without it XLA computes keys and ranks
    # once outside the loop and keeps them: several times the memory, and slower.
    xs = [stack.x for stack in problem.stacks]
    sizes = [member_sizes(stack, problem.pools) for stack in problem.stacks]
    xs, sizes, cuts, bracket, first = lax.optimization_barrier(
        (xs, sizes, cuts, bracket, first_ranks(problem))
    )
    codes, member_cuts = [], []
    for stack, x, size in zip(problem.stacks, xs, sizes, strict=True):
        members = Members(member_bases(stack, first), size)
        is_tied, tied_key = bracket.is_tied[stack.pool_of], bracket.cuts.key[stack.pool_of]
        codes.append(_codes(stack._replace(x=x), members, is_tied, tied_key, problem))
        by_tie = cuts_in_members(cuts[stack.pool_of], members, problem.ties)
        by_key = cuts[stack.pool_of].astype(size.dtype)
        member_cuts.append(jnp.where(is_tied[:, None], by_tie, by_key))
    counts = _pool_counts(codes, member_cuts, problem)
    if problem.axis_name is None:
        return counts
    add = lambda x: lax.psum(x, problem.axis_name)
    return in_lanes(add, counts, max(problem.pools.sizes), problem.n_parts, counts.dtype)


def _codes(
    stack: Stack, members: Members, is_tied: jax.Array, tied_key: jax.Array, problem: Problem
) -> jax.Array:
    """The code of each entry of a stack (see `Bracket`), [n_members, ...]."""
    key = problem.key_of(*stack.x)
    zero, one = key.dtype.type(0), key.dtype.type(1)
    rank = ranks_in_member(key.shape, members.size)
    has_tied_key = key == per_member(tied_key.astype(key.dtype), key.ndim)
    order = jnp.where(has_tied_key, tie_order(rank, members.base, problem.ties), zero)
    code = jnp.where(per_member(is_tied, key.ndim), order, key)
    if math.prod(key.shape[1:]) > stack.size:  # rows are padded; their ranks wrap below 1
        code = jnp.where(rank - one < per_member(members.size, key.ndim), code, zero)
    return code


def _pool_counts(
    codes: list[jax.Array], member_cuts: list[jax.Array], problem: Problem
) -> jax.Array:
    """Counts how many codes of each pool are >= each of its cuts, [n_pools, N_CUTS].

    Args:
      codes: of each stack, [n_members, ...].
      member_cuts: of each stack, [n_members, N_CUTS].
      problem: the selection.
    """

    def add_up(
        codes: list[jax.Array], once: SumOnce | None, member_cuts: list[jax.Array]
    ) -> jax.Array:
        total = jnp.zeros((len(problem.pools.sizes), N_CUTS), problem.pools.pool_dtype)
        for i, stack in enumerate(problem.stacks):
            counts = _count_reaching(codes[i], member_cuts[i], stack, problem, once is not None)
            pool_of = stack.pool_of[: len(counts)]
            total = total.at[pool_of].add(counts if once is None else once(i, counts))
        return total

    return summed_in_shards(add_up, codes, member_cuts)


def _count_reaching(
    codes: jax.Array, cuts: jax.Array, stack: Stack, problem: Problem, in_shard: bool
) -> jax.Array:
    """Counts how many codes of each member are >= each of its cuts, [n_members, N_CUTS].

    The slices of a long leaf are counted as one member: they belong to the same pool.
    """
    dtype = problem.pools.pool_dtype
    flags = [codes >= per_member(cuts[:, j], codes.ndim) for j in range(N_CUTS)]
    if stack.is_sliced:
        flags = [jnp.expand_dims(flag, 0) for flag in flags]
    elif problem.one_device:
        return count_rows(flags, dtype)
    return count_each(flags, dtype, problem.one_device or in_shard)
