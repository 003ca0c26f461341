"""Shardings that are part of an array's type, on meshes with Explicit axes, and views with them.

On Auto axes the type says nothing: the compiler chooses, and every function here leaves it to.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def explicit_sharding(x: Any) -> Any:
    """The sharding of `x` where it is part of its type; else None, and the compiler chooses."""
    named = getattr(jax.typeof(x), "sharding", None) if isinstance(x, jax.Array) else None
    is_explicit = named is not None and AxisType.Explicit in getattr(named.mesh, "axis_types", ())
    return named if is_explicit else None


def sharding_in(mesh: Any, x: Any) -> NamedSharding:
    """The sharding of `x` by its type, or a copy on every device where it is not of this mesh."""
    named = getattr(jax.typeof(x), "sharding", None)
    if named is None or named.mesh != mesh:
        return NamedSharding(mesh, PartitionSpec())
    return named


def typed_like(x: jax.Array, like: Any) -> jax.Array:
    """`x` with the sharding that is part of the type of `like`, if any."""
    return x if (named := explicit_sharding(like)) is None else in_sharding(x, named)


def in_sharding(x: jax.Array, named: NamedSharding) -> jax.Array:
    """`x` with this sharding as part of its type."""
    return x if explicit_sharding(x) == named else jax.sharding.reshard(x, named)


def explicit_mesh(arrays: Iterable[Any]) -> Any:
    """The mesh with Explicit axes that some of the arrays lie on, or None."""
    found = [explicit_sharding(x) for x in arrays]
    return next((named.mesh for named in found if named is not None), None)


def on_one_device(tree: Any) -> bool:
    """Whether axes of the arrays may be merged freely: on one device, of which no mesh is made."""
    return jax.device_count() == 1 and explicit_mesh(jax.tree.leaves(tree)) is None


def summed_in_shards(
    add_up: Callable[..., jax.Array], arrays: Sequence[jax.Array], *others: jax.Array
) -> jax.Array:
    """What `add_up` counts in all of the arrays, so that as little as can be crosses devices.

    Where the arrays lie on one mesh of Explicit axes, every shard adds up what it has of them all,
    and one sum crosses. On Auto axes the compiler adds up over devices whatever `add_up` sums.

    Args:
      add_up: `(arrays, once, *others) -> counts`. In a shard `once(i, x)` is `x` where the shard
        is the first to hold its part of array `i`, and else 0; outside it is None.
      arrays: what is counted in.
      others: what else it takes, the same on every device.
    """
    found = [explicit_sharding(x) for x in arrays]
    mesh = found[0].mesh if found and found[0] is not None else None
    if mesh is None or any(named is None or named.mesh != mesh for named in found):
        return add_up(arrays, None, *others)
    axes = [_axes_in(named.spec) for named in found]
    every = tuple(axis for axis in mesh.axis_names if axis in set().union(*axes))
    if not every or any(kind != AxisType.Explicit for kind in mesh.axis_types):
        return add_up(arrays, None, *others)

    def once(i: int, x: jax.Array) -> jax.Array:
        is_first = jnp.ones((), bool)
        for axis in set(every) - axes[i]:
            is_first &= lax.axis_index(axis) == 0
        return jnp.where(is_first, x, jnp.zeros_like(x))

    def here(arrays: Sequence[jax.Array], others: Sequence[jax.Array]) -> jax.Array:
        return lax.psum(add_up(arrays, once, *others), every)

    in_specs = ([named.spec for named in found], [PartitionSpec()] * len(others))
    shards = jax.shard_map(here, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec())
    return shards(list(arrays), list(others))


def _axes_in(spec: PartitionSpec) -> set[str]:
    """The axes of a mesh that a spec shards over."""
    return {axis for part in spec if part for axis in ((part,) if isinstance(part, str) else part)}


def everywhere(x: jax.Array, arrays: Iterable[Any]) -> jax.Array:
    """`x` as a copy on every device, by its type, where the arrays lie on an Explicit mesh.

    A state that comes from `init` outside `jit` knows of no mesh. Without this its thresholds get
    one type in the first update and another in the second, each of which compiles.
    """
    mesh = explicit_mesh(arrays)
    if mesh is None:
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*[None] * x.ndim)))


def split_axis(x: jax.Array, axis: int, length: int) -> jax.Array:
    """[..., n * length, ...] as [..., n, length, ...]; the new axis is never sharded."""
    shape = (*x.shape[:axis], x.shape[axis] // length, length, *x.shape[axis + 1 :])
    named = explicit_sharding(x)
    if named is None:
        return lax.reshape(x, shape)
    spec = [*named.spec, *[None] * (x.ndim - len(named.spec))]
    spec.insert(axis + 1, None)
    split = NamedSharding(named.mesh, PartitionSpec(*spec))
    return lax.reshape(x, shape, out_sharding=split)


def merge_axis(x: jax.Array, like: jax.Array) -> jax.Array:
    """Undoes `split_axis`, into the shape and sharding of `like`."""
    return lax.reshape(x, like.shape, out_sharding=explicit_sharding(like))


def placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` with the sharding of another array; while tracing on Auto axes the compiler chooses."""
    if not isinstance(like, jax.core.Tracer):
        # What `device_put` commits compiles the second update anew.
        return x if x.sharding == like.sharding else jax.device_put(x, like.sharding)
    return typed_like(x, like)
