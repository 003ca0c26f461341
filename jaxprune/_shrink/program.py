"""A model's program, and whether the same model with smaller params is the same program.

What `make_jaxpr` gives of the smaller model is held against the program that was followed: the same
primitives in the same order and of the same operands, the same numbers in it, every array of the
shape that is left once the units that go are taken from its axes. A constant derived from a size,
such as 1 / sqrt(head_dim), shows here, as does code that has a size written into it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import leaves_with_paths
from jaxprune._shrink.axis_rules import RULES
from jaxprune._shrink.tracer import (
    FIXED_BY_OUTPUT,
    Axis,
    Known,
    Place,
    Tracer,
    Value,
    constant_slices,
    fixed,
    is_literal,
)

# Params of equations that no shape goes into.
_NO_SIZES = (
    *("dimension_numbers", "permutation", "dimensions", "dimension", "axes", "axis", "y"),
    *("broadcast_dimensions", "window_dimensions", "window_strides", "padding", "padding_config"),
    *("strides", "lhs_dilation", "rhs_dilation", "new_dtype", "reverse"),
)


class Program(NamedTuple):
    """A model's program, with the leaves that it was made for."""

    paths: list[str]
    leaves: list[Any]
    treedef: Any
    jaxpr: Any


def program_of(apply_fn: Callable[..., Any], variables: Any, inputs: Sequence[Any]) -> Program:
    """The program of `apply_fn(variables, *inputs)`."""
    paths, leaves, treedef = leaves_with_paths(variables)
    return Program(paths, leaves, treedef, jax.make_jaxpr(apply_fn)(variables, *inputs))


def follow(program: Program, known: Known) -> Tracer:
    """Follows a program from its params, of which something is known, to its outputs."""
    jaxpr = program.jaxpr.jaxpr
    tracer = Tracer(RULES)
    shapes = [tuple(var.aval.shape) for var in jaxpr.invars]
    n = len(program.leaves)
    args = [tracer.param(i, shape, known) for i, shape in enumerate(shapes[:n])]
    args += [fixed(shape) for shape in shapes[n:]]
    outs = tracer.run(jaxpr, program.jaxpr.consts, args)
    tracer.freeze_all(outs, FIXED_BY_OUTPUT)
    return tracer


def values_of(program: Program) -> Known:
    """What the params of a program hold."""

    def known(leaf: int, axis: int) -> np.ndarray | None:
        x = numbers[leaf]
        if x is None or axis < 0:
            return None if x is None else x.astype(np.float64).reshape(1)
        return constant_slices(x, axis)

    numbers = [_numbers(leaf) for leaf in program.leaves]
    return known


