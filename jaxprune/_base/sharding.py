"""Shardings that are part of an array's type, on meshes with Explicit axes, and views with them.

On Auto axes the type says nothing: the compiler chooses, and every function here leaves it to.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
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


def n_devices(arrays: Iterable[Any]) -> int:
    """How many devices the arrays may be spread over: those of their mesh, else all there are.

    A type names the mesh on Auto axes too. A program may be compiled for devices that are not here.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in arrays]
    return max((mesh.size for mesh in meshes if not mesh.empty), default=jax.device_count())


def on_one_device(tree: Any) -> bool:
    """Whether axes of the arrays may be merged freely: on one device, with no Explicit axes."""
    arrays = jax.tree.leaves(tree)
    return n_devices(arrays) == 1 and explicit_mesh(arrays) is None


def on_tpu(arrays: Iterable[Any]) -> bool:
    """Whether the arrays lie on TPUs: by their mesh, else by the default backend."""
    kinds = [
        getattr(jax.typeof(x).sharding.mesh.abstract_device, "device_kind", "") for x in arrays
    ]
    kind = next(filter(None, kinds), "")
    return kind.startswith("TPU") if kind else jax.default_backend() == "tpu"


def in_lanes(
    add: Callable[[jax.Array], jax.Array], counts: jax.Array, most: int, n: int, dtype: Any
) -> jax.Array:
    """The sum of `n` counts, none above `most`, by an `add` that may cross devices.

    A sum past 32 bits is several of 32 bits, each of a few bits of every count: of a 64-bit sum
    over devices the TPU compiler makes a gather of as many numbers as there are devices.
    """
    if np.dtype(dtype).itemsize < 8:
        return add(counts)
    if most * n < 2**32:
        return add(counts.astype(jnp.uint32)).astype(dtype)
    n_bits = ((2**32 - 1) // n + 1).bit_length() - 1  # n * (2**n_bits - 1) < 2**32
    if not n_bits:
        return add(counts.astype(dtype))
    total: Any = 0
    for low in range(0, most.bit_length(), n_bits):
        lane = (counts >> low) & (2**n_bits - 1)
        total += add(lane.astype(jnp.uint32)).astype(dtype) << low
    return total


def summed_in_shards(
    add_up: Callable[..., jax.Array], arrays: Sequence[jax.Array], *others: Sequence[jax.Array]
) -> jax.Array:
    """What `add_up` counts in all of the arrays, so that as little as can be crosses devices.

    Where the arrays lie on one mesh of Explicit axes, every shard adds up what it has of them all,
    and one sum crosses. On Auto axes the compiler adds up over devices whatever `add_up` sums.

    Args:
      add_up: `(arrays, once, *others) -> counts`. In a shard `once(i, x)` is `x` where the shard
        is the first to hold its part of array `i`, and else 0; outside it is None.
      arrays: what is counted in.
      others: what else it takes: for each array one whose first axis is that of the array.
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

    def here(arrays: Sequence[jax.Array], others: Sequence[Sequence[jax.Array]]) -> jax.Array:
        counts, most = add_up(arrays, once, *others), sum(x.size for x in arrays)
        return in_lanes(lambda x: lax.psum(x, every), counts, most, mesh.size, counts.dtype)

    along = [NamedSharding(mesh, PartitionSpec(*named.spec[:1])) for named in found]
    rest = [list(map(in_sharding, other, along)) for other in others]
    in_specs = jax.tree.map(lambda x: explicit_sharding(x).spec, (list(arrays), rest))
    shards = jax.shard_map(here, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec())
    return shards(list(arrays), rest)


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
