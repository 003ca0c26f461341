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
from jaxprune._base.paths import check_not_donated, paths_of, shown_path
from jaxprune._report.unfinished import check_whole, require_progress
from jaxprune._state.progress import Progress
from jaxprune._state.prune_state import (
    PruneState,
    find_states,
    n_batch_axes_of,
    require_states,
    unboxed,
)
from jaxprune._state.pruned_paths import recorded_pruned


def metrics(
    opt_state: Any, *, per_leaf: bool = False, missing_ok: bool = False
) -> dict[str, jax.Array]:
    """The progress of pruning as scalars for a logger. It works inside `jit`, and reads no masks.

    Args:
      opt_state: any optimizer state with prune states inside. With several, counts are added up,
        and `prune/step` and `prune/fires_left` are the largest; `get_state` of a part of the
        optimizer state selects one. A leaf that several states prune counts once, as in the state
        that keeps the fewest of its weights. With several networks, pass the state of one, such as
        `states["q1"]`: leaves with the same path would be taken for one.
      per_leaf: whether to add the sparsity and the threshold of every pruned leaf. Inside `jit`,
        the pruned leaves are those of the last optimizers that ran in this process on a tree of
        the same paths. If a step has several optimizers of one tree, call `metrics` with `per_leaf`
        outside `jit`, or inside it without.
      missing_ok: return zeros if there is no prune state, for a dense baseline in the same loop.
        Then `per_leaf` adds nothing.

    Returns:
      float32 and int32 scalars by name. They cover the leaves that are pruned, unless stated
      otherwise; with `structural`, only the weights that exist are counted. With `axis_name`, all
      parts of a pruned leaf are counted, but only the local part of a leaf that is not pruned.

      - `prune/step`: the number of updates so far.
      - `prune/sparsity`: the fraction of weights that are dropped.
      - `prune/sparsity_all`: the same, of all leaves that the states see. Those that
        `optax.masked` or `optax.partition` hides from every state are left out.
      - `prune/target`: the sparsity when the schedule is done. A leaf that several states prune
        counts once, with the largest target that one of them has for it. If the target of a single
        leaf is not known in advance, an average stands for it: that of the pool, for leaves that
        share one; that of all such leaves of the state, for blocks, channels, N:M groups and
        slices.
      - `prune/n_zero`: how many weights are dropped (float32).
      - `prune/fires_left`: how many fires of the schedule are still to come.
      - `prune/emptied_leaves`: how many leaves have lost all of their weights.
      - `prune/violations`: as in `PruneState`.

      With `per_leaf` also `prune/sparsity/PATH` and `prune/threshold/PATH`. For a state made under
      `vmap`, every value has the leading axis of the state.

    Raises:
      ValueError: no prune state, or one without `progress`, which `upgrade_state` adds; or states
        of several networks, as far as the shapes of their masks tell.

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
    check_whole(states)
    check_not_donated("metrics: opt_state", states)
    paths, counts = _merged(states)
    scalars = _values(_totals(states, counts))
    return scalars | _by_leaf(states, paths, counts) if per_leaf else scalars


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


def _totals(states: Sequence[PruneState], counts: _LeafCounts) -> _Totals:
    """What the states hold together."""
    of_pruned = lambda values: jnp.sum(jnp.where(counts.is_pruned, values, 0), -1)
    steps = [unboxed(state.prune_step) for state in states]
    fires_left = [unboxed(state.progress.fires_left) for state in states]
    violations = [unboxed(state.violations) for state in states]
    pruned_size = of_pruned(counts.sizes)
    target = unboxed(states[0].progress.target)
    if len(states) > 1:
        target = of_pruned(counts.sizes - counts.left) / jnp.maximum(pruned_size, 1)
    return _Totals(
        step=functools.reduce(jnp.maximum, steps),
        fires_left=functools.reduce(jnp.maximum, fires_left),
        zeros=of_pruned(counts.zeros),
        target=target,
        pruned_size=pruned_size,
        size=jnp.sum(counts.sizes, -1),
        emptied=jnp.sum(counts.is_empty, -1, dtype=jnp.int32),
        violations=functools.reduce(operator.add, violations),
    )


class _LeafCounts(NamedTuple):
    """Counts of each leaf; every field has the axes of a batched state, and one of the leaves.

    Attributes:
      zeros: weights that are dropped, float32.
      sizes: weights, float32.
      kept: weights that are not dropped, float32; all of them for a leaf that is not pruned.
      left: as `kept`, when the schedule is done; None where there is one state, whose `target` says
        enough.
      is_pruned: whether the state prunes the leaf.
      is_empty: whether it is pruned and has lost all of its weights.
      thresholds: as in the state.
    """

    zeros: jax.Array
    sizes: jax.Array
    kept: jax.Array
    left: Any
    is_pruned: jax.Array
    is_empty: jax.Array
    thresholds: jax.Array


def _leaf_counts(state: PruneState) -> _LeafCounts:
    """The counts of the leaves of one state."""
    zeros, sizes, is_pruned = _counts(state)
    with counting(is_wide(zeros)):
        is_empty = is_pruned & (zeros == sizes) & (sizes > 0)
        kept = jnp.where(is_pruned, sizes - zeros, sizes).astype(jnp.float32)
    zeros, sizes = zeros.astype(jnp.float32), sizes.astype(jnp.float32)
    thresholds = jnp.asarray(unboxed(state.thresholds))
    return _LeafCounts(zeros, sizes, kept, None, is_pruned, is_empty, thresholds)


def _final_zeros(progress: Progress, counts: _LeafCounts) -> jax.Array:
    """How many weights of each leaf are dropped when the schedule is done: float32[..., n_leaves].

    For a leaf with a budget of its own that counts weights, this is `due`. Of a pool, each leaf has
    the same fraction. What is due to all others is known only as what remains of the target of the
    state, of which each leaf has the same fraction, too.
    """
    accounts = jnp.maximum(jnp.asarray(unboxed(progress.pool_of)), 0)
    due = unboxed(progress.due)
    with counting(is_wide(due)):
        due = jnp.asarray(due).astype(jnp.float32)
    of_account = lambda values: jnp.take_along_axis(values, accounts, -1)
    sizes = jnp.where(counts.is_pruned, counts.sizes, 0)
    is_known = of_account(jnp.asarray(unboxed(progress.unit_size))) > 0
    fractions = sizes / jnp.maximum(of_account(_sums(accounts, sizes)), 1)
    known = jnp.where(is_known, of_account(due) * fractions, 0)
    others = jnp.where(is_known, 0, sizes)
    total = lambda values: jnp.sum(values, -1, keepdims=True)
    remain = jnp.asarray(unboxed(progress.target))[..., None] * total(sizes) - total(known)
    return known + jnp.maximum(remain, 0) * others / jnp.maximum(total(others), 1)


@functools.partial(jnp.vectorize, signature="(n),(n)->(n)")
def _sums(places: jax.Array, values: jax.Array) -> jax.Array:
    """The sum of the values at each place."""
    return jnp.zeros_like(values).at[places].add(values)


def _merged(states: Sequence[PruneState]) -> tuple[list[str], _LeafCounts]:
    """The paths and counts of all leaves of the states.

    The counts of a leaf are those of the state that keeps the fewest of its weights. A state that
    does not prune it may not know which weights exist, so it counts only if no state does.
    """
    paths = [paths_of(state.masks) for state in states]
    place = {path: i for i, path in enumerate(dict.fromkeys(itertools.chain(*paths)))}
    counts = [_leaf_counts(state) for state in states]
    if len(states) == 1:
        return list(place), counts[0]
    for i, (state, own) in enumerate(zip(states, counts, strict=True)):
        counts[i] = own._replace(left=own.sizes - _final_zeros(state.progress, own))
    _check_shapes(states, paths)
    merged = _LeafCounts(*(jnp.zeros((*x.shape[:-1], len(place)), x.dtype) for x in counts[0]))
    for own_paths, own in zip(paths, counts, strict=True):
        at = np.array([place[path] for path in own_paths], int)
        others = _LeafCounts(*(x[..., at] for x in merged))
        is_fewer = jnp.where(own.is_pruned, own.kept < others.kept, own.kept > others.kept)
        is_first = jnp.where(own.is_pruned == others.is_pruned, is_fewer, own.is_pruned)
        best = [jnp.where(is_first, x, y) for x, y in zip(own, others, strict=True)]
        best = _LeafCounts(*best)
        both, least = own.is_pruned & others.is_pruned, jnp.minimum(own.left, others.left)
        best = best._replace(left=jnp.where(both, least, best.left))
        merged = _LeafCounts(*(x.at[..., at].set(y) for x, y in zip(merged, best, strict=True)))
    return list(place), merged


def _check_shapes(states: Sequence[PruneState], paths: Sequence[list[str]]) -> None:
    """Raises where masks with the same path have different shapes: they are of two networks."""
    shape_at: dict[Any, tuple[int, ...]] = {}
    for state, own_paths in zip(states, paths, strict=True):
        for path, mask in zip(own_paths, jax.tree.leaves(state.masks), strict=True):
            shape, is_packed = jnp.shape(mask), state.widths is not None
            if shape_at.setdefault((path, is_packed), shape) != shape:
                raise ValueError(
                    f"metrics: {shown_path(path)}: the prune states have masks of the shapes "
                    f"{shape_at[path, is_packed]} and {shape}, so they are of several networks. "
                    'Pass the state of one, such as states["q1"].'
                )


def _counts(state: PruneState) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Dropped weights, sizes, and whether it is pruned, of every leaf: each [..., n_leaves]."""
    zeros = jnp.asarray(unboxed(state.progress.zeros))
    is_pruned = jnp.asarray(unboxed(state.progress.pool_of)) >= 0
    n_batch_axes = n_batch_axes_of(state)
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


