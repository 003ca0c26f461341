"""Checks of what the score of a user returns: one real number for each weight of a leaf."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._base.caching import bounded_cache
from jaxprune._base.paths import shown_path, spec_of
from jaxprune._recipe.scores import accumulates, leaf_arguments, required_grads


class _Kind(NamedTuple):
    """How an error speaks of a score: what returns, what it takes, and how to write one."""

    returns: str
    takes: str
    fix: str
    like: str


_PLAIN = _Kind(
    "score",
    "(params, grads, key)",
    "A score takes all three; wrap one that does not: lambda params, grads, key: jnp.abs(params).",
    "jaxprune.magnitude",
)
_SUM = _Kind(
    "the increment of score",
    "(params, grads)",
    "An increment takes these two, arrays of one shape, such as lambda params, grads: (params * "
    "grads)**2.",
    "lambda params, grads: (params * grads)**2",
)


def check_score(
    path: str, spec: jax.ShapeDtypeStruct, score: Any, roles: tuple[str, ...] | None
) -> None:
    """Raises where a score does not return one number for each weight of a leaf.

    Args:
      path: of the leaf.
      spec: its shape and dtype.
      score: a score function, or an accumulated score, whose increments are checked.
      roles: the role of each axis of the leaf; None where they are not known.

    Raises:
      TypeError, ValueError: naming the leaf. Any other error of the score has a note that does.
    """
    kind = _SUM if accumulates(score) else _PLAIN
    try:
        out = _scores(score, spec, spec, _about_leaf(score, path, roles))
    except TypeError as error:
        problem = str(error).partition("\n")[0].rstrip(".")
        raise TypeError(
            f"score: {_name(score)} fails on {kind.takes} of {shown_path(path)}: {problem}. "
            f"{kind.fix}"
        ) from error
    except Exception as error:  # whatever a function of the user raises
        error.add_note(f"{shown_path(path)}: {kind.returns} {_name(score)} got {kind.takes}.")
        raise
    _check_result(path, spec, score, out)


def check_without_grads(leaves: Sequence[Any], params: Sequence[Any], score: Any) -> None:
    """Raises where a score function that `check_score` accepted can't do without gradients.

    Args:
      leaves: how each is decided, with its path and roles.
      params: their arrays.
      score: the score function.

    Raises:
      ValueError: naming the leaf and the score, and how to give gradients.
    """
    for leaf, param in zip(leaves, params, strict=True):
        spec = jax.ShapeDtypeStruct(jnp.shape(param), param.dtype)
        try:
            out = _scores(score, spec, None, _about_leaf(score, leaf.path, leaf.roles))
        except (AttributeError, IndexError, TypeError):  # what operations on None raise
            out = None
        if out is None:
            required_grads(f"{shown_path(leaf.path)}: score {_name(score)}", None)
        _check_result(leaf.path, spec, score, out)


def _check_result(path: str, spec: jax.ShapeDtypeStruct, score: Any, out: Any) -> None:
    got = spec_of(out)
    if got is None or got.shape != spec.shape or not jnp.issubdtype(got.dtype, jnp.floating):
        kind = _SUM if accumulates(score) else _PLAIN
        who = f"{kind.returns} {_name(score)}" if kind is _SUM else kind.returns
        returned = type(out).__name__ if got is None else f"{got.dtype} of shape {got.shape}"
        raise ValueError(
            f"{shown_path(path)}: {who} returned {returned} for {spec.dtype} of shape "
            f"{spec.shape}; it must return one real floating point score per weight, as "
            f"{kind.like} does."
        )


def _name(score: Any) -> str:
    return repr(score) if accumulates(score) else repr(getattr(score, "__name__", score))


_AboutLeaf = tuple[tuple[str, Any], ...]


def _about_leaf(score: Any, path: str, roles: tuple[str, ...] | None) -> _AboutLeaf:
    return () if accumulates(score) else tuple(leaf_arguments(score, path, roles).items())


@bounded_cache(maxsize=256)
def _scores(score: Any, params: Any, grads: Any, about_leaf: _AboutLeaf) -> Any:
    """The shape and dtype of the scores of a leaf; many leaves of a model are alike."""
    if accumulates(score):
        return jax.eval_shape(score.increment, params, grads)
    function: Callable[..., Any] = functools.partial(score, **dict(about_leaf))
    return jax.eval_shape(function, params, grads, jax.eval_shape(lambda: jax.random.key(0)))
