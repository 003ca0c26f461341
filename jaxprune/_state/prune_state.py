"""The prune state, and the functions that find it in any optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np

from jaxprune._base.arguments import kind_of
from jaxprune._base.paths import (
    flattened,
    path_str,
    shown_path,
)
from jaxprune._base.sharding import in_default_memory
from jaxprune._state.progress import Progress


class PruneState(NamedTuple):
    """State of `prune`. It holds only arrays, so every checkpoint format and wrapper accepts it.

    Attributes:
      prune_step: int32 scalar, the number of updates applied so far. It is not named `count`,
        because `optax.tree.set(state, count=0)` would reset it with every other `count`.
      masks: uint8 tree with the structure, shapes and shardings of the params; 0 = dropped, any
        other value = kept (`rigl` marks the weights that grew at the last swap with 2). Leaves that
        are not pruned have masks of ones. With `packed=True` these are bit masks: each byte holds
        eight neighbours along the last axis. `get_masks` returns bool masks of either.
      thresholds: float32[n_leaves] in the order of the leaves: the score that a weight needed to be
        kept at the last fire. 0 before the first fire, with `NM`, and where a pool of the leaf
        drops nothing. For a leaf with several pools, such as slices, it is the smallest.
      violations: int32 scalar, the largest number of dropped weights that were finite and not
        zero at any fire. It stays 0 unless something after `prune` changes the updates.
      inner_state: state of the wrapped optimizer.
      widths: int32[n_leaves], the length of the last axis of each leaf, with bit masks; else None.
      score_state: float32 tree like the params, the running sums of a score that accumulates over
        steps (`movement`); None for any other score.
      progress: a `Progress`, the counts by which fires and `check` are decided. None in a state
        that was saved before this field existed; `upgrade_state` adds it.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> state = jaxprune.prune(jaxprune.one_shot_schedule(0.5)).init({"w": jnp.ones((1, 2))})
      >>> int(state.prune_step), state.masks["w"].tolist(), int(state.violations)
      (0, [[1, 1]], 0)
    """

    prune_step: jax.Array
    masks: Any
    thresholds: jax.Array
    violations: jax.Array
    inner_state: Any
    widths: Any = None
    score_state: Any = None
    progress: Progress | Any = None  # `Any`: a checker need not see that it is not None


def unboxed(field: Any) -> jax.Array:
    """The array in a field of a prune state, taken out of the box that a library may put around it.

    Fields that hold one array (`prune_step`, `thresholds`, `violations`, `widths`) are plain arrays
    in an optax state, but `nnx.Optimizer` wraps each array of its state in an NNX variable
    (`OptArray`). Such a box is a pytree with exactly one leaf, and so is a plain array, so taking
    that leaf works for both and for the boxes of other libraries.

    Example:
      >>> int(unboxed(np.int32(3)))
      3
    """
    [array] = jax.tree.leaves(field)
    return array


def find_states(opt_state: Any) -> list[PruneState]:
    """All prune states inside an optimizer state, a TrainState or an NNX optimizer, in order.

    Those of an agent with other optimizer states beside its `opt_state` are all found. Their own
    arrays, but not those of their inner states, come in the default memory of their devices.
    """
    nodes, _ = flattened(opt_state, lambda x: isinstance(x, PruneState))
    states = [node for node in nodes if isinstance(node, PruneState)]
    if not states and hasattr(opt_state, "opt_state"):  # it need not be a pytree
        return find_states(opt_state.opt_state)
    return [s for state in states for s in (computable(state), *find_states(state.inner_state))]


def computable(state: PruneState) -> PruneState:
    """The state with its own arrays, not those of the inner one, in the usual memory.

    The same object if they lie there.
    """
    own = state._replace(inner_state=None)
    moved = in_default_memory(own)
    pairs = zip(jax.tree.leaves(own), jax.tree.leaves(moved), strict=True)
    is_same = all(one is other for one, other in pairs)
    return state if is_same else moved._replace(inner_state=state.inner_state)


def check_params(where: str, params: Any) -> None:
    """Raises a TypeError where params are the state of an optimizer, or hold one.

    Args:
      where: the name of the user's argument, for the error.
      params: what the user passed.
    """
    if find_states(params):
        raise TypeError(
            f"{where} must be a tree of weights, got one that holds the state of an optimizer. "
            "Pass the params alone: state.params of a TrainState, nnx.state(model, nnx.Param) of "
            "an NNX model."
        )


def get_state(opt_state: Any) -> PruneState:
    """The prune state inside an optimizer state, however deeply it is wrapped.

    Args:
      opt_state: an optax state, or anything that holds one as `.opt_state` (linen `TrainState`,
        `nnx.Optimizer`).

    Returns:
      The one `PruneState` in it.

    Raises:
      ValueError: it holds no prune state, or more than one.

    Example:
      >>> import jax.numpy as jnp, jaxprune, optax
      >>> tx = optax.chain(optax.sgd(0.1), jaxprune.prune(jaxprune.one_shot_schedule(0.5)))
      >>> int(get_state(tx.init({"kernel": jnp.ones((2, 2))})).prune_step)
      0
    """
    states = require_states(opt_state)
    if len(states) > 1:
        raise ValueError(
            f"{len(states)} prune states found, but only one is allowed. Pass the part of the "
            "optimizer state that contains the one you mean, or use get_masks or apply_masks, "
            "which merge the masks of all prune states."
        )
    return states[0]


def batch_shape_of(state: PruneState) -> tuple[int, ...]:
    """The leading axes of each array in a state made under `vmap` or `pmap`; else ()."""
    return np.shape(unboxed(state.prune_step))


def n_batch_axes_of(state: PruneState) -> int:
    """How many leading axes of each array in a state are those of `vmap` or `pmap`."""
    return len(batch_shape_of(state))


def require_states(opt_state: Any) -> list[PruneState]:
    """`find_states`, but raises if there is no prune state."""
    states = find_states(opt_state)
    if states:
        return states
    problem = f"no prune state in {kind_of(opt_state)}"
    if path := _path_of_raw_state(opt_state):
        fix = "a checkpoint was restored without its structure. Fit it to the transformation: "
        fix += "jaxprune.upgrade_state(tx, params, restored)."
        if type(opt_state).__module__.startswith("flax.nnx"):
            fix = (
                "nnx.split or nnx.state took an optimizer apart. Pass the optimizer itself: "
                "optimizer = nnx.merge(graphdef, state), or nnx.update(optimizer, state)."
            )
        raise ValueError(f"{problem}: {path} has its fields, but is not a PruneState: {fix}")
    raise ValueError(
        f"{problem}. Pass the optimizer state of a transformation that contains jaxprune.prune: "
        "what tx.init(params) or tx.update returned."
    )


def _path_of_raw_state(tree: Any) -> str:
    """Where a tree has the fields of a prune state in a plain dict; empty if nowhere."""

    def is_raw(x: Any) -> bool:
        return isinstance(x, Mapping) and {"prune_step", "masks"} <= set(x)

    tree = getattr(tree, "opt_state", tree)
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_raw)
    return next((shown_path(path_str(path)) for path, node in nodes if is_raw(node)), "")


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
PruneState.__module__ = "jaxprune"
__test__ = {"PruneState": PruneState}
