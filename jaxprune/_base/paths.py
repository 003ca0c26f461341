"""Key paths as strings, and the rules that choose leaves by them.

One path language for every library: the keys joined by `/`, without the `value` that the boxes of
flax add (NNX shows `fc/kernel/value` to `init` and `fc/kernel` to `update`; so does linen
`Partitioned`). A regex must match the whole path. Nothing here knows what being chosen is for.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
    """The path of every leaf as rules see it, in order.

    Example:
      >>> paths_of({"fc": [{"kernel": 1.0, "bias": 0.0}]})
      ['fc/0/bias', 'fc/0/kernel']
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)
    return [path_str((*path, *keys)) for path, node in flat for keys in _keys_inside(node)]


def _keys_inside(node: Any) -> list[tuple[Any, ...]]:
    """The key paths of the leaves of a box, without its own `value`; what is no box is a leaf."""
    if not _is_box(node):
        return [()]
    flat, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node and _is_box(x)
    )
    keys = []
    for path, child in flat:
        named = bool(path) and getattr(path[0], "name", None) == "value"
        keys += [(*path[named:], *inner) for inner in _keys_inside(child)]
    return keys


def _is_box(x: Any) -> bool:
    return _is_box_type(type(x))


@functools.cache
def _is_box_type(kind: type) -> bool:
    """Whether it is an NNX variable or linen metadata, told by name: flax may not be there."""
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
    """Shape and dtype of an array leaf (or of its spec); None for anything else."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return None
    return jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)


def listed(paths: Sequence[str]) -> str:
    """Paths as an error lists them: the first 8, and how many more."""
    more = f", and {len(paths) - 8} more" if len(paths) > 8 else ""
    return ", ".join(shown_path(path) for path in paths[:8]) + more or "no leaf"


def rule_for(path: str) -> str:
    """A regex that matches this path, for errors to suggest."""
    try:
        return path if re.fullmatch(path, path) else re.escape(path)
    except re.error:
        return re.escape(path)


def leaves_with_paths(tree: Any) -> tuple[list[str], list[Any], Any]:
    """The paths and the leaves of a tree, in order, and its structure.

    Raises:
      ValueError: two leaves with one path, as `{"a/b": x, "a": {"b": y}}` has.
    """
    leaves, treedef = jax.tree.flatten(tree)
    paths = paths_of(tree)
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
      TypeError: something that is neither.
      ValueError: a regex that does not compile.
    """
    if isinstance(rules, str) or callable(rules):
        rules = (rules,)
    if not isinstance(rules, Sequence) or isinstance(rules, bytes):
        raise TypeError(
            f"{argument} must be a regex, a function (path, leaf) -> bool, or a sequence of these, "
            f"got {rules!r}."
        )
    for rule in rules:
        if isinstance(rule, str):
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(
                    f"{argument}: {rule!r} is not a regular expression ({error}). Rules match "
                    "whole "
                    'paths: write ".*kernel", not "*kernel".'
                ) from None
        elif not callable(rule):
            raise TypeError(
                f"{argument}: each rule must be a regex or a function (path, leaf) -> bool, got "
                f"{rule!r}."
            )
        elif not is_hashable(rule):
            raise TypeError(
                f"{argument}: {rule!r} cannot be hashed, so that what it chose can't be "
                "remembered. Wrap it: lambda path, leaf: rule(path, leaf)."
            )
    return tuple(rules)


def is_hashable(x: Any) -> bool:
    """Whether `x` can key a cache; some callable dataclasses and modules can't."""
    try:
        hash(x)
    except TypeError:
        return False
    return True


def matches(rule: Rule, path: str, spec: jax.ShapeDtypeStruct) -> bool:
    """Whether a rule takes a leaf: a regex by its whole path, a function by path and spec."""
    if isinstance(rule, str):
        return re.fullmatch(rule, path) is not None
    return bool(rule(path, spec))


def rule_name(rule: Rule) -> str:
    """A rule as people know it."""
    return repr(rule) if isinstance(rule, str) else getattr(rule, "__name__", repr(rule))


class Choice(NamedTuple):
    """What the rules decided for one leaf."""

    chosen: bool
    reason: str
    override: int | None  # which override is the first to match the path


def choose(
    paths: Sequence[str],
    specs: Sequence[jax.ShapeDtypeStruct | None],
    include: tuple[Rule, ...] | None,
    exclude: tuple[Rule, ...],
    overrides: tuple[Rule, ...],
) -> tuple[list[Choice], list[str]]:
    """Decides every leaf, and names the rules that decided nothing.

    A leaf is chosen if it matches `include` (by default: inexact dtype, two or more axes) and not
    `exclude`. Overrides do not choose; the first that matches a chosen leaf applies to it. What is
    not an array is never chosen.

    Returns:
      One `Choice` per leaf, and one line per rule that no leaf met.
    """
    met: set[tuple[str, int]] = set()
    decided: set[int] = set()  # overrides that came first somewhere

    def first(argument: str, rules: tuple[Rule, ...], path: str, spec: Any) -> int | None:
        found = [i for i, rule in enumerate(rules) if matches(rule, path, spec)]
        met.update((argument, i) for i in found)
        return found[0] if found else None

    def decide(path: str, spec: jax.ShapeDtypeStruct | None) -> Choice:
        if spec is None:
            return Choice(False, "not an array", None)
        excluded = first("exclude", exclude, path, spec)
        if include is not None and first("include", include, path, spec) is None:
            return Choice(False, "not matched by include", None)
        if excluded is not None:
            return Choice(False, f"excluded by {rule_name(exclude[excluded])}", None)
        if include is None and not is_weight(spec):
            inexact = jnp.issubdtype(spec.dtype, jnp.inexact)
            return Choice(False, f"{spec.ndim}-D" if inexact else f"dtype {spec.dtype}", None)
        override = first("overrides", overrides, path, spec)
        if override is not None:
            decided.add(override)
        return Choice(True, "", override)

    choices = [decide(path, spec) for path, spec in zip(paths, specs, strict=True)]
    unused = []
    for argument, rules in (
        ("include", include or ()),
        ("exclude", exclude),
        ("overrides", overrides),
    ):
        for i, rule in enumerate(rules):
            if (argument, i) not in met:
                which = " that is pruned" if argument == "overrides" else ""
                unused.append(f"{argument}: {rule_name(rule)} matches no leaf{which}")
            elif argument == "overrides" and i not in decided:
                unused.append(
                    f"overrides: {rule_name(rule)} only matches where an earlier one does"
                )
    return choices, unused


def is_weight(spec: jax.ShapeDtypeStruct) -> bool:
    """The default choice: inexact dtype and two or more axes."""
    return bool(jnp.issubdtype(spec.dtype, jnp.inexact)) and len(spec.shape) >= 2
