"""Checks of the leaves that are pruned by groups of coupled channels."""

import re
from collections.abc import Callable, Collection, Sequence

from jaxprune._base.arguments import BadValue
from jaxprune._base.paths import Rule, listed, rule_for
from jaxprune._recipe.choice import Choice, LeafRules, RuleUse
from jaxprune._recipe.default_choice import Specs
from jaxprune._recipe.traits import traits_of
from jaxprune._recipe.user_rules import UserRules


def check_groups(
    rules: UserRules, paths: Sequence[str], specs: Specs, is_hidden: Callable[[str], bool]
) -> None:
    """Raises where the pruned leaves are not those of the groups of coupled channels.

    Args:
      rules: what the user gave.
      paths: the paths of all leaves.
      specs: the shapes of all leaves; None for what is not an array.
      is_hidden: whether a regex may match a leaf that a placeholder hides.

    Raises:
      ValueError: a leaf of a group of channels is left out or missing, or leaves in no group are
        pruned weight by weight.
    """
    if not rules.coupled():
        return
    choices = LeafRules(rules.include, rules.exclude).choose(paths, specs, RuleUse())
    _check_nothing_is_absent(rules, paths, choices, is_hidden)
    _check_leaves_by_default(rules, paths, choices)
    _check_whole_groups(rules, paths, specs, choices)


def _check_nothing_is_absent(
    rules: UserRules,
    paths: Sequence[str],
    choices: Sequence[Choice],
    is_hidden: Callable[[str], bool],
) -> None:
    """Raises where some leaves of a group of channels would be pruned, but others are missing.

    `optax.masked`, `partition` and `multi_transform` hide leaves from what they wrap. A channel
    whose bias is hidden still has an output, and a hidden kernel keeps half of the channel's
    weights. Leaves that the user's own rules leave out may be missing, and so may a whole group.
    """
    absent = _absent_members(rules, paths, is_hidden)
    for group, indices in _members(rules, paths).items():
        pruned = [paths[i] for i in indices if choices[i].chosen]
        names = absent.get(group, {})
        if pruned and names:
            raise _absent_error(names, pruned)


def _absent_members(
    rules: UserRules, paths: Sequence[str], is_hidden: Callable[[str], bool]
) -> dict[str, dict[str, bool]]:
    """For each group of channels, its missing leaves, and whether a placeholder hides them.

    Users may write groups by hand, with regexes for several leaves. Such a regex may match none.
    """
    known = dict.fromkeys(paths)
    absent: dict[str, dict[str, bool]] = {}
    for rule, structure in rules.assigned["structure"]:
        group = traits_of(structure).coupled_group
        if group is None or not isinstance(rule, str) or _matching(rule, known):
            continue
        name, hidden = _leaf_name(rule), is_hidden(rule)
        if (hidden or _names_one_leaf(rule)) and not _is_left_out(rules, name):
            absent.setdefault(group, {})[name] = hidden
    return absent


def _is_left_out(rules: UserRules, name: str) -> bool:
    """Whether the user's regexes leave out a missing leaf; what functions would do is unknown."""

    def any_matches(chosen: Sequence[Rule]) -> bool:
        names = (name, f"params/{name}")
        regexes = [rule for rule in chosen if isinstance(rule, str)]
        return any(re.fullmatch(regex, path) for regex in regexes for path in names)

    only_regexes = all(isinstance(rule, str) for rule in rules.include or ())
    not_included = rules.include is not None and only_regexes and not any_matches(rules.include)
    return not_included or any_matches(rules.exclude)


def _absent_error(names: dict[str, bool], pruned: Sequence[str]) -> BadValue:
    """The error about missing leaves of a group of channels, some of which may be hidden."""
    hidden = [name for name, is_hidden in names.items() if is_hidden]
    missing = [name for name, is_hidden in names.items() if not is_hidden]
    parts = []
    if hidden:
        parts.append(f"{listed(hidden)}: hidden from prune, as by optax.masked or partition")
    if missing:
        parts.append(f"{listed(missing)}: not in these params")
    fix = (
        "Let prune see all params, around the optimizer that splits them: prune(schedule, "
        "inner=optax.multi_transform(...), structure=groups, include=tuple(groups))."
        if hidden
        else "Pass all params of the model, or groups of a model without these leaves: "
        "channel_groups(apply_fn, params, x)."
    )
    return BadValue(
        f"structure: {'; '.join(parts)}; but {listed(pruned)} of the same channels would be "
        "pruned. These channels would not be dropped as a whole, so shrink could not remove them.",
        fix,
    )


def _check_leaves_by_default(
    rules: UserRules, paths: Sequence[str], choices: Sequence[Choice]
) -> None:
    """Raises where all structures are coupled channels, but default leaves would be pruned.

    The default leaves out biases, which belong to the groups of channels, and prunes leaves that
    are in no group weight by weight. Neither is usually meant, and `shrink` could remove nothing.
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
    for indices in _members(rules, paths).values():
        pruned = [paths[i] for i in indices if choices[i].chosen]
        left_out = [paths[i] for i in indices if not choices[i].chosen and _is_kernel(specs[i])]
        if pruned and left_out:
            raise BadValue(
                f"structure: {listed(left_out)}: left out, but {listed(pruned)} of the same "
                "channels would be pruned, which switches these channels off.",
                "Leave out the whole group with {exclude}, or none of it.",
                exclude=tuple(rule_for(paths[i]) for i in indices),
            )


def _members(rules: UserRules, paths: Sequence[str]) -> dict[str, list[int]]:
    """The indices of the leaves of each group, by the name of the group."""
    position = {path: i for i, path in enumerate(paths)}
    members: dict[str, list[int]] = {}
    taken: set[int] = set()
    for rule, structure in rules.assigned["structure"]:
        group = traits_of(structure).coupled_group
        matching = [position[path] for path in _matching(rule, position)]
        if group is not None:
            members.setdefault(group, []).extend(i for i in matching if i not in taken)
        taken.update(matching)
    return members


def _is_kernel(spec: object) -> bool:
    return len(getattr(spec, "shape", ())) > 1


def _matching(rule: Rule, paths: Collection[str]) -> list[str]:
    """The paths that a rule matches; those of `channel_groups` name one leaf each."""
    if not isinstance(rule, str):
        return []
    name = _leaf_name(rule)
    named = [path for path in (name, f"params/{name}") if path in paths]
    if named and all(re.fullmatch(rule, path) for path in named):
        return named
    matcher = re.compile(rule)
    return [path for path in paths if matcher.fullmatch(path)]


def _leaf_name(rule: str) -> str:
    """The path that a rule of `channel_groups` names, without the collection of linen."""
    return rule.removeprefix("(params/)?").replace("\\", "")


def _names_one_leaf(rule: str) -> bool:
    r"""Whether a rule is a path, escaped or not, as those of `channel_groups` are.

    Example:
      >>> [_names_one_leaf(rule) for rule in ("(params/)?fc/kernel", r"a\+b", ".*kernel")]
      [True, True, False]
    """
    plain = re.sub(r"\\.", "", rule.removeprefix("(params/)?"))
    return not set(plain) & set("*+?|()[]{}^$")
