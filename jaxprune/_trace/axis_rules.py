"""What each primitive does to the axes of its operands: `RULES`, one rule per primitive.

A rule takes the tracer, the equation and one `TracedArray` per operand. It joins, freezes or
contracts axes of the operands, and returns one `TracedArray` per result, with labels and known
values. If the shapes that it returns are not those in the program, the tracer treats the primitive
as one without a rule.

This module has the rules that compute something: elementwise functions, products, reductions, and
loops and calls, which follow an inner program. Rules that only move entries are in `axis_shapes`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune._trace import axis_shapes as shapes
from jaxprune._trace.constant_folding import ELEMENTWISE, fold, numpy_function
from jaxprune._trace.records import SCANNED, WINDOW
from jaxprune._trace.traced_arrays import (
    Axis,
    TracedArray,
    common_known,
    fixed_array,
    zeros_of_product,
)
from jaxprune._trace.tracer import Rule, Tracer, scan_counts

Arrays = Sequence[TracedArray]


def elementwise(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Joins the axes of the operands. Scalars and axes of length 1 broadcast, and join nothing."""
    name = eqn.primitive.name
    if name == "optimization_barrier":  # has as many results as operands
        return list(operands)
    function = numpy_function(eqn)
    axes = []
    for k, size in enumerate(eqn.outvars[0].aval.shape):
        axis = tracer.join([a.axes[k] for a in operands if a.axes and a.axes[k].size == size], name)
        if function and any(a.axes and a.axes[k].known is not None for a in operands):
            known = [_known_along(array, k, size) for array in operands]
            axis = axis.with_known(fold(function, name, known))
        axes.append(axis)
    scalar = np.nan
    if function and not axes:
        scalar = float(fold(function, name, [np.array([a.scalar]) for a in operands])[0])
    return [TracedArray(tuple(axes), scalar)]


def _known_along(array: TracedArray, k: int, size: int) -> np.ndarray:
    """The known values of an operand for each index of axis `k` of the result."""
    known = array.axes[k].known_values() if array.axes else np.array([array.scalar])
    return np.broadcast_to(known, (size,))


# Products


