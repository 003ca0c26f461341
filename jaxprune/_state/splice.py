"""A dense run that goes on sparse: `splice` puts a fresh prune state into its optimizer state.

The state of a dense optimizer has no place for masks. What the sparse optimizer would start from is
compared with it node by node, outermost first; where a prune state stands and the dense run has
none, the fresh one is put in, and everything else is taken over as it is.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune._base.arguments import shown
from jaxprune._base.paths import path_str, shown_path
from jaxprune._state.prune_state import PruneState, find_states


def splice(tx: optax.GradientTransformation, params: optax.Params, dense_opt_state: Any) -> Any:
    """The state in which `tx`, which prunes, goes on from a run of the same optimizer without it.

    Moments, counters and every other array of the dense state come over as they are; masks keep
    everything and the schedule counts from 0. Links of a chain may have been added where they are
    prune transforms, and nowhere else.

    Args:
      tx: the transformation to go on with: `optax.chain(optimizer, jaxprune.prune(schedule))`,
        `jaxprune.prune(schedule, inner=optimizer)`, or either inside wrappers that the dense run
        had too, such as `optax.MultiSteps(...).gradient_transformation()`.
      params: the trained params, on the devices where they train.
      dense_opt_state: the optimizer state of the dense run, restored from its checkpoint into the
        structure of `optimizer.init(params)`. Of a TrainState pass `.opt_state`.

    Returns:
      An optimizer state for `tx`.

    Raises:
      ValueError: no prune transform in `tx`, a dense state that already holds a prune state, or one
        of another optimizer or other params, naming where they differ.

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
    if find_states(dense_opt_state):
        raise ValueError(
            "the dense state holds a prune state already. Go on from it as it is; to start pruning "
            "anew, pass the state of the optimizer alone."
        )
    fresh = tx.init(params)
    if not find_states(fresh):
        raise ValueError(
            "no prune state in what tx.init returns. Pass the transformation to go on with, such "
            "as optax.chain(optimizer, jaxprune.prune(schedule))."
        )
    return _spliced(fresh, dense_opt_state, ())


def _spliced(fresh: Any, dense: Any, path: tuple[Any, ...]) -> Any:
    """`fresh` with the arrays of `dense` in it; `path` leads here, for errors."""
    if isinstance(fresh, PruneState):
        inner = _spliced(fresh.inner_state, dense, (*path, _key("inner_state")))
        return fresh._replace(inner_state=inner)
    if not find_states(fresh):
        return _taken_over(fresh, dense, path)
    if _is_chain(fresh):
        return _spliced_chain(fresh, dense, path)
    children, treedef = _one_level(fresh)
    theirs, their_treedef = _one_level(dense)
    if type(fresh) is not type(dense) or their_treedef != treedef:
        raise ValueError(_differ(path, fresh, dense))
    pairs = zip(children, theirs, strict=True)
    return treedef.unflatten([_spliced(a, b, (*path, *key)) for (key, a), (_, b) in pairs])


def _spliced_chain(fresh: tuple[Any, ...], dense: Any, path: tuple[Any, ...]) -> Any:
    """A chain whose prune links the dense run had not.

    A dense run of a chain has its other links in the same order; a dense run of one transformation
    that was no chain has a state that is the one other link.
    """
    added = [_only_prunes(link) for link in fresh]
    others = [link for link, is_added in zip(fresh, added, strict=True) if not is_added]
    fits = len(others) == 1 and jax.tree.structure(others[0]) == jax.tree.structure(dense)
    if _is_chain(dense) and len(dense) == len(others) and not fits:
        theirs = iter(dense)
    elif len(others) == 1:
        theirs = iter((dense,))
    else:
        raise ValueError(_differ(path, fresh, dense))
    return tuple(
        link if is_added else _spliced(link, next(theirs), (*path, jax.tree_util.SequenceKey(i)))
        for i, (link, is_added) in enumerate(zip(fresh, added, strict=True))
    )


def _taken_over(fresh: Any, dense: Any, path: tuple[Any, ...]) -> Any:
    """`dense`, if it has the structure, shapes and dtypes of `fresh`."""
    if jax.tree.structure(fresh) != jax.tree.structure(dense):
        raise ValueError(_differ(path, fresh, dense))
    ours = jax.tree_util.tree_leaves_with_path(fresh)
    for (key, a), b in zip(ours, jax.tree.leaves(dense), strict=True):
        if jnp.shape(a) != jnp.shape(b) or jnp.result_type(a) != jnp.result_type(b):
            raise ValueError(
                f"{path_str((*path, *key))}: the dense state has {_spec(b)}, but this optimizer on "
                f"these params has {_spec(a)}. Pass the params that the dense run trained."
            )
    return dense


def _differ(path: tuple[Any, ...], fresh: Any, dense: Any) -> str:
    where = shown_path(path_str(path))
    return (
        f"{where}: the dense state is not what this optimizer holds without jaxprune.prune: it has "
        f"{_outline(dense)}, and with pruning the optimizer has {_outline(fresh)}. Build tx from "
        "the optimizer of the dense run, link for link, and restore the checkpoint into the "
        "structure of its init(params)."
    )


def _outline(state: Any) -> str:
    """The names of the states in a chain, or of one state."""
    if _is_chain(state):
        return f"({', '.join(map(_outline, state))})"
    return shown(state) if isinstance(state, str | bytes) else type(state).__name__


def _spec(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def _is_chain(state: Any) -> bool:
    """Whether it is the state of `optax.chain`: a tuple without field names."""
    return type(state) is tuple


def _only_prunes(link: Any) -> bool:
    """Whether it is the state of `prune` around no optimizer, bare or in a wrapper (`masked`)."""
    nodes = jax.tree.leaves(link, is_leaf=lambda x: isinstance(x, PruneState))
    bare = [
        isinstance(x, PruneState) and isinstance(x.inner_state, optax.EmptyState) for x in nodes
    ]
    return bool(bare) and all(bare)


def _one_level(tree: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """The children of a node with their keys, and the node itself."""
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)


def _key(name: str) -> Any:
    return jax.tree_util.GetAttrKey(name)
