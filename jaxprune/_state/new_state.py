"""The first state of a transformation, for `splice` and `upgrade_state` to fit another state to."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._base.arguments import shown
from jaxprune._base.paths import leaves_with_paths, shape_of, shown_path, spec_of
from jaxprune._state.prune_state import find_states


def new_state(function: str, tx: Any, params: Any, batch: tuple[int, ...] = ()) -> Any:
    """`tx.init(params)`, for each member of an ensemble where there is one.

    Args:
      function: the public function, for errors.
      tx: a transformation.
      params: arrays, or their shapes and dtypes; those of the members are stacked.
      batch: the lengths of the leading axes of an ensemble.

    Raises:
      TypeError: the params hold something else than arrays.
      ValueError: `tx` does not prune, or the params are not those of all members.
    """
    for path, leaf in zip(*leaves_with_paths(params)[:2], strict=True):
        if spec_of(leaf) is None and not isinstance(leaf, (int, float, complex)):
            raise TypeError(
                f"{function}: {shown_path(path)}: params must hold arrays, got {shown(leaf)}. Pass "
                "the params that the run trained, such as eqx.filter(model, eqx.is_array)."
            )
        if shape_of(leaf)[: len(batch)] != batch:
            raise ValueError(
                f"{function}: {shown_path(path)}: the param has shape {shape_of(leaf)}, but the "
                f"state was made under vmap or pmap, with the leading axes {batch}. Pass the "
                "params of all members, stacked in the same way."
            )
    fresh = _of_members(tx, params, batch)
    if not find_states(fresh):
        raise ValueError(
            f"{function}: tx.init returns no prune state. Pass an optimizer that prunes, such as "
            "optax.chain(optimizer, jaxprune.prune(schedule))."
        )
    return fresh


def _of_members(tx: Any, params: Any, batch: tuple[int, ...]) -> Any:
    """The states of all members, stacked."""
    if not batch:
        return tx.init(params)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        member = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape[len(batch) :], p.dtype), params
        )
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*batch, *x.shape)), tx.init(member))
    init = tx.init
    for _ in batch:
        init = jax.vmap(init)
    return init(params)


def batch_of(old_state: Any) -> tuple[int, ...]:
    """The shape of `prune_step` in a saved state, whatever its containers; () if it has none.

    Example:
      >>> batch_of([{"prune_step": jnp.zeros(3, jnp.int32)}]), batch_of({"count": jnp.zeros(3)})
      ((3,), ())
    """
    old_state = getattr(old_state, "opt_state", old_state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(old_state):
        if "prune_step" in [getattr(key, "name", getattr(key, "key", None)) for key in path]:
            return tuple(jnp.shape(leaf))
    return ()
