"""Rules that match nothing: an error that lists them all, with the nearest paths and a remedy.

Only regexes are checked. A function as a rule may match nothing.
"""

import difflib
import functools
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from jaxprune._base.arguments import BadValue
from jaxprune._base.paths import Rule, hidden_paths, listed, rule_for, shown_path, spec_of
from jaxprune._recipe.choice import Choice, LeafRules, RuleUse
from jaxprune._recipe.coupled_checks import check_groups
from jaxprune._recipe.default_choice import Specs
from jaxprune._recipe.role_checks import check_known, check_numbers_of_axes
from jaxprune._recipe.slice_hints import slice_hint
from jaxprune._recipe.spelling import spelled
from jaxprune._recipe.user_rules import ANY, UserRules


def check_rules(rules: UserRules, params: Any, paths: Sequence[str], leaves: Sequence[Any]) -> None:
    """Raises where a regex matches no leaf, or assigns a value only to leaves that are not pruned.

    Allowed are rules whose leaves are taken by earlier rules or left out by the user's own rules.
    The rules of coupled channels are checked as a whole: at least one of them must match, and with
    it all rules of the same group of channels. Of roles that `axis_roles` or the layout of another
    library gives, at least one must match. A rule of `roles` must also have roles for the number of
    axes of a leaf that it matches.

    Args:
      rules: what the user gave.
      params: the tree. Its placeholders show which leaves another transformation has.
      paths: of the leaves.
      leaves: arrays, tracers or shapes.

    Raises:
      ValueError: listing all of these rules.
    """
    has_regexes = any(isinstance(rule, str) for _, rule, _ in rules.by_argument())
    if not paths or not (has_regexes or rules.roles):
        return
    is_hidden = _HiddenLeaves(params, paths)
    if rules.roles is not None:
        check_known(rules.roles, paths, is_hidden)
    specs = tuple(map(spec_of, leaves))
    if problems := _unmatched(rules, paths, specs, is_hidden):
        raise _unmatched_error(rules, problems, paths)
    if rules.roles is not None:
        check_numbers_of_axes(rules.roles, paths, specs, is_hidden)
    if problems := _without_effect(rules, paths, specs, is_hidden):
        fix = "Remove the rule, or name every leaf to prune with {include}."
        raise BadValue(_listed(problems), fix, include=("...", problems[0].rule))
    check_groups(rules, paths, specs, is_hidden)


class _Problem(NamedTuple):
    """A rule without effect.

    Attributes:
      argument: the user's argument.
      rule: the regex.
      value: what it assigns; None for `include` and `exclude`.
      reason: why it has no effect.
      fix: a regex to write instead, or None.
      is_slice: whether the rule names a slice of a leaf, so that no path is a remedy.
    """

    argument: str
    rule: str
    value: Any
    reason: str
    fix: str | None
    is_slice: bool = False


class _HiddenLeaves:
    """Whether a regex may match a leaf that a placeholder hides."""

    def __init__(self, params: Any, paths: Sequence[str]) -> None:
        self._params, self._paths = params, paths

    @functools.cached_property
    def _hidden(self) -> list[str]:
        return hidden_paths(self._params)

    @functools.cached_property
    def _candidates(self) -> list[str]:
        """Paths that hidden leaves may have: a hidden subtree may end as visible paths do."""
        if not self._hidden:
            return []
        ends = {"/".join(_keys(path)[-n:]) for path in self._paths for n in (1, 2)}
        shortest = sorted(ends, key=lambda end: (end.count("/"), end))[:200]
        return [*self._hidden, *(f"{path}/{end}" for path in self._hidden for end in shortest)]

    def __call__(self, rule: str) -> bool:
        plain = rule.replace("\\", "")
        if any(plain.startswith(f"{path}/") for path in self._hidden):
            return True
        return bool(_matching(rule, self._candidates))


def _keys(path: str) -> list[str]:
    return path.split("/")


