"""What each axis of a leaf does in the products of the model: the role of the axis.

`"in"` is summed over in a product; `"window"` too, and is a spatial axis of a convolution. `"out"`
is an axis of the result. `"stack"` is a batch axis of the product, or one that a loop or an index
takes slices of, such as the layers of a `scan`. Roles come from `axis_roles`, or from rules that
users write. This module finds the roles of a leaf; it does not know what follows from them.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune._base.arguments import BadValue, dict_hint, is_list, shown
from jaxprune._base.paths import as_rules, rule_for, shown_path
from jaxprune._recipe.role_table import AxisRoles
from jaxprune._recipe.role_words import ROLES, as_role_tuple

_COLLECTION = "params/"  # of the variables of a linen model, which an optimizer does not see


# Layouts of other libraries

_RECURRENT = r"weight_[ih]h(_l\d+)?(_reverse)?"
_TORCH = rf"(?s:(.*[./])?(weight|in_proj_weight|[qkv]_proj_weight|{_RECURRENT}))"
_TORCH_TRANSPOSED = r"(?is:(.*[./])?[^./]*(transpose|deconv)[^./]*[./]([0-9]+[./])?weight)"
_EQUINOX = r"(?s:(.*/)?(weight|weight_[ih]h))"
_EQUINOX_CONV = r"(?is:(.*/)?[^/]*conv[^/]*/(.*/)?weight)"


def _out_in(*n_axes: int) -> tuple[tuple[str, ...], ...]:
    """The roles (out, in, *window) for each of these numbers of axes."""
    return tuple(("out", "in") + ("window",) * (n - 2) for n in n_axes)


class _ReadyMade(Mapping[str, tuple[tuple[str, ...], ...]]):
    """Rules that can't be changed. Unlike a `MappingProxyType`, each may have its docstring."""

    def __init__(self, rules: Mapping[str, tuple[tuple[str, ...], ...]]):
        self._rules = dict(rules)

    def __getitem__(self, rule: str) -> tuple[tuple[str, ...], ...]:
        return self._rules[rule]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __or__(self, others: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._rules, **others}

    def __ror__(self, others: Mapping[str, Any]) -> dict[str, Any]:
        return {**others, **self._rules}

    def __repr__(self) -> str:
        return repr(self._rules)


torch_roles = _ReadyMade(
    {
        _TORCH_TRANSPOSED: tuple(("in", "out", *roles[2:]) for roles in _out_in(3, 4, 5)),
        _TORCH: _out_in(2, 3, 4, 5),
    }
)
"""The roles of PyTorch weights: (out, in), and (out, in, *window) for convolutions.

It matches parameters named `weight`, those of `nn.MultiheadAttention`, and those of recurrent
layers. Embeddings are taken as (out, in), as where they are tied to the output layer. Transposed
convolutions are stored as (in, out, *window). They are recognised if the name of the layer contains
"transpose" or "deconv"; for others, write a rule before these,
`{".*up.weight": ("in", "out", "window", "window"), **torch_roles}`.
"""

equinox_roles = _ReadyMade({_EQUINOX_CONV: _out_in(3), _EQUINOX: _out_in(2, 4, 5)})
"""The roles of Equinox weights: (out, in), and (out, in, *window) for convolutions.

It matches leaves named `weight`, `weight_ih` or `weight_hh`. A weight of three axes may be that of
a `Conv1d`, or a stack of matrices made by `eqx.filter_vmap`. It has roles only where a part of its
path contains "conv". For a stack, write a rule before these,
`{".*blocks/.*weight": ("stack", "out", "in"), **equinox_roles}`, or use `axis_roles`.
"""

_READY_MADE = frozenset((*torch_roles.items(), *equinox_roles.items()))


def is_out_in_name(path: str) -> bool:
    """Whether a leaf is named like a weight of torch or Equinox, which store them as (out, in).

    Example:
      >>> [is_out_in_name(path) for path in ("fc.weight", "gru/weight_ih", "fc/kernel")]
      [True, True, False]
    """
    return re.fullmatch(_TORCH, path) is not None


def _is_ready_made(rule: str, choices: tuple[tuple[str, ...], ...]) -> bool:
    """Whether the rule is that of a library, in either spelling of `jaxprune._recipe.spelling`."""
    return any((text, choices) in _READY_MADE for text in (rule, rule.replace(r"\.", "/")))


# The argument


