"""Units of a traced program: which slices of params stay or go together, and what keeps them.

The tracer records facts about labels. Here they become one `Unit` per set of joined labels that has
a slice of a param in it.
"""

from typing import NamedTuple

from jaxprune._trace.tracer import LeafSlice, Tracer


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
      zero: whether in every such product one factor is known to be zero there.
      consumers: the param axes that take it up: rows of the next kernel, not columns of its own.
    """

    label: int
    members: tuple[LeafSlice, ...]
    reasons: tuple[str, ...]
    contracted: bool
    zero: bool
    consumers: frozenset[LeafAxis]

    @property
    def is_candidate(self) -> bool:
        """Whether it can be removed as soon as it is zero."""
        return self.contracted and not self.reasons

    def axes(self) -> tuple[LeafAxis, ...]:
        """The param axes that it has slices on."""
        return tuple(dict.fromkeys(LeafAxis(m.leaf, m.axis) for m in self.members))


def units_of(tracer: Tracer) -> list[Unit]:
    """The units of a traced program that have slices of params, in the order of the leaves."""
    reasons, zero, consumers = _reasons(tracer), _zero(tracer), _consumers(tracer)
    members: dict[int, list[LeafSlice]] = {}
    for label, member in enumerate(tracer.members):
        members.setdefault(tracer.units.find(label), []).append(member)
    return [
        Unit(
            label,
            tuple(slices),
            tuple(reasons.get(label, ())),
            contracted=label in zero,
            zero=zero.get(label, False),
            consumers=frozenset(consumers.get(label, ())),
        )
        for label, slices in members.items()
    ]


def _reasons(tracer: Tracer) -> dict[int, list[str]]:
    """For each frozen unit, its reasons, each of them once."""
    reasons: dict[int, dict[str, None]] = {}
    for labels, reason in tracer.frozen:
        for unit in set(tracer.units.find_all(labels)):
            reasons.setdefault(unit, {})[reason] = None
    return {unit: list(texts) for unit, texts in reasons.items()}


def _zero(tracer: Tracer) -> dict[int, bool]:
    """For each unit that a product sums over, whether each such product meets a zero there."""
    zero: dict[int, bool] = {}
    for contraction in tracer.contractions:
        units = tracer.units.find_all(contraction.labels)
        for unit, is_zero in zip(units, contraction.zero.tolist(), strict=True):
            zero[unit] = zero.get(unit, True) and is_zero
    return zero


def _consumers(tracer: Tracer) -> dict[int, set[LeafAxis]]:
    """For each unit, the param axes in it that a product with data sums over."""
    summed = {
        label
        for contraction in tracer.contractions
        if contraction.weight_labels is not None
        for label in tracer.weight_sets.find_all(contraction.weight_labels)
    }
    consumers: dict[int, set[LeafAxis]] = {}
    for label, member in enumerate(tracer.members):
        if tracer.weight_sets.find(label) in summed:
            axes = consumers.setdefault(tracer.units.find(label), set())
            axes.add(LeafAxis(member.leaf, member.axis))
    return consumers
