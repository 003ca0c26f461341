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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import WIDE, as_counts, counting, enable_x64, per_member
from jaxprune._base.float_bits import key_value, order_key
from jaxprune._base.sharding import on_one_device
from jaxprune._topk.search import Cuts, search
from jaxprune._topk.stacks import (
    Group,
    Stack,
    bases,
    first_ranks,
    member_sizes,
    parts_of,
    place_cuts,
    ranks,
    stacked,
    tied_places,
)


def topk_mask(scores: jax.Array, n_keep: int | jax.Array, *, ties: str = "index") -> jax.Array:
    """Marks the `n_keep` largest scores; True means kept.

    Args:
      scores: any shape, any real floating dtype. NaN ranks above inf, -0.0 equals 0.0, and
        subnormals are told apart on every backend.
      n_keep: how many entries are True, exactly; a Python int, or a traced integer, which is
        clipped to [0, scores.size].
      ties: which of equal scores are kept. `"index"`: the lower row-major index, as
        `jax.lax.top_k` does. `"hashed"`: as a fixed shuffle of the indices has it, which favours
        no end of the array; many bfloat16 weights are equal.

    Returns:
      A bool array of the shape (and sharding) of `scores`. A constant array reaches its count too.

    Raises:
      TypeError: scores that are not real floating point.
      ValueError: a Python int `n_keep` outside [0, scores.size], or an unknown `ties`.

    Example:
      >>> import jax.numpy as jnp
      >>> topk_mask(jnp.array([0.5, 2.0, 0.5, 1.0]), 3).tolist()
      [True, True, False, True]
    """
    scores = _checked_scores("topk_mask: `scores`", scores)
    _check_count("topk_mask: `n_keep`", n_keep, scores.size)
    masks, _ = select([scores], [n_keep], ties=check_ties(ties))
    return masks[0]


