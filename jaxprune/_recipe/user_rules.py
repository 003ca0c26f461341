"""The rules of a user: arguments that map regexes and functions to what they decide."""

import types
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from jaxprune._base.arguments import as_sparsity
from jaxprune._base.paths import Rule, as_rules
from jaxprune._recipe import errors
from jaxprune._recipe.roles import RoleRules
from jaxprune._recipe.structures import Unstructured
from jaxprune._recipe.traits import Structure, traits_of

ANY = "(?s:.*)"  # matches every path, even one with line breaks


class UserRules(NamedTuple):
    """All rules of a user, by argument.

    Attributes:
      include: rules of the leaves to prune; None for the default.
      exclude: rules of the leaves to leave out.
      assigned: for each argument that assigns values to pruned leaves, its rules and the values.
      roles: the roles of axes, or None.
      slices: path of a slice that overrides may name -> path of its leaf.
    """

    include: tuple[Rule, ...] | None
    exclude: tuple[Rule, ...]
    assigned: Mapping[str, Sequence[tuple[Rule, Any]]]
    roles: RoleRules | None = None
    slices: Mapping[str, str] = types.MappingProxyType({})

    def by_argument(self) -> list[tuple[str, Rule, Any]]:
        """The argument, the rule and its value, for every rule; None for the value of a choice."""
        selecting = {"include": self.include or (), "exclude": self.exclude}
        chosen = [(name, rule, None) for name, rules in selecting.items() for rule in rules]
        return chosen + [(name, *pair) for name, pairs in self.assigned.items() for pair in pairs]

    def coupled(self) -> set[Rule]:
        """The rules of coupled channels, which `channel_groups` makes all at once."""
        pairs = self.assigned["structure"]
        return {rule for rule, value in pairs if traits_of(value).coupled_group is not None}


def as_include(include: Any) -> tuple[Rule, ...] | None:
    """The rules of the argument `include`; None for the default."""
    rules = None if include is None else as_rules(include, "include")
    if rules == ():
        raise ValueError(
            "include must hold at least one rule, got none. Leave it out for the default."
        )
    return rules


def as_structures(structure: Any) -> tuple[tuple[Rule, Structure], ...]:
    """Rules with their structures; the last matches all leaves."""
    if not isinstance(structure, Mapping):
        errors.check_structure("structure", structure)
        return ((ANY, structure),)
    rules = as_rules(tuple(structure), "structure")
    for rule, value in structure.items():
        errors.check_structure(f"structure[{rule!r}]", value)
    return (*zip(rules, structure.values(), strict=True), (ANY, Unstructured()))


def as_overrides(overrides: Any, finals: Sequence[Fraction]) -> tuple[tuple[Rule, Fraction], ...]:
    """Rules with their final sparsities, for schedules that end at `finals`."""
    if overrides is None:
        return ()
    errors.check_overrides(overrides, finals)
    rules = as_rules(tuple(overrides), "overrides")
    values = [as_sparsity(value, f"overrides[{key!r}]") for key, value in overrides.items()]
    return tuple(zip(rules, values, strict=True))
