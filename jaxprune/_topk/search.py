"""The search for the cuts: brackets that narrow by counts until each holds what is wanted.

Every pool has a bracket of keys with known counts on both sides. A pass places a few cuts inside
each bracket, counts how many entries reach each of them, and keeps the part that holds the wanted
count. All pools advance together, in one loop.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import count_each, count_rows, per_member
from jaxprune._base.float_bits import bits_of
from jaxprune._base.sharding import in_lanes, summed_in_shards
from jaxprune._topk.first_cuts import LADDER, N_CUTS, opening_cuts
from jaxprune._topk.stacks import (
    Group,
    Stack,
    bases,
    first_ranks,
    member_sizes,
    parts_of,
    place_cuts,
    ranks,
    tied_places,
)


class Cuts(NamedTuple):
    """Kept is what has `key > value`, or `key == value` and `rank >= cut`. One entry per pool."""

    value: jax.Array
    cut: jax.Array


class _Bracket(NamedTuple):
    """One step of the search; every field has one entry per pool.

    The digit searched is the key at first, and the rank among equal keys once the key is settled.
    Of the entries still in play, `n_lo >= want` have a digit `>= lo`, and `n_hi <= want` have one
    `>= hi`.
    """

    lo: jax.Array
    hi: jax.Array
    n_lo: jax.Array
    n_hi: jax.Array
    want: jax.Array
    on_rank: jax.Array
    even: jax.Array  # the last pass narrowed little: the next one cuts evenly, which bounds them
    done: jax.Array
    cuts: Cuts


def search(
    keys: Callable[[Any, Any], jax.Array],
    stacks: Sequence[Stack],
    group: Group,
    n_keep: jax.Array,
    start: jax.Array | None,
    ties: str,
    one_device: bool,
    axis_name: Any,
) -> Cuts:
    """Narrows all brackets together until each holds exactly the wanted count.

    With `axis_name` every member of a mapped axis has a part of each pool: counts are summed over
    it, so that all of them find the same cuts.
    """
    bracket, end = _whole(group, n_keep, parts_of(axis_name), ties)
    if not stacks:  # empty leaves only: nothing to find
        return bracket.cuts
    part = bracket.want / jnp.maximum(bracket.n_lo, 1)
    opening = opening_cuts(
        part.astype(jnp.float32), keys, stacks if one_device else [], group, start
    )
    opening = _inside(bracket, opening)
    if axis_name is not None:
        opening = lax.pmax(opening, axis_name)

    def one_pass(carry: tuple[_Bracket, jax.Array]) -> tuple[_Bracket, jax.Array]:
        bracket, first = carry
        cuts = jnp.where(first, opening, _next_cuts(bracket))
        counts = _count(cuts, bracket, keys, stacks, group, ties, one_device, axis_name)
        return _narrow(bracket, cuts, counts, end), jnp.zeros_like(first)

    first = jnp.ones((), bool)
    bracket, _ = lax.while_loop(lambda c: jnp.any(~c[0].done), one_pass, (bracket, first))
    return bracket.cuts


def _whole(group: Group, n_keep: jax.Array, n_parts: int, ties: str) -> tuple[_Bracket, jax.Array]:
    """The bracket of all that a key may be, and where a search for a rank ends, [n_pools]."""
    key_dtype = group.key_dtype
    sizes = jnp.asarray(np.array(group.pool_sizes), key_dtype) * key_dtype(n_parts)
    signed = jnp.int64 if key_dtype == jnp.uint64 else jnp.int32
    want = jnp.clip(n_keep.astype(signed), 0, sizes.astype(signed)).astype(key_dtype)
    zero = jnp.zeros_like(sizes)
    hi = jnp.asarray(np.array([_beyond(dtype) for dtype in group.floats]), key_dtype)
    no = jnp.zeros(sizes.shape, bool)
    all_kept = want == sizes
    cuts = Cuts(value=jnp.where(all_kept, zero, hi), cut=zero)
    bracket = _Bracket(zero, hi, sizes, zero, want, no, no, all_kept | (want == 0), cuts)
    is_hashed = ties == "hashed"
    end = jnp.full_like(sizes, np.iinfo(np.uint32).max) if is_hashed else sizes + key_dtype(1)
    return bracket, end


def _count(
    cuts: jax.Array,
    bracket: _Bracket,
    keys: Callable[[Any, Any], jax.Array],
    stacks: Sequence[Stack],
    group: Group,
    ties: str,
    one_device: bool,
    axis_name: Any,
) -> jax.Array:
    """One pass: how many entries of each pool reach each of its cuts, [n_pools, n_cuts]."""
    # The barrier ties the read to the loop's own values. Without it XLA computes keys and ranks
    # once outside the loop and keeps them: several times the memory, and slower.
    sizes = [member_sizes(stack, group) for stack in stacks]
    xs, sizes, cuts, bracket, first = lax.optimization_barrier(
        ([stack.x for stack in stacks], sizes, cuts, bracket, first_ranks(group, axis_name))
    )
    digits, theirs = [], []
    for stack, x, size in zip(stacks, xs, sizes, strict=True):
        base = bases(stack, first)
        on_rank, value = bracket.on_rank[stack.pools], bracket.cuts.value[stack.pools]
        digits.append(_digits(keys(*x), stack, size, base, on_rank, value, ties))
        through = place_cuts(cuts[stack.pools], base, size, ties)
        by_key = cuts[stack.pools].astype(size.dtype)
        theirs.append(jnp.where(on_rank[:, None], through, by_key))
    total = _totals(digits, theirs, stacks, group, one_device)
    if axis_name is None:
        return total
    add = lambda x: lax.psum(x, axis_name)
    return in_lanes(add, total, max(group.pool_sizes), parts_of(axis_name), total.dtype)


def _digits(
    key: jax.Array,
    stack: Stack,
    size: jax.Array,
    base: jax.Array,
    on_rank: jax.Array,
    value: jax.Array,
    ties: str,
) -> jax.Array:
    """What is searched in each entry: its key, or its place among those that have this `value`."""
    zero, one = key.dtype.type(0), key.dtype.type(1)
    rank = ranks(key.shape, size)
    tied = key == per_member(value.astype(key.dtype), key.ndim)
    place = jnp.where(tied, tied_places(rank, base, ties), zero)
    digit = jnp.where(per_member(on_rank, key.ndim), place, key)
    if math.prod(key.shape[1:]) > stack.size:  # the padding of rows, whose ranks run on
        digit = jnp.where(rank - one < per_member(size, key.ndim), digit, zero)
    return digit


def _beyond(dtype: Any) -> int:
    """A key that no score of this dtype has."""
    _, sign, infinity = bits_of(dtype)
    return (sign | infinity) + 2


def _next_cuts(b: _Bracket) -> jax.Array:
    """Cuts inside each bracket, [n_pools, n_cuts]: where the counts point, or evenly spread.

    Within a bracket the digits are taken as uniform. The number of them among the first `x` of the
    bracket's width is then binomial, which gives both the expected place of the wanted count and
    the standard deviation by which the ladder spreads the cuts.
    """
    n_cuts = jnp.asarray(N_CUTS + 1, b.lo.dtype)
    step = (b.hi - b.lo + n_cuts - 1) // n_cuts
    even = b.lo[:, None] + step[:, None] * jnp.arange(1, N_CUTS + 1, dtype=b.lo.dtype)[None, :]
    real = jnp.float64 if b.lo.dtype == jnp.uint64 else jnp.float32
    width, n_in, n_below = (
        (a).astype(real) for a in (b.hi - b.lo, b.n_lo - b.n_hi, b.n_lo - b.want)
    )
    per_entry = width / jnp.maximum(n_in, 1)
    deviation = jnp.sqrt(n_below * jnp.maximum(n_in - n_below, 0) / jnp.maximum(n_in, 1))
    spread = jnp.maximum(per_entry * deviation, 1)
    offset = (per_entry * n_below)[:, None] + spread[:, None] * jnp.asarray(LADDER, real)[None, :]
    # Rounding may carry the width just past the integer type; anything past `hi` is clipped below.
    offset = jnp.clip(offset, 0, (width * (1 - 2.0**-20))[:, None]).astype(b.lo.dtype)
    return _inside(b, jnp.where(b.even[:, None], even, b.lo[:, None] + offset))


def _inside(b: _Bracket, cuts: jax.Array) -> jax.Array:
    return jnp.clip(cuts, b.lo[:, None] + jnp.ones_like(cuts), b.hi[:, None] - jnp.ones_like(cuts))


def _narrow(b: _Bracket, cuts: jax.Array, counts: jax.Array, end: jax.Array) -> _Bracket:
    """The bracket after one pass; a pool is done when some cut holds exactly the wanted count.

    `end` is where the search for a rank ends: no tied entry has a place that large.
    """
    most = np.iinfo(np.dtype(b.lo.dtype)).max
    enough, few = counts >= b.want[:, None], counts <= b.want[:, None]
    lo = jnp.maximum(b.lo, jnp.max(jnp.where(enough, cuts, jnp.zeros_like(cuts)), axis=1))
    hi = jnp.minimum(b.hi, jnp.min(jnp.where(few, cuts, jnp.full_like(cuts, most)), axis=1))
    n_lo = jnp.minimum(
        b.n_lo, jnp.min(jnp.where(enough, counts, jnp.full_like(counts, most)), axis=1)
    )
    n_hi = jnp.maximum(b.n_hi, jnp.max(jnp.where(few, counts, jnp.zeros_like(counts)), axis=1))
    one = jnp.ones_like(lo)
    hit_lo, hit_hi = n_lo == b.want, n_hi == b.want
    at = jnp.where(hit_lo, lo, hi)
    hit = hit_lo | hit_hi
    # The key is settled and more entries share it than are wanted: go on with their ranks.
    tied = ~hit & ~b.on_rank & (hi - lo == one)
    value = jnp.where(b.on_rank, b.cuts.value, jnp.where(hit, at, lo))
    new = _Bracket(
        lo=jnp.where(tied, one, lo),
        hi=jnp.where(tied, end, hi),
        n_lo=jnp.where(tied, n_lo - n_hi, n_lo),
        n_hi=jnp.where(tied, jnp.zeros_like(n_hi), n_hi),
        want=jnp.where(tied, b.want - n_hi, b.want),
        on_rank=b.on_rank | tied,
        even=~tied & ((hi - lo) > (b.hi - b.lo) // jnp.full_like(lo, N_CUTS + 1)),
        done=hit,
        cuts=Cuts(value, jnp.where(b.on_rank & hit, at, jnp.zeros_like(at))),
    )
    return jax.tree.map(lambda new, old: jnp.where(b.done, old, new), new, b)


def _totals(
    digits: Sequence[jax.Array],
    cuts: Sequence[jax.Array],
    stacks: Sequence[Stack],
    group: Group,
    one_device: bool,
) -> jax.Array:
    """How many entries of each pool are >= each of its cuts, [n_pools, n_cuts].

    Args:
      digits: of each stack, [n_members, ...].
      cuts: of each stack, [n_members, n_cuts].
      stacks: where the members belong.
      group: the pools.
      one_device: whether axes may be merged.
    """

    def add_up(digits: Any, once: Any, cuts: Any) -> jax.Array:
        total = jnp.zeros((len(group.pool_sizes), N_CUTS), group.key_dtype)
        for i, stack in enumerate(stacks):
            counts = _count_reaching(digits[i], cuts[i], stack, group.key_dtype, once, one_device)
            pools = stack.pools[: len(counts)]
            total = total.at[pools].add(counts if once is None else once(i, counts))
        return total

    return summed_in_shards(add_up, digits, cuts)


def _count_reaching(
    digit: jax.Array, cuts: jax.Array, stack: Stack, dtype: Any, once: Any, one_device: bool
) -> jax.Array:
    """How many entries of each member are >= each of its cuts, [n_members, n_cuts].

    Slices of a leaf are counted as one member.
    """
    flags = [digit >= per_member(cuts[:, j], digit.ndim) for j in range(N_CUTS)]
    if stack.is_sliced:
        flags = [jnp.expand_dims(flag, 0) for flag in flags]
    elif one_device:
        return count_rows(flags, dtype)
    return count_each(flags, dtype, one_device or once is not None)
