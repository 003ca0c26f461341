"""The optimizer that a transformation wraps: accepted, and its moments reset where weights grow."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune._base.arguments import shown
from jaxprune._base.paths import leaves_with_paths, listed, paths_of
from jaxprune._recipe.budget import Budget

AFTER_LOOKAHEAD = (
    "Put prune behind it: optax.chain(optax.lookahead(optimizer, ...), jaxprune.prune(schedule)); "
    "this prunes both copies of the params."
)


class Wrapped(NamedTuple):
    """An optimizer and the structure of the params that it trains; host values, hashable."""

    tx: optax.GradientTransformationExtraArgs
    treedef: Any


def as_optimizer(inner: Any) -> optax.GradientTransformationExtraArgs:
    """An optimizer that accepts extra arguments, from the user's argument `inner`.

    Raises:
      TypeError: `inner` is not an optax transformation.

    Example:
      >>> updates, _ = as_optimizer(optax.scale(2.0)).update(1.0, optax.EmptyState(), loss=0.5)
      >>> updates
      2.0
    """
    if not callable(getattr(inner, "init", None)) or not callable(getattr(inner, "update", None)):
        fix = ""
        if inspect.isroutine(inner):
            fix = f" Call it: {getattr(inner, '__name__', 'optimizer')}(...)."
        raise TypeError(
            "inner must be an optax transformation such as optax.adamw(3e-4), got "
            f"{shown(inner)}.{fix}"
        )
    return optax.with_extra_args_support(inner)


def first_state(optimizer: optax.GradientTransformationExtraArgs, params: Any) -> Any:
    """What `init` of the wrapped optimizer returns.

    Raises:
      ValueError: it is `optax.lookahead`, or has it inside, which can't be wrapped: its params are
        two copies, but its gradients are those of one.
    """
    try:
        state = optimizer.init(params)
    except Exception as error:  # whatever the optimizer raises
        paths, leaves, _ = leaves_with_paths(params)
        functions = [p for p, x in zip(paths, leaves, strict=True) if callable(x)]
        if functions:
            error.add_note(
                f"{listed(functions)}: the params hold functions. Pass the arrays alone: of an "
                "Equinox model, eqx.filter(model, eqx.is_inexact_array)."
            )
        raise
    is_lookahead = lambda x: isinstance(x, optax.LookaheadState)
    if any(map(is_lookahead, jax.tree.leaves(state, is_leaf=is_lookahead))):
        raise ValueError(
            "inner: optax.lookahead can't be wrapped, because it gets the gradients of the fast "
            f"params alone. {AFTER_LOOKAHEAD}"
        )
    return state


def reset_grown(wrapped: Wrapped, state: Any, budget: Budget, masks: Sequence[jax.Array]) -> Any:
    """The optimizer's state with zeros, the moments of a new weight, where a weight has just grown.

    Args:
      wrapped: the optimizer.
      state: the optimizer's state.
      budget: the budget of the tree.
      masks: the masks of the pruned leaves; 2 means grown at this fire.
    """
    grown: list[Any] = [False] * len(budget.paths)
    for i, mask in zip(budget.chosen, masks, strict=True):
        grown[i] = mask == 2
    try:
        return optax.tree.map_params(wrapped.tx, _reset, state, wrapped.treedef.unflatten(grown))
    except ValueError:  # wrappers leave holes in their states, where whole trees do not fit
        return _reset_by_path(state, dict(zip(budget.paths, grown, strict=True)))


def _reset(leaf: Any, grown: Any) -> Any:
    if grown is False or jnp.shape(leaf) != grown.shape:  # adafactor stores rows and columns
        return leaf
    return jnp.where(grown, jnp.zeros_like(leaf), leaf)


def _reset_by_path(state: Any, grown: dict[str, Any]) -> Any:
    """Resets each leaf of the state whose path ends with that of a param."""
    leaves, treedef = jax.tree.flatten(state)
    for i, state_path in enumerate(paths_of(state)):
        ends = [path for path in grown if f"/{state_path}".endswith(f"/{path}")]
        if ends:
            leaves[i] = _reset(leaves[i], grown[max(ends, key=len)])
    return treedef.unflatten(leaves)
