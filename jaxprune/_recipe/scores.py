"""Score functions: how much each weight is worth. Larger means keep.

A score maps one leaf to its scores: `(params, grads, key) -> scores`, arrays of one shape. `params`
are the weights, `grads` their gradients (None where the caller has none), and `key` a PRNG key of
the leaf and the step. The elementwise ones of this module run inside the selection's own read of
the weights and are never stored.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


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
    if params.dtype in (jnp.bfloat16, jnp.float16):
        # XLA CPU takes the abs of these by way of float32, which is four times slower.
        bits = lax.bitcast_convert_type(params, jnp.uint16) & jnp.uint16(0x7FFF)
        return lax.bitcast_convert_type(bits, params.dtype)
    return jnp.abs(params)


def saliency(params: Any, grads: Any, key: Any = None) -> jax.Array:
    """|w g|: how much the loss changes, to first order, when the weight goes to zero.

    Known as SNIP (Lee et al. 2019, arXiv:1810.02340) at initialisation and as the Taylor criterion
    (Molchanov et al. 2017, arXiv:1611.06440) after training.

    Args:
      params: one leaf.
      grads: gradients of the loss with respect to it.
      key: unused.

    Returns:
      Scores of the shape of `params`, float32 or wider.

    Raises:
      ValueError: no gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> saliency(jnp.array([-2.0, 0.5]), jnp.array([0.25, 3.0])).tolist()
      [0.5, 1.5]
    """
    del key
    grads = _needed("saliency", grads)
    return jnp.abs(_wide(params) * _wide(grads))


def gradient_magnitude(params: Any, grads: Any, key: Any = None) -> jax.Array:
    """|g|, what RigL grows by (Evci et al. 2020, arXiv:1911.11134).

    Args:
      params: one leaf; unused.
      grads: gradients of the loss with respect to it.
      key: unused.

    Returns:
      Scores of the shape of `grads`.

    Raises:
      ValueError: no gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> gradient_magnitude(None, jnp.array([-2.0, 0.5])).tolist()
      [2.0, 0.5]
    """
    del params, key
    return magnitude(_needed("gradient_magnitude", grads))


def random_score(params: Any, grads: Any = None, key: Any = None) -> jax.Array:
    """Uniform random numbers in [0, 1): the baseline that any other score must beat.

    Args:
      params: one leaf; only its shape counts.
      grads: unused.
      key: PRNG key.

    Returns:
      float32 scores of the shape of `params`.

    Raises:
      ValueError: no key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> random_score(jnp.ones((2, 3)), None, jax.random.key(0)).shape
      (2, 3)
    """
    del grads
    if key is None:
        raise ValueError("random_score needs a PRNG key.")
    return jax.random.uniform(key, jnp.shape(params), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Accumulated:
    """A score that adds up over the steps, in the optimizer state.

    Attributes:
      name: what it is called.
      increment: `(params, grads) -> what one step adds`, elementwise.

    Example:
      >>> taylor = Accumulated("taylor", lambda params, grads: (params * grads) ** 2)
      >>> taylor.increment(2.0, -3.0)
      36.0
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    name: str
    increment: Callable[[jax.Array, jax.Array], jax.Array]

    def __repr__(self) -> str:
        return self.name


def _movement(params: jax.Array, grads: jax.Array) -> jax.Array:
    return -_wide(params).real * _wide(grads).real


movement = Accumulated("movement", _movement)
"""The sum over steps of -w g: weights that move away from zero are kept, those that shrink go.

From Sanh et al. 2020, arXiv:2005.07683. The sums are float32, one per weight, in
`PruneState.score_state`.
"""


def itself(params: Any, grads: Any = None, key: Any = None) -> jax.Array:
    """Scores that are computed already."""
    del grads, key
    return params


def is_elementwise(score: Any) -> bool:
    """Whether it is known to be cheap and elementwise, so that it need not be stored."""
    return any(score is known for known in (magnitude, saliency, gradient_magnitude, itself))


def reads_grads(score: Any) -> bool:
    """Whether it may look at gradients."""
    return not any(score is known for known in (magnitude, random_score))


def _needed(name: str, grads: Any) -> Any:
    if grads is None:
        raise ValueError(
            f"{name} needs gradients: wrap the optimizer, prune(..., inner=optimizer), or pass "
            "them, tx.update(updates, state, params, grads=grads)."
        )
    return grads


def _wide(x: jax.Array) -> jax.Array:
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    return x.astype(jnp.float32) if narrow else x


# Their examples run, although by `__module__` they belong to `jaxprune`.
__test__ = {"Accumulated": Accumulated}
