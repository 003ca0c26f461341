"""The moments of a model's inputs, slowly: every weight is followed by its index.

The program runs equation by equation in Python, loops included. Beside each array that is computed
from params alone run integer arrays of the same shape, one per leaf, that say which entry of the
leaf each of its entries is: the primitives that move entries move the integers, too. At a product,
the integers say which weights each output sums over, and so which rows of the leaf the inputs meet.
NumPy computes what it can: JAX compiles a program for each operation and shape.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._trace.tracer import is_literal, scan_counts

MOVES = {"transpose", "reshape", "squeeze", "broadcast_in_dim", "slice", "dynamic_slice", "gather"}
MOVES |= {"rev", "concatenate", "pad", "split", "stack", "dynamic_update_slice", "expand_dims"}
PRODUCTS = {"dot_general", "conv_general_dilated", "ragged_dot_general"}


class Traced:
    """A value, and for each leaf in it the index of the weight that each entry is (-1 for none)."""

    def __init__(self, value, indices=None, is_data=False):
        self.value, self.indices, self.is_data = value, indices or {}, is_data


class Oracle:
    """Adds up moments in float64.

    Args:
      views: number of a leaf -> its `KernelView`, with groups.
    """

    def __init__(self, views):
        self.views = views
        self.grams = {
            leaf: np.zeros((view.n_matrices, view.n_rows, view.n_rows))
            for leaf, view in views.items()
        }

    def run(self, jaxpr, consts, operands):
        env = dict(zip(jaxpr.invars, operands, strict=True))
        env |= {var: Traced(x) for var, x in zip(jaxpr.constvars, consts, strict=True)}

        def value_of(var):
            return Traced(np.asarray(var.val, var.aval.dtype)) if is_literal(var) else env[var]

        for eqn in jaxpr.eqns:
            env |= zip(eqn.outvars, self.apply(eqn, [value_of(v) for v in eqn.invars]), strict=True)
        return [value_of(var) for var in jaxpr.outvars]

    def inner(self, jaxpr, operands):
        return self.run(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), operands)

    def apply(self, eqn, operands):
        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            return self.scan(params, operands)
        if name == "while":
            return self.while_loop(params, operands)
        if name == "cond":
            return self.inner(params["branches"][int(operands[0].value)], operands[1:])
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if key in params:
                return self.inner(params[key], operands)
        results = bind(eqn, [x.value for x in operands])
        is_data = any(x.is_data for x in operands)
        if name in PRODUCTS:
            for k, operand in enumerate(operands[:2]):
                for leaf in operand.indices.keys() & self.views.keys():
                    self.product(eqn, k, leaf, operands)
            return [Traced(results[0], None, is_data)]
        leaves = dict.fromkeys(leaf for x in operands for leaf in x.indices)
        moved = {leaf: self.moved(eqn, leaf, operands, results) for leaf in leaves}
        return [
            Traced(value, {leaf: m[k] for leaf, m in moved.items() if m}, is_data)
            for k, value in enumerate(results)
        ]

    def moved(self, eqn, leaf, operands, results):
        """The indices of a leaf in the results; None if they are not of the leaf."""
        name = eqn.primitive.name
        if name in MOVES:
            n_arrays = {"dynamic_update_slice": 2, "pad": 2}.get(name, 1)
            n_arrays = len(operands) if name in ("concatenate", "stack") else n_arrays
            values = [
                x.indices.get(leaf, np.full(np.shape(x.value), -1, np.int32))
                if k < n_arrays
                else x.value
                for k, x in enumerate(operands)
            ]
            with np.errstate(invalid="ignore"):  # gather fills integers with NaN
                return [np.asarray(x) for x in bind(eqn, values)]
        shape = np.shape(results[0])
        same = [x.indices[leaf] for x in operands if leaf in x.indices]
        if any(x.is_data and not x.indices for x in operands) or same[0].ndim != len(shape):
            return None
        if name.startswith(("reduce", "cum", "arg", "sort")):
            return None
        return [np.broadcast_to(same[0], shape)] * len(results)

    def scan(self, params, operands):
        n_consts, n_carry = scan_counts(params)
        consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
        collected = []
        steps = range(params["length"])
        for i in reversed(steps) if params["reverse"] else steps:
            slices = [
                Traced(x.value[i], {k: v[i] for k, v in x.indices.items()}, x.is_data)
                for x in operands[n_consts + n_carry :]
            ]
            results = self.inner(params["jaxpr"], [*consts, *carry, *slices])
            carry = results[:n_carry]
            collected.append(results[n_carry:])
        if params["reverse"]:
            collected.reverse()
        stacked = zip(*collected, strict=True)
        return [
            *carry,
            *(Traced(stack([x.value for x in xs]), None, True) for xs in stacked),
        ]

    def while_loop(self, params, operands):
        n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
        carry = operands[n_cond + n_body :]
        while self.inner(params["cond_jaxpr"], [*operands[:n_cond], *carry])[0].value:
            body = operands[n_cond : n_cond + n_body]
            carry = self.inner(params["body_jaxpr"], [*body, *carry])
        return carry

    # Products: for every sum, the weights in it and the inputs that they are multiplied with.

    def product(self, eqn, k, leaf, operands):
        sums = {
            "dot_general": dot_sums,
            "conv_general_dilated": conv_sums,
            "ragged_dot_general": ragged_sums,
        }[eqn.primitive.name]
        x = np.asarray(operands[1 - k].value, float)
        for index, inputs in sums(eqn, k, operands[k].indices[leaf], x, operands):
            self.add(leaf, index, inputs)

    def add(self, leaf, index, inputs):
        """Adds the outer products of inputs.

        Args:
          leaf: number of the leaf.
          index: int[rows, outputs], the weights in the sum of each output.
          inputs: float[n, rows], what they are multiplied with.
        """
        view = self.views[leaf]
        gram = inputs.T @ inputs
        seen = set()
        for weights in index.T:
            kept = weights >= 0
            where = np.unravel_index(weights[kept], view.shape)

            def flat(*roles, where=where):
                axes = view.axes(*roles)
                if not axes:
                    return np.zeros(len(where[0]), int)
                return np.ravel_multi_index([where[a] for a in axes], [view.shape[a] for a in axes])

            matrices = flat("stack") * view.n_groups + flat("out") // view.n_columns
            rows = flat("in", "window")
            if not len(rows) or (matrices[0], tuple(rows)) in seen:
                continue
            assert (matrices == matrices[0]).all()
            seen.add((matrices[0], tuple(rows)))
            np.add.at(
                self.grams[leaf][matrices[0]], (rows[:, None], rows[None]), gram[kept][:, kept]
            )


# Results of an equation.


def bind(eqn, values):
    """The results, computed by NumPy where it can do it."""
    compute = IN_NUMPY.get(eqn.primitive.name)
    if compute is not None and not any(is_key(x) for x in values):
        with np.errstate(all="ignore"):
            results = compute(*map(np.asarray, values), **eqn.params)
        return [np.asarray(x) for x in (results if eqn.primitive.multiple_results else [results])]
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = eqn.primitive.bind(*functions, *values, **params)
    return results if eqn.primitive.multiple_results else [results]


def stack(values):
    return jnp.stack(values) if is_key(values[0]) else np.stack(values)


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def broadcast_in_dim(x, *, shape, broadcast_dimensions, **_):
    sizes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(x.reshape(sizes), shape)


def take_slice(x, *, start_indices, limit_indices, strides):
    strides = strides or [1] * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, strides))]


def dot_general(a, b, *, dimension_numbers, preferred_element_type, **_):
    rows, columns = (arranged(x, k, dimension_numbers) for k, x in enumerate((a, b)))
    product = np.einsum("bis,bjs->bij", rows.astype(float), columns.astype(float))
    sums, batches = dimension_numbers
    free = [
        [n for axis, n in enumerate(x.shape) if axis not in (*sums[k], *batches[k])]
        for k, x in enumerate((a, b))
    ]
    shape = [*(a.shape[axis] for axis in batches[0]), *free[0], *free[1]]
    return product.reshape(shape).astype(preferred_element_type or a.dtype)


def elementwise(function):
    return lambda *operands, **_: function(*operands)


IN_NUMPY = {
    "transpose": lambda x, *, permutation: x.transpose(permutation),
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, *, dimensions: np.squeeze(x, dimensions),
    "broadcast_in_dim": broadcast_in_dim,
    "slice": take_slice,
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "split": lambda x, *, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
    "reduce_sum": lambda x, *, axes, **_: np.sum(x, axes, x.dtype),
    "reduce_max": lambda x, *, axes, **_: np.max(x, axes),
    "dot_general": dot_general,
    **{
        name: elementwise(function)
        for name, function in {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "div": lambda x, y: (x / y).astype(x.dtype),  # of integers, too, towards zero
            "neg": np.negative,
            "max": np.maximum,
            "abs": np.abs,
            "square": np.square,
            "sqrt": np.sqrt,
            "rsqrt": lambda x: 1 / np.sqrt(x),
            "exp": np.exp,
            "tanh": np.tanh,
            "logistic": lambda x: 1 / (1 + np.exp(-x)),
            "lt": np.less,
            "gt": np.greater,
            "ge": np.greater_equal,
            "eq": np.equal,
        }.items()
    },
}


# The sums of a product.


def arranged(x, side, dimension_numbers):
    """An operand of a `dot_general` as [batch, free, summed]."""
    sums, batches = dimension_numbers
    free = [a for a in range(x.ndim) if a not in (*sums[side], *batches[side])]
    x = x.transpose([*batches[side], *free, *sums[side]])
    n, m = len(batches[side]), len(sums[side])
    sizes = x.shape[:n], x.shape[n : x.ndim - m], x.shape[x.ndim - m :]
    return x.reshape([math.prod(size) for size in sizes])


def dot_sums(eqn, k, index, x, operands):
    numbers = eqn.params["dimension_numbers"]
    pairs = zip(arranged(index, k, numbers), arranged(x, 1 - k, numbers), strict=True)
    for weights, inputs in pairs:
        yield weights.T, inputs


def ragged_sums(eqn, k, index, x, operands):
    ends = np.cumsum(operands[2].value)
    for weights, end, n in zip(index, ends, np.asarray(operands[2].value), strict=True):
        yield weights, x[end - n : end]


def conv_sums(eqn, k, index, x, operands):
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    kernel = index.transpose(numbers.rhs_spec)  # (out, in, *window)
    x = x.transpose(numbers.lhs_spec)
    out_shape = [eqn.outvars[0].aval.shape[a] for a in numbers.out_spec]
    n_groups = params["feature_group_count"]
    n_in, window = kernel.shape[1], kernel.shape[2:]
    patches = np.zeros((len(x), *out_shape[2:], x.shape[1], *window))
    for at in itertools.product(*map(range, out_shape[2:])):
        for offset in itertools.product(*map(range, window)):
            place = []
            for axis, (i, o) in enumerate(zip(at, offset, strict=True)):
                low, _ = params["padding"][axis]
                p = i * params["window_strides"][axis] + o * params["rhs_dilation"][axis] - low
                step = params["lhs_dilation"][axis]
                inside = p % step == 0 and 0 <= p // step < x.shape[2 + axis]
                place.append(p // step if inside else None)
            if None not in place:
                patches[(slice(None), *at, slice(None), *offset)] = x[
                    (slice(None), slice(None), *place)
                ]
    patches = patches.reshape(-1, n_groups, n_in * math.prod(window))
    for group, weights in enumerate(np.split(kernel, n_groups)):
        yield weights.reshape(len(weights), -1).T, patches[:, group]
