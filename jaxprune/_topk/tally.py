"""Counts of the numbers of each pool that compare with each of its cuts.

On a GPU they are counted in lanes (`_base/lanes.py`), elsewhere as the flags of seven comparisons.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base import lanes
from jaxprune._base.counting import count_each, count_in_rows, per_member, sum_rows
from jaxprune._base.sharding import SumOnce, in_lanes, summed_in_shards
from jaxprune._topk.bracket import N_CUTS, Counts, columns
from jaxprune._topk.problem import Problem
from jaxprune._topk.stacks import Stack

# On many GPUs, the counts of at most this many stacks are added up as padded arrays.
_FEW_STACKS = 16


class Counted(NamedTuple):
    """What a pass counts.

    Attributes:
      counts: how many entries of each pool reach each cut, or lie below it.
      rows: of some stacks, for each cut, how many entries of each row lie below it.
      in_rows: the positions of these stacks.
    """

    counts: Counts
    rows: list[list[jax.Array]]
    in_rows: Sequence[int]


class Comparison(NamedTuple):
    """Which numbers are counted: `counted(number, cut)` says so.

    `reaches` is its opposite if numbers below a cut are counted, else the same.
    """

    counted: Callable[[Any, Any], jax.Array]
    reaches: Callable[[Any, Any], jax.Array]

    @property
    def is_below(self) -> bool:
        """Whether numbers below a cut are counted."""
        return self.counted is operator.lt


BELOW = Comparison(operator.lt, operator.ge)
ABOVE = Comparison(operator.gt, operator.gt)
NOT_ABOVE = Comparison(operator.le, operator.gt)
REACHING = Comparison(operator.ge, operator.ge)


def pool_counts(
    numbers: list[jax.Array],
    member_cuts: list[jax.Array],
    comparison: Comparison,
    problem: Problem,
    in_rows: Sequence[int] = (),
) -> Counted:
    """Counts how many numbers of each pool compare with each of its cuts.

    Args:
      numbers: of each stack, [n_members, ...].
      member_cuts: of each stack, [n_members, N_CUTS].
      comparison: of a number with a cut.
      problem: the selection.
      in_rows: positions of the stacks whose rows are counted, too; all lie on one device.
    """
    rows: list[list[jax.Array]] = []

    def add_up(
        numbers: list[jax.Array], once: SumOnce | None, member_cuts: list[jax.Array]
    ) -> jax.Array:
        count = _count_in_lanes if problem.is_gpu else _count_flags
        is_local = problem.one_device or once is not None
        counts, rows[:] = count(numbers, member_cuts, comparison, problem, is_local, in_rows)
        if once is not None:
            counts = [once(i, n) for i, n in enumerate(counts)]
        if problem.is_gpu and not is_local and len(counts) <= _FEW_STACKS:
            return _sum_of_padded(counts, problem)
        return by_pool(counts, problem.stacks, problem)

    counts = summed_in_shards(add_up, numbers, member_cuts)
    if problem.axis_name is not None:
        add = lambda x: lax.psum(x, problem.axis_name)
        most = max(problem.pools.sizes)
        counts = in_lanes(add, counts, most, problem.n_parts, counts.dtype)
    if problem.is_gpu:
        counts = jnp.stack(lanes.at_cuts(columns(counts), comparison.is_below), axis=1)
    return Counted(Counts(counts), rows, in_rows)


# Both functions that count return the counts of the members of each stack, [n_members, N_CUTS], and
# those of the rows of some stacks. The slices of a long leaf are counted as one member: they belong
# to the same pool.


def _count_flags(
    numbers: list[jax.Array],
    member_cuts: list[jax.Array],
    comparison: Comparison,
    problem: Problem,
    is_local: bool,
    in_rows: Sequence[int],
) -> tuple[list[jax.Array], list[list[jax.Array]]]:
    """Counts the flags of seven comparisons."""
    dtype = problem.pools.pool_dtype
    counts, rows = [], {}
    for i, stack in enumerate(problem.stacks):
        cuts = _columns(member_cuts[i], numbers[i].ndim)
        flags = [comparison.counted(numbers[i], cut) for cut in cuts]
        if problem.one_device and not stack.is_sliced:
            is_row = numbers[i].ndim == 2  # each member
            rows[i] = flags if is_row else count_in_rows(flags)
            counts.append(sum_rows(rows[i], dtype))
        else:
            flags = [_as_one_member(flag, stack) for flag in flags]
            counts.append(count_each(flags, dtype, is_local))
    return counts, [rows[i] for i in in_rows]


def _count_in_lanes(
    numbers: list[jax.Array],
    member_cuts: list[jax.Array],
    comparison: Comparison,
    problem: Problem,
    is_local: bool,
    in_rows: Sequence[int],
) -> tuple[list[jax.Array], list[list[jax.Array]]]:
    """Counts in lanes; the counts of members are those of their lanes."""
    dtype, below = problem.pools.pool_dtype, comparison.is_below
    counts, sums = [], []
    for i, stack in enumerate(problem.stacks):
        x, cuts = numbers[i], member_cuts[i]
        entries = lanes.lanes_of(x, _columns(cuts, x.ndim), reaches=comparison.reaches, below=below)
        if problem.one_device and not stack.is_sliced:
            sums.append(lanes.row_sums(entries, in_parts=i not in in_rows))
        elif is_local:
            sums.append(lanes.local_row_sums(_as_one_member(entries, stack)))
        else:
            counts.append(lanes.count_on_devices(_as_one_member(entries, stack), dtype))
    if is_local:
        counts = lanes.count_members(sums, dtype)
    return counts, [lanes.rows_at_cuts(sums[i], below) for i in in_rows]


def _columns(cuts: jax.Array, ndim: int) -> list[jax.Array]:
    """The cuts of each member, [n_members, N_CUTS], as arrays that broadcast to its entries."""
    return [per_member(cuts[:, j], ndim) for j in range(N_CUTS)]


def _as_one_member(x: jax.Array, stack: Stack) -> jax.Array:
    return jnp.expand_dims(x, 0) if stack.is_sliced else x


def _sum_of_padded(counts: list[jax.Array], problem: Problem) -> jax.Array:
    """`by_pool` of counts of many devices, which XLA adds up before it sums them over devices.

    It would sum joined counts for each stack, with some kernels to join and split them.
    """
    n_pools = len(problem.pools.sizes)
    total: Any = 0
    for stack, n in zip(problem.stacks, counts, strict=True):
        before = int(stack.pool_of[0])
        after = n_pools - before - 1
        total += lax.pad(n, n.dtype.type(0), ((before, after, 0), (0, 0, 0)))
    return total


def by_pool(counts: list[jax.Array], stacks: Sequence[Stack], problem: Problem) -> jax.Array:
    """Sums the counts of the members of each pool, [n_pools, N_CUTS]."""
    n_pools = len(problem.pools.sizes)
    pool_of = np.concatenate(
        [stack.pool_of[: len(count)] for stack, count in zip(stacks, counts, strict=True)]
    )
    joined = jnp.concatenate(counts) if len(counts) > 1 else counts[0]
    if np.array_equal(pool_of, np.arange(n_pools)):
        return joined
    if n_pools == 1:
        return jnp.sum(joined, axis=0, keepdims=True, dtype=joined.dtype)
    order = np.argsort(pool_of, kind="stable")
    if np.array_equal(pool_of[order], np.arange(n_pools)):
        return joined[order]
    return jnp.zeros((n_pools, N_CUTS), joined.dtype).at[pool_of].add(joined)
