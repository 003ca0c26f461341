"""What a step asks of the accounts of a tree, and what a fire has reached of it; all traced.

A state may come from elsewhere: from `init` outside a map over an axis, from another release, or
with masks that a user has set. So its counts are compared with what they should be of.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import all_of, any_of, counting, is_wide, sum_of_counts
from jaxprune._base.places import placed
from jaxprune._state.progress import UNKNOWN, Progress, count_dtype
from jaxprune._transform.accounts import Accounts, as_ints, choices_of, next_progress
from jaxprune._transform.settings import Settings


def in_dtypes(accounts: Accounts, progress: Progress) -> Progress:
    """The progress of a state in the dtypes that `init` makes.

    Counts are in those that these accounts need. A user may have cast a whole state, as for
    training in bfloat16; every update works these numbers out again.
    """
    of_zeros, of_units = map(count_dtype, accounts.largest)
    dtypes = {"zeros": of_zeros, "absent": of_zeros, "sizes": of_zeros, "target": jnp.float32}
    dtypes |= {"due": of_units, "reached": of_units}
    with counting(jnp.int64 in (of_zeros, of_units)):
        fields = {
            name: jnp.asarray(field).astype(dtypes.get(name, jnp.int32))
            for name, field in progress._asdict().items()
            if field is not None
        }
        return progress._replace(**fields)


def with_known_counts(settings: Settings, accounts: Accounts, progress: Progress) -> Progress:
    """The progress with counts over all parts of these accounts.

    If the accounts were others before, nothing is known to be reached.
    """
    if progress.sizes is not None:
        progress = _over_all_parts(settings, accounts, progress)
    with counting(is_wide(progress.reached)):
        same = all_of((progress.pool_of == accounts.pool_of) & _has_units_of(accounts, progress))
        unknown = jnp.full_like(progress.reached, UNKNOWN)
        return progress._replace(reached=jnp.where(same, progress.reached, unknown))


def _has_units_of(accounts: Accounts, progress: Progress) -> Any:
    """Whether each count is of the units of these accounts; states of older releases may say 0."""
    is_old = (progress.unit_size == 0) & (accounts.unit_size < 0)
    return (progress.unit_size == accounts.unit_size) | is_old


def _over_all_parts(settings: Settings, accounts: Accounts, progress: Progress) -> Progress:
    """The progress with its counts summed up, where they are those of parts.

    They are if `init` was mapped over the parts without the name of the axis, or if a user has set
    the masks of parts. Leaves that are not pruned have no part in this: their sizes may be those of
    parts at any time.
    """
    is_pruned = jnp.asarray(accounts.pool_of >= 0)
    with counting(is_wide(progress.zeros) or is_wide(progress.reached)):
        sizes = as_ints(accounts.sizes, accounts.largest[0])
        are_of_parts = is_pruned & (progress.sizes != sizes)
        is_unknown = progress.reached == UNKNOWN
        known = jnp.where(is_unknown, 0, progress.reached)
        counts = progress.zeros, known, is_unknown.astype(jnp.int32)
        zeros, reached, n_unknown = lax.psum(counts, settings.axis_name)
        reached = jnp.where(n_unknown > 0, jnp.full_like(reached, UNKNOWN), reached)
        return progress._replace(
            zeros=jnp.where(are_of_parts, zeros, progress.zeros),
            reached=jnp.where(are_of_parts, reached, progress.reached),
        )


def dropped_by_stale_masks(accounts: Accounts, progress: Progress) -> jax.Array:
    """How many weights the masks drop of leaves that the last update did not prune.

    Such a mask is of a time before the leaf was left out. Nothing has applied it since, so its
    weights have trained, and this update sets them to zero. `upgrade_state` prevents it.
    """
    are_new = jnp.asarray(accounts.pool_of >= 0) & (progress.pool_of < 0)
    with counting(is_wide(progress.zeros)):
        zeros = jnp.where(are_new, progress.zeros, jnp.zeros_like(progress.zeros))
    n = sum_of_counts(zeros, int(accounts.sizes.sum()))
    with counting(is_wide(n)):
        return jnp.minimum(n, np.iinfo(np.int32).max)


def with_own_choices(settings: Settings, accounts: Accounts, choices: Any) -> Any:
    """The choices of a list of schedules, with what is due in all parts."""
    if choices is None or settings.axis_name is None:
        return choices
    return choices_of(accounts, choices.number, choices.schedules)


def asked_at(settings: Settings, accounts: Accounts, step: Any) -> jax.Array:
    """How many units each account has to drop after update `step`: int[n_leaves]."""
    table = as_ints(accounts.asked, accounts.largest[1])
    schedule: Any = settings.schedule
    with counting(is_wide(table)):
        return table[schedule.index(step) + 1]


def is_behind(settings: Settings, accounts: Accounts, step: Any, progress: Progress) -> jax.Array:
    """Whether an account drops fewer units than the schedule asks for at this step."""
    with counting(is_wide(progress.reached)):
        return any_of(_are_behind(settings, accounts, step, progress))


def _are_behind(settings: Settings, accounts: Accounts, step: Any, progress: Progress) -> jax.Array:
    """Which accounts drop fewer units than the schedule asks for at this step."""
    return jnp.maximum(progress.reached, 0) < asked_at(settings, accounts, step)


def has_work(settings: Settings, accounts: Accounts, step: Any, progress: Progress) -> jax.Array:
    """Whether this step changes masks or progress: all that a quiet step asks.

    It is one reduction over the leaves, which for a GPU is one kernel. XLA would split one over
    joined arrays.
    """
    new = next_progress(settings, accounts, step, progress)
    schedule: Any = settings.schedule
    numbers = [schedule.fires(step)]
    for name in ("fires_left", "target", "lands", "exact"):
        numbers.append(getattr(progress, name) != getattr(new, name))
    numbers += [progress.schedule[i] != new.schedule[i] for i in range(3)]
    with counting(is_wide(progress.reached)):
        flags = _are_behind(settings, accounts, step, progress) | (progress.due != new.due)
        flags |= (progress.pool_of != new.pool_of) | (progress.unit_size != new.unit_size)
        if progress.sizes is not None:
            flags |= progress.sizes != new.sizes
        work = functools.reduce(jnp.logical_or, numbers)
        return any_of(flags | work) if flags.size else work


def counted(
    settings: Settings,
    accounts: Accounts,
    step: Any,
    progress: Progress,
    chosen: Sequence[int],
    new: Any,
) -> Progress:
    """The progress with the counts of new masks.

    Where units are not weights of one pool, the fire has reached what the schedule asks for.

    Args:
      settings: what the transformation does.
      accounts: of the tree.
      step: updates applied so far.
      progress: before the fire.
      chosen: the indices of the pruned leaves.
      new: how many entries of each of their masks are zero now.
    """
    asked = asked_at(settings, accounts, step)
    account_of = accounts.pool_of[np.array(chosen)]
    zeros, reached = progress.zeros, progress.reached
    with counting(is_wide(zeros) or is_wide(reached)):
        if accounts.absent is not None:
            new = new - jnp.asarray(accounts.absent[np.array(chosen)], new.dtype)
        zeros = placed(zeros, chosen, new.astype(zeros.dtype))
        new, none = new.astype(asked.dtype), jnp.zeros_like(asked)
        is_account = np.array_equal(account_of, chosen)
        by_account = placed(none, chosen, new) if is_account else none.at[account_of].add(new)
        known = jnp.asarray(accounts.unit_size > 0)
        most = jnp.maximum(jnp.where(known, by_account, 0).astype(asked.dtype), asked)
        return progress._replace(zeros=zeros, reached=jnp.broadcast_to(most, reached.shape))
