"""Checks that a model with smaller params is the same program, on smaller shapes.

The tracer can't see where a number in the program comes from: 8 may be the length of an axis, or
just 8. So the program of the smaller model is made too, and compared with the first: the same
primitives in the same order, the same operands, the same numbers, and every array of the shape that
is left without the removed units. This finds constants that are computed from a length, such as
1 / sqrt(head_dim), and lengths that are hard-coded.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune._shrink.flax_sizes import Model
from jaxprune._trace.program import Program, to_numpy
from jaxprune._trace.traced_arrays import Axis, TracedArray
from jaxprune._trace.tracer import EquationPath, Tracer, is_literal

_CHANGES = "the program changes with the length of this axis"
_HARD_CODED = "a size is hard-coded in the model"

# Params of equations that contain no length, so that they must be equal in both programs.
_PARAMS_WITHOUT_SIZES = (
    *("dimension_numbers", "permutation", "dimensions", "dimension", "axes", "axis", "y"),
    *("broadcast_dimensions", "window_dimensions", "window_strides", "padding", "padding_config"),
    *("strides", "lhs_dilation", "rhs_dilation", "new_dtype", "reverse"),
)


def why_not_same(
    model: Model, program: Program, tracer: Tracer, removed: Iterable[int], small: Any
) -> str:
    """Why the model with smaller params is not the same program; empty if it is.

    Args:
      model: the model.
      program: its program before.
      tracer: that traced it.
      removed: labels of the units that the smaller params lack.
      small: the smaller params, or their shapes.
    """
    try:
        small_jaxpr = jax.make_jaxpr(model.apply_resized)(small, *model.inputs)
    except Exception as error:  # the model is the user's: whatever it raises is the reason
        line = str(error).strip().partition("\n")[0]
        failure = f"{type(error).__name__}: {line}"
        return f"the model fails when this axis is shorter, is its length hard-coded? {failure}"
    jaxpr = program.jaxpr
    before, after = ([var.aval.shape for var in j.jaxpr.outvars] for j in (jaxpr, small_jaxpr))
    if before != after:
        return f"the output would change its shape from {before} to {after}"
    if not _same_constants(jaxpr.consts, small_jaxpr.consts):
        return "a constant array in the model changes with the length of this axis"
    return _Comparison(tracer, set(removed)).difference(jaxpr.jaxpr, small_jaxpr.jaxpr, ())


def _same_constants(before: Sequence[Any], after: Sequence[Any]) -> bool:
    if [np.shape(x) for x in before] != [np.shape(x) for x in after]:
        return False
    pairs = [(to_numpy(x), to_numpy(y)) for x, y in zip(before, after, strict=True)]
    return all(x is None or y is None or np.array_equal(x, y, equal_nan=True) for x, y in pairs)


class _Comparison(NamedTuple):
    """Compares a traced program with the program of the smaller model.

    Attributes:
      tracer: that traced the larger program.
      removed: labels of the units that the smaller one lacks.
    """

    tracer: Tracer
    removed: set[int]

    def difference(self, old: Any, new: Any, outer_path: EquationPath) -> str:
        """The first difference between two jaxprs, as a reason for users; empty if none."""
        if len(old.eqns) != len(new.eqns):
            return _CHANGES
        new_var = dict(zip(old.constvars, new.constvars, strict=True))
        new_var |= zip(old.invars, new.invars, strict=True)
        for number, (old_eqn, new_eqn) in enumerate(zip(old.eqns, new.eqns, strict=True)):
            path = (*outer_path, number)
            difference = (
                _operands_differ(old_eqn, new_eqn, new_var)
                or self._shapes_differ(old_eqn, new_eqn, path)
                or self._inner_differ(old_eqn, new_eqn, path)
            )
            if difference:
                return difference
            new_var |= zip(old_eqn.outvars, new_eqn.outvars, strict=True)
        return ""

    def _inner_differ(self, old: Any, new: Any, path: EquationPath) -> str:
        """The first difference between the programs inside two equations."""
        pairs = zip(_inner_programs(old.params), _inner_programs(new.params), strict=True)
        for (key, number, old_inner), (_, _, new_inner) in pairs:
            if difference := self.difference(old_inner, new_inner, (*path, key, number)):
                return difference
        return ""

    def _shapes_differ(self, old: Any, new: Any, path: EquationPath) -> str:
        """How the results of an equation differ in shape from what should remain of them."""
        name = old.primitive.name
        if path not in self.tracer.equations:  # not traced: the backward pass of a custom_vjp
            return ""
        arrays = self.tracer.equations[path]
        for result, var in zip(arrays.results, new.outvars, strict=True):
            expected = tuple(int(self._remains(axis).sum()) for axis in result.axes)
            if expected != tuple(var.aval.shape):
                return (
                    f"{_HARD_CODED}: {name} makes shape {var.aval.shape} where {expected} is left "
                    "(compute sizes from the shapes of arrays)"
                )
        if name == "slice" and not self._same_slice(old, new, arrays.operands[0]):
            return f"{_HARD_CODED}: a slice starts at the wrong index"
        return ""

    def _remains(self, axis: Axis) -> np.ndarray:
        """Which indices of an axis are not removed: bool[size]."""
        if axis.labels is None:
            return np.ones(axis.size, bool)
        return ~np.isin(self.tracer.units.find_all(axis.labels), list(self.removed))

    def _same_slice(self, old: Any, new: Any, operand: TracedArray) -> bool:
        """Whether a slice starts at the same entry, counted without what is removed before it."""
        starts = zip(old.params["start_indices"], new.params["start_indices"], strict=True)
        return all(
            int(self._remains(axis)[:old_start].sum()) == new_start
            for (old_start, new_start), axis in zip(starts, operand.axes, strict=True)
        )


def _operands_differ(old: Any, new: Any, new_var: dict[Any, Any]) -> str:
    """How an equation differs from another, apart from shapes; empty if it does not.

    Args:
      old: equation of the larger program.
      new: equation of the smaller program.
      new_var: variable of the larger program -> the one that corresponds to it.
    """
    name = old.primitive.name
    if name != new.primitive.name:
        return f"{_CHANGES}: {name} becomes {new.primitive.name}"
    for x, y in zip(old.invars, new.invars, strict=True):
        if is_literal(x) and is_literal(y):
            if not np.array_equal(x.val, y.val, equal_nan=True):
                change = f"{name} by {_number(x)} becomes {name} by {_number(y)}"
                return f"a constant is computed from the length of this axis: {change}"
        elif is_literal(x) or is_literal(y) or new_var[x] is not y:
            return f"{_CHANGES}: {name} has another operand"
    for key in _PARAMS_WITHOUT_SIZES:
        if old.params.get(key) != new.params.get(key):
            return f"{_CHANGES}: {key} of {name} changes"
    return ""


def _number(literal: Any) -> str:
    return f"{float(literal.val):.4g}" if np.ndim(literal.val) == 0 else str(literal.val)


def _inner_programs(params: dict[str, Any]) -> Iterable[tuple[str, int, Any]]:
    """The programs among the params of an equation: name of the param, number in it, jaxpr."""
    for key, value in params.items():
        for number, part in enumerate(value if isinstance(value, (tuple, list)) else (value,)):
            if hasattr(part, "eqns"):
                yield key, number, getattr(part, "jaxpr", part)
