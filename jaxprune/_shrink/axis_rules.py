"""What each primitive does to the axes of its operands, and to what is known of their values.

A rule takes the tracer, the equation and one `Value` per operand, and returns one per result. What
has no rule freezes all that it touches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune._shrink import axis_shapes as shapes
from jaxprune._shrink.constant_folding import ELEMENTWISE, computed, computer
from jaxprune._shrink.tracer import LENGTH, WINDOW, Axis, Tracer, Value, fixed

Values = Sequence[Value]


def elementwise(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Operands have the axes of the result; some are scalars, or have an axis of length one."""
    name = eqn.primitive.name
    if name == "optimization_barrier":
        return list(ins)
    compute = computer(eqn)
    axes = []
    for k, size in enumerate(eqn.outvars[0].aval.shape):
        of_size = [v.axes[k] for v in ins if v.axes and v.axes[k].size == size]
        axis = t.join(of_size, name)
        known = None
        if compute and any(v.axes and v.axes[k].known is not None for v in ins):
            known = computed(compute, name, [_along(value, k, axis.size) for value in ins])
        axes.append(Axis(axis.size, axis.labels, known))
    scalar = np.nan
    if compute and not axes:
        scalar = float(computed(compute, name, [np.array([v.scalar]) for v in ins])[0])
    return [Value(tuple(axes), scalar)]


def _along(value: Value, k: int, size: int) -> np.ndarray:
    """What is known of an operand at each index of an axis of the result."""
    known = value.axes[k].value() if value.axes else np.array([value.scalar])
    return np.broadcast_to(known, (size,))


# Products


