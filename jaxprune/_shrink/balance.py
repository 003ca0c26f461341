"""Axes that are cut into parts of equal length, so that the parts must lose equal numbers of units.

`l, r = split(h, 2)` computes the length of both parts from that of `h`: three units of `l` can only
go with three of `r`. Which three does not matter to `shrink`. For pruning, `channel_groups` ties
unit i of one part to unit i of the others, so that the counts are equal at every step.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxprune._shrink.groups import Group
from jaxprune._trace.records import EquationPath, Tiling
from jaxprune._trace.tracer import Tracer


def tie(tracer: Tracer, tilings: Iterable[Tiling]) -> None:
    """Joins the units at the same index of all parts."""
    for tiling in tilings:
        for part in tiling.parts[1:]:
            tracer.join_labels(tiling.parts[0], part)


def cut_at(tilings: Iterable[Tiling], path: EquationPath) -> list[Tiling]:
    """The tilings that an equation makes, or that are made inside of it."""
    return [tiling for tiling in tilings if path and tiling.path[: len(path)] == path]


def extra_units(tilings: Iterable[Tiling], units_of: np.ndarray) -> set[int]:
    """More units of the last part of each tiling: with them, it loses more units than the others.

    Two more, where there are as many: (8 - 1 - 2) // 2 would be the length of the other part.
    """
    parts = [tiling.parts[-1] for tiling in tilings]
    return {int(unit) for part in parts for unit in units_of[part[1:-1][:2], 0]}


def balance(groups: Sequence[Group], tilings: Iterable[Tiling], units_of: np.ndarray) -> None:
    """Keeps units that were to be removed, until all parts of each tiling lose equal numbers.

    Args:
      groups: with the units to remove; some stay after all.
      tilings: the axes that are cut.
      units_of: `units_of_labels` of the program.
    """
    # Index -1, for entries that belong to no unit, reads the last entry.
    is_removed = np.zeros(len(units_of) + 1, bool)
    is_removed[[unit.label for group in groups for unit in group.removed]] = True
    parts = [units_of[tiling.parts] for tiling in tilings]
    while any(_keep_surplus(units, is_removed) for units in parts):
        pass
    for group in groups:
        group.removed = [unit for unit in group.removed if is_removed[unit.label]]


def _keep_surplus(units: np.ndarray, is_removed: np.ndarray) -> bool:
    """Keeps the last units of parts that lose more than others; whether there are any."""
    removed = is_removed[units].any(-1)
    n_removed = removed.sum(1).min()
    surplus = np.cumsum(removed, 1) > n_removed
    surplus &= removed
    is_removed[units[surplus]] = False
    return bool(surplus.any())
