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

from jaxprune.count import count_each, count_rows, per_member
from jaxprune.floats import bits_of, order_key
from jaxprune.placement import in_lanes, summed_in_shards
from jaxprune.stack import (
    Group,
    Stack,
    bases,
    first_ranks,
    parts_of,
    place_cuts,
    ranks,
    tied_places,
)

# Thresholds counted in one read. XLA CPU fuses up to 15 reduction operands; 7 cost about one memory
# read.
_N_CUTS = 7
# Where the cuts of an interpolated pass lie around the expected place, in standard deviations.
_LADDER = np.array([-3.5, -1.1, -0.35, 0.0, 0.35, 1.1, 3.5], np.float32)
# Leaves of this many entries are worth sampling for the first cuts, and this many are sampled.
_SAMPLED, _SAMPLE = 2**17, 2**13
# The sample comes from so many rows at most.
_SAMPLED_ROWS = 2**10
# Where the cuts of a warm start lie around the last threshold, as key distances of a float32: about
# 12%, 1.6% and 0.2% of the threshold on either side.
_WARM = np.array([-(2**20), -(2**17), -(2**14), 0, 2**14, 2**17, 2**20], np.int64)


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
    key_dtype = group.key_dtype
    first_rank = first_ranks(group, axis_name)
    n_parts = parts_of(axis_name)
    sizes = jnp.asarray(np.array(group.pool_sizes), key_dtype) * key_dtype(n_parts)
    signed = jnp.int64 if key_dtype == jnp.uint64 else jnp.int32
    want = jnp.clip(n_keep.astype(signed), 0, sizes.astype(signed)).astype(key_dtype)
    zero = jnp.zeros_like(sizes)
    hi = jnp.asarray(np.array([_beyond(dtype) for dtype in group.floats]), key_dtype)
    no = jnp.zeros(sizes.shape, bool)
    # One more than the largest place that a tied entry may have.
    places = sizes + jnp.ones_like(sizes)
    if ties == "hashed":
        places = jnp.full_like(sizes, np.iinfo(np.uint32).max)
    all_kept = want == sizes
    cuts = Cuts(value=jnp.where(all_kept, zero, hi), cut=zero)
    bracket = _Bracket(zero, hi, sizes, zero, want, no, no, all_kept | (want == 0), cuts)
    opening = _opening(bracket, keys, stacks if one_device else [], group, start, sizes)
    if axis_name is not None:
        opening = lax.pmax(opening, axis_name)

    def count(cuts: jax.Array, bracket: _Bracket) -> jax.Array:
        # The barrier ties the read to the loop's own values. Without it XLA computes keys and ranks
        # once outside the loop and keeps them: several times the memory, and slower.
        sizes = [jnp.full(s.pools.shape, s.size, group.entry_dtype) for s in stacks]
        mine = cuts, bracket.cuts.value, bracket.on_rank, first_rank
        inside = ([stack.x for stack in stacks], sizes, *mine)
        xs, sizes, cuts, value, on_rank, first = lax.optimization_barrier(inside)
        digits, theirs = [], []
        for stack, x, size in zip(stacks, xs, sizes, strict=True):
            base, pools = bases(stack, first), stack.pools
            key = keys(*x)
            rank = ranks(key.shape, size)
            tied = key == per_member(value[pools].astype(key.dtype), key.ndim)
            place = jnp.where(tied, tied_places(rank, base, ties), key.dtype.type(0))
            digit = jnp.where(per_member(on_rank[pools], key.ndim), place, key)
            if math.prod(key.shape[1:]) > stack.size:  # the padding of rows, whose ranks run on
                is_entry = rank - key.dtype.type(1) < per_member(size, key.ndim)
                digit = jnp.where(is_entry, digit, key.dtype.type(0))
            digits.append(digit)
            by_place = place_cuts(cuts[pools], base, size, ties)
            by_key = cuts[pools].astype(key.dtype)
            theirs.append(jnp.where(on_rank[pools][:, None], by_place, by_key))
        total = _totals(digits, theirs, stacks, group, one_device)
        if axis_name is None:
            return total
        add = lambda x: lax.psum(x, axis_name)
        return in_lanes(add, total, max(group.pool_sizes), n_parts, total.dtype)

    if not stacks:  # empty leaves only: nothing to find
        return bracket.cuts

    def one_pass(carry: tuple[_Bracket, jax.Array]) -> tuple[_Bracket, jax.Array]:
        bracket, first = carry
        cuts = jnp.where(first, opening, _next_cuts(bracket))
        return _narrow(bracket, cuts, count(cuts, bracket), places), jnp.zeros_like(first)

    first = jnp.ones((), bool)
    bracket, _ = lax.while_loop(lambda c: jnp.any(~c[0].done), one_pass, (bracket, first))
    return bracket.cuts


