"""The second moments of what a product multiplies with a param: X^T X, or only its diagonal.

Each function takes the equation, the plan of the product and the operands, and returns
`Second(n_inputs, gram)` with one entry per index of the product's batch axes: float32[n_batch] and
float32[n_batch, rows, rows], or float32[n_batch, rows] for the diagonals. The rows are in the order
of the plan. The inputs are read as they are: no copy in float32, and the patches of a convolution
only for a part of the images at a time.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune._base.sharding import explicit_sharding, in_sharding
from jaxprune._calibration.product_plans import ProductPlan

_HIGHEST = lax.Precision.HIGHEST
_ROWS_AT_ONCE = 256  # of a ragged product
_MAX_PATCHES = 2**24  # entries of the patches of a convolution that are held at a time


class Second(NamedTuple):
    """The number of inputs and their second moments, for each index of the batch axes."""

    n_inputs: jax.Array
    gram: jax.Array


def second_moments(
    eqn: Any, plan: ProductPlan, operands: Sequence[jax.Array], diagonal: bool
) -> Second:
    """The moments of the operand that is multiplied with the leaf."""
    return _BY_PRIMITIVE[eqn.primitive.name](eqn, plan, operands, diagonal)


def _as_float(x: jax.Array) -> jax.Array:
    """The inputs in a float dtype of up to 32 bits."""
    if x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        return x
    return x.astype(jnp.float32)


def _product(
    x: jax.Array, rows: Sequence[int], summed: Sequence[int], batch: Sequence[int], diagonal: bool
) -> jax.Array:
    """X^T X: (*batch, *summed, *summed), or its diagonal (*batch, *summed).

    Args:
      x: the inputs; each axis is in one of the next three.
      rows: axes to sum over.
      summed: axes that the product of the model sums over, in the order of the result.
      batch: axes that stay, in the order of the result.
      diagonal: whether to return the diagonal.
    """
    order = [*batch, *summed]
    if diagonal:
        x = x.astype(jnp.float32)
        squares = jnp.sum(x * x, axis=tuple(rows)).transpose(_ranks(order))
        return squares if (named := _everywhere(x)) is None else in_sharding(squares, named)
    gram = lax.dot_general(
        x,
        x,
        ((rows, rows), (batch, batch)),
        precision=_HIGHEST,
        preferred_element_type=jnp.float32,
        out_sharding=_everywhere(x),
    )
    ranks = [len(batch) + k for k in _ranks(summed)]  # dot_general leaves them in ascending order
    n = len(batch)
    return gram.transpose([*range(n), *ranks, *(k + len(summed) for k in ranks)])


def _everywhere(x: jax.Array) -> NamedSharding | None:
    """On every device of the mesh, if the type of `x` says where `x` lies."""
    named = explicit_sharding(x)
    return None if named is None else NamedSharding(named.mesh, PartitionSpec())


def _ranks(axes: Sequence[int]) -> list[int]:
    """The position of each of these axes among them in ascending order."""
    return [sorted(axes).index(axis) for axis in axes]


def _dot_general(
    eqn: Any, plan: ProductPlan, operands: Sequence[jax.Array], diagonal: bool
) -> Second:
    """Of a matrix product."""
    sums, batches = eqn.params["dimension_numbers"]
    own, other = plan.operand, 1 - plan.operand
    axis_of = dict(zip((*sums[own], *batches[own]), (*sums[other], *batches[other]), strict=True))
    x = _as_float(operands[other])
    if plan.repeated:  # the same entry of the leaf multiplies the sum of these inputs
        x = jnp.sum(
            x, axis=tuple(axis_of[k] for k in plan.repeated), keepdims=True, dtype=jnp.float32
        )
    summed = [axis_of[k] for k in plan.summed]
    batch = [axis_of[k] for k in plan.batch if k in axis_of]
    rows = [k for k in range(x.ndim) if k not in (*summed, *batch)]
    gram = _product(x, rows, summed, batch, diagonal)
    # The members of an ensemble may have the same inputs; then only the param has their axis.
    sizes = [operands[own].shape[k] for k in plan.batch]
    of_inputs = [n if k in axis_of else 1 for k, n in zip(plan.batch, sizes, strict=True)]
    rest = gram.shape[len(batch) :]
    gram = jnp.broadcast_to(gram.reshape(*of_inputs, *rest), (*sizes, *rest))
    count = math.prod(x.shape[k] for k in rows)
    return _flat(gram, count, math.prod(sizes), len(plan.rows), diagonal)


def _flat(gram: jax.Array, count: Any, n_batch: int, n_rows: int, diagonal: bool) -> Second:
    shape = (n_batch, n_rows) if diagonal else (n_batch, n_rows, n_rows)
    return Second(jnp.full(n_batch, count, jnp.float32), gram.reshape(shape))


def _ragged_dot_general(
    eqn: Any, plan: ProductPlan, operands: Sequence[jax.Array], diagonal: bool
) -> Second:
    """Of a matrix product with a matrix for each group of rows."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    x, _, group_sizes = operands
    (rows,) = numbers.lhs_ragged_dimensions
    x = _as_float(x if rows == 0 else x.T)
    ends = jnp.cumsum(group_sizes)
    starts = ends - group_sizes
    if diagonal:
        row = jnp.arange(len(x))[None]
        belongs = (row < ends[:, None]) & (row >= starts[:, None])  # (groups, rows)
        x = x.astype(jnp.float32)
        gram = jnp.matmul(belongs.astype(jnp.float32), x * x, precision=_HIGHEST)
    else:
        gram = lax.map(lambda bounds: _gram_of_rows(x, *bounds), (starts, ends))
    return Second(group_sizes.astype(jnp.float32), gram)


