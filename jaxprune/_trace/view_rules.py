"""What each primitive does to the views of its operands: `VIEW_RULES`, one rule per primitive.

A rule takes the equation, its path and its operands, and returns the views of each result. All
results of other primitives, such as sums and norms, have no views. See `leaf_views` for what a view
is; products, loops and calls are in `products`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune._trace import position_rules
from jaxprune._trace.constant_folding import ELEMENTWISE
from jaxprune._trace.leaf_views import (
    MAX_TABLE,
    Digit,
    Digits,
    UnclearError,
    Value,
    View,
    Views,
    blank,
    index_range,
    reshaped,
    size_of,
    take,
)
from jaxprune._trace.tracer import EquationPath

ViewRule = Callable[[Any, EquationPath, Sequence[Value]], list[Views]]


def elementwise(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """The views of all operands, unless one of them is data. Scalars have no views."""
    shape = tuple(eqn.outvars[0].aval.shape)
    if any(operand.is_plain_data() for operand in operands):
        return [()]
    return [
        tuple(
            _broadcast(view, shape)
            for operand in operands
            for view in operand.views
            if len(view.axes) == len(shape)
        )
    ]


def _broadcast(view: View, shape: Sequence[int]) -> View:
    """A view whose axes of length 1 become as long as the result."""
    return view.with_axes(map(_repeated, view.axes, shape))


def _repeated(digits: Digits, size: int) -> Digits:
    if size_of(digits) == size:
        return digits
    return take(digits, np.zeros(size, int)) if size <= MAX_TABLE else blank(size)


def barrier(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """The operands are the results."""
    return [operand.views for operand in operands]


# Axes


def transpose(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Permutes the axes."""
    order = eqn.params["permutation"]
    return [tuple(v.with_axes(v.axes[k] for k in order) for v in operands[0].views)]


