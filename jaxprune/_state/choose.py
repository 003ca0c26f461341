"""`choose_schedule`: which of several schedules a state follows, as data."""

from __future__ import annotations

from typing import Any, overload

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import shown
from jaxprune._base.counting import counting, is_wide
from jaxprune._base.paths import check_not_donated
from jaxprune._base.trees import State
from jaxprune._state.convert import with_changed_states
from jaxprune._state.progress import Choices, Progress
from jaxprune._state.prune_state import PruneState, batch_shape_of, require_states, unboxed


@overload
def choose_schedule(opt_state: State, index: Any) -> State: ...


@overload
def choose_schedule(opt_state: Any, index: Any) -> Any: ...


def choose_schedule(opt_state: Any, index: Any) -> Any:
    """An optimizer state that follows another schedule of `prune([schedule, ...])`.

    Nothing is compiled again, and `index` may be traced, so that the members of a `vmap` follow
    different schedules:

        states = jax.vmap(lambda i: choose_schedule(tx.init(params), i))(jnp.arange(n_schedules))

    Choose before the first update. Later it is possible, too: the next update prunes further if the
    new schedule asks for more zeros by then, and weights that are already dropped stay dropped.

    Args:
      opt_state: an optax state with prune states inside, or a TrainState or `nnx.Optimizer` that
        holds one. Prune states of a single schedule are unchanged.
      index: which schedule, counted from 0: an int, or an integer array. For a state that was made
        under `vmap`, an array with one entry for each member, or one number for all.

    Returns:
      The same state with this schedule.

    Raises:
      TypeError: `index` is not an integer.
      ValueError: no prune state has several schedules; an index out of range. Traced indices are
        not checked: one out of range means the nearest schedule.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> half, most = jaxprune.one_shot_schedule(0.5), jaxprune.one_shot_schedule(0.75)
      >>> tx = jaxprune.prune([half, most])
      >>> params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> _, state = tx.update(params, choose_schedule(tx.init(params), 1), params)
      >>> jaxprune.get_masks(state)["kernel"].tolist()
      [[False, False, False, True]]
    """
    states = [state for state in require_states(opt_state) if _choices(state) is not None]
    if not states:
        raise ValueError(
            "choose_schedule: no prune state in opt_state has several schedules. Build the "
            "transformation with a list of them: jaxprune.prune([schedule, ...])."
        )
    check_not_donated("choose_schedule: opt_state", states)
    index = _checked_index(index, states)
    return with_changed_states(lambda state: following(state, index), opt_state)


def _is_integer(index: Any) -> bool:
    return isinstance(index, int) or bool(jnp.issubdtype(index.dtype, jnp.integer))


def _choices(state: PruneState) -> Choices | None:
    return None if state.progress is None else state.progress.choices


def _checked_index(index: Any, states: list[PruneState]) -> jax.Array:
    """The index as an int32 array."""
    is_array = isinstance(index, (int, np.integer, np.ndarray, jax.Array))
    if isinstance(index, bool) or not is_array or not _is_integer(index):
        raise TypeError(
            "choose_schedule: index must be an int, or an array of integers, got "
            f"{shown(index)}. Pass the number of the schedule, counted from 0."
        )
    n = min(np.shape(unboxed(state.progress.choices.target))[-1] for state in states)
    is_known = not isinstance(index, jax.core.Tracer)
    if is_known and not np.all((np.asarray(index) >= 0) & (np.asarray(index) < n)):
        raise ValueError(
            f"choose_schedule: index must be in [0, {n}), because there are {n} schedules, got "
            f"{shown(index)}."
        )
    for state in states:
        batch = batch_shape_of(state)
        if np.ndim(index) and np.shape(index) != batch:
            raise ValueError(
                f"choose_schedule: index has shape {np.shape(index)}, but the state has the batch "
                f"shape {batch}. Pass one number for each member of the state."
            )
    return jnp.clip(jnp.asarray(index, jnp.int32), 0, n - 1)


def following(state: PruneState, index: jax.Array) -> PruneState:
    """The state with the schedule at `index` of its list; unchanged where it has no list."""
    if _choices(state) is None:
        return state
    flat, treedef = jax.tree.flatten(state.progress)  # without the boxes of NNX
    n, end = Progress._fields.index("choices"), Progress._fields.index("choices") + 4
    choices = Choices(*flat[n:end])
    names = [name for name in Progress._fields if getattr(state.progress, name) is not None]
    fields = (*flat[:n], choices, *flat[end:])
    progress = Progress(**dict(zip(names, fields, strict=True)))
    number = jnp.broadcast_to(index, jnp.shape(choices.number))
    taken = [_at(table, number) for table in (choices.schedules, choices.due, choices.target)]
    begin, end, every = jnp.moveaxis(taken[0], -1, 0)
    step = jnp.asarray(unboxed(state.prune_step)) - 1  # that of the last update
    n_fires = -((begin - end) // every) + 1
    past = jnp.clip((step - begin) // every + 1, 0, n_fires - 1)
    past = jnp.where(step >= end, n_fires, past)
    new = progress._replace(
        schedule=taken[0],
        due=taken[1],
        target=taken[2],
        fires_left=(n_fires - past).astype(jnp.int32),
        choices=choices._replace(number=number.astype(jnp.int32)),
    )
    return state._replace(progress=treedef.unflatten(jax.tree.leaves(new)))


def _at(table: jax.Array, number: jax.Array) -> jax.Array:
    """The entry of each member: `table[..., number, :]`, where both have the same batch axes."""
    n_batch_axes = number.ndim
    place = number.reshape(number.shape + (1,) * (table.ndim - n_batch_axes))
    with counting(is_wide(table)):
        taken = jnp.take_along_axis(table, place, n_batch_axes)
        return jnp.squeeze(taken, n_batch_axes)
