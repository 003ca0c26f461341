"""Groups of units: which there are, which may go, and what is left of the params without them.

A group may go if the model with it cut is the same program on smaller shapes, by `program`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._shrink.program import Program, why_not
from jaxprune._shrink.tracer import LENGTH, WINDOW, Tracer, Unit

UNREAD = "no product sums over it"


@dataclasses.dataclass
class Group:
    """Units that are on the same axes.

    Attributes:
      members: (leaf, axis) of all of them.
      units: in the order of their indices.
      gone: those that are cut.
      reason: why none can be; else empty.
    """

    members: tuple[tuple[int, int], ...]
    units: list[Unit]
    gone: list[Unit]
    reason: str


def find_groups(units: Iterable[Unit]) -> list[Group]:
    """Units by the axes that they are on; those that go, or why none does."""
    by_axes: dict[tuple[tuple[int, int], ...], list[Unit]] = {}
    for unit in units:
        key = tuple(dict.fromkeys((leaf, axis) for leaf, axis, _ in unit.members))
        by_axes.setdefault(key, []).append(unit)
    groups = []
    for key, units in by_axes.items():
        reasons = dict.fromkeys(why for unit in units for why in unit.reasons)
        if set(reasons) & {WINDOW, LENGTH}:
            continue
        if not reasons and not any(unit.read for unit in units):
            reasons.setdefault(UNREAD)
        gone = [unit for unit in units if is_removable(unit)]
        if len(gone) == len(units):
            gone = gone[1:]
        may = any(unit.read and not unit.reasons for unit in units)
        groups.append(Group(key, units, gone, "" if may else "; ".join(reasons)))
    return groups


def is_removable(unit: Unit) -> bool:
    """Whether the network can't tell that a unit is there."""
    return unit.read and unit.zero and not unit.reasons


def cut(program: Program, groups: Iterable[Group], *, shapes: bool = False) -> Any:
    """The variables without the units that go, or the shapes of them."""
    gone: dict[tuple[int, int], list[int]] = {}
    for group in groups:
        for unit in group.gone:
            for leaf, axis, index in unit.members:
                gone.setdefault((leaf, axis), []).append(index)
    leaves = list(program.leaves)
    for (leaf, axis), indices in gone.items():
        x = leaves[leaf]
        if shapes:
            shape = list(np.shape(x))
            shape[axis] -= len(indices)
            leaves[leaf] = jax.ShapeDtypeStruct(tuple(shape), x.dtype)
        else:  # by NumPy, which compiles nothing
            smaller = np.delete(np.asarray(x), indices, axis)
            leaves[leaf] = jnp.asarray(smaller) if isinstance(x, jax.Array) else smaller
    return program.treedef.unflatten(leaves)


def accepted(
    program: Program,
    tracer: Tracer,
    groups: Sequence[Group],
    apply_small: Callable[..., Any],
    inputs: Sequence[Any],
) -> list[Group]:
    """The groups that can be cut, together; the others are told why not, and cut nothing."""

    def refusal(groups: list[Group]) -> str:
        gone = [unit.label for group in groups for unit in group.gone]
        small = cut(program, groups, shapes=True)
        return why_not(program, tracer, gone, apply_small, small, inputs)

    wanted = [group for group in groups if group.gone]
    if not refusal(wanted):
        return wanted
    fine: list[Group] = []
    for group in wanted:
        if reason := refusal([*fine, group]):
            group.reason, group.gone = reason, []
        else:
            fine.append(group)
    return fine