def dot_general(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Contracts the axes summed over, joins batch axes, and is zero where a factor is zero."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = operands
    name = eqn.primitive.name
    for i, k in zip(left_sum, right_sum, strict=True):
        pair = (left.axes[i], right.axes[k])
        tracer.contract(pair, (left.from_params, right.from_params), name)
    axes = []
    for i, k in zip(left_batch, right_batch, strict=True):
        known = zeros_of_product(left.axes[i].known_values(), right.axes[k].known_values())
        axes.append(tracer.join([left.axes[i], right.axes[k]], name).with_known(known))
    for array, used in ((left, (*left_sum, *left_batch)), (right, (*right_sum, *right_batch))):
        free = [axis for i, axis in enumerate(array.axes) if i not in used]
        tracer.produce(array, free)
        axes += [axis.zeros_only() for axis in free]
    if 0.0 in (left.single_value(), right.single_value()):
        zeros = [axis.with_zeros(np.ones(axis.size, bool)) for axis in axes]
        return [TracedArray(tuple(zeros), 0.0)]
    return [TracedArray.of(axes)]


def conv_general_dilated(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Contracts the channels like a matrix product; spatial axes and windows are frozen."""
    numbers = eqn.params["dimension_numbers"]
    (batch, channels_in, *spatial), (out, into, *window) = numbers.lhs_spec, numbers.rhs_spec
    x, kernel = operands
    for k in window:
        tracer.freeze(kernel.axes[k].labels, WINDOW)
    for k in spatial:
        tracer.freeze(x.axes[k].labels, "a convolution slides along it")
    of_input, of_kernel, outputs = x.axes[channels_in], kernel.axes[into], kernel.axes[out]
    n_groups = eqn.params["feature_group_count"]
    tracer.produce(kernel, [outputs])
    if eqn.params["batch_group_count"] != 1:
        reason = "it has the channels of a convolution with batch groups"
        for axis in (x.axes[batch], of_input, of_kernel, outputs):
            tracer.freeze(axis.labels, reason)
        channels = Axis(outputs.size)
    elif n_groups > 1 and of_kernel.size == 1:
        channels = _depthwise(tracer, of_input, outputs)
    else:
        # Each group reads its own channels, at the same indices of the kernel, and makes as many
        # outputs as any other group.
        repeated = of_kernel.take(np.tile(np.arange(of_kernel.size), n_groups))
        from_params = (x.from_params, kernel.from_params)
        tracer.contract((of_input, repeated), from_params, eqn.primitive.name)
        tracer.tile(outputs.labels, n_groups, forced=True)
        channels = outputs.zeros_only()
    axes = [Axis(size) for size in eqn.outvars[0].aval.shape]
    axes[numbers.out_spec[0]] = x.axes[batch].zeros_only()
    axes[numbers.out_spec[1]] = channels
    return [TracedArray.of(axes)]


def _depthwise(tracer: Tracer, channels_in: Axis, channels_out: Axis) -> Axis:
    """The output channels of a depthwise convolution: each input channel makes its own outputs."""
    source = np.repeat(np.arange(channels_in.size), channels_out.size // channels_in.size)
    channels = tracer.join([channels_in.take(source), channels_out], "a depthwise convolution")
    known = zeros_of_product(channels_in.known_values()[source], channels_out.known_values())
    return channels.with_known(known)


# Reductions


def reduction(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Freezes the axes reduced over: a mean or a norm changes with the number of entries."""
    name, reduced = eqn.primitive.name, eqn.params["axes"]
    for k in reduced if name != "reduce_sum" or tracer.freeze_sums else ():
        reason = f"{name} runs over it: a norm, a mean or a softmax depends on every entry"
        tracer.freeze(operands[0].axes[k].labels, reason)
    axes = [axis for k, axis in enumerate(operands[0].axes) if k not in reduced]
    if name == "reduce_sum":
        axes = [axis.zeros_only() for axis in axes]
    elif name not in ("reduce_max", "reduce_min"):
        axes = [axis.with_known(_infinite(axis)) for axis in axes]
    return [TracedArray.of(axes) for _ in eqn.outvars]


def _infinite(axis: Axis) -> np.ndarray:
    """The known values of an axis that are not finite; NaN elsewhere."""
    known = axis.known_values()
    return np.where(np.isposinf(known), known, np.nan)


def pooling(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Freezes the axes that a window slides along. The others are unchanged."""
    params, shape = eqn.params, eqn.outvars[0].aval.shape
    axes = []
    for k, axis in enumerate(operands[0].axes):
        unchanged = params["window_dimensions"][k] == 1 and axis.size == shape[k]
        if not unchanged:
            tracer.freeze(axis.labels, f"pooling ({eqn.primitive.name}) slides along it")
            axes.append(Axis(shape[k]))
        elif eqn.primitive.name == "reduce_window_sum":
            axes.append(axis.zeros_only())
        else:
            axes.append(axis)
    return [TracedArray.of(axes)]


def cumulative(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Freezes the axis that a running sum or a sort goes along."""
    k = eqn.params.get("axis", eqn.params.get("dimension"))
    reason = f"{eqn.primitive.name} runs along it, so each entry depends on others"
    results = []
    for array in operands:
        tracer.freeze(array.axes[k].labels, reason)
        axes = [
            Axis(a.size) if i == k else a.with_known(_infinite(a)) for i, a in enumerate(array.axes)
        ]
        results.append(TracedArray.of(axes))
    return results


def generator(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Makes arrays of the shape that the program says, such as counts and random bits."""
    tracer.freeze_all(operands, f"it is an operand of {eqn.primitive.name}")
    return [fixed_array(var.aval.shape) for var in eqn.outvars]


# Programs within programs


def call(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Follows a function that is called once."""
    keys = [key for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params]
    return tracer.run_inner(eqn, keys[0], operands) if keys else []


def scan(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Follows the body of a loop over slices, and freezes the axis that is looped over."""
    n_consts, n_carry = scan_counts(eqn.params)
    consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
    stacked = operands[n_consts + n_carry :]
    for array in stacked:
        tracer.freeze(array.axes[0].labels, SCANNED)
    slices = [TracedArray(a.axes[1:], _slice_scalar(a), a.from_params) for a in stacked]

    def body(carry: Arrays) -> list[TracedArray]:
        return tracer.run_inner(eqn, "jaxpr", [*consts, *carry, *slices])

    results = _loop(tracer, body, carry)
    length = Axis(eqn.params["length"])
    collected = [TracedArray.of([length, *array.axes]) for array in results[n_carry:]]
    return [*results[:n_carry], *collected]


def _slice_scalar(stacked: TracedArray) -> float:
    """`TracedArray.scalar` of each slice of an array that a scan loops over."""
    return stacked.single_value() if len(stacked.axes) == 1 else np.nan


def while_(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Follows the body and the condition of a loop of unknown length."""
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]

    def body(carry: Arrays) -> list[TracedArray]:
        return tracer.run_inner(eqn, "body_jaxpr", [*body_consts, *carry])

    carry = _loop(tracer, body, operands[n_cond + n_body :])
    tracer.run_inner(eqn, "cond_jaxpr", [*cond_consts, *carry])
    return carry


def cond(tracer: Tracer, eqn: Any, operands: Arrays) -> list[TracedArray]:
    """Follows every branch; what holds in all of them holds of the results."""
    n_branches = len(eqn.params["branches"])
    branches = [tracer.run_inner(eqn, "branches", operands[1:], i) for i in range(n_branches)]
    return [_merged(tracer, arrays) for arrays in zip(*branches, strict=True)]


def _loop(
    tracer: Tracer, body: Callable[[Arrays], list[TracedArray]], carry: Arrays
) -> list[TracedArray]:
    """Follows the body until the known values of the carry hold before and after every step.

    Returns:
      The results of the body, with the merged carry in place of the last one.
    """
    n_carry = len(carry)
    carry = [TracedArray(array.axes, array.scalar) for array in carry]
    while True:
        results = body(carry)
        merged = [_merged(tracer, pair) for pair in zip(carry, results[:n_carry], strict=True)]
        if all(map(_same_known, carry, merged)):
            return [*merged, *results[n_carry:]]
        carry = merged


def _merged(tracer: Tracer, arrays: Arrays) -> TracedArray:
    """What holds of all these arrays, which are one variable of the program at different times."""
    axes = []
    for parts in zip(*(array.axes for array in arrays), strict=True):
        axes.append(tracer.join(parts, "a loop or a branch").with_known(common_known(parts)))
    scalars = {array.scalar for array in arrays}
    return TracedArray(tuple(axes), scalars.pop() if len(scalars) == 1 else np.nan)


def _same_known(a: TracedArray, b: TracedArray) -> bool:
    """Whether the same values are known of two arrays."""
    same_axes = all(
        np.array_equal(x.known_values(), y.known_values(), equal_nan=True)
        for x, y in zip(a.axes, b.axes, strict=True)
    )
    return same_axes and (a.scalar == b.scalar or np.isnan(b.scalar) == np.isnan(a.scalar))


_REDUCTIONS = ("sum", "max", "min", "prod", "and", "or", "xor")
_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort")
_CALLS = (
    *("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)
_GENERATORS = (
    *("iota", "threefry2x32", "rng_bit_generator", "random_bits", "random_seed", "random_wrap"),
    *("random_unwrap", "random_split", "random_fold_in"),
)
RULES: dict[str, Rule] = {
    **dict.fromkeys((*ELEMENTWISE, "integer_pow", "convert_element_type"), elementwise),
    **dict.fromkeys([f"reduce_{name}" for name in _REDUCTIONS], reduction),
    **dict.fromkeys(("argmax", "argmin"), reduction),
    **dict.fromkeys([f"reduce_window_{name}" for name in ("max", "min", "sum")], pooling),
    **dict.fromkeys(_CUMULATIVE, cumulative),
    **dict.fromkeys(_CALLS, call),
    **dict.fromkeys(_GENERATORS, generator),
    **dict.fromkeys(("dynamic_slice", "dynamic_update_slice"), shapes.dynamic_slice),
    "dot_general": dot_general,
    "conv_general_dilated": conv_general_dilated,
    "transpose": shapes.transpose,
    "squeeze": shapes.squeeze,
    "broadcast_in_dim": shapes.broadcast_in_dim,
    "reshape": shapes.reshape,
    "concatenate": shapes.concatenate,
    "stack": shapes.stack,
    "unstack": shapes.unstack,
    "tile": shapes.tile,
    "pad": shapes.pad,
    "slice": shapes.slice_,
    "split": shapes.split,
    "rev": shapes.rev,
    "gather": shapes.gather,
    "scan": scan,
    "while": while_,
    "cond": cond,
}
