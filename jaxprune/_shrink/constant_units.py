"""Units whose kernels are zero but whose biases are not, so that `shrink` has to keep them.

Such a unit is constant, but not zero: the next layer adds it up. It is what is left of a pruned
channel if fine-tuning keeps the zeros of kernels only. A bias that starts to learn makes the unit
`gelu(bias)`, and so does a scale or bias of a normalisation behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune._base.paths import is_box, spec_of
from jaxprune._recipe.default_choice import default_reasons
from jaxprune._shrink.groups import Group
from jaxprune._shrink.units import LeafAxis, Unit
from jaxprune._trace.program import Program
from jaxprune._trace.records import LeafSlice


class ConstantUnits(NamedTuple):
    """Units that are constant but not zero.

    Attributes:
      n_units: how many there are.
      paths: of the leaves that are not zero there.
    """

    n_units: int = 0
    paths: tuple[str, ...] = ()


def constant_units(program: Program, groups: Iterable[Group]) -> ConstantUnits:
    """The units that stay only because a bias, a scale or the like is not zero.

    Kernels are the leaves that `prune` would prune by default. Those that only read a unit do not
    count, and neither do running statistics, which no optimizer trains.
    """
    is_kernel = _are_kernels(program)
    statistics = _statistics(program)

    @functools.cache
    def nonzero(leaf: int, axis: int) -> np.ndarray:
        values = np.asarray(program.leaves[leaf])
        return np.any(values != 0, tuple(i for i in range(values.ndim) if i != axis))

    def is_nonzero(member: LeafSlice) -> bool:
        return bool(nonzero(member.leaf, member.axis)[member.position])

    n_units, leaves = 0, set()
    for unit in _kept(groups):
        own = [m for m in unit.members if LeafAxis(m.leaf, m.axis) not in unit.consumers]
        kernels = [m for m in own if is_kernel[m.leaf]]
        others = [m for m in own if not is_kernel[m.leaf] and m.leaf not in statistics]
        alive = [m.leaf for m in others if is_nonzero(m)]
        if kernels and alive and not any(map(is_nonzero, kernels)):
            n_units += 1
            leaves.update(alive)
    return ConstantUnits(n_units, tuple(program.paths[leaf] for leaf in sorted(leaves)))


def _kept(groups: Iterable[Group]) -> list[Unit]:
    """The units that could be removed if they were zero, but are not."""
    return [
        unit
        for group in groups
        if not group.reason
        for unit in group.units
        if unit.is_candidate and not unit.zero
    ]


def _are_kernels(program: Program) -> list[bool]:
    """Whether each leaf is one that `prune` would prune by default."""
    specs = tuple(map(spec_of, program.leaves))
    return [not reason for reason in default_reasons(program.paths, specs)]


def _statistics(program: Program) -> set[int]:
    """The leaves that are no params: other collections of linen, and `nnx.BatchStat`."""
    is_param = [path.startswith("params/") for path in program.paths]
    if any(is_param):
        return {i for i, param in enumerate(is_param) if not param}
    nodes = jax.tree.leaves(program.treedef.unflatten(program.leaves), is_leaf=is_box)
    if len(nodes) != len(program.leaves):
        return set()
    return {i for i, node in enumerate(nodes) if _is_batch_stat(node)}


def _is_batch_stat(node: object) -> bool:
    kind: Any = type(node)
    if kind.__name__ == "VariableState":  # of older versions of flax, and no variable itself
        kind = getattr(node, "type", kind)
    return any(base.__name__ == "BatchStat" for base in kind.__mro__)
