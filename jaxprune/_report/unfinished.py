"""What is missing from params and masks that should be at the end of their schedule.

Everything is counted on the host. A budget belongs to an account, which is one leaf or several that
share it; see `jaxprune._state.progress`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.counting import counting, is_wide
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import leaves_with_paths, shown_path
from jaxprune._state.progress import Progress
from jaxprune._state.prune_state import PruneState, unboxed
from jaxprune._state.recount import absent_in, false_in, zeros_in


class Unfinished(NamedTuple):
    """What a state or its params lack.

    Attributes:
      fires_left: how many fires of the schedule are still to come.
      step: how many updates the state has counted.
      last_step: the step of the last fire.
      in_masks: one line per account whose masks drop too few weights, or not exactly as many as due
        where they have to.
      in_params: one line per account that has too few zeros in the params.
      copied: pruned leaves of which every member has a copy, although the state counts over all
        members, as if each had a part.
    """

    fires_left: int
    step: int
    last_step: int
    in_masks: tuple[str, ...]
    in_params: tuple[str, ...]
    copied: tuple[str, ...] = ()


class _Member(NamedTuple):
    """The progress of one member of a batched state, as NumPy arrays, and its counts.

    Attributes:
      step: how many updates it has counted.
      progress: what is due.
      masked: int64[n_leaves], weights that the masks drop.
      zero: int64[n_leaves], zeros in the params; the same as `masked` where params stay dense.
    """

    step: int
    progress: Progress
    masked: np.ndarray
    zero: np.ndarray


def require_progress(states: Sequence[PruneState]) -> None:
    """Raises unless every state has a progress."""
    if any(state.progress is None for state in states):
        raise ValueError(
            "the prune state has no `progress`, because it was saved by an older release, or was "
            "passed to jaxprune.shrink as along=. Add it: opt_state = jaxprune.upgrade_state(tx, "
            "params, opt_state)."
        )


def does_land(state: PruneState) -> bool:
    """Whether dropped weights are zero in the params, as they are without `regrow="hold"`."""
    return bool(np.all(np.asarray(unboxed(state.progress.lands))))


def unfinished(paths: Sequence[str], leaves: Sequence[Any], state: PruneState) -> Unfinished:
    """What the params and the masks of one state lack to be at the end of its schedule.

    Args:
      paths: of the params.
      leaves: the params.
      state: with a progress.
    """
    mask_paths, _, _ = leaves_with_paths(state.masks)
    at = dict(zip(paths, leaves, strict=True))
    members = _members(at, mask_paths, state)
    copied: tuple[str, ...] = ()
    if _counts_over_all(members):
        pruned = np.flatnonzero(members[0].progress.pool_of >= 0)
        copied = tuple(path for i in pruned if _are_copies(at[path := mask_paths[int(i)]]))
        masked, zero = (sum(getattr(m, name) for m in members) for name in ("masked", "zero"))
        members = [members[0]._replace(masked=masked, zero=zero)]
    in_masks: dict[str, None] = {}  # in order, each line once
    in_params: dict[str, None] = {}
    for member in members:
        for account in np.unique(member.progress.pool_of[member.progress.pool_of >= 0]):
            name = _name(mask_paths, np.flatnonzero(member.progress.pool_of == account))
            in_masks |= dict.fromkeys(_masks_lack(name, member, int(account)))
            in_params |= dict.fromkeys(_params_lack(name, member, int(account)))
    # A schedule of sparsity 0, as for masks that a user has set, has nothing left to do.
    waits = [
        (int(member.progress.fires_left), member.step, int(member.progress.schedule[1]))
        for member in members
        if np.any(member.progress.due)
    ]
    return Unfinished(*max(waits, default=(0, 0, 0)), tuple(in_masks), tuple(in_params), copied)


def _counts_over_all(members: Sequence[_Member]) -> bool:
    """Whether each member of a batched state counts the zeros of all of them.

    With `axis_name` it does, inside `pmap` and `vmap`, whose members hold the parts of a leaf.
    """
    together = np.sum([member.masked for member in members], axis=0)
    counts = [member.progress.zeros for member in members]
    return len(members) > 1 and together.any() and all(np.array_equal(n, together) for n in counts)


def _are_copies(leaf: Any) -> bool:
    """Whether all members of a batched leaf have the same weights, but for those that are zero."""
    first, *others = np.asarray(leaf)
    both = [(first != 0) & (other != 0) for other in others]
    same = [np.array_equal(first[b], other[b]) for b, other in zip(both, others, strict=True)]
    return bool(np.any(both)) and all(same)


def whole_sizes(progress: Progress, sizes: Any) -> jax.Array:
    """How many weights each leaf has in all of its parts together: int[..., n_leaves].

    With `axis_name`, the masks in a state are those of one part of every pruned leaf, but what is
    due is counted over all parts. Their number is how often these weights fit into the sizes.

    Args:
      progress: of the state.
      sizes: int[..., n_leaves], as the masks in the state have them.
    """
    unit_size, pool_of = unboxed(progress.unit_size), unboxed(progress.pool_of)
    schedules = progress if progress.choices is None else progress.choices
    due, target = unboxed(schedules.due), unboxed(schedules.target)
    if progress.choices is None:
        due, target = due[..., None, :], target[..., None]
    with counting(is_wide(due) or is_wide(sizes)):
        # Only single weights can be split: all other accounts are whole, and count for nothing.
        n_due = jnp.sum(jnp.where(unit_size[..., None, :] > 0, due, 0), -1).astype(jnp.float32)
        size = jnp.sum(jnp.where(pool_of >= 0, sizes, 0), -1).astype(jnp.float32)
        of_one_part = target * size[..., None]
        n_parts = n_due / jnp.where(of_one_part > 0, of_one_part, 1)
        n_parts = jnp.maximum(jnp.round(jnp.max(n_parts, -1)), 1)
        n_parts = n_parts.astype(sizes.dtype)[..., None]
        return jnp.where(pool_of >= 0, sizes * n_parts, sizes)


def emptied(state: PruneState) -> list[str]:
    """The paths of the pruned leaves that have lost all of their weights to other leaves.

    No budget of a single leaf asks for all of its weights. What asks for them is `keep_zeros`, for
    a leaf of zeros that the user has named.
    """
    paths, masks, _ = leaves_with_paths(state.masks)
    if state.progress is None or not paths:
        return []
    n_batch_axes = np.ndim(unboxed(state.prune_step))
    pool_of = np.asarray(unboxed(state.progress.pool_of))
    in_masks = _sizes(state, masks, n_batch_axes) - absent_in(state)
    with counting(True):
        sizes = np.asarray(whole_sizes(state.progress, jnp.asarray(in_masks)))
    of_all_parts = np.asarray(unboxed(state.progress.zeros))
    zeros = np.where(sizes > in_masks, of_all_parts, zeros_in(state))
    is_empty = (zeros == sizes) & (pool_of >= 0) & (sizes > 0)
    is_empty &= (np.asarray(unboxed(state.progress.due)) != sizes) | ~_are_alone(pool_of)
    is_empty = is_empty.reshape(-1, len(paths)).any(0)
    return [path for path, empty in zip(paths, is_empty, strict=True) if empty]


def _are_alone(pool_of: np.ndarray) -> np.ndarray:
    """Whether each leaf is the only one of its account.

    Example:
      >>> _are_alone(np.array([0, 1, 0, -1])).tolist()
      [False, True, False, False]
    """
    n_leaves = pool_of.shape[-1]
    rows = pool_of.reshape(-1, n_leaves)
    counts = [np.bincount(row[row >= 0], minlength=n_leaves) for row in rows]
    alone = [(row >= 0) & (count[row] == 1) for row, count in zip(rows, counts, strict=True)]
    return np.reshape(alone, pool_of.shape)


def _sizes(state: PruneState, masks: Sequence[Any], n_batch_axes: int) -> np.ndarray:
    """How many weights each leaf has."""
    shapes = [list(np.shape(mask)[n_batch_axes:]) for mask in masks]
    if state.widths is not None:
        widths = np.asarray(unboxed(state.widths)).reshape(-1, len(masks))[0]
        for shape, width in zip(shapes, widths, strict=True):
            shape[-1:] = [int(width)] if shape else []
    return np.array([np.prod(shape, dtype=np.int64) for shape in shapes], np.int64)


def _members(at: dict[str, Any], mask_paths: Sequence[str], state: PruneState) -> list[_Member]:
    """The members of a batched state; one for any other state."""
    batch = np.shape(unboxed(state.prune_step))
    n_leaves, n_members = len(mask_paths), int(np.prod(batch, dtype=np.int64))
    counts = state.progress[: Progress._fields.index("choices")]
    fields = [np.asarray(unboxed(field)) for field in counts]
    flat = [field.reshape(n_members, *field.shape[len(batch) :]) for field in fields]
    masked = zeros_in(state)
    zero = masked.copy()
    pool_of = np.asarray(unboxed(state.progress.pool_of)).reshape(n_members, n_leaves)
    if does_land(state):
        for i, path in enumerate(mask_paths):
            if (pool_of[:, i] >= 0).any():
                zero[..., i] = false_in(is_nonzero(jnp.asarray(at[path])), len(batch))
        zero = np.maximum(zero - absent_in(state), 0)
    steps = np.ravel(unboxed(state.prune_step))
    masked, zero = (counts.reshape(n_members, n_leaves) for counts in (masked, zero))
    return [
        _Member(int(steps[k]), Progress(*(field[k] for field in flat)), masked[k], zero[k])
        for k in range(n_members)
    ]


def _masks_lack(name: str, member: _Member, account: int) -> list[str]:
    """A line if the masks of an account do not drop what is due."""
    progress, due = member.progress, int(member.progress.due[account])
    of_account = progress.pool_of == account
    n, unit = int(member.masked[of_account].sum()), "weights"
    if not progress.unit_size[account]:
        fired = int(progress.zeros[of_account].sum())
        if n < fired or (n > fired and progress.exact):
            return [f"{name}: the masks drop {n:,} weights, but {fired:,} at the last fire"]
        n, unit = int(progress.reached[account]), "units"
        if n < 0:
            known = f"the masks were replaced and drop {int(member.masked[of_account].sum()):,}"
            return [f"{name}: {known} weights; {due:,} units are due"] if due else []
    is_right = n == due if progress.exact else n >= due
    return [] if is_right else [f"{name}: the masks drop {n:,} {unit}, but {due:,} are due"]


def _params_lack(name: str, member: _Member, account: int) -> list[str]:
    """A line if the params of an account have fewer zeros than are due."""
    progress = member.progress
    of_account = progress.pool_of == account
    n, due = int(member.zero[of_account].sum()), int(progress.due[account])
    if not progress.unit_size[account]:
        due = int(member.masked[of_account].sum())
    return [] if n >= due else [f"{name}: {n:,} weights are zero, but {due:,} are due"]


def _name(paths: list[str], indices: np.ndarray) -> str:
    """An account for an error: its leaf, or its leaves."""
    names = [shown_path(paths[int(i)]) for i in indices]
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} together"
