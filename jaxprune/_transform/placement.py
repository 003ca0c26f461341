"""Whether an optimizer changes the updates that a transformation of jaxprune has returned.

An optimizer of optax is a pair of functions, which hide the order of what is combined in them. But
the state of `optax.chain` is a tuple with one state for each link, and that of `named_chain` a
dict. If there are links behind one of jaxprune, `update` is traced, with shapes alone, while each
transformation of jaxprune returns new arrays. What the whole optimizer returns must be these.
"""

import contextvars
import functools
import itertools
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.caching import traced_anew
from jaxprune._base.paths import leaves_with_paths
from jaxprune._state.prune_state import PruneState
from jaxprune._transform.inner import as_optimizer
from jaxprune._transform.recorded import only_arrays, settings_of

# What transformations of jaxprune have returned: a path and an array for each pruned leaf. Weak
# references, because traced values must not outlive their trace.
_returned: contextvars.ContextVar[list[tuple[str, Any]] | None] = contextvars.ContextVar(
    "returned", default=None
)


def is_asked() -> bool:
    """Whether `changed_later` traces an update, and wants to know nothing else of it."""
    return _returned.get() is not None


def returned_for(paths: Sequence[str], updates: Sequence[Any], pruned: Sequence[int]) -> list[Any]:
    """The updates, with new arrays for the pruned leaves, which `changed_later` looks for."""
    returned, new = _returned.get(), list(updates)
    for i in pruned:
        new[i] = lax.optimization_barrier(jnp.asarray(updates[i]))
        if returned is not None:
            returned.append((paths[i], weakref.ref(new[i])))
    return new


def changed_later(tx: Any, params: Any) -> list[str]:
    """The paths of leaves whose updates a later link of a chain changes, so they may not be zero.

    Args:
      tx: an optax transformation. None of jaxprune is asked about what it wraps.
      params: a tree of arrays, or of their shapes and dtypes. Nothing is computed.

    Example:
      >>> import jaxprune, jax.numpy as jnp, optax
      >>> prune = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
      >>> params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
      >>> changed_later(optax.chain(prune, optax.sgd(0.1)), params)
      ['w']
      >>> changed_later(optax.chain(optax.sgd(0.1), prune), params)
      []
    """
    if settings_of(tx) is not None:  # nothing follows it
        return []
    arrays = only_arrays(params)
    returned: list[tuple[str, Any]] = []
    changed: list[str] = []

    def trace(params: Any, has_extra_args: bool) -> None:
        state = tx.init(params)
        if not _is_followed(state):
            return
        value = jnp.zeros(())
        extra_args = {"value": value, "value_fn": lambda *_: value, "grad": params}
        extra_args = extra_args if has_extra_args else {}
        updates, _ = as_optimizer(tx).update(params, state, params, **extra_args)
        changed.extend(_not_among(returned, updates))

    for has_extra_args in (False, True):
        returned.clear()
        token = _returned.set(returned)
        try:
            with traced_anew(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `init` gives them when it is used
                jax.eval_shape(functools.partial(trace, has_extra_args=has_extra_args), arrays)
            break
        except Exception:  # it needs other arguments, or raises the same when it is used
            continue
        finally:
            _returned.reset(token)
    return changed


def _not_among(returned: Sequence[tuple[str, Any]], updates: Any) -> list[str]:
    """The paths for which arrays were returned, but none of them is in the updates."""
    paths, leaves, _ = leaves_with_paths(updates)
    update_of = dict(zip(paths, leaves, strict=True))
    is_unchanged = {path: False for path, _ in returned if path in update_of}
    for path in is_unchanged:
        arrays = [array() for other, array in returned if other == path]
        is_unchanged[path] = any(array is update_of[path] for array in arrays)
    return [path for path, unchanged in is_unchanged.items() if not unchanged]


def _is_followed(state: Any) -> bool:
    """Whether a chain has a link behind its last one with a transformation of jaxprune."""
    if isinstance(state, PruneState):
        return False
    if isinstance(state, dict):
        links = list(state.values())
    elif type(state) is tuple:
        links = list(state)
    elif isinstance(state, tuple):  # the state of one transformation, which may wrap some by name
        fields = [list(x.values()) if isinstance(x, dict) else [x] for x in state]
        return any(map(_is_followed, itertools.chain(*fields)))
    else:
        return False
    return any(map(_is_followed, links)) or (_prunes(state) and not _prunes(links[-1]))


def _prunes(state: Any) -> bool:
    """Whether the state of an optimizer contains one of jaxprune."""
    is_state = lambda x: isinstance(x, PruneState)
    return any(map(is_state, jax.tree.leaves(state, is_leaf=is_state)))
