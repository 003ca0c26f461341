"""Which groups can be removed from a model together, so that the same program is left.

All groups are tried together first. If the smaller model is not the same program, each difference
is blamed on the groups whose units are on the axes of the equation that shows it, or nearest to it.
The other groups are then tried without the blamed ones, and the blamed ones on their own. So groups
that only fit together stay together, and the number of trials does not grow with the number of
layers: usually, one more is needed for each kind of reason.

An error of the model ends a trial, and hides what is behind it. So where the model fails without
units of one layer, the next and the last of the layers that are alike are tried. If it fails
without these, too, those between them are refused untried.

The parts of an axis that is cut evenly may only fit if they lose equal numbers of units. So if a
part is refused by the equation that cuts the axis, everything is tried again with equal numbers.
That equation may only be reached once other groups, which make the model fail before, are refused.
Parts whose length is a number in the model are not tried again: equal numbers would not help.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from jaxprune._shrink.alike import Alike
from jaxprune._shrink.balance import cut_at
from jaxprune._shrink.cut import Cut, units_of_labels
from jaxprune._shrink.flax_sizes import Model
from jaxprune._shrink.groups import Group
from jaxprune._shrink.removal import smaller_shapes
from jaxprune._shrink.same_program import Difference, differences
from jaxprune._trace.program import Program
from jaxprune._trace.records import EquationPath, Tiling
from jaxprune._trace.tracer import Tracer

_FEW = 4  # groups that one difference is blamed on; more are halved


def accept(
    model: Model,
    program: Program,
    tracer: Tracer,
    groups_with: Callable[[Sequence[Tiling]], list[Group]],
    *,
    allow_means: bool = False,
) -> list[Group]:
    """All groups of a model, with the units that can be removed from it together.

    The other groups are refused: they get a reason and a place, and nothing of them is removed.

    Args:
      model: the model.
      program: its program.
      tracer: that traced it.
      groups_with: makes the groups, with the units to try, so that the parts of these tilings lose
        equal numbers of units.
      allow_means: whether means may run over fewer entries, although that changes the function.
        The groups for which this is so get `changes`.
    """
    imposed = [tiling for tiling in tracer.tilings if tiling.forced]
    while True:
        groups = groups_with(imposed)
        fit = _Fit(model, program, tracer, groups, allow_means)
        others = [tiling for tiling in tracer.tilings if not any(t is tiling for t in imposed)]
        seen = fit.try_all()
        paths = [difference.path for difference in seen if not difference.is_fixed]
        more = [tiling for path in paths for tiling in cut_at(others, path)]
        refused = {} if more else fit.refusals(seen)
        more = more or fit.tilings_of_refused(others)
        if not more:
            break
        imposed += more
    for number, difference in refused.items():
        groups[number].refuse(difference.reason, difference.place)
    for number, difference in fit.changes().items():
        groups[number].changes = f"{difference.reason} ({difference.place})"
    return groups


class _Fit:
    """Tries sets of groups, and remembers which were refused and why.

    Groups go by their number: their index in `groups`.
    """

    def __init__(
        self,
        model: Model,
        program: Program,
        tracer: Tracer,
        groups: Sequence[Group],
        allow_means: bool,
    ):
        self.refused: dict[int, Difference] = {}
        self._model, self._program, self._tracer = model, program, tracer
        self._groups, self._allow_means = groups, allow_means
        self._candidates = [number for number, group in enumerate(groups) if group.removed]
        self._units_of = units_of_labels(tracer)
        # Index -1, for entries that belong to no unit, reads the last entry.
        self._group_of = np.full(len(self._units_of) + 1, -1)
        for number, group in enumerate(groups):
            self._group_of[[unit.label for unit in group.units]] = number
        self._order = {path: k for k, path in enumerate(tracer.equations)}
        self._paths = list(tracer.equations)
        self._at: dict[EquationPath, frozenset[int]] = {}
        self._alike = Alike(program, tracer, groups, self._groups_at)
        self._failed: dict[Hashable, int] = {}  # by `Alike.key_of`: the first group that failed
        self._mixed: set[Hashable] = set()  # keys of which only some groups fail
        self._untried: dict[int, int] = {}  # refused group -> the one like it that was tried
        self._kept: list[int] = []

    def try_all(self) -> list[Difference]:
        """The differences with all groups that have units to remove."""
        return self._check(self._candidates)

    def refusals(self, seen: list[Difference]) -> dict[int, Difference]:
        """The groups that do not fit, each with a difference; `seen` is from `try_all`."""
        self._kept = self._solve([], self._candidates, seen)
        self._retry_together()
        return self.refused

    def tilings_of_refused(self, tilings: Iterable[Tiling]) -> list[Tiling]:
        """The tilings whose parts were refused by the equation that cuts them.

        These parts may fit together. `try_all` does not show such tilings if the model fails before
        it reaches them.
        """
        return [
            tiling
            for tiling in tilings
            if any(
                cut_at([tiling], difference.path) and number in self._groups_of(tiling.parts)
                for number, difference in self.refused.items()
                if not difference.is_fixed
            )
        ]

    def changes(self) -> dict[int, Difference]:
        """The groups that fit only because means may run over fewer entries."""
        if not self._allow_means:
            return {}
        means = [d for d in self._differences(self._kept) if d.is_mean]
        return {number: d for d in means for number in self._nearest(d, self._kept)}

    def _retry_together(self) -> None:
        """Tries refused groups together with refused neighbours: they may only fit together."""
        tried: set[frozenset[int]] = set()
        for number, difference in list(self.refused.items()):
            if self._untried.get(number) in self.refused:
                continue
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
        """The differences that are not allowed, without the units of some groups."""
        seen = self._differences(numbers)
        return [d for d in seen if not (d.is_mean and self._allow_means)]

    def _differences(self, numbers: Iterable[int]) -> list[Difference]:
        groups = [self._groups[number] for number in numbers]
        cut = Cut(self._units_of, [unit.label for group in groups for unit in group.removed])
        small = smaller_shapes(self._program, groups)
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
        for key in list(self._failed):
            alike = [number for number in pending if self._alike.key_of(number) == key]
            if alike:
                rest = [number for number in pending if number not in alike]
                kept, left = self._try_alike(kept, alike, key)
                pending, known = rest + left, None
        if not pending:
            return kept
        seen = self._check([*kept, *pending]) if known is None else known
        if not seen:
            return [*kept, *pending]
        if len(pending) == 1:
            self.refused[pending[0]] = seen[0]
            if seen[0].is_error and (key := self._alike.key_of(pending[0])) not in self._mixed:
                self._failed[key] = pending[0]
            return kept
        blamed = [self._nearest(difference, set(pending)) for difference in seen]
        own = {near[0]: d for near, d in zip(blamed, seen, strict=True) if len(near) == 1}
        if len(own) == len(pending):
            return self._refuse_all(kept, pending, own)
        failing = itertools.chain(*(x for x, d in zip(blamed, seen, strict=True) if d.is_error))
        first = self._first_to_try(pending, blamed, set(failing))
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

    def _try_alike(
        self, kept: list[int], alike: list[int], key: Hashable
    ) -> tuple[list[int], list[int]]:
        """Tries the first and the last of these groups, which are like one that fails.

        If both fail, the others are refused untried.

        Returns:
          The groups that fit, and those that are still to try.
        """
        tried = self._failed[key]
        for number in dict.fromkeys((alike[0], alike[-1])):
            seen = self._check([*kept, number])
            if seen:
                self.refused[number] = seen[0]
            else:
                kept = [*kept, number]
        between = alike[1:-1]
        ends = [self.refused.get(number) for number in (alike[0], alike[-1])]
        if not all(difference is not None and difference.is_error for difference in ends):
            del self._failed[key]
            self._mixed.add(key)
            return kept, between
        difference = self.refused[tried]
        for number in between:
            path = self._moved(difference.path, tried, number)
            self.refused[number] = difference._replace(path=path)
            self._untried[number] = tried
        return kept, []

    def _moved(self, path: EquationPath, group: int, other: int) -> EquationPath:
        """The equation that lies to those of `other` as that at `path` lies to those of `group`."""
        own, others = (self._alike.equations_of(number) for number in (group, other))
        at = self._position(path)
        k = min(range(len(own)), key=lambda k: abs(self._order[own[k]] - at))
        moved = self._order[others[k]] + at - self._order[own[k]]
        return self._paths[min(max(moved, 0), len(self._paths) - 1)]

    def _first_to_try(
        self, pending: list[int], blamed: list[list[int]], failing: set[int]
    ) -> list[int]:
        """The part of `pending` to try first: what is not blamed, else one group per difference.

        Groups like those that make the model fail are blamed, too.
        """
        suspects = set(itertools.chain(*blamed))
        if failing:
            keys = {self._alike.key_of(number) for number in failing}
            suspects |= {number for number in pending if self._alike.key_of(number) in keys}
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
        start = self._position(difference.path)
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

    def _position(self, path: EquationPath) -> int:
        """Where an equation is in the program; an error may be behind the last one."""
        return self._order.get(path, len(self._paths) - 1)

    def _groups_at(self, path: EquationPath) -> frozenset[int]:
        """The groups that have units on the axes of an equation."""
        if path not in self._at:
            arrays = self._tracer.equations[path]
            groups = [
                self._groups_of(axis.labels)
                for array in (*arrays.operands, *arrays.results)
                for axis in array.axes
                if axis.labels is not None
            ]
            self._at[path] = frozenset().union(*groups)
        return self._at[path]

    def _groups_of(self, labels: np.ndarray) -> frozenset[int]:
        """The groups that have units with these labels."""
        numbers = np.unique(self._group_of[self._units_of[labels]])
        return frozenset(number for number in numbers.tolist() if number >= 0)