def _numbers(leaf: Any) -> np.ndarray | None:
    """A leaf as NumPy numbers; None for PRNG keys."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return None
    x = np.asarray(leaf)
    return x if x.dtype.kind in "biuf" else x.astype(np.float32)


def why_not(
    program: Program,
    tracer: Tracer,
    gone: Iterable[int],
    apply_small: Callable[..., Any],
    small: Any,
    inputs: Sequence[Any],
) -> str:
    """Why the model with these params is not the program without some units; empty if it is.

    Args:
      program: of the model before.
      tracer: that followed it.
      gone: labels of units.
      apply_small: the model, for smaller params.
      small: the params without these units, or their shapes.
      inputs: as for `apply_small`.
    """
    try:
        again = jax.make_jaxpr(apply_small)(small, *inputs)
    except Exception as error:  # whatever the user's model raises is the reason
        line = str(error).strip().partition("\n")[0]
        return f"the model does not run with it smaller: {type(error).__name__}: {line}"
    before = program.jaxpr
    shapes = [[var.aval.shape for var in j.jaxpr.outvars] for j in (before, again)]
    if shapes[0] != shapes[1]:
        return f"the output would change its shape from {shapes[0]} to {shapes[1]}"
    if not _same_constants(before.consts, again.consts):
        return "an array that is a constant of the model depends on its size"
    return _Comparison(tracer, set(gone)).change(before.jaxpr, again.jaxpr, ())


def _same_constants(a: Sequence[Any], b: Sequence[Any]) -> bool:
    if [np.shape(x) for x in a] != [np.shape(x) for x in b]:
        return False
    pairs = [(_numbers(x), _numbers(y)) for x, y in zip(a, b, strict=True)]
    return all(x is None or y is None or np.array_equal(x, y, equal_nan=True) for x, y in pairs)


class _Comparison(NamedTuple):
    """Of a program that was followed with one that should be it without some units."""

    tracer: Tracer
    gone: set[int]

    def change(self, a: Any, b: Any, around: Place) -> str:
        """The first thing in which two programs differ; empty if none."""
        if len(a.eqns) != len(b.eqns):
            return "the program depends on its size"
        same = dict(zip([*a.constvars, *a.invars], [*b.constvars, *b.invars], strict=True))
        for number, (old, new) in enumerate(zip(a.eqns, b.eqns, strict=True)):
            place = (*around, number)
            change = _operands_change(old, new, same) or self._shapes_change(old, new, place)
            if change:
                return change
            same |= zip(old.outvars, new.outvars, strict=True)
            programs = zip(_programs(old.params), _programs(new.params), strict=True)
            for (key, i, x), (_, _, y) in programs:
                if change := self.change(x, y, (*place, key, i)):
                    return change
        return ""

    def _shapes_change(self, old: Any, new: Any, place: Place) -> str:
        name = old.primitive.name
        if place not in self.tracer.made:  # a branch that is not taken forwards
            return ""
        ins, outs = self.tracer.made[place]
        for out, var in zip(outs, new.outvars, strict=True):
            shape = tuple(int(self._stays(axis).sum()) for axis in out.axes)
            if shape != tuple(var.aval.shape):
                return (
                    f"a size is written into the model: {name} makes shape {var.aval.shape} where "
                    f"{shape} is left"
                )
        if name == "slice" and not self._same_slice(old, new, ins[0]):
            return "a size is written into the model: slice begins elsewhere"
        return ""

    def _stays(self, axis: Axis) -> np.ndarray:
        if axis.labels is None:
            return np.ones(axis.size, bool)
        labels = self.tracer.label_of(axis.labels)
        return ~np.isin(labels, list(self.gone))

    def _same_slice(self, old: Any, new: Any, value: Value) -> bool:
        starts = zip(old.params["start_indices"], new.params["start_indices"], strict=True)
        pairs = zip(starts, value.axes, strict=True)
        return all(int(self._stays(axis)[:a].sum()) == b for (a, b), axis in pairs)


def _operands_change(old: Any, new: Any, same: dict[Any, Any]) -> str:
    """How an equation differs from another, but for shapes."""
    name = old.primitive.name
    if name != new.primitive.name:
        return f"the program depends on its size: {name} becomes {new.primitive.name}"
    for x, y in zip(old.invars, new.invars, strict=True):
        if is_literal(x) and is_literal(y):
            if not np.array_equal(x.val, y.val, equal_nan=True):
                by = [f"{name} by {_number(literal)}" for literal in (x, y)]
                return f"a constant is derived from its size: {by[0]} becomes {by[1]}"
        elif is_literal(x) or is_literal(y) or same[x] is not y:
            return f"the program depends on its size: {name} has another operand"
    for key in _NO_SIZES:
        if old.params.get(key) != new.params.get(key):
            return f"the program depends on its size: {key} of {name}"
    return ""


def _number(literal: Any) -> str:
    return f"{float(literal.val):.4g}" if np.ndim(literal.val) == 0 else str(literal.val)


def _programs(params: dict[str, Any]) -> Iterable[tuple[str, int, Any]]:
    """The programs among the params of an equation, each with its place."""
    for key, value in params.items():
        for i, part in enumerate(value if isinstance(value, (tuple, list)) else (value,)):
            if hasattr(part, "eqns"):
                yield key, i, getattr(part, "jaxpr", part)
