"""The masks that the cuts of a search give, and the thresholds that the cuts correspond to."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import SHORT, per_member
from jaxprune._base.float_bits import key_value
from jaxprune._base.sharding import on_cpu
from jaxprune._topk.bit_flags import BitFlags
from jaxprune._topk.copies import StoredKeys, in_parts
from jaxprune._topk.problem import Problem
from jaxprune._topk.ranks import (
    Members,
    are_alike,
    cuts_in_members,
    first_ranks,
    member_bases,
    member_sizes,
    tie_order,
)
from jaxprune._topk.search import Cuts, Ended
from jaxprune._topk.stacks import Pools, Stack, unstacked


def kept_masks(ended: Ended, problem: Problem) -> list[Any]:
    """The mask of each leaf; True means kept. `BitFlags` where the old masks can be packed."""
    first = first_ranks(problem)
    shapes = problem.pools.shapes
    masks: list[Any] = [jnp.zeros(shape, bool) for shape in shapes]  # empty leaves are in no stack
    for stack in problem.stacks:
        leaf_masks = _stack_masks(stack, ended, first, problem)
        for leaf, mask in zip(stack.leaves, leaf_masks, strict=True):
            is_packed = isinstance(mask, BitFlags)
            masks[leaf] = mask if is_packed else mask.reshape(shapes[leaf])
    return masks


def masks_of_members(ended: Ended, problem: Problem) -> list[jax.Array]:
    """The masks of the members of each stack, [n_members, size]."""
    first = first_ranks(problem)
    masks = []
    for stack in problem.stacks:
        pool_cuts, members = _pool_cuts(stack, ended.cuts(), first, problem)
        member_cuts = _member_cuts(stack, pool_cuts, members, problem)
        mask = _mask(stack, _flat(stack.x), member_cuts, members, problem)
        masks.append(mask[:, : stack.size])
    return masks


def _stack_masks(stack: Stack, ended: Ended, first: jax.Array, problem: Problem) -> Sequence[Any]:
    """The mask of each leaf of a stack, in the shape of the leaf or flat; or its `BitFlags`.

    Args:
      stack: the leaves.
      ended: how the search ended.
      first: [n_pools], the rank of the first entry of each pool.
      problem: the selection.
    """
    if _is_masked_by_case(stack, problem):
        return _masks_by_case(stack, ended, problem)
    pool_cuts, members = _pool_cuts(stack, ended.cuts(), first, problem)
    cuts = _member_cuts(stack, pool_cuts, members, problem)
    if stack.is_sliced:
        return [_mask(stack, stack.operands[0], cuts, members, problem)]
    if len(stack.leaves) == 1:
        # Not from the rows: in the shape of the leaf, ranks need no division for each entry.
        old = problem.bits[stack.leaves[0]] if problem.bits else None
        if old is not None and old.pack is not None:
            return [_bit_mask(stack, cuts, members, problem, old)]
        operand = jax.tree.map(lambda x: x[None], stack.operands[0])
        return [_mask(stack, operand, cuts, members, problem)[0]]
    flat = _flat(stack.x)
    if isinstance(flat[0], StoredKeys):
        return _masks_in_parts(stack, flat, cuts, members, problem)
    # `cond` makes its result one buffer, as in `_masks_by_case`.
    masks = lax.cond(
        jnp.any(pool_cuts.tie > 1),
        lambda flat, cuts, members: _mask(stack, flat, cuts, members, problem),
        lambda flat, cuts, members: _mask_without_ties(stack, flat, cuts, problem),
        *(flat, cuts, members),
    )
    return unstacked(list(masks[:, : stack.size]))


def _is_masked_by_case(stack: Stack, problem: Problem) -> bool:
    """Whether a program on one CPU device has a second, shorter way to the masks of a stack.

    For one leaf of many it is not worth the time to compile it. For one that is short and the only
    one, the time to start a second thread counts.
    """
    on_one_cpu = problem.one_device and not problem.is_gpu and on_cpu(jax.tree.leaves(stack.x))
    if not on_one_cpu or stack.is_sliced:
        return False
    return len(stack.leaves) > 1 or (len(problem.stacks) == 1 and stack.size <= SHORT)


def _masks_by_case(stack: Stack, ended: Ended, problem: Problem) -> Sequence[jax.Array]:
    """The mask of each leaf of a stack, flat, by the shorter way if all cuts are plain.

    `cond` makes its result one buffer. Otherwise XLA computes, and compiles, the whole mask again
    for every member that is sliced from it. The cuts of members are computed in its branches, where
    they need no kernels of their own.
    """

    def masks_of(x: Any, ended: Ended) -> jax.Array:
        pool_cuts, members = _pool_cuts(stack, ended.cuts(), first_ranks(problem), problem)
        return _mask(stack, x, _member_cuts(stack, pool_cuts, members, problem), members, problem)

    def plain_masks_of(x: Any, ended: Ended) -> jax.Array:
        return _plain_mask(stack, x, stack.of_members(ended.cuts().key), problem)

    key, tie = map(stack.of_members, ended.cuts())
    are_plain = stack.form.are_plain(stack.form.cuts(key))
    masks = lax.cond(jnp.any((tie > 1) | ~are_plain), masks_of, plain_masks_of, *(stack.x, ended))
    masks = masks.reshape(len(masks), -1)[:, : stack.size]
    return unstacked(list(masks)) if len(masks) > 1 else list(masks)


def _bit_mask(
    stack: Stack, cuts: Cuts, members: Members, problem: Problem, old: BitFlags
) -> BitFlags:
    """The mask of a leaf, given the bits of what may be kept.

    These are read in the last operation only. So XLA for GPUs writes the new bits in their place.
    """
    leaf = stack.operands[0][0]
    operand = jax.tree.map(lambda x: x[None], leaf)
    anything = stack._replace(form=dataclasses.replace(stack.form, has_floor=False))
    mask = _mask(anything, (operand, None), cuts, members, problem)[0]
    return old.only(mask, jax.tree.leaves(leaf)[0])


def _masks_in_parts(
    stack: Stack, flat: Any, cuts: Cuts, members: Members, problem: Problem
) -> list[jax.Array]:
    """The masks of copied leaves."""
    masks, shape = [], problem.pools.shapes[stack.leaves[0]]
    for part in in_parts((flat, cuts, members)):
        x, of_members, ranks = part
        # Without the barrier, XLA would compute, and compile, the mask of every member apart.
        mask = lax.optimization_barrier(_mask(stack, x, of_members, ranks, problem))
        masks += list(mask[:, : stack.size].reshape(-1, *shape))
    return masks


def _pool_cuts(
    stack: Stack, cuts: Cuts, first: jax.Array, problem: Problem
) -> tuple[Cuts, Members]:
    """The cuts of the pool of each member, and its ranks."""
    pool_cuts = Cuts(stack.of_members(cuts.key), stack.of_members(cuts.tie))
    # The barrier ties all ranks to the cuts: otherwise XLA computes them before the search, even
    # outside a loop that contains it. It ties them to the base too: otherwise XLA shares the ranks
    # of two leaves, and shards them as only one of the two is sharded.
    size, base = member_sizes(stack, problem.pools), member_bases(stack, first)
    # One entry is enough for equal members; otherwise a kernel would fill a whole array.
    if problem.is_gpu and are_alike(stack, problem.pools):
        size, base = size[:1], base[:1]
    size, base, pool_cuts = lax.optimization_barrier((size, base, pool_cuts))
    return pool_cuts, Members(base, size)


def _member_cuts(stack: Stack, pool_cuts: Cuts, members: Members, problem: Problem) -> Cuts:
    """The cuts that the entries of each member compare with."""
    ties = cuts_in_members(pool_cuts.tie, members, problem.ties)
    return Cuts(stack.form.cuts(pool_cuts.key), ties)


def _flat(x: Any) -> Any:
    """The arrays of a stack, in rows, as one row for each member."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1), x)


