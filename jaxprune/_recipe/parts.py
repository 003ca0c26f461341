"""The chosen leaves before their pools are known: their structures, and what pools they form.

A leaf forms one pool, or one pool for each slice along some of its axes: those that `per_slice`
names, or those whose role is `"stack"`. A slice is told to the distribution like a leaf.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax

from jaxprune._base.paths import Rule
from jaxprune._recipe import errors
from jaxprune._recipe.choice import RuleUse
from jaxprune._recipe.distributions import Distribution
from jaxprune._recipe.leaf_axes import AxesOf, places
from jaxprune._recipe.pools import LeafShape
from jaxprune._recipe.roles import RoleRules
from jaxprune._recipe.score_checks import check_score
from jaxprune._recipe.structural import Existing, with_existing
from jaxprune._recipe.traits import Structure, traits_of


class Part(NamedTuple):
    """A chosen leaf before its pools are known.

    Attributes:
      structure: what a unit is.
      axes: the axes whose slices are pools, counted from 0; none for one pool.
      entries: what the distribution is told about the leaf, or about each slice in row-major order.
      overrides: the index of the override that applies to each entry, or None.
      roles: the role of each axis of the leaf, or None.
    """

    structure: Structure
    axes: tuple[int, ...]
    entries: list[LeafShape]
    overrides: tuple[int | None, ...]
    roles: tuple[str, ...] | None


class PartRules(NamedTuple):
    """The arguments of a user that decide parts; see `Recipe`.

    Attributes:
      targets: the sparsity at each fire.
      overrides: rules, each with a final sparsity of its own.
      distribution: how sparsity is spread over leaves.
      structures: rules, each with a structure; the last matches all.
      roles: the roles of axes, or None.
      score: what a weight is worth.
      structural: rules, each with the weights that exist in a leaf.
    """

    targets: tuple[Fraction, ...]
    overrides: tuple[tuple[Rule, Fraction], ...]
    distribution: Distribution
    structures: tuple[tuple[Rule, Structure], ...]
    roles: RoleRules | None
    score: Any
    structural: tuple[tuple[Rule, Existing], ...]

    def part(
        self, path: str, spec: jax.ShapeDtypeStruct, override: int | None, use: RuleUse
    ) -> Part:
        """The part of a chosen leaf.

        Args:
          path: of the leaf.
          spec: its shape and dtype.
          override: the index of the override that applies to the whole leaf, or None.
          use: remembers which rules decide.

        Raises:
          ValueError: naming the leaf, which can't be pruned as asked.
        """
        errors.check_leaf(path, spec)
        roles = None if self.roles is None else self.roles.of(path, spec.shape)
        check_score(path, spec, self.score, roles)
        structure = self._structure(path, spec, use)
        axes = self._sliced(path, spec, structure, roles, use)
        shape = _without(spec.shape, axes)
        rest = None if roles is None else _without(roles, axes)
        reason = "" if self.roles is None else self.roles.reason(path)
        structure = errors.fitted(structure, AxesOf(path, shape, rest, reason))
        n_units, n_groups = errors.checked_units(path, structure, shape)
        if not math.prod(spec.shape[axis] for axis in axes):
            n_units = 0
        entry = LeafShape(path, shape, n_units, (), n_groups=max(n_groups, 1), roles=rest)
        lengths = [max(spec.shape[axis], 1) for axis in axes]  # no slice counts as an empty one
        overrides = (override,)
        if axes:
            overrides = self._overrides_of_slices(path, spec, lengths, override, use)
        targets = {i: self._targets(i) for i in set(overrides)}
        for i in targets:
            if i is not None:
                errors.check_scaled(path, targets[i], self.targets)
            errors.check_final(path, structure, targets[i][-1])
        entries = {i: entry._replace(targets=targets[i], fixed=i is not None) for i in targets}
        by_slice = [entries[i] for i in overrides]
        if isinstance(structure, Existing):
            counts = structure.n_units_of_slices(axes)
            by_slice = [e._replace(n_units=n) for e, n in zip(by_slice, counts, strict=True)]
        return Part(structure, axes, by_slice, overrides, roles)

    def slice_names(self, path: str, spec: Any) -> list[str]:
        """The paths of the slices of a leaf that are pools; none if the leaf is one pool."""
        use = RuleUse()
        roles = None if self.roles is None else self.roles.of(path, spec.shape)
        axes = self._sliced(path, spec, self._structure(path, spec, use), roles, use)
        return list(slice_names(path, [spec.shape[axis] for axis in axes])) if axes else []

    def _structure(self, path: str, spec: Any, use: RuleUse) -> Structure:
        i = use.first("structure", _rules(self.structures), path, spec)
        assert i is not None  # the last rule matches all
        k = use.first("structural", _rules(self.structural), path, spec)
        existing = None if k is None else self.structural[k][1]
        return with_existing(path, spec.shape, self.structures[i][1], existing)

    def _sliced(
        self,
        path: str,
        spec: jax.ShapeDtypeStruct,
        structure: Structure,
        roles: tuple[str, ...] | None,
        use: RuleUse,
    ) -> tuple[int, ...]:
        """The axes whose slices are pools."""
        stacked = self.distribution.stacked
        k = use.first("per_slice", _rules(stacked), path, spec)
        if k is not None:
            return (errors.checked_slices(path, spec.shape, stacked[k][1], structure),)
        return stack_axes(self.distribution, structure, roles)

    def _overrides_of_slices(
        self,
        path: str,
        spec: jax.ShapeDtypeStruct,
        lengths: Sequence[int],
        override: int | None,
        use: RuleUse,
    ) -> tuple[int | None, ...]:
        """The override of each slice: that of its own path, else that of the leaf."""
        rules = _rules(self.overrides)
        if not rules:
            return (None,) * len(list(slice_names(path, lengths)))
        own = [use.first("overrides", rules, name, spec) for name in slice_names(path, lengths)]
        return tuple(override if i is None else i for i in own)

    def _targets(self, override: int | None) -> tuple[Fraction, ...]:
        """The sparsity at each fire, scaled to end at an override."""
        if override is None:
            return self.targets
        final = self.overrides[override][1]
        return tuple(target * final / self.targets[-1] for target in self.targets)


def stack_axes(
    distribution: Distribution, structure: Structure, roles: tuple[str, ...] | None
) -> tuple[int, ...]:
    """The axes of role `"stack"`, if the slices along them are pools of their own.

    They are not where all leaves are one pool, or where units may extend over several slices.
    """
    traits = traits_of(structure)
    if roles is None or distribution.pooled or not (traits.is_elementwise or traits.follows_roles):
        return ()
    axes = places(roles, "stack")
    return axes if len(axes) < len(roles) else ()


def slice_names(path: str, lengths: Sequence[int]) -> Iterator[str]:
    """The paths of the slices of a leaf, in row-major order: its path with the indices appended.

    Example:
      >>> list(slice_names("w", [2, 2]))
      ['w/0/0', 'w/0/1', 'w/1/0', 'w/1/1']
    """
    for index in itertools.product(*map(range, lengths)):
        yield "/".join((path, *map(str, index)))


def joined(parts: Sequence[Part], n_parts: int) -> tuple[list[LeafShape], list[range]]:
    """The entries of all leaves in one list, and the places of each leaf's entries in it.

    All leaves of a coupled group share one entry, which has the shape of that with most axes, not
    of a bias; an override of any of them is that of the group.

    Raises:
      ValueError: leaves of a group have different overrides.
    """
    entries: list[LeafShape] = []
    positions: list[range] = []
    shared: dict[str, int] = {}  # the entry of each coupled group
    for part in parts:
        group = traits_of(part.structure).coupled_group
        start = len(entries) if group is None else shared.setdefault(group, len(entries))
        if start == len(entries):
            entries += [entry._replace(n_units=entry.n_units * n_parts) for entry in part.entries]
        else:
            entries[start] = _both(entries[start], part.entries[0])
        positions.append(range(start, start + len(part.entries)))
    return entries, positions


def _both(entry: LeafShape, other: LeafShape) -> LeafShape:
    """The entry of a coupled group with one more leaf."""
    if entry.fixed and other.fixed and entry.targets != other.targets:
        raise errors.other_override(entry, other)
    if len(other.shape) > len(entry.shape):
        entry = entry._replace(path=other.path, shape=other.shape, roles=other.roles)
    return entry._replace(targets=other.targets, fixed=True) if other.fixed else entry


def _rules(pairs: Sequence[tuple[Rule, Any]]) -> tuple[Rule, ...]:
    return tuple(rule for rule, _ in pairs)


def _without(values: Sequence[Any], axes: Sequence[int]) -> tuple[Any, ...]:
    return tuple(value for axis, value in enumerate(values) if axis not in axes)
