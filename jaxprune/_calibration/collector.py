"""Evaluates a model's jaxpr and adds up the moments of the inputs of its products with params.

The equations run as they are. Where one is a product with a plan (`product_plans`), the moments of
its inputs are added to those of the leaf. Programs inside equations are followed only where they
contain such products: calls are inlined; a scan or a while loop gets the moments as one more
carry; each branch of a `cond` returns them. Everything happens while tracing, so the whole is one
compiled program.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._calibration.product_moments import Second, add_moments, second_moments
from jaxprune._calibration.product_plans import ProductPlan
from jaxprune._trace.tracer import EquationPath, is_literal, scan_counts

Totals = dict[str, Second]


class _Scope:
    """What changes while a program is followed: one for each body of a loop or a branch.

    Attributes:
      totals: path of a leaf -> its moments so far.
      iterations: path of a scan -> the number of its iteration.
      positions: path of an equation -> the positions that it reads at.
    """

    def __init__(self, totals: Totals, outer: "_Scope | None" = None):
        self.totals = totals
        self.iterations: dict[EquationPath, Any] = dict(outer.iterations) if outer else {}
        self.positions: dict[EquationPath, Any] = dict(outer.positions) if outer else {}


class Collector:
    """Follows a program and adds up moments.

    Args:
      plans: path of an equation -> how its moments are added.
      diagonal: whether to collect only the diagonals.
    """

    def __init__(self, plans: Mapping[EquationPath, Sequence[ProductPlan]], diagonal: bool):
        self._plans = plans
        self._diagonal = diagonal
        lookups = {path for several in plans.values() for p in several for path, _, _ in p.lookups}
        self._lookups = lookups
        self._inside: dict[EquationPath, set[str]] = {}  # leaves with products inside an equation
        self._keys: dict[EquationPath, str] = {}  # the param that holds the inner program
        for where in (*plans, *lookups):
            leaves = {plan.path for plan in plans.get(where, ())}
            for end in range(3, len(where), 3):
                outer = where[: end - 2]
                self._inside.setdefault(outer, set()).update(leaves)
                self._keys[outer] = str(where[end - 2])

    def totals(self, jaxpr: Any, operands: Sequence[Any], totals: Totals) -> Totals:
        """The moments after running a closed program on its operands."""
        scope = _Scope(totals)
        self._run(jaxpr.jaxpr, jaxpr.consts, operands, (), scope)
        return scope.totals

    def _run(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        operands: Sequence[Any],
        path: EquationPath,
        scope: _Scope,
    ) -> list[Any]:
        """Runs a program, equation by equation, and returns its outputs."""
        env: dict[Any, Any] = dict(zip(jaxpr.invars, operands, strict=True))
        env |= zip(jaxpr.constvars, consts, strict=True)

        def value_of(var: Any) -> Any:
            return var.val if is_literal(var) else env[var]

        for number, eqn in enumerate(jaxpr.eqns):
            values = [value_of(var) for var in eqn.invars]
            results = self._results(eqn, values, (*path, number), scope)
            env |= zip(eqn.outvars, results, strict=True)
        return [value_of(var) for var in jaxpr.outvars]

    def _results(
        self, eqn: Any, operands: list[Any], path: EquationPath, scope: _Scope
    ) -> Sequence[Any]:
        for plan in self._plans.get(path, ()):
            self._add(eqn, plan, operands, scope)
        if path in self._lookups:
            scope.positions[path] = _positions(eqn, operands)
        if path not in self._inside:
            return _bind(eqn, operands)
        follow = {"scan": self._scan, "while": self._while, "cond": self._cond}
        return follow.get(eqn.primitive.name, self._call)(eqn, operands, path, scope)

    def _add(self, eqn: Any, plan: ProductPlan, operands: Sequence[Any], scope: _Scope) -> None:
        """Adds the moments of one product."""
        slice_start, row_start, weight = 0, 0, True
        places = [(scope.iterations[path], place) for path, place in plan.loops]
        places += [(scope.positions[path][k], place) for path, k, place in plan.lookups]
        for index, place in places:
            if place.slices.any():
                slice_start = slice_start + _looked_up(place.slices, index)
            if place.rows.any():
                row_start = row_start + _looked_up(place.rows, index)
            if not place.present.all():
                weight = _looked_up(place.present, index) & weight
        new = second_moments(eqn, plan, operands, self._diagonal)
        total = scope.totals[plan.path]
        scope.totals[plan.path] = add_moments(total, new, plan, slice_start, row_start, weight)

    def _inner(
        self,
        eqn: Any,
        path: EquationPath,
        operands: Sequence[Any],
        scope: _Scope,
        key: str,
        number: int = 0,
    ) -> list[Any]:
        """Runs the program that an equation holds in its param `key`."""
        jaxpr = eqn.params[key]
        jaxpr = jaxpr[number] if isinstance(jaxpr, tuple) else jaxpr
        inner, consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
        return self._run(inner, consts, operands, (*path, key, number), scope)

    def _totals_inside(self, path: EquationPath, scope: _Scope) -> Totals:
        return {leaf: scope.totals[leaf] for leaf in sorted(self._inside[path])}

    def _call(
        self, eqn: Any, operands: Sequence[Any], path: EquationPath, scope: _Scope
    ) -> list[Any]:
        return self._inner(eqn, path, operands, scope, self._keys[path])

    def _scan(
        self, eqn: Any, operands: Sequence[Any], path: EquationPath, scope: _Scope
    ) -> list[Any]:
        params = eqn.params
        n_consts, n_carry = scan_counts(params)
        consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]

        def body(carry: Any, slices: Any) -> Any:
            values, totals = carry
            inner = _Scope(totals, scope)
            inner.iterations[path], *xs = slices
            results = self._inner(eqn, path, [*consts, *values, *xs], inner, "jaxpr")
            return (results[:n_carry], inner.totals), results[n_carry:]

        xs = (jnp.arange(params["length"]), *operands[n_consts + n_carry :])
        init = (list(carry), self._totals_inside(path, scope))
        (carry, totals), collected = lax.scan(
            body,
            init,
            xs,
            length=params["length"],
            reverse=params["reverse"],
            unroll=params.get("unroll", 1),
        )
        scope.totals |= totals
        return [*carry, *collected]

    def _while(
        self, eqn: Any, operands: Sequence[Any], path: EquationPath, scope: _Scope
    ) -> list[Any]:
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]

        def goes_on(carry: Any) -> Any:
            inner = _Scope(dict(carry[1]), scope)  # products in the condition are not counted
            values = [*cond_consts, *carry[0]]
            return self._inner(eqn, path, values, inner, "cond_jaxpr")[0]

        def body(carry: Any) -> Any:
            inner = _Scope(carry[1], scope)
            values = self._inner(eqn, path, [*body_consts, *carry[0]], inner, "body_jaxpr")
            return values, inner.totals

        init = (list(operands[n_cond + n_body :]), self._totals_inside(path, scope))
        carry, totals = lax.while_loop(goes_on, body, init)
        scope.totals |= totals
        return carry

    def _cond(
        self, eqn: Any, operands: Sequence[Any], path: EquationPath, scope: _Scope
    ) -> list[Any]:
        index, *arguments = operands

        def branch(number: int) -> Any:
            def run(arguments: Any, totals: Totals) -> Any:
                inner = _Scope(totals, scope)
                return self._inner(eqn, path, arguments, inner, "branches", number), inner.totals

            return run

        branches = [branch(number) for number in range(len(eqn.params["branches"]))]
        totals = self._totals_inside(path, scope)
        results, totals = lax.switch(index, branches, arguments, totals)
        scope.totals |= totals
        return results


def _looked_up(values: np.ndarray, index: Any) -> Any:
    return jnp.asarray(values)[index]


def _positions(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The positions at which an equation reads, within the array."""
    array = operands[0]
    if eqn.primitive.name == "dynamic_slice":
        sizes = eqn.params["slice_sizes"]
        positions = operands[1:]
    else:
        sizes = eqn.params["slice_sizes"]
        index = operands[1]
        which = eqn.params["dimension_numbers"].start_index_map
        by_axis = {k: index[..., i] for i, k in enumerate(which)}
        positions = [by_axis.get(k, 0) for k in range(array.ndim)]
    return [
        jnp.clip(position, 0, size - n)
        for position, size, n in zip(positions, array.shape, sizes, strict=True)
    ]


def _bind(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Runs one equation as it is."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # tuple: before jax 0.10
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*functions, *operands, **params)
    return results if eqn.primitive.multiple_results else [results]
