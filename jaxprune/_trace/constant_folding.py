"""Elementwise primitives as NumPy functions, to compute the known values of their results.

The tracer uses them to pass constant slices on: zero stays zero under tanh, and becomes 0.5 under a
sigmoid. NaN means that a value is unknown, in operands and in results. Positive infinity means that
the value is not finite when the model runs, as 0 / 0 and log 0 are: zero times such a value is not
zero. Negative infinity, which programs contain to mask scores, counts as unknown.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    """`lax.select_n`; where all cases are equal, the result is known even if `which` is not."""
    if all(np.array_equal(cases[0], case, equal_nan=True) for case in cases):
        return cases[0]
    chosen = np.choose(np.nan_to_num(which, posinf=0).astype(int), cases)
    same = np.all([case == cases[0] for case in cases], axis=0)
    return np.where(same, cases[0], np.where(np.isfinite(which), chosen, np.nan))


def _compare(compare: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A comparison that is unknown where an operand is; NumPy compares NaN and returns False."""
    return lambda a, b: np.where(np.isfinite(a + b), compare(a, b), np.nan)


def _same(x: np.ndarray) -> np.ndarray:
    return x


_NOT_FOLDED = None  # elementwise, but the values of its results are never known
ELEMENTWISE: dict[str, Callable[..., np.ndarray] | None] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "neg": np.negative,
    "sign": np.sign,
    "abs": np.abs,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "cbrt": np.cbrt,
    "square": np.square,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "logistic": _sigmoid,
    "erf": np.vectorize(math.erf, otypes=[float]),
    "erfc": np.vectorize(math.erfc, otypes=[float]),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "gt": _compare(np.greater),
    "ge": _compare(np.greater_equal),
    "lt": _compare(np.less),
    "le": _compare(np.less_equal),
    "eq": _compare(np.equal),
    "ne": _compare(np.not_equal),
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "select_n": _select,
    "copy": _same,
    "copy_p": _same,
    "stop_gradient": _same,
    "reduce_precision": _same,
    "name": _same,
    "optimization_barrier": _NOT_FOLDED,
    "rem": _NOT_FOLDED,
    "and": _NOT_FOLDED,
    "or": _NOT_FOLDED,
    "xor": _NOT_FOLDED,
    "not": _NOT_FOLDED,
    "is_finite": _NOT_FOLDED,
    "atan2": _NOT_FOLDED,
    "nextafter": _NOT_FOLDED,
    "erf_inv": _NOT_FOLDED,
    "lgamma": _NOT_FOLDED,
    "digamma": _NOT_FOLDED,
    "acos": _NOT_FOLDED,
    "asin": _NOT_FOLDED,
}


# Primitives whose result can be known, or finite, where an operand is not.
_NEEDS_NO_VALUE = {"select_n", "gt", "ge", "lt", "le", "eq", "ne"}


def numpy_function(eqn: Any) -> Callable[..., np.ndarray] | None:
    """The NumPy function of an elementwise equation; None if its results are never known."""
    name = eqn.primitive.name
    if name == "integer_pow":
        return lambda x: np.power(x, float(eqn.params["y"]))
    if name == "convert_element_type":
        rounds = not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
        return None if rounds else _same
    return ELEMENTWISE.get(name)


def fold(
    function: Callable[..., np.ndarray], name: str, operands: Sequence[np.ndarray]
) -> np.ndarray:
    """The known values of a result from those of the operands.

    Args:
      function: from `numpy_function`.
      name: the primitive.
      operands: float64, the known values of each operand: NaN where unknown, positive infinity
        where the value is not finite.

    Returns:
      float64, in the same way.
    """
    operands = [np.where(np.isneginf(x), np.nan, x) for x in operands]
    with np.errstate(all="ignore"):
        out = np.asarray(function(*operands), np.float64)
    if name in _NEEDS_NO_VALUE:
        return out
    unknown = np.any([np.isnan(x) for x in operands], axis=0)
    infinite = np.any([np.isinf(x) for x in operands], axis=0)
    out = np.where(unknown, np.nan, np.where(np.isfinite(out), out, np.inf))
    if name == "mul":  # zero, even where the other factor is unknown
        out = np.where((operands[0] == 0) | (operands[1] == 0), 0.0, out)
    if name == "div":  # zero, even where the divisor is unknown
        out = np.where(operands[0] == 0, 0.0, out)
        out = np.where(operands[1] == 0, np.inf, out)
    return np.where(infinite, np.inf, out)
