"""What to write instead of a rule that names a slice of a leaf, such as `experts/7`.

The nearest path of such a rule is the whole leaf. It is no remedy: it would prune or leave out
every slice.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxprune._base.paths import shown_path

_INDEX = re.compile(r"(?:\d|\\d|[\[\](){}|,+*?-])+")  # an index, or a regex for several


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
            f"pass roles= and overrides={{{rule!r}: 0}}"
        )
    if argument != "overrides":
        return f"{path} is one leaf, and {argument} takes whole leaves"
    names = [name for name, owner in slices.items() if owner == leaf]
    if names:
        return f"{path} has slices {names[0]} to {names[-1]}"
    return (
        f"{path} is one leaf; its slices have sparsities of their own with roles= in which an axis "
        "is 'stack', or with per_slice"
    )


def _leaf_of(rule: str, specs: Mapping[str, Any]) -> str | None:
    """The leaf of which the rule names a slice; None where it names none."""
    *parts, last = rule.split("/")
    while parts and _INDEX.fullmatch(last):
        for path, spec in specs.items():
            if spec is not None and len(spec.shape) > 1 and _is_match("/".join(parts), path):
                return path
        last = parts.pop()
    return None


def _is_match(rule: str, path: str) -> bool:
    try:
        return re.fullmatch(rule, path) is not None
    except re.error:  # a part of a regex, such as of (a/0|b/1)
        return False
