"""What the calibration inputs of a layer come down to: their Gram matrix, or its diagonal."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

_HIGHEST = lax.Precision.HIGHEST


class Moments(NamedTuple):
    """All that the inputs of a layer tell about its weights; the sum of two is of both batches.

    Attributes:
      count: float32, how many inputs there were.
      gram: float32[in, in], the sum of their outer products, X^T X; for Wanda its diagonal,
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
    """The moments of a batch; those of several add up: `jax.tree.map(jnp.add, a, b)`.

    Args:
      inputs: (..., in), any real dtype.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> a, b = moments(jnp.array([[1.0, 2.0]])), moments(jnp.array([[3.0, 0.0]]))
      >>> both = jax.tree.map(jnp.add, a, b)
      >>> float(both.count), both.gram.tolist()
      (2.0, [[10.0, 2.0], [2.0, 4.0]])
    """
    x = checked_inputs("moments: `inputs`", inputs)
    return Moments(jnp.float32(math.prod(x.shape[:-1])), gram_of(x))


def checked_inputs(where: str, inputs: Any) -> jax.Array:
    """Inputs as an array of at least one row of real numbers."""
    try:
        x = jnp.asarray(inputs)
    except (TypeError, ValueError):
        raise TypeError(f"{where} must be an array (..., in), got {inputs!r}.") from None
    real = jnp.issubdtype(x.dtype, jnp.number) and not jnp.iscomplexobj(x)
    if not real and x.dtype != bool:
        raise TypeError(f"{where} must be real numbers, got {x.dtype} of shape {x.shape}.")
    if x.ndim == 0 or (x.size == 0 and x.shape[-1] > 0):
        raise ValueError(
            f"{where} must hold at least one row (..., in), got shape {x.shape}. Pass a batch of "
            "what reaches the layer."
        )
    return x


def statistics(path: str | None, inputs: Any, n_in: int, *, whole: bool) -> jax.Array:
    """X^T X, or at least its diagonal, checked against the number of inputs of the kernel."""
    where = "inputs" if path is None else f"inputs[{path!r}]"
    if isinstance(inputs, tuple) and not isinstance(inputs, Moments):
        raise TypeError(
            f"{where} must be an array or jaxprune.Moments, got a {type(inputs).__name__} of "
            f"{len(inputs)}. Add Moments up with jax.tree.map(jnp.add, a, b), not a + b."
        )
    if isinstance(inputs, Moments):
        gram, shapes = jnp.asarray(inputs.gram), [(n_in, n_in)] + [(n_in,)] * (not whole)
        if gram.shape not in shapes:
            needed = " or ".join(map(str, shapes))
            raise ValueError(
                f"{where}: the gram has shape {gram.shape}, but the kernel has {n_in} inputs: "
                f"{needed} is needed. Take the jaxprune.moments of what reaches this layer."
            )
        found = gram if whole or gram.ndim == 1 else jnp.diagonal(gram)
        found = found.astype(jnp.float32)
    else:
        x = checked_inputs(where, inputs)
        if x.shape[-1] != n_in:
            raise ValueError(
                f"{where}: shape {x.shape} ends in {x.shape[-1]}, but the kernel has {n_in} inputs "
                "(its shape is (in, out)). Pass what reaches this layer."
            )
        found = gram_of(x) if whole else squares_of(x)
    if not isinstance(found, Tracer) and not bool(jnp.isfinite(found).all()):
        raise ValueError(
            f"{where}: NaN or inf, or values whose squares do not fit float32. Look for what made "
            "them, or scale the inputs down: masks do not depend on their scale."
        )
    return found


@jax.jit
def gram_of(inputs: jax.Array) -> jax.Array:
    """X^T X of inputs (..., in), float32[in, in]."""
    x = as_rows(inputs).astype(jnp.float32)
    return jnp.matmul(x.T, x, precision=_HIGHEST)


@jax.jit
def squares_of(inputs: jax.Array) -> jax.Array:
    """The sum of squares of every input, float32[in]."""
    x = as_rows(inputs).astype(jnp.float32)
    return jnp.sum(x * x, axis=0)


def as_rows(x: jax.Array) -> jax.Array:
    """(..., in) as (rows, in)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


# Their examples run, although by `__module__` they belong to `jaxprune`.
__test__ = {"Moments": Moments}
