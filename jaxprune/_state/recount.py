"""Counts the masks of a state on the host, for a `Progress` that has none or has become wrong."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.counting import counting, is_wide
from jaxprune._base.paths import leaves_with_paths
from jaxprune._state.bit_masks import width_of_each
from jaxprune._state.masks_of_states import masks_of
from jaxprune._state.progress import LANDS, UNKNOWN, WILL_LAND, Progress, count_dtype
from jaxprune._state.prune_state import (
    PruneState,
    batch_shape_of,
    find_states,
    n_batch_axes_of,
    unboxed,
)


def recounted(progress: Progress, state: PruneState) -> Progress:
    """The progress of a state whose masks are those that its own fires made.

    Args:
      progress: of a new state of the same transformation.
      state: whose masks and step count.
    """
    step = np.asarray(unboxed(state.prune_step))
    zeros = zeros_in(state)
    unit_size = np.asarray(unboxed(progress.unit_size))
    pool_of = np.asarray(unboxed(progress.pool_of))
    reached = reached_by(zeros, pool_of, unit_size)
    first, first_reached = (np.asarray(unboxed(x)) for x in (progress.zeros, progress.reached))
    # Masks that are sparse from the start drop as many weights as those of a new state.
    totals, first_totals = (reached_by(x, pool_of, np.ones_like(unit_size)) for x in (zeros, first))
    is_first = (reached == UNKNOWN) & (first_totals > 0) & (totals == first_totals)
    reached = np.where(is_first, first_reached, reached)
    left = _fires_left(np.asarray(unboxed(progress.schedule)), step)
    left = np.minimum(left, np.asarray(unboxed(progress.fires_left)))  # `keep_zeros` has none
    return with_counts(progress, zeros=zeros, reached=reached, fires_left=left)


def with_saved_counts(
    progress: Progress, saved: Mapping[str, Any], names: Sequence[str]
) -> Progress:
    """The progress with saved counts, if they belong to the same accounts and to the same masks.

    Args:
      progress: as `recounted` returns it.
      saved: the arrays of a saved progress by name; may be empty.
      names: which of them to take.
    """
    own = {name: np.asarray(unboxed(getattr(progress, name))) for name in ("pool_of", "zeros")}
    same = [np.array_equal(own[name], saved[name]) for name in own if name in saved]
    if "unit_size" in saved:  # where units are not weights, older releases have a 0
        own_units, units = np.asarray(unboxed(progress.unit_size)), np.asarray(saved["unit_size"])
        same.append(bool(np.all((own_units == units) | ((own_units < 0) & (units == 0)))))
    if not same or not all(same):
        return progress
    return with_counts(progress, **{name: np.asarray(saved[name]) for name in names})


def with_new_masks(old: PruneState, masks: Any) -> PruneState:
    """The state with masks that a user has set, and its progress counted anew.

    Where units can't be counted, masks that drop no fewer weights than the old ones are taken to
    drop no fewer units. Masks without a progress, from an older release, stay without one.

    Args:
      old: the state before.
      masks: as a state stores them.
    """
    progress, state = old.progress, old._replace(masks=masks)
    if progress is None:
        return state
    zeros, sizes = _counts_of_parts(old, zeros_in(state))
    unit_size = np.asarray(unboxed(progress.unit_size))
    pool_of = np.asarray(unboxed(progress.pool_of))
    old_totals, totals = (
        reached_by(counts, pool_of, np.ones_like(unit_size))
        for counts in (np.asarray(unboxed(progress.zeros)), zeros)
    )
    still = (totals >= old_totals) & (old_totals > 0)
    reached = reached_by(zeros, pool_of, unit_size)
    known = np.where(still, np.asarray(unboxed(progress.reached)), UNKNOWN)
    reached = np.where(reached == UNKNOWN, known, reached)
    progress = with_counts(progress, zeros=zeros, reached=reached)
    if _drop_others(old, state):
        lands = np.asarray(unboxed(progress.lands))
        progress = with_counts(progress, lands=np.where(lands == LANDS, WILL_LAND, lands))
    if sizes is not None:
        progress = with_counts(progress, sizes=sizes)
    return state._replace(progress=progress)


def _counts_of_parts(old: PruneState, zeros: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The counts of new masks: over all parts of each leaf, if the old masks tell what is a part.

    Otherwise they are those of each part, and the next update sums them up.

    Args:
      old: the state with the old masks.
      zeros: int64[..., n_leaves], how many weights each new mask drops.

    Returns:
      The zeros in `Progress`, and the sizes in it, None without parts.
    """
    progress = old.progress
    if progress.sizes is None:
        return zeros, None
    sizes = np.asarray(unboxed(progress.sizes))
    totals = [over_parts(zeros, axes) for axes in _possible_axes(old, zeros_in(old))]
    if not totals:
        return zeros, sizes
    if all(np.array_equal(total, totals[0]) for total in totals):
        return totals[0], sizes
    is_pruned = np.asarray(unboxed(progress.pool_of)) >= 0
    return zeros, np.where(is_pruned, sizes_in(old), sizes)


