"""The words of the command line for the arguments of the library, in both directions.

Options become arguments, and arguments in error messages become options. A wrong option is exit
code 2, and its message says what to type on the command line.
"""

import contextlib
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

_STRUCTURES = (
    "unstructured, nm:2:4, block:1x16, block:1x16:balanced or channel; nm:2:4:-1 and channel:-1 "
    "for the axis -1"
)
# Names of options -> names of the library.
DISTRIBUTIONS = {
    "uniform": "uniform",
    "erk": "erk",
    "er": "er",
    "global": "global_pool",
    "normalized": "normalized_pool",
    "l2": "l2_pool",
}
SCORES = {"magnitude": "magnitude", "random": "random_score"}
TIES = ("index", "hashed")
LAYOUTS = ("auto", "jax", "torch")
_POOLS = ("global", "normalized", "l2")  # distributions in which leaves compete with each other


class WrongOption(Exception):
    """A wrong option; the message is in the words of the command line."""


class FailedCheck(Exception):
    """A file fails the check that the user asked for."""


@contextlib.contextmanager
def wrong_option(rules: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Makes a `ValueError` or `TypeError` in the block a `WrongOption`.

    Args:
      rules: the arguments of the library that may appear in the message, from `rules_for`.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise WrongOption(in_options(told(error), rules or {})) from error


def told(error: Exception) -> str:
    """The text of an error, whose suggestions are options."""
    from jaxprune._base.arguments import BadArgument

    return error.told(as_option) if isinstance(error, BadArgument) else str(error)


# Regexes of what errors suggest about roles and slices, which have no options.
_ONLY_IN_PYTHON = (
    r" To prune a leaf, give the roles of its axes, --layout \.{4}",
    r" Write \{\*\*roles, \.{3}\} to keep the roles of the other leaves\.",
    r" jaxprune\.axis_roles, or axis_roles_nnx, reads them from the model\.",
    r"; to keep all weights of a slice, pass overrides=\{'.*?': 0\}, .*?, or from per_slice",
    r"; to name its slices, give an axis the role 'stack'.*? such as uniform or erk",
)


def in_options(text: str, rules: Mapping[str, Any]) -> str:
    """A message of the library, with options in place of arguments.

    Example:
      >>> from jaxprune import Channel
      >>> rules = {"structure": Channel(7)}
      >>> in_options("w: Channel(axis=7, norm=2) needs an axis 7", rules)
      'w: channel:7 needs an axis 7'
      >>> in_options("overrides: 'x' matches no leaf", rules)
      "--override 'x' matches no leaf"
    """
    structure = rules.get("structure")
    if structure is not None:
        text = text.replace(repr(structure), structure_text(structure))
    for suggestion in _ONLY_IN_PYTHON:
        text = re.sub(suggestion, "", text)
    text = text.replace("Or give axis=, which must be", "Or name")
    text = re.sub(
        r"choose another structure for (it|them) with --structure \.\.\.",
        "choose another --structure",
        text,
    )
    text = re.sub(r"\bNM\(n=(\d+), m=(\d+), axis=(-?\d+)\)", r"nm:\1:\2:\3", text)
    text = re.sub(r"\bChannel\(axis=(-?\d+), norm=2\)", r"channel:\1", text)
    for option, name in DISTRIBUTIONS.items():
        text = re.sub(rf"\bdistribution=(jaxprune\.)?{name}\b", f"--distribution {option}", text)
        text = re.sub(rf"(?<=[( ]){name}(?=[),: ])", option, text)
    text = re.sub(r"\bwith overrides\b", "with --override", text)
    return re.sub(r"(?<![\w-])(include|exclude|override)s?: (?=['\"])", r"--\1 ", text)


def as_option(argument: str, value: Any) -> str:
    """An argument of the library and its value as options of a command, for error messages.

    `...` is a value that the user has to choose.

    Example:
      >>> as_option("exclude", "fc/bias"), as_option("overrides", {"w": 0.5, "v": ...})
      ("--exclude 'fc/bias'", "--override 'w=0.5' --override 'v=...'")
      >>> as_option("final_sparsity", 0.5)
      '--sparsity 0.5'
    """
    from jaxprune._base.arguments import as_python

    if argument in ("include", "exclude"):
        rules = [value] if isinstance(value, str) else value
        return " ".join(f"--{argument} {_quoted(rule)}" for rule in rules)
    if argument == "overrides":
        items = [f"{rule}={_number(sparsity)}" for rule, sparsity in value.items()]
        return " ".join(f"--override {_quoted(item)}" for item in items)
    if argument in ("sparsity", "final_sparsity"):
        return f"--sparsity {_number(value)}"
    if argument == "roles":
        layouts = {("out", "in"): "torch", ("in", "out"): "jax"}
        return f"--layout {'|'.join(sorted({layouts.get(x, '...') for x in value.values()}))}"
    if argument == "structure":
        return f"--structure {'...' if isinstance(value, Mapping) else structure_text(value)}"
    return as_python(argument, value)


def _number(value: Any) -> str:
    return "..." if value is ... else f"{float(value):g}"


def _quoted(text: str) -> str:
    """The text in single quotes, as one word for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


# Options as arguments


def rules_for(
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    override: Sequence[str] | None = None,
    structure: str = "unstructured",
    distribution: str = "uniform",
    score: str = "magnitude",
    ties: str = "index",
    layout: str = "auto",
) -> dict[str, Any]:
    """The options as arguments of `prune_params` and `plan`; `layout` is only checked."""
    from jaxprune._recipe import distributions, scores

    for name, rules in (("include", include), ("exclude", exclude)):
        for rule in rules or ():
            _check_regex(f"--{name}", rule)
    _check_name("--distribution", distribution, DISTRIBUTIONS)
    _check_name("--score", score, SCORES)
    _check_name("--ties", ties, TIES)
    _check_name("--layout", layout, LAYOUTS)
    if ties == "hashed" and distribution in _POOLS:
        raise _usage(
            f"--ties hashed can't be used with --distribution {distribution}, where leaves compete "
            "in one pool. Use --ties index."
        )
    return {
        "include": include or None,
        "exclude": exclude or (),
        "overrides": dict(map(_override, override or ())) or None,
        "structure": structure_for(structure),
        "distribution": getattr(distributions, DISTRIBUTIONS[distribution]),
        "score": getattr(scores, SCORES[score]),
        "ties": ties,
    }


def _check_name(option: str, value: str, names: Collection[str]) -> None:
    if value not in names:
        close = difflib.get_close_matches(value, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise _usage(f"unknown {option} {_quoted(value)}.{hint} Write one of {', '.join(names)}.")


def _check_regex(option: str, rule: str) -> None:
    try:
        re.compile(rule)
    except re.error as error:
        raise _usage(
            f"{option} {_quoted(rule)} is not a regular expression ({error}). It matches whole "
            f"paths: write '.*kernel', not '*kernel'."
        ) from None


def _override(item: str) -> tuple[str, float]:
    """The rule and the sparsity of an `--override`."""
    rule, equals, value = item.rpartition("=")
    with contextlib.suppress(ValueError):
        if equals:
            sparsity = _checked(f"the sparsity in --override {_quoted(item)}", float(value))
            _check_regex("--override", rule)
            return rule, sparsity
    raise _usage(
        f"--override {_quoted(item)} is not REGEX=SPARSITY. Write for example '.*head.*=0.5'."
    )


def _checked(name: str, sparsity: float) -> float:
    """A sparsity, which must be in [0, 1)."""
    from jaxprune._base.arguments import as_sparsity

    try:
        as_sparsity(sparsity, name)
    except ValueError as error:
        raise _usage(str(error)) from None
    return sparsity


def as_number(text: str) -> float:
    """The number that `--sparsity` gives.

    Example:
      >>> as_number("0.9")
      0.9
    """
    try:
        return float(text)
    except ValueError:
        percent = re.fullmatch(r"(\d+([.,]\d+)?) ?%", text)
        number = float(percent[1].replace(",", ".")) / 100 if percent else None
        if number is None and re.fullmatch(r"0,\d+", text):
            number = float(text.replace(",", "."))
        hint = "Write a fraction of zeros, such as 0.9."
        if number is not None and number < 1:
            hint = f"Did you mean {number:g}?"
        raise _usage(f"{_quoted(text)} is not a number. {hint}") from None


def sparsity_for(sparsity: float | None, rules: dict[str, Any]) -> float:
    """`--sparsity` if it is given, otherwise the sparsity of an N:M structure."""
    from jaxprune._recipe.nm import NM

    structure = rules["structure"]
    if sparsity == 0 and rules["overrides"]:
        raise _usage(
            "--override changes the sparsity of leaves that --sparsity prunes, so --sparsity must "
            "be above 0. To prune only these leaves, name them with --include."
        )
    if sparsity is not None:
        return _checked("--sparsity", sparsity)
    if isinstance(structure, NM):
        return 1 - structure.n / structure.m
    raise _usage(
        "--sparsity is missing. Give one, like --sparsity 0.9; only --structure nm:N:M implies one."
    )


def structure_for(text: str) -> Any:
    """The structure that `--structure` names.

    Example:
      >>> structure_for("nm:2:4")
      NM(n=2, m=4, axis=None)
      >>> structure_for("nm:2:4:-1")
      NM(n=2, m=4, axis=-1)
    """
    from jaxprune._recipe.nm import NM
    from jaxprune._recipe.structures import Block, Channel, Unstructured

    reason = ""
    if text == "unstructured":
        return Unstructured()
    if match := re.fullmatch(r"nm:(\d+):(\d+)(?::(-?\d+))?", text):
        n, m = int(match[1]), int(match[2])
        if 0 < n < m:
            return NM(n, m, None if match[3] is None else int(match[3]))
        reason = f" (nm:N:M keeps N of every M weights, but {n} is not in 1 to {m - 1})"
    elif match := re.fullmatch(r"block:(\d+(?:x\d+)*)(:balanced)?", text):
        shape = tuple(map(int, match[1].split("x")))
        if all(shape):
            return Block(shape, balanced=bool(match[2]))
        reason = " (a block can't have a length of 0)"
    elif match := re.fullmatch(r"channel(?::(-?\d+))?", text):
        return Channel(None if match[1] is None else int(match[1]))
    elif text.endswith(":balanced"):
        reason = " (only blocks can be balanced)"
    raise _usage(f"unknown --structure {_quoted(text)}{reason}. Write {_STRUCTURES}.")


def structure_text(structure: Any) -> str:
    """What to give to `--structure` for a structure of `structure_for`.

    Example:
      >>> [structure_text(structure_for(text)) for text in ("nm:2:4", "block:1x16:balanced")]
      ['nm:2:4', 'block:1x16:balanced']
    """
    from jaxprune._recipe.nm import NM
    from jaxprune._recipe.structures import Block, Channel

    if isinstance(structure, NM):
        axis = "" if structure.axis is None else f":{structure.axis}"
        return f"nm:{structure.n}:{structure.m}{axis}"
    if isinstance(structure, Block):
        lengths = "x".join(map(str, structure.shape))
        return f"block:{lengths}" + ":balanced" * structure.balanced
    if isinstance(structure, Channel):
        return "channel" if structure.axis is None else f"channel:{structure.axis}"
    return "unstructured"


def _usage(text: str) -> Exception:
    import typer

    return typer.BadParameter(text)
