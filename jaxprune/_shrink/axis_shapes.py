"""What primitives that move entries, and compute nothing, do to the axes of their operands.

Rules as in `axis_rules`: of the tracer, the equation and a `Value` per operand.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune._shrink.tracer import Axis, Tracer, Value, fixed

Values = Sequence[Value]


def transpose(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Axes in another order."""
    return [Value.of([ins[0].axes[k] for k in eqn.params["permutation"]])]


def squeeze(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Axes of length one go."""
    gone = eqn.params["dimensions"]
    axes = [axis for k, axis in enumerate(ins[0].axes) if k not in gone]
    return [Value(tuple(axes), ins[0].everywhere() if not axes else np.nan)]


def broadcast_in_dim(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """New axes are as long as the program says: they join whatever they meet."""
    known = ins[0].everywhere()
    axes = []
    for n in eqn.outvars[0].aval.shape:
        values = None if np.isnan(known) else np.full(n, known)
        axes.append(Axis(n, t.fresh(n) if n > 1 else None, values))
    for axis, k in zip(ins[0].axes, eqn.params["broadcast_dimensions"], strict=True):
        if axis.size == axes[k].size:
            axes[k] = axis
    return [Value.of(axes)]


def reshape(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Splits and merges: the unit of a split axis is an index of its leading part."""
    shape = [int(n) for n in eqn.outvars[0].aval.shape]
    old = [axis for axis in ins[0].axes if axis.size != 1]
    new = [n for n in shape if n != 1]
    everywhere = ins[0].everywhere()
    if 0 in shape:
        t.freeze_all(ins, "reshape of an empty array")
        return [fixed(shape)]
    found: list[Axis] = []
    while old or new:
        block, sizes = [old.pop(0)], [new.pop(0)]
        while math.prod(a.size for a in block) != math.prod(sizes):
            if math.prod(a.size for a in block) < math.prod(sizes):
                block.append(old.pop(0))
            else:
                sizes.append(new.pop(0))
        found += _reshaped(t, block, sizes)
    rest = iter(found)
    axes = [Axis(1) if n == 1 else next(rest) for n in shape]
    if not np.isnan(everywhere):
        axes = [Axis(a.size, a.labels, np.full(a.size, everywhere)) for a in axes]
    return [Value(tuple(axes), everywhere)]


def _reshaped(t: Tracer, block: list[Axis], sizes: list[int]) -> list[Axis]:
    if len(block) == len(sizes) == 1:
        return block
    if len(sizes) == 1:
        return [_merged(t, block)]
    if len(block) > 1:
        for axis in block:
            t.freeze(axis.labels, "reshape regroups it with other axes")
        return [Axis(n) for n in sizes]
    axis = block[0]
    if axis.labels is None:
        return [Axis(n) for n in sizes]
    rows = axis.labels.reshape(sizes[0], -1)
    for k in range(1, rows.shape[1]):
        t.union(rows[:, 0], rows[:, k])
    values = axis.value().reshape(sizes[0], -1)
    known = np.where((values == values[:, :1]).all(1), values[:, 0], np.nan)
    return [Axis(sizes[0], rows[:, 0].copy(), known), *(Axis(n) for n in sizes[1:])]


def _merged(t: Tracer, block: list[Axis]) -> Axis:
    """One axis of several: units of one of them, repeated; the others must stay."""
    sizes = [axis.size for axis in block]
    labelled = [k for k, axis in enumerate(block) if axis.labels is not None]
    for k in labelled[1:]:
        t.freeze(block[k].labels, "reshape merges it with another axis")
    index = np.arange(math.prod(sizes)).reshape(sizes)
    where = np.unravel_index(index.reshape(-1), sizes)
    known = np.full(index.size, np.nan)
    for axis, mine in zip(block, where, strict=True):
        known = np.where(np.isnan(known), axis.value()[mine], known)
    labels = block[labelled[0]].labels if labelled else None
    return Axis(index.size, None if labels is None else labels[where[labelled[0]]], known)


def concatenate(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """One axis after the other; the remaining axes are joined."""
    d = eqn.params["dimension"]
    axes = []
    for k in range(len(ins[0].axes)):
        parts = [value.axes[k] for value in ins]
        if k == d:
            axes.append(_chained(t, parts))
            continue
        values = [part.value() for part in parts]
        same = np.all([v == values[0] for v in values], axis=0)
        joined = t.join(parts, "concatenate")
        axes.append(Axis(joined.size, joined.labels, np.where(same, values[0], np.nan)))
    return [Value.of(axes)]


def _chained(t: Tracer, parts: Sequence[Axis]) -> Axis:
    size = sum(part.size for part in parts)
    known = np.concatenate([part.value() for part in parts])
    if all(part.labels is None for part in parts):
        return Axis(size, None, known)
    labels = []
    for part in parts:
        labels.append(t.fresh(part.size) if part.labels is None else part.labels)
        if part.labels is None and part.size > 1:
            t.freeze(labels[-1], "it is chained to an input or a constant")
    return Axis(size, np.concatenate(labels), known)


def pad(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Zeros around an axis are units that stay."""
    value, fill = ins[0], ins[1].scalar
    config = eqn.params["padding_config"]
    axes = []
    for k, (axis, (low, high, inner)) in enumerate(zip(value.axes, config, strict=True)):
        size = eqn.outvars[0].aval.shape[k]
        if (low, high, inner) == (0, 0, 0):
            padded = any(config[i] != (0, 0, 0) for i in range(len(config)))
            axes.append(axis.only(axis.value() == fill) if padded else axis)
        elif inner == 0 and low >= 0 and high >= 0:
            ends = [Axis(n, None, np.full(n, fill)) for n in (low, high)]
            axes.append(_chained(t, [ends[0], axis, ends[1]]))
        else:
            t.freeze(axis.labels, "it is cropped or spread by pad")
            axes.append(Axis(size))
    return [Value.of(axes)]


def slice_(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Some indices of each axis."""
    p = eqn.params
    strides = p["strides"] or [1] * len(ins[0].axes)
    where = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return [Value.of([a.at(slice(*w)) for a, w in zip(ins[0].axes, where, strict=True)])]


def split(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Several slices of one axis."""
    ends = np.cumsum(eqn.params["sizes"]).tolist()
    starts = [0, *ends[:-1]]
    k = eqn.params["axis"]
    return [
        Value.of([a.at(slice(lo, hi)) if i == k else a for i, a in enumerate(ins[0].axes)])
        for lo, hi in zip(starts, ends, strict=True)
    ]


def rev(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Axes backwards."""
    back = eqn.params["dimensions"]
    return [
        Value.of(
            [a.at(slice(None, None, -1)) if k in back else a for k, a in enumerate(ins[0].axes)]
        )
    ]


def dynamic(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Slices at places that are only known at run time: axes taken whole pass."""
    name = eqn.primitive.name
    parts = ins[:2] if name == "dynamic_update_slice" else ins[:1]
    taken = [a.size for a in ins[1].axes] if len(parts) > 1 else eqn.outvars[0].aval.shape
    axes = []
    for k, size in enumerate(taken):
        axis = ins[0].axes[k]
        if size == axis.size:
            known = [part.axes[k].value() for part in parts]
            same = np.all([v == known[0] for v in known], axis=0)
            labels = t.join([part.axes[k] for part in parts], name).labels
            axes.append(Axis(axis.size, labels, np.where(same, known[0], np.nan)))
        else:
            for part in parts:
                t.freeze(part.axes[k].labels, f"{name} of a part of it")
            axes.append(Axis(eqn.outvars[0].aval.shape[k]))
    return [Value.of(axes)]


def gather(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Rows of a table: the axis that is indexed stays, those taken whole pass."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ()))
    axes = [Axis(n) for n in eqn.outvars[0].aval.shape]
    kept = [k for k in range(len(sizes)) if k not in gone]
    whole = [k for k in kept if sizes[k] == ins[0].axes[k].size]
    for k, axis in enumerate(ins[0].axes):
        if k not in whole:
            t.freeze(axis.labels, "it is indexed by data (gather)")
    for place, k in zip(numbers.offset_dims, kept, strict=True):
        if k in whole:
            axes[place] = ins[0].axes[k]
    return [Value.of(axes)]
