"""Counting the true entries of many arrays, such as the masks of a model.

On one device, arrays of one shape are counted some at a time, which is one kernel instead of one
for each: programs compile faster.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.counting import (
    as_rows,
    count_each,
    count_in_rows,
    equal_parts,
    joined_rows,
    reduced,
    sum_along,
)
from jaxprune._base.lanes import LONGEST_ROW
from jaxprune._base.sharding import on_gpu, on_one_device, on_tpu

# How many arrays are counted at a time.
_AT_ONCE = 7
# On a GPU small arrays are joined where they are counted. XLA might store larger ones.
_JOINED_AT_ONCE = 5
_MOST_JOINED = 2**20


def as_flags(x: jax.Array) -> jax.Array:
    """A bool array as it is."""
    return x


def count_arrays(
    operands: Sequence[Any],
    dtype: Any,
    is_local: bool = False,
    flags_of: Callable[[Any], jax.Array] = as_flags,
) -> jax.Array:
    """Counts the true entries of several arrays of flags: [n_operands].

    Across devices, arrays of one shape may be sharded in different ways, so each is counted alone.

    Args:
      operands: what the flags are computed from: arrays of any shapes, or tuples of arrays of one
        shape.
      dtype: of the counts.
      is_local: whether the arrays are the parts that one shard holds.
      flags_of: elementwise map from an operand to its flags, a bool array.
    """
    is_local = is_local or on_one_device(operands)
    shapes = [jax.tree.leaves(x)[0].shape for x in operands]
    alike: dict[Any, list[int]] = {}
    for i, shape in enumerate(shapes):
        alike.setdefault(shape if is_local else i, []).append(i)
    order = [i for members in alike.values() for i in members]
    counts = [
        _counts_of_alike([operands[i] for i in members], dtype, is_local, flags_of)
        for members in alike.values()
    ]
    joined = jnp.concatenate(counts) if counts else jnp.zeros((0,), dtype)
    return joined if order == sorted(order) else joined[np.argsort(order)]


def _counts_of_alike(
    operands: list[Any], dtype: Any, is_local: bool, flags_of: Callable[[Any], jax.Array]
) -> jax.Array:
    """`count_arrays` of operands of one shape, some of them in one read."""
    arrays = jax.tree.leaves(operands)
    size = arrays[0].size
    if not size:
        return jnp.zeros((len(operands),), dtype)
    if _are_joined(operands):
        return _joined_counts(operands, dtype, flags_of)
    members = [jnp.expand_dims(flags_of(operand), 0) for operand in operands]
    parts = np.array_split(np.arange(len(members)), -(-len(members) // _AT_ONCE))
    if len(parts) > 1 and not on_tpu(arrays):
        # The counts of rows are joined: their sums are one kernel, too.
        rows = [count_in_rows([as_rows(members[i]) for i in part]) for part in parts]
        joined = jnp.concatenate([row for rows_of_part in rows for row in rows_of_part])
        return sum_along(joined.astype(dtype), 1)
    # XLA for GPUs stores a flag that two counts are computed from.
    if len(members) > 1 or on_gpu(arrays):
        counts = [count_each([members[i] for i in part], dtype, is_local)[0] for part in parts]
        return jnp.concatenate(counts)
    # XLA for CPUs would turn a single count into the slow form that `count_each` avoids, so the
    # False entries are counted, too. Both terms are equal.
    n_true, n_false = count_each([members[0], ~members[0]], dtype, is_local)[0]
    return jnp.minimum(n_true, jnp.asarray(size, dtype) - n_false)[None]


def _are_joined(operands: list[Any]) -> bool:
    """Whether operands of one shape are small arrays on a GPU, of equal dtypes."""
    arrays = jax.tree.leaves(operands)
    if len(operands) < 2 or arrays[0].size > _MOST_JOINED or not on_gpu(arrays):
        return False
    return len({tuple(x.dtype for x in jax.tree.leaves(operand)) for operand in operands}) == 1


def _joined_counts(
    operands: list[Any], dtype: Any, flags_of: Callable[[Any], jax.Array]
) -> jax.Array:
    """`count_arrays` of small arrays of one shape on a GPU.

    A kernel that sums several arrays takes longer to compile, the more of them there are. It takes
    less if they are one array for it, and all kernels are the same one.
    """

    def join(*xs: jax.Array) -> jax.Array:
        return joined_rows(xs, LONGEST_ROW)

    row_counts = []
    for part in equal_parts(len(operands), _JOINED_AT_ONCE):
        flags = flags_of(jax.tree.map(join, *operands[part]))
        row_counts += count_in_rows([flags])
    counts = reduced([jnp.concatenate(row_counts).astype(dtype)], 1)[0]
    arrays = jax.tree.leaves(operands[0])
    n_padding = as_rows(arrays[0], LONGEST_ROW).size - arrays[0].size
    if n_padding:  # rows are padded with zeros, whose flags may be True
        zeros = jax.tree.map(lambda x: jnp.zeros((1,), x.dtype), operands[0])
        counts -= n_padding * flags_of(zeros).astype(dtype)
    return counts
