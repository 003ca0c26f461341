"""Regexes with dots in place of slashes, or slashes in place of dots.

The same model has `encoder/fc/kernel` in one library and `encoder.fc.weight` in a file of another.
A regex that matches no path as it is written is tried in the other spelling.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from jaxprune._base.paths import Rule

_Recipe = TypeVar("_Recipe")


def spelled(rule: Rule, paths: Sequence[str]) -> Rule:
    r"""The rule, in the other spelling where only that one matches a path.

    Example:
      >>> spelled("encoder/.*", ["encoder.fc.weight"]), spelled(r"fc\.w", ["fc/w"])
      ('encoder\\..*', 'fc/w')
      >>> spelled("fc/.*", ["fc/w", "fc.w"]), spelled("x/y", ["fc.w"])
      ('fc/.*', 'x/y')
    """
    if not isinstance(rule, str) or _matches(rule, paths):
        return rule
    for other in (rule.replace("/", r"\."), rule.replace(r"\.", "/").replace("[.]", "/")):
        if other != rule and _matches(other, paths):
            return other
    return rule


def _matches(rule: str, paths: Iterable[str]) -> bool:
    try:
        matcher = re.compile(rule)
    except re.error:  # of the other spelling, such as a range of characters
        return False
    return any(matcher.fullmatch(path) for path in paths)


def spelled_rules(rules: tuple[Rule, ...] | None, paths: Sequence[str]) -> Any:
    """`spelled` for several rules; None stays None."""
    return None if rules is None else tuple(spelled(rule, paths) for rule in rules)


def spelled_pairs(pairs: Sequence[tuple[Rule, Any]], paths: Sequence[str]) -> Any:
    """`spelled` for rules that each have a value."""
    return tuple((spelled(rule, paths), value) for rule, value in pairs)


@functools.lru_cache(maxsize=64)
def spelled_recipe(recipe: _Recipe, paths: tuple[str, ...]) -> _Recipe:
    """A `Recipe` whose rules are `spelled`; the same object where none changes."""
    fields: Any = recipe
    roles, distribution = fields.roles, fields.distribution
    if roles is not None and roles.rules:
        roles = dataclasses.replace(roles, rules=spelled_pairs(roles.rules, paths))
    if distribution.stacked:
        stacked = spelled_pairs(distribution.stacked, paths)
        distribution = dataclasses.replace(distribution, stacked=stacked)
    changed = dataclasses.replace(
        fields,
        include=spelled_rules(fields.include, paths),
        exclude=spelled_rules(fields.exclude, paths),
        overrides=spelled_pairs(fields.overrides, paths),
        structures=spelled_pairs(fields.structures, paths),
        distribution=distribution,
        roles=roles,
    )
    return recipe if changed == recipe else changed
