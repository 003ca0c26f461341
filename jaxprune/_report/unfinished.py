"""What is missing from params and masks that should be at the end of their schedule.

Everything is counted on the host. A budget belongs to an account, which is one leaf or several that
share it; see `jaxprune._state.progress`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import leaves_with_paths, shown_path
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._state.progress import Progress
from jaxprune._state.prune_state import PruneState, batch_shape_of, unboxed
from jaxprune._state.recount import (
    absent_in,
    axes_of_parts,
    false_in,
    over_parts,
    sizes_in,
    zeros_in,
)


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


def check_whole(states: Sequence[PruneState]) -> None:
    """Raises where a state has not as many masks as thresholds: it mixes those of two models."""
    for state in states:
        n_masks = len(jax.tree.leaves(state.masks))
        n_leaves = jnp.shape(unboxed(state.thresholds))[-1]
        if n_masks != n_leaves:
            raise ValueError(
                f"the prune state has {counted(n_masks, 'mask')}, but thresholds of "
                f"{counted(n_leaves, 'leaf', 'leaves')}, so it mixes the states of two "
                "models, as nnx.update does with a checkpoint of another model. Restore the params "
                "alone, make a new optimizer, and give it the masks: "
                "jaxprune.set_masks(opt_state, jaxprune.masks_from_params(params))."
            )


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
    members, axes = _members(at, mask_paths, state)
    copied: tuple[str, ...] = ()
    if axes:
        pruned = np.flatnonzero(members[0].progress.pool_of >= 0)
        of_leaves = {path: at[path] for path in (mask_paths[int(i)] for i in pruned)}
        copied = tuple(path for path, leaf in of_leaves.items() if _are_copies(leaf, axes))
    in_masks: dict[str, None] = {}  # in order, each line once
    in_params: dict[str, None] = {}
    for member in members:
        for account in np.unique(member.progress.pool_of[member.progress.pool_of >= 0]):
            name = _name(mask_paths, np.flatnonzero(member.progress.pool_of == account))
            in_masks |= dict.fromkeys(_masks_lack(name, member, int(account)))
            in_params |= dict.fromkeys(_params_lack(name, member, int(account)))
    # One fire that drops nothing, as for masks that a user has set, leaves nothing to do.
    waits = [
        (int(member.progress.fires_left), member.step, int(member.progress.schedule[1]))
        for member in members
        if np.any(member.progress.due) or member.progress.schedule[0] < member.progress.schedule[1]
    ]
    return Unfinished(*max(waits, default=(0, 0, 0)), tuple(in_masks), tuple(in_params), copied)


def _are_copies(leaf: Any, axes: tuple[int, ...]) -> bool:
    """Whether all parts of a leaf have the same weights, but for those that are zero.

    Equal parts of a leaf whose weights are all the same are no copies, as far as one can tell.

    Args:
      leaf: the parts, along some of its axes.
      axes: these axes.
    """
    array = np.moveaxis(np.asarray(leaf), axes, range(len(axes)))
    first, *others = array.reshape(-1, *array.shape[len(axes) :])
    if np.unique(array[array != 0]).size < 2:
        return False
    both = [(first != 0) & (other != 0) for other in others]
    same = [np.array_equal(first[b], other[b]) for b, other in zip(both, others, strict=True)]
    return bool(np.any(both)) and all(same)


def emptied(state: PruneState) -> list[str]:
    """The paths of the pruned leaves that have lost all of their weights to other leaves.

    No budget of a single leaf asks for all of its weights. What asks for them is `keep_zeros`, for
    a leaf of zeros that the user has named.
    """
    paths, _, _ = leaves_with_paths(state.masks)
    if state.progress is None or not paths:
        return []
    zeros, pool_of = zeros_in(state), np.asarray(unboxed(state.progress.pool_of))
    sizes = sizes_in(state) - absent_in(state)
    if axes := axes_of_parts(state, zeros):
        zeros, sizes = over_parts(zeros, axes), np.asarray(unboxed(state.progress.sizes))
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


def _members(
    at: dict[str, Any], mask_paths: Sequence[str], state: PruneState
) -> tuple[list[_Member], tuple[int, ...]]:
    """The members of a batched state, one for any other state; and the axes of parts of leaves.

    Parts of one leaf are one member.
    """
    batch = batch_shape_of(state)
    n_leaves = len(mask_paths)
    counts = state.progress[: Progress._fields.index("choices")]
    fields = [np.asarray(unboxed(field)) for field in counts]
    masked = zeros_in(state)
    zero = masked.copy()
    n_members = int(np.prod(batch, dtype=np.int64))
    pool_of = np.asarray(unboxed(state.progress.pool_of)).reshape(n_members, n_leaves)
    if does_land(state):
        for i, path in enumerate(mask_paths):
            if (pool_of[:, i] >= 0).any():
                zero[..., i] = false_in(is_nonzero(jnp.asarray(at[path])), len(batch))
        zero = np.maximum(zero - absent_in(state), 0)
    axes = axes_of_parts(state, masked)
    masked, zero = over_parts(masked, axes), over_parts(zero, axes)
    first_parts = tuple(0 if axis in axes else slice(None) for axis in range(len(batch)))
    steps = np.ravel(np.asarray(unboxed(state.prune_step))[first_parts])
    of_members = lambda x: x[first_parts].reshape(len(steps), *x.shape[len(batch) :])
    fields, (masked, zero) = list(map(of_members, fields)), map(of_members, (masked, zero))
    return [
        _Member(int(steps[k]), Progress(*(field[k] for field in fields)), masked[k], zero[k])
        for k in range(len(steps))
    ], axes


def _masks_lack(name: str, member: _Member, account: int) -> list[str]:
    """A line if the masks of an account do not drop what is due."""
    progress, due = member.progress, int(member.progress.due[account])
    of_account = progress.pool_of == account
    n, noun = int(member.masked[of_account].sum()), "weight"
    if progress.unit_size[account] <= 0:
        fired = int(progress.zeros[of_account].sum())
        if n < fired or (n > fired and progress.exact):
            return [
                f"{name}: the masks drop {counted(n, noun)}, but dropped {fired:,} at the last fire"
            ]
        n, noun = int(progress.reached[account]), "unit"
        if n < 0:
            n_masked = counted(int(member.masked[of_account].sum()), "weight")
            units_due = f"{counted(due, 'unit')} {is_or_are(due)} due"
            line = f"{name}: the masks were replaced and drop {n_masked}; {units_due}"
            return [line] if due else []
    is_right = n == due if progress.exact else n >= due
    line = f"{name}: the masks drop {counted(n, noun)}, but {due:,} {is_or_are(due)} due"
    return [] if is_right else [line]


def _params_lack(name: str, member: _Member, account: int) -> list[str]:
    """A line if the params of an account have fewer zeros than are due."""
    progress = member.progress
    of_account = progress.pool_of == account
    n, due = int(member.zero[of_account].sum()), int(progress.due[account])
    if progress.unit_size[account] <= 0:
        due = int(member.masked[of_account].sum())
    weights = f"{counted(n, 'weight')} {is_or_are(n)} zero"
    return [] if n >= due else [f"{name}: {weights}, but {due:,} {is_or_are(due)} due"]


def _name(paths: list[str], indices: np.ndarray) -> str:
    """An account for an error: its leaf, or its leaves."""
    names = [shown_path(paths[int(i)]) for i in indices]
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} together"
