"""What primitives that work entry by entry make of constants, as NumPy knows them.

By this a constant slice is followed through a program: zero stays zero in a tanh, and does not in a
sigmoid. NaN stands for what is not known.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    if all(np.array_equal(cases[0], case, equal_nan=True) for case in cases):
        return cases[0]
    chosen = np.choose(np.nan_to_num(which).astype(int), cases)
    same = np.all([case == cases[0] for case in cases], axis=0)
    return np.where(same, cases[0], np.where(np.isnan(which), np.nan, chosen))


_UNKNOWN = None  # entry by entry, but constants are not followed
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
    "gt": lambda a, b: np.where(np.isnan(a + b), np.nan, a > b),
    "ge": lambda a, b: np.where(np.isnan(a + b), np.nan, a >= b),
    "lt": lambda a, b: np.where(np.isnan(a + b), np.nan, a < b),
    "le": lambda a, b: np.where(np.isnan(a + b), np.nan, a <= b),
    "eq": lambda a, b: np.where(np.isnan(a + b), np.nan, a == b),
    "ne": lambda a, b: np.where(np.isnan(a + b), np.nan, a != b),
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "select_n": _select,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "stop_gradient": lambda x: x,
    "reduce_precision": lambda x: x,
    "name": lambda x: x,
    "optimization_barrier": _UNKNOWN,
    "rem": _UNKNOWN,
    "and": _UNKNOWN,
    "or": _UNKNOWN,
    "xor": _UNKNOWN,
    "not": _UNKNOWN,
    "is_finite": _UNKNOWN,
    "atan2": _UNKNOWN,
    "nextafter": _UNKNOWN,
    "erf_inv": _UNKNOWN,
    "lgamma": _UNKNOWN,
    "digamma": _UNKNOWN,
    "acos": _UNKNOWN,
    "asin": _UNKNOWN,
}


def computer(eqn: Any) -> Callable[..., np.ndarray] | None:
    """What an equation makes of constants, in NumPy; None where they are not followed."""
    name = eqn.primitive.name
    if name == "integer_pow":
        return lambda x: np.power(x, float(eqn.params["y"]))
    if name == "convert_element_type":
        rounds = not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating)
        return None if rounds else lambda x: x
    return ELEMENTWISE.get(name)


def computed(
    compute: Callable[..., np.ndarray], name: str, operands: Sequence[np.ndarray]
) -> np.ndarray:
    """The constants of a result, NaN where some operand that matters is not known."""
    with np.errstate(all="ignore"):
        out = np.asarray(compute(*operands), np.float64)
    if name == "mul":  # whatever the other factor is
        out = np.where((operands[0] == 0) | (operands[1] == 0), 0.0, out)
    if name == "div":
        out = np.where((operands[0] == 0) & (operands[1] != 0), 0.0, out)
    if name == "pow":  # np.power(nan, 0) is 1
        out = np.where(np.isnan(operands[0] + operands[1]), np.nan, out)
    return np.where(np.isfinite(out), out, np.nan)
