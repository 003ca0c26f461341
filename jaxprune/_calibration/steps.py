"""The steps in which a model is pruned layer by layer: its leaves in the order of their products.

The slices of a leaf that a `scan` loops over, such as the kernels of stacked layers, are in steps
of their own: slice 0 of all leaves runs before slice 1 of any.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune._base.paths import Rule, matches, spec_of
from jaxprune._calibration.collection import ModelTrace, equations_to
from jaxprune._calibration.product_plans import LeafPlans
from jaxprune._trace.tracer import EquationPath


class Part(NamedTuple):
    """What a step prunes of one leaf.

    Attributes:
      path: of the leaf.
      slices: the numbers of the slices, counted over all stack axes; None for the whole leaf.
    """

    path: str
    slices: tuple[int, ...] | None


Step = list[Part]


class _Unit(NamedTuple):
    """A part, and when it runs.

    Attributes:
      part: the part.
      order: when its product runs: numbers of equations and of iterations.
      iterations: of the loops around it.
      group: equal for parts that share their input.
    """

    part: Part
    order: tuple[Any, ...]
    iterations: tuple[int, ...]
    group: Any


def steps_of(trace: ModelTrace, paths: Sequence[str], blocks: Sequence[Rule] = ()) -> list[Step]:
    """The steps in which leaves are pruned, in the order in which their products run.

    Args:
      trace: of the model.
      paths: of the leaves.
      blocks: rules; leaves that match the same one are in the same step.
    """
    units = []
    for path in paths:
        units += _units(trace.program.jaxpr.jaxpr, path, trace.leaves[path])
    units.sort(key=lambda unit: unit.order)
    specs = dict(zip(trace.program.paths, map(spec_of, trace.program.leaves), strict=True))
    steps: dict[Any, Step] = {}
    last = None
    for unit in units:
        path, spec = unit.part.path, specs[unit.part.path]
        assert spec is not None  # a product has arrays
        block = [i for i, rule in enumerate(blocks) if matches(rule, path, spec)]
        if block:
            key = ("block", block[0], unit.iterations)
        elif last is not None and last[0] == (unit.iterations, unit.group):
            key = last[1]
        else:
            key = ("unit", unit.order)
        last = None if block else ((unit.iterations, unit.group), key)
        steps.setdefault(key, []).append(unit.part)
    return list(steps.values())


def looked_up_in_loops(trace: ModelTrace, paths: Sequence[str]) -> list[str]:
    """The leaves whose layers a loop looks up by an index; each of them is a single part."""
    paths_in_loops = []
    for path in paths:
        leaf = trace.leaves[path]
        where = min(leaf.plans)
        *outer, _ = equations_to(trace.program.jaxpr.jaxpr, where)
        is_in_loop = any(around.primitive.name in ("scan", "while") for around in outer)
        if is_in_loop and leaf.view.stack and any(plan.lookups for plan in leaf.plans[where]):
            paths_in_loops.append(path)
    return paths_in_loops


def _units(jaxpr: Any, path: str, leaf: LeafPlans) -> list[_Unit]:
    """The parts of one leaf, by the first product that it is in."""
    where = min(leaf.plans)
    *outer, eqn = equations_to(jaxpr, where)
    is_reverse = {
        where[: 3 * k + 1]: around.params["reverse"]
        for k, around in enumerate(outer)
        if around.primitive.name == "scan"
    }
    scans = list(is_reverse)
    plan = leaf.plans[where][0]
    group = (where[:-1], id(eqn.invars[1 - plan.operand]))
    sliced = {scan: place for scan, place in plan.loops if place.slices.any()}
    is_split = len(leaf.plans) == len(leaf.plans[where]) == 1 and not plan.lookups
    lengths = [len(sliced[scan].slices) if is_split and scan in sliced else 1 for scan in scans]
    units = []
    for iterations in itertools.product(*map(range, lengths)):
        order = _order(where, dict(zip(scans, iterations, strict=True)))
        slices = None
        if is_split and sliced:
            start = sum(
                int(sliced[scan].slices[-1 - i if is_reverse[scan] else i])
                for scan, i in zip(scans, iterations, strict=True)
                if scan in sliced
            )
            numbers = (plan.slices[plan.slices >= 0] + start) // leaf.view.n_groups
            slices = tuple(sorted(set(numbers.tolist())))
        units.append(_Unit(Part(path, slices), order, iterations, group))
    return units


def _order(where: EquationPath, iterations: Mapping[EquationPath, int]) -> tuple[Any, ...]:
    """When an equation runs: its path, with the iteration after each loop."""
    order: list[Any] = []
    for end in range(1, len(where) + 1, 3):
        order += [where[end - 1], iterations.get(where[:end], 0), *where[end : end + 2]]
    return tuple(order)
