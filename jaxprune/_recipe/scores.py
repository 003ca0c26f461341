"""Score functions: how important each weight is. Weights with larger scores are kept.

A score function computes the scores of one leaf, `(params, grads, key) -> scores`, arrays of one
shape: `params` are the weights, `grads` their gradients (None where the caller has none), and `key`
is a PRNG key for this leaf and step. If it declares the keyword arguments `path` or `roles`, it
also gets the path of the leaf or the role of each of its axes. An `Accumulated` score adds up over
the steps instead.

Elementwise scores are never stored: they are computed again whenever the selection reads the
weights. See `Score` for the attributes of a function, and `is_elementwise`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.arguments import check_key, shown
from jaxprune._base.caching import bounded_cache
from jaxprune._base.elementwise import is_elementwise_program
from jaxprune._base.sharding import on_gpu, sharding_to_make

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Score(Protocol):
    """A score function. It may have two attributes that describe it.

    - `elementwise`: whether each score depends only on the weight and the gradient at its own
      position, has the same bits in every program that computes it, and ignores the key. Without
      the attribute, `is_elementwise` decides by the operations of the function.
    - `reads_grads`: whether the function uses gradients. True without the attribute.
    """

    def __call__(self, params: Any, grads: Any, key: Any, /) -> jax.Array:
        """One score for each weight."""
        ...


def _with_attributes(*, elementwise: bool, reads_grads: bool) -> Callable[[_Function], _Function]:
    """A decorator that sets the attributes of a score function."""

    def decorate(function: _Function) -> _Function:
        vars(function).update(elementwise=elementwise, reads_grads=reads_grads)
        return function

    return decorate


@_with_attributes(elementwise=True, reads_grads=False)
def magnitude(params: Any, grads: Any = None, key: Any = None) -> jax.Array:
    """|w|, the score of Zhu & Gupta (2017); the modulus of a complex weight.

    Args:
      params: one leaf, any inexact dtype.
      grads: unused.
      key: unused.

    Returns:
      Scores of the shape of `params`, real and at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> magnitude(jnp.array([-2.0, 0.5])).tolist()
      [2.0, 0.5]
    """
    del grads, key
    _check_array("magnitude", params)
    if params.dtype in (jnp.bfloat16, jnp.float16) and not on_gpu([params]):
        # XLA CPU computes the abs of these in float32, which is four times slower. XLA for GPUs
        # would store these bits before it squares and adds them.
        bits = lax.bitcast_convert_type(params, jnp.uint16) & jnp.uint16(0x7FFF)
        return lax.bitcast_convert_type(bits, params.dtype)
    return jnp.abs(params)


@_with_attributes(elementwise=True, reads_grads=True)
def saliency(params: Any, grads: Any, key: Any = None) -> jax.Array:
    """|w g|: how much the loss changes, to first order, when the weight becomes zero.

    Known as SNIP (Lee et al. 2019, arXiv:1810.02340) at initialisation and as the Taylor criterion
    (Molchanov et al. 2019, arXiv:1906.10771) after training.

    Weights whose gradient is NaN in the step that fires are kept. Where gradients may be NaN, as
    with loss scaling, put `optax.apply_if_finite` around `prune`, not inside.

    Args:
      params: one leaf.
      grads: gradients of the loss with respect to it.
      key: unused.

    Returns:
      Scores of the shape of `params`, float32 or wider.

    Raises:
      ValueError: there are no gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> saliency(jnp.array([-2.0, 0.5]), jnp.array([0.25, 3.0])).tolist()
      [0.5, 1.5]
    """
    del key
    grads = required_grads("saliency", grads)
    _check_array("saliency", params)
    _check_array("saliency", grads)
    if params.shape != grads.shape:
        raise ValueError(
            f"saliency: params have shape {params.shape}, but their gradients {grads.shape}. Pass "
            "gradients with respect to these params."
        )
    return jnp.abs(_wide(params) * _wide(grads))


@_with_attributes(elementwise=True, reads_grads=True)
def gradient_magnitude(params: Any, grads: Any, key: Any = None) -> jax.Array:
    """|g|, by which RigL chooses the weights to grow (Evci et al. 2020, arXiv:1911.11134).

    Args:
      params: one leaf; unused.
      grads: gradients of the loss with respect to it.
      key: unused.

    Returns:
      Scores of the shape of `grads`.

    Raises:
      ValueError: there are no gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> gradient_magnitude(None, jnp.array([-2.0, 0.5])).tolist()
      [2.0, 0.5]
    """
    del params, key
    grads = required_grads("gradient_magnitude", grads)
    _check_array("gradient_magnitude", grads)
    return magnitude(grads)


@_with_attributes(elementwise=False, reads_grads=False)
def random_score(params: Any, grads: Any = None, key: Any = None) -> jax.Array:
    """Uniform random numbers in [0, 1): the baseline that any other score must beat.

    Args:
      params: one leaf; only its shape and its sharding are used.
      grads: unused.
      key: PRNG key.

    Returns:
      float32 scores of the shape of `params`.

    Raises:
      ValueError: there is no key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> random_score(jnp.ones((2, 3)), None, jax.random.key(0)).shape
      (2, 3)
    """
    del grads
    if key is None:
        raise ValueError("random_score needs a PRNG key, got key=None. Pass jax.random.key(0).")
    check_key("random_score: key", key)
    named = sharding_to_make(params)  # without it, every device draws the numbers of all
    return jax.random.uniform(key, jnp.shape(params), jnp.float32, out_sharding=named)


@dataclasses.dataclass(frozen=True)
class Accumulated:
    """A score that is a sum over the steps. The sums are kept in the optimizer state.

    Increments that are NaN or infinite add nothing to the sum of their weight.

    Attributes:
      name: its name in messages.
      increment: `(params, grads) -> increments`, what one step adds to the score of each weight.

    Example:
      >>> taylor = Accumulated("taylor", lambda params, grads: (params * grads) ** 2)
      >>> taylor.increment(2.0, -3.0)
      36.0
    """

    name: str
    increment: Callable[[jax.Array, jax.Array], jax.Array]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(
                f"Accumulated: name must be a string, got {shown(self.name)}. Pass it first: "
                'Accumulated("taylor", lambda params, grads: (params * grads)**2).'
            )
        if not callable(self.increment):
            raise TypeError(
                f"Accumulated: increment must be a function, got {shown(self.increment)}. Pass "
                "(params, grads) -> increments, such as lambda params, grads: (params * grads)**2."
            )

    def __repr__(self) -> str:
        return self.name


def _movement(params: jax.Array, grads: jax.Array) -> jax.Array:
    # The inner product of complex numbers: what a step along -grads changes in the squared size of
    # the weights. For real numbers it is the plain product.
    return -(jnp.conj(_wide(params)) * _wide(grads)).real


movement = Accumulated("movement", _movement)
"""The sum over steps of -w g: weights that move away from zero are kept, others are dropped.

