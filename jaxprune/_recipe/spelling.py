"""Regexes with dots in place of slashes, or slashes in place of dots.

The same model has `encoder/fc/kernel` in one library and `encoder.fc.weight` in a file of another.
A regex that matches no path as it is written is tried in the other spelling. The path of a slice
ends in slashes and indices, also where that of its leaf has dots: `encoder.fc.weight/2`.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from jaxprune._base.caching import bounded_cache
from jaxprune._base.paths import Rule

_Recipe = TypeVar("_Recipe")


def spelled(rule: Rule, paths: Sequence[str]) -> Rule:
    r"""The rule, in another spelling where only that one matches a path.

    Example:
      >>> spelled("encoder/.*", ["encoder.fc.weight"]), spelled(r"fc\.w", ["fc/w"])
      ('encoder\\..*', 'fc/w')
      >>> spelled("fc/.*", ["fc/w", "fc.w"]), spelled("x/y", ["fc.w"])
      ('fc/.*', 'x/y')
      >>> spelled(r"fc\.w\.2", ["fc.w", "fc.w/2"])
      'fc\\.w/2'
    """
    if not isinstance(rule, str) or is_matched(rule, paths):
        return rule
    others = (other for other in _other_spellings(rule) if other != rule)
    return next((other for other in others if is_matched(other, paths)), rule)


def _other_spellings(rule: str) -> Iterator[str]:
    yield rule.replace("/", r"\.")
    slashes = with_slashes(rule)
    yield slashes
    *keys, last = slashes.split("/")
    while keys:  # dots, then slashes
        yield r"\.".join(keys) + f"/{last}"
        last = f"{keys.pop()}/{last}"


def with_slashes(rule: str) -> str:
    r"""The rule with slashes in place of dots.

    Example:
      >>> with_slashes(r"encoder\.fc[.]w")
      'encoder/fc/w'
    """
    return rule.replace(r"\.", "/").replace("[.]", "/")


def is_matched(rule: str, paths: Iterable[str]) -> bool:
    """Whether a regex matches one of the paths as it is written.

    Example:
      >>> is_matched("fc/.*", ["fc/w"]), is_matched("fc/.*", ["fc.w"])
      (True, False)
    """
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


def spelled_roles(roles: Any, paths: Sequence[str]) -> Any:
    """`RoleRules` whose rules are `spelled`; None stays None."""
    if roles is None or not roles.rules:
        return roles
    return dataclasses.replace(roles, rules=spelled_pairs(roles.rules, paths))


@bounded_cache(maxsize=64)
def spelled_recipe(recipe: _Recipe, paths: tuple[str, ...]) -> _Recipe:
    """A `Recipe` whose rules are `spelled`; the same object where none changes."""
    fields: Any = recipe
    distribution = fields.distribution
    if distribution.stacked:
        stacked = spelled_pairs(distribution.stacked, paths)
        distribution = dataclasses.replace(distribution, stacked=stacked)
    changed = dataclasses.replace(
        fields,
        include=spelled_rules(fields.include, paths),
        exclude=spelled_rules(fields.exclude, paths),
        overrides=spelled_pairs(fields.overrides, paths),
        structures=spelled_pairs(fields.structures, paths),
        structural=spelled_pairs(fields.structural, paths),
        distribution=distribution,
        roles=spelled_roles(fields.roles, paths),
    )
    return recipe if changed == recipe else changed
