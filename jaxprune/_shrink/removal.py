"""Removes units from the leaves of a model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune._base.on_host import to_host
from jaxprune._base.sharding import placed_like
from jaxprune._shrink.groups import Group
from jaxprune._trace.program import Program

RemovedIndices = Mapping[int, Sequence[int]]  # by axis


def removed_indices(groups: Iterable[Group]) -> dict[int, RemovedIndices]:
    """For each leaf that gets smaller, the indices to remove, by axis."""
    removed: dict[int, dict[int, dict[int, None]]] = {}
    for group in groups:
        for unit in group.removed:
            for leaf, axis, index in unit.members:
                removed.setdefault(leaf, {}).setdefault(axis, {})[index] = None
    return {
        leaf: {axis: list(indices) for axis, indices in by_axis.items()}
        for leaf, by_axis in removed.items()
    }


def smaller_shapes(program: Program, groups: Iterable[Group]) -> Any:
    """The variables, with `jax.ShapeDtypeStruct`s in place of the leaves that get smaller."""
    leaves = list(program.leaves)
    for leaf, by_axis in removed_indices(groups).items():
        shape = list(np.shape(leaves[leaf]))
        for axis, indices in by_axis.items():
            shape[axis] -= len(indices)
        x = leaves[leaf]
        is_weak = getattr(x, "weak_type", False)  # as of `jnp.full(8, 1.0)`
        leaves[leaf] = jax.ShapeDtypeStruct(tuple(shape), x.dtype, weak_type=is_weak)
    return program.treedef.unflatten(leaves)


def without(program: Program, removed: Mapping[int, RemovedIndices]) -> Any:
    """The variables without these indices."""
    leaves = list(program.leaves)
    for leaf, by_axis in removed.items():
        leaves[leaf] = smaller_leaf(leaves[leaf], by_axis)
    return program.treedef.unflatten(leaves)


def smaller_leaf(x: Any, removed: RemovedIndices) -> Any:
    """An array without some indices of its axes, on the same devices.

    Its sharding stays; an axis that the devices no longer divide is not split any more. NumPy
    removes the indices, so that nothing is compiled.
    """
    if getattr(x, "weak_type", False):  # an array made of that of NumPy would promote others
        for axis, indices in removed.items():
            x = jnp.delete(x, np.array(indices), axis)
        return x
    smaller = to_host("shrink: a leaf of variables or along", x, "(variables, opt_state)")
    for axis, indices in removed.items():
        smaller = np.delete(smaller, indices, axis)
    if not isinstance(x, jax.Array):
        return smaller
    if not isinstance(x.sharding, NamedSharding):
        return placed_like(jnp.asarray(smaller), x)
    return jax.device_put(smaller, _fitting(x.sharding, smaller.shape))


def _fitting(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """A sharding without the splits of axes that the devices do not divide."""
    spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    for axis, names in enumerate(spec):
        names = names if isinstance(names, tuple) else (names,)
        n_parts = np.prod([sharding.mesh.shape[name] for name in names if name is not None])
        if shape[axis] % int(n_parts):
            spec[axis] = None
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))
