"""Key paths as strings, and the rules that choose leaves by their paths.

Paths look the same for every library: the keys are joined by `/`, and the key `value` that the
boxes of flax add is left out (NNX shows `fc/kernel/value` to `init` and `fc/kernel` to `update`; so
does linen `Partitioned`). A regex must match the whole path.
"""

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import shown

Rule = str | Callable[[str, Any], bool]


def path_str(path: tuple[Any, ...]) -> str:
    """A key path joined by `/`.

    Example:
      >>> import jax
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"fc": [{"kernel": 1.0}]})
      >>> path_str(path)
      'fc/0/kernel'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths_of(tree: Any) -> list[str]:
    """The path of every leaf as rules see it, in the order of the leaves.

    Example:
      >>> paths_of({"fc": [{"kernel": 1.0, "bias": 0.0}]})
      ['fc/0/bias', 'fc/0/kernel']
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)
    return [path_str((*path, *keys)) for path, node in flat for keys in _keys_inside(node)]


def _keys_inside(node: Any) -> list[tuple[Any, ...]]:
    """The key paths of the leaves in a box, without its key `value`; an empty path if no box."""
    if not is_box(node):
        return [()]
    flat, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node and is_box(x)
    )
    keys = []
    for path, child in flat:
        starts_with_value = bool(path) and getattr(path[0], "name", None) == "value"
        keys += [(*path[starts_with_value:], *inner) for inner in _keys_inside(child)]
    return keys


def is_box(x: Any) -> bool:
    """Whether a value is an NNX variable, or linen metadata, around an array or a tree."""
    return _is_box_type(type(x))


@functools.cache
def _is_box_type(kind: type) -> bool:
    """Whether a type is an NNX variable or linen metadata, by name: flax may not be installed."""
    names = ("Variable", "VariableState", "AxisMetadata")
    return any(c.__name__ in names and c.__module__.startswith("flax.") for c in kind.__mro__)


def shown_path(path: str) -> str:
    """A path for an error message or a table: the path itself, or `(root)` where it is empty.

    Example:
      >>> shown_path("fc/kernel"), shown_path("")
      ('fc/kernel', '(root)')
    """
    return path or "(root)"