def _by_leaf(
    states: Sequence[PruneState], paths: Sequence[str], counts: _LeafCounts
) -> dict[str, jax.Array]:
    """The sparsity and the threshold of every leaf that is pruned.

    Args:
      states: the states.
      paths: of all of their leaves.
      counts: of the same leaves.
    """
    trees = [tuple(paths_of(state.masks)) for state in states]
    n_later = [trees[i + 1 :].count(tree) for i, tree in enumerate(trees)]
    pruned = frozenset[str]().union(*map(_pruned_paths, states, trees, n_later))
    scalars = {}
    for i, path in enumerate(paths):
        if path in pruned:
            sizes = jnp.maximum(counts.sizes[..., i], 1)
            scalars[f"prune/sparsity/{path}"] = counts.zeros[..., i] / sizes
            scalars[f"prune/threshold/{path}"] = counts.thresholds[..., i]
    return scalars


def _pruned_paths(state: PruneState, paths: Sequence[str], n_later: int) -> frozenset[str]:
    """The paths of the pruned leaves: from the state, or inside `jit` as they were recorded."""
    pool_of = unboxed(state.progress.pool_of)
    if isinstance(pool_of, jax.core.Tracer):
        return recorded_pruned(paths, n_later)
    pruned = np.any(np.asarray(pool_of) >= 0, axis=tuple(range(jnp.ndim(pool_of) - 1)))
    return frozenset(path for path, is_pruned in zip(paths, pruned, strict=True) if is_pruned)
