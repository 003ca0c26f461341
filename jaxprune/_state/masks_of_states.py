"""The masks of prune states, for a whole tree of params: read, merged and applied.

Masks are matched to params by key path, never by tree structure: wrappers such as `optax.masked`
and `optax.partition` leave placeholders in the tree of masks, and flax wraps the leaves of params
and optimizer states in boxes of different types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import kind_of
from jaxprune._base.float_bits import has_zero
from jaxprune._base.paths import (
    check_arrays,
    leaves_with_paths,
    paths_of,
    shape_of,
    shown_path,
    spec_of,
)
from jaxprune._base.sharding import in_default_memory
from jaxprune._base.trees import ArrayTree, Params
from jaxprune._state.bit_masks import (
    are_parts,
    bit_mask_shape,
    from_bits,
    split_bits,
    width_of_each,
)
from jaxprune._state.masks import check_mask_dtype, keep, mask_without_param, wrong_shape
from jaxprune._state.merged import kept_by_all, kept_unless, merged
from jaxprune._state.prune_state import (
    PruneState,
    check_params,
    find_states,
    n_batch_axes_of,
    require_states,
    unboxed,
)


def get_masks(opt_state: Any, params: Any = None) -> ArrayTree:
    """The masks inside an optimizer state, as bool (True = kept).

    Args:
      opt_state: as for `get_state`. If it contains several prune states, a weight is kept if all of
        them keep it. With several networks, pass the state of one, such as `states["q1"]`.
      params: the params, or their shapes. Needed inside `jit` with bit masks (`packed=True`),
        because their shapes do not determine the length of the last axis, and for prune states of
        different parts of the params.

    Returns:
      A tree with the structure of the params. Where `optax.masked` hides a leaf from every prune
      state, its mask keeps all weights; without `params`, the placeholder is returned in its place.

    Raises:
      TypeError: `params` holds the state of an optimizer.
      ValueError: no prune state; without `params`, prune states of different trees, or bit masks
        inside `jit`; with them, masks that do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
      >>> get_masks(tx.init({"kernel": jnp.ones((1, 2))}))["kernel"].tolist()
      [[True, True]]
    """
    states = require_states(opt_state)
    check_arrays("get_masks: opt_state", states)
    if params is None:
        return merged([_enforced_masks(state) for state in states])
    check_params("get_masks: params", params)
    paths, leaves, treedef = leaves_with_paths(params)
    pairs = zip(masks_by_path(opt_state, paths, leaves), leaves, strict=True)
    masks = [jnp.ones(shape_of(p), bool) if m is None else m.astype(bool) for m, p in pairs]
    return treedef.unflatten(masks)


def _enforced_masks(state: PruneState) -> Any:
    """The masks of a state; those of leaves that it does not prune keep everything."""
    masks, is_pruned = masks_of(state), _is_pruned(state)
    leaves, treedef = jax.tree.flatten(masks)
    if is_pruned is None or is_pruned.shape[-1] != len(leaves):
        return masks
    return treedef.unflatten([kept_unless(is_pruned[..., i], m) for i, m in enumerate(leaves)])


def masks_of(state: PruneState) -> Any:
    """The masks of a state in the shapes of the params, whether a mask takes bytes or bits."""
    if state.widths is None:
        return state.masks
    masks, treedef = jax.tree.flatten(state.masks)
    widths = unboxed(state.widths)
    if isinstance(widths, jax.core.Tracer):
        raise ValueError(
            "these are bit masks (packed=True), and inside jit the length of their last axis is "
            "unknown. Pass the params as well: call get_masks(opt_state, params)."
        )
    n_batch_axes = n_batch_axes_of(state)
    unpacked = []
    for i, (bits, width) in enumerate(zip(masks, width_of_each(widths), strict=True)):
        shape = bits.shape[:n_batch_axes]
        if bits.ndim > n_batch_axes:
            shape = (*bits.shape[:-1], width)
            if bit_mask_shape(shape) != bits.shape:
                fix = "for its masks, call get_masks(opt_state, params)"
                raise ValueError(split_bits(paths_of(state.masks)[i], bits.shape, width, fix))
        like = jax.ShapeDtypeStruct(shape, bool)
        unpacked.append(from_bits(bits, like, n_batch_axes))
    return treedef.unflatten(unpacked)


@overload
def apply_masks(params: Params, masks_or_opt_state: Any) -> Params: ...


@overload
def apply_masks(params: ArrayTree, masks_or_opt_state: Any) -> ArrayTree: ...


def apply_masks(params: ArrayTree, masks_or_opt_state: Any) -> ArrayTree:
    """Params with +0.0 at every dropped weight, whatever its value was, including NaN.

    Use this for copies of the params that the optimizer itself does not prune (averages, lookahead
    and schedule-free weights), and for params that contain NaN.

    Args:
      params: a tree of arrays.
      masks_or_opt_state: bool or integer masks (nonzero = kept), or any optimizer state with a
        prune state inside. With several networks, that of one, such as `states["q1"]`.

    Returns:
      A tree like `params`. A leaf without a mask is returned unchanged.

    Raises:
      TypeError: masks of floating point numbers, or a mask that drops weights of a dtype without a
        zero (float8_e8m0fnu); names the path.
      ValueError: a mask without a param, or with a different shape; names the path.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = {"w": jnp.array([False, True])}
      >>> apply_masks({"w": jnp.array([jnp.nan, 2.0])}, masks)["w"].tolist()
      [0.0, 2.0]
    """
    check_arrays("apply_masks: params", params)
    check_arrays("apply_masks: masks_or_opt_state", masks_or_opt_state)
    check_params("apply_masks: params", params)
    paths, leaves, treedef = leaves_with_paths(params)
    leaves = in_default_memory(leaves)
    masks = masks_by_path(masks_or_opt_state, paths, leaves)
    rows = zip(paths, leaves, masks, strict=True)
    return treedef.unflatten([_masked(*row, masks_or_opt_state) for row in rows])


def _masked(path: str, param: Any, mask: Any, masks_or_opt_state: Any) -> Any:
    """A numeric param with its mask applied; anything else, such as a PRNG key, unchanged."""
    spec = spec_of(param)
    if mask is None or spec is None or not jnp.issubdtype(spec.dtype, jnp.number):
        return param
    if has_zero(spec.dtype):
        return keep(jnp.asarray(param), mask)
    # No zero can be written here. `prune` refuses such leaves, so its masks keep all of them.
    is_known = not isinstance(mask, jax.core.Tracer)
    if find_states(masks_or_opt_state) or (is_known and bool(jnp.asarray(mask).astype(bool).all())):
        return param
    raise TypeError(
        f"{shown_path(path)}: dtype {spec.dtype}: it has no zero, so a weight cannot be dropped. "
        "Put None where its mask is."
    )


def masks_by_path(masks_or_opt_state: Any, paths: list[str], leaves: list[Any]) -> list[Any]:
    """The mask of every leaf, in the order of `paths`, or None where there is no mask.

    Every mask is checked against the shape of its leaf. Bit masks come back as bool masks in the
    shape of the leaf, and masks of several prune states are merged: kept means kept in all. A leaf
    that a prune state does not prune is kept whole, whatever the mask in the state is.
    """
    states = find_states(masks_or_opt_state)
    if states:
        fix = "Pass the params that the optimizer was initialised with."
        if len(states) > 1:
            fix = (
                f"There are {len(states)} prune states: pass the params of all of them; or, if "
                "they belong to different networks, the params and the state of one at a time, "
                "such as agent.actor.params and agent.actor.opt_state."
            )
        trees = [(s.masks, _bits_of(s), _is_pruned(s)) for s in states]
    else:
        fix = "Pass masks like the params, or an optimizer state with jaxprune.prune in it."
        trees = [(in_default_memory(masks_or_opt_state), None, None)]
        if paths and not jax.tree.leaves(masks_or_opt_state):
            raise ValueError(f"no mask in {kind_of(masks_or_opt_state)}. {fix}")
    leaf_at = dict(zip(paths, leaves, strict=True))
    masks_at: dict[str, list[Any]] = {path: [] for path in paths}
    flat = [leaves_with_paths(tree)[:2] for tree, _, _ in trees]
    all_paths = [path for mask_paths, _ in flat for path in mask_paths]
    for (mask_paths, masks), (_, bits, is_pruned) in zip(flat, trees, strict=True):
        for i, (path, mask) in enumerate(zip(mask_paths, masks, strict=True)):
            if path not in leaf_at:
                raise ValueError(mask_without_param(path, paths, all_paths, fix))
            leaf = leaf_at[path]
            bits_of_leaf = None if bits is None else bits[i]
            fitting = _fitting_mask(path, mask, leaf, bits_of_leaf, is_of_state=bool(states))
            if is_pruned is not None:
                fitting = kept_unless(is_pruned[..., i], fitting)
            masks_at[path].append(fitting)
    return [
        (masks[0] if len(masks) == 1 else kept_by_all(masks)) if masks else None
        for masks in masks_at.values()
    ]


def _bits_of(state: PruneState) -> Sequence[tuple[int, int | None]] | None:
    """The number of batch axes and the width of each bit mask; None for byte masks.

    The width is None inside `jit`.
    """
    if state.widths is None:
        return None
    widths, n_batch_axes = unboxed(state.widths), n_batch_axes_of(state)
    if isinstance(widths, jax.core.Tracer):
        return [(n_batch_axes, None)] * np.shape(widths)[-1]
    return [(n_batch_axes, width) for width in width_of_each(widths)]


def _is_pruned(state: PruneState) -> Any:
    """Which leaves a state prunes: bool[..., n_leaves]; None if it has no progress."""
    return None if state.progress is None else unboxed(state.progress.pool_of) >= 0


def _fitting_mask(
    path: str, mask: Any, leaf: Any, bits: tuple[int, int | None] | None, *, is_of_state: bool
) -> Any:
    """A mask in the shape of its leaf; raises if it belongs to a leaf of another shape.

    `bits` has the number of batch axes and the width of a bit mask; None for any other mask.
    """
    shape = shape_of(leaf)
    n_batch_axes, width = bits or (None, None)
    needed = shape if n_batch_axes is None else bit_mask_shape(shape, n_batch_axes)
    if shape_of(mask) != needed:
        raise ValueError(
            wrong_shape(path, shape_of(mask), shape, n_batch_axes, is_of_state=is_of_state)
        )
    check_mask_dtype(path, mask)
    if n_batch_axes is None:
        return mask
    if width is not None and len(shape) > n_batch_axes and not are_parts(width, shape[-1]):
        raise ValueError(split_bits(path, shape_of(mask), width))
    return from_bits(mask, leaf, n_batch_axes)
