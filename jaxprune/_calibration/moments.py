"""The second moments of the inputs of a layer: all that Wanda and SparseGPT need of them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._calibration.checks import (
    check_finite,
    check_gram,
    check_inputs,
    check_layer_inputs,
)

_HIGHEST = lax.Precision.HIGHEST


class Moments(NamedTuple):
    """Sufficient statistics of a layer's inputs; add them with `jax.tree.map` to merge batches.

    Attributes:
      count: float32, the number of inputs.
      gram: float32[in, in], the sum of their outer products, X^T X. For Wanda its diagonal,
        float32[in], is enough.

    Example:
      >>> import jax.numpy as jnp
      >>> Moments(count=2.0, gram=jnp.array([10.0, 4.0])).gram.shape  # for Wanda
      (2,)
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    count: Any
    gram: Any


def moments(inputs: jax.Array) -> Moments:
    """The moments of a batch. Merge those of two batches with `jax.tree.map(jnp.add, a, b)`.

    Args:
      inputs: (..., in), any real dtype.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> a, b = moments(jnp.array([[1.0, 2.0]])), moments(jnp.array([[3.0, 0.0]]))
      >>> both = jax.tree.map(jnp.add, a, b)
      >>> float(both.count), both.gram.tolist()
      (2.0, [[10.0, 2.0], [2.0, 4.0]])
    """
    x = check_inputs("moments: `inputs`", inputs)
    return Moments(jnp.float32(math.prod(x.shape[:-1])), gram_of(x))


def layer_gram(path: str | None, inputs: Any, n_in: int) -> jax.Array:
    """X^T X of the inputs of a kernel with `n_in` inputs, or of their `Moments`: float32[in, in].

    Errors name the inputs by `path`, the path of the kernel in a model, if there is one.
    """
    where = _where(path)
    if isinstance(inputs, Moments):
        gram = check_gram(where, inputs.gram, n_in, [(n_in, n_in)]).astype(jnp.float32)
    else:
        gram = gram_of(check_layer_inputs(where, inputs, n_in))
    return check_finite(where, gram)


def layer_squares(path: str | None, inputs: Any, n_in: int) -> jax.Array:
    """The diagonal of `layer_gram`, float32[in]. `Moments` may hold only this diagonal."""
    where = _where(path)
    if isinstance(inputs, Moments):
        gram = check_gram(where, inputs.gram, n_in, [(n_in, n_in), (n_in,)])
        squares = (gram if gram.ndim == 1 else jnp.diagonal(gram)).astype(jnp.float32)
    else:
        squares = squares_of(check_layer_inputs(where, inputs, n_in))
    return check_finite(where, squares)


def _where(path: str | None) -> str:
    return "inputs" if path is None else f"inputs[{path!r}]"


@jax.jit
def gram_of(inputs: jax.Array) -> jax.Array:
    """X^T X of inputs (..., in), float32[in, in]."""
    x = as_rows(inputs).astype(jnp.float32)
    return jnp.matmul(x.T, x, precision=_HIGHEST)


@jax.jit
def squares_of(inputs: jax.Array) -> jax.Array:
    """The sum of squares of each input, float32[in]: the diagonal of `gram_of`."""
    x = as_rows(inputs).astype(jnp.float32)
    return jnp.sum(x * x, axis=0)


def as_rows(x: jax.Array) -> jax.Array:
    """(..., in) reshaped to (rows, in)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


# doctest looks for examples by `__module__`, which is `jaxprune` for public classes.
__test__ = {"Moments": Moments}
