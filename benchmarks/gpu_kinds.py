"""The programs that `gpu_programs` compiles: masks, one training step of each kind, one layer.

A program is a function and its arguments as shapes with shardings. A step updates params and
optimizer state, which are donated; `reference` is the same step of the optimizer alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

import jaxprune
from benchmarks.bench_sharding import methods

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
Shapes = dict[str, tuple[tuple[int, ...], P]]

ONE_LEAF: Shapes = {"w": ((4000, 2500), P())}
SHARDED: Shapes = {
    "up": ((8192, 28_672), P("data", "model")),
    "out": ((4096, 4096), P("model", "data")),
}
STACKS: Shapes = {
    "up": ((24, 1024, 4096), P(None, "data", "model")),
    "down": ((24, 4096, 1024), P(None, "model", "data")),
}
LARGE: Shapes = {f"w{i}": ((2048, 4096), P("data", "model")) for i in range(6)}
# 50 layers, 1e8 weights; no leaf has 4e6.
MANY: Shapes = {
    f"{name}{i}": (shape, P("data", "model"))
    for i in range(50)
    for name, shape in {"qkv": (512, 1536), "up": (512, 1024), "down": (1024, 704)}.items()
}
KERNEL = (4096, 11_008)  # of the feed-forward layer of a 7B Llama
_SCHEDULE = jaxprune.cubic_schedule(0.9, begin_step=0, end_step=10_000, every=100)
_HALF = jaxprune.cubic_schedule(0.5, begin_step=0, end_step=10_000, every=100)
_KEEP = 0.2

# The names of masks that are not made by sorting.
OWN_MASKS = ("topk_mask(scores)", "topk_mask(w, score=jnp.abs)", "topk_mask(abs(w))")


class Place(NamedTuple):
    """A mesh of one device or eight, and its name in the results."""

    mesh: Mesh
    axes: str

    @property
    def n_devices(self) -> int:
        """How many devices the mesh has."""
        return self.mesh.size


class Program(NamedTuple):
    """A function to compile: its arguments, those donated, and the weights that each device holds.

    `is_step` says whether the function is a training step: then a pass of the search is a loop in
    the loop of a fire. In a mask alone it is a loop of the entry.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    n_weights: int
    donated: tuple[int, ...] = ()
    is_step: bool = False


