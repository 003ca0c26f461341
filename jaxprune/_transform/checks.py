"""Checks of what `update` gets, made while tracing: trees and a state that fit the params."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._base.arguments import shown
from jaxprune._base.paths import (
    check_array_library,
    leaves_with_paths,
    listed,
    rule_for,
    shown_path,
    spec_of,
)
from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.schedule_list import ScheduleList
from jaxprune._recipe.scores import accumulates
from jaxprune._state.bit_masks import bit_mask_shape
from jaxprune._state.masks import wrong_shape
from jaxprune._state.prune_state import PruneState
from jaxprune._transform.settings import Settings


class Tree(NamedTuple):
    """The params, flattened: the path and the value of every leaf, in order, and the structure."""

    paths: list[str]
    leaves: list[Any]
    treedef: Any


def checked(params: Any, state: Any) -> Tree:
    """The params, flattened.

    Raises:
      TypeError, ValueError: no params, or a state of another transformation.
    """
    if params is None:
        raise ValueError("jaxprune.prune needs the params: call tx.update(updates, state, params).")
    if isinstance(params, PruneState):
        raise TypeError(
            "jaxprune.prune: the params must be a tree of arrays, got the state. Pass them in this "
            "order: tx.update(updates, state, params)."
        )
    if not isinstance(state, PruneState):
        raise TypeError(
            f"jaxprune.prune: the state must be a PruneState, got {shown(state)}. Pass what "
            "init or the last update of this transformation returned; restore a checkpoint "
            "into the structure of tx.init(params)."
        )
    tree = Tree(*leaves_with_paths(params))
    if all(spec_of(leaf) is not None for leaf in tree.leaves):
        return tree
    return Tree(*leaves_with_paths(_without_unmasked(tree, state.masks)))


def _without_unmasked(tree: Tree, masks: Any) -> Any:
    """The params, with None in place of what is not an array and has None in place of a mask.

    An Equinox model has functions among its leaves. Its users initialise an optimizer with
    `eqx.filter(model, eqx.is_array)`, and call `update` with the whole model.
    """
    try:
        by_leaf = tree.treedef.flatten_up_to(masks)
    except ValueError:  # another model, which `parallel` explains
        by_leaf = tree.leaves
    pairs = zip(tree.leaves, by_leaf, strict=True)
    return tree.treedef.unflatten([None if mask is None else leaf for leaf, mask in pairs])


def parallel(tree: Tree, other: Any, name: str, holes: bool = False) -> list[Any]:
    """The leaves of another tree, one per leaf of the params; with `holes`, some may be None.

    Raises:
      ValueError: the other tree has another structure, naming the paths that differ.
    """
    try:
        leaves = tree.treedef.flatten_up_to(other)
    except ValueError:
        leaves = []
    is_leaf = [(holes and x is None) or jax.tree_util.all_leaves([x]) for x in leaves]
    if len(leaves) == len(tree.paths) and all(is_leaf):
        for path, leaf in zip(tree.paths, leaves, strict=True):
            check_array_library(path, leaf)
        return leaves
    other_paths, _, _ = leaves_with_paths(other)
    lines = [
        *_only_in("params", tree.paths, name, other_paths),
        *_only_in(name, other_paths, "params", tree.paths),
    ]
    differ = "; ".join(lines) or "the same paths, but in other containers"
    fix = "Pass the params that the state was initialised with, and gradients with respect to them."
    if type(other).__module__.startswith("flax.nnx"):
        fix += " Does nnx.Optimizer have wrt=nnx.Param, and nnx.grad the same?"
    raise ValueError(
        f"jaxprune.prune: the {name} and the params differ in structure: {differ}. {fix}"
    )


def visible(tree: Tree, other: Any, name: str) -> list[Any]:
    """The leaves of another tree of the whole model, one per leaf of the params.

    Inside `optax.partition` and `optax.masked`, the params are a part of the model, but extra
    arguments such as `grads` come as they were passed.

    Raises:
      ValueError: the other tree lacks leaves of the params, naming the paths that differ.
    """
    paths, leaves, _ = leaves_with_paths(other)
    leaf_of = dict(zip(paths, leaves, strict=True))
    if len(paths) > len(tree.paths) and leaf_of.keys() >= set(tree.paths):
        return [leaf_of[path] for path in tree.paths]
    return parallel(tree, other, name, holes=True)


def _only_in(name: str, paths: list[str], other: str, other_paths: list[str]) -> list[str]:
    """A line about the paths that one tree has and another lacks, if there are any."""
    known = set(other_paths)
    extra = [path for path in paths if path not in known]
    return [f"the {name} have {listed(extra)}, the {other} do not"] if extra else []


def check_state(tree: Tree, masks: list[Any], state: PruneState, settings: Settings) -> None:
    """Raises where the state stores its masks in the other form, or is of another model."""
    step = jnp.asarray(state.prune_step)
    if step.shape and jnp.ndim(state.thresholds) == step.ndim + 1:
        raise ValueError(
            f"the state was made under vmap: its prune_step has shape {step.shape}. Map update "
            "over it, too, jax.vmap(tx.update), or take one member of it: "
            "jax.tree.map(lambda x: x[0], state)."
        )
    bit_masks = settings.bit_masks
    if bit_masks != (state.widths is not None):
        stored, convert = (
            ("at one byte per weight", "pack_masks")
            if bit_masks
            else ("at one bit per weight", "unpack_masks")
        )
        raise ValueError(
            f"the state stores masks {stored}, but this is prune(..., packed={bit_masks}). Convert "
            f"the state: jaxprune.{convert}(opt_state)."
        )
    for path, param, mask in zip(tree.paths, tree.leaves, masks, strict=True):
        spec = spec_of(param)
        if spec is None:
            continue
        if jnp.shape(mask) != (bit_mask_shape(spec.shape) if bit_masks else spec.shape):
            bit_axes = 0 if bit_masks else None
            raise ValueError(wrong_shape(path, jnp.shape(mask), spec.shape, bit_axes))
        _check_stored_dtype(path, mask, settings)
    if jnp.shape(state.thresholds) != (len(tree.paths),):
        raise ValueError(
            f"the thresholds in the state have shape {jnp.shape(state.thresholds)} but the params "
            f"have {len(tree.paths)} leaves. Was the state restored from another model?"
        )
    is_integer = jnp.issubdtype(step.dtype, jnp.integer)
    if step.shape or not is_integer or step.dtype.itemsize < 4:  # a narrow one would wrap around
        raise ValueError(
            f"prune_step in the state must be an int32 scalar, got {step.dtype} of shape "
            f"{step.shape}. Restore checkpoints into the dtypes of tx.init(params)."
        )


def _check_stored_dtype(path: str, mask: Any, settings: Settings) -> None:
    """Raises where the dtype of a mask can't hold what the transformation stores in it."""
    dtype = jnp.result_type(mask)
    if settings.bit_masks:
        is_wrong, content = dtype != jnp.uint8, "the bits of eight weights in each byte"
    else:
        is_wrong = settings.algorithm.resets and jnp.issubdtype(dtype, jnp.bool_)
        content = "a mark on the weights that have just grown"
    if is_wrong:
        raise ValueError(
            f"{shown_path(path)}: the mask in the state has dtype {dtype}, but it needs uint8, "
            f"for {content}. Restore the checkpoint into the dtypes of tx.init(params), or convert "
            "the state: jaxprune.upgrade_state(tx, params, opt_state)."
        )


