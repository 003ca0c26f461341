"""The prune state, and how to find it and its masks inside any optimizer state.

Masks are matched to params by key path, never by tree structure: wrappers such as `optax.masked`
and `optax.partition` leave holes, and flax boxes its leaves differently at different times.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import leaves_with_paths, listed, shown_path, spec_of
from jaxprune._state.bit_masks import bit_mask_shape, from_bits
from jaxprune._state.masks import keep


class PruneState(NamedTuple):
    """State of `prune`: arrays only, so that every checkpoint format and wrapper takes it.

    Attributes:
      prune_step: int32 scalar, updates applied so far. It is not called `count`, which
        `optax.tree.set(state, count=0)` resets everywhere.
      masks: uint8 tree of the structure, shapes and shardings of the params; 1 = kept. Leaves that
        are not pruned have masks too, all ones. With `packed=True` the last axis holds eight
        entries to a byte.
      thresholds: float32[n_leaves] in the order of the leaves: what a score had to reach at the
        last fire; 0 where nothing is dropped.
      violations: int32 scalar, the most dropped weights that any fire found to be nonzero. It stays
        0 unless something after `prune` changes the updates.
      inner_state: state of the wrapped optimizer.
      widths: int32[n_leaves], how long the last axis of each leaf is, where masks are packed; None
        where they are not.
      score_state: float32 tree like the params, the sums of a score that adds up over the steps
        (`movement`); None for any other score.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> state = jaxprune.prune(jaxprune.one_shot_schedule(0.5)).init({"w": jnp.ones((1, 2))})
      >>> int(state.prune_step), state.masks["w"].tolist(), int(state.violations)
      (0, [[1, 1]], 0)
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    prune_step: jax.Array
    masks: Any
    thresholds: jax.Array
    violations: jax.Array
    inner_state: Any
    widths: Any = None
    score_state: Any = None


def unboxed(field: Any) -> jax.Array:
    """The array of a field of a prune state, without the box that a library may have put around it.

    Fields that hold one array (`prune_step`, `thresholds`, `violations`, `widths`) are plain arrays
    in an optax state, but `nnx.Optimizer` wraps each array of its state in an NNX variable
    (`OptArray`). Such a box is a pytree with exactly one leaf, and so is a plain array, so taking
    that leaf works for both and for the boxes of other libraries.

    Example:
      >>> int(unboxed(jnp.int32(3)))
      3
    """
    [array] = jax.tree.leaves(field)
    return array


def find_states(opt_state: Any) -> list[PruneState]:
    """Every prune state inside an optimizer state, a TrainState or an NNX optimizer, in order."""
    opt_state = getattr(opt_state, "opt_state", opt_state)
    found = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, PruneState))
    return [state for state in found if isinstance(state, PruneState)]


def get_state(opt_state: Any) -> PruneState:
    """The prune state inside an optimizer state, however deeply it is wrapped.

    Args:
      opt_state: an optax state, or anything that holds one as `.opt_state` (linen `TrainState`,
        `nnx.Optimizer`).

    Returns:
      The one `PruneState` in it.

    Raises:
      ValueError: there is none, or more than one.

    Example:
      >>> import jax.numpy as jnp, jaxprune, optax
      >>> tx = optax.chain(optax.sgd(0.1), jaxprune.prune(jaxprune.one_shot_schedule(0.5)))
      >>> int(get_state(tx.init({"kernel": jnp.ones((2, 2))})).prune_step)
      0
    """
    states = require_states(opt_state)
    if len(states) > 1:
        raise ValueError(
            f"{len(states)} prune states found. Pass the part of the optimizer state that holds "
            "the one you mean; get_masks and apply_masks merge them all."
        )
    return states[0]


def get_masks(opt_state: Any, params: Any = None) -> chex.ArrayTree:
    """The masks inside an optimizer state, as bool (True = kept).

    Args:
      opt_state: as for `get_state`. Where several prune states are found, a weight is kept if all
        keep it.
      params: the params, or their shapes; needed only inside `jit` when the masks are packed, whose
        shapes do not tell how long the last axis is.

    Returns:
      A tree with the structure of the params. A leaf that every prune state was masked from keeps
      the placeholder that stands there.

    Raises:
      ValueError: no prune state, states of different models, or packed masks inside `jit` without
        `params`.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
      >>> get_masks(tx.init({"kernel": jnp.ones((1, 2))}))["kernel"].tolist()
      [[True, True]]
    """
    states = require_states(opt_state)
    if params is not None and any(state.widths is not None for state in states):
        paths, leaves, treedef = leaves_with_paths(params)
        return treedef.unflatten(
            [
                jnp.ones(jnp.shape(leaf), bool) if mask is None else mask.astype(bool)
                for mask, leaf in zip(masks_by_path(opt_state, paths, leaves), leaves, strict=True)
            ]
        )
    return _merge([masks_of(state) for state in states])


def widths_of(leaves: Sequence[Any]) -> jax.Array:
    """How long the last axis of each leaf is: int32[n_leaves], 1 for a scalar."""
    return jnp.asarray(np.array([(1, *jnp.shape(leaf))[-1] for leaf in leaves], np.int32))