def spec_of(leaf: Any) -> jax.ShapeDtypeStruct | None:
    """The shape and dtype of a leaf that is an array or has both; None for anything else."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return None
    return jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)


def check_array_library(path: str, leaf: Any) -> None:
    """Raises a TypeError where a leaf is an array of a library whose dtypes NumPy does not know.

    JAX and NumPy arrays, `jax.ShapeDtypeStruct`s, and leaves that are not arrays pass.
    """
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or isinstance(leaf, type) or not hasattr(leaf, "shape"):
        return
    if isinstance(dtype, np.dtype):
        return
    try:
        jax.ShapeDtypeStruct((), dtype)
    except TypeError:
        kind = f"{type(leaf).__module__.partition('.')[0]}.{type(leaf).__name__}"
        raise TypeError(
            f"{shown_path(path)}: the leaf is a {kind} of dtype {dtype}, which JAX can't use. "
            "Convert all leaves to NumPy or JAX arrays first: for torch, "
            "{name: x.detach().cpu().numpy() for name, x in model.state_dict().items()}."
        ) from None


def listed(paths: Sequence[str]) -> str:
    """Paths for an error message: the first 8, and how many more there are."""
    more = f", and {len(paths) - 8} more" if len(paths) > 8 else ""
    return ", ".join(shown_path(path) for path in paths[:8]) + more or "no leaf"


def rule_for(path: str) -> str:
    """A regex that matches this path, to suggest in an error."""
    try:
        return path if re.fullmatch(path, path) else re.escape(path)
    except re.error:
        return re.escape(path)


def leaves_with_paths(tree: Any) -> tuple[list[str], list[Any], Any]:
    """The paths of a tree, its leaves in the same order, and its treedef.

    Raises:
      TypeError: a leaf is an array of another library, such as a torch tensor, or the keys of a
        dict can't be sorted.
      ValueError: two leaves have the same path, as in `{"a/b": x, "a": {"b": y}}`.
    """
    try:
        leaves, treedef = jax.tree.flatten(tree)
    except ValueError as error:
        raise TypeError(
            f"the tree, a value of type {type(tree).__name__}, can't be flattened: {error} Give "
            "all keys of each dict the same type, such as str."
        ) from None
    paths = paths_of(tree)
    for path, leaf in zip(paths, leaves, strict=True):
        check_array_library(path, leaf)
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"{twice}: two leaves have this path. Rename a key that contains '/'.")
    return paths, leaves, treedef


def as_rules(rules: Any, argument: str) -> tuple[Rule, ...]:
    """Regexes and predicates as a tuple, each checked.

    Args:
      rules: one regex or predicate, or a sequence of them.
      argument: the name of the user's argument, for errors.

    Raises:
      TypeError: a rule that is neither a regex nor a function, or that has no hash.
      ValueError: a regex that does not compile.
    """
    if isinstance(rules, str) or callable(rules):
        rules = (rules,)
    is_record = hasattr(rules, "_fields")  # such as an optimizer, a tuple of two functions
    if not isinstance(rules, Sequence) or isinstance(rules, bytes) or is_record:
        raise TypeError(
            f"{argument} must be a regex, a function (path, leaf) -> bool, or a sequence of these, "
            f"got {shown(rules)}. A regex matches the whole path, such as '.*kernel'."
        )
    for rule in rules:
        _check_rule(rule, argument)
    return tuple(rules)


def _check_rule(rule: Any, argument: str) -> None:
    if isinstance(rule, str):
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(
                f"{argument}: {rule!r} is not a regular expression ({error}). Rules match whole "
                'paths: write ".*kernel", not "*kernel".'
            ) from None
    elif not callable(rule) or isinstance(rule, type):
        raise TypeError(
            f"{argument}: each rule must be a regex or a function (path, leaf) -> bool, got "
            f"{shown(rule)}. A regex matches the whole path, such as '.*kernel'."
        )
    elif not is_hashable(rule):
        raise TypeError(
            f"{argument}: {shown(rule)} cannot be hashed, so its choices cannot be cached. Wrap "
            "it: lambda path, leaf: rule(path, leaf)."
        )
    elif not _takes_two_arguments(rule):
        raise TypeError(
            f"{argument}: a function gets the path and the leaf, but {_name(rule)} can't be called "
            "with two arguments. Write lambda path, leaf: path.endswith('kernel')."
        )


def _takes_two_arguments(function: Any) -> bool:
    """Whether a function may be called with two arguments, as far as its signature shows."""
    try:
        inspect.signature(function).bind("", None)
    except ValueError:  # built-in functions have no signature
        return True
    except TypeError:
        return False
    return True


def is_hashable(x: Any) -> bool:
    """Whether `x` can be the key of a cache; some callable dataclasses and modules can't."""
    try:
        hash(x)
    except TypeError:
        return False
    return True


def matches(rule: Rule, path: str, spec: jax.ShapeDtypeStruct) -> bool:
    """Whether a rule matches a leaf: a regex sees its whole path, a function its path and spec."""
    if isinstance(rule, str):
        return re.fullmatch(rule, path) is not None
    return bool(rule(path, spec))


def rule_name(rule: Rule) -> str:
    """A rule for an error message or a table: a regex in quotes, or the name of a function."""
    return repr(rule) if isinstance(rule, str) else _name(rule)


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or shown(function)


# Rules that are never used


