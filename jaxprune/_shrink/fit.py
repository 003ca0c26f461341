"""Which groups can be removed from a model together, so that the same program is left.

All groups are tried together first. If the smaller model is not the same program, each difference
is blamed on the groups whose units are on the axes of the equation that shows it, or nearest to it.
The other groups are then tried without the blamed ones, and the blamed ones on their own. So groups
that only fit together stay together, and the number of trials does not grow with the number of
layers: usually, one more is needed for each kind of reason.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from jaxprune._shrink.cut import Cut, unit_of_labels
from jaxprune._shrink.flax_sizes import Model
from jaxprune._shrink.groups import Group, without_removed
from jaxprune._shrink.same_program import Difference, differences
from jaxprune._trace.program import Program
from jaxprune._trace.tracer import EquationPath, Tracer

_FEW = 4  # groups that one difference is blamed on; more are halved


def accept(model: Model, program: Program, tracer: Tracer, groups: Sequence[Group]) -> list[Group]:
    """The groups whose units can be removed from the model together.

    The other groups are refused: they get a reason and a place, and nothing of them is removed.
    """
    fit = _Fit(model, program, tracer, groups)
    candidates = [group for group in groups if group.removed]
    fit.accepted(candidates)
    fit.retry_together()
    for number, difference in fit.refused.items():
        groups[number].refuse(difference.reason, difference.place)
    return [group for group in candidates if group.removed]


class _Fit:
    """Tries sets of groups, and remembers which were refused and why.

    Groups go by their number: their index in `groups`.
    """

    def __init__(self, model: Model, program: Program, tracer: Tracer, groups: Sequence[Group]):
        self.refused: dict[int, Difference] = {}
        self._model, self._program, self._tracer = model, program, tracer
        self._groups = groups
        self._number = {id(group): number for number, group in enumerate(groups)}
        self._unit_of = unit_of_labels(tracer)
        self._group_of = np.full(len(self._unit_of), -1)
        for number, group in enumerate(groups):
            self._group_of[[unit.label for unit in group.units]] = number
        self._order = {path: k for k, path in enumerate(tracer.equations)}
        self._paths = list(tracer.equations)
        self._at: dict[EquationPath, frozenset[int]] = {}
        self._kept: list[int] = []

    def accepted(self, groups: Iterable[Group]) -> None:
        """Sorts groups into those that fit together and those that are refused."""
        self._kept = self._solve([], [self._number[id(group)] for group in groups])

    def retry_together(self) -> None:
        """Tries refused groups together with refused neighbours: they may only fit together."""
        tried: set[frozenset[int]] = set()
        for number, difference in list(self.refused.items()):
            near = (
                self._nearest(difference, self.refused.keys(), 0) if number in self.refused else []
            )
            together = frozenset([number, *near])
            if len(together) > 1 and together not in tried:
                tried.add(together)
                if not self._check([*self._kept, *together]):
                    self._kept += together
                    for accepted in together:
                        del self.refused[accepted]

    def _check(self, numbers: Iterable[int]) -> list[Difference]:
        groups = [self._groups[number] for number in numbers]
        cut = Cut(self._unit_of, [unit.label for group in groups for unit in group.removed])
        small = without_removed(self._program, groups, shapes=True)
        return differences(self._model, self._program, self._tracer, cut, small)

    def _solve(
        self, kept: list[int], pending: list[int], known: list[Difference] | None = None
    ) -> list[int]:
        """The groups `kept`, and those of `pending` that fit.

        Args:
          kept: groups that fit together.
          pending: groups to try.
          known: the differences with all of them, where they have been tried already.
        """
        if not pending:
            return kept
        seen = self._check([*kept, *pending]) if known is None else known
        if not seen:
            return [*kept, *pending]
        if len(pending) == 1:
            self.refused[pending[0]] = seen[0]
            return kept
        blamed = [self._nearest(difference, set(pending)) for difference in seen]
        own = {near[0]: d for near, d in zip(blamed, seen, strict=True) if len(near) == 1}
        if len(own) == len(pending):
            return self._refuse_all(kept, pending, own)
        first = self._first_to_try(pending, blamed)
        second = [number for number in pending if number not in first]
        now = self._solve(kept, first)
        return self._solve(now, second, seen if len(now) == len(kept) + len(first) else None)

    def _refuse_all(
        self, kept: list[int], pending: list[int], own: dict[int, Difference]
    ) -> list[int]:
        """Refuses groups that have a difference of their own each, after one was tried alone."""
        alone = self._check([*kept, pending[0]])
        if not alone:
            return self._solve([*kept, pending[0]], pending[1:])
        self.refused |= own | {pending[0]: alone[0]}
        return kept

    def _first_to_try(self, pending: list[int], blamed: list[list[int]]) -> list[int]:
        """The part of `pending` to try first: what is not blamed, else one group per difference."""
        suspects = set(itertools.chain(*blamed))
        if suspects and (innocent := [number for number in pending if number not in suspects]):
            return innocent
        one_each = {near[0] for near in blamed if near}
        if 0 < len(one_each) < len(pending) and max(map(len, blamed)) <= _FEW:
            return [number for number in pending if number in one_each]
        return pending[: len(pending) // 2]

    def _nearest(
        self, difference: Difference, among: Iterable[int], limit: int | None = None
    ) -> list[int]:
        """The groups that a difference is blamed on: those at its equation, or nearest to it.

        Args:
          difference: the difference.
          among: the groups to choose from.
          limit: how many equations away they may be.
        """
        among = frozenset(among)
        if not difference.path:
            return []
        start = self._order.get(difference.path, len(self._paths) - 1)
        for distance in range((len(self._paths) if limit is None else limit) + 1):
            near = {
                number
                for k in {start - distance, start + distance}
                if 0 <= k < len(self._paths)
                for number in self._groups_at(self._paths[k]) & among
            }
            if near:
                return sorted(near)
        return []

    def _groups_at(self, path: EquationPath) -> frozenset[int]:
        """The groups that have units on the axes of an equation."""
        if path not in self._at:
            arrays = self._tracer.equations[path]
            labels = [
                axis.labels
                for array in (*arrays.operands, *arrays.results)
                for axis in array.axes
                if axis.labels is not None
            ]
            groups = [np.unique(self._group_of[self._unit_of[axis]]) for axis in labels]
            self._at[path] = frozenset(n for part in groups for n in part.tolist() if n >= 0)
        return self._at[path]
