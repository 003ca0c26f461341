"""The rules of primitives that move entries and compute nothing: reshape, slice, concatenate, ...

They have the signature of all rules; see `axis_rules`, which has the table.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune._trace.traced_arrays import Axis, TracedArray, common_known, fixed_array
from jaxprune._trace.tracer import Tracer

Arrays = Sequence[TracedArray]


def transpose(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Permutes the axes."""
    return [TracedArray.of([operands[0].axes[k] for k in eqn.params["permutation"]])]


def squeeze(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Removes axes of length 1."""
    (array,), removed = operands, eqn.params["dimensions"]
    axes = [axis for k, axis in enumerate(array.axes) if k not in removed]
    return [TracedArray(tuple(axes), np.nan if axes else array.single_value())]


def broadcast_in_dim(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Gives new axes new labels: their length follows from the axes that they are joined with.

    The program contains that length as a number. Whether the number follows when an axis shrinks is
    not visible here; `same_program` finds out.
    """
    (array,), value = operands, operands[0].single_value()
    axes = []
    for size in eqn.outvars[0].aval.shape:
        known = None if np.isnan(value) else np.full(size, value)
        axes.append(Axis(size, tracer.new_labels(size) if size > 1 else None, known))
    for axis, k in zip(array.axes, eqn.params["broadcast_dimensions"], strict=True):
        if axis.size == axes[k].size:
            axes[k] = axis
    return [TracedArray.of(axes)]


def reshape(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Splits and merges axes.

    Old and new axes are matched in the smallest blocks of equal size: (2, 12) -> (2, 3, 4) has the
    blocks 2 -> 2 and 12 -> 3, 4. Axes of length 1 belong to no block. The equation may permute the
    axes first, as `vmap` of a convolution does.
    """
    order = eqn.params.get("dimensions") or range(len(operands[0].axes))
    shape = [int(size) for size in eqn.outvars[0].aval.shape]
    if 0 in shape:
        tracer.freeze_all(operands, "it belongs to an empty array that is reshaped")
        return [fixed_array(shape)]
    old_axes = [operands[0].axes[k] for k in order if operands[0].axes[k].size != 1]
    new_sizes = [size for size in shape if size != 1]
    reshaped: list[Axis] = []
    while old_axes or new_sizes:
        block, sizes = [old_axes.pop(0)], [new_sizes.pop(0)]
        while (old := math.prod(axis.size for axis in block)) != (new := math.prod(sizes)):
            if old < new:
                block.append(old_axes.pop(0))
            else:
                sizes.append(new_sizes.pop(0))
        reshaped += _reshape_block(tracer, block, sizes)
    remaining = iter(reshaped)
    axes = [Axis(1) if size == 1 else next(remaining) for size in shape]
    value = operands[0].single_value()
    if not np.isnan(value):
        axes = [axis.with_known(np.full(axis.size, value)) for axis in axes]
    return [TracedArray(tuple(axes), value)]


def _reshape_block(tracer: Tracer, block: list[Axis], sizes: list[int]) -> list[Axis]:
    """Axes of these sizes from axes with as many entries."""
    if len(block) == len(sizes) == 1:
        return block
    merged = block[0] if len(block) == 1 else _merge(tracer, block)
    return [merged] if len(sizes) == 1 else _split(tracer, merged, sizes)


def _split(tracer: Tracer, axis: Axis, sizes: list[int]) -> list[Axis]:
    """Several axes of one. A slice along one of them is known if all its entries are equal."""
    labels: list[np.ndarray | None] = [None] * len(sizes)
    if axis.labels is not None:
        labels = tracer.split(axis.labels, sizes)
    values = axis.known_values().reshape(sizes)
    axes = []
    for k, size in enumerate(sizes):
        rows = np.moveaxis(values, k, 0).reshape(size, -1)
        known = np.where((rows == rows[:, :1]).all(1), rows[:, 0], np.nan)
        known[np.isposinf(rows).any(1)] = np.inf
        axes.append(Axis(size, labels[k], known))
    return axes


def _merge(tracer: Tracer, block: list[Axis]) -> Axis:
    """One axis of several: an index of it goes when its index of any of them goes."""
    sizes = [axis.size for axis in block]
    indices = np.unravel_index(np.arange(math.prod(sizes)), sizes)  # of the old axes, by new index
    known = np.full(math.prod(sizes), np.nan)
    for axis, index in zip(block, indices, strict=True):
        values = axis.known_values()[index]
        known = np.where(np.isnan(known) | np.isposinf(values), values, known)
    pairs = zip(block, indices, strict=True)
    parts = [axis.labels[index] for axis, index in pairs if axis.labels is not None]
    labels = None if not parts else parts[0] if len(parts) == 1 else tracer.merge(parts)
    return Axis(known.size, labels, known)


def concatenate(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Chains the labels of one axis, and joins the other axes."""
    axes = []
    for k in range(len(operands[0].axes)):
        parts = [array.axes[k] for array in operands]
        if k == eqn.params["dimension"]:
            axes.append(_chain(tracer, parts))
        else:
            axes.append(tracer.join(parts, "concatenate").with_known(common_known(parts)))
    return [TracedArray.of(axes)]


def _chain(tracer: Tracer, parts: Sequence[Axis]) -> Axis:
    """One axis after the other. A part without labels gets new ones, which are frozen."""
    size = sum(part.size for part in parts)
    known = np.concatenate([part.known_values() for part in parts])
    if all(part.labels is None for part in parts):
        return Axis(size, None, known)
    chained = []
    for part in parts:
        labels = part.labels
        if labels is None:
            labels = tracer.new_labels(part.size)
            if part.size > 1:
                reason = "it meets an input, a constant or padding in a concatenated axis"
                tracer.freeze(labels, reason)
        chained.append(labels)
    return Axis(size, np.concatenate(chained), known)


def stack(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Joins the axes of arrays that are put next to each other along a new axis."""
    axes = []
    for k in range(len(operands[0].axes)):
        parts = [array.axes[k] for array in operands]
        axes.append(tracer.join(parts, "stack").with_known(common_known(parts)))
    values = np.array([array.single_value() for array in operands])
    axes.insert(eqn.params["axis"], Axis(len(operands), None, values))
    return [TracedArray.of(axes)]


def unstack(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Takes each index of an axis by itself: the number of results can't change."""
    k, axes = eqn.params["axis"], list(operands[0].axes)
    taken = axes.pop(k)
    tracer.freeze(taken.labels, "unstack makes an array of each index of it")
    values = taken.known_values() if not axes else np.full(taken.size, np.nan)
    return [TracedArray(tuple(axes), float(value)) for value in values]


def tile(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Repeats axes. An axis of length 1 becomes a new one, as in `broadcast_in_dim`."""
    axes = []
    for axis, n in zip(operands[0].axes, eqn.params["reps"], strict=True):
        labels = None if axis.labels is None else np.tile(axis.labels, n)
        if axis.size == 1 and n > 1:
            labels = tracer.new_labels(n)
        axes.append(
            axis if n == 1 else Axis(axis.size * n, labels, np.tile(axis.known_values(), n))
        )
    return [TracedArray.of(axes)]


def pad(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Adds constants at the ends of axes; they get labels of their own."""
    array, padding_value = operands[0], operands[1].scalar
    config = eqn.params["padding_config"]
    any_padding = any(amounts != (0, 0, 0) for amounts in config)
    axes = []
    for k, (axis, (low, high, between)) in enumerate(zip(array.axes, config, strict=True)):
        if (low, high, between) == (0, 0, 0):
            # A slice along this axis now contains padding too.
            known = axis.known_values()
            known = np.where(known == padding_value, known, np.nan)
            axes.append(axis.with_known(known) if any_padding else axis)
        elif between == 0 and low >= 0 and high >= 0:
            ends = [Axis(size, None, np.full(size, padding_value)) for size in (low, high)]
            axes.append(_chain(tracer, [ends[0], axis, ends[1]]))
        else:
            tracer.freeze(axis.labels, "pad crops it, or puts values between its entries")
            axes.append(Axis(eqn.outvars[0].aval.shape[k]))
    return [TracedArray.of(axes)]


def slice_(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Takes a range of indices of each axis."""
    params, axes = eqn.params, operands[0].axes
    strides = params["strides"] or [1] * len(axes)
    bounds = list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))
    for axis, (start, stop, stride) in zip(axes, bounds, strict=True):
        size = stop - start
        if stride == 1 and 0 < size < axis.size and axis.size % size == 0 == start % size:
            tracer.tile(axis.labels, axis.size // size)
    return [TracedArray.of([a.take(slice(*b)) for a, b in zip(axes, bounds, strict=True)])]


def split(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Cuts one axis into consecutive parts, one per result."""
    stops = np.cumsum(eqn.params["sizes"]).tolist()
    axes, k = list(operands[0].axes), eqn.params["axis"]
    if len(set(eqn.params["sizes"])) == 1:
        tracer.tile(axes[k].labels, len(stops))
    return [
        TracedArray.of([*axes[:k], axes[k].take(slice(start, stop)), *axes[k + 1 :]])
        for start, stop in zip([0, *stops[:-1]], stops, strict=True)
    ]


def rev(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Reverses axes."""
    reverse, reversed_axes = slice(None, None, -1), eqn.params["dimensions"]
    axes = [a.take(reverse) if k in reversed_axes else a for k, a in enumerate(operands[0].axes)]
    return [TracedArray.of(axes)]


def dynamic_slice(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Reads or writes a slice at a position that only the running program knows.

    Axes that the slice takes whole pass; the others are frozen.
    """
    name = eqn.primitive.name
    shape = eqn.outvars[0].aval.shape
    update = name == "dynamic_update_slice"
    arrays = operands[:2] if update else operands[:1]
    slice_sizes = [axis.size for axis in operands[1].axes] if update else shape
    axes = []
    for k, size in enumerate(slice_sizes):
        parts = [array.axes[k] for array in arrays]
        if size == parts[0].size:
            axes.append(tracer.join(parts, name).with_known(common_known(parts)))
        else:
            for part in parts:
                tracer.freeze(part.labels, f"{name} takes a part of it at a position it computes")
            axes.append(Axis(shape[k]))
    return [TracedArray.of(axes)]


def gather(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Looks up slices of a table: axes taken whole pass, and those that are indexed freeze."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    table = operands[0].axes
    removed = (*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ()))
    remaining = [k for k in range(len(sizes)) if k not in removed]
    whole = [k for k in remaining if sizes[k] == table[k].size]
    for k, axis in enumerate(table):
        if k not in whole:
            tracer.freeze(axis.labels, "it is indexed by data (gather)")
    axes = [Axis(size) for size in eqn.outvars[0].aval.shape]
    for position, k in zip(numbers.offset_dims, remaining, strict=True):
        if k in whole:
            axes[position] = table[k]
    return [TracedArray.of(axes)]
