"""Groups whose units are not zero when all the weights that compute them are: which, and where.

A unit behind a sigmoid is 0.5 when its weights are zero; a column that is divided by its own norm
is 0 / 0. Pruning such units would change the outputs or make them NaN, so their groups are refused.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune._shrink.balance import tie
from jaxprune._shrink.cut import units_of_labels
from jaxprune._shrink.groups import Group
from jaxprune._shrink.places import equation_at, place_at
from jaxprune._shrink.units import LeafAxis, units_of
from jaxprune._trace.program import Program, trace
from jaxprune._trace.records import EquationPath, KnownValues, Tiling
from jaxprune._trace.traced_arrays import TracedArray
from jaxprune._trace.tracer import Tracer

NOT_ZERO = "its units are not zero when all their weights are"


class _Loss(NamedTuple):
    """The equation that makes something else of a zero."""

    path: EquationPath
    value: float


def choose_pruned(
    program: Program,
    groups: Sequence[Group],
    weights: set[int],
    tilings: Sequence[Tiling],
    *,
    freeze_sums: bool = True,
) -> None:
    """Chooses the axes along which pruning makes the units of each group zero.

    These are the axes that compute the unit: columns of its kernel, entries of its bias. Where they
    are not enough, as behind a sigmoid, they are the axes that read it: if the rows of the next
    kernel are zero, nothing depends on the unit. Groups for which neither works are refused.

    Args:
      program: the model.
      groups: each with units to try in `removed`; they get their `pruned`.
      weights: the leaves that can be pruned.
      tilings: whose parts are tied in the groups.
      freeze_sums: as for `trace`.
    """
    for group in groups:
        axes = {axis for axis in group.axes if axis.leaf in weights}
        readers = {axis for unit in group.units for axis in unit.consumers}
        group.pruned = frozenset(axes - readers)
    tracer, refused = _nonzero(program, groups, tilings, freeze_sums)
    if not refused:
        return
    losses = _losses(tracer, refused)
    producers = [group.pruned for group in refused]
    for group in refused:
        readers = {axis for unit in group.units for axis in unit.consumers}
        group.pruned = frozenset(axis for axis in readers if axis.leaf in weights)
    still_refused = {id(group) for group in _nonzero(program, groups, tilings, freeze_sums)[1]}
    for group, axes in zip(refused, producers, strict=True):
        if id(group) in still_refused or not group.pruned:
            loss = losses.get(group.removed[0].label)
            group.pruned = axes
            _refuse(program, group, loss)


def _nonzero(
    program: Program, groups: Sequence[Group], tilings: Sequence[Tiling], freeze_sums: bool
) -> tuple[Tracer, list[Group]]:
    """The groups whose units are not zero when their pruned axes are, and the trace that shows it.

    Labels have the same numbers in every trace of a program.
    """
    tracer = trace(program, _zeros(program, groups), freeze_sums=freeze_sums)
    tie(tracer, tilings)
    zero_units = {unit.label for unit in units_of(tracer) if unit.zero}
    return tracer, [
        group for group in groups if any(u.label not in zero_units for u in group.removed)
    ]


def _zeros(program: Program, groups: Iterable[Group]) -> KnownValues:
    """Zero in the pruned axes of the units to try, unknown elsewhere."""
    zeros: dict[LeafAxis, list[int]] = {}
    for group in groups:
        for member in (member for unit in group.removed for member in unit.members):
            axis = LeafAxis(member.leaf, member.axis)
            if axis in group.pruned:
                zeros.setdefault(axis, []).append(member.position)

    def known(leaf: int, axis: int) -> np.ndarray | None:
        indices = zeros.get(LeafAxis(leaf, axis))
        if indices is None:
            return None
        values = np.full(np.shape(program.leaves[leaf])[axis], np.nan)
        values[indices] = 0.0
        return values

    return known


def _refuse(program: Program, group: Group, loss: _Loss | None) -> None:
    if not group.pruned:
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
        group.refuse(f"{NOT_ZERO}: {made}", place_at(program.jaxpr.jaxpr, loss.path))


def _losses(tracer: Tracer, groups: Iterable[Group]) -> dict[int, _Loss]:
    """For each unit to try that is zero at some time, the last equation that makes it nonzero."""
    units_of = units_of_labels(tracer)
    # Index -1, for entries that belong to no unit, reads the last entry.
    wanted = np.zeros(len(units_of) + 1, bool)
    wanted[[unit.label for group in groups for unit in group.removed]] = True
    losses: dict[int, _Loss] = {}
    for path, arrays in tracer.equations.items():
        values = _values(arrays.results, units_of, wanted)
        if not any(values.values()):
            continue
        before = _values(arrays.operands, units_of, wanted)
        for unit, value in values.items():
            if value != 0 and before.get(unit) == 0:
                losses[unit] = _Loss(path, value)
    return losses


def _values(
    arrays: Sequence[TracedArray], units_of: np.ndarray, wanted: np.ndarray
) -> dict[int, float]:
    """The known values of units in some arrays; zero if they are zero in any of these."""
    values: dict[int, float] = {}
    for axis in (axis for array in arrays for axis in array.axes if axis.labels is not None):
        units = units_of[axis.labels]
        known = axis.known_values()
        for k, column in zip(*np.nonzero(wanted[units]), strict=True):
            unit = int(units[k, column])
            values[unit] = 0.0 if values.get(unit) == 0 else float(known[k])
    return values
