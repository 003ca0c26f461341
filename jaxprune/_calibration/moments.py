"""The second moments of the inputs of a layer: all that Wanda and SparseGPT need of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxprune._base.paths import flattened
from jaxprune._calibration.checks import (
    check_finite,
    check_gram,
    check_inputs,
    check_layer_inputs,
)
from jaxprune._calibration.kernel_view import KernelView
from jaxprune._recipe.role_table import AxisRoles

_HIGHEST = lax.Precision.HIGHEST


class Moments(NamedTuple):
    """Sufficient statistics of a layer's inputs; add them with `jax.tree.map` to merge batches.

    A leaf may hold many kernels: layers of a `scan`, experts, groups of a convolution. Their
    moments have leading axes, `slices`: the lengths of the leaf's `"stack"` axes, and after these
    the number of groups of a grouped convolution.

    Attributes:
      count: float32[*slices], how many input vectors were added up; or a scalar, if it is the same
        for all slices.
      gram: float32[*slices, in, in], the sum of their outer products, X^T X, where `in` are the
        axes with the roles `"in"` and `"window"`, flattened in the order of the leaf. For Wanda
        the diagonals, float32[*slices, in], are enough.

    Example:
      >>> import jax.numpy as jnp
      >>> Moments(count=2.0, gram=jnp.array([10.0, 4.0])).gram.shape  # for Wanda
      (2,)
    """

    count: Any
    gram: jax.Array


def moments(inputs: ArrayLike) -> Moments:
    """The moments of a batch. Merge those of two batches with `jax.tree.map(jnp.add, a, b)`.

    Args:
      inputs: (..., in), any real dtype.

    Returns:
      `Moments` with a scalar `count` and a `gram` of shape (in, in), both float32.

    Raises:
      TypeError: not an array of real numbers.
      ValueError: no row of inputs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> a, b = moments(jnp.array([[1.0, 2.0]])), moments(jnp.array([[3.0, 0.0]]))
      >>> both = jax.tree.map(jnp.add, a, b)
      >>> float(both.count), both.gram.tolist()
      (2.0, [[10.0, 2.0], [2.0, 4.0]])
    """
    x = check_inputs("moments: `inputs`", inputs)
    return Moments(jnp.float32(math.prod(x.shape[:-1])), gram_of(x))


def layer_gram(path: str | None, inputs: Any, view: KernelView) -> tuple[KernelView, jax.Array]:
    """X^T X of the inputs of each matrix of a leaf: float32[matrices, in, in].

    Args:
      path: of the leaf in a model, for errors, or None for a single kernel.
      inputs: (*stack, ..., in), or their `Moments`.
      view: how the leaf forms matrices.

    Returns:
      The view with as many groups of outputs as the `Moments` have, and X^T X for it.
    """
    where = _where(path)
    if isinstance(inputs, Moments):
        view, gram = check_gram(where, inputs, view, diagonal=False)
        gram = gram.astype(jnp.float32)
    else:
        gram = jax.vmap(gram_of)(check_layer_inputs(where, inputs, view))
    order = view.row_order()
    return view, check_finite(where, gram if order is None else gram[:, order][:, :, order])


def layer_squares(path: str | None, inputs: Any, view: KernelView) -> tuple[KernelView, jax.Array]:
    """The diagonals of `layer_gram`, float32[matrices, in]. `Moments` may hold only these."""
    where = _where(path)
    if isinstance(inputs, Moments):
        view, gram = check_gram(where, inputs, view, diagonal=True)
        if gram.ndim > 2:  # not only the diagonals
            gram = jnp.diagonal(gram, axis1=-2, axis2=-1)
        squares = gram.astype(jnp.float32)
    else:
        squares = jax.vmap(squares_of)(check_layer_inputs(where, inputs, view))
    order = view.row_order()
    return view, check_finite(where, squares if order is None else squares[:, order])


def check_params(function: str, params: Any) -> None:
    """Raises a TypeError if the params are moments: two arguments in the wrong order."""
    leaves, _ = flattened(params, is_leaf=lambda x: isinstance(x, Moments))
    if any(isinstance(x, Moments) for x in leaves):
        raise TypeError(
            f"{function}: params must be a tree of weights, got the moments of inputs. Pass the "
            f"params first: {function}(params, inputs, 0.5)."
        )


def per_slice(path: str, inputs: Any, view: KernelView, collected: AxisRoles | None) -> Any:
    """The moments of a leaf, repeated for slices that share their input.

    The model's trace calls an axis `"out"` if all of its indices share their input, such as
    experts that all get every token. Users may call it `"stack"`, to prune each index as a matrix
    of its own.

    Args:
      path: of the leaf.
      inputs: of the leaf.
      view: of the leaf, with the user's roles.
      collected: the roles with which `layer_inputs` collected the moments, if it did.
    """
    collected = collected or AxisRoles({})
    names = [name for name in (path, f"params/{path}") if name in collected]
    known = collected[names[0]] if names else view.roles
    if not isinstance(inputs, Moments) or known == view.roles or len(known) != len(view.roles):
        return inputs
    roles = list(zip(known, view.roles, strict=True))
    if any(a != b and (a, b) != ("out", "stack") for a, b in roles):
        return inputs  # not only axes that the model's trace calls "out"
    n_rows = view.n_rows
    slices = KernelView(view.shape, tuple(known)).stack
    count, gram = jnp.asarray(inputs.count), jnp.asarray(inputs.gram)
    inner = gram.shape[len(slices) :]
    if count.shape != slices or inner not in ((n_rows,), (n_rows, n_rows)):
        return inputs
    index = tuple(slice(None) if a == "stack" else None for a, b in roles if b == "stack")
    return Moments(
        jnp.broadcast_to(count[index], view.stack),
        jnp.broadcast_to(gram[index], (*view.stack, *inner)),
    )


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


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
Moments.__module__ = "jaxprune"
__test__ = {"Moments": Moments}
