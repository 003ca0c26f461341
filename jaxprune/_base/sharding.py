"""Shardings in the types of arrays, on meshes with Explicit axes, and views that keep them.

On Auto axes the type holds no sharding: the compiler chooses it, and the functions of this module
leave the choice to it.
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
    """The sharding in the type of `x`, if its mesh has Explicit axes; else None."""
    named = getattr(jax.typeof(x), "sharding", None) if isinstance(x, jax.Array) else None
    is_explicit = named is not None and AxisType.Explicit in getattr(named.mesh, "axis_types", ())
    return named if is_explicit else None


def sharding_to_make(like: Any) -> Any:
    """The `explicit_sharding` of `like`, if its mesh is set: what `out_sharding` of a maker takes.

    JAX makes an array from no other on a mesh, such as random numbers, under `jax.set_mesh` only.
    """
    named = explicit_sharding(like)
    is_set = named is not None and named.mesh == jax.sharding.get_abstract_mesh()
    return named if is_set else None


def sharding_in(mesh: Any, x: Any) -> NamedSharding:
    """The sharding in the type of `x` if on this mesh; else that of a copy on every device."""
    named = getattr(jax.typeof(x), "sharding", None)
    if named is None or named.mesh != mesh:
        return NamedSharding(mesh, PartitionSpec())
    return named


def is_sharded_along(x: Any, axes: Iterable[int]) -> bool:
    """Whether the type of `x` says that one of these axes is sharded, on Explicit axes."""
    named = explicit_sharding(x)
    parts = () if named is None else tuple(named.spec)
    return any(axis < len(parts) and parts[axis] is not None for axis in axes)


def varying_axes(x: Any) -> frozenset[str]:
    """The axes of the mesh over which `x` differs between devices, as `jax.shard_map` tracks it.

    Empty outside `shard_map`, and inside with `check_vma=False`, where it is unknown.
    """
    kind = jax.typeof(x)
    if hasattr(kind, "mat"):  # JAX 0.10 and newer
        return frozenset(kind.mat.varying)
    return frozenset(getattr(kind, "vma", ()))


def typed_like(x: jax.Array, like: Any) -> jax.Array:
    """`x` with the sharding in the type of `like`, if there is one."""
    return x if (named := explicit_sharding(like)) is None else in_sharding(x, named)


def in_sharding(x: jax.Array, named: NamedSharding) -> jax.Array:
    """`x` with this sharding in its type."""
    return x if explicit_sharding(x) == named else jax.sharding.reshard(x, named)


def explicit_mesh(arrays: Iterable[Any]) -> Any:
    """The mesh with Explicit axes that the first such array lies on, or None."""
    shardings = [explicit_sharding(x) for x in arrays]
    return next((named.mesh for named in shardings if named is not None), None)


def n_devices(arrays: Iterable[Any]) -> int:
    """How many devices the arrays may be spread over: those of their mesh, else all devices.

    The type names the mesh on Auto axes too. Its devices need not exist on this machine: a program
    may be compiled for other devices.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in arrays]
    return max((mesh.size for mesh in meshes if not mesh.empty), default=jax.device_count())


def on_one_device(tree: Any) -> bool:
    """Whether axes of the arrays may be merged at no cost: on one device, without Explicit axes."""
    arrays = jax.tree.leaves(tree)
    return n_devices(arrays) == 1 and explicit_mesh(arrays) is None


def on_tpu(arrays: Iterable[Any]) -> bool:
    """Whether the arrays lie on TPUs, judged by their mesh, else by the default backend."""
    kind = _device_kind(arrays)
    return kind.startswith("TPU") if kind else jax.default_backend() == "tpu"


def on_gpu(arrays: Iterable[Any]) -> bool:
    """Whether the arrays lie on GPUs, judged by their mesh, else by the default backend."""
    kind = _device_kind(arrays)
    if kind:
        return kind.lower() != "cpu" and not kind.startswith("TPU")
    return jax.default_backend() == "gpu"


def on_cpu(arrays: Iterable[Any]) -> bool:
    """Whether the arrays lie on CPUs, judged by their mesh, else by the default backend."""
    kind = _device_kind(arrays)
    return kind.lower() == "cpu" if kind else jax.default_backend() == "cpu"


def _device_kind(arrays: Iterable[Any]) -> str:
    """The kind of device that the meshes of the arrays name; "" if none does."""
    kinds = [
        getattr(jax.typeof(x).sharding.mesh.abstract_device, "device_kind", "") for x in arrays
    ]
    return next(filter(None, kinds), "")


