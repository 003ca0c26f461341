"""The words for roles of axes, and a check that a tuple has no others."""

import difflib
from typing import Any

from jaxprune._base.arguments import is_list, shown

ROLES = ("in", "window", "out", "stack")
# What users may call the roles.
_OTHER_WORDS = {
    "batch": "stack",
    "contracting": "in",
    "contracted": "in",
    "embed": "in",
    "experts": "stack",
    "features": "out",
    "heads": "out",
    "input": "in",
    "kernel": "window",
    "layers": "stack",
    "output": "out",
    "spatial": "window",
}


def as_role_tuple(where: str, key: str, value: Any) -> tuple[str, ...]:
    """The roles of the axes of one leaf, checked.

    Args:
      where: the argument, for errors.
      key: the path or the regex that the roles belong to.
      value: a tuple or a list of roles.

    Raises:
      TypeError, ValueError: naming the key, its value, and what to write instead.

    Example:
      >>> as_role_tuple("roles", ".*kernel", ["in", "out"])
      ('in', 'out')
    """
    if not is_list(value):
        fix = f"Write ({value!r},)." if value in ROLES else 'Write ("in", "out"), for example.'
        raise TypeError(
            f"{where}[{key!r}] must be a tuple with a role for each axis, got {shown(value)}. {fix}"
        )
    for role in value:
        _check_role(where, key, role)
    return tuple(value)


def _check_role(where: str, key: str, role: Any) -> None:
    if role in ROLES:
        return
    listed_roles = '"in", "window", "out" or "stack"'
    if not isinstance(role, str):
        raise TypeError(
            f"{where}[{key!r}]: each role must be {listed_roles}, got {shown(role)}. Write "
            '("in", "out") for a kernel of shape (in, out).'
        )
    close = difflib.get_close_matches(role.lower(), (*ROLES, *_OTHER_WORDS), n=1, cutoff=0.5)
    fix = f' Did you mean "{_OTHER_WORDS.get(close[0], close[0])}"?' if close else ""
    raise ValueError(f"{where}[{key!r}]: each role must be {listed_roles}, got {role!r}.{fix}")
