"""Checks of the leaves that are pruned by groups of coupled channels."""

import re
from collections.abc import Collection, Sequence

from jaxprune._base.arguments import BadValue
from jaxprune._base.paths import Rule, listed, rule_for
from jaxprune._recipe.choice import Choice, LeafRules, RuleUse, Specs
from jaxprune._recipe.traits import traits_of
from jaxprune._recipe.user_rules import UserRules


def check_groups(rules: UserRules, paths: Sequence[str], specs: Specs) -> None:
    """Raises where the leaves that are pruned are not those of the groups of channels.

    Args:
      rules: what the user gave.
      paths: of all leaves.
      specs: the shapes of all leaves; None for what is not an array.

    Raises:
      ValueError: leaves that a group needs are left out, or others are pruned weight by weight.
    """
    if not rules.coupled():
        return
    choices = LeafRules(rules.include, rules.exclude).choose(paths, specs, RuleUse())
    _check_leaves_by_default(rules, paths, choices)
    _check_whole_groups(rules, paths, specs, choices)


def _check_leaves_by_default(
    rules: UserRules, paths: Sequence[str], choices: Sequence[Choice]
) -> None:
    """Raises where all structures are coupled channels, but the leaves are not those of the groups.

    By default, biases are not pruned, which a group needs, and leaves in no group are pruned weight
    by weight. Both are rarely meant, and `shrink` could remove nothing.
    """
    coupled = rules.coupled()
    given = {rule for rule, _ in rules.assigned["structure"]}
    if rules.include is not None or not coupled or given != coupled:
        return
    names = dict.fromkeys(paths)
    in_groups = {path for rule in coupled for path in _matching(rule, names)}
    left_out, alone = [], []
    for path, choice in zip(paths, choices, strict=True):
        if choice.chosen and path not in in_groups:
            alone.append(path)
        elif path in in_groups and not (choice.chosen or choice.by_rule):
            left_out.append(path)
    parts = []
    if left_out:
        parts.append(f"leaves of the groups are not pruned by default: {listed(left_out)}")
    if alone:
        parts.append(f"leaves in no group are pruned weight by weight: {listed(alone)}")
    if parts:
        fix = "To prune only channels of these groups, write include=tuple(groups)."
        raise BadValue(f"structure: {'; '.join(parts)}.", fix)


def _check_whole_groups(
    rules: UserRules, paths: Sequence[str], specs: Specs, choices: Sequence[Choice]
) -> None:
    """Raises where a kernel of a group is left out, but its channels are dropped in other leaves.

    A dropped scale or bias of a normalisation switches the channel off, whatever the kernel is.
    """
    position = {path: i for i, path in enumerate(paths)}
    members: dict[str, list[int]] = {}
    taken: set[int] = set()
    for rule, structure in rules.assigned["structure"]:
        group = traits_of(structure).coupled_group
        matching = [position[path] for path in _matching(rule, position)]
        if group is not None:
            members.setdefault(group, []).extend(i for i in matching if i not in taken)
        taken.update(matching)
    for indices in members.values():
        pruned = [paths[i] for i in indices if choices[i].chosen]
        left_out = [paths[i] for i in indices if not choices[i].chosen and _is_kernel(specs[i])]
        if pruned and left_out:
            raise BadValue(
                f"structure: {listed(left_out)}: left out, but {listed(pruned)} of the same "
                "channels would be pruned, which switches these channels off.",
                "Leave out the whole group with {exclude}, or none of it.",
                exclude=tuple(rule_for(paths[i]) for i in indices),
            )


def _is_kernel(spec: object) -> bool:
    return len(getattr(spec, "shape", ())) > 1


def _matching(rule: Rule, paths: Collection[str]) -> list[str]:
    """The paths that a rule matches; those of `channel_groups` name one leaf each."""
    if not isinstance(rule, str):
        return []
    name = rule.removeprefix("(params/)?").replace("\\", "")
    named = [path for path in (name, f"params/{name}") if path in paths]
    if named and all(re.fullmatch(rule, path) for path in named):
        return named
    matcher = re.compile(rule)
    return [path for path in paths if matcher.fullmatch(path)]