class RuleUse:
    """Matches rules against leaves, and remembers which rules have matched and decided.

    A rule decides for a leaf if it is the first of its argument that matches.

    Example:
      >>> use, spec = RuleUse(), jax.ShapeDtypeStruct((2, 2), float)
      >>> use.first("overrides", ("fc/.*", "fc/kernel", "head"), "fc/kernel", spec)
      0
      >>> print(*use.unused("overrides", ("fc/.*", "fc/kernel", "head"), decides=True), sep="; ")
      overrides: 'fc/kernel' only matches leaves ...; overrides: 'head' matches no leaf ...
    """

    def __init__(self) -> None:
        self._matched: set[tuple[str, int]] = set()  # arguments, and indices of their rules
        self._decided: set[tuple[str, int]] = set()

    def first(self, argument: str, rules: Sequence[Rule], path: str, spec: Any) -> int | None:
        """The index of the first rule of an argument that matches a leaf; None where none does."""
        matching = [(argument, i) for i, rule in enumerate(rules) if matches(rule, path, spec)]
        self._matched.update(matching)
        self._decided.update(matching[:1])
        return matching[0][1] if matching else None

    def unused(self, argument: str, rules: Sequence[Rule], *, decides: bool) -> list[str]:
        """One line for each rule that has had no effect.

        Args:
          argument: the name of the user's argument.
          rules: its rules.
          decides: whether the rules of the argument assign values to pruned leaves, so that only
            the first match counts.
        """
        lines = []
        for i, rule in enumerate(rules):
            if (argument, i) not in self._matched:
                which = " that is pruned" if decides else ""
                lines.append(f"{argument}: {rule_name(rule)} matches no leaf{which}")
            elif decides and (argument, i) not in self._decided:
                lines.append(
                    f"{argument}: {rule_name(rule)} only matches leaves that an earlier rule "
                    "matches"
                )
        return lines


def warn_unused(
    function: str, unused: Sequence[str], paths: Sequence[str], *, stacklevel: int = 3
) -> None:
    """Warns of each rule that has had no effect.

    Args:
      function: the public function that was given the rules.
      unused: lines of `RuleUse.unused`.
      paths: the paths that the rules were matched against.
      stacklevel: the frame that the warning points to; 3 is the caller of the caller.
    """
    for line in unused:
        warnings.warn(
            f"jaxprune.{function}: {line}; the paths are {listed(paths)}", stacklevel=stacklevel
        )


# Choosing leaves


class Choice(NamedTuple):
    """Whether a leaf is chosen.

    Attributes:
      chosen: whether it is.
      reason: why not; empty for a chosen leaf.
      override: the index of the override that applies to it, or None.
    """

    chosen: bool
    reason: str
    override: int | None


class LeafRules(NamedTuple):
    """The rules that choose leaves.

    Attributes:
      include: a leaf must match one of these; None for the default, `is_weight`.
      exclude: a leaf that matches one of these is not chosen.
      overrides: the first that matches a chosen leaf applies to it. They choose nothing.
    """

    include: tuple[Rule, ...] | None = None
    exclude: tuple[Rule, ...] = ()
    overrides: tuple[Rule, ...] = ()

    def choose(self, path: str, spec: jax.ShapeDtypeStruct | None, use: RuleUse) -> Choice:
        """Decides whether one leaf is chosen; what is not an array never is."""
        if spec is None:
            return Choice(False, "not an array", None)
        excluded = use.first("exclude", self.exclude, path, spec)
        if self.include is not None and use.first("include", self.include, path, spec) is None:
            return Choice(False, "not matched by include", None)
        if excluded is not None:
            return Choice(False, f"excluded by {rule_name(self.exclude[excluded])}", None)
        if self.include is None and not is_weight(spec):
            inexact = jnp.issubdtype(spec.dtype, jnp.inexact)
            return Choice(False, f"{spec.ndim}-D" if inexact else f"dtype {spec.dtype}", None)
        return Choice(True, "", use.first("overrides", self.overrides, path, spec))

    def unused(self, use: RuleUse) -> list[str]:
        """One line for each rule that had no effect on the leaves that were chosen with `use`."""
        return [
            *use.unused("include", self.include or (), decides=False),
            *use.unused("exclude", self.exclude, decides=False),
            *use.unused("overrides", self.overrides, decides=True),
        ]


def is_weight(spec: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf is chosen by default: its dtype is inexact, and it has two or more axes."""
    return bool(jnp.issubdtype(spec.dtype, jnp.inexact)) and len(spec.shape) >= 2
