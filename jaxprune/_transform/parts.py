"""Checks inside `jax.shard_map`, while tracing: what differs between devices, and what must not.

`shard_map` tracks in the type of an array over which axes of the mesh it differs. Without these
checks, the loop of a fire raises JAX's error about types of its carry, which names no leaf.
"""

from collections.abc import Sequence
from typing import Any

from jax import lax

from jaxprune._base.paths import rule_for, shown_path
from jaxprune._base.sharding import varying_axes
from jaxprune._transform.settings import Settings


def check_parts(
    settings: Settings,
    paths: Sequence[str],
    params: Sequence[Any],
    grads: Sequence[Any] | None,
) -> None:
    """Raises where `axis_name` does not say how the pruned leaves differ between devices.

    Args:
      settings: of the transformation.
      paths: of the pruned leaves.
      params: the pruned leaves.
      grads: their gradients, if the score reads them.
    """
    if not settings.algorithm.changes:  # no threshold is shared
        return
    axis_name = settings.axis_name
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    names = tuple(name for name in names if name is not None)
    tracked = {name for name in names if varying_axes(lax.axis_index(name))}
    for path, param in zip(paths, params, strict=True):
        varying = varying_axes(param)
        if extra := varying.difference(names):
            raise ValueError(_not_named(path, extra, names, settings.is_exact))
        if missing := tracked - varying:
            raise ValueError(_not_split(path, missing, axis_name))
    if grads is None:
        return
    for path, grad in zip(paths, grads, strict=True):
        if extra := varying_axes(grad).difference(names):
            raise ValueError(
                f"{shown_path(path)}: the score reads the gradient of this leaf, which differs "
                f"between the devices along {_axes(extra)} of the mesh. Average the gradients "
                f"first: grads = jax.lax.pmean(grads, {_argument(extra)})."
            )


def _not_named(
    path: str, extra: frozenset[str], names: tuple[str, ...], swaps_weights: bool
) -> str:
    name = _argument({*names, *extra})
    by_name = "" if swaps_weights else f"pass prune(..., axis_name={name}), or "
    return (
        f"{shown_path(path)}: this leaf differs between the devices along {_axes(extra)} of the "
        "mesh, but thresholds and counts in the state are the same on all. If each device holds a "
        f"part of the leaf, {by_name}shard the params under jit, without shard_map. If each device "
        "prunes a network of its own, pass jax.shard_map(..., check_vma=False)."
    )


def _not_split(path: str, missing: set[str], axis_name: Any) -> str:
    return (
        f"{shown_path(path)}: axis_name={axis_name!r} is for leaves that are split over this axis, "
        f"but this leaf is the same on all devices along {_axes(missing)} of the mesh. Split it "
        "with a PartitionSpec in in_specs, or leave it out with "
        f"exclude={rule_for(path)!r}. If only the data are split, leave axis_name out."
    )


def _axes(names: Any) -> str:
    word = "axis" if len(names) == 1 else "axes"
    return f"{word} {', '.join(map(repr, sorted(names)))}"


def _argument(names: Any) -> str:
    """The names as one would type them: one name, or a tuple."""
    return repr(tuple(sorted(names)) if len(names) > 1 else next(iter(names)))
