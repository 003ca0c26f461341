"""The arrays of a selection: which pools they compete in, and how they are stacked for one read.

A stack joins leaves of equal shape along a new first axis; each leaf is then a member of the stack.
On one device the remaining axes are merged into rows, which costs nothing there. With several
devices an axis may be sharded, so every leaf is a stack of its own and keeps its axes.

Ranks within a member have 32 bits. A leaf too long for that becomes a stack of its own slices along
the first axis; if a slice is still too long, or there would be too many of them, ranks have 64.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base import counting
from jaxprune._base.counting import SHORT, as_rows, joined_rows
from jaxprune._base.float_bits import keyed_dtype
from jaxprune._base.sharding import on_cpu
from jaxprune._topk.copies import copied_keys
from jaxprune._topk.keys import KeyForm
from jaxprune._topk.signs import ScoreSpec

# Only leaves of at most this many entries are copied into a stack with others of their shape.
_STACKED = 2**20
# How many leaves are taken out of a stack by one kernel.
_AT_ONCE = 12
# A leaf is split into at most this many slices: tracing takes 160 bytes of the host for each.
_MOST_SLICES = 2**20
# From this size on, the ranks within a member would need more than 31 bits.
LONG = 2**31 - 1


class Pools(NamedTuple):
    """Shapes and dtypes of the leaves and of their pools: Python values, known while tracing."""

    pool_of: tuple[int, ...]  # the pool of each leaf
    shapes: tuple[tuple[int, ...], ...]  # of each leaf
    n_slices: tuple[int, ...]  # members each leaf is split into: 1, or the length of its first axis
    offsets: tuple[int, ...]  # entries of its pool that come before each leaf
    sizes: tuple[int, ...]  # entries of each pool
    common_dtype: np.dtype | None  # all scores are widened to it if one pool mixes several dtypes
    score_dtypes: tuple[np.dtype, ...]  # of each pool
    pool_dtype: Any  # unsigned integers that hold the keys, ranks and counts of a whole pool
    rank_dtype: Any  # signed integers that hold the ranks of one member

    @property
    def leaf_sizes(self) -> list[int]:
        """Entries of each leaf."""
        return [math.prod(shape) for shape in self.shapes]

    def by_dtype(self) -> list[tuple[np.dtype, np.ndarray]]:
        """Each dtype of scores, with flags that mark the pools of this dtype.

        Loop over dtypes, not pools: each iteration emits a kernel.
        """
        return [
            (dtype, np.array([other == dtype for other in self.score_dtypes]))
            for dtype in dict.fromkeys(self.score_dtypes)
        ]

    def only(self, leaves: Sequence[int]) -> "Pools":
        """The pools of some leaves, each of which is one pool."""
        return self._replace(
            pool_of=tuple(range(len(leaves))),
            shapes=tuple(self.shapes[leaf] for leaf in leaves),
            n_slices=tuple(self.n_slices[leaf] for leaf in leaves),
            offsets=(0,) * len(leaves),
            sizes=tuple(self.sizes[self.pool_of[leaf]] for leaf in leaves),
            score_dtypes=tuple(self.score_dtypes[self.pool_of[leaf]] for leaf in leaves),
        )

    @staticmethod
    def of(specs: Sequence[ScoreSpec], pool_of: tuple[int, ...], n_parts: int = 1) -> "Pools":
        """The pools of leaves whose scores have these shapes and dtypes.

        Args:
          specs: of the scores of each leaf.
          pool_of: the pool of each leaf.
          n_parts: every pool has this many parts of equal size; `specs` describe one of them.
        """
        leaf_sizes = [math.prod(spec.shape) for spec in specs]
        sizes, offsets = [0] * (max(pool_of) + 1), []
        for leaf_size, pool in zip(leaf_sizes, pool_of, strict=True):
            offsets.append(sizes[pool])
            sizes[pool] += leaf_size
        dtypes = [keyed_dtype(spec.dtype) for spec in specs]
        is_mixed = len(set(pool_of)) < len(pool_of) and len(set(dtypes)) > 1
        widest = max([*dtypes, np.dtype(np.float32)], key=lambda dtype: dtype.itemsize)
        common = widest if is_mixed else None
        score_dtypes = [common or dtypes[pool_of.index(pool)] for pool in range(len(sizes))]
        is_double = any(dtype.itemsize == 8 for dtype in score_dtypes)
        is_wide = is_double or max(sizes) * n_parts >= counting.WIDE
        n_slices = [_n_slices(s.shape) for s in specs]
        longest = max(n // k for n, k in zip(leaf_sizes, n_slices, strict=True))
        return Pools(
            pool_of=pool_of,
            shapes=tuple(spec.shape for spec in specs),
            n_slices=tuple(n_slices),
            offsets=tuple(offsets),
            sizes=tuple(sizes),
            common_dtype=common,
            score_dtypes=tuple(score_dtypes),
            pool_dtype=jnp.uint64 if is_wide else jnp.uint32,
            rank_dtype=jnp.int64 if is_wide and longest >= LONG else jnp.int32,
        )


def _n_slices(shape: tuple[int, ...]) -> int:
    """How many members a leaf is split into."""
    is_split = math.prod(shape) >= LONG and shape[0] <= _MOST_SLICES
    return shape[0] if is_split else 1


class Stack(NamedTuple):
    """Leaves of equal shape, or the slices of one long leaf: the members of the stack."""

    leaves: tuple[int, ...]
    operands: tuple[Any, ...]  # of each leaf, as they came
    pool_of: np.ndarray  # the pool of each member
    offsets: np.ndarray  # entries of its pool that come before each member
    size: int  # entries of each member
    form: KeyForm
    # The operands joined, [n_members, ...]. One number for each leaf has other axes of length 1.
    x: Any

    @property
    def is_sliced(self) -> bool:
        """Whether the members are the slices of one leaf."""
        return len(self.pool_of) > len(self.leaves)

    @property
    def n_padding(self) -> int:
        """How many entries only fill the last row of each member."""
        shape = jax.tree.leaves(self.x)[0].shape
        return 0 if self.is_sliced else math.prod(shape[1:]) - self.size

    @property
    def source(self) -> Any:
        """What a loop carries to read `x`: for a leaf alone on one device the leaf itself.

        Under `vmap`, XLA copies an array that gets an axis of length 1 before it enters a loop.
        """
        is_leaf = len(self.operands) == 1 and not self.is_sliced and not self.n_padding
        return self.operands[0] if is_leaf else self.x

    def read(self, source: Any) -> Any:
        """`x`, given `source` within a loop."""
        return jax.tree.map(lambda array, x: array.reshape(x.shape), source, self.x)

    def of_members(self, x: jax.Array) -> jax.Array:
        """For each member the entry of its pool: [n_members, ...] of an array [n_pools, ...]."""
        first, n = int(self.pool_of[0]), len(self.pool_of)
        if np.array_equal(self.pool_of, np.arange(first, first + n)):  # no gather: a cheaper kernel
            return lax.slice_in_dim(x, first, first + n)
        return x[self.pool_of]

    def in_pools(self, new: jax.Array, old: jax.Array) -> jax.Array:
        """An array [n_pools] with one new number for the pool of each member."""
        if np.array_equal(self.pool_of, np.arange(len(old))):
            return new
        if len(new) == 1:
            is_new = np.arange(len(old)) == self.pool_of[0]
            return jnp.where(is_new, jnp.broadcast_to(new, old.shape), old)
        return old.at[self.pool_of].set(new, mode="promise_in_bounds", unique_indices=True)


def of_entries(function: Callable[[jax.Array], jax.Array], x: Any) -> Any:
    """Maps the arrays of `Stack.x` that have entries; others hold one number for each member."""
    arrays, treedef = jax.tree.flatten(x)
    shape = arrays[0].shape
    results = [function(array) if array.shape == shape else array for array in arrays]
    ndim = results[0].ndim
    return treedef.unflatten(
        [r if r.ndim == ndim else r.reshape(len(r), *[1] * (ndim - 1)) for r in results]
    )


def stacked(
    operands: Sequence[Any],
    forms: Sequence[KeyForm],
    pools: Pools,
    one_device: bool,
    longest_row: int = 0,
    keys_of: Callable[..., jax.Array] | None = None,
) -> list[Stack]:
    """Joins operands of equal shapes into stacks; leaves without entries are in none.

    Compile time then grows with the number of different shapes instead of the number of leaves.
    The copies are freed after the selection. Across devices every operand is a stack of its own.

    Args:
      operands: of each leaf, the operand and what may be kept.
      forms: of each leaf.
      pools: of all leaves.
      one_device: whether axes may be merged at no cost.
      longest_row: of the rows; 0 for the usual one.
      keys_of: gives the integers of an operand and its form as they are stored. If it is not None,
        these are what is copied.
    """

    def join(*xs: jax.Array) -> jax.Array:
        if one_device and not longest_row and on_cpu(xs):
            return in_rows(concatenated(xs), len(xs))
        if longest_row and len(xs) > 1:
            return joined_rows(xs, longest_row)
        rows = [as_rows(x, longest_row) if one_device else jnp.expand_dims(x, 0) for x in xs]
        return jnp.concatenate(rows) if len(rows) > 1 else rows[0]

    stacks = []
    for leaves in leaves_of_stacks(operands, pools, one_device):
        n_slices = pools.n_slices[leaves[0]]
        size = pools.leaf_sizes[leaves[0]] // n_slices
        members = [(leaf, i) for leaf in leaves for i in range(n_slices)]
        pool_of = np.array([pools.pool_of[leaf] for leaf, _ in members])
        offsets = np.array([pools.offsets[leaf] + size * i for leaf, i in members])
        of_leaves = tuple(operands[leaf] for leaf in leaves)
        form = forms[leaves[0]]
        if len(leaves) > 1 and keys_of is not None:
            keys = copied_keys(of_leaves, join, functools.partial(keys_of, form=form), size)
            x = keys, None
        else:
            x = of_leaves[0] if n_slices > 1 else jax.tree.map(join, *of_leaves)
        stacks.append(Stack(tuple(leaves), of_leaves, pool_of, offsets, size, form, x))
    return stacks


def concatenated(xs: Sequence[jax.Array]) -> jax.Array:
    """Arrays of equal shape as one, along the first axis: a copy that XLA need not compile."""
    return jnp.concatenate(list(map(jnp.atleast_1d, xs))) if len(xs) > 1 else xs[0]


def in_rows(x: jax.Array, n_members: int) -> jax.Array:
    """The rows of each of `n_members` concatenated arrays on a CPU, [n_members, rows, row].

    A short array is one row: its entries are read by one thread, and there are no counts of rows to
    sum up. Then the result is [n_members, row]. An axis of length 1 between these would let XLA
    choose another layout for a loop than for what it reads, and copy the array.
    """
    size = x.size // n_members
    if size <= SHORT:
        return x.reshape(n_members, size)
    return jax.vmap(lambda x: as_rows(x)[0])(x.reshape(n_members, -1))


def unstacked(members: list[jax.Array]) -> list[jax.Array]:
    """Arrays of bools or integers that are slices of others, each as an array of its own.

    On a CPU, XLA would compile a kernel for each of them, which takes 15 ms. A reduction of several
    arrays is one kernel. This one reduces each over two copies of itself, which it does not store.
    """
    if not on_cpu(members):
        return members
    zero, parts = np.zeros((), np.dtype(members[0].dtype)), []
    for first in range(0, len(members), _AT_ONCE):
        batch = members[first : first + _AT_ONCE]
        copies = [jnp.broadcast_to(member, (2, *member.shape)) for member in batch]
        parts += lax.reduce(tuple(copies), (zero,) * len(copies), _bitwise_or, (0,))
    return parts


def _bitwise_or(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(map(operator.or_, a, b))


def leaves_of_stacks(operands: Sequence[Any], pools: Pools, one_device: bool) -> list[list[int]]:
    """The leaves of each stack: some of equal shape, or one alone."""
    sizes, leaves_of = pools.leaf_sizes, {}
    for leaf, operand in enumerate(operands):
        arrays, treedef = jax.tree.flatten(operand)
        kind = (treedef, tuple((x.shape, x.dtype) for x in arrays))
        is_joined = one_device and sizes[leaf] <= _STACKED and pools.n_slices[leaf] == 1
        if sizes[leaf]:
            leaves_of.setdefault(kind if is_joined else leaf, []).append(leaf)
    return list(leaves_of.values())
