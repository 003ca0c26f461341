"""Exact selection of the largest scores of one or more arrays, by counting instead of sorting.

The bit pattern of a float, read as an unsigned integer, sorts like the float (after the negative
half is flipped). So the threshold that keeps exactly `n_keep` scores can be found by counting: hold
a range of keys, count in one read of the data how many scores reach each of a few thresholds inside
it, narrow the range, repeat. Ties are settled by the same loop on the flat index, so the count is
exact for any input, a constant array included. All arrays advance together in one `while_loop`. No
array is sorted (but for a small sample of its keys), and only counts cross devices.

This module knows nothing of pruning: arrays in, masks out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxprune._base.argument_types import Ties
from jaxprune._base.arguments import as_array, is_int, kind_of, shown
from jaxprune._base.caching import jitted_unless_traced
from jaxprune._base.counting import as_counts, counting
from jaxprune._base.elementwise import is_elementwise_program
from jaxprune._base.functions import check_traceable
from jaxprune._base.paths import check_not_donated
from jaxprune._base.sharding import on_gpu, on_one_device
from jaxprune._topk.bit_flags import BitFlags
from jaxprune._topk.keys import key_form
from jaxprune._topk.problem import Problem, axis_length, score_function
from jaxprune._topk.ranks import check_pool_sizes
from jaxprune._topk.rounds import Leaves, select_all
from jaxprune._topk.signs import score_specs
from jaxprune._topk.stacks import Pools

Score = Callable[[jax.Array], jax.Array]


def topk_mask(
    scores: ArrayLike,
    n_keep: int | jax.Array,
    *,
    score: Score | None = None,
    ties: Ties = "index",
) -> jax.Array:
    """Marks the `n_keep` largest scores; True means kept.

    Args:
      scores: any shape, any real floating dtype. NaN ranks above inf, -0.0 equals 0.0, and
        different subnormals are different on every backend.
      n_keep: exactly how many entries are True; a Python int, or a traced integer, which is
        clipped to [0, scores.size].
      score: a function from `scores`, which may then have any dtype, to the scores to compare, of
        the same shape; `score=jnp.abs` keeps the largest magnitudes. An elementwise function is
        computed anew in every read and its result never stored: on a CPU this takes half the time
        of `topk_mask(jnp.abs(w), n_keep)`. Any other function is called once.
      ties: which of equal scores are kept. `"index"`: those of lower row-major index, as in
        `jax.lax.top_k`. `"hashed"`: by a fixed shuffle of the indices, so that no part of the
        array is favoured (many bfloat16 weights are equal).

    Returns:
      A bool array with the shape (and sharding) of `scores`. The count is exact for a constant
      array too.

    Raises:
      TypeError: `scores` are not real floating point, `n_keep` is not an integer, or `score` is not
        a function to real floating point.
      ValueError: `n_keep` is a Python int outside [0, scores.size], `ties` is unknown, or `score`
        changes the shape.

    Example:
      >>> import jax.numpy as jnp
      >>> topk_mask(jnp.array([0.5, 2.0, 0.5, 1.0]), 3).tolist()
      [True, True, False, True]
      >>> topk_mask(jnp.array([0.5, -2.0, 0.5, -1.0]), 2, score=jnp.abs).tolist()
      [False, True, False, True]
    """
    check_not_donated("topk_mask", {"scores": scores})
    [operand], fused = _scored(["topk_mask: `scores`"], [scores], score)
    _check_count("topk_mask: `n_keep`", n_keep, operand.size)
    [mask], _ = select([operand], [n_keep], score=fused, ties=check_ties(ties))
    return mask


def topk_masks(
    scores: Sequence[ArrayLike],
    n_keep: Sequence[int | jax.Array] | int | jax.Array,
    pool: Literal["leaf", "global"] = "leaf",
    *,
    score: Score | None = None,
    ties: Ties = "index",
) -> list[jax.Array]:
    """Marks the largest scores of each array, or of all arrays together; True means kept.

    Args:
      scores: arrays of any shapes and real floating dtypes.
      n_keep: with `pool="leaf"` one count per array; with `pool="global"` one count for all.
      pool: `"leaf"` if scores compete within their own array, `"global"` if all compete together.
        In the global pool an earlier array wins a tie against a later one, unless ties are hashed.
      score: a function from each array to its scores, as for `topk_mask`.
      ties: as for `topk_mask`.

    Returns:
      A list of bool arrays, shaped (and sharded) like `scores`.

    Raises:
      TypeError: `scores` is not a list of real floating-point arrays, a count is not an integer, or
        `score` is not a function to real floating point.
      ValueError: `pool` or `ties` is unknown, the number of counts is wrong, a Python int count is
        out of range, `score` changes a shape, or ties are hashed in a pool of more than 2**31 - 2
        entries.

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
    check_not_donated("topk_masks", {"scores": list(scores)})
    names = [f"topk_masks: scores[{i}]" for i in range(len(scores))]
    operands, fused = _scored(names, scores, score)
    check_ties(ties)
    if not isinstance(pool, str) or pool not in ("leaf", "global"):
        raise ValueError(f'topk_masks: `pool` must be "leaf" or "global", got {shown(pool)}.')
    if pool == "global":
        _check_count("topk_masks: `n_keep`", n_keep, sum(x.size for x in operands))
        pool_of = (0,) * len(operands)
        return select(operands, [n_keep], score=fused, pool_of=pool_of, ties=ties)[0]  # type: ignore[list-item]
    is_list = isinstance(n_keep, (list, tuple)) or getattr(n_keep, "ndim", 0) == 1
    if not is_list or len(n_keep) != len(scores):  # type: ignore[arg-type]
        raise ValueError(
            f"topk_masks: `n_keep` must hold one count for each of the {len(scores)} arrays, got "
            f'{shown(n_keep)}. For one count over all arrays, pass pool="global".'
        )
    for i, x in enumerate(operands):
        _check_count(f"topk_masks: n_keep[{i}]", n_keep[i], x.size)  # type: ignore[index]
    return select(operands, n_keep, score=fused, ties=ties)[0]  # type: ignore[arg-type]


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
    among: Sequence[jax.Array | BitFlags] | None = None,
    pool_of: Sequence[int] | None = None,
    start: jax.Array | None = None,
    ties: str = "index",
    axis_name: Any = None,
) -> tuple[list[Any], jax.Array]:
    """Exact masks and their thresholds, with the scores computed while they are read.

    Args:
      operands: one pytree of arrays per leaf.
      n_keep: int[n_pools], clipped to [0, entries of the pool].
      score: elementwise map from one operand to its scores. It runs inside every counting pass,
        where XLA fuses it into the read, so the scores are never stored. Calls with an equal
        `score` share their compilation.
      among: per leaf, nonzero where an entry may be kept. All other entries rank below every score
        and are False in the result, even if `n_keep` exceeds the number that may be kept. A GPU
        reads `BitFlags` in this form in every pass, and may return their masks as `BitFlags` if
        they can be packed.
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
    select = jitted_unless_traced(_select, score)
    return select(list(operands), counts, among, start, score, pool_of, ties, one_device, axis_name)


# Has its own `jit` so that calls outside `jit` don't compile the loop every time. Within another
# `jit`, XLA inlines it.
@functools.partial(jax.jit, static_argnames=("score", "pool_of", "ties", "one_device", "axis_name"))
def _select(
    operands: list[Any],
    n_keep: jax.Array,
    among: Sequence[jax.Array | BitFlags] | None,
    start: jax.Array | None,
    score: Callable[[Any], jax.Array],
    pool_of: tuple[int, ...],
    ties: str,
    one_device: bool,
    axis_name: Any,
) -> tuple[list[Any], jax.Array]:
    specs = score_specs(score, operands)
    pools = Pools.of(specs, pool_of, axis_length(axis_name))
    check_pool_sizes(pools, ties)
    score = score_function(score, pools)
    dtype, has_floor = pools.common_dtype, among is not None
    is_gpu = on_gpu(jax.tree.leaves(operands))
    forms = [key_form(spec.dtype, dtype, spec.has_sign, has_floor, is_gpu) for spec in specs]
    allowed: Sequence[Any] = [None] * len(operands) if among is None else among
    bits = [x if isinstance(x, BitFlags) and is_gpu else None for x in allowed]
    pairs = list(zip(operands, map(_unpacked, allowed, operands), strict=True))
    with counting(pools.pool_dtype == jnp.uint64):
        problem = Problem(pools, (), score, ties, one_device, axis_name, is_gpu, bits)
        return select_all(Leaves(pairs, forms, problem, n_keep, start))


def _unpacked(among: Any, operand: Any) -> Any:
    """What may be kept of an operand, one flag for each entry; None if all."""
    return among.flags(jax.tree.leaves(operand)[0]) if isinstance(among, BitFlags) else among


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


def _scored(
    names: Sequence[str], arrays: Sequence[Any], score: Score | None
) -> tuple[list[jax.Array], Score]:
    """Checked operands for `select`, and the score function that it is to compute in its reads."""
    if score is None:
        return list(map(_checked_scores, names, arrays)), _identity
    if not callable(score):
        raise TypeError(
            f"{names[0].split(':')[0] if names else 'topk_masks'}: `score` must be a function from "
            f"an array to its scores, got {shown(score)}. Pass score=jnp.abs."
        )
    check_traceable("score", score)
    fix = "Pass one array of numbers, such as the weights of a layer."
    operands = [as_array(name, x, fix) for name, x in zip(names, arrays, strict=True)]
    for name, x in zip(names, operands, strict=True):
        _check_score(name, score, x)
    if all(_is_fused(score, x) for x in operands):
        return operands, score
    return [score(x) for x in operands], _identity


def _check_score(name: str, score: Score, x: jax.Array) -> None:
    """Raises if `score` does not map an array to real floating-point scores of its shape."""
    spec = jax.eval_shape(score, x)
    dtype, shape = getattr(spec, "dtype", None), getattr(spec, "shape", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name}: `score` must return real floating point, got {dtype or kind_of(spec)}. Let "
            "it return floats, such as jnp.abs(x).astype(jnp.float32)."
        )
    if shape != x.shape:
        raise ValueError(
            f"{name}: `score` must return one score for each of the {x.shape} entries, got shape "
            f"{shape}. Pass an elementwise function, such as jnp.abs."
        )


def _is_fused(score: Score, x: jax.Array) -> bool:
    """Whether a score has the same bits for an entry in whatever part of an array it is read."""
    declared = getattr(score, "elementwise", None)
    return is_elementwise_program(_Unary(score), x, None) if declared is None else bool(declared)


@dataclasses.dataclass(frozen=True)
class _Unary:
    """A score of one array in the form of the scores of `prune`."""

    score: Score

    def __call__(self, params: Any, grads: Any, key: Any) -> jax.Array:
        del grads, key
        return self.score(params)


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
