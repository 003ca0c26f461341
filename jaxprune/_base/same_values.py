"""Whether two arrays hold the same values, as one bool: `==` of results that hold arrays."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxprune._base.on_host import is_here
from jaxprune._base.paths import spec_of


def same_values(a: Any, b: Any) -> bool:
    """Whether two arrays have the same shape, dtype and values; NaN is the same as NaN.

    An array that can't be read here (traced, donated, or on other hosts) is only the same as
    itself. What is no array, as in a tree of shapes, is compared by `==`.

    Example:
      >>> same_values(np.array([1.0, np.nan]), np.array([1.0, np.nan]))
      True
      >>> same_values(np.array([1.0]), np.array([1])), same_values(2.0, 2.0)
      (False, True)
    """
    if a is b:
        return True
    if not (can_be_read(a) and can_be_read(b)):
        has_array = isinstance(a, jax.Array) or isinstance(b, jax.Array)
        return not has_array and type(a) is type(b) and bool(a == b)
    if spec_of(a) != spec_of(b):
        return False
    x, y = np.asarray(a), np.asarray(b)
    return x.shape == y.shape and bool(np.all((x == y) | ((x != x) & (y != y))))


def can_be_read(x: Any) -> bool:
    """Whether a value is an array, or a number, whose values are here and known."""
    if isinstance(x, jax.Array):
        return not isinstance(x, Tracer) and not x.is_deleted() and is_here(x)
    return isinstance(x, (np.ndarray, np.generic, int, float, complex))
