"""Groups of layers that are alike: the same lines of the model do the same to them.

If the model fails without a unit of one of them, most likely it fails without that unit of the
others, too. It need not: a reshape to the shape that an array has leaves no trace in the program.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from jaxprune._shrink.groups import Group
from jaxprune._shrink.places import equation_at, lines_of, model_line
from jaxprune._trace.program import Program
from jaxprune._trace.records import EquationPath
from jaxprune._trace.tracer import Tracer


class Alike:
    """Tells which groups are alike. Groups go by their number.

    Two groups are alike if their leaves have the same paths, apart from numbers in them, if the
    same of their units are to be removed, and if they take part in the same equations, of the same
    shapes, from the same lines of the model.
    """

    def __init__(
        self,
        program: Program,
        tracer: Tracer,
        groups: Sequence[Group],
        groups_at: Callable[[EquationPath], Iterable[int]],
    ):
        """`groups_at` says which groups have units on the axes of an equation."""
        self._program, self._tracer, self._groups = program, tracer, groups
        self._groups_at = groups_at
        self._paths: dict[int, list[EquationPath]] | None = None
        self._keys: dict[int, Hashable] = {}

    def equations_of(self, number: int) -> list[EquationPath]:
        """The equations that have units of a group on their axes, in the order of the program."""
        if self._paths is None:
            self._paths = {}
            for path in self._tracer.equations:
                for group in self._groups_at(path):
                    self._paths.setdefault(group, []).append(path)
        return self._paths.get(number, [])

    def key_of(self, number: int) -> Hashable:
        """A value that is equal for groups that are alike."""
        if number not in self._keys:
            self._keys[number] = self._key_of(number)
        return self._keys[number]

    def _key_of(self, number: int) -> Hashable:
        group = self._groups[number]
        labels = {unit.label for unit in group.removed}
        removed = tuple(k for k, unit in enumerate(group.units) if unit.label in labels)
        axes = tuple(
            (
                re.sub(r"\d+", "0", self._program.paths[axis.leaf]),
                axis.axis,
                np.shape(self._program.leaves[axis.leaf]),
            )
            for axis in group.axes
        )
        equations = tuple(self._equation_key(path) for path in self.equations_of(number))
        return len(group.units), removed, axes, equations

    def _equation_key(self, path: EquationPath) -> Hashable:
        eqn = equation_at(self._program.jaxpr.jaxpr, path)
        shapes = tuple(var.aval.shape for var in (*eqn.invars, *eqn.outvars))
        return eqn.primitive.name, model_line(lines_of(eqn)), shapes