def _beyond(dtype: Any) -> int:
    """A key that no score of this dtype has."""
    _, sign, infinity = bits_of(dtype)
    return (sign | infinity) + 2


def _opening(
    bracket: _Bracket,
    keys: Callable[[Any, Any], jax.Array],
    stacks: Sequence[Stack],
    group: Group,
    start: jax.Array | None,
    pool_sizes: jax.Array,
) -> jax.Array:
    """Cuts of the first pass: around a sample's quantiles, else around `start`, else evenly spread.

    The sample comes first because the last threshold goes stale: with a tenth more to drop it costs
    5 to 8 passes over 1e7 weights, where a sample of today's weights costs 3 to 6.
    """
    rows = []
    for dtype in group.floats:
        _, sign, infinity = bits_of(dtype)  # the keys of the non-negative
        rows.append([sign + infinity * i // (_N_CUTS + 1) for i in range(1, _N_CUTS + 1)])
    opening = jnp.asarray(np.array(rows, np.dtype(group.key_dtype)))
    if start is not None:
        steps = np.stack([_warm_steps(dtype, group.key_dtype) for dtype in group.floats])
        warm = jnp.zeros_like(opening)
        for dtype in dict.fromkeys(group.floats):  # not by pool: that is a kernel for each
            mine = np.array([other == dtype for other in group.floats])[:, None]
            key = order_key(start.astype(dtype)).astype(group.key_dtype)[:, None]
            warm = jnp.where(mine, key + steps, warm)
        usable = jnp.isfinite(start) & (start != 0)
        opening = jnp.where(usable[:, None], warm, opening)
    pools, samples = _samples(keys, stacks, group)
    if samples:
        part = 1 - (bracket.want / jnp.maximum(pool_sizes, 1)).astype(jnp.float32)[pools]
        opening = opening.at[pools].set(_quantile_cuts(jnp.concatenate(samples), part))
    return _inside(bracket, opening)


def _samples(
    keys: Callable[[Any, Any], jax.Array], stacks: Sequence[Stack], group: Group
) -> tuple[np.ndarray, list[jax.Array]]:
    """The keys of some entries of every large leaf that is a pool of its own, on one device.

    Returns:
      The pools, and arrays that hold `_SAMPLE` keys for each of them in turn.
    """
    pools: list[int] = []
    samples = []
    for stack in stacks:
        size = stack.size
        if size >= _SAMPLED and all(group.pool_sizes[pool] == size for pool in stack.pools):
            samples.append(keys(*jax.tree.map(_some, stack.x)))
            pools += stack.pools.tolist()
    return np.array(pools, int), samples


def _some(x: jax.Array) -> jax.Array:
    """[n_members, rows, row] as [n_members, _SAMPLE], from all over it.

    The stride falls into step with no column of a matrix. Rows are taken first: where memory is in
    tiles, one axis of them all would be a copy of them all.
    """
    _, n_rows, row = x.shape
    apart = -(-n_rows // max(_SAMPLED_ROWS, _SAMPLED // row))
    flat = x[:, apart // 2 :: apart].reshape(len(x), -1)
    stride = flat.shape[1] // _SAMPLE
    while math.gcd(stride, row) > 1:
        stride -= 1
    return flat[:, stride // 2 : stride * _SAMPLE : stride]


def _quantile_cuts(keys: jax.Array, part: jax.Array) -> jax.Array:
    """Cuts around the key that `part` of a pool's entries lie below: [n_pools, n_cuts].

    Args:
      keys: [n_pools, n] sampled keys.
      part: float32[n_pools].
    """
    key = jnp.sort(keys, axis=1)
    n = key.shape[1]
    deviation = jnp.sqrt(part * (1 - part) * n) + 1
    at = (part * n)[:, None] + deviation[:, None] * jnp.asarray(_LADDER)[None, :]
    cuts = jnp.take_along_axis(key, jnp.clip(at.astype(jnp.int32), 0, n - 1), axis=1)
    # Where entries tie, the cut above the tied key settles it in the same pass.
    same = jnp.pad(cuts[:, 1:] == cuts[:, :-1], ((0, 0), (1, 0)))
    return cuts + same.astype(cuts.dtype)


def _warm_steps(dtype: Any, key_dtype: Any) -> np.ndarray:
    """Key distances of the warm cuts; the negative ones wrap, as unsigned addition undoes."""
    unit = 2.0 ** (jnp.finfo(dtype).nmant - 23)
    steps = [math.copysign(max(abs(s) * unit, 1), s) if s else 0 for s in _WARM.tolist()]
    return np.array(steps, np.int64).astype(np.dtype(key_dtype))


def _next_cuts(b: _Bracket) -> jax.Array:
    """Cuts inside each bracket, [n_pools, n_cuts]: where the counts point, or evenly spread.

    Within a bracket the digits are taken as uniform. The number of them among the first `x` of the
    bracket's width is then binomial, which gives both the expected place of the wanted count and
    the standard deviation by which the ladder spreads the cuts.
    """
    n_cuts = jnp.asarray(_N_CUTS + 1, b.lo.dtype)
    step = (b.hi - b.lo + n_cuts - 1) // n_cuts
    even = b.lo[:, None] + step[:, None] * jnp.arange(1, _N_CUTS + 1, dtype=b.lo.dtype)[None, :]
    real = jnp.float64 if b.lo.dtype == jnp.uint64 else jnp.float32
    width, n_in, n_below = (
        (a).astype(real) for a in (b.hi - b.lo, b.n_lo - b.n_hi, b.n_lo - b.want)
    )
    per_entry = width / jnp.maximum(n_in, 1)
    deviation = jnp.sqrt(n_below * jnp.maximum(n_in - n_below, 0) / jnp.maximum(n_in, 1))
    spread = jnp.maximum(per_entry * deviation, 1)
    offset = (per_entry * n_below)[:, None] + spread[:, None] * jnp.asarray(_LADDER, real)[None, :]
    # Rounding may carry the width just past the integer type; anything past `hi` is clipped below.
    offset = jnp.clip(offset, 0, (width * (1 - 2.0**-20))[:, None]).astype(b.lo.dtype)
    return _inside(b, jnp.where(b.even[:, None], even, b.lo[:, None] + offset))


def _inside(b: _Bracket, cuts: jax.Array) -> jax.Array:
    return jnp.clip(cuts, b.lo[:, None] + jnp.ones_like(cuts), b.hi[:, None] - jnp.ones_like(cuts))


def _narrow(b: _Bracket, cuts: jax.Array, counts: jax.Array, places: jax.Array) -> _Bracket:
    """The bracket after one pass; a pool is done when some cut holds exactly the wanted count.

    `places` is where the search for a rank ends: no entry of the pool has one that large.
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
        hi=jnp.where(tied, places, hi),
        n_lo=jnp.where(tied, n_lo - n_hi, n_lo),
        n_hi=jnp.where(tied, jnp.zeros_like(n_hi), n_hi),
        want=jnp.where(tied, b.want - n_hi, b.want),
        on_rank=b.on_rank | tied,
        even=~tied & ((hi - lo) > (b.hi - b.lo) // jnp.full_like(lo, _N_CUTS + 1)),
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
        total = jnp.zeros((len(group.pool_sizes), _N_CUTS), group.key_dtype)
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
    flags = [digit >= per_member(cuts[:, j], digit.ndim) for j in range(_N_CUTS)]
    if stack.is_sliced:
        flags = [jnp.expand_dims(flag, 0) for flag in flags]
    elif one_device:
        return count_rows(flags, dtype)
    return count_each(flags, dtype, one_device or once is not None)
