"""Numbers, bytes and multiply-adds of each layer, before and after units are removed.

Multiply-adds are those of matrix products and convolutions, for the example inputs. They are
computed from the traced program: the lengths of the axes of every product, with and without the
removed units. A loop of unknown length counts once, and a branch counts as if it were taken.
"""

import functools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune._base.paths import shown_path
from jaxprune._shrink.cut import Cut, units_of_labels
from jaxprune._trace.program import Program
from jaxprune._trace.records import EquationArrays, EquationPath
from jaxprune._trace.tracer import Tracer, is_literal

ACTIVATIONS = "(activations)"  # products without a param, such as attention weights times values


class Cost(NamedTuple):
    """What a layer costs.

    Attributes:
      numbers: how many its leaves have.
      bytes: of its leaves.
      multiply_adds: of the products with its leaves, for the example inputs.
    """

    numbers: int = 0
    bytes: int = 0
    multiply_adds: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """The sum of two costs."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class LayerCost(NamedTuple):
    """A layer before and after: the leaves with one parent, or a leaf at the top of the tree."""

    name: str
    before: Cost
    now: Cost


def layer_costs(
    program: Program,
    tracer: Tracer,
    removed: Iterable[int],
    small: Sequence[Any],
    uncounted: Collection[str] = (),
) -> tuple[LayerCost, ...]:
    """The costs of all layers, in the order of the leaves.

    Args:
      program: the model before.
      tracer: that traced it.
      removed: the units that were removed.
      small: the leaves that are left.
      uncounted: paths of leaves that count as no numbers.
    """
    units_of = units_of_labels(tracer)
    whole, cut = Cut(units_of, ()), Cut(units_of, removed)
    names = [_layer(path) for path in program.paths]
    before, now = (dict.fromkeys([*names, ACTIVATIONS], Cost()) for _ in range(2))
    for costs, leaves in ((before, program.leaves), (now, small)):
        for path, name, leaf in zip(program.paths, names, leaves, strict=True):
            if path not in uncounted:
                size = math.prod(np.shape(leaf))
                costs[name] = costs[name].plus(Cost(size, size * _item_size(leaf)))
    for path, (eqn, leaf, times) in _products(program).items():
        name = ACTIVATIONS if leaf is None else names[leaf]
        for costs, one_cut in ((before, whole), (now, cut)):
            n = times * _multiply_adds(eqn, tracer.equations[path], one_cut)
            costs[name] = costs[name].plus(Cost(multiply_adds=n))
    return tuple(LayerCost(name, cost, now[name]) for name, cost in before.items() if any(cost))


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of some costs."""
    return functools.reduce(Cost.plus, costs, Cost())


def _layer(path: str) -> str:
    parent = path.rpartition("/")[0]
    return shown_path(parent if parent not in ("", "params") else path)


def _item_size(leaf: Any) -> int:
    return (leaf.dtype if hasattr(leaf, "dtype") else np.dtype(type(leaf))).itemsize


def _multiply_adds(eqn: Any, arrays: EquationArrays, cut: Cut) -> int:
    left, right = arrays.operands
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "dot_general":
        summed = [left.axes[k] for k in numbers[0][0]]
    else:  # the kernel without its output channels
        summed = [right.axes[k] for k in numbers.rhs_spec[1:]]
    return math.prod(cut.length(axis) for axis in (*arrays.results[0].axes, *summed))


class _Product(NamedTuple):
    """A product, the leaf that is its kernel, if any, and how often a loop repeats it."""

    eqn: Any
    leaf: int | None
    times: int


def _products(program: Program) -> dict[EquationPath, _Product]:
    """All matrix products and convolutions of a program."""
    leaves: list[int | None] = list(range(len(program.leaves)))
    jaxpr = program.jaxpr.jaxpr
    kernels = [*leaves, *[None] * (len(jaxpr.invars) - len(leaves))]
    products: dict[EquationPath, _Product] = {}
    _follow(jaxpr, kernels, (), 1, products)
    return products


def _follow(
    jaxpr: Any,
    kernels: Iterable[int | None],
    outer_path: EquationPath,
    times: int,
    products: dict[EquationPath, _Product],
) -> list[int | None]:
    """Collects the products of a program, and returns which results are computed from one leaf.

    Args:
      jaxpr: the program.
      kernels: for each argument, the leaf that it is computed from alone; None for data.
      outer_path: of the equation that holds the program.
      times: how often the program runs.
      products: collected so far.
    """
    leaf_of = dict(zip(jaxpr.invars, kernels, strict=True))
    for number, eqn in enumerate(jaxpr.eqns):
        path = (*outer_path, number)
        operands = [None if is_literal(x) else leaf_of.get(x) for x in eqn.invars]
        results = _results(eqn, operands)
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            leaf = next((leaf for leaf in reversed(operands) if leaf is not None), None)
            products[path] = _Product(eqn, leaf, times)
        for key, value in eqn.params.items():
            for k, inner in enumerate(value if isinstance(value, (tuple, list)) else (value,)):
                if key in _FOLLOWED and hasattr(inner, "eqns"):
                    program = getattr(inner, "jaxpr", inner)
                    n = len(program.invars)
                    args = operands[len(operands) - n :]
                    inner_times = times * eqn.params.get("length", 1)
                    outs = _follow(program, args, (*path, key, k), inner_times, products)
                    results = outs if len(outs) == len(eqn.outvars) else results
        leaf_of |= zip(eqn.outvars, results, strict=True)
    return [None if is_literal(x) else leaf_of.get(x) for x in jaxpr.outvars]


_FOLLOWED = ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr", "branches")


def _results(eqn: Any, operands: Sequence[int | None]) -> list[int | None]:
    """The leaf that the results of an equation are computed from, if all operands are of leaves."""
    arrays = [leaf for leaf, x in zip(operands, eqn.invars, strict=True) if x.aval.shape]
    leaf = max((leaf for leaf in arrays if leaf is not None), default=None)
    return [leaf if None not in arrays else None] * len(eqn.outvars)
