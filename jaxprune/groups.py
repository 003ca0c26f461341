"""Groups of units: which there are, which may go, and what is left of the params without them.

A group may go if the model with it cut is the same program on smaller shapes. That is decided by
tracing the smaller model: a constant derived from a size, such as 1 / sqrt(head_dim), shows there,
as does code that has a size written into it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.axes import LENGTH, WINDOW, Program, Unit, is_literal

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


def why_not(apply_small: Callable[..., Any], small: Any, inputs: Sequence[Any], jaxpr: Any) -> str:
    """Why the model with these params is not the same program on smaller shapes; empty if it is."""
    try:
        again = jax.make_jaxpr(apply_small)(small, *inputs)
    except Exception as error:  # whatever the user's model raises is the reason
        line = str(error).strip().partition("\n")[0]
        return f"the model does not run with it smaller: {type(error).__name__}: {line}"
    shapes = [[var.aval.shape for var in j.jaxpr.outvars] for j in (jaxpr, again)]
    if shapes[0] != shapes[1]:
        return f"the output would change its shape from {shapes[0]} to {shapes[1]}"
    for a, b in zip(jaxpr.consts, again.consts, strict=False):
        if np.shape(a) != np.shape(b):
            return f"a constant of shape {np.shape(a)} becomes one of shape {np.shape(b)}"
    return _change(jaxpr.jaxpr, again.jaxpr)


def _change(a: Any, b: Any) -> str:
    """The first thing, other than shapes, in which two programs differ; empty if none."""
    if len(a.eqns) != len(b.eqns):
        return "the program depends on its size"
    for old, new in zip(a.eqns, b.eqns, strict=True):
        name = old.primitive.name
        if name != new.primitive.name:
            return f"the program depends on its size: {name} becomes {new.primitive.name}"
        for x, y in zip(old.invars, new.invars, strict=True):
            literal = is_literal(x)
            if literal != is_literal(y):
                return f"the program depends on its size: {name} has another operand"
            if literal and not np.array_equal(x.val, y.val, equal_nan=True):
                return (
                    f"a constant is derived from its size: {name} by {_number(x)} becomes "
                    f"{name} by {_number(y)}"
                )
        for x, y in zip(_programs(old.params), _programs(new.params), strict=False):
            if change := _change(x, y):
                return change
    return ""


def _number(literal: Any) -> str:
    return f"{float(literal.val):.4g}" if np.ndim(literal.val) == 0 else str(literal.val)


def _programs(params: dict[str, Any]) -> Iterable[Any]:
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns"):
                yield getattr(part, "jaxpr", part)


def accepted(
    program: Program,
    groups: Sequence[Group],
    apply_small: Callable[..., Any],
    inputs: Sequence[Any],
) -> list[Group]:
    """The groups that can be cut, together; the others are told why not, and cut nothing."""

    def refusal(groups: list[Group]) -> str:
        return why_not(apply_small, cut(program, groups, shapes=True), inputs, program.jaxpr)

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
