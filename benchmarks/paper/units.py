"""Prunes whole units during training: cells of an LSTM, or channels of a convolution.

A unit is an index along some axes of some arrays: those of its gates, its bias and batch norm, and
of the layers that read it. All these weights are dropped together, so the network at the end is a
smaller dense one, which `without_dead_units` extracts.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune

# Path of an array -> for each axis, the names of the groups of units that lie along it, in order.
Axes = Mapping[str, tuple[tuple[str, ...], ...]]


@dataclasses.dataclass(frozen=True)
class Units:
    """A structure for `Pruning`: whole units are dropped until each group has a given size.

    Attributes:
      axes: where the units of each group lie; an axis without units has an empty tuple.
      sizes: number of units in each group.
      keep: number of units in each group at the end.
    """

    axes: Axes
    sizes: Mapping[str, int]
    keep: Mapping[str, int]


class UnitState(NamedTuple):
    """The state of the inner optimizer, a bool[n] of kept units per group, and the step."""

    inner: Any
    kept: dict[str, jax.Array]
    step: jax.Array


def prune_units(
    units: Units, schedule: jaxprune.SparsitySchedule, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Drops the units with the smallest norms, more of them at every fire of the schedule.

    The norm is over all incoming and outgoing weights of a unit (Fang et al., DepGraph, 2023). When
    the schedule has reached a fraction of its final sparsity, the same fraction of the units to
    drop is dropped.
    """
    fraction = np.array([float(t / schedule.final_sparsity) for t in schedule.targets])
    n_keep = {
        name: jnp.asarray(np.rint(n - fraction * (n - units.keep[name])), jnp.int32)
        for name, n in units.sizes.items()
    }

    def init(params: Any) -> UnitState:
        kept = {name: jnp.ones(n, bool) for name, n in units.sizes.items()}
        return UnitState(inner.init(params), kept, jnp.zeros((), jnp.int32))

    def update(grads: Any, state: UnitState, params: Any = None) -> tuple[Any, UnitState]:
        norms = scores(units.axes, params, state.kept)
        fires, index = schedule.fires(state.step), schedule.index(state.step)
        largest = {name: jaxprune.topk_mask(x, n_keep[name][index]) for name, x in norms.items()}
        kept = {name: jnp.where(fires, largest[name], old) for name, old in state.kept.items()}
        masks = masks_of(units.axes, kept, params)
        grads = jax.tree.map(lambda m, g: jnp.where(m, g, 0), masks, grads)
        updates, inner_state = inner.update(grads, state.inner, params)
        updates = jax.tree.map(lambda m, u, p: jnp.where(m, u, -p), masks, updates, params)
        return updates, UnitState(inner_state, kept, state.step + 1)

    return optax.GradientTransformation(init, update)


def n_zero(units: Units, state: UnitState, params: Any) -> jax.Array:
    """Number of weights that belong to dropped units."""
    masks = masks_of(units.axes, state.kept, params)
    counts = (jnp.sum(~m, dtype=jnp.int32) for m in jax.tree.leaves(masks))
    return functools.reduce(operator.add, counts)


def masks_of(axes: Axes, kept: Mapping[str, jax.Array], tree: Any) -> Any:
    """Masks for the arrays of a tree: False where the unit of any axis is dropped."""

    def mask(path: Any, x: Any) -> jax.Array:
        leaf_mask = jnp.ones(jnp.shape(x), bool)
        for axis, groups in enumerate(axes.get(name_of(path), ())):
            if groups:
                kept_along = jnp.concatenate([kept[group] for group in groups])
                others = [i for i in range(jnp.ndim(x)) if i != axis]
                leaf_mask &= jnp.expand_dims(kept_along, others)
        return leaf_mask

    return jax.tree_util.tree_map_with_path(mask, tree)


def scores(axes: Axes, params: Any, like: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """float32[n] for each group: the norm over all weights of each unit."""
    squares = {name: jnp.zeros(x.shape, jnp.float32) for name, x in like.items()}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        for axis, groups in enumerate(axes.get(name_of(path), ())):
            if groups:
                others = tuple(i for i in range(jnp.ndim(x)) if i != axis)
                ends = np.cumsum([like[group].size for group in groups])[:-1]
                parts = jnp.split(jnp.sum(x * x, others), ends)
                for group, squares_along in zip(groups, parts, strict=True):
                    squares[group] += squares_along
    return {name: jnp.sqrt(x) for name, x in squares.items()}


def without_dead_units(axes: Axes, sizes: Mapping[str, int], variables: Any) -> Any:
    """Removes units whose params are all zero; also returns how many units each group keeps."""
    like = {name: jnp.zeros(n) for name, n in sizes.items()}
    kept = {name: x > 0 for name, x in scores(axes, variables["params"], like).items()}
    cut = functools.partial(_cut, axes, {name: np.asarray(x) for name, x in kept.items()})
    small = {name: jax.tree_util.tree_map_with_path(cut, x) for name, x in variables.items()}
    return small, {name: int(x.sum()) for name, x in kept.items()}


def _cut(axes: Axes, kept: Mapping[str, np.ndarray], path: Any, x: jax.Array) -> jax.Array:
    for axis, groups in enumerate(axes.get(name_of(path), ())):
        if groups:
            x = jnp.compress(np.concatenate([kept[group] for group in groups]), x, axis)
    return x


def name_of(path: Any) -> str:
    """A key path as a string, as in the keys of `Axes`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
