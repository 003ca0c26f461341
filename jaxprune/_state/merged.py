"""The masks of several prune states as one tree: kept means kept in all of them."""

import functools
import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def merged(trees: list[Any]) -> Any:
    """The masks of several states as one tree of bool masks: kept means kept in all trees.

    The trees are merged one level at a time, because a placeholder in one tree may take the place
    of a whole subtree in another.
    """
    present = [tree for tree in trees if not _is_placeholder(tree)]
    if not present:
        return trees[0]
    levels = [jax.tree.flatten(tree, is_leaf=lambda x, top=tree: x is not top) for tree in present]
    treedef = levels[0][1]
    # Not `treedef_is_leaf`: it is also true of a node without children, such as an empty dict.
    is_mask = jax.tree_util.all_leaves(present)
    n_shapes = len({jnp.shape(mask) for mask in present}) if is_mask else 1
    if any(level[1] != treedef for level in levels) or n_shapes > 1:
        raise ValueError(
            "the prune states in this optimizer state have masks for different trees of params. "
            "Pass one of these prune states, or, if these are parts of one tree, that tree: "
            "get_masks(opt_state, params)."
        )
    if is_mask:
        return kept_by_all(present)
    children = zip(*(level[0] for level in levels), strict=True)
    return treedef.unflatten([merged(list(same_child)) for same_child in children])


def kept_by_all(masks: list[Any]) -> Any:
    """One bool mask, True where every mask keeps."""
    return functools.reduce(operator.and_, [mask.astype(bool) for mask in masks])


def kept_unless(is_pruned: Any, mask: Any) -> Any:
    """The mask of a leaf that is pruned; for any other leaf a mask that keeps everything.

    `is_pruned` has the leading axes of a batched state. Its value is unknown inside `jit`.
    """
    if not isinstance(is_pruned, jax.core.Tracer) and np.all(is_pruned):
        return mask
    is_pruned = jnp.asarray(is_pruned)
    new_axes = tuple(range(is_pruned.ndim, jnp.ndim(mask))) if is_pruned.ndim else ()
    return mask.astype(bool) | ~jnp.expand_dims(is_pruned, new_axes)


def _is_placeholder(x: Any) -> bool:
    """Whether `x` is what wrappers put in the place of a subtree: None or an empty tuple."""
    return x is None or (isinstance(x, tuple) and not x)
