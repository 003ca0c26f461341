"""How far a run has come: the counts in a prune state by which fires and checks are decided.

A pruned leaf belongs to an account, which `Progress` explains. Every array has one entry for each
leaf of the tree, whether the leaf is the first of an account or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._base.count_arrays import count_arrays
from jaxprune._base.counting import WIDE, counting
from jaxprune._base.sharding import on_one_device, summed_in_shards

# What `lands` in a progress says of the weights that the masks drop.
LANDS = 1
WILL_LAND = 2
UNKNOWN = -1  # a count in `reached` that the next update finds out
# Before 0.8, JAX could not pass an int64 array to a compiled program without `jax_enable_x64`, so
# there the states of trees that need 64-bit counts have no progress.
CAN_PASS_64_BITS = jax.__version_info__ >= (0, 8)


class Choices(NamedTuple):
    """The schedules of a list, and which of them a state follows; arrays only.

    Attributes:
      number: int32 scalar, which schedule is followed.
      schedules: int32[n_schedules, 3], `Progress.schedule` of each.
      due: int[n_schedules, n_leaves], `Progress.due` of each.
      target: float32[n_schedules], `Progress.target` of each.
    """

    number: Any
    schedules: Any
    due: Any
    target: Any


class Progress(NamedTuple):
    """What the schedule asks for, and what the masks have reached. It holds only arrays.

    Counts are int32, or int64 where a leaf or a pool has 2**31 - 1 weights or more. A unit is what
    one decision covers: a weight, a block, a channel. An account is what has a budget of its own: a
    pool of one or more leaves, or, for a leaf with several pools (slices, groups of `NM`), all of
    them together. It has the index of its first leaf; at all other indices, `due`, `reached` and
    `unit_size` are 0.

    Attributes:
      pool_of: int32[n_leaves], the account of each leaf in tree order; -1 for a leaf that is not
        pruned.
      zeros: int[n_leaves], how many weights of each leaf the masks drop; with `structural`, of
        those that exist.
      due: int[n_leaves], how many units each account drops when the schedule is done.
      reached: int[n_leaves], how many units each account drops now; -1 where this is unknown until
        the next update.
      unit_size: int32[n_leaves], 1 for an account whose units are weights of one pool, so that its
        zeros say what is reached. For every other account, a negative number that identifies the
        structure; if it changes, `reached` is a number of other units.
      schedule: int32[3], the first fire, the last fire, and the steps between fires.
      fires_left: int32 scalar, the fires of the schedule that are still to come.
      target: float32 scalar, the sparsity of the pruned leaves when the schedule is done.
      lands: int32 scalar, 1 if dropped weights are zero in the params; 2 if the next update makes
        them zero, because the masks were set since the last one; 0 with `regrow="hold"` and
        `"train"`.
      exact: int32 scalar, 1 if masks drop exactly what is due at all times (`rigl`).
      choices: what `choose_schedule` chooses from; None where there is one schedule.
      absent: int[n_leaves], how many weights of each leaf do not exist; None without `structural`.
      sizes: int[n_leaves], how many weights all parts of each leaf have together. All other counts
        are of all parts, too, although the masks may be those of one part. None without
        `axis_name`.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
      >>> progress = tx.init({"w": jnp.ones((1, 2))}).progress
      >>> progress.due.tolist(), progress.reached.tolist(), int(progress.fires_left)
      ([1], [0], 1)
    """

    pool_of: Any
    zeros: Any
    due: Any
    reached: Any
    unit_size: Any
    schedule: Any
    fires_left: Any
    target: Any
    lands: Any
    exact: Any
    choices: Choices | Any = None
    absent: Any = None
    sizes: Any = None


def count_dtype(n: int) -> Any:
    """The dtype of counts up to `n`."""
    return jnp.int64 if n >= WIDE else jnp.int32


def zeros_of(masks: Sequence[jax.Array]) -> jax.Array:
    """How many weights each mask drops: int[n_masks]; `masks` are not bit masks."""
    sizes = [mask.size for mask in masks]
    dtype = count_dtype(max(sizes, default=0))
    if not masks:
        return jnp.zeros((0,), dtype)

    def add_up(flags: Sequence[jax.Array], once: Any) -> jax.Array:
        counts = count_arrays([~flag for flag in flags], dtype, once is not None)
        return counts if once is None else jnp.stack([once(i, n) for i, n in enumerate(counts)])

    with counting(dtype == jnp.int64):
        if on_one_device(masks):
            return count_arrays(masks, dtype, True, lambda mask: ~mask.astype(bool))
        kept = [mask.astype(bool) for mask in masks]
        return summed_in_shards(add_up, kept)


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
Progress.__module__ = "jaxprune"
__test__ = {"Progress": Progress}
