"""Exact selection of the largest scores over a group of arrays, by counting instead of sorting.

A float's bit pattern, read as an unsigned integer, sorts like the float (after the negative half is
flipped). So the threshold that keeps exactly `n_keep` scores can be found by *counting*: hold a
bracket of keys, count how many scores reach each of a few thresholds inside it in one read of the
data, narrow the bracket, repeat. Ties are settled by the same loop on the flat index, so the count
is exact on any input, a constant array included. All arrays of the group advance together in one
`while_loop`, and only counts travel: nothing is sorted, gathered or concatenated, and no array
crosses devices.

This module knows nothing of pruning: arrays in, masks out.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.floats import bits_of, key_value, keyed_dtype, order_key

# Thresholds counted in one read. XLA CPU fuses up to 15 reduction operands; 7 cost about one memory
# read.
_N_CUTS = 7
# Where the cuts of an interpolated pass lie around the expected place, in standard deviations.
_LADDER = np.array([-3.5, -1.1, -0.35, 0.0, 0.35, 1.1, 3.5], np.float32)
# Where the cuts of a warm start lie around the last threshold, as key distances of a float32: about
# 12%, 1.6% and 0.2% of the threshold on either side.
_WARM = np.array([-(2**20), -(2**17), -(2**14), 0, 2**14, 2**17, 2**20], np.int64)
# Elements of one reduced row on a single device: long enough to vectorise, short enough that XLA
# CPU has rows left to spread over its threads.
_ROW = 1024
# Leaves of at most this many entries are copied together with others of their shape.
_STACKED = 2**20


def topk_mask(scores: jax.Array, n_keep: int | jax.Array) -> jax.Array:
    """Marks the `n_keep` largest scores; True means kept.

    Args:
      scores: any shape, any real floating dtype. NaN ranks above inf, -0.0 equals 0.0, and
        subnormals are told apart on every backend.
      n_keep: how many entries are True, exactly; a Python int, or a traced integer, which is
        clipped to [0, scores.size].

    Returns:
      A bool array of the shape (and sharding) of `scores`. Among equal scores the lower row-major
      index is kept, as `jax.lax.top_k` does, so a constant array still reaches its count.

    Raises:
      TypeError: scores that are not real floating point.
      ValueError: a Python int `n_keep` outside [0, scores.size].

    Example:
      >>> import jax.numpy as jnp
      >>> topk_mask(jnp.array([0.5, 2.0, 0.5, 1.0]), 3).tolist()
      [True, True, False, True]
    """
    scores = _checked_scores("topk_mask: `scores`", scores)
    _check_count("topk_mask: `n_keep`", n_keep, scores.size)
    masks, _ = select([scores], [n_keep])
    return masks[0]


def topk_masks(
    scores: Sequence[jax.Array],
    n_keep: Sequence[int | jax.Array] | int | jax.Array,
    pool: str = "leaf",
) -> list[jax.Array]:
    """Marks the largest scores of each array, or of all arrays together; True means kept.

    Args:
      scores: arrays of any shapes and real floating dtypes.
      n_keep: with `pool="leaf"` one count per array; with `pool="global"` one count for all.
      pool: who competes with whom: `"leaf"` or `"global"`. In the global pool an earlier array wins
        a tie against a later one.

    Returns:
      A list of bool arrays, shaped (and sharded) like `scores`.

    Raises:
      TypeError: scores that are not real floating point.
      ValueError: an unknown pool, a wrong number of counts, a Python int count out of range, or a
        pool of more than 2**31 - 2 entries.

    Example:
      >>> import jax.numpy as jnp
      >>> a, b = jnp.array([3.0, 1.0]), jnp.array([2.0, 4.0, 0.0])
      >>> [m.tolist() for m in topk_masks([a, b], [1, 1])]
      [[True, False], [False, True, False]]
      >>> [m.tolist() for m in topk_masks([a, b], 3, pool="global")]
      [[True, False], [True, True, False]]
    """
    if not isinstance(scores, (list, tuple)):
        raise TypeError(
            f"topk_masks: `scores` must be a list of arrays, got a {type(scores).__name__}. Pass "
            "one array to topk_mask, and of a tree jax.tree.leaves(scores)."
        )
    scores = [_checked_scores(f"topk_masks: scores[{i}]", s) for i, s in enumerate(scores)]
    if pool not in ("leaf", "global"):
        raise ValueError(f'topk_masks: `pool` must be "leaf" or "global", got {pool!r}.')
    if pool == "global":
        _check_count("topk_masks: `n_keep`", n_keep, sum(s.size for s in scores))
        return select(scores, [n_keep], pool_of=(0,) * len(scores))[0]  # type: ignore[list-item]
    is_list = isinstance(n_keep, (list, tuple)) or getattr(n_keep, "ndim", 0) == 1
    if not is_list or len(n_keep) != len(scores):  # type: ignore[arg-type]
        raise ValueError(
            f"topk_masks: `n_keep` must hold one count per array, here {len(scores)}, got "
            f"{n_keep!r}. "
            'One count over all arrays wants pool="global".'
        )
    for i, s in enumerate(scores):
        _check_count(f"topk_masks: n_keep[{i}]", n_keep[i], s.size)  # type: ignore[index]
    return select(scores, n_keep)[0]  # type: ignore[arg-type]


def _itself(scores: jax.Array) -> jax.Array:
    return scores


def select(
    operands: Sequence[Any],
    n_keep: jax.Array | np.ndarray | Sequence[int | jax.Array],
    *,
    score: Callable[[Any], jax.Array] = _itself,
    among: Sequence[jax.Array] | None = None,
    pool_of: Sequence[int] | None = None,
    start: jax.Array | None = None,
) -> tuple[list[jax.Array], jax.Array]:
    """The engine behind `topk_masks`: exact masks and their thresholds, scores computed on the fly.

    Args:
      operands: one pytree of arrays per leaf.
      n_keep: int[n_pools], clipped to [0, entries of the pool].
      score: elementwise map from one operand to its scores. It runs inside every counting pass,
        where XLA fuses it into the read, so the scores are never stored. Calls with an equal
        `score` share their compilation.
      among: per leaf, nonzero where an entry may be kept. The others rank below every score, and
        are False in the result even where `n_keep` exceeds what is left.
      pool_of: the pool of each leaf, numbered from 0; by default each leaf is its own pool.
      start: float[n_pools], thresholds to open the search at, such as those returned last time.
        They cost nothing but passes when they are wrong. Non-finite or zero ones are ignored.

    Returns:
      Bool masks shaped like the scores, and float32[n_pools] thresholds (float64 where a score is):
      every score above its pool's threshold is kept and every score below is dropped, if it is
      among those that may be kept. Inf where nothing was kept, -inf where everything was.
    """
    pool_of = tuple(range(len(operands))) if pool_of is None else tuple(pool_of)
    for x in operands:
        spec = jax.eval_shape(score, x)
        if not jnp.issubdtype(spec.dtype, jnp.floating):
            raise TypeError(f"scores must be real floating point, got {spec.dtype}[{spec.shape}].")
    if not operands:
        return [], jnp.zeros((0,), jnp.float32)
    counts = _as_counts(n_keep)
    one_device = jax.device_count() == 1
    return _select(list(operands), counts, among, start, score, pool_of, one_device)


# Compiled here so that a call outside `jit` does not compile its loop again; inside, XLA inlines
# it.
@functools.partial(jax.jit, static_argnames=("score", "pool_of", "one_device"))
def _select(
    operands: list[Any],
    n_keep: jax.Array,
    among: Sequence[jax.Array] | None,
    start: jax.Array | None,
    score: Callable[[Any], jax.Array],
    pool_of: tuple[int, ...],
    one_device: bool,
) -> tuple[list[jax.Array], jax.Array]:
    specs = [jax.eval_shape(score, x) for x in operands]
    group = _Group.of(specs, pool_of)
    allowed: Sequence[Any] = [None] * len(operands) if among is None else among
    stacks = _stacked(list(zip(operands, allowed, strict=True)), specs, one_device)
    keys = _key_function(score, group)
    cuts = _search(keys, stacks, group, n_keep, start)
    kept: list[Any] = [jnp.zeros(spec.shape, bool) for spec in specs]  # what an empty leaf has
    for members, (x, allow) in stacks:
        pools = np.array([pool_of[i] for i in members])
        key = keys(x, allow)
        top = jnp.asarray(np.array([group.top[i] for i in members]), group.key_dtype)
        value, cut = (_per_member(c[pools], key.ndim) for c in cuts)
        mask = (key > value) | ((key == value) & (_rank(key.shape, top) >= cut))
        mask = mask if allow is None else mask & allow.astype(bool)
        for i, member in zip(members, mask, strict=True):
            shape = specs[i].shape
            kept[i] = (
                member.reshape(-1)[: math.prod(shape)].reshape(shape) if one_device else member
            )
    return kept, _scores_of(cuts.value, group)


class _Group(NamedTuple):
    """What is known of the arrays while tracing: everything here is a Python value."""

    pool_of: tuple[int, ...]
    sizes: tuple[int, ...]  # entries of each leaf
    pool_sizes: tuple[int, ...]
    top: tuple[int, ...]  # rank of each leaf's first entry; ranks fall by one per entry, down to 1
    common: np.dtype | None  # dtype that scores are widened to, where a pool mixes several
    floats: tuple[np.dtype, ...]  # dtype of each pool's keyed scores
    key_dtype: Any

    @staticmethod
    def of(specs: Sequence[jax.ShapeDtypeStruct], pool_of: tuple[int, ...]) -> "_Group":
        sizes = [math.prod(s.shape) for s in specs]
        left = [0] * (max(pool_of) + 1)
        for n, p in zip(sizes, pool_of, strict=True):
            left[p] += n
        pool_sizes = tuple(left)
        for n in pool_sizes:
            if n >= 2**31 - 1:
                raise ValueError(f"a pool of {n} scores; at most 2**31 - 2 can be counted exactly.")
        top = []
        for n, p in zip(sizes, pool_of, strict=True):
            top.append(left[p])
            left[p] -= n
        dtypes = [keyed_dtype(s.dtype) for s in specs]
        mixed = len(set(pool_of)) < len(pool_of) and len(set(dtypes)) > 1
        common = max([*dtypes, np.dtype(np.float32)], key=lambda d: d.itemsize) if mixed else None
        floats = tuple(common or dtypes[pool_of.index(q)] for q in range(len(pool_sizes)))
        wide = any(d.itemsize == 8 for d in floats)
        key_dtype = jnp.uint64 if wide else jnp.uint32
        return _Group(pool_of, tuple(sizes), pool_sizes, tuple(top), common, floats, key_dtype)


_Stacks = list[tuple[tuple[int, ...], Any]]


def _stacked(operands: Sequence[Any], specs: Sequence[Any], one_device: bool) -> _Stacks:
    """Operands of equal shapes as one, with a new first axis, each beside the leaves it holds.

    Compile time then grows with the number of different shapes instead of that of leaves. The copy
    that it takes is freed with the selection. Across devices every operand stays by itself.
    """
    alike: dict[Any, list[int]] = {}
    for i, (x, spec) in enumerate(zip(operands, specs, strict=True)):
        leaves, treedef = jax.tree.flatten(x)
        kind = (treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        size = math.prod(spec.shape)
        if size:
            alike.setdefault(kind if one_device and size <= _STACKED else i, []).append(i)

    def stack(*xs: jax.Array) -> jax.Array:
        rows = [_as_rows(x) if one_device else jnp.expand_dims(x, 0) for x in xs]
        return jnp.concatenate(rows) if len(rows) > 1 else rows[0]

    return [
        (tuple(members), jax.tree.map(stack, *(operands[i] for i in members)))
        for members in alike.values()
    ]


def _per_member(x: jax.Array, ndim: int) -> jax.Array:
    """[n_members] against the entries of a stack of `ndim` axes."""
    return jnp.expand_dims(x, tuple(range(1, ndim)))


def _scores_of(keys: jax.Array, group: _Group) -> jax.Array:
    """The score that each pool's threshold key stands for."""
    wide = jnp.float64 if group.key_dtype == jnp.uint64 else jnp.float32
    values = [key_value(keys[pool], dtype) for pool, dtype in enumerate(group.floats)]
    return jnp.stack([value.astype(wide) for value in values])


