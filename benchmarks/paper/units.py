"""Whole units pruned while training: an LSTM cell, a feature map, with all that belongs to them.

A unit is a place on some axes of some arrays: its gates, bias and batch norm, and the rows of the
layers that read it. It is dropped everywhere at once, so that what is left at the end is a smaller
dense network, which `without_dead_units` cuts out.
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

# For each array, by path, the groups of units along each axis, one after the other.
Axes = Mapping[str, tuple[tuple[str, ...], ...]]


@dataclasses.dataclass(frozen=True)
class Units:
    """A structure of this folder: whole units go, until so many of each group are left.

    Attributes:
      axes: where the units are. An axis without groups is an empty tuple.
      sizes: units in each group.
      keep: how many of each are left at the end.
    """

    axes: Axes
    sizes: Mapping[str, int]
    keep: Mapping[str, int]


class UnitState(NamedTuple):
    """The optimizer's state, bool[n] of each group, and the step."""

    inner: Any
    kept: dict[str, jax.Array]
    step: jax.Array


def prune_units(
    units: Units, schedule: jaxprune.SparsitySchedule, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Drops the units of the smallest norm as the schedule rises.

    The norm is over all weights of a unit, coming in and going out (Fang et al., DepGraph, 2023).
    The part of its final sparsity that the schedule has reached is the part of the units that has
    gone.
    """
    part = np.array([float(t / schedule.final_sparsity) for t in schedule.targets])
    left = {
        name: jnp.asarray(np.rint(n - part * (n - units.keep[name])), jnp.int32)
        for name, n in units.sizes.items()
    }

    def init(params: Any) -> UnitState:
        kept = {name: jnp.ones(n, bool) for name, n in units.sizes.items()}
        return UnitState(inner.init(params), kept, jnp.zeros((), jnp.int32))

    def update(grads: Any, state: UnitState, params: Any = None) -> tuple[Any, UnitState]:
        found = scores(units.axes, params, state.kept)
        now, place = schedule.fires(state.step), schedule.index(state.step)
        kept = {
            name: jnp.where(now, jaxprune.topk_mask(found[name], left[name][place]), old)
            for name, old in state.kept.items()
        }
        masks = masks_of(units.axes, kept, params)
        grads = jax.tree.map(lambda m, g: jnp.where(m, g, 0), masks, grads)
        updates, inside = inner.update(grads, state.inner, params)
        updates = jax.tree.map(lambda m, u, p: jnp.where(m, u, -p), masks, updates, params)
        return updates, UnitState(inside, kept, state.step + 1)

    return optax.GradientTransformation(init, update)


def n_zero(units: Units, state: UnitState, params: Any) -> jax.Array:
    """How many weights belong to units that are gone."""
    masks = masks_of(units.axes, state.kept, params)
    counts = (jnp.sum(~m, dtype=jnp.int32) for m in jax.tree.leaves(masks))
    return functools.reduce(operator.add, counts)


def masks_of(axes: Axes, kept: Mapping[str, jax.Array], tree: Any) -> Any:
    """bool arrays like those of the tree: False where a unit of any axis is gone."""

    def mask(path: Any, x: Any) -> jax.Array:
        found = jnp.ones(jnp.shape(x), bool)
        for axis, groups in enumerate(axes.get(name_of(path), ())):
            if groups:
                along = jnp.concatenate([kept[group] for group in groups])
                found &= jnp.expand_dims(along, [i for i in range(jnp.ndim(x)) if i != axis])
        return found

    return jax.tree_util.tree_map_with_path(mask, tree)


def scores(axes: Axes, params: Any, like: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """float32[n] for each group: the norm of all weights of each unit."""
    squares = {name: jnp.zeros(x.shape, jnp.float32) for name, x in like.items()}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        for axis, groups in enumerate(axes.get(name_of(path), ())):
            if groups:
                others = tuple(i for i in range(jnp.ndim(x)) if i != axis)
                ends = np.cumsum([like[group].size for group in groups])[:-1]
                parts = jnp.split(jnp.sum(x * x, others), ends)
                for group, along in zip(groups, parts, strict=True):
                    squares[group] += along
    return {name: jnp.sqrt(x) for name, x in squares.items()}


def without_dead_units(axes: Axes, sizes: Mapping[str, int], variables: Any) -> Any:
    """The variables without the units whose params are all zero, and how many are left of each."""
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
    """A path as the keys of `Axes` have it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
