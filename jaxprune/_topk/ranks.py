"""Which of tied entries is kept first: by their index, or by a fixed shuffle of the indices.

Every entry of a pool has a rank. The last entry has rank 1 and the first one has the largest, so
that a higher rank wins a tie, as a higher key wins otherwise. Ties are settled by a cut through the
ranks. Within a member of a stack, ranks count from its own last entry, which keeps them short; a
cut through the pool is translated for each member.

Hashed ties compare a number that the rank is mapped to; different ranks map to different numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import per_member
from jaxprune._topk.problem import Problem
from jaxprune._topk.stacks import Pools, Stack

# The largest pool that `_shuffled` can order: its numbers have 32 bits, and a search for a cut
# needs one that no rank is mapped to.
_MOST_SHUFFLED = 2**31 - 2


class Members(NamedTuple):
    """Where the entries of each member of a stack rank in its pool; both are [n_members]."""

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
    return jnp.full(stack.pool_of.shape, stack.size, pools.entry_dtype)


def member_bases(stack: Stack, first_ranks: jax.Array) -> jax.Array:
    """The highest rank below those of each member's entries, [n_members]."""
    end = stack.offsets + stack.size
    return first_ranks[stack.pool_of] - jnp.asarray(end, first_ranks.dtype)


def ranks_in_member(shape: tuple[int, ...], size: jax.Array) -> jax.Array:
    """The rank of each entry in its member: `size` for the first, in row-major order one less each.

    Args:
      shape: [n_members, ...].
      size: [n_members], the number of entries. The ranks of padding go on below 1 and wrap.
    """
    rank = jnp.broadcast_to(per_member(size, len(shape)), shape)
    stride = 1
    for axis in range(len(shape) - 1, 0, -1):
        if shape[axis] > 1:
            index = lax.broadcasted_iota(size.dtype, shape, axis)
            rank = rank - index * jnp.asarray(stride, size.dtype)
        stride *= shape[axis]
    return rank


def tie_order(rank: jax.Array, base: jax.Array, ties: str) -> jax.Array:
    """The numbers that tied entries are compared by; the higher one is kept.

    Args:
      rank: [n_members, ...] from `ranks_in_member`.
      base: [n_members] from `member_bases`.
      ties: `"index"` compares ranks, `"hashed"` compares shuffled ones.
    """
    return _shuffled(rank + per_member(base, rank.ndim)) if ties == "hashed" else rank


def cuts_in_members(cuts: jax.Array, members: Members, ties: str) -> jax.Array:
    """Translates cuts through the tie order of a pool into cuts through that of each member.

    Args:
      cuts: [n_members, ...], those of the pool of each member.
      members: where the entries of each member rank.
      ties: which of equal scores are kept.

    Returns:
      Cuts from 1, which all entries of a member reach, to `size + 1`, which none reaches.
    """
    if ties == "hashed":
        return cuts.astype(members.size.dtype)
    one = jnp.ones_like(cuts)
    base, end = (
        per_member(x.astype(cuts.dtype), cuts.ndim) for x in (members.base, members.size + 1)
    )
    inside = jnp.where(cuts > base, jnp.minimum(cuts - base, end), one)
    return inside.astype(members.size.dtype)


def cut_above_all(pool_sizes: jax.Array, ties: str) -> jax.Array:
    """A cut through the tie order of each pool that no entry reaches, [n_pools]."""
    if ties == "hashed":
        return jnp.full_like(pool_sizes, np.iinfo(np.uint32).max)
    return pool_sizes + pool_sizes.dtype.type(1)


def _shuffled(rank: jax.Array) -> jax.Array:
    """Maps ranks by a fixed permutation of the 32-bit numbers; 0 stays 0.

    A multiplication by an odd number and a xor with the shifted number are invertible, so different
    ranks stay different. No rank below 2**31 is mapped to the largest number.
    """
    h = rank.astype(jnp.uint32)
    for shift, factor in ((16, 0x9E3779B1), (15, 0x85EBCA77)):
        h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
    return (h ^ (h >> jnp.uint32(16))).astype(rank.dtype)
