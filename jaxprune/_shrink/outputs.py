"""Runs a model and its smaller version, and compares their outputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.on_host import to_host
from jaxprune._shrink.flax_sizes import Model


def largest_difference(model: Model, small: Any, rtol: float | None) -> float:
    """Runs both models; the largest difference of an output, relative to the largest in its array.

    Raises:
      ValueError: it is larger than allowed, or an output of either model is NaN.
    """
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(model.apply_fn)(model.variables, *model.inputs)
        small_outputs = jax.jit(model.apply_resized)(small, *model.inputs)
    leaves, small_leaves = map(jax.tree_util.tree_leaves, (outputs, small_outputs))
    differences = [_difference(x, y, rtol) for x, y in zip(leaves, small_leaves, strict=True)]
    return max(differences, default=0.0)


def _difference(before: jax.Array, after: jax.Array, rtol: float | None) -> float:
    """`largest_difference` of one output array."""
    dtype = before.dtype
    limit = 0.0
    if jnp.issubdtype(dtype, jnp.inexact):
        limit = float(jnp.finfo(dtype).eps) ** 0.5 if rtol is None else rtol
    wide = complex if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64
    where = "shrink: the outputs of the model"
    x, y = (to_host(where, out, "example_inputs").astype(wide) for out in (before, after))
    if np.isnan(x).any():
        raise ValueError(
            "shrink: the outputs contain NaN, so the smaller model can't be checked against them. "
            "Pass params and example inputs for which the outputs are finite."
        )
    largest = np.abs(x[np.isfinite(x)]).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        error = np.abs(np.where(x == y, 0, x - y)).max(initial=0.0)
    difference = error / largest if largest else error
    if not difference <= limit:
        raise ValueError(
            f"shrink: the outputs of the two models differ by {error:.3g}. The largest output is "
            f"{largest:.3g}, and {limit:.3g} of it is allowed. Pass a larger `rtol` if this is "
            "rounding. Otherwise the model does something that its jaxpr does not show: please "
            "report it."
        )
    return float(difference)
