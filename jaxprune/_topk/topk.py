"""Exact selection of the largest scores of one or more arrays, by counting instead of sorting.

The bit pattern of a float, read as an unsigned integer, sorts like the float (after the negative
half is flipped). So the threshold that keeps exactly `n_keep` scores can be found by counting: hold
a range of keys, count in one read of the data how many scores reach each of a few thresholds inside
it, narrow the range, repeat. Ties are settled by the same loop on the flat index, so the count is
exact for any input, a constant array included. All arrays advance together in one `while_loop`. No
array is sorted (but for a small sample of its keys), and only counts cross devices.

This module knows nothing of pruning: arrays in, masks out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import as_array, is_int, kind_of, shown
from jaxprune._base.counting import as_counts, counting
from jaxprune._base.sharding import on_one_device
from jaxprune._topk.kept import kept_masks, thresholds
from jaxprune._topk.keys import key_form
from jaxprune._topk.problem import Problem, axis_length, score_function
from jaxprune._topk.ranks import check_pool_sizes
from jaxprune._topk.search import search
from jaxprune._topk.signs import score_specs
from jaxprune._topk.stacks import Pools, stacked


def topk_mask(scores: jax.Array, n_keep: int | jax.Array, *, ties: str = "index") -> jax.Array:
    """Marks the `n_keep` largest scores; True means kept.

    Args:
      scores: any shape, any real floating dtype. NaN ranks above inf, -0.0 equals 0.0, and
        different subnormals are different on every backend.
      n_keep: exactly how many entries are True; a Python int, or a traced integer, which is
        clipped to [0, scores.size].
      ties: which of equal scores are kept. `"index"`: those of lower row-major index, as in
        `jax.lax.top_k`. `"hashed"`: by a fixed shuffle of the indices, so that no part of the
        array is favoured (many bfloat16 weights are equal).

    Returns:
      A bool array with the shape (and sharding) of `scores`. The count is exact for a constant
      array too.

    Raises:
      TypeError: `scores` are not real floating point, or `n_keep` is not an integer.
      ValueError: `n_keep` is a Python int outside [0, scores.size], or `ties` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> topk_mask(jnp.array([0.5, 2.0, 0.5, 1.0]), 3).tolist()
      [True, True, False, True]
    """
    scores = _checked_scores("topk_mask: `scores`", scores)
    _check_count("topk_mask: `n_keep`", n_keep, scores.size)
    [mask], _ = select([scores], [n_keep], ties=check_ties(ties))
    return mask


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
      pool: `"leaf"` if scores compete within their own array, `"global"` if all compete together.
        In the global pool an earlier array wins a tie against a later one, unless ties are hashed.
      ties: as for `topk_mask`.

    Returns:
      A list of bool arrays, shaped (and sharded) like `scores`.

    Raises:
      TypeError: `scores` is not a list of real floating-point arrays, or a count is not an integer.
      ValueError: `pool` or `ties` is unknown, the number of counts is wrong, a Python int count is
        out of range, or ties are hashed in a pool of more than 2**31 - 2 entries.

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
            "topk_masks: `scores` must be a list of arrays, got "
            f"{kind_of(scores)}. For one array, call topk_mask; for a tree, pass "
            "jax.tree.leaves(scores)."
        )
    scores = [_checked_scores(f"topk_masks: scores[{i}]", s) for i, s in enumerate(scores)]
    check_ties(ties)
    if not isinstance(pool, str) or pool not in ("leaf", "global"):
        raise ValueError(f'topk_masks: `pool` must be "leaf" or "global", got {shown(pool)}.')
    if pool == "global":
        _check_count("topk_masks: `n_keep`", n_keep, sum(s.size for s in scores))
        return select(scores, [n_keep], pool_of=(0,) * len(scores), ties=ties)[0]  # type: ignore[list-item]
    is_list = isinstance(n_keep, (list, tuple)) or getattr(n_keep, "ndim", 0) == 1
    if not is_list or len(n_keep) != len(scores):  # type: ignore[arg-type]
        raise ValueError(
            f"topk_masks: `n_keep` must hold one count for each of the {len(scores)} arrays, got "
            f'{shown(n_keep)}. For one count over all arrays, pass pool="global".'
        )
    for i, s in enumerate(scores):
        _check_count(f"topk_masks: n_keep[{i}]", n_keep[i], s.size)  # type: ignore[index]
    return select(scores, n_keep, ties=ties)[0]  # type: ignore[arg-type]


def check_ties(ties: Any) -> str:
    """Returns `ties` if it is a known rule for ties, else raises."""
    if not isinstance(ties, str) or ties not in ("index", "hashed"):
        raise ValueError(f'ties must be "index" or "hashed", got {shown(ties)}.')
    return ties


def _identity(scores: jax.Array) -> jax.Array:
    return scores


def select(
    operands: Sequence[Any],
    n_keep: jax.Array | np.ndarray | Sequence[int | jax.Array],
    *,
    score: Callable[[Any], jax.Array] = _identity,
    among: Sequence[jax.Array] | None = None,
    pool_of: Sequence[int] | None = None,
    start: jax.Array | None = None,
    ties: str = "index",
    axis_name: Any = None,
) -> tuple[list[jax.Array], jax.Array]:
    """Exact masks and their thresholds, with the scores computed while they are read.

    Args:
      operands: one pytree of arrays per leaf.
      n_keep: int[n_pools], clipped to [0, entries of the pool].
      score: elementwise map from one operand to its scores. It runs inside every counting pass,
        where XLA fuses it into the read, so the scores are never stored. Calls with an equal
        `score` share their compilation.
      among: per leaf, nonzero where an entry may be kept. All other entries rank below every score
        and are False in the result, even if `n_keep` exceeds the number that may be kept.
      pool_of: the pool of each leaf, numbered from 0; by default each leaf is its own pool.
      start: float[n_pools], thresholds to start the search from, such as those of the last call.
        Wrong ones cost time and change nothing else. Zero and non-finite ones are ignored.
      ties: which of equal scores are kept: `"index"` for the first, `"hashed"` for a fixed shuffle
        of their indices.
      axis_name: a mapped axis (of `shard_map`, `pmap` or `vmap`) whose members each hold a part of
        every pool, all of the same size; `n_keep` then counts all parts together.

    Returns:
      Bool masks shaped like the scores, and float32[n_pools] thresholds (float64 if any score is).
      Of the entries that may be kept, those above their pool's threshold are kept and those below
      are dropped. A threshold is inf if nothing is kept, and -inf if everything is.
    """
    pool_of = tuple(range(len(operands))) if pool_of is None else tuple(pool_of)
    for spec in score_specs(score, operands):
        if not jnp.issubdtype(spec.dtype, jnp.floating):
            raise TypeError(
                f"scores must be real floating point, got {spec.dtype} of shape {spec.shape}. Let "
                "the score function return floats, such as jnp.abs(x).astype(jnp.float32)."
            )
    if not operands:
        return [], jnp.zeros((0,), jnp.float32)
    counts = _as_counts(n_keep)
    one_device = on_one_device((operands, among))
    return _select(
        list(operands), counts, among, start, score, pool_of, ties, one_device, axis_name
    )


# Has its own `jit` so that calls outside `jit` don't compile the loop every time. Within another
# `jit`, XLA inlines it.
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
    specs = score_specs(score, operands)
    pools = Pools.of(specs, pool_of, axis_length(axis_name))
    check_pool_sizes(pools, ties)
    score = score_function(score, pools)
    dtype, has_floor = pools.common_dtype, among is not None
    forms = [key_form(spec.dtype, dtype, spec.has_sign, has_floor) for spec in specs]
    allowed: Sequence[Any] = [None] * len(operands) if among is None else among
    pairs = list(zip(operands, allowed, strict=True))
    with counting(pools.pool_dtype == jnp.uint64):
        stacks = stacked(pairs, forms, pools, one_device)
        problem = Problem(pools, stacks, score, ties, one_device, axis_name)
        cuts = search(problem, n_keep, start)
        return kept_masks(cuts, problem), thresholds(cuts.key, pools)


def _as_counts(n_keep: Any) -> jax.Array:
    if isinstance(n_keep, jax.Array):
        return n_keep
    if not isinstance(n_keep, (list, tuple)) or not any(isinstance(n, jax.Array) for n in n_keep):
        return as_counts(n_keep)
    counts = [n if isinstance(n, jax.Array) else as_counts(n) for n in n_keep]
    if all(jnp.iinfo(n.dtype).max < 2**31 for n in counts):
        return jnp.stack([n.astype(jnp.int32) for n in counts])
    with counting(True):  # a uint32 can be larger than any int32
        return jnp.stack([_as_int64(n) for n in counts])


def _as_int64(n: jax.Array) -> jax.Array:
    largest = min(int(jnp.iinfo(n.dtype).max), 2**63 - 1)
    return jnp.minimum(n, jnp.asarray(largest, n.dtype)).astype(jnp.int64)


def _checked_scores(name: str, scores: Any) -> jax.Array:
    fix = "Pass one floating point score for each entry, such as jnp.abs(w)."
    scores = as_array(name, scores, fix)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be real floating point, got {scores.dtype} of shape {scores.shape}. Cast "
            "them with .astype(jnp.float32)."
        )
    return scores


def _check_count(name: str, n: Any, size: int) -> None:
    is_array = isinstance(n, (jax.Array, np.ndarray)) and n.ndim == 0
    is_array = is_array and jnp.issubdtype(n.dtype, jnp.integer)
    if not is_int(n) and not is_array:
        raise TypeError(
            f"{name} must be an integer, got {shown(n)}. Pass a Python int or an integer scalar."
        )
    if is_int(n) and not 0 <= n <= size:
        raise ValueError(f"{name} is how many scores to keep, in [0, {size}], got {n}.")