class RoleMisfit(NamedTuple):
    """A rule whose tuples of roles fit none of the leaves that it matches.

    Attributes:
      rule: the regex.
      choices: its tuples of roles.
      leaves: the shape of each leaf that it matches, by path.
    """

    rule: str
    choices: tuple[tuple[str, ...], ...]
    leaves: dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class RoleRules:
    """The argument `roles`, checked; a hashable value.

    Attributes:
      exact: the roles of single leaves, by path.
      without: the leaves that have no roles, and why.
      rules: regexes, each with roles for one or more numbers of axes.
      shapes: the shapes that `axis_roles` saw, where they are known, by path.

    Example:
      >>> rules = as_roles({".*weight": ("out", "in")})
      >>> rules.of("fc/weight", (8, 4)), rules.of("conv/weight", (8, 4, 3))
      (('out', 'in'), None)
    """

    exact: tuple[tuple[str, tuple[str, ...]], ...] = ()
    without: tuple[tuple[str, str], ...] = ()
    rules: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.exact, self.without, self.rules, self.shapes))

    @property
    def has_stacks(self) -> bool:
        """Whether a leaf may have an axis of role `"stack"`."""
        choices = (roles for _, choices in self.rules for roles in choices)
        return any("stack" in roles for roles in (*self._roles_of.values(), *choices))

    @functools.cached_property
    def _roles_of(self) -> dict[str, tuple[str, ...]]:
        return dict(self.exact)

    @functools.cached_property
    def _shape_of(self) -> dict[str, tuple[int, ...]]:
        return dict(self.shapes)

    @functools.cached_property
    def _reason_of(self) -> dict[str, str]:
        return dict(self.without)

    def of(self, path: str, shape: Sequence[int]) -> tuple[str, ...] | None:
        """The role of each axis of a leaf; None where its roles are not known.

        The path of a leaf may have a first part `params` that the roles do not have, and the other
        way around.

        Args:
          path: of the leaf.
          shape: of the leaf.

        Raises:
          ValueError: `axis_roles` saw a leaf with another number of axes at this path, or with the
            same sizes in another order.
        """
        for name in _names_of(path):
            if name in self._roles_of:
                roles = self._roles_of[name]
                if len(roles) != len(shape):
                    raise _other_n_axes(path, roles, shape)
                if _is_reordered(self._shape_of.get(name, shape), shape):
                    raise _other_order(path, self._shape_of[name], shape)
                return roles
        for rule, choices in self.rules:
            if self._is_match(rule, path):
                for roles in choices:
                    if len(roles) == len(shape):
                        return roles
        return None

    def reason(self, path: str) -> str:
        """Why a leaf has no roles, as far as `axis_roles` said; else an empty string."""
        return next((self._reason_of[p] for p in _names_of(path) if p in self._reason_of), "")

    def unmatched(self, paths: Sequence[str]) -> list[str]:
        """The regexes that match none of these paths; those of `torch_roles` are exempt."""
        return [
            rule
            for rule, choices in self.rules
            if not _is_ready_made(rule, choices)
            and not any(self._is_match(rule, path) for path in paths)
        ]

    def misfits(self, shapes: Mapping[str, Sequence[int]]) -> list[RoleMisfit]:
        """The regexes that match leaves, but have roles for other numbers of axes than all of them.

        Ready-made rules are exempt, as in `unmatched`.

        Args:
          shapes: the shape of each leaf, by path.

        Example:
          >>> rules = as_roles({".*w": ("out", "in", "window"), ".*": ("in", "out")})
          >>> [misfit.rule for misfit in rules.misfits({"fc/w": (8, 4), "fc/b": (4,)})]
          ['.*w']
        """
        misfits = []
        for rule, choices in self.rules:
            if _is_ready_made(rule, choices):
                continue
            leaves = {path: tuple(shapes[path]) for path in shapes if self._is_match(rule, path)}
            if leaves and not {len(x) for x in leaves.values()} & {len(x) for x in choices}:
                misfits.append(RoleMisfit(rule, choices, leaves))
        return misfits

    def exempt(self) -> list[str]:
        """The regexes that need not match: the paths of single leaves, and ready-made rules."""
        ready_made = [rule for rule, choices in self.rules if _is_ready_made(rule, choices)]
        names = [name for path in self._roles_of for name in _names_of(path)]
        return [*map(rule_for, names), *ready_made]

    def knows(self, paths: Sequence[str]) -> bool:
        """Whether there is a rule, exact or ready-made ones included, for one of these paths."""
        if any(name in self._roles_of for path in paths for name in _names_of(path)):
            return True
        return any(self._is_match(rule, path) for rule, _ in self.rules for path in paths)

    @staticmethod
    def _is_match(rule: str, path: str) -> bool:
        return any(re.fullmatch(rule, name) for name in _names_of(path))


