"""Which leaves are chosen, and which rule decides for each of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxprune._base.paths import Rule, matches, rule_name
from jaxprune._recipe.default_choice import (
    Specs,
    default_reasons,
    free_reason,
    is_default_of_keep_zeros,
)
from jaxprune._recipe.spelling import spelled_rules


class RuleUse:
    """Matches rules against leaves, and remembers which rules have matched and decided.

    A rule decides for a leaf if it is the first of its argument that matches.

    Example:
      >>> use, spec = RuleUse(), jax.ShapeDtypeStruct((2, 2), float)
      >>> use.first("overrides", ("fc/.*", "fc/kernel", "head"), "fc/kernel", spec)
      0
      >>> print(*use.unused("overrides", ("fc/.*", "fc/kernel", "head"), decides=True), sep="; ")
      overrides: 'fc/kernel' only matches leaves ...; overrides: 'head' matches no leaf ...
    """

    def __init__(self) -> None:
        self._matched: set[tuple[str, int]] = set()  # arguments, and indices of their rules
        self._decided: set[tuple[str, int]] = set()

    def first(self, argument: str, rules: Sequence[Rule], path: str, spec: Any) -> int | None:
        """The index of the first rule of an argument that matches a leaf; None where none does."""
        matching = [(argument, i) for i, rule in enumerate(rules) if matches(rule, path, spec)]
        self._matched.update(matching)
        self._decided.update(matching[:1])
        return matching[0][1] if matching else None

    def unused(self, argument: str, rules: Sequence[Rule], *, decides: bool) -> list[str]:
        """One line for each rule that has had no effect.

        Args:
          argument: the name of the user's argument.
          rules: its rules.
          decides: whether the rules of the argument assign values to pruned leaves, so that only
            the first match counts.
        """
        lines = []
        for i, rule in enumerate(rules):
            if (argument, i) not in self._matched:
                which = " that is pruned" if decides else ""
                lines.append(f"{argument}: {rule_name(rule)} matches no leaf{which}")
            elif decides and (argument, i) not in self._decided:
                lines.append(
                    f"{argument}: {rule_name(rule)} only matches leaves that an earlier rule "
                    "matches"
                )
        return lines


class Choice(NamedTuple):
    """Whether a leaf is chosen.

    Attributes:
      chosen: whether it is.
      reason: why not; empty for a chosen leaf.
      override: the index of the override that applies to it, or None.
      by_rule: whether `include` or `exclude` left it out.
    """

    chosen: bool
    reason: str
    override: int | None = None
    by_rule: bool = False


class LeafRules(NamedTuple):
    """The rules that choose leaves.

    Attributes:
      include: a leaf must match one of these; None for the default, `default_reasons`.
      exclude: a leaf that matches one of these is not chosen.
      overrides: the first that matches a chosen leaf applies to it. They choose nothing.
    """

    include: tuple[Rule, ...] | None = None
    exclude: tuple[Rule, ...] = ()
    overrides: tuple[Rule, ...] = ()

    def spelled_for(self, paths: Sequence[str]) -> "LeafRules":
        """The rules in the spelling of the paths; see `jaxprune._recipe.spelling`."""
        return LeafRules(*(spelled_rules(rules, paths) for rules in self))

    def choose(self, paths: Sequence[str], specs: Specs, use: RuleUse) -> tuple[Choice, ...]:
        """Decides whether each leaf of a tree is chosen; what is not an array never is."""
        reasons = default_reasons(paths, specs)
        return tuple(
            self._choice(path, spec, reason, use)
            for path, spec, reason in zip(paths, specs, reasons, strict=True)
        )

    def _choice(
        self, path: str, spec: jax.ShapeDtypeStruct | None, default_reason: str, use: RuleUse
    ) -> Choice:
        if spec is None:
            return Choice(False, default_reason)
        excluded = use.first("exclude", self.exclude, path, spec)
        if self.include is not None and use.first("include", self.include, path, spec) is None:
            by_default = is_default_of_keep_zeros(self.include)
            reason = free_reason(path, spec) if by_default else "not matched by include"
            return Choice(False, reason, by_rule=True)
        if excluded is not None:
            return Choice(False, f"excluded by {rule_name(self.exclude[excluded])}", by_rule=True)
        if self.include is None and default_reason:
            return Choice(False, default_reason)
        return Choice(True, "", use.first("overrides", self.overrides, path, spec))

    def unused(self, use: RuleUse) -> list[str]:
        """One line for each rule that had no effect on the leaves that were chosen with `use`."""
        return [
            *use.unused("include", self.include or (), decides=False),
            *use.unused("exclude", self.exclude, decides=False),
            *use.unused("overrides", self.overrides, decides=True),
        ]
