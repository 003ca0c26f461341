"""Which of tied entries is kept first: by their index, or by a fixed shuffle of the indices.

Every entry of a pool has a rank. The last entry has rank 1 and the first one has the largest, so
that a higher rank wins a tie, as a higher key wins otherwise. Ties are settled by a cut through the
ranks. Within a member of a stack, ranks count from its own last entry, which keeps them short; a
cut through the pool is translated for each member.

Hashed ties compare a number that the rank is mapped to; different ranks map to different numbers.
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import per_member
from jaxprune._base.sharding import explicit_sharding
from jaxprune._topk.problem import Problem
from jaxprune._topk.stacks import Pools, Stack

# The largest pool that `_shuffled` can order: its numbers have 32 bits, and a search for a cut
# needs one that no rank is mapped to.
_MOST_SHUFFLED = 2**31 - 2


class Members(NamedTuple):
    """Where the entries of each member of a stack rank in its pool.

    Both are [n_members], or [1] on a GPU if they are the same for all members.
    """

    base: jax.Array  # the highest rank below those of its entries
    size: jax.Array  # its number of entries, in the dtype of its ranks


def check_pool_sizes(pools: Pools, ties: str) -> None:
    """Raises if ties are hashed in a pool with more entries than the shuffle can order."""
    if ties == "hashed" and max(pools.sizes) > _MOST_SHUFFLED:
        raise ValueError(
            f'ties="hashed" can order at most 2**31 - 2 scores in a pool, got a pool of '
            f'{max(pools.sizes)}. Use ties="index".'
        )


def first_ranks(problem: Problem) -> jax.Array:
    """The rank of the first entry of each pool, [n_pools]; with a mapped axis, of this part of it.

    Earlier parts rank above later ones.
    """
    pools = problem.pools
    sizes = jnp.asarray(np.array(pools.sizes), pools.pool_dtype)
    if problem.axis_name is None:
        return sizes
    n_from_this = problem.n_parts - lax.axis_index(problem.axis_name)
    return sizes * n_from_this.astype(pools.pool_dtype)


def member_sizes(stack: Stack, pools: Pools) -> jax.Array:
    """The number of entries of each member, [n_members]."""
    return jnp.full(stack.pool_of.shape, stack.size, pools.rank_dtype)


def are_alike(stack: Stack, pools: Pools) -> bool:
    """Whether the entries of all members have the same ranks in their pools."""
    sizes = [pools.sizes[pool] for pool in stack.pool_of]
    return len(set(zip(sizes, stack.offsets.tolist(), strict=True))) == 1


def member_bases(stack: Stack, first_ranks: jax.Array) -> jax.Array:
    """The highest rank below those of each member's entries, [n_members]."""
    end = stack.offsets + stack.size
    return stack.of_members(first_ranks) - jnp.asarray(end, first_ranks.dtype)


def ranks_in_member(entries: jax.Array, size: jax.Array) -> jax.Array:
    """The rank of each entry in its member: `size` for the first, in row-major order one less each.

    Args:
      entries: [n_members, ...]; only their shape and their sharding count. On Explicit axes, every
        device would else compute the ranks of all of them.
      size: [n_members], the number of entries. The ranks of padding are 0 and less.
    """
    shape, named = entries.shape, explicit_sharding(entries)
    rank = jnp.broadcast_to(per_member(size, len(shape)), shape, out_sharding=named)
    stride = 1
    for axis in range(len(shape) - 1, 0, -1):
        if shape[axis] > 1:
            index = lax.broadcasted_iota(size.dtype, shape, axis, out_sharding=named)
            rank = rank - index * jnp.asarray(stride, size.dtype)
        stride *= shape[axis]
    return rank


def tie_order(entries: jax.Array, members: Members, ties: str) -> jax.Array:
    """The signed numbers that tied entries are compared by; the higher one is kept.

    Args:
      entries: [n_members, ...]; only their shape and their sharding count.
      members: where the entries of each member rank.
      ties: `"index"` compares ranks, `"hashed"` compares shuffled ones.
    """
    rank = ranks_in_member(entries, members.size)
    if ties == "index":
        return rank
    in_pool = rank.astype(jnp.uint32) + per_member(members.base, rank.ndim).astype(jnp.uint32)
    return jnp.where(rank > 0, _signed(_shuffled(in_pool)), lowest_order(members, ties))