def _key_function(
    score: Callable[[Any], jax.Array], group: _Group
) -> Callable[[Any, Any], jax.Array]:
    def keys(operand: Any, among: Any) -> jax.Array:
        scores = score(operand)
        if group.common is not None:
            scores = scores.astype(group.common)
        key = order_key(scores).astype(group.key_dtype)
        return key if among is None else jnp.where(among.astype(bool), key, group.key_dtype(0))

    return keys


class _Cuts(NamedTuple):
    """Kept is what has `key > value`, or `key == value` and `rank >= cut`. One entry per pool."""

    value: jax.Array
    cut: jax.Array


class _Bracket(NamedTuple):
    """One step of the search; every field has one entry per pool.

    The digit searched is the key at first, and the rank among equal keys once the key is settled.
    Of the entries still in play, `n_lo >= want` have a digit `>= lo`, and `n_hi <= want` one `>= hi`.
    """

    lo: jax.Array
    hi: jax.Array
    n_lo: jax.Array
    n_hi: jax.Array
    want: jax.Array
    on_rank: jax.Array
    even: jax.Array  # the last pass narrowed little: the next one cuts evenly, which bounds them
    done: jax.Array
    cuts: _Cuts


def _search(
    keys: Callable[[Any, Any], jax.Array],
    stacks: _Stacks,
    group: _Group,
    n_keep: jax.Array,
    start: jax.Array | None,
) -> _Cuts:
    """Narrows all brackets together until each holds exactly the wanted count."""
    key_dtype = group.key_dtype
    sizes = jnp.asarray(np.array(group.pool_sizes), key_dtype)
    want = jnp.clip(n_keep, 0, jnp.asarray(np.array(group.pool_sizes), n_keep.dtype))
    want = want.astype(key_dtype)
    zero = jnp.zeros_like(sizes)
    hi = jnp.full_like(sizes, np.iinfo(np.dtype(key_dtype)).max)
    no = jnp.zeros(sizes.shape, bool)
    all_kept = want == sizes
    cuts = _Cuts(value=jnp.where(all_kept, zero, hi), cut=zero)
    bracket = _Bracket(zero, hi, sizes, zero, want, no, no, all_kept | (want == 0), cuts)
    opening = _opening(bracket, group, start)

    def count(cuts: jax.Array, bracket: _Bracket) -> jax.Array:
        # The barrier ties the read to the loop's own values. Without it XLA computes keys and ranks
        # once outside the loop and keeps them: several times the memory, and slower.
        inside = ([x for _, x in stacks], cuts, bracket.cuts.value, bracket.on_rank, sizes)
        xs, cuts, value, on_rank, pool_sizes = lax.optimization_barrier(inside)
        totals = jnp.zeros(cuts.shape, key_dtype)
        for (members, _), x in zip(stacks, xs, strict=True):
            pools = np.array([group.pool_of[i] for i in members])
            behind = [group.pool_sizes[group.pool_of[i]] - group.top[i] for i in members]
            top = pool_sizes[pools] - jnp.asarray(np.array(behind), key_dtype)
            key = keys(*x)
            tied = key == _per_member(value[pools], key.ndim)
            rank = _rank(key.shape, top)
            digit = jnp.where(
                _per_member(on_rank[pools], key.ndim), jnp.where(tied, rank, key_dtype(0)), key
            )
            size = group.sizes[members[0]]
            if math.prod(key.shape[1:]) > size:  # the padding of rows, whose ranks run on
                last = _per_member(top - key_dtype(size), key.ndim)
                inside = (rank > last) & (rank <= _per_member(top, key.ndim))
                digit = jnp.where(inside, digit, key_dtype(0))
            totals = totals.at[pools].add(_count_reaching(digit, cuts[pools]))
        return totals

    def one_pass(carry: tuple[_Bracket, jax.Array]) -> tuple[_Bracket, jax.Array]:
        bracket, first = carry
        cuts = jnp.where(first, opening, _next_cuts(bracket))
        return _narrow(bracket, cuts, count(cuts, bracket), sizes), jnp.zeros_like(first)

    first = jnp.ones((), bool)
    bracket, _ = lax.while_loop(lambda c: jnp.any(~c[0].done), one_pass, (bracket, first))
    return bracket.cuts