def check_choices(schedule: Any, progress: Any) -> None:
    """Raises where a state was made for another number of schedules."""
    own = len(schedule.schedules) if isinstance(schedule, ScheduleList) else None
    choices = getattr(progress, "choices", None)
    n = None if choices is None else jnp.shape(choices.target)[-1]
    if own == n:
        return
    names = [_n_schedules(count) for count in (n, own)]
    raise ValueError(
        f"the state was made for {names[0]}, but this transformation has {names[1]}. Start from "
        "tx.init(params), or fit the old state to it: jaxprune.upgrade_state(tx, params, "
        "opt_state)."
    )


def check_absent(recipe: Recipe, progress: Any) -> None:
    """Raises where a state was made without `structural`, or without it."""
    has_absent = getattr(progress, "absent", None) is not None
    if progress is None or has_absent == bool(recipe.structural):
        return
    names = ["with structural=", "without structural="]
    made, own = names if has_absent else names[::-1]
    raise ValueError(
        f"the state was made {made}, but this transformation {own}. Start from tx.init(params), or "
        "fit the old state to it: jaxprune.upgrade_state(tx, params, opt_state)."
    )


def check_sums(score: Any, score_state: Any) -> None:
    """Raises where a score that adds up over steps meets a state of another score."""
    if accumulates(score) and not jax.tree.leaves(score_state):
        raise ValueError(
            f"score: {shown(score)} adds up over steps, but the state has no sums, because it was "
            "made with another score. Start from tx.init(params), or let the sums begin now: "
            "jaxprune.upgrade_state(tx, params, opt_state)."
        )


def _n_schedules(n: int | None) -> str:
    if n is None:
        return "a single schedule"
    return f"a list of {n} schedule{'' if n == 1 else 's'}"


def check_width(chosen: Sequence[int], paths: Sequence[str], leaves: Sequence[Any]) -> None:
    """Raises where a pruned leaf has a dtype of 64 bits, and JAX computes in 32 bits."""
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return
    for i in chosen:
        leaf = leaves[i]
        if isinstance(leaf, jax.Array) and leaf.dtype in (jnp.float64, jnp.complex128):
            narrow = "complex64" if jnp.iscomplexobj(leaf) else "float32"
            raise ValueError(
                f"{shown_path(paths[i])}: has dtype {leaf.dtype}, but 64-bit types are off, so JAX "
                "would compute in 32 bits. Turn them on with "
                'jax.config.update("jax_enable_x64", True), or convert the params: '
                f'jax.tree.map(lambda x: x.astype("{narrow}"), params).'
            )


def check_updates(chosen: Sequence[int], tree: Tree, updates: list[Any], name: str) -> None:
    """Raises where a pruned leaf has no update, or one of another shape."""
    for i in chosen:
        path, shape = shown_path(tree.paths[i]), jnp.shape(tree.leaves[i])
        if updates[i] is None:
            raise ValueError(
                f"{path}: the {name} is None, but the leaf is pruned. Leave it out with "
                f"exclude={rule_for(tree.paths[i])!r}, or pass a gradient for it."
            )
        if getattr(updates[i], "dtype", None) == jax.dtypes.float0:
            raise ValueError(
                f"{path}: the {name} has dtype float0, which JAX gives to gradients of integers. "
                "Differentiate with respect to the params that are pruned, or leave this leaf out "
                f"with exclude={rule_for(tree.paths[i])!r}."
            )
        if (got := jnp.shape(updates[i])) != shape:
            fix = "Pass gradients with respect to these params."
            if got[1:] == shape:
                fix = (
                    "Gradients of single examples, as for optax.contrib.dpsgd, need the optimizer "
                    "before prune: optax.chain(dpsgd(...), jaxprune.prune(schedule))."
                )
            raise ValueError(
                f"{path}: the {name} has shape {got} but the param has shape {shape}. {fix}"
            )