class PoolRanks(NamedTuple):
    """What a GPU computes the ranks of a stack in its pools from.

    In a loop over these arrays, ranks are a part of the kernel that reads the entries. From `iota`s
    and constants in the loop, XLA would make some kernels of their own.

    Attributes:
      first: the rank of the first entry of each member, unsigned; [1] if all have the same.
      steps: for each other axis, how far ranks fall along it, [length].
    """

    first: jax.Array
    steps: list[jax.Array]

    @staticmethod
    def of(stack: Stack, problem: Problem) -> "PoolRanks":
        """Those of the entries of a stack."""
        pools, shape = problem.pools, jax.tree.leaves(stack.x)[0].shape
        base = member_bases(stack, first_ranks(problem))
        strides = [math.prod(shape[axis + 1 :]) for axis in range(1, len(shape))]
        steps = [
            lax.iota(pools.rank_dtype, n) * jnp.asarray(stride, pools.rank_dtype)
            for n, stride in zip(shape[1:], strides, strict=True)
        ]
        first = base + member_sizes(stack, pools).astype(base.dtype)
        return PoolRanks(first[:1] if are_alike(stack, pools) else first, steps)


def order_in_pool(ranks: PoolRanks, entries: jax.Array, ties: str, n_padding: int) -> jax.Array:
    """The tie order of each entry in its pool as a GPU compares it: unsigned, 0 for padding.

    An entry reaches a cut through the order of its pool if its number is at least as high.

    Args:
      ranks: of the entries.
      entries: [n_members, ...]; only their shape and their sharding count.
      ties: which of equal scores are kept.
      n_padding: how many entries at the end of each member are padding.
    """
    shape, named = entries.shape, explicit_sharding(entries)
    steps = [
        lax.broadcast_in_dim(x, shape, (axis,), out_sharding=named)
        for axis, x in enumerate(ranks.steps, 1)
    ]
    n_before = functools.reduce(operator.add, steps) if steps else jnp.zeros(shape, jnp.int32)
    rank = per_member(ranks.first, len(shape)) - n_before.astype(ranks.first.dtype)
    order = _shuffled(rank.astype(jnp.uint32)) if ties == "hashed" else rank
    if not n_padding:
        return order
    size = n_before.dtype.type(math.prod(shape[1:]) - n_padding)
    return jnp.where(n_before < size, order, order.dtype.type(0))


def lowest_order(members: Members, ties: str) -> Any:
    """A number below the tie order of every entry, and not above any cut of `cuts_in_members`."""
    return np.int32(np.iinfo(np.int32).min) if ties == "hashed" else members.size.dtype.type(0)


def cuts_in_members(cuts: jax.Array, members: Members, ties: str) -> jax.Array:
    """Translates cuts through the tie order of a pool into cuts through that of each member.

    Args:
      cuts: [n_members, ...], those of the pool of each member, at least 1. An entry reaches a cut
        if its number is at least as high.
      members: where the entries of each member rank.
      ties: which of equal scores are kept.

    Returns:
      Signed numbers. An entry reaches a cut if its `tie_order` is higher than the number.
    """
    if ties == "hashed":
        return _signed((cuts - jnp.ones_like(cuts)).astype(jnp.uint32))
    base, size = (per_member(x.astype(cuts.dtype), cuts.ndim) for x in (members.base, members.size))
    below = cuts - jnp.ones_like(cuts)
    inside = jnp.where(below > base, jnp.minimum(below - base, size), jnp.zeros_like(cuts))
    return inside.astype(members.size.dtype)


def cut_above_all(pool_sizes: jax.Array, ties: str) -> jax.Array:
    """A cut through the tie order of each pool that no entry reaches, [n_pools]."""
    if ties == "hashed":
        return jnp.full_like(pool_sizes, np.iinfo(np.uint32).max)
    return pool_sizes + pool_sizes.dtype.type(1)


def _shuffled(h: jax.Array) -> jax.Array:
    """Maps uint32 ranks by a fixed permutation of the 32-bit numbers; 0 stays 0.

    A multiplication by an odd number and a xor with the shifted number are invertible, so different
    ranks stay different. No rank below 2**31 is mapped to the largest number.
    """
    for shift, factor in ((16, 0x9E3779B1), (15, 0x85EBCA77)):
        h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
    return h ^ (h >> jnp.uint32(16))


def _signed(numbers: jax.Array) -> jax.Array:
    """Signed numbers that are ordered like the unsigned ones."""
    return lax.bitcast_convert_type(numbers ^ jnp.uint32(2**31), jnp.int32)