def _drop_others(old: PruneState, new: PruneState) -> bool:
    """Whether masks drop a weight that the old ones keep."""
    pairs = zip(jax.tree.leaves(old.masks), jax.tree.leaves(new.masks), strict=True)
    if old.widths is None:
        pairs = ((a.astype(bool), b.astype(bool)) for a, b in pairs)
    return any(bool(jnp.any(a & ~b)) for a, b in pairs)


def zeros_in(state: PruneState) -> np.ndarray:
    """How many weights each mask of a state drops, of those that exist: int64[..., n_leaves].

    The leading axes are those of a state made under `vmap`.
    """
    n_batch_axes = n_batch_axes_of(state)
    _, masks, _ = leaves_with_paths(masks_of(state))
    if not masks:
        return np.zeros((*batch_shape_of(state), 0), np.int64)
    zeros = np.stack([false_in(mask.astype(bool), n_batch_axes) for mask in masks], -1)
    return np.maximum(zeros - absent_in(state), 0)  # masks that a user has set may drop fewer


def sizes_in(state: PruneState) -> np.ndarray:
    """How many weights each mask of a state has: int64[n_leaves]."""
    n_batch_axes = n_batch_axes_of(state)
    shapes = [list(np.shape(mask)[n_batch_axes:]) for mask in jax.tree.leaves(state.masks)]
    if state.widths is not None:
        for shape, width in zip(shapes, width_of_each(unboxed(state.widths)), strict=True):
            shape[-1:] = [width] if shape else []
    return np.array([np.prod(shape, dtype=np.int64) for shape in shapes], np.int64)


def axes_of_parts(state: PruneState, zeros: np.ndarray) -> tuple[int, ...]:
    """The axes of a batched state along which its members hold the parts of each leaf.

    With `axis_name`, the members of `vmap` and `pmap` over this axis do. Other axes may be those of
    an ensemble. Of axes of the right length, those are chosen over which the zeros of the masks add
    up to the counts in the state; otherwise the last ones.

    Args:
      state: with a progress.
      zeros: int64[..., n_leaves], those of its masks.
    """
    return next(iter(_possible_axes(state, zeros)), ())


