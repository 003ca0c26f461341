"""Copies of many small leaves on a GPU: their keys, some leaves at a time.

Leaves of equal shape are copied into a stack, so that a pass does not start a kernel for each. The
keys of their entries are copied, which take no more memory than the scores, and none for what may
be kept. XLA compiles a kernel with many arguments slowly, so a kernel copies only some leaves. The
index at which they begin in the stack is a number that XLA does not know: then all parts run the
same kernel. The masks of a stack are computed in the same parts.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.counting import equal_parts

# How many leaves a kernel copies, at most.
_AT_ONCE = 25


class StoredKeys(NamedTuple):
    """The operand of leaves whose keys are copied.

    Attributes:
      integers: as `KeyForm.stored` makes them; 0 for an entry that may not be kept.
    """

    integers: jax.Array


def copied_keys(
    operands: Sequence[Any],
    join: Callable[..., jax.Array],
    keys_of: Callable[[Any], jax.Array],
    size: int,
) -> StoredKeys:
    """The keys of leaves of equal shape, [n_members, rows, row]; 0 where a row is only filled.

    Args:
      operands: of each leaf, the operand and what may be kept.
      join: makes arrays of some leaves one array, [members, rows, row].
      keys_of: gives the `KeyForm.stored` integers of joined operands.
      size: entries of each leaf.
    """
    parts = equal_parts(len(operands), _AT_ONCE)
    keys = [_of_entries(keys_of(jax.tree.map(join, *operands[part])), size) for part in parts]
    if len(parts) == 1:
        return StoredKeys(keys[0])
    joined = jnp.zeros((len(operands), *keys[0].shape[1:]), keys[0].dtype)
    for some, first in zip(keys, _unknown(parts), strict=True):
        joined = lax.dynamic_update_slice_in_dim(joined, some, first, 0)
    return StoredKeys(joined)


def _of_entries(keys: jax.Array, size: int) -> jax.Array:
    """The keys [members, rows, row], with 0 in the place of the padding behind `size` entries.

    A score of padding may have any key; a search subtracts the padding as keys of 0.
    """
    _, rows, row = keys.shape
    if rows * row == size:
        return keys
    index_in_row, of_row = (lax.broadcasted_iota(jnp.int32, keys.shape, i) for i in (2, 1))
    return jnp.where(of_row * row + index_in_row < size, keys, jnp.zeros_like(keys))


def in_parts(tree: Any) -> Iterator[Any]:
    """Arrays of all members, [n_members, ...], in the parts in which they were copied.

    Those of length 1, with a number that all members share, are in every part.
    """
    n_members = len(jax.tree.leaves(tree)[0])
    parts = equal_parts(n_members, _AT_ONCE)
    for part, first in zip(parts, _unknown(parts), strict=True):
        # Without the barrier, XLA would make one large kernel of all parts.
        tree = lax.optimization_barrier(tree)
        take = functools.partial(
            lax.dynamic_slice_in_dim, start_index=first, slice_size=part.stop - part.start
        )
        yield jax.tree.map(lambda x, take=take: take(x) if len(x) == n_members else x, tree)


def _unknown(parts: Sequence[slice]) -> Sequence[jax.Array]:
    """The first index of each part, as a number that XLA does not know."""
    return lax.optimization_barrier([jnp.int32(part.start) for part in parts])
