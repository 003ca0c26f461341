"""`axis_roles`: what the axes of each param do in the products of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune._base.flax_import import import_flax
from jaxprune._base.paths import leaves_with_paths
from jaxprune._recipe.roles import AxisRoles
from jaxprune._trace.model_arguments import check_arrays, check_function, check_module
from jaxprune._trace.program import OF_NNX, Program, array_program, trace_products
from jaxprune._trace.use_roles import Use, use_of
from jaxprune._trace.view_tracer import Product, ViewTracer

NO_PRODUCT = "in no product"
ONLY_INDEXED = "only indexed"


def axis_roles(apply_fn: Callable[..., Any], variables: Any, *inputs: Any) -> AxisRoles:
    """The role of each axis of each param, read from the program of a model.

    The roles are

    - `"in"`: a product sums over the axis;
    - `"window"`: so does a convolution, and the axis is spatial;
    - `"out"`: an axis of the result;
    - `"stack"`: a batch axis of the product, such as experts, or an axis of which a loop or an
      index takes slices, such as the layers of a `scan`.

    A kernel may be transposed, split, reshaped, cast, masked or normalized before the product,
    inside `jit`, `remat`, `scan`, `cond` or a function with a custom derivative. Leaves without
    roles are in `AxisRoles.without`, with the reason: biases and norms are in no product, tables
    may only be indexed, and a tied embedding is used in two ways, once as (in, out) and once as
    (out, in).

    Nothing is computed: inputs and variables may be `jax.ShapeDtypeStruct`s. Some cases:

    - A convolution with groups: (..., in, out), where `in` has the inputs of one group. In
      particular, the kernel of a depthwise convolution is (window, window, in, out).
    - Two factors whose product is a kernel, as in x @ (w + a @ b), have the roles of (x @ a) @ b.
    - Where all members of an ensemble, or all experts, have the same input, the first product has
      an axis of members like any other axis of its result. It is a `"stack"` if each member has a
      matrix of its own in the next product, and no other product comes in between.
    - A kernel that is multiplied elementwise and then summed, or that was scaled by data before its
      product, is not followed. Its note is "in no product".

    Args:
      apply_fn: a function `(variables, *inputs) -> outputs` of linen (`model.apply`), Haiku,
        Equinox (`lambda model, x: model(x)`) or plain JAX. Pass keyword arguments through a lambda.
      variables: its first argument: a tree of arrays, such as params or an Equinox module.
      inputs: its other arguments, of any batch size.

    Returns:
      A mapping from the path of each leaf to its roles, to be printed, and to be passed as
      `roles=`.

    Raises:
      TypeError: the first argument is not a function, or it fails on these arguments.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"].T
      >>> params = {"w": jnp.ones((3, 8)), "b": jnp.ones(8), "v": jnp.ones((2, 8))}
      >>> print(axis_roles(mlp, params, jax.ShapeDtypeStruct((3,), jnp.float32)))
      leaf  shape  roles    note
      b     8               in no product
      v     2x8    out, in
      w     3x8    in, out
    """
    check_function("axis_roles", apply_fn, variables, len(inputs))
    check_arrays("axis_roles: inputs", inputs)
    program = array_program(apply_fn, variables, inputs)
    return roles_of(program, trace_products(program))


def axis_roles_nnx(model: Any, *inputs: Any) -> AxisRoles:
    """`axis_roles` for an NNX model, with the paths that `nnx.Optimizer` uses.

    Args:
      model: an `nnx.Module`, or what `nnx.eval_shape` makes of one.
      inputs: arguments of its call, or their shapes as `jax.ShapeDtypeStruct`s.

    Returns:
      As `axis_roles`.

    Raises:
      TypeError: the first argument is not an NNX module, or it fails on these inputs.

    Example:
      >>> from flax import nnx
      >>> import jax, jax.numpy as jnp
      >>> model = nnx.MultiHeadAttention(4, 32, decode=False, rngs=nnx.Rngs(0))
      >>> roles = axis_roles_nnx(model, jax.ShapeDtypeStruct((1, 5, 32), jnp.float32))
      >>> roles["query/kernel"], roles["out/kernel"]
      (('in', 'out', 'out'), ('in', 'in', 'out'))
    """
    nnx = import_flax("axis_roles_nnx", "nnx")
    check_module("axis_roles_nnx", model)
    check_arrays("axis_roles_nnx: inputs", inputs)
    graphdef, state = nnx.split(model)
    apply_fn = lambda state, *x: nnx.merge(graphdef, state)(*x)
    program = array_program(apply_fn, state, inputs, OF_NNX)
    params = set(leaves_with_paths(nnx.state(model, nnx.Param))[0])
    return roles_of(program, trace_products(program), params)


def roles_of(program: Program, tracer: ViewTracer, paths: Iterable[str] | None = None) -> AxisRoles:
    """The roles of the leaves of a traced program.

    Args:
      program: the program.
      tracer: that followed it.
      paths: of the leaves to report; None means all of floating point, and others with roles.
    """
    chosen = None if paths is None else set(paths)
    products = products_by_leaf(tracer)
    roles, without, shapes = {}, {}, {}
    for leaf, (path, x) in enumerate(zip(program.paths, program.leaves, strict=True)):
        if chosen is not None and path not in chosen:
            continue
        shape = tuple(np.shape(x))
        use = _only_use(products.get(leaf, ()), shape, _indexed_axes(tracer, leaf))
        reason = use.reason or ("" if use.roles else _why_unused(tracer, leaf))
        if use.roles:
            roles[path] = use.roles
        elif chosen is not None or jnp.issubdtype(x.dtype, jnp.inexact):
            without[path] = reason
        shapes[path] = shape
    return AxisRoles(roles, without, shapes)


def products_by_leaf(tracer: ViewTracer) -> dict[int, list[Product]]:
    """The products of each leaf with data; if it has none, those with constants and params."""
    by_leaf: dict[int, list[Product]] = {}
    for products in tracer.products.values():
        for product in products:
            by_leaf.setdefault(product.view.leaf, []).append(product)
    return {leaf: [p for p in all_ if p.by_data] or all_ for leaf, all_ in by_leaf.items()}


def _only_use(products: Iterable[Product], shape: tuple[int, ...], indexed: set[int]) -> Use:
    """The use of a leaf that all its products agree on.

    Args:
      products: of the leaf.
      shape: of the leaf.
      indexed: the axes along which the leaf is looked up, to be used as data. This counts as a
        product with a one-hot matrix.
    """
    uses = {use: None for product in products if (use := use_of(product, shape)) is not None}
    if not uses:
        return Use(())
    if indexed:
        roles = tuple("in" if axis in indexed else "out" for axis in range(len(shape)))
        uses[Use(roles)] = None
    for use in uses:
        if use.reason:
            return use
    different = {_long_axes(use.roles, shape): use for use in reversed(uses)}
    if len(different) == 1:
        return next(iter(uses))
    texts = [f"({', '.join(use.roles)})" for use in reversed(different.values())]
    ways = "two" if len(texts) == 2 else str(len(texts))
    return Use((), f"used in {ways} ways: {', '.join(texts[:-1])} and {texts[-1]}")


def _long_axes(roles: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
    """The roles of the axes of a length other than 1, which is all that matters."""
    return tuple(role for role, size in zip(roles, shape, strict=True) if size != 1)


def _indexed_axes(tracer: ViewTracer, leaf: int) -> set[int]:
    """The axes of a leaf along which it is looked up, to be used as data."""
    return {
        axis
        for views in tracer.mixed.values()
        for view in views
        if view.leaf == leaf and view.looked_up
        for axis, _ in view.indexed
    }


def _why_unused(tracer: ViewTracer, leaf: int) -> str:
    """Why a leaf is in no product."""
    for views, reason in tracer.unclear.values():
        if any(view.leaf == leaf for view in views):
            return reason
    return ONLY_INDEXED if _indexed_axes(tracer, leaf) else NO_PRODUCT
