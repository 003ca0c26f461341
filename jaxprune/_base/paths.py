"""Key paths as strings, and rules that match leaves by their paths.

Paths look the same for every library: the keys are joined by `/`, and the key `value` that the
boxes of flax add is left out (NNX shows `fc/kernel/value` to `init` and `fc/kernel` to `update`; so
does linen `Partitioned`). A regex must match the whole path.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxprune._base.arguments import shown
from jaxprune._base.functions import takes_arguments

Rule = str | Callable[[str, Any], Any]


def path_str(path: tuple[Any, ...]) -> str:
    """A key path as a string, its keys joined by `/`.

    A key that is a tuple of strings, as those of `flax.traverse_util.flatten_dict`, is joined, too.

    Example:
      >>> import jax
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"fc": [{"kernel": 1.0}]})
      >>> path_str(path)
      'fc/0/kernel'
      >>> path_str((jax.tree_util.DictKey(("fc", "kernel")),))
      'fc/kernel'
    """
    path = tuple(key for keys in map(_keys_in, path) for key in keys)
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _keys_in(key: Any) -> tuple[Any, ...]:
    """One key for each string of a key that is a tuple of strings; else the key itself."""
    name = getattr(key, "key", None)
    if type(name) is tuple and all(isinstance(each, str) for each in name):
        return tuple(map(jax.tree_util.DictKey, name))
    return (key,)


def paths_of(tree: Any) -> list[str]:
    """The path of every leaf as rules see it, in the order of the leaves.

    Example:
      >>> paths_of({"fc": [{"kernel": 1.0, "bias": 0.0}]})
      ['fc/0/bias', 'fc/0/kernel']
    """
    return [path_str(path) for path, _ in _walk(tree, lambda x: False)]


def hidden_paths(tree: Any) -> list[str]:
    """The paths where a tree has a placeholder: `None`, or the `MaskedNode` of optax.

    `optax.masked` and `optax.partition` put placeholders where the leaves belong to another
    transformation. A placeholder may hide one leaf or a whole subtree.

    Example:
      >>> import optax
      >>> hidden_paths({"fc": {"kernel": 1.0, "bias": optax.MaskedNode()}, "head": None})
      ['fc/bias', 'head']
    """
    return [path_str(path) for path, x in _walk(tree, _is_placeholder) if _is_placeholder(x)]


def _is_placeholder(x: Any) -> bool:
    return x is None or (type(x).__name__ == "MaskedNode" and _is_from("optax", type(x)))


def _walk(tree: Any, is_leaf: Callable[[Any], bool]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The key path of each leaf, without the key `value` of boxes, and the leaf."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: is_box(x) or is_leaf(x))
    for path, node in flat:
        for keys, leaf in _leaves_inside(node, is_leaf):
            yield (*path, *keys), leaf


def _leaves_inside(node: Any, is_leaf: Callable[[Any], bool]) -> list[tuple[tuple[Any, ...], Any]]:
    """The key paths and leaves in a box, without its key `value`; the node itself if no box."""
    if not is_box(node):
        return [((), node)]
    flat, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node and (is_box(x) or is_leaf(x))
    )
    inside = []
    for path, child in flat:
        starts_with_value = bool(path) and getattr(path[0], "name", None) == "value"
        keys = path[starts_with_value:]
        inside += [((*keys, *inner), leaf) for inner, leaf in _leaves_inside(child, is_leaf)]
    return inside


def is_box(x: Any) -> bool:
    """Whether a value is an NNX variable, or linen metadata, around an array or a tree."""
    return _is_box_type(type(x))


@functools.cache
def _is_box_type(kind: type) -> bool:
    """Whether a type is an NNX variable or linen metadata, by name: flax may not be installed."""
    names = ("Variable", "VariableState", "AxisMetadata")
    return any(c.__name__ in names and _is_from("flax", c) for c in kind.__mro__)


def _is_from(package: str, kind: type) -> bool:
    return kind.__module__.partition(".")[0] == package


def parts_of(path: str) -> tuple[str, ...]:
    """The parts of a path, which are separated by `/`, or by dots, as in files from PyTorch.

    Example:
      >>> parts_of("layers/0/kernel"), parts_of("fc.weight")
      (('layers', '0', 'kernel'), ('fc', 'weight'))
    """
    return tuple(re.split("[/.]", path))


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


def check_not_donated(where: str, tree: Any) -> None:
    """Raises a ValueError where an array was donated to a jitted function, and so has no values."""
    deleted = [
        i
        for i, leaf in enumerate(flattened(tree)[0])
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted()
    ]
    if deleted:
        paths = paths_of(tree)
        names = listed([paths[i] for i in deleted])
        raise ValueError(
            f"{where}: {names}: these arrays were donated to a jitted function (donate_argnums), "
            "which deleted them. Pass those that it returned."
        )


def check_values(where: str, tree: Any) -> None:
    """Raises a TypeError where a leaf is a shape in place of an array."""
    for i, leaf in enumerate(flattened(tree)[0]):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            path = shown_path(paths_of(tree)[i])
            raise TypeError(
                f"{where}: {path}: needs numbers, got {shown(leaf)}, which is only a "
                "shape. Pass arrays."
            )


def check_arrays(where: str, tree: Any) -> None:
    """Raises where a leaf has no values: a shape, or an array that was donated."""
    check_values(where, tree)
    check_not_donated(where, tree)


def listed(paths: Sequence[str]) -> str:
    """Paths for an error message: the first 8, and how many more there are."""
    more = f", and {len(paths) - 8} more" if len(paths) > 8 else ""
    return ", ".join(shown_path(path) for path in paths[:8]) + more or "no leaf"


def shape_of(leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf; () for anything that is not an array, such as a number."""
    spec = spec_of(leaf)
    return () if spec is None else tuple(spec.shape)


