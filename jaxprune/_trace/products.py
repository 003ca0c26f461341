"""Finds every product of a program that has a param as a factor, and which axes it sums over.

`products_of` follows the jaxpr without running it. Arrays that are computed from params alone carry
`View`s, which say which entries of which leaf they hold. Where such an array is multiplied with
data by a matrix product or a convolution, a `Product` is recorded for each view.

**Data** is what depends on an input of the model. Elementwise functions of params and constants,
such as a mask or a norm that divides a kernel, keep the views; reductions have none.

**Products of two params**, such as the factors of LoRA in x @ (w + a @ b), have the views of both
factors: the axes that such a product sums over become `View.inner`. The roles of a and b are those
that they have in (x @ a) @ b.

**Params that are activations**: learned queries, an initial state, a class token. They are added to
data, concatenated with it, or multiplied with it elementwise. If such a param, or a product of two
params that is used like this, is a factor of another product, then it counts as data there. The
program is followed again with what was found, until nothing changes.
"""

import math
from typing import Any

from jaxprune._trace.leaf_views import MAX_TABLE, Value, View, leaf_view
from jaxprune._trace.tracer import EquationPath
from jaxprune._trace.view_tracer import Activations, Product, Unclear, ViewTracer

Later = dict[tuple[EquationPath, int], set[str]]


def products_of(jaxpr: Any, n_leaves: int) -> ViewTracer:
    """The products of a program.

    Args:
      jaxpr: closed; its first arguments are the leaves of the params.
      n_leaves: how many these are.
    """
    activations = Activations()
    while True:
        tracer = _followed(jaxpr, n_leaves, activations)
        leaves, products = _activations(tracer)
        new = Activations(activations.leaves | leaves, activations.products | products)
        if new == activations:
            break
        activations = new
    for path, products in tracer.products.items():
        tracer.products[path] = [_with_stacks(product, tracer.later, path) for product in products]
    return tracer


def _with_stacks(product: Product, later: Later, path: EquationPath) -> Product:
    """A product with the role "stack" for axes whose indices the next products keep apart.

    These must sum over another axis of the same kernel: over the outputs of each member.
    """
    roles = list(product.roles)
    of_axis = {
        k: later.get((path, position), set())
        for k, position in enumerate(product.positions)
        if roles[k] == "out" and position is not None
    }
    if any("in" in names for names in of_axis.values()):
        for k, names in of_axis.items():
            roles[k] = "stack" if names == {"stack"} else "out"
    return product._replace(roles=tuple(roles))


def _followed(jaxpr: Any, n_leaves: int, activations: Activations) -> ViewTracer:
    """The tracer after it has followed a program."""
    operands = []
    too_long = []
    for k, var in enumerate(jaxpr.jaxpr.invars):
        shape = tuple(var.aval.shape)
        is_data = k >= n_leaves or k in activations.leaves
        if not is_data and max(shape, default=0) > MAX_TABLE:
            too_long.append(View(k, (), ()))
        has_view = not is_data and math.prod(shape) > 0 and max(shape, default=1) <= MAX_TABLE
        operands.append(Value(shape, (leaf_view(k, shape),) if has_view else (), is_data))
    # Without inputs, the arrays that the function closes over may be inputs.
    tracer = ViewTracer(activations, constants_are_data=len(operands) == n_leaves)
    if too_long:
        reason = f"it has an axis of more than {MAX_TABLE:,} entries"
        tracer.unclear[()] = Unclear(tuple(too_long), reason)
    consts = tracer.constants(jaxpr.jaxpr, jaxpr.consts)
    outputs = tracer.run(jaxpr.jaxpr, consts, operands)
    looked_up = tuple(view for x in outputs if x.is_data for view in x.views)
    if looked_up:
        tracer.mixed[()] = looked_up
    return tracer


def _activations(tracer: ViewTracer) -> Activations:
    """The params, and the products of params, that are used like data."""
    views = [v for views in tracer.mixed.values() for v in views if not v.looked_up]
    products = [product for products in tracer.products.values() for product in products]
    factors = {product.view.leaf for product in products if not product.by_data}
    return Activations(
        frozenset(view.leaf for view in views if not view.inner and view.leaf in factors),
        frozenset(path for view in views for path, _ in view.inner),
    )