def _names_of(path: str) -> tuple[str, str]:
    """A path, and the same path with or without the name of linen's collection."""
    if path.startswith(_COLLECTION):
        return path, path.removeprefix(_COLLECTION)
    return path, _COLLECTION + path


def _other_n_axes(path: str, roles: tuple[str, ...], shape: Sequence[int]) -> BadValue:
    return BadValue(
        f"{shown_path(path)}: roles has {len(roles)} axes, {roles!r}, but the leaf has shape "
        f"{tuple(shape)}. Call axis_roles again if the model has changed."
    )


def _is_reordered(seen: Sequence[int], shape: Sequence[int]) -> bool:
    return tuple(seen) != tuple(shape) and sorted(seen) == sorted(shape)


def _other_order(path: str, seen: Sequence[int], shape: Sequence[int]) -> BadValue:
    return BadValue(
        f"{shown_path(path)}: axis_roles saw shape {tuple(seen)}, but this leaf has the same sizes "
        f"in another order, {tuple(shape)}. Call axis_roles again with the model of these params."
    )


def as_roles(roles: Any) -> RoleRules | None:
    """The argument `roles`, checked.

    Args:
      roles: None; an `AxisRoles`; or a mapping from regexes to tuples of roles, or to lists of
        such tuples for leaves with different numbers of axes. The first rule that matches the path
        and the number of axes decides.

    Returns:
      A hashable value; None for None.

    Raises:
      TypeError, ValueError: naming the rule, its value, and what to write instead.

    Example:
      >>> rules = as_roles({".*weight": [("out", "in"), ("out", "in", "window")]})
      >>> rules.of("conv/weight", (8, 4, 3))
      ('out', 'in', 'window')
      >>> as_roles(AxisRoles({"params/fc/kernel": ("in", "out")})).of("fc/kernel", (8, 4))
      ('in', 'out')
    """
    if roles is None or isinstance(roles, RoleRules):
        return roles
    if isinstance(roles, AxisRoles):
        shapes = tuple(roles.shapes.items())
        return RoleRules(tuple(roles.items()), tuple(roles.without.items()), shapes=shapes)
    if not isinstance(roles, Mapping):
        raise _not_a_mapping(roles)
    if not roles:
        raise ValueError("roles must hold at least one rule, got none. Leave it out instead.")
    for rule in roles:
        if not isinstance(rule, str):
            raise TypeError(
                f"roles: each key must be a regex, got {shown(rule)}. A regex matches the whole "
                "path, such as '.*kernel'."
            )
    as_rules(tuple(roles), "roles")
    return RoleRules(rules=tuple((rule, _choices(rule, value)) for rule, value in roles.items()))


def _not_a_mapping(roles: Any) -> TypeError:
    fix = "Use axis_roles, or write {'.*kernel': ('in', 'out')}."
    if isinstance(roles, str):
        ready_made = difflib.get_close_matches(roles.lower(), ("torch", "equinox"), n=1, cutoff=0.3)
        if ready_made:
            fix = f"Pass the object, jaxprune.{ready_made[0]}_roles."
    elif isinstance(roles, (tuple, list)) and roles and all(role in ROLES for role in roles):
        fix = f"For all leaves with {len(roles)} axes, write {{'.*': {tuple(roles)!r}}}."
    elif callable(roles):
        fix = "Call axis_roles(apply_fn, variables, *inputs), and pass its result."
    fix += dict_hint(roles)
    return TypeError(f"roles must map regexes to tuples of roles, got {shown(roles)}. {fix}")


def _choices(rule: str, value: Any) -> tuple[tuple[str, ...], ...]:
    """The tuples of roles of a rule, each for another number of axes."""
    is_many = is_list(value) and any(map(is_list, value))
    choices = tuple(as_role_tuple("roles", rule, v) for v in (value if is_many else (value,)))
    if () in choices:
        raise ValueError(
            f"roles[{rule!r}] must have a role for each axis, got {shown(value)}. Write "
            '("in", "out") for a kernel of shape (in, out).'
        )
    lengths = [len(roles) for roles in choices]
    if len(set(lengths)) < len(lengths):
        twice = next(n for n in lengths if lengths.count(n) > 1)
        raise ValueError(
            f"roles[{rule!r}] has two tuples for leaves of {twice} axes, got {shown(value)}. Keep "
            "one of them, or write two rules."
        )
    return choices
