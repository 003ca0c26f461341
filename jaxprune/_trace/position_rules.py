"""The rules of primitives that read or write slices at positions that the program computes.

They have the signature of all rules of views; see `view_rules`, which has the table.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune._trace.leaf_views import (
    Digit,
    Digits,
    Lookup,
    UnclearError,
    Value,
    View,
    Views,
    blank,
    index_range,
    size_of,
    table,
    take,
)
from jaxprune._trace.tracer import EquationPath


def _known_positions(value: Value) -> np.ndarray | None:
    """The positions that an operand holds, if they are constants."""
    if value.known is None:
        return None
    try:
        return np.asarray(value.known())
    except (TypeError, ValueError, NotImplementedError):
        return None


def _sliced(
    view: View, k: int, size: int, position: Value, path: EquationPath, n: int | None = None
) -> View:
    """A view after taking `size` indices of axis `k`, from a position on.

    Args:
      view: the view.
      k: the axis.
      size: how many indices to take.
      position: of the first one, a scalar.
      path: of the equation.
      n: write the axis into one of this length at the position, instead of reading it there.
    """
    length = size_of(view.axes[k])
    known = _known_positions(position)
    start = 0 if known is None else int(np.clip(known, 0, (n or length) - size))
    index = index_range(start, start + size)
    if n is not None:
        index = np.full_like(index_range(0, n), -1)
        index[start : start + size] = np.arange(size)
    sliced = _indexed_axis(view, k, index)
    if known is not None or n is not None:
        return sliced
    return _indexed(sliced, Lookup(path, k, view.axes[k], size, 1), position)


def _unknown(lookup: Lookup, size: int) -> Digits:
    """An axis of positions that are not known, along which the coordinates of a view vary."""
    axes = frozenset(axis for digit in lookup.digits for axis in digit.steps)
    return (Digit(size, unknown=axes),)


def _indexed(view: View, lookup: Lookup, position: Value) -> View:
    """Notes that the start of a slice is computed by the program."""
    axes = {axis for digit in lookup.digits for axis in digit.steps}
    return dataclasses.replace(
        view,
        indexed=view.indexed + tuple((axis, lookup.path) for axis in sorted(axes)),
        looked_up=view.looked_up or position.is_data,
        lookups=(*view.lookups, lookup),
    )


def dynamic_slice(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Takes a slice at a position that the program computes."""
    array, *positions = operands
    views = array.views
    for k, size in enumerate(eqn.params["slice_sizes"]):
        if size != array.shape[k]:
            views = tuple(_sliced(view, k, size, positions[k], path) for view in views)
    return [views]


def dynamic_update_slice(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Writes an array into another one; both keep their views."""
    array, update, *positions = operands
    if any(operand.is_plain_data() for operand in operands):
        return [()]
    views = update.views
    for k, (size, n) in enumerate(zip(update.shape, array.shape, strict=True)):
        if size != n:
            views = tuple(_sliced(view, k, size, positions[k], path, n) for view in views)
    return [(*array.views, *views)]


def scatter(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Writes into some entries of an array, which keeps its views."""
    return [() if any(operand.is_plain_data() for operand in operands) else operands[0].views]


def gather(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Looks up slices of an array at positions that another array holds."""
    views = [_gathered(eqn, path, view, *operands) for view in operands[0].views]
    return [tuple(view for view in views if view is not None)]


def _gathered(
    eqn: Any, path: EquationPath, view: View, array: Value, positions: Value
) -> View | None:
    """A view after a gather.

    Axes of the array that are taken whole become the offset axes of the result; batching axes go
    with those of the positions. Along the others, each position selects one index.
    """
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = eqn.outvars[0].aval.shape
    batch_axes = [k for k in range(len(shape)) if k not in numbers.offset_dims]
    batching = dict(
        zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    )
    removed = (*numbers.collapsed_slice_dims, *batching)
    axes = [blank(size) for size in shape]
    for i, k in enumerate(numbers.start_index_map):
        if sizes[k] == array.shape[k]:
            continue
        if sizes[k] != 1:
            raise UnclearError("gather takes a part of an axis")
        along = _known_along(positions, i)
        if along is None or (len(along[1]) > 1 and k not in removed):
            n_positions = math.prod(shape[axis] for axis in batch_axes)
            lookup = Lookup(path, k, view.axes[k], 1, n_positions)
            for axis in batch_axes:
                axes[axis] = _sum(axes[axis], _unknown(lookup, shape[axis]))
            view = _indexed(_indexed_axis(view, k, np.zeros(1, int)), lookup, positions)
            continue
        axis, selected = along
        view = _indexed_axis(view, k, np.clip(selected, 0, array.shape[k] - 1))
        if len(selected) > 1:
            axes[batch_axes[axis]] = _sum(axes[batch_axes[axis]], view.axes[k])
            view = _replaced(view, k, ())
    for k, i in batching.items():
        # `i` counts the axes of the positions without their last one, as `batch_axes` does.
        axes[batch_axes[i]] = _sum(axes[batch_axes[i]], view.axes[k])
        view = _replaced(view, k, ())
    offsets = [k for k in range(len(sizes)) if k not in removed]
    for position, k in zip(numbers.offset_dims, offsets, strict=True):
        axes[position] = view.axes[k]
    rest = view.without_axes(removed)
    return None if rest is None else rest.with_axes(axes)


def _known_along(positions: Value, i: int) -> tuple[int, np.ndarray] | None:
    """Along which axis part `i` of the positions varies, and its values along that axis.

    None if they are not constants, or vary along several axes.
    """
    known = _known_positions(positions)
    if known is None:
        return None
    known = known[..., i]
    for axis in range(max(known.ndim, 1)):
        line = known[tuple(slice(None if k == axis else 1) for k in range(known.ndim))]
        if (line == known).all():
            return axis, line.reshape(-1)
    return None


def _indexed_axis(view: View, k: int, index: np.ndarray) -> View:
    """A view after indexing one axis."""
    return _replaced(view, k, take(view.axes[k], index))


def _replaced(view: View, k: int, digits: Digits) -> View:
    """A view with another axis `k`."""
    return view.with_axes(digits if n == k else old for n, old in enumerate(view.axes))


def _sum(a: Digits, b: Digits) -> Digits:
    """An axis along which two axes of the array were selected together."""
    x, y = table(a), table(b)
    steps = dict(x.steps)
    for axis, step in y.steps.items():
        steps[axis] = steps.get(axis, 0) + step
    mask = x.mask() & y.mask()
    return (Digit(x.size, steps, None if mask.all() else mask, x.unknown | y.unknown),)


# Devices


def device_part(array: Value, shape: tuple[int, ...], path: EquationPath) -> Value:
    """The part of an array that one device of a `shard_map` has; where it lies is not known."""
    device = Value(())
    views = array.views
    for k, size in enumerate(shape):
        if size != array.shape[k]:
            views = tuple(_sliced(view, k, size, device, path) for view in views)
    return Value(shape, views, array.is_data)


def all_gather(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Joins the parts that all devices have along an axis, or stacks them along a new one."""
    axis, n = eqn.params["all_gather_dimension"], eqn.params["axis_size"]
    views = []
    for view in operands[0].views:
        axes = list(view.axes)
        if not eqn.params["tiled"]:
            axes.insert(axis, blank(n))
        else:
            size = size_of(axes[axis])
            steps = {k: np.arange(n) * size for digit in axes[axis] for k in digit.steps}
            axes[axis] = (Digit(n, steps), *axes[axis])
        views.append(view.with_axes(axes))
    return [tuple(views)]
