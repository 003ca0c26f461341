"""Shardings that are part of an array's type, on meshes with Explicit axes, and views with them.

On Auto axes the type says nothing: the compiler chooses, and every function here leaves it to.
"""

from typing import Any

import jax
import jax.core
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
    is_here = named is not None and named.mesh == mesh
    return named if is_here else NamedSharding(mesh, PartitionSpec())


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
        return jax.device_put(x, like.sharding)
    named = explicit_sharding(like)
    return x if named is None else jax.sharding.reshard(x, named)