def masks_of(state: PruneState) -> Any:
    """The masks of a state, packed or not, in the shapes of the params."""
    if state.widths is None:
        return state.masks
    masks, treedef = jax.tree.flatten(state.masks)
    widths = unboxed(state.widths)
    if isinstance(widths, jax.core.Tracer):
        raise ValueError(
            "these masks are packed, and inside jit nothing tells how long their last axis is: "
            "call get_masks(opt_state, params)."
        )
    lengths = np.asarray(widths).reshape(-1, len(masks))[0].tolist()  # of the first, under vmap
    shapes = [
        jax.ShapeDtypeStruct((*m.shape[:-1], n) if m.ndim else (), bool)
        for m, n in zip(masks, lengths, strict=True)
    ]
    return treedef.unflatten([from_bits(m, shape) for m, shape in zip(masks, shapes, strict=True)])


def _merge(trees: list[Any]) -> Any:
    """One tree of bool masks. A hole in one tree may stand for a whole subtree of another."""
    solid = [tree for tree in trees if not _is_hole(tree)]
    if not solid:
        return trees[0]
    levels = [jax.tree.flatten(tree, is_leaf=lambda x, top=tree: x is not top) for tree in solid]
    node = levels[0][1]
    is_mask = jax.tree_util.treedef_is_leaf(node)
    shapes = {jnp.shape(mask) for mask in solid} if is_mask else set()
    if any(other != node for _, other in levels) or len(shapes) > 1:
        raise ValueError("the prune states found hold masks of different trees; pass one of them.")
    if is_mask:
        return functools.reduce(operator.and_, [mask.astype(bool) for mask in solid])
    columns = zip(*(children for children, _ in levels), strict=True)
    return node.unflatten([_merge(list(column)) for column in columns])


def apply_masks(params: chex.ArrayTree, masks_or_opt_state: Any) -> chex.ArrayTree:
    """Params with +0.0 at every dropped weight, whatever stood there, NaN included.

    This is for copies that the optimizer does not land on zero itself: averages, lookahead and
    schedule-free weights, params after a NaN.

    Args:
      params: a tree of arrays.
      masks_or_opt_state: bool or integer masks (nonzero = kept), or any optimizer state with a
        prune state inside.

    Returns:
      A tree like `params`. A leaf without a mask is returned as it is.

    Raises:
      ValueError: a mask without a param, or of another shape, naming the path.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_masks({"w": jnp.array([jnp.nan, 2.0])}, {"w": jnp.array([False, True])})[
      ...     "w"
      ... ].tolist()
      [0.0, 2.0]
    """
    paths, leaves, treedef = leaves_with_paths(params)
    masks = masks_by_path(masks_or_opt_state, paths, leaves)
    pairs = zip(leaves, masks, strict=True)
    return treedef.unflatten([p if m is None else _masked(p, m) for p, m in pairs])


def _masked(param: Any, mask: Any) -> Any:
    spec = spec_of(param)
    is_number = spec is not None and jnp.issubdtype(spec.dtype, jnp.number)
    return keep(jnp.asarray(param), mask) if is_number else param


def masks_by_path(masks_or_opt_state: Any, paths: list[str], leaves: list[Any]) -> list[Any]:
    """The mask of every leaf, in the order of `paths`, or None; checked against the leaves."""
    states = find_states(masks_or_opt_state)
    trees = (
        [(state.masks, state.widths is not None) for state in states]
        if states
        else [(masks_or_opt_state, False)]
    )
    fix = "Pass the tree that the optimizer was initialised with."
    if not states:
        fix = "Pass masks like the params, or an optimizer state with jaxprune.prune in it."
        if paths and not jax.tree.leaves(masks_or_opt_state):
            raise ValueError(f"no mask in {type(masks_or_opt_state).__name__}. {fix}")
    specs = [spec_of(leaf) for leaf in leaves]
    shapes = {p: () if s is None else s.shape for p, s in zip(paths, specs, strict=True)}
    merged: dict[str, Any] = {}
    for tree, is_packed in trees:
        mask_paths, masks, _ = leaves_with_paths(tree)
        for path, mask in zip(mask_paths, masks, strict=True):
            if path not in shapes:
                raise ValueError(
                    f"{shown_path(path)}: a mask, but no such param; the params have "
                    f"{listed(paths)}. {fix}"
                )
            shape = bit_mask_shape(shapes[path]) if is_packed else shapes[path]
            if jnp.shape(mask) != shape:
                raise ValueError(wrong_shape(path, jnp.shape(mask), shapes[path], is_packed))
            if is_packed:
                mask = from_bits(mask, leaves[paths.index(path)])
            merged[path] = (
                mask if path not in merged else merged[path].astype(bool) & mask.astype(bool)
            )
    return [merged.get(path) for path in paths]


def wrong_shape(
    path: str, mask_shape: tuple[int, ...], shape: tuple[int, ...], is_packed: bool = False
) -> str:
    """The error of a mask that does not fit its param."""
    needs = f", whose packed mask has {bit_mask_shape(shape)}" if is_packed else ""
    return (
        f"{shown_path(path)}: the mask has shape {mask_shape} but the param has shape {shape}"
        f"{needs}. Was the state restored from another model?"
    )


def require_states(opt_state: Any) -> list[PruneState]:
    """`find_states`, of which there must be one."""
    states = find_states(opt_state)
    if not states:
        raise ValueError(
            f"no prune state in {type(opt_state).__name__}. Pass the optimizer state of a chain "
            "with jaxprune.prune in it, tx.init(params) or what tx.update returned."
        )
    return states


def _is_hole(x: Any) -> bool:
    """Whether it is what wrappers leave of a subtree: None, or a tuple of nothing."""
    return x is None or (isinstance(x, tuple) and not x)


# Their examples run, although by `__module__` they belong to `jaxprune`.
__test__ = {"PruneState": PruneState}