def topk_masks(
    scores: Sequence[jax.Array],
    n_keep: Sequence[int | jax.Array] | int | jax.Array,
    pool: str = "leaf",
    *,
    ties: str = "index",
) -> list[jax.Array]:
    """Marks the largest scores of each array, or of all arrays together; True means kept.

    Args:
      scores: arrays of any shapes and real floating dtypes.
      n_keep: with `pool="leaf"` one count per array; with `pool="global"` one count for all.
      pool: who competes with whom: `"leaf"` or `"global"`. In the global pool an earlier array wins
        a tie against a later one, unless ties are hashed.
      ties: as for `topk_mask`.

    Returns:
      A list of bool arrays, shaped (and sharded) like `scores`.

    Raises:
      TypeError: scores that are not real floating point.
      ValueError: an unknown pool, a wrong number of counts, a Python int count out of range, or
        hashed ties in a pool of more than 2**31 - 2 entries.

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
    check_ties(ties)
    if pool not in ("leaf", "global"):
        raise ValueError(f'topk_masks: `pool` must be "leaf" or "global", got {pool!r}.')
    if pool == "global":
        _check_count("topk_masks: `n_keep`", n_keep, sum(s.size for s in scores))
        return select(scores, [n_keep], pool_of=(0,) * len(scores), ties=ties)[0]  # type: ignore[list-item]
    is_list = isinstance(n_keep, (list, tuple)) or getattr(n_keep, "ndim", 0) == 1
    if not is_list or len(n_keep) != len(scores):  # type: ignore[arg-type]
        raise ValueError(
            f"topk_masks: `n_keep` must hold one count per array, here {len(scores)}, got "
            f"{n_keep!r}. "
            'One count over all arrays wants pool="global".'
        )
    for i, s in enumerate(scores):
        _check_count(f"topk_masks: n_keep[{i}]", n_keep[i], s.size)  # type: ignore[index]
    return select(scores, n_keep, ties=ties)[0]  # type: ignore[arg-type]


def check_ties(ties: Any) -> str:
    """`ties`, if it is one of the two."""
    if ties not in ("index", "hashed"):
        raise ValueError(f'ties must be "index" or "hashed", got {ties!r}.')
    return ties


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
    ties: str = "index",
    axis_name: Any = None,
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
      ties: which of equal scores are kept: `"index"` for the first, `"hashed"` for a fixed shuffle
        of their indices.
      axis_name: a mapped axis (of `shard_map`, `pmap` or `vmap`) whose members each hold a part of
        every pool, of the same size; `n_keep` then counts all parts.

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
    one_device = on_one_device((operands, among))
    return _select(
        list(operands), counts, among, start, score, pool_of, ties, one_device, axis_name
    )


# Compiled here so that a call outside `jit` does not compile its loop again; inside, XLA inlines
# it.
@functools.partial(jax.jit, static_argnames=("score", "pool_of", "ties", "one_device", "axis_name"))
def _select(
    operands: list[Any],
    n_keep: jax.Array,
    among: Sequence[jax.Array] | None,
    start: jax.Array | None,
    score: Callable[[Any], jax.Array],
    pool_of: tuple[int, ...],
    ties: str,
    one_device: bool,
    axis_name: Any,
) -> tuple[list[jax.Array], jax.Array]:
    specs = [jax.eval_shape(score, x) for x in operands]
    group = Group.of(specs, pool_of, parts_of(axis_name))
    check_places(group, ties)
    keys = _key_function(score, group)
    with counting(group.key_dtype == jnp.uint64):
        return _decided(
            operands, n_keep, among, start, keys, group, specs, ties, one_device, axis_name
        )


def _decided(
    operands: list[Any],
    n_keep: jax.Array,
    among: Sequence[jax.Array] | None,
    start: jax.Array | None,
    keys: Callable[[Any, Any], jax.Array],
    group: Group,
    specs: list[Any],
    ties: str,
    one_device: bool,
    axis_name: Any,
) -> tuple[list[jax.Array], jax.Array]:
    """`_select` of a group, where integers may be as wide as it needs them."""
    allowed: Sequence[Any] = [None] * len(operands) if among is None else among
    pairs = list(zip(operands, allowed, strict=True))
    stacks = stacked(pairs, group, one_device)
    cuts = search(keys, stacks, group, n_keep, start, ties, one_device, axis_name)
    first = first_ranks(group, axis_name)
    kept: list[Any] = [jnp.zeros(spec.shape, bool) for spec in specs]  # what an empty leaf has
    for stack in stacks:
        at = Cuts(cuts.value[stack.pools], cuts.cut[stack.pools])
        theirs = [pairs[i] for i in stack.leaves]
        found = _kept_of(stack, theirs, at, first, keys, group, ties, one_device)
        for i, mask in zip(stack.leaves, found, strict=True):
            kept[i] = mask.reshape(specs[i].shape)
    return kept, _scores_of(cuts.value, group)


def _kept_of(
    stack: Stack,
    pairs: Sequence[Any],
    cuts: Cuts,
    first: jax.Array,
    keys: Callable[[Any, Any], jax.Array],
    group: Group,
    ties: str,
    one_device: bool,
) -> list[jax.Array]:
    """The mask of each leaf of a stack, or its entries in order, from the cuts of its members."""
    # Tied to the cuts, lest XLA lays out all ranks ahead of the loop that a fire is; and to the
    # base, lest it lays out those of two leaves as one, and then by the sharding of one.
    size, base, cuts = lax.optimization_barrier(
        (member_sizes(stack, group), bases(stack, first), cuts)
    )
    value, cut = cuts.value.astype(size.dtype), place_cuts(cuts.cut, base, size, ties)
    mine = Cuts(value, cut), base, size
    if stack.is_sliced:
        return [_masks(keys, pairs[0], mine, ties)]
    if len(pairs) == 1 or not one_device:
        # In the shape of the leaf: ranks of rows would divide an index per entry.
        return [_masks(keys, jax.tree.map(lambda x: x[None], pairs[0]), mine, ties)[0]]
    flat = jax.tree.map(lambda x: x.reshape(x.shape[0], -1), stack.x)
    # The result of a `cond` is one buffer. Else XLA computes the mask anew for every member that is
    # sliced from it, and compiles that as often.
    masks = lax.cond(
        jnp.any(cuts.cut > 0),
        lambda flat, mine: _masks(keys, flat, mine, ties),
        lambda flat, mine: _masks(keys, flat, mine, None),
        *(flat, mine),
    )
    return [mask[: stack.size] for mask in masks]


def _masks(
    keys: Callable[[Any, Any], jax.Array],
    stack: Any,
    mine: tuple[Cuts, jax.Array, jax.Array],
    ties: str | None,
) -> jax.Array:
    """What the cuts keep of each member of a stack. Without `ties`, no cut goes through a tie."""
    (x, allow), (cuts, base, size) = stack, mine
    key = keys(x, allow)
    value, cut = (per_member(c, key.ndim) for c in cuts)
    mask = key >= value
    if ties is not None:
        place = tied_places(ranks(key.shape, size), base, ties)
        mask = (key > value) | ((key == value) & (place >= cut))
    return mask if allow is None else mask & allow.astype(bool)


def check_places(group: Group, ties: str) -> None:
    """Raises where a pool has more entries than the shuffle of hashed ties has places for."""
    if ties == "hashed" and max(group.pool_sizes) >= WIDE:
        raise ValueError(
            f'a pool of {max(group.pool_sizes)} scores: ties="hashed" shuffles at most 2**31 - 2. '
            'Use ties="index".'
        )


def _scores_of(keys: jax.Array, group: Group) -> jax.Array:
    """The score that each pool's threshold key stands for."""
    wide = jnp.float64 if np.dtype(np.float64) in group.floats else jnp.float32
    values = jnp.zeros(keys.shape, wide)
    for dtype in dict.fromkeys(group.floats):  # not by pool: that is a kernel for each
        mine = np.array([other == dtype for other in group.floats])
        values = jnp.where(mine, key_value(keys, dtype).astype(wide), values)
    return values


def _key_function(
    score: Callable[[Any], jax.Array], group: Group
) -> Callable[[Any, Any], jax.Array]:
    # What a score is written for, though it is called within `counting`.
    x64 = jax.dtypes.canonicalize_dtype(np.int64) == np.int64

    def keys(operand: Any, among: Any) -> jax.Array:
        with enable_x64(x64):
            scores = score(operand)
        if group.common is not None:
            scores = scores.astype(group.common)
        key = order_key(scores).astype(group.entry_dtype)
        return key if among is None else jnp.where(among.astype(bool), key, group.entry_dtype(0))

    return keys


def _as_counts(n_keep: Any) -> jax.Array:
    if isinstance(n_keep, jax.Array):
        return n_keep
    if isinstance(n_keep, (list, tuple)) and any(isinstance(n, jax.Array) for n in n_keep):
        return jnp.stack([jnp.asarray(n, jnp.int32) for n in n_keep])
    return as_counts(n_keep)


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
