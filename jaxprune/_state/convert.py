"""Other masks in an optimizer state: packed, unpacked, or of the user's own. On the host."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxprune._base.paths import leaves_with_paths, listed
from jaxprune._state.bit_masks import to_bits
from jaxprune._state.prune_state import (
    PruneState,
    get_state,
    masks_of,
    require_states,
    widths_of,
    wrong_shape,
)


def pack_masks(opt_state: Any) -> Any:
    """An optimizer state whose masks take one bit per weight, for `prune(..., packed=True)`.

    Args:
      opt_state: an optax state with prune states inside, such as a checkpoint of a run without
        `packed=True`. It is read on the host. Of a TrainState pass `.opt_state`.

    Returns:
      The same state with packed masks. Prune states that are packed already stay as they are.

    Raises:
      ValueError: no prune state in it.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
      >>> state = pack_masks(tx.init({"kernel": jnp.ones((4, 20))}))
      >>> state.masks["kernel"].shape, jaxprune.get_masks(state)["kernel"].shape
      ((4, 3), (4, 20))
    """

    def packed(state: PruneState) -> PruneState:
        if state.widths is not None:
            return state
        masks = jax.tree.leaves(state.masks)
        return state._replace(
            masks=jax.tree.map(lambda m: to_bits(jnp.asarray(m)), state.masks),
            widths=widths_of(masks),
        )

    return _convert(packed, opt_state)


def unpack_masks(opt_state: Any) -> Any:
    """An optimizer state whose masks take one byte per weight, as `prune` without `packed` wants.

    Args:
      opt_state: an optax state with prune states inside. It is read on the host.

    Returns:
      The same state with masks of the shapes of the params. Prune states that are not packed stay
      as they are.

    Raises:
      ValueError: no prune state in it.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), packed=True)
      >>> unpack_masks(tx.init({"kernel": jnp.ones((4, 20))})).masks["kernel"].shape
      (4, 20)
    """

    def unpacked(state: PruneState) -> PruneState:
        masks = jax.tree.map(lambda m: m.astype(jnp.uint8), masks_of(state))
        return state if state.widths is None else state._replace(masks=masks, widths=None)

    return _convert(unpacked, opt_state)


def set_masks(opt_state: Any, masks: chex.ArrayTree) -> Any:
    """An optimizer state with other masks: to go on from a sparse model, or with masks of your own.

    Args:
      opt_state: an optax state with one prune state inside.
      masks: tree like the params, nonzero = kept, such as `masks_from_params(params)` or the masks
        of `prune_params`. With `one_shot_schedule(0.0)` they stay for the whole run.

    Returns:
      The same state with these masks, in the dtype and packing of those before.

    Raises:
      ValueError: no prune state or several, or masks of other paths or shapes.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"kernel": jnp.array([[0.0, 2.0]]), "bias": jnp.ones(2)}
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.0))
      >>> state = set_masks(tx.init(params), jaxprune.masks_from_params(params))
      >>> jaxprune.get_masks(state)["kernel"].tolist()
      [[False, True]]
    """
    state = get_state(opt_state)
    paths, old, treedef = leaves_with_paths(masks_of(state))
    new_paths, new, _ = leaves_with_paths(masks)
    if new_paths != paths:
        raise ValueError(
            f"masks must have the leaves of the params, {listed(paths)}, got {listed(new_paths)}."
        )
    for path, mask, like in zip(paths, new, old, strict=True):
        if jnp.shape(mask) != jnp.shape(like):
            raise ValueError(wrong_shape(path, jnp.shape(mask), jnp.shape(like)))
    kept = [jnp.asarray(mask).astype(bool).astype(jnp.uint8) for mask in new]
    packed = kept if state.widths is None else [to_bits(mask) for mask in kept]
    return _convert(lambda state: state._replace(masks=treedef.unflatten(packed)), opt_state)


def _convert(change: Callable[[PruneState], PruneState], opt_state: Any) -> Any:
    require_states(opt_state)
    return jax.tree.map(
        lambda x: change(x) if isinstance(x, PruneState) else x,
        opt_state,
        is_leaf=lambda x: isinstance(x, PruneState),
    )
