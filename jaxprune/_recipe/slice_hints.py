"""What to write instead of a rule that names a slice of a leaf, such as `experts/7`.

The nearest path of such a rule is the whole leaf. It is no remedy: it would prune or leave out
every slice.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxprune._base.paths import rule_for, shown_path
from jaxprune._recipe.spelling import is_matched, spelled, with_slashes

_INDEX = re.compile(r"(?:\d|\\d|[\[\](){}|,+*?-])+")  # an index, or a regex for several
_LAST_DOT = re.compile(r"(?<!\\)\.(?=\d+$)")  # of a path with dots whose dots are not escaped


def slice_hint(
    argument: str, rule: str, specs: Mapping[str, Any], slices: Mapping[str, str]
) -> str:
    """Why a rule that names a slice has no effect, and what to write; empty for other rules.

    Args:
      argument: that the rule belongs to.
      rule: a regex that matches neither a leaf nor a slice.
      specs: the shape and dtype of each leaf by path; None for what is not an array.
      slices: path of a slice that has a budget of its own -> path of its leaf.

    Example:
      >>> import jax
      >>> slices = {f"w/{i}": "w" for i in range(4)}
      >>> slice_hint("overrides", "w/7", {"w": jax.ShapeDtypeStruct((4, 8, 8), float)}, slices)
      'w has slices w/0 to w/3'
    """
    leaf = _leaf_of(rule, specs)
    if leaf is None:
        return ""
    path = shown_path(leaf)
    if argument == "exclude":
        return (
            f"{path} is one leaf, and exclude takes whole leaves; to keep all weights of a slice, "
            f"pass overrides={{{rule!r}: 0}}, where slices come from the role 'stack' of an axis, "
            "or from per_slice"
        )
    if argument != "overrides":
        return f"{path} is one leaf, and {argument} takes whole leaves"
    names = [name for name, owner in slices.items() if owner == leaf]
    if names:
        return f"{path} has slices {names[0]} to {names[-1]}"
    return (
        f"{path} is one leaf; to name its slices, give an axis the role 'stack'"
        f"{_example(leaf, specs[leaf])}, or use per_slice, each with a distribution that does not "
        "pool several leaves, such as uniform or erk"
    )


def _example(path: str, spec: Any) -> str:
    """Roles that a leaf of stacked kernels may have; empty for a leaf with too few axes."""
    n_axes = len(spec.shape)
    if n_axes < 3:
        return ""
    return f", such as roles={{{rule_for(path)!r}: {('stack', 'in', *['out'] * (n_axes - 2))}}}"


def _leaf_of(rule: str, specs: Mapping[str, Any]) -> str | None:
    """The leaf of which the rule names a slice; None where it names none."""
    *parts, last = with_slashes(_LAST_DOT.sub("/", rule)).split("/")
    matrices = [path for path, spec in specs.items() if spec is not None and len(spec.shape) > 1]
    while parts and _INDEX.fullmatch(last):
        leaf_rule = str(spelled("/".join(parts), matrices))  # may be no regex: "(a" of "(a/0|b/1)"
        for path in matrices:
            if is_matched(leaf_rule, [path]):
                return path
        last = parts.pop()
    return None