def _unmatched(
    rules: UserRules, paths: Sequence[str], specs: Specs, is_hidden: Callable[[str], bool]
) -> list[_Problem]:
    """The regexes that match no path."""

    @functools.cache
    def is_matched(rule: Rule) -> bool:
        return not isinstance(rule, str) or bool(_matching(rule, paths)) or is_hidden(rule)

    coupled = rules.coupled()
    exempt = coupled if any(map(is_matched, coupled)) else set()
    problems = []
    for argument, rule, value in rules.by_argument():
        if not isinstance(rule, str) or rule in exempt or is_matched(rule):
            continue
        if argument != "overrides" or not _matching(rule, list(rules.slices)):
            hint = slice_hint(argument, rule, dict(zip(paths, specs, strict=True)), rules.slices)
            problems.append(_no_leaf(argument, rule, value, paths, hint))
    role_rules = [] if rules.roles is None else rules.roles.unmatched(paths)
    problems += [_no_leaf("roles", rule, ..., paths) for rule in role_rules if not is_hidden(rule)]
    return problems


def _no_leaf(
    argument: str, rule: str, value: Any, paths: Sequence[str], slice_hint: str = ""
) -> _Problem:
    """The problem of a regex that matches no path; a hint if it names a slice of a leaf."""
    if slice_hint:
        reason = f"matches no leaf ({slice_hint})"
        return _Problem(argument, rule, value, reason, None, is_slice=True)
    fix = _fixed(rule, paths)
    nearest = _nearest(rule, fix, paths)
    verb = "path is" if len(nearest) == 1 else "paths are"
    reason = f"matches no leaf (the nearest {verb} {listed(nearest)})"
    return _Problem(argument, rule, value, reason, fix)


def _without_effect(
    rules: UserRules, paths: Sequence[str], specs: Specs, is_hidden: Callable[[str], bool]
) -> list[_Problem]:
    """The regexes that assign values only to leaves that are not pruned by default."""
    assigns = any(isinstance(rule, str) for pairs in rules.assigned.values() for rule, _ in pairs)
    if rules.include is not None or not assigns:
        return []
    choices = LeafRules(None, rules.exclude).choose(paths, specs, RuleUse())
    coupled = rules.coupled()
    problems = []
    for argument, pairs in rules.assigned.items():
        for rule, value in pairs:
            is_moot = argument == "overrides" and value == 0  # such leaves keep all their weights
            if isinstance(rule, str) and rule not in coupled and not is_moot:
                reached = [rules.slices[name] for name in _matching(rule, list(rules.slices))]
                reason = "" if reached else _why_not_pruned(rule, paths, choices)
                if reason and not is_hidden(rule):
                    problems.append(_Problem(argument, rule, value, reason, None))
    return problems


def _why_not_pruned(rule: str, paths: Sequence[str], choices: Sequence[Choice]) -> str:
    """Why none of the leaves that match is pruned by default; empty where one is, or excluded."""
    matching = [
        (path, choice)
        for path, choice in zip(paths, choices, strict=True)
        if re.fullmatch(rule, path)
    ]
    if any(choice.chosen or choice.by_rule for _, choice in matching):
        return ""
    reasons = [f"{shown_path(path)} ({choice.reason})" for path, choice in matching[:8]]
    more = f", and {len(matching) - 8} more" if len(matching) > 8 else ""
    return f"matches only leaves that are not pruned by default: {', '.join(reasons)}{more}"


def _listed(problems: Sequence[_Problem]) -> str:
    lines = [f"{p.argument}: {p.rule!r} {p.reason}" for p in problems[:8]]
    more = f"; and {len(problems) - 8} more rules" if len(problems) > 8 else ""
    return "; ".join(lines) + more + "."