def _mask(stack: Stack, x: Any, cuts: Cuts, members: Members, problem: Problem) -> jax.Array:
    """Marks the entries of each member that its cuts keep, [n_members, ...]."""
    entry = problem.integers(stack, x, exact=True)
    cut_key, cut_tie = (per_member(cut, entry.ndim) for cut in cuts)
    order = tie_order(entry, members, problem.ties)
    # Where a tie is lost, the entry must be above the cut. No cut is the largest integer.
    return _among(entry >= cut_key + (order <= cut_tie).astype(entry.dtype), stack, x)


def _plain_mask(stack: Stack, x: Any, keys: jax.Array, problem: Problem) -> jax.Array:
    """`_mask` if all cuts, given by their keys, are plain and none divides tied entries."""
    return _among(problem.reaching(stack, x, keys), stack, x)


def _mask_without_ties(stack: Stack, x: Any, cuts: Cuts, problem: Problem) -> jax.Array:
    """`_mask` if no cut divides tied entries: every entry with the key of the cut is kept."""
    entry = problem.integers(stack, x, exact=True)
    return _among(entry >= per_member(cuts.key, entry.ndim), stack, x)


def _among(mask: jax.Array, stack: Stack, x: Any) -> jax.Array:
    """The mask without the entries that may not be kept."""
    operand, among = x
    if isinstance(operand, StoredKeys) and stack.form.has_floor:
        return mask & (operand.integers != 0)
    return mask if among is None else mask & among.astype(bool)


def thresholds(keys: jax.Array, pools: Pools) -> jax.Array:
    """The scores that the key cuts of the pools correspond to, float32[n_pools] (or float64)."""
    wide = jnp.float64 if np.dtype(np.float64) in pools.score_dtypes else jnp.float32
    values = jnp.zeros(keys.shape, wide)
    for dtype, has_dtype in pools.by_dtype():
        values = jnp.where(has_dtype, key_value(keys, dtype).astype(wide), values)
    return values
