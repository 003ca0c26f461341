"""Follows the views of params through a program, and records the products that they are in.

Start with `products`, which says what is recorded and why. This is one pass over the program, for a
given choice of params that count as data.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxprune._trace import trails
from jaxprune._trace.equations import constant, inner_program, known_result
from jaxprune._trace.leaf_views import Digits, UnclearError, Value, View, Views, blank
from jaxprune._trace.operand_roles import PRODUCTS, OperandRoles
from jaxprune._trace.position_rules import device_part
from jaxprune._trace.tracer import EquationPath, is_literal, scan_counts
from jaxprune._trace.view_rules import ENDS, VIEW_RULES

_MAX_VIEWS = 512  # of one array


class Product(NamedTuple):
    """A product of an array that holds entries of a leaf, and something else.

    Attributes:
      primitive: the name: dot_general, conv_general_dilated or ragged_dot_general.
      operand: which operand of the equation holds entries of the leaf.
      view: which entries.
      roles: of each axis of that operand: "in" and "window" are summed over, "stack" is a batch
        axis, "out" is an axis of the result alone.
      positions: where each axis of that operand is in the result; None where it is summed over.
      n_groups: groups of a convolution; 1 for other products.
      by_data: whether the other factor is data.
    """

    primitive: str
    operand: int
    view: View
    roles: tuple[str, ...]
    positions: tuple[int | None, ...]
    n_groups: int
    by_data: bool


class Activations(NamedTuple):
    """What counts as data although it is computed from params alone.

    Attributes:
      leaves: of the params.
      products: the paths of products of two params.
    """

    leaves: frozenset[int] = frozenset()
    products: frozenset[EquationPath] = frozenset()


class Unclear(NamedTuple):
    """Views that an equation ended, and why."""

    views: Views
    reason: str


class ViewTracer:
    """Follows a program, and records the products of params.

    Attributes:
      products: path of the equation -> one product for each view of its operands.
      mixed: path of an equation -> the views of params that became a part of data there, other than
        as factors of a product.
      unclear: path of an equation -> views that it ended because there is no rule for them.
      later: (path of a product, axis of its result) -> the roles of that axis in the products that
        come next; `trails` explains.
    """

    def __init__(self, activations: Activations, *, constants_are_data: bool = False):
        self.products: dict[EquationPath, list[Product]] = {}
        self.mixed: dict[EquationPath, Views] = {}
        self.unclear: dict[EquationPath, Unclear] = {}
        self.later: dict[tuple[EquationPath, int], set[str]] = {}
        self._activations = activations
        self._constants_are_data = constants_are_data
        self._path: EquationPath = ()
        self._results: list[EquationPath] = []  # the product that each trail starts from

    def run(self, jaxpr: Any, consts: Sequence[Value], operands: Sequence[Value]) -> list[Value]:
        """Follows a program, equation by equation, and returns its outputs."""
        env: dict[Any, Value] = dict(zip(jaxpr.invars, operands, strict=True))
        env |= zip(jaxpr.constvars, consts, strict=True)
        outer_path = self._path

        def value_of(var: Any) -> Value:
            return constant(var.val, var.aval) if is_literal(var) else env[var]

        for number, eqn in enumerate(jaxpr.eqns):
            self._path = (*outer_path, number)
            results = self._apply(eqn, [value_of(var) for var in eqn.invars])
            env |= zip(eqn.outvars, results, strict=True)
        self._path = outer_path
        return [value_of(var) for var in jaxpr.outvars]

    def _apply(self, eqn: Any, operands: list[Value]) -> list[Value]:
        for records in (self.products, self.mixed, self.unclear):
            records.pop(self._path, None)  # of an earlier iteration of a loop
        name = eqn.primitive.name
        if name in _CONTROL:
            return _CONTROL[name](self, eqn, operands)
        inner = inner_program(eqn, operands)
        if inner is not None:
            return self.run_inner(eqn, inner, operands)
        is_data = any(operand.is_data for operand in operands)
        views: list[Views] = [()] * len(eqn.outvars)
        trail = views
        if any(operand.views for operand in operands):
            if name in PRODUCTS:
                views, is_data = self._product(eqn, operands)
            else:
                views = self._moved(eqn, operands)
            views = [self._distinct(result) for result in views]
        if is_data:
            self._record_mixed(operands, views)
            trail = self._trails(eqn, operands)
        return [
            Value(
                tuple(var.aval.shape), views[k], is_data, trail[k], known_result(eqn, operands, k)
            )
            for k, var in enumerate(eqn.outvars)
        ]

    def _moved(self, eqn: Any, operands: Sequence[Value]) -> list[Views]:
        """The views of the results of an equation that is not a product."""
        name = eqn.primitive.name
        try:
            if name not in VIEW_RULES:
                reason = f"it passes through {name}, which has no rule in jaxprune"
                raise UnclearError("" if name in ENDS else reason)
            return VIEW_RULES[name](eqn, self._path, operands)
        except UnclearError as error:
            if str(error):
                views = tuple(view for operand in operands for view in operand.views)
                self.unclear[self._path] = Unclear(views, str(error))
            return [()] * len(eqn.outvars)

    def _distinct(self, views: Views) -> Views:
        """The views without repetitions, and without those of which nothing is left."""
        views = tuple(view for view in views if not view.is_empty())
        if len(views) > 1:
            views = tuple({view.key(): view for view in views}.values())
        if len(views) > _MAX_VIEWS:
            reason = f"it is a part of an array of more than {_MAX_VIEWS} parts"
            self.unclear[self._path] = Unclear(views, reason)
            return ()
        return views

    def _record_mixed(self, operands: Sequence[Value], results: Sequence[Views]) -> None:
        """Records views that are not in the results, and in no product of this equation."""
        views = [view for operand in operands for view in operand.views]
        leaves = {view.leaf for views in results for view in views}
        factors = [product.view for product in self.products.get(self._path, ())]
        mixed = [v for v in views if v.leaf not in leaves and not any(v is f for f in factors)]
        if mixed and self._path not in self.unclear:
            self.mixed[self._path] = tuple(mixed)

    # Products

    def _product(self, eqn: Any, operands: Sequence[Value]) -> tuple[list[Views], bool]:
        """Records a product; returns the views of its result, and whether that is data."""
        left, right, *_ = operands
        name, by_data = eqn.primitive.name, self._path in self._activations.products
        roles = PRODUCTS[name](eqn, left.shape, right.shape)
        self.products[self._path] = [
            Product(name, k, view, *roles[k][:3], other.is_data or (by_data and bool(other.views)))
            for k, (array, other) in enumerate(((left, right), (right, left)))
            if (not array.is_data or other.is_plain_data()) and roles[k].is_weight
            for view in array.views
        ]
        if by_data or any(operand.is_data for operand in operands):
            return [()], True
        shape = tuple(eqn.outvars[0].aval.shape)
        views = [
            self._multiplied(view, roles[k], shape)
            for k, array in enumerate((left, right))
            for view in array.views
        ]
        return [tuple(views)], False

    def _multiplied(self, view: View, roles: OperandRoles, shape: tuple[int, ...]) -> View:
        """The view that a product of params has of one of its factors."""
        axes: list[Digits] = [blank(size) for size in shape]
        inner = list(view.inner)
        for digits, position in zip(view.axes, roles.positions, strict=True):
            if position is None:
                inner.append((self._path, digits))
            else:
                axes[position] = digits
        return dataclasses.replace(view, axes=tuple(axes), inner=tuple(inner))

    def _trails(self, eqn: Any, operands: Sequence[Value]) -> list[Views]:
        """The trails of the results of an equation with data; see `trails`."""
        name, shape = eqn.primitive.name, tuple(eqn.outvars[0].aval.shape)
        if name not in PRODUCTS:
            return trails.moved(eqn, self._path, operands)
        roles = PRODUCTS[name](eqn, operands[0].shape, operands[1].shape)
        weights = {product.operand for product in self.products.get(self._path, ())}
        for k in (0, 1):
            met = roles[k].roles if 1 - k in weights else None
            for (number, axis), names in trails.met(operands[k].trail, met).items():
                self.later.setdefault((self._results[number], axis), set()).update(names)
        if not weights:
            return [()]
        self._results.append(self._path)
        return [trails.start(len(self._results) - 1, shape)]

    # Programs within programs

    def run_inner(
        self, eqn: Any, key: str, operands: Sequence[Value], number: int = 0
    ) -> list[Value]:
        """Follows the program that an equation holds in its param `key`; see `Tracer.run_inner`."""
        jaxpr = eqn.params[key]
        jaxpr = jaxpr[number] if isinstance(jaxpr, tuple) else jaxpr
        outer_path, self._path = self._path, (*self._path, key, number)
        inner = getattr(jaxpr, "jaxpr", jaxpr)
        consts = getattr(jaxpr, "consts", ())
        results = self.run(inner, self.constants(inner, consts), operands)
        self._path = outer_path
        return results

    def constants(self, jaxpr: Any, consts: Sequence[Any]) -> list[Value]:
        """The arrays that a program closes over."""
        values = [constant(x, var.aval) for x, var in zip(consts, jaxpr.constvars, strict=True)]
        if not self._constants_are_data:
            return values
        return [value._replace(is_data=bool(value.shape)) for value in values]

    def scan(self, eqn: Any, operands: Sequence[Value]) -> list[Value]:
        """Follows the body of a loop over slices; their views note the loop."""
        n_consts, n_carry = scan_counts(eqn.params)
        consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
        slices = [self._slice(array) for array in operands[n_consts + n_carry :]]

        def body(carry: Sequence[Value]) -> list[Value]:
            return self.run_inner(eqn, "jaxpr", [*consts, *carry, *slices])

        results = self._loop(body, carry)
        shapes = [tuple(var.aval.shape) for var in eqn.outvars[n_carry:]]
        collected = map(self._collected, results[n_carry:], shapes)
        return [*results[:n_carry], *collected]

    def _slice(self, array: Value) -> Value:
        """A slice of an array that a scan loops over."""
        views = tuple(
            dataclasses.replace(
                view, axes=view.axes[1:], loops=(*view.loops, (self._path, view.axes[0]))
            )
            for view in array.views
        )
        return Value(array.shape[1:], views, array.is_data)

    def _collected(self, result: Value, shape: tuple[int, ...]) -> Value:
        """The slices of a result of the body of a scan, in one array."""
        views = []
        for view in result.views:
            loops = dict(view.loops)
            axis = loops.pop(self._path, blank(shape[0]))
            views.append(
                dataclasses.replace(view, axes=(axis, *view.axes), loops=tuple(loops.items()))
            )
        return Value(shape, tuple(views), result.is_data)

    def while_(self, eqn: Any, operands: Sequence[Value]) -> list[Value]:
        """Follows the body of a loop of unknown length."""
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        body_consts = operands[n_cond : n_cond + n_body]

        def body(carry: Sequence[Value]) -> list[Value]:
            return self.run_inner(eqn, "body_jaxpr", [*body_consts, *carry])

        carry = self._loop(body, operands[n_cond + n_body :])
        self.run_inner(eqn, "cond_jaxpr", [*operands[:n_cond], *carry])
        return carry

    def _loop(
        self, body: Callable[[Sequence[Value]], list[Value]], carry: Sequence[Value]
    ) -> list[Value]:
        """Follows the body until the carry has the same views before and after every step."""
        carry = first = [value._replace(known=None, trail=()) for value in carry]
        while True:
            results = body(carry)
            merged = [_merged(*pair) for pair in zip(carry, results, strict=False)]
            if merged == list(carry):
                break
            carry = merged
        pairs = zip(first, carry, strict=True)
        mixed = [v for old, new in pairs if new.is_plain_data() for v in old.views]
        if mixed:
            self.mixed[self._path] = tuple(mixed)
        return [*carry, *results[len(carry) :]]

    def shard_map(self, eqn: Any, operands: Sequence[Value]) -> list[Value]:
        """Follows the program of one device, whose arrays are parts of those outside."""
        inner = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
        local = [tuple(var.aval.shape) for var in inner.invars]
        try:
            parts = [device_part(*x, self._path) for x in zip(operands, local, strict=True)]
        except UnclearError as error:
            views = tuple(view for operand in operands for view in operand.views)
            self.unclear[self._path] = Unclear(views, str(error))
            parts = [Value(shape, (), True) for shape in local]
        shapes = [tuple(var.aval.shape) for var in eqn.outvars]
        return [
            Value(shape, value.views if value.shape == shape else (), value.is_data)
            for shape, value in zip(shapes, self.run_inner(eqn, "jaxpr", parts), strict=True)
        ]

    def cond(self, eqn: Any, operands: Sequence[Value]) -> list[Value]:
        """Follows every branch. A result has the views that it has in any branch."""
        which, *arguments = operands
        numbers = range(len(eqn.params["branches"]))
        branches = [self.run_inner(eqn, "branches", arguments, i) for i in numbers]
        return [self._either(values, which) for values in zip(*branches, strict=True)]

    def _either(self, values: Sequence[Value], which: Value) -> Value:
        """One of several values; which one is chosen by another."""
        is_data = which.is_data or any(value.is_data for value in values)
        views = tuple(view for value in values for view in value.views)
        if any(value.is_plain_data() for value in values):
            self.mixed[self._path] = (*self.mixed.get(self._path, ()), *views)
            return Value(values[0].shape, (), is_data)
        if which.is_data:
            views = tuple(dataclasses.replace(view, looked_up=True) for view in views)
        return Value(values[0].shape, self._distinct(views), is_data)


def _merged(before: Value, after: Value) -> Value:
    """What holds of a variable of a loop before and after a step; `before` if nothing is new."""
    same = {v.key() for v in before.views} == {v.key() for v in after.views}
    if same and before.is_data >= after.is_data:
        return before
    return Value(before.shape, before.views if same else (), before.is_data or after.is_data)


_CONTROL = {
    "scan": ViewTracer.scan,
    "while": ViewTracer.while_,
    "cond": ViewTracer.cond,
    "shard_map": ViewTracer.shard_map,
}