def _possible_axes(state: PruneState, zeros: np.ndarray) -> list[tuple[int, ...]]:
    """What `axes_of_parts` may be, as far as the counts in the state tell, the first one first."""
    progress = state.progress
    if progress is None or progress.sizes is None:
        return []
    batch, sizes = batch_shape_of(state), np.asarray(unboxed(progress.sizes))
    is_pruned = (np.asarray(unboxed(progress.pool_of)) >= 0) & (sizes > 0)
    if not batch or not is_pruned.any():
        return []
    own = np.broadcast_to(sizes_in(state), sizes.shape)
    n_parts = int(np.max(sizes[is_pruned] // np.maximum(own[is_pruned], 1)))
    long_axes = [axis for axis, length in enumerate(batch) if length > 1]
    candidates = [
        axes
        for n in range(1, len(long_axes) + 1)
        for axes in itertools.combinations(long_axes, n)
        if math.prod(batch[axis] for axis in axes) == n_parts
    ]
    counted = np.asarray(unboxed(progress.zeros))
    fitting = [axes for axes in candidates if np.array_equal(over_parts(zeros, axes), counted)]
    return fitting or candidates[-1:]


def over_parts(zeros: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Counts of parts summed up over these axes, for each part."""
    return np.broadcast_to(zeros.sum(axes, keepdims=True), zeros.shape) if axes else zeros


def absent_in(state: PruneState) -> np.ndarray:
    """How many weights of each leaf do not exist: int64, [..., n_leaves] or a scalar zero."""
    absent = None if state.progress is None else state.progress.absent
    return np.asarray(0 if absent is None else unboxed(absent)).astype(np.int64)


def absent_by_path(opt_state: Any) -> dict[str, int]:
    """How many weights of each leaf do not exist, summed over the members of a batched state."""
    by_path: dict[str, int] = {}
    for state in find_states(opt_state):
        paths, masks, _ = leaves_with_paths(state.masks)
        batch = batch_shape_of(state)
        absent = np.broadcast_to(absent_in(state), (*batch, len(masks)))
        totals = absent.reshape(-1, len(masks)).sum(0).tolist()
        by_path |= {path: n for path, n in zip(paths, totals, strict=True) if n}
    return by_path


def false_in(flags: Any, n_batch_axes: int = 0) -> np.ndarray:
    """How many entries are False, for each index of the leading axes: int64.

    Raises:
      ValueError: the flags are traced.
    """
    flags = jnp.asarray(flags)
    if isinstance(flags, jax.core.Tracer):
        raise ValueError(
            "masks are counted on the host, but these are traced by jit, vmap or grad. Set, splice "
            "or upgrade the state outside the compiled function, and pass the result to it."
        )
    size = int(np.prod(flags.shape[n_batch_axes:], dtype=np.int64))
    dtype = count_dtype(size)
    with counting(dtype == jnp.int64):
        n_true = jnp.sum(flags, tuple(range(n_batch_axes, flags.ndim)), dtype=dtype)
    return size - np.asarray(n_true).astype(np.int64)


def reached_by(zeros: np.ndarray, pool_of: np.ndarray, unit_size: np.ndarray) -> np.ndarray:
    """What the masks have reached by their zeros: int64[..., n_leaves].

    It is `UNKNOWN` for an account whose units are not weights of one pool.

    Args:
      zeros: int[..., n_leaves], as in `Progress`.
      pool_of: int[..., n_leaves], as in `Progress`.
      unit_size: int[..., n_leaves], as in `Progress`.

    Example:
      >>> array = np.array
      >>> reached_by(array([3, 9, 4, 5]), array([0, -1, 0, 3]), array([1, 0, 0, 0])).tolist()
      [7, 0, 0, -1]
    """
    reached = np.zeros(pool_of.shape, np.int64)
    for account in range(pool_of.shape[-1]):
        of_account = pool_of == account
        total = np.sum(zeros * of_account, -1, dtype=np.int64)
        total = np.where(unit_size[..., account] > 0, total, UNKNOWN)
        reached[..., account] = np.where(of_account.any(-1), total, 0)
    return reached


def _fires_left(schedule: np.ndarray, step: np.ndarray) -> np.ndarray:
    """How many fires of a schedule lie at or after a step.

    Example:
      >>> [int(_fires_left(np.array([10, 25, 10]), np.array(step))) for step in (0, 11, 25, 26)]
      [3, 2, 1, 0]
    """
    begin, end, every = np.moveaxis(schedule.astype(np.int64), -1, 0)
    n_on_grid = -((begin - end) // every)  # those before the last
    n_past = np.clip(-((begin - step) // every), 0, n_on_grid)
    return n_on_grid - n_past + (step <= end)


def with_counts(progress: Progress, **counts: np.ndarray) -> Progress:
    """The progress with other counts, in the dtypes and the boxes of the old ones."""
    fields = {}
    for name, values in counts.items():
        [old], treedef = jax.tree.flatten(getattr(progress, name))
        with counting(is_wide(old)):
            fields[name] = treedef.unflatten([jnp.asarray(values, old.dtype)])
    return progress._replace(**fields)
