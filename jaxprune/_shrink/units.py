"""Units of a traced program: which slices of params stay or go together, and what keeps them.

The tracer records facts about labels. Here they become one `Unit` per set of joined labels that has
a slice of a param in it. A label with factors belongs to the unit of each of them.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxprune._shrink.cut import units_of_labels
from jaxprune._trace.records import FrozenLabels, LeafSlice
from jaxprune._trace.tracer import Tracer


class LeafAxis(NamedTuple):
    """One axis of one leaf of the params."""

    leaf: int
    axis: int


class Unit(NamedTuple):
    """Slices of params that can only be removed together.

    Attributes:
      label: the smallest of its labels, which names it.
      members: the slices.
      reasons: why it can't be removed; empty if it can.
      contracted: whether any product sums over it.
      zero: whether every product that sums over it has a factor that is known to be zero there.
      consumers: the param axes that read the unit, such as the rows of the next kernel. The axes
        that compute it, such as the columns of its own kernel, are not among them.
      family: for a unit of an axis that a reshape makes, such as an attention head, the number of
        that axis; -1 for any other unit.
    """

    label: int
    members: tuple[LeafSlice, ...]
    reasons: tuple[FrozenLabels, ...]
    contracted: bool
    zero: bool
    consumers: frozenset[LeafAxis]
    family: int

    @property
    def is_candidate(self) -> bool:
        """Whether it can be removed as soon as it is zero."""
        return self.contracted and not self.reasons

    def axes(self) -> tuple[LeafAxis, ...]:
        """The param axes that it has slices on."""
        return tuple(dict.fromkeys(LeafAxis(m.leaf, m.axis) for m in self.members))


def units_of(tracer: Tracer) -> list[Unit]:
    """The units of a traced program that contain slices of params, in the order of the leaves."""
    table = units_of_labels(tracer)
    frozen, zero, consumers = _frozen(tracer, table), _zero(tracer, table), _consumers(tracer)
    members: dict[int, list[LeafSlice]] = {}
    consumed: dict[int, set[LeafAxis]] = {}
    for units, member, is_consumer in zip(table.tolist(), tracer.members, consumers, strict=False):
        for unit in units:
            if unit >= 0:
                members.setdefault(unit, []).append(member)
                if is_consumer:
                    axes = consumed.setdefault(unit, set())
                    axes.add(LeafAxis(member.leaf, member.axis))
    return [
        Unit(
            label,
            tuple(dict.fromkeys(slices)),
            tuple(frozen.get(label, {}).values()),
            contracted=label in zero,
            zero=zero.get(label, False),
            consumers=frozenset(consumed.get(label, ())),
            family=tracer.families.get(label, -1),
        )
        for label, slices in members.items()
    ]


def _frozen(tracer: Tracer, table: np.ndarray) -> dict[int, dict[str, FrozenLabels]]:
    """For each unit that can't be removed, its reasons, each with the first record of it."""
    frozen: dict[int, dict[str, FrozenLabels]] = {}
    for record in tracer.frozen:
        for unit in np.unique(table[record.labels]).tolist():
            if unit >= 0:
                frozen.setdefault(unit, {}).setdefault(record.reason, record)
    return frozen


def _zero(tracer: Tracer, table: np.ndarray) -> dict[int, bool]:
    """For each unit that products sum over, whether all of them are known to be zero there."""
    # Entries that belong to no unit have index -1, which writes to the additional last entry.
    is_contracted = np.zeros(len(table) + 1, bool)
    is_nonzero = np.zeros(len(table) + 1, bool)
    for contraction in tracer.contractions:
        units = table[contraction.labels]
        is_contracted[units] = True
        is_nonzero[units[~contraction.zero]] = True
    return {unit: not is_nonzero[unit] for unit in np.flatnonzero(is_contracted[:-1]).tolist()}


def _consumers(tracer: Tracer) -> list[bool]:
    """For each of `Tracer.members`, whether it consumes a unit and does not produce one.

    A slice consumes a unit if a product of its leaf with data sums over the unit. It produces one
    if the unit is an axis of the result of such a product.
    """
    sets = tracer.weight_sets.roots(tracer.n_labels)

    def reached(arrays: Iterable[np.ndarray]) -> np.ndarray:
        labels = np.zeros(len(sets), bool)
        for array in arrays:
            labels[sets[array]] = True
        for reshaped, labels_before in reversed(tracer.weight_links):
            labels[sets[labels_before[labels[sets[reshaped]]]]] = True
        return labels[sets]

    summed = [c.weight_labels for c in tracer.contractions if c.weight_labels is not None]
    return (reached(summed) & ~reached(tracer.produced)).tolist()