def squeeze(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Removes axes of length 1."""
    views = [view.without_axes(eqn.params["dimensions"]) for view in operands[0].views]
    return [tuple(view for view in views if view is not None)]


def reduction(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Removes axes of length 1. Sums and norms of several entries have no views."""
    axes, shape = eqn.params["axes"], operands[0].shape
    if any(shape[k] != 1 for k in axes):
        return [()]
    views = [view.without_axes(axes) for view in operands[0].views]
    return [tuple(view for view in views if view is not None)]


def broadcast_in_dim(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Adds axes, along which the same entries repeat."""
    shape = eqn.outvars[0].aval.shape
    views = []
    for view in operands[0].views:
        axes = [blank(size) for size in shape]
        for digits, k in zip(view.axes, eqn.params["broadcast_dimensions"], strict=True):
            axes[k] = _repeated(digits, shape[k])
        views.append(view.with_axes(axes))
    return [tuple(views)]


def reshape(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Merges and splits axes, after permuting them if the equation says so."""
    order, shape = eqn.params["dimensions"], eqn.outvars[0].aval.shape
    views = operands[0].views
    if order is not None:
        views = tuple(view.with_axes(view.axes[k] for k in order) for view in views)
    return [tuple(reshaped(view, shape) for view in views)]


def bitcast(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Reads each entry as several of a narrower type, along a new last axis."""
    shape = eqn.outvars[0].aval.shape
    if len(shape) < len(operands[0].shape):
        raise UnclearError("several entries are read as one of a wider type")
    new = [blank(size) for size in shape[len(operands[0].shape) :]]
    return [tuple(view.with_axes([*view.axes, *new]) for view in operands[0].views)]


# Slices


def _take_all(views: Views, indices: Sequence[np.ndarray | None]) -> Views:
    """The views after indexing each axis by an array of its own; None takes the whole axis."""
    return tuple(view.with_axes(map(take, view.axes, indices)) for view in views)


def _along(axis: int, n_axes: int, index: np.ndarray) -> list[np.ndarray | None]:
    """An index for one axis, and None for the others."""
    return [index if k == axis else None for k in range(n_axes)]


def slice_(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Takes a range of indices of each axis."""
    params, shape = eqn.params, operands[0].shape
    strides = params["strides"] or [1] * len(shape)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    indices = [
        None if bound == (0, size, 1) else index_range(*bound)
        for bound, size in zip(bounds, shape, strict=True)
    ]
    return [_take_all(operands[0].views, indices)]


def split(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Cuts one axis into consecutive parts, one per result."""
    sizes, axis, n_axes = eqn.params["sizes"], eqn.params["axis"], len(operands[0].shape)
    parts = zip(np.cumsum(sizes).tolist(), sizes, strict=True)
    indices = [_along(axis, n_axes, index_range(stop - size, stop)) for stop, size in parts]
    return [_take_all(operands[0].views, index) for index in indices]


def rev(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Reverses axes."""
    reverse = eqn.params["dimensions"]
    indices = [
        index_range(size - 1, -1, -1) if k in reverse else None
        for k, size in enumerate(operands[0].shape)
    ]
    return [_take_all(operands[0].views, indices)]


def pad(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Adds entries that are not from the leaf around and between those that are."""
    if operands[1].is_plain_data():
        return [()]
    config = eqn.params["padding_config"]
    indices = list(map(_padded, operands[0].shape, eqn.outvars[0].aval.shape, config))
    return [_take_all(operands[0].views, indices)]


def _padded(n: int, size: int, config: tuple[int, int, int]) -> np.ndarray | None:
    """Which of `n` indices each of `size` indices is after padding; -1 for padding."""
    low, _, between = config
    if n == size and (low, between) == (0, 0):
        return None
    index = np.full_like(index_range(0, size), -1)
    places = low + index_range(0, n) * (between + 1)
    inside = (places >= 0) & (places < size)
    index[places[inside]] = np.arange(n)[inside]
    return index


def concatenate(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Chains arrays along one axis; each view is of one part of it."""
    axis, shape = eqn.params["dimension"], eqn.outvars[0].aval.shape
    if any(operand.is_plain_data() for operand in operands):
        return [()]
    views: list[View] = []
    start = 0
    for operand in operands:
        stop = start + operand.shape[axis]
        if operand.views:
            index = index_range(0, shape[axis])
            index = np.where((index >= start) & (index < stop), index - start, -1)
            views += _take_all(operand.views, _along(axis, len(shape), index))
        start = stop
    return [tuple(views)]


def stack(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Puts arrays next to each other along a new axis; each view is of one index of it."""
    axis, n = eqn.params["axis"], len(operands)
    if any(operand.is_plain_data() for operand in operands):
        return [()]
    views = []
    for k, operand in enumerate(operands):
        new = (Digit(n, present=np.arange(n) == k if n > 1 else None),)
        views += [v.with_axes([*v.axes[:axis], new, *v.axes[axis:]]) for v in operand.views]
    return [tuple(views)]


def unstack(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Takes each index of an axis by itself."""
    axis, results = eqn.params["axis"], []
    for k in range(operands[0].shape[axis]):
        indices = _along(axis, len(operands[0].shape), np.array([k]))
        views = [view.without_axes([axis]) for view in _take_all(operands[0].views, indices)]
        results.append(tuple(view for view in views if view is not None))
    return results


def tile(eqn: Any, path: EquationPath, operands: Sequence[Value]) -> list[Views]:
    """Repeats axes."""
    reps = eqn.params["reps"]
    views = [
        view.with_axes((*blank(n), *axis) for n, axis in zip(reps, view.axes, strict=True))
        for view in operands[0].views
    ]
    return [tuple(views)]


# Primitives whose results say too little about single entries of a leaf to be followed.
ENDS = (
    *("reduce_and", "reduce_or", "argmax", "argmin", "sort", "top_k", "approx_top_k"),
    *("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
    *("reduce_window_max", "reduce_window_min", "reduce_window_sum"),
)
_SCATTERED = ("add", "sub", "mul", "min", "max")
_ALSO_ELEMENTWISE = (
    *("integer_pow", "convert_element_type", "real", "imag", "conj", "complex", "copy_p"),
    *("sharding_constraint", "reshard", "mesh_cast", "pvary", "pcast", "layout_constraint"),
    *("relayout", "with_memory_space_constraint", "reduced_vary_cast", "vary_unreduced_cast"),
    *("log2", "mulhi", "one_minus_square"),
    *("ppermute", "shift_left", "shift_right_arithmetic", "shift_right_logical"),
    *("population_count", "clz", "acosh", "atanh"),
)
_SCATTERS = ("scatter", *(f"scatter{sign}{op}" for sign in "_-" for op in _SCATTERED))
VIEW_RULES: dict[str, ViewRule] = {
    **dict.fromkeys((*ELEMENTWISE, *_ALSO_ELEMENTWISE), elementwise),
    **dict.fromkeys(("optimization_barrier", "device_put"), barrier),
    **dict.fromkeys(_SCATTERS, position_rules.scatter),
    "transpose": transpose,
    "squeeze": squeeze,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), reduction),
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": reshape,
    "bitcast_convert_type": bitcast,
    "slice": slice_,
    "split": split,
    "rev": rev,
    "pad": pad,
    "concatenate": concatenate,
    "stack": stack,
    "unstack": unstack,
    "tile": tile,
    "dynamic_slice": position_rules.dynamic_slice,
    "dynamic_update_slice": position_rules.dynamic_update_slice,
    "gather": position_rules.gather,
    "all_gather": position_rules.all_gather,
    "all_gather_invariant": position_rules.all_gather,
}
