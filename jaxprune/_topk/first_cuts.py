"""The cuts of the first pass: a guess. A bad guess costs more passes; the result is the same."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.float_bits import bits_of, order_key
from jaxprune._base.places import picked_in_rows
from jaxprune._topk.bracket import LADDER, N_CUTS
from jaxprune._topk.problem import Problem
from jaxprune._topk.stacks import Pools, Stack, of_entries

# The size of the sample for the first cuts, by the least number of entries of a leaf. Smaller ones
# are not sampled: sorting a sampled key takes as long as reading 200 entries once.
_SAMPLES = ((2**26, 2**15), (2**22, 2**13), (2**19, 2**10), (2**15, 2**7))
# The sample comes from about this many rows at most.
_SAMPLED_ROWS = 2**10
# Where the cuts of a warm start lie around the last threshold, as key distances of a float32: about
# 12%, 1.6% and 0.2% of the threshold on either side.
_WARM = np.array([-(2**20), -(2**17), -(2**14), 0, 2**14, 2**17, 2**20], np.int64)


def first_cuts(fraction: jax.Array, problem: Problem, start: jax.Array | None) -> jax.Array:
    """Cuts of the first pass: around a sample's quantiles, else around `start`, else evenly spread.

    The sample takes precedence because the last threshold goes stale: if a tenth more is to be
    dropped, a warm start takes 5 to 8 passes over 1e7 weights, and a sample takes 3 to 6.

    Args:
      fraction: float32[n_pools], the fraction of each pool to keep.
      problem: the selection.
      start: float[n_pools], the last thresholds. Zero and non-finite ones are ignored.

    Returns:
      Keys, [n_pools, N_CUTS]. They may lie outside the bracket.
    """
    pools = problem.pools
    cuts = _even_cuts(pools)
    if start is not None:
        warm = _warm_cuts(start, pools, jnp.zeros_like(cuts))
        is_usable = jnp.isfinite(start) & (start != 0)
        cuts = jnp.where(is_usable[:, None], warm, cuts)
    for pools, keys in _samples(problem):
        quantiles = _quantile_cuts(keys, 1 - _rows(fraction, pools)).astype(cuts.dtype)
        if len(pools) < len(cuts):
            cuts = cuts.at[pools].set(quantiles)
        else:  # the cuts above are not computed, and there is no scatter: fewer kernels
            cuts = _rows(quantiles, np.argsort(pools))
    return cuts


def _rows(x: jax.Array, places: np.ndarray) -> jax.Array:
    """The rows of an array at these places; the array itself if these are all rows in order."""
    return x if np.array_equal(places, np.arange(len(x))) else x[places]


def _even_cuts(pools: Pools) -> jax.Array:
    """Cuts that divide the keys of the non-negative scores evenly, [n_pools, N_CUTS]."""
    rows = []
    for dtype in pools.score_dtypes:
        bits = bits_of(dtype)
        rows.append([bits.sign + bits.infinity * i // (N_CUTS + 1) for i in range(1, N_CUTS + 1)])
    return jnp.asarray(np.array(rows, np.dtype(pools.pool_dtype)))


def _warm_cuts(start: jax.Array, pools: Pools, cuts: jax.Array) -> jax.Array:
    """Replaces `cuts` by cuts around the last threshold of each pool, [n_pools, N_CUTS]."""
    steps = np.stack([_warm_steps(dtype, pools.pool_dtype) for dtype in pools.score_dtypes])
    for dtype, has_dtype in pools.by_dtype():
        key = order_key(start.astype(dtype)).astype(pools.pool_dtype)[:, None]
        cuts = jnp.where(has_dtype[:, None], key + steps, cuts)
    return cuts


def _warm_steps(dtype: Any, key_dtype: Any) -> np.ndarray:
    """Key distances of the warm cuts. Negative ones wrap, and adding them wraps back."""
    unit = 2.0 ** (jnp.finfo(dtype).nmant - 23)
    steps = [math.copysign(max(abs(s) * unit, 1), s) if s else 0 for s in _WARM.tolist()]
    return np.array(steps, np.int64).astype(np.dtype(key_dtype))


def _samples(problem: Problem) -> list[tuple[np.ndarray, jax.Array]]:
    """Samples the keys of large pools: leaves of their own, or one pool of all leaves.

    Only on one device, where rows may be picked at no cost.

    Returns:
      Some pools, and as many keys for each of them, [pools, n]. No pool comes twice.
    """
    if not problem.one_device:
        return []
    if len(problem.pools.sizes) == 1:
        return _sample_of_all(problem)
    samples: dict[int, list[tuple[np.ndarray, jax.Array]]] = {}
    for stack in problem.stacks:
        is_pool = all(problem.pools.sizes[pool] == stack.size for pool in stack.pool_of)
        n = _sample_size(stack.size)
        if n and is_pool:
            samples.setdefault(n, []).append((stack.pool_of, _sampled_keys(stack, n, problem)))
    return [
        (np.concatenate([pools for pools, _ in of_size]), jnp.concatenate([k for _, k in of_size]))
        for of_size in samples.values()
    ]


def _sample_of_all(problem: Problem) -> list[tuple[np.ndarray, jax.Array]]:
    """`_samples` where all leaves are one pool: from each leaf a share that its size deserves."""
    [size] = problem.pools.sizes
    n = _sample_size(size)
    stacks = [stack for stack in problem.stacks if stack.size * n >= size and not stack.is_sliced]
    keys = [_sampled_keys(stack, stack.size * n // size, problem) for stack in stacks]
    joined = [k.reshape(1, -1) for k in keys]
    return [(np.zeros(1, int), jnp.concatenate(joined, axis=1))] if joined else []


def _sample_size(size: int) -> int:
    """How many of `size` entries to sample; 0 for none."""
    return next((n for least, n in _SAMPLES if size >= least), 0)


def _sampled_keys(stack: Stack, n: int, problem: Problem) -> jax.Array:
    """The keys of `n` entries of each member of a stack, [n_members, n]."""
    return problem.order_keys(of_entries(functools.partial(_sample, n=n), stack.x))


def _sample(x: jax.Array, n: int) -> jax.Array:
    """Takes `n` entries of each member, spread over all of it: [n_members, n].

    The stride has no common divisor with the row length, so every column is sampled. Whole rows are
    selected first: where memory is tiled, merging the axes of the whole array would copy it.

    Args:
      x: [n_members, rows, row], or [n_members, row].
    """
    *_, row = x.shape
    if x.ndim > 2:
        row_stride = -(-x.shape[1] // max(_SAMPLED_ROWS, 16 * n // row))
        x = x[:, row_stride // 2 :: row_stride]
    flat = x.reshape(len(x), -1)
    stride = flat.shape[1] // n
    while math.gcd(stride, row) > 1:
        stride -= 1
    return flat[:, stride // 2 : stride * n : stride]


def _quantile_cuts(keys: jax.Array, fraction: jax.Array) -> jax.Array:
    """Cuts around the key that this fraction of a pool's entries lies below, [n_pools, N_CUTS].

    Args:
      keys: [n_pools, n] sampled keys.
      fraction: float32[n_pools].
    """
    key = lax.sort(keys, dimension=1, is_stable=False)  # a stable sort would move places, too
    n = key.shape[1]
    deviation = jnp.sqrt(fraction * (1 - fraction) * n) + 1
    index = (fraction * n)[:, None] + deviation[:, None] * jnp.asarray(LADDER)[None, :]
    cuts = picked_in_rows(key, jnp.clip(index.astype(jnp.int32), 0, n - 1))
    # Two equal cuts enclose a tied key: raising the second one by 1 settles that key in one pass.
    is_repeated = jnp.pad(cuts[:, 1:] == cuts[:, :-1], ((0, 0), (1, 0)))
    return cuts + is_repeated.astype(cuts.dtype)
