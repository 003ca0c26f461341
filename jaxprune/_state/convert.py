"""Replaces the masks in an optimizer state: by bit masks, by byte masks, or by a user's own masks.

Everything here runs on the host, outside `jit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import (
    check_arrays,
    check_not_donated,
    hidden_paths,
    leaves_with_paths,
    listed,
    paths_of,
    rule_for,
    shown_path,
)
from jaxprune._base.same_values import can_be_read
from jaxprune._base.sharding import in_default_memory, placed_like
from jaxprune._base.trees import ArrayTree, State
from jaxprune._state.bit_masks import to_bits, widths_of
from jaxprune._state.masks import check_mask_dtype, wrong_shape
from jaxprune._state.masks_of_states import masks_of
from jaxprune._state.prune_state import (
    PruneState,
    batch_shape_of,
    computable,
    find_states,
    n_batch_axes_of,
    require_states,
    unboxed,
)
from jaxprune._state.recount import false_in, with_new_masks


@overload
def pack_masks(opt_state: State) -> State: ...


@overload
def pack_masks(opt_state: Any) -> Any: ...


def pack_masks(opt_state: Any) -> Any:
    """The optimizer state with bit masks (one bit per weight), for `prune(..., packed=True)`.

    Args:
      opt_state: an optax state with prune states inside, or a TrainState or `nnx.Optimizer` that
        holds one, such as a checkpoint from a run without `packed=True`. It is read on the host.

    Returns:
      The same state with bit masks. Prune states that already have bit masks are unchanged.

    Raises:
      ValueError: `opt_state` contains no prune state.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
      >>> state = pack_masks(tx.init({"kernel": jnp.ones((4, 20))}))
      >>> state.masks["kernel"].shape, jaxprune.get_masks(state)["kernel"].shape
      ((4, 3), (4, 20))
    """

    def with_bit_masks(state: PruneState) -> PruneState:
        if state.widths is not None:
            return state
        batch = batch_shape_of(state)
        return state._replace(
            masks=jax.tree.map(lambda mask: to_bits(jnp.asarray(mask), len(batch)), state.masks),
            widths=widths_of(jax.tree.leaves(state.masks), batch),
        )

    return _convert("pack_masks", with_bit_masks, opt_state)


@overload
def unpack_masks(opt_state: State) -> State: ...


@overload
def unpack_masks(opt_state: Any) -> Any: ...


def unpack_masks(opt_state: Any) -> Any:
    """The optimizer state with one byte per mask entry, for `prune` without `packed=True`.

    Args:
      opt_state: an optax state with prune states inside, or a TrainState or `nnx.Optimizer` that
        holds one. It is read on the host.

    Returns:
      The same state with masks in the shapes of the params. Prune states without bit masks are
      unchanged.

    Raises:
      ValueError: `opt_state` contains no prune state.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), packed=True)
      >>> unpack_masks(tx.init({"kernel": jnp.ones((4, 20))})).masks["kernel"].shape
      (4, 20)
    """

    def with_byte_masks(state: PruneState) -> PruneState:
        if state.widths is None:
            return state
        _check_widths("unpack_masks", state)
        masks = jax.tree.map(lambda mask: mask.astype(jnp.uint8), masks_of(state))
        return state._replace(masks=masks, widths=None)

    return _convert("unpack_masks", with_byte_masks, opt_state)


def _check_copies(masks: Any) -> None:
    """Raises a ValueError where masks of the two copies that lookahead has of the params differ."""
    if type(masks).__name__ != "LookaheadParams":
        return
    paths, fast, _ = leaves_with_paths(masks.fast)
    slow = leaves_with_paths(masks.slow)[1]
    differ = [
        path
        for path, a, b in zip(paths, fast, slow, strict=False)
        if can_be_read(a) and can_be_read(b)
        if not np.array_equal(np.asarray(a) != 0, np.asarray(b) != 0)
    ]
    if differ:
        raise ValueError(
            f"set_masks: the masks of fast and slow differ at {listed(differ)}. Lookahead averages "
            "the two, so pass the same for both: masks._replace(slow=masks.fast)."
        )


@overload
def set_masks(opt_state: State, masks: ArrayTree) -> State: ...


@overload
def set_masks(opt_state: Any, masks: ArrayTree) -> Any: ...


def set_masks(opt_state: Any, masks: ArrayTree) -> Any:
    """The optimizer state with its masks replaced, to train a sparse model or use your own masks.

    Masks that drop as many weights as the schedule asks for by now stay until its next fire. If
    they drop fewer, the next update prunes further, and with `regrow` chooses among all weights.
    For `NM`, `Block`, `Channel` and slices, whose units the state can't count, "fewer" means fewer
    weights than the masks that they replace drop.

    In a state made under `vmap` or `pmap` with `axis_name`, counts are of all parts of a leaf. If
    the old masks don't tell which of several mapped axes holds the parts, they are those of each
    part until the next update.

    With several processes, call it in all of them: it waits for the others. Only print under
    `if jax.process_index() == 0`.

    Args:
      opt_state: an optax state with prune states inside, or a TrainState or `nnx.Optimizer` that
        holds one. With several, each takes the masks of its own leaves.
      masks: a tree like the params, nonzero = kept, such as `masks_from_params(params)` or the
        masks that `prune_params` returns. With `one_shot_schedule(0.0)` they never change. Masks of
        leaves that `optax.masked` or `optax.partition` hides from `prune` are ignored. Those of
        leaves that `prune` sees but does not prune must keep all weights: give it the `include` of
        the masks, such as `include=tuple(groups)`.

    Returns:
      The same state with these masks. They are stored as bit masks if the old ones were, and on
      the devices of the old ones.

    Raises:
      TypeError: masks of floating point numbers, or shapes in place of arrays; names the path.
      ValueError: no prune state; donated arrays; masks with different paths or shapes; or masks
        that drop weights of a leaf that no prune state prunes, because nothing would keep these at
        zero. A state without `progress` does not tell; `check` then counts such weights.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"kernel": jnp.array([[0.0, 2.0]]), "bias": jnp.ones(2)}
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.0))
      >>> state = set_masks(tx.init(params), jaxprune.masks_from_params(params))
      >>> jaxprune.get_masks(state)["kernel"].tolist()
      [[False, True]]
    """
    check_arrays("set_masks: masks", masks)
    _check_copies(masks)
    new_paths, new_masks, _ = leaves_with_paths(masks)
    states = require_states(opt_state)
    known = {path for state in states for path in paths_of(state.masks)}
    hidden = {path for state in states for path in hidden_paths(state.masks)}
    unknown = [path for path in new_paths if path not in known and not _is_below(path, hidden)]
    lacking = sorted(known - set(new_paths))
    if unknown or lacking:
        raise ValueError(_other_leaves(unknown, lacking))
    new = dict(zip(new_paths, in_default_memory(new_masks), strict=True))
    changed = _convert("set_masks", lambda state: _with_masks(state, new), opt_state)
    if unenforced := _unenforced(states, new):
        raise ValueError(_not_enforced(unenforced, new))
    return changed


def _other_leaves(unknown: Sequence[str], lacking: Sequence[str]) -> str:
    """The message for masks that have leaves which the params have not, or lack some of theirs."""
    problems = [
        f"{whose} have {listed(paths)}, which the {others} do not"
        for whose, paths, others in (("they", unknown, "params"), ("the params", lacking, "masks"))
        if paths
    ]
    fix = "Pass a tree like the params, such as jaxprune.masks_from_params(params)."
    if lacking and not unknown:
        fix += " If the model has new layers, these masks keep all of their weights."
    return f"set_masks: masks must have the leaves of the params, but {'; '.join(problems)}. {fix}"


def _unenforced(states: Sequence[PruneState], masks: Mapping[str, Any]) -> dict[str, int]:
    """How many weights masks drop in leaves that no state prunes, as far as the states tell."""
    enforced = set().union(*map(pruned_paths, states))
    paths = dict.fromkeys(path for state in states for path in paths_of(state.masks))
    n_dropped = {
        path: int(false_in(jnp.asarray(masks[path]).astype(bool)))
        for path in paths
        if path not in enforced
    }
    return {path: n for path, n in n_dropped.items() if n}


def pruned_paths(state: PruneState) -> set[str]:
    """The paths of the leaves that a state prunes, or has masks of where that is not known."""
    paths = paths_of(state.masks)
    pool_of = None if state.progress is None else unboxed(state.progress.pool_of)
    if pool_of is None or isinstance(pool_of, jax.core.Tracer) or not paths:
        return set(paths)
    pool_of = np.asarray(pool_of).reshape(-1, len(paths))  # one row for each member of a `vmap`
    return {path for path, account in zip(paths, pool_of.max(0), strict=True) if account >= 0}


def _not_enforced(n_dropped: Mapping[str, int], masks: Mapping[str, Any]) -> str:
    """The message for masks that drop weights of leaves that are not pruned."""
    counts = [
        f"{shown_path(path)} ({n:,} of {np.size(masks[path]):,})" for path, n in n_dropped.items()
    ]
    rules = [repr(rule_for(path)) for path in n_dropped]
    which, ones = ("this leaf", "a mask") if len(rules) == 1 else ("these leaves", "masks")
    return (
        f"set_masks: the masks drop weights of {listed(counts)}, but this optimizer does not prune "
        f"{which}, so nothing would keep these weights at zero. Build prune with an include that "
        f"also matches {listed(rules)} (include=tuple(groups) for the groups of channel_groups), "
        f"or pass {ones} of ones there."
    )


def _is_below(path: str, hidden: set[str]) -> bool:
    """Whether a leaf is at or below one of the positions that a wrapper hides."""
    return any(path == top or not top or path.startswith(f"{top}/") for top in hidden)


def _with_masks(state: PruneState, new: Mapping[str, Any]) -> PruneState:
    """The state with those of the new masks, by path, that belong to the leaves that it prunes.

    Its other masks keep every weight. Those of leaves that another state prunes would be old ones
    as soon as that state changes its own.
    """
    _check_widths("set_masks", state)
    paths, old_masks, treedef = leaves_with_paths(masks_of(state))
    for path, old in zip(paths, old_masks, strict=True):
        if jnp.shape(new[path]) != jnp.shape(old):
            raise ValueError(
                wrong_shape(path, jnp.shape(new[path]), jnp.shape(old), is_of_state=False)
            )
        check_mask_dtype(path, new[path])
    pruned = pruned_paths(state)
    stored = [
        jnp.asarray(new[path]).astype(bool).astype(jnp.uint8)
        if path in pruned
        else jnp.ones_like(old, jnp.uint8)
        for path, old in zip(paths, old_masks, strict=True)
    ]
    if state.widths is not None:
        stored = [to_bits(mask, n_batch_axes_of(state)) for mask in stored]
    stored = list(map(_placed_like, stored, jax.tree.leaves(state.masks)))
    return with_new_masks(state, treedef.unflatten(stored))


def _placed_like(mask: jax.Array, old: Any) -> jax.Array:
    """A mask on the devices of the old one, which are those of its param.

    An old mask that JAX may still place anywhere, as before the params are sharded, tells nothing.
    """
    is_known = isinstance(old, jax.Array) and not isinstance(old, jax.core.Tracer)
    is_placed = is_known and old.committed
    return placed_like(mask, old) if is_placed else mask


def _check_widths(function: str, state: PruneState) -> None:
    """Raises a ValueError for bit masks inside `jit`, where their lengths are unknown."""
    if state.widths is not None and isinstance(unboxed(state.widths), jax.core.Tracer):
        raise ValueError(
            f"{function}: these are bit masks (packed=True), and inside jit or vmap the length of "
            f"their last axis is unknown. Call {function} outside jit, and pass its result in."
        )


def _convert(function: str, change: Callable[[PruneState], PruneState], opt_state: Any) -> Any:
    """`with_changed_states`, after checks of what the user passed to `function`."""
    check_not_donated(f"{function}: opt_state", require_states(opt_state))
    return with_changed_states(change, opt_state)


def with_changed_states(change: Callable[[PruneState], PruneState], opt_state: Any) -> Any:
    """The optimizer state with `change` applied to every prune state in it.

    What lay in another memory than the usual one, such as `pinned_host`, lies in the usual one.
    """

    def changed(x: Any) -> Any:
        if not isinstance(x, PruneState):
            return x
        state = change(computable(x))
        if not find_states(x.inner_state):
            return state
        return state._replace(inner_state=with_changed_states(change, x.inner_state))

    return jax.tree.map(changed, opt_state, is_leaf=lambda x: isinstance(x, PruneState))
