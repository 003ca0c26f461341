"""Functions of the user: which arguments they take, and whether JAX can trace them."""

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxprune._base.arguments import shown


def takes_arguments(function: Callable[..., Any], n: int) -> bool:
    """Whether a function may be called with `n` arguments, as far as its signature shows.

    Example:
      >>> takes_arguments(lambda path, leaf: True, 2), takes_arguments(lambda path: True, 2)
      (True, False)
    """
    try:
        inspect.signature(function).bind(*[None] * n)
    except ValueError:  # built-in functions have no signature
        return True
    except TypeError:
        return False
    return True


def check_traceable(where: str, function: Callable[..., Any]) -> None:
    """Raises a TypeError for a function that JAX can't trace.

    JAX keeps weak references to what it traces. It can't make them to functions of NumPy, nor to
    instances of classes with `__slots__`, and ends in obscure ways.

    Args:
      where: the name of the user's argument, for the error.
      function: what the user passed.

    Example:
      >>> class Slotted:
      ...     __slots__ = ()
      ...
      ...     def __call__(self, x):
      ...         return x
      >>> check_traceable("score", jnp.abs)
      >>> check_traceable("score", Slotted())
      Traceback (most recent call last):
      TypeError: score: JAX can't trace <...>. Pass a function of Python that calls it.
    """
    try:
        weakref.ref(function)
    except TypeError:
        name = getattr(function, "__name__", "")
        of_jax = f"jax.numpy.{name}, or " if hasattr(jnp, name) else ""
        raise TypeError(
            f"{where}: JAX can't trace {shown(function)}. Pass {of_jax}a function of Python that "
            "calls it."
        ) from None
