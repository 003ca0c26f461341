"""`metrics`: the progress of pruning as scalars for a logger."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import as_flag
from jaxprune._base.counting import counting, is_wide
from jaxprune._base.paths import check_not_donated, leaves_with_paths, paths_of
from jaxprune._report.unfinished import require_progress
from jaxprune._state.prune_state import PruneState, find_states, require_states, unboxed
from jaxprune._state.pruned_paths import recorded_pruned


def metrics(
    opt_state: Any, *, per_leaf: bool = False, missing_ok: bool = False
) -> dict[str, jax.Array]:
    """The progress of pruning as scalars for a logger. It works inside `jit`, and reads no masks.

    Args:
      opt_state: any optimizer state with prune states inside. With several, counts are added up,
        and `prune/step` and `prune/fires_left` are the largest; `get_state` of a part of the
        optimizer state selects one. A leaf that several states prune counts once, with the most
        weights that one of them drops. With several networks, pass the state of one, such as
        `states["q1"]`: leaves with the same path would be taken for one.
      per_leaf: whether to add the sparsity and the threshold of every pruned leaf.
      missing_ok: return zeros if there is no prune state, for a dense baseline in the same loop.
        Then `per_leaf` adds nothing.

    Returns:
      float32 and int32 scalars by name. They cover the leaves that are pruned, unless stated
      otherwise; with `structural`, only the weights that exist are counted. With `axis_name`, all
      parts of a pruned leaf are counted, and of a leaf that is not pruned the part that is there.

      - `prune/step`: the number of updates so far.
      - `prune/sparsity`: the fraction of weights that are dropped.
      - `prune/sparsity_all`: the same, of all leaves.
      - `prune/target`: the sparsity when the schedule is done.
      - `prune/n_zero`: how many weights are dropped (float32).
      - `prune/fires_left`: how many fires of the schedule are still to come.
      - `prune/emptied_leaves`: how many leaves have lost all of their weights.
      - `prune/violations`: as in `PruneState`.

      With `per_leaf` also `prune/sparsity/PATH` and `prune/threshold/PATH`. For a state made under
      `vmap`, every value has the leading axis of the state.

    Raises:
      ValueError: no prune state, or one without `progress`, which `upgrade_state` adds.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(4)}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> values = metrics(state)
      >>> [float(values[f"prune/{name}"]) for name in ("sparsity", "sparsity_all", "fires_left")]
      [0.5, 0.25, 0.0]
    """
    per_leaf = as_flag("metrics: per_leaf", per_leaf)
    if as_flag("metrics: missing_ok", missing_ok) and not find_states(opt_state):
        return _values(_none())
    states = require_states(opt_state)
    require_progress(states)
    check_not_donated("metrics: opt_state", states)
    scalars = _values(_totals(states))
    if per_leaf:
        trees = [tuple(paths_of(state.masks)) for state in states]
        for i, state in enumerate(states):
            scalars |= _by_leaf(state, trees[i + 1 :].count(trees[i]))
    return scalars


class _Totals(NamedTuple):
    """What one or several prune states add up to; every field has the axes of a batched state.

    Attributes:
      step: the number of updates.
      fires_left: fires that are still to come.
      zeros: weights of pruned leaves that are dropped, float32.
      target: the sparsity of pruned leaves when the schedule is done, float32.
      pruned_size: weights in pruned leaves, float32.
      size: weights in all leaves, float32.
      emptied: pruned leaves without a weight that is kept.
      violations: as in the state.
    """

    step: Any
    fires_left: Any
    zeros: Any
    target: Any
    pruned_size: Any
    size: Any
    emptied: Any
    violations: Any


def _none() -> _Totals:
    """The totals of no state at all."""
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return _Totals(none, none, zero, zero, zero, zero, none, none)


def _totals(states: Sequence[PruneState]) -> _Totals:
    """What the states hold together."""
    by_state = [_leaf_counts(state) for state in states]
    counts = _merged(states, by_state)
    of_pruned = lambda values, own=counts: jnp.sum(jnp.where(own.is_pruned, values, 0), -1)
    pruned_sizes = [of_pruned(own.sizes, own) for own in by_state]
    targets = [
        unboxed(state.progress.target) * size
        for state, size in zip(states, pruned_sizes, strict=True)
    ]
    steps = [unboxed(state.prune_step) for state in states]
    fires_left = [unboxed(state.progress.fires_left) for state in states]
    return _Totals(
        step=functools.reduce(jnp.maximum, steps),
        fires_left=functools.reduce(jnp.maximum, fires_left),
        zeros=of_pruned(counts.zeros),
        target=_sum(targets) / jnp.maximum(_sum(pruned_sizes), 1),
        pruned_size=of_pruned(counts.sizes),
        size=jnp.sum(counts.sizes, -1),
        emptied=jnp.sum(counts.is_empty, -1, dtype=jnp.int32),
        violations=_sum([unboxed(state.violations) for state in states]),
    )


def _sum(arrays: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, arrays)


class _LeafCounts(NamedTuple):
    """Counts of each leaf; every field has the axes of a batched state, and one of the leaves."""

    zeros: jax.Array
    sizes: jax.Array
    is_pruned: jax.Array
    is_empty: jax.Array


def _leaf_counts(state: PruneState) -> _LeafCounts:
    """The counts of the leaves of one state, those of weights as float32."""
    zeros, sizes, is_pruned = _counts(state)
    with counting(is_wide(zeros)):
        is_empty = is_pruned & (zeros == sizes) & (sizes > 0)
    return _LeafCounts(zeros.astype(jnp.float32), sizes.astype(jnp.float32), is_pruned, is_empty)


def _merged(states: Sequence[PruneState], counts: Sequence[_LeafCounts]) -> _LeafCounts:
    """The counts of all leaves of several states, a leaf of more than one counted once."""
    if len(states) == 1:
        return counts[0]
    paths = [paths_of(state.masks) for state in states]
    place = {path: i for i, path in enumerate(dict.fromkeys(itertools.chain(*paths)))}
    merged = _LeafCounts(*(jnp.zeros((*x.shape[:-1], len(place)), x.dtype) for x in counts[0]))
    for own_paths, own in zip(paths, counts, strict=True):
        at = np.array([place[path] for path in own_paths], int)
        own = own._replace(zeros=jnp.where(own.is_pruned, own.zeros, 0))
        merged = _LeafCounts(*(x.at[..., at].max(y) for x, y in zip(merged, own, strict=True)))
    return merged


def _counts(state: PruneState) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Dropped weights, sizes, and whether it is pruned, of every leaf: each [..., n_leaves]."""
    zeros = jnp.asarray(unboxed(state.progress.zeros))
    is_pruned = jnp.asarray(unboxed(state.progress.pool_of)) >= 0
    n_batch_axes = jnp.ndim(unboxed(state.prune_step))
    shapes = [jnp.shape(mask)[n_batch_axes:] for mask in jax.tree.leaves(state.masks)]
    n_bytes = np.array([math.prod(shape) for shape in shapes], np.int64)
    n_rows = np.array([math.prod(shape[:-1]) for shape in shapes], np.int64)
    if state.progress.sizes is not None:
        return zeros, jnp.asarray(unboxed(state.progress.sizes)), is_pruned
    with counting(is_wide(zeros)):
        if state.widths is None:
            sizes = jnp.broadcast_to(jnp.asarray(n_bytes, zeros.dtype), zeros.shape)
        else:
            rows = jnp.broadcast_to(jnp.asarray(n_rows, zeros.dtype), zeros.shape)
            sizes = rows * jnp.asarray(unboxed(state.widths)).astype(zeros.dtype)
        if state.progress.absent is not None:
            sizes = sizes - jnp.asarray(unboxed(state.progress.absent))
    return zeros, sizes, is_pruned


