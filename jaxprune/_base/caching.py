"""Caches that never hold a traced value, and traces that no cache of JAX keeps for others.

A function may close over values that JAX is tracing: `optax.inject_hyperparams` makes an optimizer,
and so the score in it, of traced hyperparameters in every trace. A cache with such a function among
its keys would keep the whole trace alive, and no later trace could use the entry.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.core import Tracer
from jax.experimental.xla_metadata import set_xla_metadata

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_PLAIN = (str, bytes, int, float, complex, type, types.ModuleType)


def bounded_cache(
    maxsize: int,
) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """`functools.lru_cache(maxsize)` that computes anew where an argument holds a traced value.

    The decorated function has `cache_info` and `cache_clear`, too.

    Example:
      >>> @bounded_cache(maxsize=8)
      ... def first_of(score):
      ...     return score(1.0)
      >>> double = lambda x: 2 * x
      >>> first_of(double), first_of(double), first_of.cache_info().hits
      (2.0, 2.0, 1)
    """

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        cached = functools.lru_cache(maxsize)(function)

        @functools.wraps(function)
        def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            if holds_tracer(args) or holds_tracer(kwargs):
                return function(*args, **kwargs)
            return cached(*args, **kwargs)

        vars(call).update(cache_info=cached.cache_info, cache_clear=cached.cache_clear)
        return call

    return decorate


def jitted_unless_traced(jitted: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """A jitted function, or the function that it wraps if one of these holds a traced value.

    The cache of `jax.jit` would keep the traced value.

    Example:
      >>> jitted = jax.jit(lambda x: 2 * x)
      >>> jitted_unless_traced(jitted, 1.0) is jitted
      True
    """
    return inspect.unwrap(jitted) if holds_tracer(arguments) else jitted


def holds_tracer(value: Any) -> bool:
    """Whether a traced value is in a tree, or in what the functions in it close over.

    Looks into closures, default arguments, bound methods, partials and the attributes of objects.
    A class may say itself what to search in its objects, as the property `may_hold_tracers`.

    Example:
      >>> holds_tracer(lambda params: params * 2.0)
      False
      >>> held = []
      >>> jax.eval_shape(lambda x: held.append(holds_tracer(lambda params: params * x)), 2.0)
      >>> held
      [True]
    """
    seen: dict[int, Any] = {}  # an object that is freed would leave its id to another one
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tracer):
            return True
        if id(part) not in seen:
            seen[id(part)] = part
            waiting += _parts(part)
    return False


def _parts(value: Any) -> Iterable[Any]:
    """What an object refers to; nothing for classes, modules and plain values."""
    if isinstance(value, _PLAIN):
        return ()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, dict):  # `jax.tree` would sort the keys, which may have several types
        return value.values()
    if isinstance(value, types.FunctionType):
        cells = map(_contents, value.__closure__ or ())
        return [*cells, value.__defaults__, value.__kwdefaults__, vars(value)]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if hasattr(type(value), "may_hold_tracers"):
        return value.may_hold_tracers
    if hasattr(value, "__dict__"):
        return list(vars(value).values())
    # The children of a pytree without attributes, such as a dataclass with slots.
    return jax.tree.leaves(value, is_leaf=lambda x: x is not value)


def _contents(cell: Any) -> list[Any]:
    """What a cell of a closure holds; nothing while its variable has no value."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


_traces = itertools.count()


def traced_anew() -> Any:
    """A context in which JAX traces what it has traced before, and keeps the result for itself.

    `jit` remembers what a function did for arguments of these shapes and dtypes, and metadata for
    XLA are a part of what it remembers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> traced = []
      >>> double = jax.jit(lambda x: (traced.append("traced"), 2 * x)[1])
      >>> for _ in range(2):
      ...     with traced_anew(), jax.disable_jit(False):
      ...         _ = jax.eval_shape(double, jnp.ones(3))
      >>> len(traced)
      2
    """
    return set_xla_metadata(jaxprune_trace=str(next(_traces)))
