"""What equations hold: the programs that they call, and constants."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune._trace.leaf_views import Value

_MAX_KNOWN = 2**20  # entries of a constant that is evaluated, to know the positions it holds


def inner_program(eqn: Any, operands: Sequence[Value]) -> str | None:
    """The param of a call that holds the program called, if its arrays have the same shapes."""
    shapes = ([x.shape for x in operands], [tuple(var.aval.shape) for var in eqn.outvars])
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        inner = getattr(eqn.params.get(key), "jaxpr", eqn.params.get(key))
        if hasattr(inner, "eqns"):
            inner_shapes = [
                [tuple(getattr(var.aval, "shape", ())) for var in variables]
                for variables in (inner.invars, inner.outvars)
            ]
            return key if inner_shapes == [*shapes] else None
    return None


def constant(x: Any, aval: Any) -> Value:
    """A constant of the program."""
    dtype = getattr(aval, "dtype", None)
    known = (lambda: np.asarray(x, dtype)) if np.isscalar(x) else (lambda: x)
    return Value(tuple(aval.shape), known=known)


def known_result(eqn: Any, operands: Sequence[Value], number: int) -> Callable[[], Any] | None:
    """Computes a result of an equation whose operands are all constants."""
    functions = [operand.known for operand in operands]
    if None in functions or math.prod(eqn.outvars[number].aval.shape) > _MAX_KNOWN:
        return None

    @functools.cache
    def compute() -> Any:
        values = [function() for function in functions if function is not None]
        with jax.ensure_compile_time_eval():
            results = eqn.primitive.bind(*values, **eqn.params)
        return results[number] if eqn.primitive.multiple_results else results

    return compute