def _values(totals: _Totals) -> dict[str, jax.Array]:
    return {
        "prune/step": totals.step,
        "prune/sparsity": totals.zeros / jnp.maximum(totals.pruned_size, 1),
        "prune/sparsity_all": totals.zeros / jnp.maximum(totals.size, 1),
        "prune/target": totals.target,
        "prune/n_zero": totals.zeros,
        "prune/fires_left": totals.fires_left,
        "prune/emptied_leaves": totals.emptied,
        "prune/violations": totals.violations,
    }


def _by_leaf(state: PruneState, n_later: int) -> dict[str, jax.Array]:
    """The sparsity and the threshold of every leaf that is pruned.

    Args:
      state: the state.
      n_later: how many of the states after it have the same leaves.
    """
    paths, _, _ = leaves_with_paths(state.masks)
    zeros, sizes = (counts.astype(jnp.float32) for counts in _counts(state)[:2])
    thresholds = jnp.asarray(unboxed(state.thresholds))
    pruned = _pruned_paths(state, paths, n_later)
    scalars = {}
    for i, path in enumerate(paths):
        if path in pruned:
            scalars[f"prune/sparsity/{path}"] = zeros[..., i] / jnp.maximum(sizes[..., i], 1)
            scalars[f"prune/threshold/{path}"] = thresholds[..., i]
    return scalars


def _pruned_paths(state: PruneState, paths: Sequence[str], n_later: int) -> frozenset[str]:
    """The paths of the pruned leaves: from the state, or inside `jit` as they were recorded."""
    pool_of = unboxed(state.progress.pool_of)
    if isinstance(pool_of, jax.core.Tracer):
        return recorded_pruned(paths, n_later)
    pruned = np.any(np.asarray(pool_of) >= 0, axis=tuple(range(jnp.ndim(pool_of) - 1)))
    return frozenset(path for path, is_pruned in zip(paths, pruned, strict=True) if is_pruned)