def in_lanes(
    add: Callable[[jax.Array], jax.Array], counts: jax.Array, most: int, n: int, dtype: Any
) -> jax.Array:
    """Adds up counts over devices, in sums of 32 bits each.

    For a 64-bit sum over devices the TPU compiler gathers as many numbers as there are devices. So
    a sum that needs more than 32 bits is split into lanes: each sums a few bits of every count.

    Args:
      add: sums an array over devices, elementwise.
      counts: of one device.
      most: the largest possible count of one device.
      n: how many counts are summed.
      dtype: of the result.
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


# `once(i, x)`, called in a shard, is `x` if this shard is the first that holds its part of array
# `i`, else 0.
SumOnce = Callable[[int, jax.Array], jax.Array]


def summed_in_shards(
    add_up: Callable[..., jax.Array], arrays: Sequence[jax.Array], *others: Sequence[jax.Array]
) -> jax.Array:
    """The counts that `add_up` makes of all arrays, with as little traffic as possible.

    If all arrays lie on one mesh of Explicit axes, every shard adds up its part of all of them, and
    one sum crosses devices. On Auto axes the compiler distributes the sums in `add_up`.

    Args:
      add_up: `(arrays, once, *others) -> counts`. In a shard, counts of array `i` must go through
        `once(i, counts)` so that copies are counted once. Outside shards `once` is None.
      arrays: the arrays to count in.
      others: further arguments of `add_up`: for each array one whose first axis is that of the
        array.
    """
    shardings = [explicit_sharding(x) for x in arrays]
    mesh = _common_mesh(shardings)
    if mesh is None:
        return add_up(arrays, None, *others)
    axes_of = [_axes_in(named.spec) for named in shardings]
    used = tuple(axis for axis in mesh.axis_names if axis in set().union(*axes_of))
    if not used:
        return add_up(arrays, None, *others)

    def once(i: int, x: jax.Array) -> jax.Array:
        is_first = jnp.ones((), bool)
        for axis in used:  # in a fixed order, so that every process compiles the same program
            if axis not in axes_of[i]:
                is_first &= lax.axis_index(axis) == 0
        return jnp.where(is_first, x, jnp.zeros_like(x))

    def in_shard(arrays: Sequence[jax.Array], others: Sequence[Sequence[jax.Array]]) -> jax.Array:
        counts, most = add_up(arrays, once, *others), sum(x.size for x in arrays)
        return in_lanes(lambda x: lax.psum(x, used), counts, most, mesh.size, counts.dtype)

    first_axes = [NamedSharding(mesh, PartitionSpec(*named.spec[:1])) for named in shardings]
    placed = [list(map(in_sharding, other, first_axes)) for other in others]
    in_specs = jax.tree.map(lambda x: explicit_sharding(x).spec, (list(arrays), placed))
    shards = jax.shard_map(in_shard, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec())
    return shards(list(arrays), placed)


def _common_mesh(shardings: Sequence[Any]) -> Any:
    """The mesh of all shardings if it is one, with Explicit axes only; else None."""
    mesh = shardings[0].mesh if shardings and shardings[0] is not None else None
    if mesh is None or any(named is None or named.mesh != mesh for named in shardings):
        return None
    return mesh if all(kind == AxisType.Explicit for kind in mesh.axis_types) else None


def _axes_in(spec: PartitionSpec) -> set[str]:
    """The axes of a mesh that a spec shards over."""
    return {axis for part in spec if part for axis in ((part,) if isinstance(part, str) else part)}


def everywhere(x: jax.Array, arrays: Iterable[Any]) -> jax.Array:
    """`x` with a copy on every device in its type, if the arrays lie on a mesh of Explicit axes.

    An array made outside `jit` has no mesh in its type. If a jitted step returns it with one, the
    next step sees another type and compiles again, unless both go through this function.
    """
    mesh = explicit_mesh(arrays)
    if mesh is None:
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*[None] * x.ndim)))


def split_axis(x: jax.Array, axis: int, length: int) -> jax.Array:
    """Views [..., n * length, ...] as [..., n, length, ...]; the new axis is not sharded."""
    shape = (*x.shape[:axis], x.shape[axis] // length, length, *x.shape[axis + 1 :])
    named = explicit_sharding(x)
    if named is None:
        return lax.reshape(x, shape)
    spec = [*named.spec, *[None] * (x.ndim - len(named.spec))]
    spec.insert(axis + 1, None)
    split = NamedSharding(named.mesh, PartitionSpec(*spec))
    return lax.reshape(x, shape, out_sharding=split)


def whole_along(x: jax.Array, axis: int) -> jax.Array:
    """`x` with this axis whole on every device; no change unless it lies on a mesh of Auto axes."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty or mesh.size == 1 or set(mesh.axis_types) != {AxisType.Auto}:
        return x
    free = PartitionSpec.UNCONSTRAINED
    spec = [None if i == axis else free for i in range(x.ndim)]
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def merge_axis(x: jax.Array, like: jax.Array) -> jax.Array:
    """Undoes `split_axis`; the result has the shape and sharding of `like`."""
    return lax.reshape(x, like.shape, out_sharding=explicit_sharding(like))


def in_default_memory(tree: Any) -> Any:
    """The tree with arrays that lie in another memory, such as `pinned_host`, copied to the usual.

    JAX computes with no others there. While tracing, the user's `jit` decides where arrays lie.
    """
    return jax.tree.map(_in_default_memory, tree)


def _in_default_memory(x: Any) -> Any:
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array) or x.is_deleted():
        return x
    kind, devices = x.sharding.memory_kind, x.sharding.addressable_devices
    if kind in (None, "device") or not devices:
        return x
    usual = next(iter(devices)).default_memory().kind
    return x if kind == usual else jax.device_put(x, x.sharding.with_memory_kind(usual))


def placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` with the sharding of `like`; while tracing on Auto axes the compiler chooses it."""
    if not isinstance(x, jax.core.Tracer) and not isinstance(like, jax.core.Tracer):
        # `device_put` commits an array to its devices, and a jitted step that receives a committed
        # array in place of an uncommitted one compiles again.
        return x if x.sharding == like.sharding else jax.device_put(x, like.sharding)
    return typed_like(x, like)