def rule_for(path: str) -> str:
    """A regex that matches this path, to suggest in an error."""
    try:
        return path if re.fullmatch(path, path) else re.escape(path)
    except re.error:
        return re.escape(path)


def flattened(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Any]:
    """The leaves and the treedef of a tree.

    Raises:
      TypeError: a dict whose keys can't be sorted, because they have different types.
    """
    try:
        return jax.tree.flatten(tree, is_leaf=is_leaf)
    except ValueError:
        raise TypeError(
            f"a tree of type {type(tree).__name__} has a dict whose keys can't be sorted. Give all "
            "keys of each dict the same type, such as str."
        ) from None


def leaves_with_paths(tree: Any) -> tuple[list[str], list[Any], Any]:
    """The paths of a tree, its leaves in the same order, and its treedef.

    Raises:
      TypeError: a leaf is an array of another library, such as a torch tensor, or the keys of a
        dict can't be sorted.
      ValueError: two leaves have the same path, as in `{"a/b": x, "a": {"b": y}}`.
    """
    leaves, treedef = flattened(tree)
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
            f"got {shown(rules)}. {_rule_hint(rules)}"
        )
    for rule in rules:
        _check_rule(rule, argument)
    return tuple(rules)


def _rule_hint(rule: Any) -> str:
    """What to pass in place of a value that is not a rule, for an error."""
    if isinstance(rule, re.Pattern):
        return f"Pass its text: {rule.pattern!r}. It must match the whole path."
    if isinstance(rule, Mapping):
        return "A tree of bools is no rule. Name the leaves by their paths, such as '.*kernel'."
    return "A regex matches the whole path, such as '.*kernel'."


def _check_rule(rule: Any, argument: str) -> None:
    if isinstance(rule, str):
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(
                f"{argument}: {rule!r} is not a regular expression ({error}). Rules match whole "
                'paths: write ".*kernel", not "*kernel".'
            ) from None
    elif not callable(rule) or isinstance(rule, type) or is_model(rule):
        raise TypeError(
            f"{argument}: each rule must be a regex or a function (path, leaf) -> bool, got "
            f"{shown(rule)}. {_rule_hint(rule)}"
        )
    elif not is_hashable(rule):
        raise TypeError(
            f"{argument}: {shown(rule)} cannot be hashed, so its choices cannot be cached. Wrap "
            "it: lambda path, leaf: rule(path, leaf)."
        )
    elif not takes_arguments(rule, 2):
        raise TypeError(
            f"{argument}: a function gets the path and the leaf, but {_name(rule)} can't be called "
            "with two arguments. Write lambda path, leaf: path.endswith('kernel')."
        )


def is_model(x: Any) -> bool:
    """Whether a value is a module of flax, Equinox or torch, which can be called too."""
    return any(kind.__name__ == "Module" for kind in type(x).__mro__)


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
    try:
        result = rule(path, spec)
    except Exception as error:  # whatever a function of the user raises
        error.add_note(
            f"{shown_path(path)}: the rule {rule_name(rule)} gets the path of a leaf and its shape "
            f"and dtype, here {spec}, not its values."
        )
        raise
    is_match = type(result).__name__ == "Match"  # as of re.search
    if result is None or is_match or isinstance(result, (bool, np.bool_)):
        return bool(result)
    is_array = isinstance(result, (np.ndarray, jax.Array)) and not isinstance(result, Tracer)
    if is_array and result.shape == () and result.dtype == bool:
        return bool(result)
    raise TypeError(
        f"{shown_path(path)}: the rule {rule_name(rule)} must return True or False, got "
        f"{shown(result)}. Write a condition on the path and the shape, such as "
        "lambda path, leaf: path.endswith('kernel')."
    )


def rule_name(rule: Rule) -> str:
    """A rule for an error message or a table: a regex in quotes, or the name of a function."""
    return repr(rule) if isinstance(rule, str) else _name(rule)


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or shown(function)
