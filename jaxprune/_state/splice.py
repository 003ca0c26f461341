"""`splice`: start pruning in the middle of a dense run by adding a prune state to its state.

The optimizer state of a dense run has no prune state. `splice` makes the initial state of the
pruning optimizer and walks both trees together from the root down. It keeps the new prune states
and takes everything else unchanged from the dense run.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax

from jaxprune._base.arguments import shown
from jaxprune._base.paths import (
    check_not_donated,
    is_box,
    listed,
    path_str,
    paths_of,
    shown_path,
)
from jaxprune._base.trees import ArrayTree
from jaxprune._state.new_state import new_state
from jaxprune._state.prune_state import PruneState, find_states


def splice(tx: optax.GradientTransformation, params: ArrayTree, dense_opt_state: Any) -> Any:
    """The state with which `tx`, an optimizer that prunes, continues a dense run of that optimizer.

    Moments, counters and all other arrays of the dense state are kept unchanged. The new masks keep
    every weight, and the schedule starts at step 0. `tx` must be the optimizer of the dense run
    plus transformations that prune, and nothing else.

    For an ensemble, whose optimizer state was made under `vmap`, call
    `jax.vmap(lambda p, s: splice(tx, p, s))(params, dense_opt_state)`; `splice` alone would prune
    the stacked params of all members as if they were one network.

    Args:
      tx: the transformation to continue with: `optax.chain(optimizer, jaxprune.prune(schedule))`,
        `jaxprune.prune(schedule, inner=optimizer)`, or either inside wrappers that the dense run
        also had, such as `optax.MultiSteps(...).gradient_transformation()`.
      params: the trained params, on the devices where they train.
      dense_opt_state: the optimizer state of the dense run, restored from its checkpoint into the
        structure of `optimizer.init(params)`; or what holds it as `.opt_state`: a TrainState, or an
        `nnx.Optimizer` (with `nnx.state(model, nnx.Param)` as params).

    Returns:
      An optimizer state for `tx`. A new `optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)` takes
      it over with `nnx.update(optimizer.opt_state, nnx.state(spliced))`.

    Raises:
      TypeError: `tx` is not an optax transformation, or `params` is an NNX model.
      ValueError: `tx` contains no transformation that prunes; the dense state already contains a
        prune state, or belongs to another optimizer or other params (names where they differ).

    Example:
      >>> import jax.numpy as jnp, jaxprune, optax
      >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
      >>> dense = optax.adam(1e-3)
      >>> _, dense_state = dense.update(params, dense.init(params), params)  # a long run
      >>> tx = optax.chain(dense, jaxprune.prune(jaxprune.one_shot_schedule(0.5)))
      >>> state = splice(tx, params, dense_state)
      >>> int(optax.tree.get(state, "count")), int(jaxprune.get_state(state).prune_step)
      (1, 0)
    """
    check_transformation("splice", tx, "the state of the dense run")
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(params, nnx.Module):
        raise TypeError(
            "splice: params must be those that the optimizer trains, got an NNX model. Pass "
            "nnx.state(model, nnx.Param)."
        )
    if find_states(dense_opt_state):
        raise ValueError(
            "the dense state already contains a prune state. Continue from it without splice; or, "
            "to start pruning again, pass the state of the optimizer without jaxprune.prune."
        )
    check_not_donated("splice: dense_opt_state", dense_opt_state)
    dense_opt_state = _without_boxes(getattr(dense_opt_state, "opt_state", dense_opt_state))
    return _spliced(new_state("splice", tx, params), dense_opt_state, ())


def check_transformation(function: str, tx: Any, third: str) -> None:
    """Raises a TypeError unless the first of three arguments is an optax transformation.

    Args:
      function: the public function, for the error.
      tx: the first argument.
      third: what the third argument is; the second is the params.
    """
    if not callable(getattr(tx, "init", None)) or not callable(getattr(tx, "update", None)):
        raise TypeError(
            f"{function}: tx must be an optax transformation, got {shown(tx)}. Pass an optimizer "
            "that prunes first, such as optax.chain(optimizer, jaxprune.prune(schedule)), then the "
            f"params, then {third}."
        )


def _spliced(fresh: Any, dense: Any, path: tuple[Any, ...]) -> Any:
    """`fresh` with the arrays of `dense`. `path` is the key path of both nodes, for errors."""
    if isinstance(fresh, PruneState):
        inner = _spliced(fresh.inner_state, dense, (*path, _key("inner_state")))
        return fresh._replace(inner_state=inner)
    if not find_states(fresh):
        return _taken_over(fresh, dense, path)
    if _is_chain(fresh):
        return _spliced_chain(fresh, dense, path)
    children, treedef = _one_level(fresh)
    dense_children, dense_treedef = _one_level(dense)
    if type(fresh) is not type(dense) or dense_treedef != treedef:
        raise ValueError(_misfit(path, fresh, dense))
    pairs = zip(children, dense_children, strict=True)
    return treedef.unflatten(
        [_spliced(child, dense_child, (*path, *key)) for (key, child), (_, dense_child) in pairs]
    )


def _spliced_chain(fresh: tuple[Any, ...], dense: Any, path: tuple[Any, ...]) -> Any:
    """The state of a chain, where the dense run had no prune links.

    If the dense run was a chain too, it had the same other links in the same order. If it was a
    single transformation, its state is that of the only other link.
    """
    is_new = [only_prunes(link) for link in fresh]
    old_links = [link for link, new in zip(fresh, is_new, strict=True) if not new]
    is_single = len(old_links) == 1 and _same_structure(old_links[0], dense)
    if _is_chain(dense) and len(dense) == len(old_links) and not is_single:
        dense_links = iter(dense)
    elif len(old_links) == 1:
        dense_links = iter((dense,))
    else:
        raise ValueError(_misfit(path, fresh, dense))
    return tuple(
        link if new else _spliced(link, next(dense_links), (*path, jax.tree_util.SequenceKey(i)))
        for i, (link, new) in enumerate(zip(fresh, is_new, strict=True))
    )


def _taken_over(fresh: Any, dense: Any, path: tuple[Any, ...]) -> Any:
    """The arrays of `dense`; raises unless it has the structure, shapes and dtypes of `fresh`."""
    if not _same_structure(fresh, dense):
        raise ValueError(_misfit(path, fresh, dense))
    leaves = jax.tree_util.tree_leaves_with_path(fresh)
    for (key, leaf), dense_leaf in zip(leaves, jax.tree.leaves(dense), strict=True):
        needed, got = _shape_and_dtype(leaf), _shape_and_dtype(dense_leaf)
        if got != needed:
            raise ValueError(
                f"{path_str((*path, *key))}: the dense state has {got}, but for these params tx "
                f"needs {needed}. Pass the params that the dense run trained."
            )
    return jax.tree.structure(fresh).unflatten(jax.tree.leaves(dense))


def _same_structure(fresh: Any, dense: Any) -> bool:
    return jax.tree.structure(_without_boxes(fresh)) == jax.tree.structure(dense)


def _without_boxes(tree: Any) -> Any:
    """A tree with the array of each NNX variable or linen box in its place.

    `nnx.Optimizer` puts every array of its state in a variable, of another type than the variables
    of `nnx.state(model)`.
    """

    def unboxed(x: Any) -> Any:
        leaves = jax.tree.leaves(x) if is_box(x) else [x]
        return leaves[0] if len(leaves) == 1 else x

    return jax.tree.map(unboxed, tree, is_leaf=is_box)


def _misfit(path: tuple[Any, ...], fresh: Any, dense: Any) -> str:
    """The message for a dense state of another optimizer."""
    outlines = [_outline(dense), _outline(fresh)]
    if outlines[0] == outlines[1]:  # then their leaves differ, or the containers of these
        outlines = [f"the leaves {listed(paths_of(state))}" for state in (dense, fresh)]
    return (
        f"{shown_path(path_str(path))}: the dense state does not fit this optimizer: it has "
        f"{outlines[0]}, but tx has {outlines[1]}. Build tx from exactly the links of the "
        "dense optimizer and jaxprune.prune, and restore the checkpoint into the structure of "
        "optimizer.init(params)."
    )


def _outline(state: Any) -> str:
    """The type of a state, or the types of the states in a chain, for errors."""
    if _is_chain(state):
        return f"({', '.join(map(_outline, state))})"
    if isinstance(state, jax.core.Tracer):
        return "a traced value"
    return shown(state) if isinstance(state, str | bytes) else type(state).__name__


def _shape_and_dtype(leaf: Any) -> str:
    """The shape and dtype of a leaf, such as `float32[3, 4]`."""
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def _is_chain(state: Any) -> bool:
    """Whether a state is that of `optax.chain`: a tuple without field names."""
    return type(state) is tuple


def only_prunes(link: Any) -> bool:
    """Whether the state of a link holds nothing but prune states without an inner optimizer.

    They may be inside a wrapper, such as `optax.masked`.
    """
    nodes = jax.tree.leaves(link, is_leaf=lambda x: isinstance(x, PruneState))
    only_prunes = [
        isinstance(node, PruneState) and isinstance(node.inner_state, optax.EmptyState)
        for node in nodes
    ]
    return bool(only_prunes) and all(only_prunes)


def _one_level(tree: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """The children of a node with their keys, and the treedef of that one level."""
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)


def _key(name: str) -> Any:
    return jax.tree_util.GetAttrKey(name)