def _gram_of_rows(x: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """X^T X of the rows from `start` to `end`, which only the running program knows."""
    size = min(_ROWS_AT_ONCE, len(x))
    offset = jnp.arange(size)

    def add_block(b: jax.Array, gram: jax.Array) -> jax.Array:
        first = jnp.minimum(b * size, len(x) - size)  # the last block may overlap the one before
        row = first + offset
        belongs = (row >= jnp.maximum(start, b * size)) & (row < end)
        block = lax.dynamic_slice_in_dim(x, first, size)
        return gram + _product(jnp.where(belongs[:, None], block, 0), [0], [1], [], False)

    zero = jnp.zeros((x.shape[1], x.shape[1]), jnp.float32)
    if not size:
        return zero
    return lax.fori_loop(start // size, (end + size - 1) // size, add_block, zero)


def _conv_general_dilated(
    eqn: Any, plan: ProductPlan, operands: Sequence[jax.Array], diagonal: bool
) -> Second:
    """Of a convolution: of the patches that its window sees."""
    numbers = eqn.params["dimension_numbers"]
    images = _padded(_as_float(operands[0]), eqn.params, numbers)
    n_images, *_, n_channels = images.shape
    kernel_axes = [*numbers.rhs_spec[2:], numbers.rhs_spec[1]]  # windows, then channels
    window = [operands[1].shape[k] for k in numbers.rhs_spec[2:]]
    out_size = [eqn.outvars[0].aval.shape[k] for k in numbers.out_spec[2:]]
    n_rows, n_outputs = math.prod(window) * n_channels // plan.n_groups, math.prod(out_size)
    order = [kernel_axes.index(k) for k in sorted(kernel_axes)]  # as in the kernel

    def of_images(images: jax.Array) -> jax.Array:
        patches = _patches(images, window, out_size, eqn.params)
        shape = (*patches.shape[: 1 + len(out_size)], *window, plan.n_groups, -1)
        patches = patches.reshape(shape)
        n = patches.ndim
        rows = list(range(1 + len(out_size)))
        windows = list(range(len(rows), n - 2))
        summed = [[*windows, n - 1][k] for k in order]
        return _product(patches, rows, summed, [n - 2], diagonal)

    n_chunks = _number_of_chunks(n_images, n_outputs * n_rows * plan.n_groups)
    if explicit_sharding(images) is not None:  # an axis that is split over devices can't be cut
        n_chunks = 1
    if n_chunks == 1:
        gram = of_images(images)
    else:
        # The chunks take every n-th image: of images that are split over devices, each device then
        # has a part of every chunk.
        chunks = images.reshape(n_images // n_chunks, n_chunks, *images.shape[1:])
        zero = jnp.zeros(jax.eval_shape(of_images, chunks[:, 0]).shape, jnp.float32)
        gram = lax.fori_loop(0, n_chunks, lambda i, total: total + of_images(chunks[:, i]), zero)
    return _flat(gram, n_images * n_outputs, plan.n_groups, n_rows, diagonal)


def _number_of_chunks(n_images: int, patch_entries: int) -> int:
    """The least number of equal parts of the images whose patches are small enough."""
    for n in range(1, n_images):
        if n_images % n == 0 and n_images // n * patch_entries <= _MAX_PATCHES:
            return n
    return max(n_images, 1)


def _padded(images: jax.Array, params: dict[str, Any], numbers: Any) -> jax.Array:
    """The images as (images, *space, channels), padded and dilated as the convolution does."""
    batch, channels, *space = numbers.lhs_spec
    images = images.transpose([batch, *space, channels])
    config = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    return lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def _patches(
    images: jax.Array, window: Sequence[int], out_size: Sequence[int], params: dict[str, Any]
) -> jax.Array:
    """What the window sees: (images, *outputs, positions of the window, channels)."""
    strides, dilations = params["window_strides"], params["rhs_dilation"]
    parts = []
    for offset in itertools.product(*map(range, window)):
        starts = [o * dilation for o, dilation in zip(offset, dilations, strict=True)]
        limits = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(starts, out_size, strides, strict=True)
        ]
        parts.append(
            lax.slice(
                images,
                [0, *starts, 0],
                [images.shape[0], *limits, images.shape[-1]],
                [1, *strides, 1],
            )
        )
    return jnp.stack(parts, axis=-2)


_BY_PRIMITIVE: dict[str, Callable[..., Second]] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot_general,
    "conv_general_dilated": _conv_general_dilated,
}


def why_not(eqn: Any, plan: ProductPlan) -> str:
    """Why the moments of a product can't be collected; empty if they can."""
    name = eqn.primitive.name
    if name == "conv_general_dilated" and plan.operand == 0:
        return "it is the image of a convolution"
    if name == "conv_general_dilated" and eqn.params["batch_group_count"] > 1:
        return "it is in a convolution with groups of images"
    if name == "ragged_dot_general":
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (sums, _), (batch, _) = numbers.dot_dimension_numbers
        is_plain = (
            len(sums) == 1 and not batch and not set(sums) & set(numbers.lhs_ragged_dimensions)
        )
        if plan.operand != 1 or not is_plain:
            return "it is in a ragged product of an unusual form"
    if any(jnp.issubdtype(var.aval.dtype, jnp.complexfloating) for var in eqn.invars):
        return "its inputs are complex"
    return ""


def add_moments(
    total: Second,
    new: Second,
    plan: ProductPlan,
    slice_start: Any,
    row_start: Any,
    weight: Any,
) -> Second:
    """Adds the moments of a product to those of a leaf.

    Args:
      total: of the leaf: float32[slices] and float32[slices, in, in], or [slices, in].
      new: of the product, by index of its batch axes.
      plan: of the product.
      slice_start: what loops and computed positions add to the number of the slice; an int or a
        traced scalar.
      row_start: what they add to the row.
      weight: bool; False where the product has no entries of the leaf in this iteration.
    """
    n_rows = total.gram.shape[1]
    kept = np.flatnonzero(plan.rows >= 0)
    batch = np.flatnonzero(plan.slices >= 0)
    slices, row_starts = plan.slices[batch], plan.row_starts[batch]
    count, gram = new.n_inputs, new.gram
    if len(batch) < len(plan.slices):
        count, gram = count[batch], gram[batch]
    if len(kept) < len(plan.rows):
        gram = gram[:, kept] if gram.ndim == 2 else gram[:, kept][:, :, kept]
    if weight is not True:
        count, gram = (jnp.where(weight, x, 0) for x in (count, gram))
    rows = plan.rows[kept]
    is_whole = np.array_equal(np.sort(rows), np.arange(n_rows)) and isinstance(row_start, int)
    if is_whole and row_start == 0 and not row_starts.any():
        if (rows != np.arange(n_rows)).any():
            order = np.argsort(rows)
            gram = gram[:, order] if gram.ndim == 2 else gram[:, order][:, :, order]
        return _add_slices(total, Second(count, gram), slices, slice_start)
    slice_index = jnp.asarray(slices) + slice_start
    row_index = jnp.asarray(rows)[None] + row_starts[:, None] + row_start
    if gram.ndim == 2:
        index = (slice_index[:, None], row_index)
    else:
        index = (slice_index[:, None, None], row_index[:, :, None], row_index[:, None])
    return Second(total.n_inputs.at[slice_index].add(count), total.gram.at[index].add(gram))


def _add_slices(total: Second, new: Second, slices: np.ndarray, start: Any) -> Second:
    """Adds whole slices."""
    if isinstance(start, int):
        slices, start = slices + start, 0
        if np.array_equal(slices, np.arange(len(total.n_inputs))):
            return Second(total.n_inputs + new.n_inputs, total.gram + new.gram)
    if len(slices) == 1:
        index = jnp.asarray(slices[0] + start)

        def add(x: jax.Array, part: jax.Array) -> jax.Array:
            part = part + lax.dynamic_index_in_dim(x, index, 0)
            return lax.dynamic_update_index_in_dim(x, part, index, 0)

        return Second(add(total.n_inputs, new.n_inputs), add(total.gram, new.gram))
    index = jnp.asarray(slices) + start
    return Second(total.n_inputs.at[index].add(new.n_inputs), total.gram.at[index].add(new.gram))