def dot_general(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """A result is zero where a factor is; the axes summed over are where units may end."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    left, right = ins
    name = eqn.primitive.name
    for i, k in zip(lc, rc, strict=True):
        t.read((left.axes[i], right.axes[k]), (left.weights, right.weights), name)
    axes = []
    for i, k in zip(lb, rb, strict=True):
        zero = left.axes[i].zero() | right.axes[k].zero()
        joined = t.join([left.axes[i], right.axes[k]], name)
        axes.append(_zero_at(joined, zero))
    for value, used in ((left, (*lc, *lb)), (right, (*rc, *rb))):
        axes += [_zero_at(a, a.zero()) for i, a in enumerate(value.axes) if i not in used]
    return [_all_zero(axes) if 0.0 in (left.everywhere(), right.everywhere()) else Value.of(axes)]


def conv_general_dilated(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Channels as in a product; windows and pictures are fixed; depthwise channels are joined."""
    numbers, n_groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    x, kernel = ins
    spec_x, spec_k, spec_out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    batch, into = x.axes[spec_x[0]], x.axes[spec_x[1]]
    out, of = kernel.axes[spec_k[0]], kernel.axes[spec_k[1]]
    for k in spec_k[2:]:
        t.freeze(kernel.axes[k].labels, WINDOW)
    for k in spec_x[2:]:
        t.freeze(x.axes[k].labels, "a convolution runs over it")
    channels = _zero_at(out, out.zero())
    if eqn.params["batch_group_count"] != 1 or (n_groups > 1 and of.size > 1):
        t.freeze(into.labels, f"grouped convolution, {n_groups} groups")
        t.freeze(of.labels, f"grouped convolution, {n_groups} groups")
        t.freeze(out.labels, f"grouped convolution, {n_groups} groups")
        channels = Axis(out.size)
    elif n_groups > 1:  # depthwise: each input channel makes its own outputs
        each = np.repeat(np.arange(into.size), out.size // into.size)
        channels = t.join([into.at(each), out], "depthwise convolution")
        channels = _zero_at(channels, into.zero()[each] | out.zero())
    else:
        t.read((into, of), (x.weights, kernel.weights), eqn.primitive.name)
    axes = [Axis(n) for n in eqn.outvars[0].aval.shape]
    axes[spec_out[0]], axes[spec_out[1]] = _zero_at(batch, batch.zero()), channels
    return [Value.of(axes)]


def _zero_at(axis: Axis, zero: np.ndarray) -> Axis:
    """The axis with this known of it: zero there, nothing elsewhere."""
    return Axis(axis.size, axis.labels, np.where(zero, 0.0, np.nan) if zero.any() else None)


def _all_zero(axes: Sequence[Axis]) -> Value:
    return Value(tuple(_zero_at(axis, np.ones(axis.size, bool)) for axis in axes), 0.0)


# Reductions


def reduction(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """What is reduced over stays whole: means and norms depend on how many there are."""
    name, over = eqn.primitive.name, eqn.params["axes"]
    for k in over:
        t.freeze(ins[0].axes[k].labels, f"{name} over it: a norm, a mean or a softmax needs all")
    axes = [axis for k, axis in enumerate(ins[0].axes) if k not in over]
    if name == "reduce_sum":
        axes = [_zero_at(axis, axis.zero()) for axis in axes]
    elif name not in ("reduce_max", "reduce_min"):
        axes = [axis.unknown() for axis in axes]
    return [Value.of(axes) for _ in eqn.outvars]


def window(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Pooling: axes with a window of one pass."""
    p, shape = eqn.params, eqn.outvars[0].aval.shape
    axes = []
    for k, axis in enumerate(ins[0].axes):
        plain = p["window_dimensions"][k] == 1 and axis.size == shape[k]
        if not plain:
            t.freeze(axis.labels, "it is pooled")
            axes.append(Axis(shape[k]))
        elif eqn.primitive.name == "reduce_window_sum":
            axes.append(_zero_at(axis, axis.zero()))
        else:
            axes.append(axis)
    return [Value.of(axes)]


def along(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Running sums, sorting: the axis they run along stays whole."""
    k = eqn.params.get("axis", eqn.params.get("dimension"))
    for value in ins:
        t.freeze(value.axes[k].labels, f"{eqn.primitive.name} along it")
    outs = []
    for value in ins:
        axes = [Axis(a.size) if i == k else a.unknown() for i, a in enumerate(value.axes)]
        outs.append(Value.of(axes))
    return outs


def source(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """Numbers that the program makes itself: counts, random bits."""
    t.freeze_all(ins, f"{eqn.primitive.name} of it")
    return [fixed(var.aval.shape) for var in eqn.outvars]


# Programs within programs


def call(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """A function called once."""
    keys = [key for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params]
    return t.within(eqn, keys[0], ins) if keys else []


def scan(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """A loop over slices; the carry is of one kind before and after each step."""
    p = eqn.params
    n, m = _scan_parts(p)
    for value in ins[n + m :]:
        t.freeze(value.axes[0].labels, LENGTH)
    slices = [Value(v.axes[1:], _first_known(v), v.weights) for v in ins[n + m :]]

    def step(carry: Values) -> list[Value]:
        return t.within(eqn, "jaxpr", [*ins[:n], *carry, *slices])

    outs = _looped(t, step, ins[n : n + m])
    return [
        *outs[:m],
        *(Value((Axis(p["length"]), *out.axes)) for out in outs[m:]),
    ]


def _scan_parts(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constant, and how many are its carry."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # from jax 0.11 on
    return len(consts), len(carry)


def while_(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """A loop of unknown length."""
    p = eqn.params
    a, b = p["cond_nconsts"], p["body_nconsts"]

    def step(carry: Values) -> list[Value]:
        return t.within(eqn, "body_jaxpr", [*ins[a : a + b], *carry])

    carry = _looped(t, step, ins[a + b :])
    t.within(eqn, "cond_jaxpr", [*ins[:a], *carry])
    return carry


def _first_known(value: Value) -> float:
    """The entry of a slice without axes, where all of them hold the same."""
    return value.everywhere() if len(value.axes) == 1 else np.nan


def _looped(t: Tracer, step: Callable[[Values], list[Value]], carry: Values) -> list[Value]:
    """The results of a step that may be any of the loop, the last carry first."""
    n = len(carry)
    carry = [Value(v.axes, v.scalar) for v in carry]
    while True:
        outs = step(carry)
        after = [_either(t, pair) for pair in zip(carry, outs[:n], strict=True)]
        if all(map(_same_known, carry, after)):
            return [*after, *outs[n:]]
        carry = after


def cond(t: Tracer, eqn: Any, ins: Values) -> list[Value]:
    """One of several branches."""
    n = len(eqn.params["branches"])
    branches = [t.within(eqn, "branches", ins[1:], i) for i in range(n)]
    return [_either(t, outs) for outs in zip(*branches, strict=True)]


def _either(t: Tracer, values: Values) -> Value:
    """What holds of all of these: they are in one place of a program at different times."""
    axes = []
    for parts in zip(*(value.axes for value in values), strict=True):
        known = [part.value() for part in parts]
        same = np.all([k == known[0] for k in known], axis=0)
        joined = t.join(parts, "a loop or a branch")
        axes.append(Axis(joined.size, joined.labels, np.where(same, known[0], np.nan)))
    scalars = {value.scalar for value in values}
    return Value(tuple(axes), scalars.pop() if len(scalars) == 1 else np.nan)


def _same_known(a: Value, b: Value) -> bool:
    known = zip(a.axes, b.axes, strict=True)
    axes = all(np.array_equal(x.value(), y.value(), equal_nan=True) for x, y in known)
    return axes and (a.scalar == b.scalar or np.isnan(b.scalar) == np.isnan(a.scalar))


_REDUCTIONS = ("sum", "max", "min", "prod", "and", "or", "xor")
_CALLS = "pjit jit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr"
_SOURCES = "iota random_bits random_seed random_wrap random_unwrap random_split random_fold_in"
RULES: dict[str, Callable[..., list[Value]]] = {
    **dict.fromkeys((*ELEMENTWISE, "integer_pow", "convert_element_type"), elementwise),
    **dict.fromkeys([f"reduce_{name}" for name in _REDUCTIONS], reduction),
    **dict.fromkeys(("argmax", "argmin"), reduction),
    **dict.fromkeys([f"reduce_window_{name}" for name in ("max", "min", "sum")], window),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort"), along),
    **dict.fromkeys((*_CALLS.split(), "remat", "remat2", "checkpoint"), call),
    **dict.fromkeys((*_SOURCES.split(), "threefry2x32", "rng_bit_generator"), source),
    **dict.fromkeys(("dynamic_slice", "dynamic_update_slice"), shapes.dynamic),
    "dot_general": dot_general,
    "conv_general_dilated": conv_general_dilated,
    "transpose": shapes.transpose,
    "squeeze": shapes.squeeze,
    "broadcast_in_dim": shapes.broadcast_in_dim,
    "reshape": shapes.reshape,
    "concatenate": shapes.concatenate,
    "pad": shapes.pad,
    "slice": shapes.slice_,
    "split": shapes.split,
    "rev": shapes.rev,
    "gather": shapes.gather,
    "scan": scan,
    "while": while_,
    "cond": cond,
}