def place(devices: Any, axis_type: AxisType) -> Place:
    """A mesh (data, model) over one device or eight."""
    shape = (1, 1) if len(devices) == 1 else (len(devices) // 2, 2)
    mesh = Mesh(np.array(devices).reshape(shape), ("data", "model"), axis_types=(axis_type,) * 2)
    return Place(mesh, axis_type.name)


# Steps


def _adamw() -> optax.GradientTransformation:
    return optax.adamw(1e-3)


def _chained(schedule: Any = _SCHEDULE, **options: Any) -> optax.GradientTransformation:
    return optax.chain(_adamw(), jaxprune.prune(schedule, **options))


def _around(**options: Any) -> optax.GradientTransformation:
    return jaxprune.prune(_SCHEDULE, inner=_adamw(), **options)


def _rigl() -> optax.GradientTransformation:
    return jaxprune.rigl(0.9, 10_000, inner=_adamw(), distribution=jaxprune.uniform)


# For each kind: the optimizer, and the params if not the usual ones.
STEPS: dict[str, tuple[Callable[[], optax.GradientTransformation], Shapes | None]] = {
    "unstructured": (_chained, None),
    "inner": (_around, None),
    "bit masks": (partial(_chained, packed=True), None),
    "hashed ties": (partial(_chained, ties="hashed"), None),
    "global pool": (partial(_chained, distribution=jaxprune.global_pool), None),
    "movement": (partial(_around, score=jaxprune.movement), None),
    "NM(2, 4)": (partial(_chained, _HALF, structure=jaxprune.NM(2, 4, axis=0)), None),
    "blocks": (partial(_chained, structure=jaxprune.Block((1, 16))), None),
    "balanced blocks": (
        partial(_chained, structure=jaxprune.Block((1, 16), balanced=True)),
        None,
    ),
    "channels": (partial(_chained, structure=jaxprune.Channel(axis=-1)), None),
    "normalized pool": (partial(_chained, distribution=jaxprune.normalized_pool), None),
    "random score": (partial(_chained, score=jaxprune.random_score), None),
    "rigl": (_rigl, None),
    "per_slice": (partial(_chained, distribution=jaxprune.per_slice(".*")), STACKS),
    "large leaves": (_chained, LARGE),
    "150 leaves": (_chained, MANY),
}


def step(kind: str, where: Place, dtype: str) -> Program:
    """One training step, given gradients."""
    make, shapes = STEPS[kind]
    return _step_of(make(), shapes or default_shapes(where), where, dtype)


def reference(kind: str, where: Place, dtype: str) -> Program:
    """The step of `adamw` alone, with the params of `kind`."""
    return _step_of(_adamw(), STEPS[kind][1] or default_shapes(where), where, dtype)


def is_usual(kind: str) -> bool:
    """Whether a kind has the usual params."""
    return STEPS[kind][1] is None


def default_shapes(where: Place) -> Shapes:
    """The params of most kinds: one leaf of 1e7 weights, or two that eight devices share."""
    return ONE_LEAF if where.n_devices == 1 else SHARDED


def _step_of(tx: optax.GradientTransformation, shapes: Shapes, where: Place, dtype: str) -> Program:
    params = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding(spec, where))
        for name, (shape, spec) in shapes.items()
    }
    state = _placed_state(jax.eval_shape(tx.init, params), params, where)

    def run(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    n_weights = sum(math.prod(p.sharding.shard_shape(p.shape)) for p in params.values())
    return Program(run, (params, state, params), n_weights, donated=(0, 1), is_step=True)


def _placed_state(state: Any, params: dict[str, Any], where: Place) -> Any:
    """The shapes of an optimizer state, sharded like the params where they belong to one."""

    def placed(path: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        spec = params[name].sharding.spec if name in params and x.ndim else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(spec, where))

    return jax.tree_util.tree_map_with_path(placed, state)


def _sharding(spec: P, where: Place) -> NamedSharding:
    return NamedSharding(where.mesh, spec)


# Masks and layers


def masks(where: Place, dtype: str, *, sorting: bool) -> dict[str, Program]:
    """A mask of given scores, a mask of magnitudes, and with `sorting` the same by sorting."""
    (shape, spec), *_ = default_shapes(where).values()
    w = jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding(spec, where))
    n_keep = round(_KEEP * math.prod(shape))
    n_weights = math.prod(w.sharding.shard_shape(shape))

    by_name: dict[str, Any] = {
        OWN_MASKS[0]: partial(jaxprune.topk_mask, n_keep=n_keep),
        OWN_MASKS[1]: partial(jaxprune.topk_mask, n_keep=n_keep, score=jnp.abs),
        OWN_MASKS[2]: lambda w: jaxprune.topk_mask(jnp.abs(w), n_keep),
    }
    if sorting:
        sorts = methods(n_keep)
        by_name |= {"argsort": sorts["argsort"], "jnp.sort": sorts["sort"]}
        by_name["lax.top_k"] = sorts["top_k"]
    return {name: Program(method, (w,), n_weights) for name, method in by_name.items()}


def layers(where: Place, dtype: str) -> dict[str, Program]:
    """Wanda and SparseGPT of one kernel, and products with its packed blocks, on one device."""
    everywhere = _sharding(P(), where)

    def array(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    n_in, n_out = KERNEL
    size = n_in * n_out
    calibration = (array(KERNEL, dtype), array((n_in, n_in), "float32"))
    programs = {
        name: Program(_calibrated(method), calibration, size)
        for name, method in {
            "wanda": jaxprune.wanda_kernel,
            "sparsegpt": jaxprune.sparsegpt_kernel,
        }.items()
    }
    n_kept = round(0.1 * n_in)
    for batch in (1, 16, 256):
        values = (n_out // 16, 16, n_kept) if batch > 1 else (n_out // 16, n_kept, 16)
        packed = jaxprune.PackedMatrix(
            array((n_out // 16, n_kept), "int32"), array(values, dtype), KERNEL, (1, 16), batch > 1
        )
        arguments = (packed, array((batch, n_in), dtype))
        programs[f"packed_matmul, batch {batch}"] = Program(
            jaxprune.packed_matmul, arguments, math.prod(values)
        )
    return programs


def _calibrated(method: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def run(kernel: jax.Array, gram: jax.Array) -> Any:
        return method(kernel, jaxprune.Moments(jnp.float32(8192), gram), 0.5)

    return run
