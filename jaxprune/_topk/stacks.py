"""Leaves as stacks, and where their entries rank in the pools that they compete in.

A stack is one or more leaves of equal shape under a new first axis, its members. On one device
the others are merged into rows, which is free there. With several devices an axis may be sharded:
leaves stay by themselves and keep their axes.

Entries are told apart in 32 bits wherever their scores are: a leaf too long for that is a stack of
its own slices, and a cut through a pool becomes one through each member of a stack.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base import counting as count_lib
from jaxprune._base.counting import as_rows, per_member
from jaxprune._base.float_bits import keyed_dtype

# Leaves of at most this many entries are copied together with others of their shape.
_STACKED = 2**20
# Members of at least this many entries would need more than 32 bits for a rank, padding included.
LONG = 2**32 - 2**12


class Group(NamedTuple):
    """What is known of the arrays while tracing: everything here is a Python value."""

    pool_of: tuple[int, ...]
    sizes: tuple[int, ...]  # entries of each leaf
    n_slices: tuple[int, ...]  # members that each leaf is: 1, or as many as its first axis has
    pool_sizes: tuple[int, ...]
    behind: tuple[int, ...]  # entries of its pool that come before each leaf
    common: np.dtype | None  # dtype that scores are widened to, where a pool mixes several
    floats: tuple[np.dtype, ...]  # dtype of each pool's keyed scores
    key_dtype: Any  # of numbers of entries of a pool, and of its cuts
    entry_dtype: Any  # of the key of one entry, and of its rank in a member

    @staticmethod
    def of(
        specs: Sequence[jax.ShapeDtypeStruct], pool_of: tuple[int, ...], n_parts: int = 1
    ) -> "Group":
        """The group of leaves with these shapes and dtypes of scores, in so many equal parts."""
        sizes = [math.prod(s.shape) for s in specs]
        pool_sizes = [0] * (max(pool_of) + 1)
        behind = []
        for n, p in zip(sizes, pool_of, strict=True):
            behind.append(pool_sizes[p])
            pool_sizes[p] += n
        dtypes = [keyed_dtype(s.dtype) for s in specs]
        mixed = len(set(pool_of)) < len(pool_of) and len(set(dtypes)) > 1
        common = max([*dtypes, np.dtype(np.float32)], key=lambda d: d.itemsize) if mixed else None
        floats = tuple(common or dtypes[pool_of.index(q)] for q in range(len(pool_sizes)))
        double = any(d.itemsize == 8 for d in floats)
        wide = double or max(pool_sizes) * n_parts >= count_lib.WIDE
        n_slices = [s.shape[0] if n >= LONG else 1 for n, s in zip(sizes, specs, strict=True)]
        longest = max(n // k for n, k in zip(sizes, n_slices, strict=True))
        return Group(
            pool_of=pool_of,
            sizes=tuple(sizes),
            n_slices=tuple(n_slices),
            pool_sizes=tuple(pool_sizes),
            behind=tuple(behind),
            common=common,
            floats=floats,
            key_dtype=jnp.uint64 if wide else jnp.uint32,
            entry_dtype=jnp.uint64 if double or (wide and longest >= LONG) else jnp.uint32,
        )


class Stack(NamedTuple):
    """Leaves of equal shape, or the slices of one long leaf, and where they lie in their pools."""

    leaves: tuple[int, ...]
    pools: np.ndarray  # of each member
    behind: np.ndarray  # entries of its pool that come before each member
    size: int  # entries of a member
    x: Any  # operands, [n_members, ...]

    @property
    def is_sliced(self) -> bool:
        """Whether the members are the slices of one leaf."""
        return len(self.pools) > len(self.leaves)


def stacked(operands: Sequence[Any], group: Group, one_device: bool) -> list[Stack]:
    """Operands of equal shapes as one, with a new first axis; those without entries are left out.

    Compile time then grows with the number of different shapes instead of that of leaves. The copy
    that it takes is freed with the selection. Across devices every operand stays by itself.
    """
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(operands):
        leaves, treedef = jax.tree.flatten(x)
        kind = (treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        together = one_device and group.sizes[i] <= _STACKED and group.n_slices[i] == 1
        if group.sizes[i]:
            alike.setdefault(kind if together else i, []).append(i)

    def stack(*xs: jax.Array) -> jax.Array:
        rows = [as_rows(x) if one_device else jnp.expand_dims(x, 0) for x in xs]
        return jnp.concatenate(rows) if len(rows) > 1 else rows[0]

    found = []
    for leaves in alike.values():
        k = group.n_slices[leaves[0]]
        size = group.sizes[leaves[0]] // k
        pools = np.array([group.pool_of[i] for i in leaves for _ in range(k)])
        behind = np.array([group.behind[i] + size * j for i in leaves for j in range(k)])
        xs = [operands[i] for i in leaves]
        x = xs[0] if k > 1 else jax.tree.map(stack, *xs)
        found.append(Stack(tuple(leaves), pools, behind, size, x))
    return found


def member_sizes(stack: Stack, group: Group) -> jax.Array:
    """Entries of each member, by dtype an entry."""
    return jnp.full(stack.pools.shape, stack.size, group.entry_dtype)


def bases(stack: Stack, first_rank: jax.Array) -> jax.Array:
    """The rank below those of each member's entries, from that of each pool's first."""
    ahead = stack.behind + stack.size
    return first_rank[stack.pools] - jnp.asarray(ahead, first_rank.dtype)


def ranks(shape: tuple[int, ...], size: jax.Array) -> jax.Array:
    """`size` for each member's first entry in row-major order, falling by one; [n_members, ...]."""
    rank = jnp.broadcast_to(per_member(size, len(shape)), shape)
    stride = 1
    for axis in range(len(shape) - 1, 0, -1):
        if shape[axis] > 1:
            index = lax.broadcasted_iota(size.dtype, shape, axis)
            rank = rank - index * jnp.asarray(stride, size.dtype)
        stride *= shape[axis]
    return rank