From Sanh et al. 2020, arXiv:2005.07683, where dropped weights may return: `regrow="train"` with
`straight_through`. The sums are float32, one per weight, in `PruneState.score_state`. They are
negative for weights that move towards zero, so for channels use `Channel(norm=1)`, which adds them.
"""


@_with_attributes(elementwise=True, reads_grads=False)
def itself(params: Any, grads: Any = None, key: Any = None) -> jax.Array:
    """Scores that were computed before: the `params` unchanged."""
    del grads, key
    return params


# What a score can do


def accumulates(score: Any) -> bool:
    """Whether a score is a sum over the steps: it has an `increment`, as `Accumulated` does."""
    return hasattr(score, "increment")


def reads_grads(score: Any) -> bool:
    """Whether a score may use gradients."""
    return getattr(score, "reads_grads", True)


def leaf_arguments(
    score: Any, path: str, roles: tuple[str, ...] | None
) -> dict[str, str | tuple[str, ...] | None]:
    """What a score function is told about its leaf: those of `path` and `roles` that it declares.

    Args:
      score: a score function, whose first three arguments are the params, the grads and the key.
      path: of the leaf.
      roles: the role of each of its axes; None where they are not known.

    Example:
      >>> leaf_arguments(lambda params, grads, key, path: abs(params), "fc/kernel", None)
      {'path': 'fc/kernel'}
    """
    values = {"path": path, "roles": roles}
    return {name: values[name] for name in _declared(score)}


@bounded_cache(maxsize=256)
def _declared(score: Any) -> tuple[str, ...]:
    """Those of `path` and `roles` that a function declares after its first three arguments."""
    try:
        parameters = list(inspect.signature(score).parameters.values())
    except (TypeError, ValueError):  # built-in functions have no signature
        return ()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = [p.name for p in parameters if p.kind in by_position][:3]
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in parameters if p.kind in by_name and p.name not in first]
    return tuple(name for name in ("path", "roles") if name in names)


def needs_key(score: Any) -> bool:
    """Whether a score may use its key: not if it is declared elementwise, or accumulates."""
    return not getattr(score, "elementwise", False) and not accumulates(score)


def is_elementwise(score: Any, params: Any, grads: Any) -> bool:
    """Whether the scores of a leaf may be computed again whenever they are read.

    The attribute `elementwise` of the score decides. A function without it is traced, and must
    consist of operations that give the same bits in every program; see
    `jaxprune._base.elementwise`.

    Args:
      score: a score function.
      params: one leaf; an array, a tracer or a `jax.ShapeDtypeStruct`.
      grads: its gradients, likewise, or None.

    Example:
      >>> w = jax.ShapeDtypeStruct((2, 3), jnp.float32)
      >>> is_elementwise(lambda params, grads, key: jnp.abs(params) * 2, w, None)
      True
      >>> is_elementwise(lambda params, grads, key: jnp.abs(params) / jnp.max(params), w, None)
      False
    """
    declared = getattr(score, "elementwise", None)
    if declared is not None:
        return bool(declared)
    return not accumulates(score) and is_elementwise_program(score, params, grads)


def required_grads(score: Any, grads: Any) -> Any:
    """The gradients, if there are any.

    Raises:
      ValueError: there are none; it says how to pass them to the score.
    """
    if grads is None:
        raise ValueError(
            f"{score} needs gradients. Wrap the optimizer, prune(..., inner=optimizer), or pass "
            "them, tx.update(updates, state, params, grads=grads). Without an optimizer, pass "
            "grads=jax.grad(loss)(params)."
        )
    return grads


def _check_array(function: str, x: Any) -> None:
    """Raises a TypeError where a score function is called on something else than one leaf."""
    is_array = isinstance(x, (jax.Array, np.ndarray, np.generic))
    if not is_array or not jnp.issubdtype(x.dtype, jnp.number):
        raise TypeError(
            f"{function} takes one array of numbers, got {shown(x)}. For a tree, write "
            f"jax.tree.map(jaxprune.{function}, params)."
        )


def _wide(x: jax.Array) -> jax.Array:
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    return x.astype(jnp.float32) if narrow else x


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
Accumulated.__module__ = "jaxprune"
__test__ = {"Accumulated": Accumulated}
