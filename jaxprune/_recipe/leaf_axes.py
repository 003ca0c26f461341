"""Which axes of a leaf are inputs and outputs: by its roles, or by its number of axes and its name.

Structures that go by roles ask this module. Where it is not known which axes are meant, the error
names both remedies: roles, and an explicit axis.
"""

import re
from typing import Any, NamedTuple

from jaxprune._base.arguments import BadValue
from jaxprune._base.paths import rule_for, shown_path
from jaxprune._recipe.choice import is_embedding

_LEAVE_OUT = "Embeddings, and leaves without roles, are usually left out: {exclude}."
_GIVE_ROLES = "To prune a leaf, give the roles of its axes, {roles}."
_KEEP_ROLES = "Write {{**roles, ...}} to keep the roles of the other leaves."
_READ_ROLES = "jaxprune.axis_roles reads them from the model."
_ORDERS = "for (in, out) or (layers, in, out)"


class AxesOf(NamedTuple):
    """What a structure is told about a leaf, or about one slice of it.

    Attributes:
      path: of the leaf.
      shape: of the leaf, or of the slice.
      roles: the role of each axis of `shape`; None where they are not known.
      reason: why there are no roles, as far as `axis_roles` said.
    """

    path: str
    shape: tuple[int, ...]
    roles: tuple[str, ...] | None = None
    reason: str = ""


def places(roles: tuple[str, ...], *wanted: str) -> tuple[int, ...]:
    """The axes that have one of these roles, in ascending order.

    Example:
      >>> places(("in", "out", "out"), "out")
      (1, 2)
    """
    return tuple(axis for axis, role in enumerate(roles) if role in wanted)


def is_in_out(path: str, n_axes: int) -> bool:
    """Whether a leaf without roles is taken as (..., in, out).

    A leaf of two axes is, unless it is named `weight`: torch and Equinox store these as (out, in).
    A leaf of more axes is if it is the kernel of a convolution in Flax or Haiku, by its name.

    Example:
      >>> [is_in_out(path, 2) for path in ("fc/kernel", "fc/weight", "fc.weight")]
      [True, False, False]
      >>> [is_in_out(path, 4) for path in ("Conv_0/kernel", "net/conv2_d/w", "query/kernel")]
      [True, True, False]
    """
    *parents, name = re.split("[/.]", path)
    if n_axes == 2:
        return name != "weight"
    return name in ("kernel", "w") and bool(parents) and "conv" in parents[-1].lower()


def known_roles(
    leaf: AxesOf, role: str, structure: Any, purpose: str, axis_meaning: str, with_axis: Any
) -> tuple[str, ...] | None:
    """The roles of a leaf; None where it is taken as (..., in, out), and where it has no matrix.

    Args:
      leaf: with or without roles.
      role: one axis at least must have it.
      structure: for the error.
      purpose: what the structure does, for the error.
      axis_meaning: which axis the argument `axis` of the structure must name, for the error.
      with_axis: the structure with the axis that a leaf (..., in, out) has, for the error.

    Raises:
      ValueError: no axis has the role, or it is not known which axes are inputs and outputs. The
        suggestion is made of sentences, so that one error can be about leaves that need different
        ones.
    """
    n_axes = len(leaf.shape)
    if leaf.roles is not None:
        if role not in leaf.roles:
            raise ValueError(
                f"{structure!r} needs an axis of role {role!r}, but the roles are {leaf.roles}"
            )
        return leaf.roles
    if n_axes < 2 or (is_in_out(leaf.path, n_axes) and not leaf.reason):
        return None
    why = f"it is not known which of its {n_axes} axes {leaf.shape} are inputs and which outputs"
    if leaf.reason:
        why = f"the leaf has no roles ({leaf.reason})"
    elif n_axes == 2:
        why = "a leaf named weight may be (out, in), as in torch and Equinox, or (in, out)"
    is_table = is_embedding(leaf.path)
    out_in = n_axes == 2 and (is_table or not leaf.reason)
    arguments: dict[str, Any] = {"roles": {rule_for(leaf.path): ("out", "in") if out_in else ...}}
    suggestion = [_GIVE_ROLES, _KEEP_ROLES if leaf.reason else _READ_ROLES]
    if leaf.reason or is_table:
        suggestion.insert(0, _LEAVE_OUT)
        arguments = {"exclude": rule_for(leaf.path), **arguments}
    if not is_table:
        suggestion.append(
            f"Or give axis=, which must be {axis_meaning}: for example, {{structure}} {_ORDERS}."
        )
        arguments["structure"] = with_axis
    problem = f"{shown_path(leaf.path)}: {structure!r} {purpose}, but {why}."
    raise BadValue(problem, " ".join(suggestion), **arguments)


def axis_of(shape: tuple[int, ...], axis: int | None, structure: Any, default: int) -> int:
    """The axis of a structure in a leaf, counted from 0.

    Args:
      shape: of the leaf.
      axis: as the user gave it.
      structure: for the error.
      default: the axis where none was given and the leaf is a matrix.

    Raises:
      ValueError: the leaf does not have the axis, or none was given and it has more than two.
    """
    if axis is None and len(shape) > 2:
        raise ValueError(f"{structure!r} needs an axis for a leaf of shape {shape}")
    axis = default if axis is None else axis
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{structure!r} needs an axis {axis}, but the shape is {shape}")
    return axis % len(shape)
