"""Groups whose units are not zero when all the weights that compute them are: which, and where.

A unit behind a sigmoid is 0.5 when its weights are zero; a column that is divided by its own norm
is 0 / 0. Pruning such units would change the outputs or make them NaN, so their groups are refused.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune._shrink.cut import unit_of_labels
from jaxprune._shrink.groups import Group
from jaxprune._shrink.places import equation_at, place_of
from jaxprune._shrink.units import LeafAxis, Unit, units_of
from jaxprune._trace.program import Program, trace
from jaxprune._trace.traced_arrays import TracedArray
from jaxprune._trace.tracer import EquationPath, KnownValues, Tracer

NOT_ZERO = "its units are not zero when all their weights are"


class _Loss(NamedTuple):
    """The equation that makes something else of a zero."""

    path: EquationPath
    value: float


def refuse_nonzero(program: Program, groups: Sequence[Group], weights: set[int]) -> None:
    """Refuses groups whose units are not zero when all weights that compute them are zero.

    Args:
      program: the model.
      groups: each with units to try in `removed`.
      weights: the leaves that can be pruned.
    """
    tracer = trace(program, _zeros(program, groups, weights))
    zero_units = {unit.members for unit in units_of(tracer) if unit.zero}
    refused = [group for group in groups if any(u.members not in zero_units for u in group.removed)]
    if not refused:
        return
    losses = _losses(tracer, refused)
    for group in refused:
        _refuse(program, group, weights, losses.get(group.removed[0].label))


def producers(unit: Unit, weights: set[int]) -> list[LeafAxis]:
    """The param axes that compute a unit, without those that only read it."""
    return [a for a in unit.axes() if a.leaf in weights and a not in unit.consumers]


def _zeros(program: Program, groups: Iterable[Group], weights: set[int]) -> KnownValues:
    """`KnownValues`: zero in the weights of the units to try, unknown elsewhere."""
    zeros: dict[LeafAxis, list[int]] = {}
    for unit in (unit for group in groups for unit in group.removed):
        axes = set(producers(unit, weights))
        for member in unit.members:
            axis = LeafAxis(member.leaf, member.axis)
            if axis in axes:
                zeros.setdefault(axis, []).append(member.position)

    def known(leaf: int, axis: int) -> np.ndarray | None:
        indices = zeros.get(LeafAxis(leaf, axis))
        if indices is None:
            return None
        values = np.full(np.shape(program.leaves[leaf])[axis], np.nan)
        values[indices] = 0.0
        return values

    return known


def _refuse(program: Program, group: Group, weights: set[int], loss: _Loss | None) -> None:
    if not any(producers(unit, weights) for unit in group.removed):
        group.refuse("none of its weights can be pruned: they only read its units")
    elif loss is None:
        group.refuse(f"{NOT_ZERO}: a number that is not pruned is added to them")
    else:
        eqn = equation_at(program.jaxpr.jaxpr, loss.path)
        name = eqn.primitive.name
        value = "a value that is unknown" if np.isnan(loss.value) else f"{loss.value:.3g}"
        made = f"{name} makes {value} of zero"
        if np.isinf(loss.value):
            made = f"{name} makes a value that is not finite, such as 0 / 0"
        group.refuse(f"{NOT_ZERO}: {made}", place_of(eqn))


def _losses(tracer: Tracer, groups: Iterable[Group]) -> dict[int, _Loss]:
    """For each unit to try that is zero at some time, the last equation that makes it nonzero."""
    unit_of = unit_of_labels(tracer)
    wanted = np.zeros(len(unit_of), bool)
    wanted[[unit.label for group in groups for unit in group.removed]] = True
    losses: dict[int, _Loss] = {}
    for path, arrays in tracer.equations.items():
        values = _values(arrays.results, unit_of, wanted)
        if not any(values.values()):
            continue
        before = _values(arrays.operands, unit_of, wanted)
        for unit, value in values.items():
            if value != 0 and before.get(unit) == 0:
                losses[unit] = _Loss(path, value)
    return losses


def _values(
    arrays: Sequence[TracedArray], unit_of: np.ndarray, wanted: np.ndarray
) -> dict[int, float]:
    """The known values of units in some arrays; zero if they are zero in any of these."""
    values: dict[int, float] = {}
    for axis in (axis for array in arrays for axis in array.axes if axis.labels is not None):
        units = unit_of[axis.labels]
        known = axis.known_values()
        for k in np.flatnonzero(wanted[units]).tolist():
            unit = int(units[k])
            values[unit] = 0.0 if values.get(unit) == 0 else float(known[k])
    return values
