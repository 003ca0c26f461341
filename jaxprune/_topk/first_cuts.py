"""Where the search for the cuts opens: a guess, which costs passes when it is wrong, no more."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.float_bits import bits_of, order_key
from jaxprune._topk.stacks import Group, Stack

# Thresholds counted in one read. XLA CPU fuses up to 15 reduction operands; 7 cost about one memory
# read.
N_CUTS = 7
# Where the cuts of an interpolated pass lie around the expected place, in standard deviations.
LADDER = np.array([-3.5, -1.1, -0.35, 0.0, 0.35, 1.1, 3.5], np.float32)
# Leaves of this many entries are worth sampling for the first cuts, and this many are sampled.
_SAMPLED, _SAMPLE = 2**17, 2**13
# The sample comes from so many rows at most.
_SAMPLED_ROWS = 2**10
# Where the cuts of a warm start lie around the last threshold, as key distances of a float32: about
# 12%, 1.6% and 0.2% of the threshold on either side.
_WARM = np.array([-(2**20), -(2**17), -(2**14), 0, 2**14, 2**17, 2**20], np.int64)


def opening_cuts(
    part: jax.Array,
    keys: Callable[[Any, Any], jax.Array],
    stacks: Sequence[Stack],
    group: Group,
    start: jax.Array | None,
) -> jax.Array:
    """Cuts of the first pass: around a sample's quantiles, else around `start`, else evenly spread.

    The sample comes first because the last threshold goes stale: with a tenth more to drop it costs
    5 to 8 passes over 1e7 weights, where a sample of today's weights costs 3 to 6.

    Args:
      part: float32[n_pools], how much of each pool is wanted.
      keys: of an operand and of what may be kept in it.
      stacks: what may be sampled.
      group: the pools.
      start: float[n_pools], the last thresholds.

    Returns:
      Keys, [n_pools, n_cuts], which may lie outside the bracket.
    """
    rows = []
    for dtype in group.floats:
        _, sign, infinity = bits_of(dtype)  # the keys of the non-negative
        rows.append([sign + infinity * i // (N_CUTS + 1) for i in range(1, N_CUTS + 1)])
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
        cuts = _quantile_cuts(jnp.concatenate(samples), 1 - part[pools])
        opening = opening.at[pools].set(cuts.astype(opening.dtype))
    return opening


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
    at = (part * n)[:, None] + deviation[:, None] * jnp.asarray(LADDER)[None, :]
    cuts = jnp.take_along_axis(key, jnp.clip(at.astype(jnp.int32), 0, n - 1), axis=1)
    # Where entries tie, the cut above the tied key settles it in the same pass.
    same = jnp.pad(cuts[:, 1:] == cuts[:, :-1], ((0, 0), (1, 0)))
    return cuts + same.astype(cuts.dtype)


def _warm_steps(dtype: Any, key_dtype: Any) -> np.ndarray:
    """Key distances of the warm cuts; the negative ones wrap, as unsigned addition undoes."""
    unit = 2.0 ** (jnp.finfo(dtype).nmant - 23)
    steps = [math.copysign(max(abs(s) * unit, 1), s) if s else 0 for s in _WARM.tolist()]
    return np.array(steps, np.int64).astype(np.dtype(key_dtype))