def _opening(bracket: _Bracket, group: _Group, start: jax.Array | None) -> jax.Array:
    """Cuts of the first pass: around `start`, else even sections of the non-negative keys."""
    rows = []
    for pool, dtype in enumerate(group.floats):
        _, sign, infinity = bits_of(dtype)
        even = [sign + infinity * i // (_N_CUTS + 1) for i in range(1, _N_CUTS + 1)]
        row = jnp.asarray(np.array(even, np.dtype(group.key_dtype)))
        if start is not None:
            key = order_key(start[pool].astype(dtype)).astype(group.key_dtype)
            usable = jnp.isfinite(start[pool]) & (start[pool] != 0)
            row = jnp.where(usable, key + _warm_steps(dtype, group.key_dtype), row)
        rows.append(row)
    return _inside(bracket, jnp.stack(rows))


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


def _narrow(b: _Bracket, cuts: jax.Array, counts: jax.Array, sizes: jax.Array) -> _Bracket:
    """The bracket after one pass; a pool is done when some cut holds exactly the wanted count."""
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
        hi=jnp.where(tied, sizes + one, hi),
        n_lo=jnp.where(tied, n_lo - n_hi, n_lo),
        n_hi=jnp.where(tied, jnp.zeros_like(n_hi), n_hi),
        want=jnp.where(tied, b.want - n_hi, b.want),
        on_rank=b.on_rank | tied,
        even=~tied & ((hi - lo) > (b.hi - b.lo) // jnp.full_like(lo, _N_CUTS + 1)),
        done=hit,
        cuts=_Cuts(value, jnp.where(b.on_rank & hit, at, jnp.zeros_like(at))),
    )
    return jax.tree.map(lambda new, old: jnp.where(b.done, old, new), new, b)


def _count_reaching(digit: jax.Array, cuts: jax.Array) -> jax.Array:
    """How many entries of each member are >= each of its cuts, [n_members, n_cuts]."""
    return _count(
        [digit >= _per_member(cuts[:, j], digit.ndim) for j in range(_N_CUTS)], digit.dtype
    )


def count_true(flags: Sequence[jax.Array]) -> jax.Array:
    """How often each of two or more bool arrays of one shape is set: int32[n_flags], one read."""
    if not flags[0].size:
        return jnp.zeros((len(flags),), jnp.int32)
    one_device = jax.device_count() == 1
    views = [_as_rows(f) if one_device else jnp.expand_dims(f, 0) for f in flags]
    return _count(views, jnp.int32)[0]


def _count(flags: Sequence[jax.Array], dtype: Any) -> jax.Array:
    # A variadic reduce is what keeps it one fused read on CPU: a plain sum stores the compare first
    # and costs ten times as much. Rows are reduced by themselves, which gives XLA something to
    # spread over threads; across devices all axes are, so that scalars travel and not rows.
    axes = (2,) if jax.device_count() == 1 else tuple(range(1, flags[0].ndim))
    zero = np.zeros((), np.dtype(dtype))
    ones = tuple(flag.astype(dtype) for flag in flags)
    sums = lax.reduce(ones, (zero,) * len(ones), lambda a, b: tuple(map(operator.add, a, b)), axes)
    return jnp.stack([jnp.sum(s, axis=tuple(range(1, s.ndim)), dtype=dtype) for s in sums], axis=1)


def _as_rows(x: jax.Array) -> jax.Array:
    """A leaf as [1, rows, row], padded with zeros; for one device, where merging axes is free.

    With several devices an axis may be sharded, and a reshape would gather it.
    """
    row = _row_length(x.size)
    flat = x.reshape(-1)
    if x.size % row:
        flat = lax.pad(flat, np.zeros((), np.dtype(x.dtype)), [(0, -x.size % row, 0)])
    return flat.reshape(1, -1, row)


@functools.cache
def _row_length(size: int) -> int:
    """The longest divisor of `size` up to `_ROW`; `_ROW` itself, by padding, when that is short."""
    if size <= _ROW:
        return size
    longest = next(n for n in range(_ROW, 0, -1) if size % n == 0)
    return longest if longest >= _ROW // 16 else _ROW


def _rank(shape: tuple[int, ...], top: jax.Array) -> jax.Array:
    """`top` for each member's first entry in row-major order, falling by one; [n_members, ...]."""
    rank = jnp.broadcast_to(_per_member(top, len(shape)), shape)
    stride = 1
    for axis in range(len(shape) - 1, 0, -1):
        if shape[axis] > 1:
            index = lax.broadcasted_iota(top.dtype, shape, axis)
            rank = rank - index * jnp.asarray(stride, top.dtype)
        stride *= shape[axis]
    return rank


def _as_counts(n_keep: Any) -> jax.Array:
    if isinstance(n_keep, (list, tuple)):
        return jnp.stack([jnp.asarray(n, jnp.int32) for n in n_keep])
    return jnp.asarray(n_keep, jnp.int32)


def _checked_scores(name: str, scores: Any) -> jax.Array:
    dtype = getattr(scores, "dtype", None)
    scores = jnp.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        cast = "" if dtype is None else " Cast them with .astype(jnp.float32)."
        raise TypeError(
            f"{name} must be real floating point, got {scores.dtype} of shape {scores.shape}.{cast}"
        )
    return scores


def _check_count(name: str, n: Any, size: int) -> None:
    is_int = isinstance(n, (int, np.integer)) and not isinstance(n, bool)
    dtype = getattr(n, "dtype", np.dtype(object))
    is_array = jnp.issubdtype(dtype, jnp.integer) and np.ndim(n) == 0
    if not is_int and not is_array:
        raise TypeError(f"{name} must be an integer, got {n!r}.")
    if is_int and not 0 <= n <= size:
        raise ValueError(f"{name} must be in [0, {size}], got {n}.")
