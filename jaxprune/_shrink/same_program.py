"""Checks that a model with smaller params is the same program, on smaller shapes.

The tracer can't see where a number in the program comes from: 8 may be the length of an axis, or
just 8. So the program of the smaller model is made too, and compared with the first: the same
primitives in the same order, the same operands, the same numbers, and every array of the shape that
is left without the removed units. This finds constants that are computed from a length, such as
1 / sqrt(head_dim), and lengths that are hard-coded.

All differences are collected, each with its place, so that one comparison shows every group of
units that can't be removed. What follows from a difference is left out: an equation is not compared
if one of its operands already differs.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune._shrink.cut import Cut
from jaxprune._shrink.flax_sizes import Model
from jaxprune._shrink.places import lines_of_error, model_line, place_at
from jaxprune._trace.program import Program, jaxpr_of, to_numpy
from jaxprune._trace.records import EquationPath
from jaxprune._trace.traced_arrays import TracedArray
from jaxprune._trace.tracer import Tracer, is_literal

_CHANGES = "the program changes with the length of this axis"
MEAN = "a mean runs over it, as in LayerNorm and RMSNorm"
_HARD_CODED = "a size is hard-coded in the model"

# Params of equations that contain no length, so that they must be equal in both programs.
_PARAMS_WITHOUT_SIZES = (
    *("dimension_numbers", "permutation", "dimensions", "dimension", "axes", "axis", "y"),
    *("broadcast_dimensions", "window_dimensions", "window_strides", "padding", "padding_config"),
    *("strides", "lhs_dilation", "rhs_dilation", "new_dtype", "reverse"),
)


class Difference(NamedTuple):
    """One way in which the program of the smaller model is another program.

    Attributes:
      reason: for users.
      place: the primitive and the line of the model, for users; empty where they are unknown.
      path: of the equation that shows it, or where the model raised an error; empty if unknown.
      is_mean: whether it is only that a mean divides by another number of entries.
      is_fixed: whether an array has the shape of before although units were removed from it: its
        length is a number in the model, so it does not depend on what other parts of an axis lose.
      is_error: whether the model raised an error, so that nothing behind it was compared.
    """

    reason: str
    place: str
    path: EquationPath
    is_mean: bool = False
    is_fixed: bool = False
    is_error: bool = False


def differences(
    model: Model, program: Program, tracer: Tracer, cut: Cut, small: Any
) -> list[Difference]:
    """How the model with smaller params differs from the same program; empty if it does not.

    Args:
      model: the model.
      program: its program before.
      tracer: that traced it.
      cut: the labels of the axes that the smaller params lack.
      small: the smaller params, or their shapes.
    """
    failures: list[Difference] = []  # not the errors, which hold traced values

    def run_until_it_fails(*args: Any) -> Any:
        try:
            return model.apply_resized(*args)
        except Exception as error:  # the model is the user's: whatever it raises is the reason
            failures.append(_failure(error))
            return ()

    small_jaxpr = jaxpr_of(run_until_it_fails, small, *model.inputs)
    jaxpr = program.jaxpr
    comparison = _Comparison(jaxpr.jaxpr, tracer, cut, [])
    comparison.compare(jaxpr.jaxpr, small_jaxpr.jaxpr, (), complete=not failures)
    if failures:
        n = len(small_jaxpr.jaxpr.eqns)
        comparison.differences.append(failures[0]._replace(path=(n,)))
    if comparison.differences:
        return comparison.differences
    before, after = ([var.aval.shape for var in j.jaxpr.outvars] for j in (jaxpr, small_jaxpr))
    if before != after:
        reason = f"the output would change its shape from {before} to {after}"
        return [Difference(reason, "", ())]
    if not _same_constants(jaxpr.consts, small_jaxpr.consts):
        reason = "a constant array in the model changes with the length of this axis"
        return [Difference(reason, "", ())]
    return []


def _failure(error: Exception) -> Difference:
    """The error of a model that failed after some equations."""
    message = str(error).strip().partition("\n")[0]
    reason = (
        "the model fails when this axis is shorter, is its length hard-coded? "
        f"{type(error).__name__}: {message}"
    )
    place = str(model_line(lines_of_error(error)) or "")
    return Difference(reason, place, (), is_error=True)


def _same_constants(before: Sequence[Any], after: Sequence[Any]) -> bool:
    if [np.shape(x) for x in before] != [np.shape(x) for x in after]:
        return False
    where = "a constant array in the model"
    pairs = [(to_numpy(where, x), to_numpy(where, y)) for x, y in zip(before, after, strict=True)]
    return all(x is None or y is None or np.array_equal(x, y, equal_nan=True) for x, y in pairs)


class _Comparison(NamedTuple):
    """Compares a traced program with the program of the smaller model.

    Attributes:
      jaxpr: the larger program.
      tracer: that traced it.
      cut: the labels that the smaller one lacks.
      differences: collected so far.
    """

    jaxpr: Any
    tracer: Tracer
    cut: Cut
    differences: list[Difference]

    def compare(self, old: Any, new: Any, outer_path: EquationPath, complete: bool = True) -> None:
        """Collects the differences between two jaxprs, up to where their primitives differ."""
        new_var = dict(zip(old.constvars, new.constvars, strict=False))
        new_var |= zip(old.invars, new.invars, strict=True)
        misshapen: set[Any] = set()  # variables whose shape is not the expected one
        means = _Means.of(old.eqns)
        for number, (old_eqn, new_eqn) in enumerate(zip(old.eqns, new.eqns, strict=False)):
            path = (*outer_path, number)
            if old_eqn.primitive.name != new_eqn.primitive.name:
                change = f"{old_eqn.primitive.name} becomes {new_eqn.primitive.name}"
                self._add(f"{_CHANGES}: {change}", path)
                return
            # An equation is compared if its operands have the expected shapes.
            if not any(not is_literal(x) and x in misshapen for x in old_eqn.invars):
                if means.has(old_eqn, new_eqn):
                    place = place_at(self.jaxpr, path)
                    self.differences.append(Difference(MEAN, place, path, is_mean=True))
                else:
                    self._compare_equations(old_eqn, new_eqn, new_var, path)
            if self._wrong_shape(new_eqn, path):
                misshapen.update(old_eqn.outvars)
            new_var |= zip(old_eqn.outvars, new_eqn.outvars, strict=False)
        if complete and len(old.eqns) != len(new.eqns):
            self.differences.append(Difference(_CHANGES, "", outer_path))

    def _add(self, reason: str, path: EquationPath, is_fixed: bool = False) -> None:
        if reason:
            place = place_at(self.jaxpr, path)
            self.differences.append(Difference(reason, place, path, is_fixed=is_fixed))

    def _compare_equations(
        self, old: Any, new: Any, new_var: dict[Any, Any], path: EquationPath
    ) -> None:
        n_before = len(self.differences)
        self._add(_operands_differ(old, new, new_var), path)
        if n_before == len(self.differences):
            for (key, number, inner), (_, _, new_inner) in zip(
                _inner_programs(old.params), _inner_programs(new.params), strict=True
            ):
                self.compare(inner, new_inner, (*path, key, number))
        if n_before == len(self.differences):
            reason = self._shapes_differ(old, new, path)
            self._add(reason, path, self._keeps_shape(old, new, path))

    def _shapes_differ(self, old: Any, new: Any, path: EquationPath) -> str:
        """How the results of an equation differ in shape from what should remain of them."""
        name = old.primitive.name
        if shapes := self._wrong_shape(new, path):
            return (
                f"{_HARD_CODED}: {name} makes shape {shapes[0]} where {shapes[1]} is left "
                "(compute sizes from the shapes of arrays)"
            )
        arrays = self.tracer.equations.get(path)
        if name == "slice" and arrays and not self._same_slice(old, new, arrays.operands[0]):
            return f"{_HARD_CODED}: a slice starts at the wrong index"
        return ""

    def _wrong_shape(self, new: Any, path: EquationPath) -> tuple[Any, Any] | None:
        """The shape of the first result that has not the expected shape, and that shape."""
        if path not in self.tracer.equations:  # not traced: the backward pass of a custom_vjp
            return None
        for result, var in zip(self.tracer.equations[path].results, new.outvars, strict=True):
            expected = tuple(self.cut.length(axis) for axis in result.axes)
            if expected != tuple(var.aval.shape):
                return tuple(var.aval.shape), expected
        return None

    def _keeps_shape(self, old: Any, new: Any, path: EquationPath) -> bool:
        """Whether the first result with a wrong shape has the shape of before."""
        shapes = self._wrong_shape(new, path)
        return shapes is not None and any(
            tuple(old_var.aval.shape) == shapes[0] == tuple(new_var.aval.shape)
            for old_var, new_var in zip(old.outvars, new.outvars, strict=True)
        )

    def _same_slice(self, old: Any, new: Any, operand: TracedArray) -> bool:
        """Whether a slice starts at the same entry, counted without what is removed before it."""
        starts = zip(old.params["start_indices"], new.params["start_indices"], strict=True)
        return all(
            self.cut.length(axis.take(slice(old_start))) == new_start
            for (old_start, new_start), axis in zip(starts, operand.axes, strict=True)
        )


class _Means(NamedTuple):
    """Where a program divides a sum by the number of its entries, as means and variances do.

    Attributes:
      sums: variable -> the equation that makes it by a sum, perhaps in another shape.
      divisors: numbers of entries, less the degrees of freedom of a variance, as `jnp.var` computes
        them in the program: `sub n ddof`.
    """

    sums: dict[Any, Any]
    divisors: frozenset[Any]

    @staticmethod
    def of(eqns: Sequence[Any]) -> "_Means":
        """Those of a program, without the programs in it."""
        sums: dict[Any, Any] = {}
        differences: dict[Any, Any] = {}
        divisors = set()
        for eqn in eqns:
            name, operand = eqn.primitive.name, eqn.invars[0] if eqn.invars else None
            if name == "reduce_sum":
                sums[eqn.outvars[0]] = eqn
            elif name == "sub" and is_literal(operand):
                differences[eqn.outvars[0]] = eqn
            elif name in _SAME_VALUES and not is_literal(operand):
                for eqn_of in (sums, differences):
                    if operand in eqn_of:
                        eqn_of[eqn.outvars[0]] = eqn_of[operand]
            elif name == "div" and not any(map(is_literal, eqn.invars)):
                of_sum, difference = sums.get(operand), differences.get(eqn.invars[1])
                if of_sum and difference and _n_entries(of_sum) == _number_in(difference.invars[0]):
                    divisors.add(difference.outvars[0])
        return _Means(sums, frozenset(divisors))

    def has(self, old: Any, new: Any) -> bool:
        """Whether two equations differ only by the number of entries of a mean.

        Args:
          old: equation of the larger program.
          new: equation of the smaller program, with the same primitive.
        """
        if old.outvars and old.outvars[0] in self.divisors:
            is_number = is_literal(new.invars[0])
            return is_number and _number_in(old.invars[0]) != _number_in(new.invars[0])
        if old.primitive.name != "div" or is_literal(old.invars[0]):
            return False
        of_sum, divisor = self.sums.get(old.invars[0]), old.invars[1]
        if of_sum is None or not (is_literal(divisor) and is_literal(new.invars[1])):
            return False
        n_entries = _number_in(divisor)
        return n_entries == _n_entries(of_sum) and n_entries != _number_in(new.invars[1])


_SAME_VALUES = ("broadcast_in_dim", "reshape", "squeeze", "convert_element_type")


def _n_entries(of_sum: Any) -> int:
    """How many entries an equation adds up for each sum."""
    shape = of_sum.invars[0].aval.shape
    return math.prod(shape[k] for k in of_sum.params["axes"])


def _number_in(literal: Any) -> float:
    return float(literal.val) if np.ndim(literal.val) == 0 else math.nan


def _operands_differ(old: Any, new: Any, new_var: dict[Any, Any]) -> str:
    """How an equation differs from another, apart from shapes; empty if it does not.

    Args:
      old: equation of the larger program.
      new: equation of the smaller program, with the same primitive.
      new_var: variable of the larger program -> the one that corresponds to it.
    """
    name = old.primitive.name
    if len(old.invars) != len(new.invars):
        return f"{_CHANGES}: the number of operands of {name} changes"
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
