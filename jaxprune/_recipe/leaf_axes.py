"""Which axes of a leaf are inputs and outputs: by its roles, or by its number of axes and its name.

Structures that go by roles ask this module. Where it is not known which axes are meant, the error
names both remedies: roles, and an explicit axis.
"""

import re
from typing import Any, NamedTuple

from jaxprune._base.arguments import BadValue
from jaxprune._base.paths import parts_of, rule_for, shown_path
from jaxprune._recipe.default_choice import is_embedding
from jaxprune._recipe.roles import is_out_in_name

_LEAVE_OUT = "Embeddings, and leaves without roles, are usually left out: {exclude}."
_GIVE_ROLES = "To prune a leaf, give the roles of its axes, {roles}."
_KEEP_ROLES = "Write {{**roles, ...}} to keep the roles of the other leaves."
_READ_ROLES = "jaxprune.axis_roles, or axis_roles_nnx, reads them from the model."
_ORDERS = "for (in, out) or (layers, in, out)"
_HEADS = "In attention, heads and head_dim are outputs of query, key and value, and inputs of out."


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


def is_in_out(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a leaf without roles is taken as (..., in, out).

    A leaf of two axes is, unless it is named like a weight of torch or Equinox, which store these
    as (out, in). A leaf of more axes is if it is the kernel of a convolution in Flax or Haiku, by
    its name and its shape. Transposed convolutions are not: Haiku stores them as (..., out, in), as
    Flax does with `transpose_kernel=True`.

    Example:
      >>> names = "fc/kernel", "fc/weight", "fc.weight", "gru/weight_ih"
      >>> [is_in_out(path, (8, 4)) for path in names]
      [True, False, False, False]
      >>> names = "Conv_0/kernel", "net/conv2_d/w", "query/kernel", "ConvTranspose_0/kernel"
      >>> [is_in_out(path, (3, 3, 8, 4)) for path in names]
      [True, True, False, False]
      >>> is_in_out("conv/w", (8, 4, 3, 3))
      False
    """
    if len(shape) == 2:
        return not is_out_in_name(path)
    layer = _conv_layer(path)
    is_transposed = "transpose" in layer or "deconv" in layer
    return bool(layer) and not is_transposed and not _has_window_last(shape)


def _conv_layer(path: str) -> str:
    """The name of the layer if a leaf is named like the kernel of a convolution; else empty."""
    *parents, name = parts_of(path)
    layer = parents[-1].lower() if parents else ""
    return layer if name in ("kernel", "w") and "conv" in layer else ""


def is_table(path: str) -> bool:
    """Whether a leaf is named like a table of embeddings, and not like the kernel of a layer.

    Example:
      >>> [is_table(path) for path in ("Embed_0/embedding", "wte.weight", "patch_embed/kernel")]
      [True, True, False]
    """
    return is_embedding(path) and parts_of(path)[-1] not in ("kernel", "w")


def note_of_name(path: str) -> str:
    """What `plan` notes about a leaf that is pruned, but is not the weight of a layer by its name.

    Example:
      >>> paths = "wte.weight", "cls_token", "pos_table", "patch_embed/kernel", "token_mixer/kernel"
      >>> [note_of_name(path) for path in paths]
      ['embedding', 'token', 'positions', '', '']
    """
    name = parts_of(path)[-1]
    if is_embedding(path) and name != "kernel":  # as of the convolution that embeds patches
        return "embedding"
    return next((note for note, names in _NOTES.items() if names.fullmatch(name)), "")


_NOTES = {
    "token": re.compile("(.*_)?(cls|tokens?)", re.IGNORECASE | re.DOTALL),
    "positions": re.compile(
        "(.*_)?pos(ition(s|al)?)?(_(bias_)?(table|encodings?))?", re.IGNORECASE | re.DOTALL
    ),
}


def _has_window_last(shape: tuple[int, ...]) -> bool:
    """Whether the kernel of a convolution is (out, in, *window), the default of `jax.lax.conv`.

    A window is square and smaller than the number of channels. A kernel such as (7, 7, 3, 3) is
    taken as (*window, in, out): its first two axes are a square window of odd length.

    Example:
      >>> [_has_window_last(shape) for shape in ((8, 4, 3, 3), (7, 7, 3, 3), (16, 16, 3, 3))]
      [True, False, True]
    """
    is_square = len(shape) in (4, 5) and len(set(shape[2:])) == 1
    is_window_first = len(set(shape[:2])) == 1 and shape[0] in (3, 5, 7, 9, 11)
    return is_square and not is_window_first and max(shape[:2]) > shape[-1]


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
    if leaf.roles is not None:
        if role not in leaf.roles:
            raise ValueError(
                f"{structure!r} needs an axis of role {role!r}, but the roles are {leaf.roles}"
            )
        return leaf.roles
    why = _why_unknown(leaf, role)
    if not why:
        return None
    of_table, likely = is_table(leaf.path), _likely_roles(leaf)
    arguments: dict[str, Any] = {"roles": {rule_for(leaf.path): likely or ...}}
    suggestion = [_GIVE_ROLES, _KEEP_ROLES if leaf.reason else _READ_ROLES]
    if leaf.reason or of_table:
        suggestion.insert(0, _LEAVE_OUT)
        arguments = {"exclude": rule_for(leaf.path), **arguments}
    has_heads = len(leaf.shape) > 2 and _may_have_heads_out(leaf.path)
    if not of_table and len(likely) < 3 and not has_heads:
        suggestion.append(
            f"Or give axis=, which must be {axis_meaning}: for example, {{structure}} {_ORDERS}."
        )
        suggestion += [_HEADS] if len(leaf.shape) > 2 else []
        arguments["structure"] = with_axis
    problem = f"{shown_path(leaf.path)}: {structure!r} {purpose}, but {why}."
    raise BadValue(problem, " ".join(suggestion), **arguments)


def _likely_roles(leaf: AxesOf) -> tuple[str, ...]:
    """The roles to suggest for a leaf whose axes are not known; empty where nothing shows them."""
    n_axes = len(leaf.shape)
    if n_axes == 2 and (is_table(leaf.path) or not leaf.reason):
        return ("out", "in")
    if _conv_layer(leaf.path) and _has_window_last(leaf.shape) and not leaf.reason:
        return ("out", "in", *["window"] * (n_axes - 2))
    return ()


def _may_have_heads_out(path: str) -> bool:
    """Whether a leaf is named like one of attention whose heads are outputs: (in, heads, head_dim).

    Example:
      >>> [_may_have_heads_out(path) for path in ("query/kernel", "out/kernel", "q_proj/kernel")]
      [True, False, True]
    """
    return bool(_OF_HEADS.fullmatch("/".join(parts_of(path)[-2:])))


_OF_HEADS = re.compile("(query|key|value|([qkv]|qkv|kv)(_proj)?)/(kernel|w)")


def _why_unknown(leaf: AxesOf, role: str) -> str:
    """Why it is not known which axes of a leaf without roles are meant; empty where it is known.

    The inputs of a table of embeddings are not known from its name: looking up a row is no product,
    and a table that is tied to the output layer is multiplied as (out, in).
    """
    n_axes = len(leaf.shape)
    if n_axes < 2:
        return ""
    if leaf.reason:
        return f"the leaf has no roles ({leaf.reason})"
    if n_axes == 2 and is_out_in_name(leaf.path):
        name = parts_of(leaf.path)[-1]
        return f"a leaf named {name} may be (out, in), as in torch and Equinox, or (in, out)"
    if n_axes == 2 and role == "in" and is_table(leaf.path):
        return "a table of embeddings has no inputs, unless it is also an output layer (out, in)"
    if is_in_out(leaf.path, leaf.shape):
        return ""
    if _conv_layer(leaf.path) and _has_window_last(leaf.shape):
        return f"its shape {leaf.shape} is like (out, in, *window), the order of jax.lax.conv"
    if _conv_layer(leaf.path):
        return "a transposed convolution may be (*window, in, out) or (*window, out, in)"
    return f"it is not known which of its {n_axes} axes {leaf.shape} are inputs and which outputs"


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
