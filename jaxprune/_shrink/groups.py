"""Groups of units, and which groups can be made smaller.

A group holds all units on the same param axes, such as all neurons of a layer. Whether units of it
can be removed is decided in two steps. First by the trace: a unit must not be frozen, and must be
zero wherever a product sums over it. Then by `fit`: without these units, the model must be the same
program.
"""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

from jaxprune._shrink.places import equation_at, place_at
from jaxprune._shrink.units import LeafAxis, Unit
from jaxprune._trace.program import Program
from jaxprune._trace.random_numbers import reads_random
from jaxprune._trace.records import FIXED_BY_INPUT, SCANNED, WINDOW, FrozenLabels

NOT_CONTRACTED = "no product sums over it"
READS_RANDOM = (
    ", which reads random numbers: if they are those of dropout, first call model.eval(), or pass "
    "deterministic=True in linen"
)


@dataclasses.dataclass
class Group:
    """Units that are on the same param axes.

    Attributes:
      axes: the param axes.
      units: in the order of their indices.
      removed: the units to remove.
      pruned: the param axes along which pruning zeroes its units; see `not_zero`.
      reason: why none can be removed; empty if some can.
      place: where in the model the reason is; empty where that is unknown.
      changes: how the function changes without the units to remove; empty if it does not.
    """

    axes: tuple[LeafAxis, ...]
    units: list[Unit]
    removed: list[Unit]
    pruned: frozenset[LeafAxis] = frozenset()
    reason: str = ""
    place: str = ""
    changes: str = ""

    def refuse(self, reason: str, place: str = "") -> None:
        """Keeps all units, for a reason that users can read."""
        self.reason, self.place, self.removed = reason, place, []


def group_units(program: Program, units: Iterable[Unit]) -> list[Group]:
    """The groups that units form, each with the units that the network does not need.

    Axes that can never be pruned are left out: windows of convolutions, and those that `scan` loops
    over.
    """
    by_axes: dict[tuple[tuple[LeafAxis, ...], int], list[Unit]] = {}
    for unit in units:
        by_axes.setdefault((unit.axes(), unit.family), []).append(unit)
    groups = []
    for (axes, _), members in by_axes.items():
        reasons = {frozen.reason: frozen for unit in members for frozen in unit.reasons}
        if reasons.keys() & {WINDOW, SCANNED}:
            continue
        removed = [unit for unit in members if is_removable(unit)]
        if len(removed) == len(members):  # an axis of length 0 would be of no use
            removed = removed[1:]
        group = Group(axes, members, removed)
        if not reasons and not any(unit.contracted for unit in members):
            group.refuse(NOT_CONTRACTED)
        elif not any(unit.is_candidate for unit in members):
            group.refuse(*_reason_and_place(program.jaxpr.jaxpr, reasons.values()))
        groups.append(group)
    return groups


def _reason_and_place(jaxpr: Any, reasons: Collection[FrozenLabels]) -> tuple[str, str]:
    """Why no unit of a group can be removed, and where in the model that is."""
    reason = "; ".join(frozen.reason for frozen in reasons)
    paths = [frozen.path for frozen in reasons if frozen.path]
    fixed = [x.path for x in reasons if x.path and x.reason.startswith(FIXED_BY_INPUT)]
    if any(reads_random(jaxpr, equation_at(jaxpr, path)) for path in fixed):
        reason += READS_RANDOM
    return reason, place_at(jaxpr, paths[0]) if paths else ""


def is_removable(unit: Unit) -> bool:
    """Whether the outputs are the same without a unit."""
    return unit.is_candidate and unit.zero