def tied_places(rank: jax.Array, base: jax.Array, ties: str) -> jax.Array:
    """What tied entries of a member go by: their ranks, or the places of these in a shuffle."""
    return hashed(rank + per_member(base, rank.ndim)) if ties == "hashed" else rank


def place_cuts(cuts: jax.Array, base: jax.Array, size: jax.Array, ties: str) -> jax.Array:
    """Cuts through the ranks of a pool as such through the `tied_places` of each member.

    Args:
      cuts: [n_members, ...] of the pool of each member.
      base: [n_members], the rank below those of a member's entries.
      size: [n_members] entries, by dtype an entry.
      ties: which of equal scores are kept.

    Returns:
      From 1, which all of a member's entries reach, to `size + 1`, which none does.
    """
    if ties == "hashed":
        return cuts.astype(size.dtype)
    one = jnp.ones_like(cuts)
    base, end = (per_member(x.astype(cuts.dtype), cuts.ndim) for x in (base, size + 1))
    return jnp.where(cuts > base, jnp.minimum(cuts - base, end), one).astype(size.dtype)


def hashed(rank: jax.Array) -> jax.Array:
    """A rank's place in a fixed shuffle of all 32-bit numbers but 0, which stays 0.

    Multiplications by odd numbers and shifted xors can be undone, so that different ranks stay
    different. No rank below 2**31 becomes the largest number.
    """
    h = rank.astype(jnp.uint32)
    for shift, factor in ((16, 0x9E3779B1), (15, 0x85EBCA77)):
        h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
    return (h ^ (h >> jnp.uint32(16))).astype(rank.dtype)


def first_ranks(group: Group, axis_name: Any) -> jax.Array:
    """The rank of the first entry of each pool here: its size and that of all later parts."""
    sizes = jnp.asarray(np.array(group.pool_sizes), group.key_dtype)
    if axis_name is None:
        return sizes
    n_later = parts_of(axis_name) - lax.axis_index(axis_name)
    return sizes * n_later.astype(group.key_dtype)


def parts_of(axis_name: Any) -> int:
    """How many members a mapped axis has; 1 without."""
    return 1 if axis_name is None else lax.psum(1, axis_name)