def _unmatched_error(
    rules: UserRules, problems: Sequence[_Problem], paths: Sequence[str]
) -> BadValue:
    """The error that lists rules which match nothing, with what to write instead."""
    arguments = {
        argument: fixed
        for argument in dict.fromkeys(p.argument for p in problems)
        if (fixed := _fixed_argument(argument, rules, problems))
    }
    if all(problem.is_slice for problem in problems):
        return BadValue(_listed(problems))
    problem = f"{_listed(problems)} A regex matches the whole path"
    if not arguments:
        example = rule_for(paths[0]) or ".*"
        fix = f"Remove the {'rule' if len(problems) == 1 else 'rules'} if there are no such leaves."
        return BadValue(f"{problem}, for example {example!r}. {fix}")
    fix = " and ".join(f"{{{argument}}}" for argument in arguments)
    return BadValue(f"{problem}:", f"write {fix}.", **arguments)


def _fixed_argument(argument: str, rules: UserRules, problems: Sequence[_Problem]) -> Any:
    """The argument to pass instead; None where no rule of it is close to a path.

    It has all rules of the user, apart from those that match nothing and are close to no path. If
    there are functions or many rules, only those that are to be changed are shown.
    """
    wrong: dict[Rule, _Problem] = {p.rule: p for p in problems if p.argument == argument}
    if all(p.fix is None for p in wrong.values()):
        return None
    own = [(rule, value) for name, rule, value in rules.by_argument() if name == argument]
    own = [(rule, value) for rule, value in own if rule != ANY]
    if not own or len(own) > 8 or not all(isinstance(rule, str) for rule, _ in own):
        own = [(rule, p.value) for rule, p in wrong.items()]
    pairs = [(wrong[rule].fix if rule in wrong else rule, value) for rule, value in own]
    fixed = {rule: value for rule, value in pairs if rule is not None}
    fixed |= {rule: value for rule, value in own if rule not in wrong}  # these keep their values
    if argument in ("include", "exclude"):
        return next(iter(fixed)) if len(fixed) == 1 else tuple(fixed)
    return {rule: _literal(value) for rule, value in fixed.items()}


def _literal(value: Any) -> Any:
    return value if isinstance(value, (int, Fraction)) else ...


# Suggestions


def _fixed(rule: str, paths: Sequence[str]) -> str | None:
    """A regex that is close to the rule and matches a path; None where none is close."""
    parts = [part.strip() for part in rule.split(",")]  # as in a list of a command line
    if len(parts) > 1 and all(_matching(part, paths) for part in parts):
        return "|".join(parts)
    group = f"({rule})" if "|" in rule else rule
    candidates = [re.sub(r"(?<![.\])])\*", ".*", rule), f"{group}/.*"]
    if len(rule) > 2:
        candidates += [f".*{group}", f"{group}.*", f".*{group}/.*", f".*{group}.*"]
    candidates += [
        f".*/{group}",
        f".*/{group}/.*",
        f"(?i){rule}",
        rule.removesuffix("/value"),
        rule.removeprefix("params/"),
    ]
    for candidate in filter(None, candidates):
        fixed = spelled(candidate, paths)
        if isinstance(fixed, str) and _matching(fixed, paths):
            return fixed
    folders = {"/".join(_keys(path)[:i]) for path in paths for i in range(1, len(_keys(path)))}
    texts = {f"{folder}/.*": f"{rule_for(folder)}/.*" for folder in sorted(folders)}
    texts |= {path: rule_for(path) for path in paths if path}
    close = difflib.get_close_matches(rule, texts, n=1)
    return texts[close[0]] if close else None


def _matching(rule: str, paths: Sequence[str]) -> list[str]:
    try:
        matcher = re.compile(rule)
    except re.error:
        return []
    return [path for path in paths if matcher.fullmatch(path)]


def _nearest(rule: str, fix: str | None, paths: Sequence[str]) -> list[str]:
    """Up to three paths: those that the suggested regex matches, or the most similar ones."""
    if fix is not None:
        return _matching(fix, paths)[:3]
    return difflib.get_close_matches(rule, paths, n=3, cutoff=0.3) or list(paths[:3])
