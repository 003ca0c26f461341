"""Whether an optimizer changes the updates that a transformation of jaxprune has returned.

An optimizer of optax is a pair of functions, which hide the order of what is combined in them. But
the state of `optax.chain` is a tuple with one state for each link, and that of `named_chain` a
dict. If links behind one of jaxprune may compute updates, `update` is traced, with shapes alone,
while each transformation of jaxprune returns new arrays. What the whole optimizer returns must be
these.
"""

import contextvars
import functools
import itertools
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.caching import traced_anew
from jaxprune._base.paths import leaves_with_paths
from jaxprune._state.prune_state import PruneState
from jaxprune._state.splice import only_prunes
from jaxprune._transform.inner import AFTER_LOOKAHEAD, as_optimizer
from jaxprune._transform.recorded import only_arrays
from jaxprune._transform.settings import Settings


class Returned(NamedTuple):
    """What a transformation of jaxprune has returned for a leaf that it prunes.

    Attributes:
      path: of the leaf.
      settings: of the transformation.
      array: a weak reference, because traced values must not outlive their trace.
      passed: what an earlier transformation returned and this one passes on, in a new array.
    """

    path: str
    settings: Settings
    array: Any
    passed: "list[Returned]"


# The states of wrappers that apply an average of weights or scale all updates, by function.
_MIXING = {
    "ScheduleFreeState": "schedule_free",
    "LookaheadState": "lookahead",
    "MechanicState": "mechanize",
}

_returned: contextvars.ContextVar[list[Returned] | None] = contextvars.ContextVar(
    "returned", default=None
)


def is_asked() -> bool:
    """Whether `changed_later` traces an update, and wants to know nothing else of it."""
    return _returned.get() is not None


def asks_inner(inner_state: Any) -> bool:
    """Whether it matters what a wrapped optimizer does: if it, or an earlier link, prunes."""
    return bool(_returned.get()) or _prunes(inner_state)


def returned_for(
    settings: Settings, paths: Sequence[str], updates: Sequence[Any], pruned: Sequence[int]
) -> list[Any]:
    """The updates, with new arrays for the pruned leaves, which `changed_later` looks for."""
    returned, new = _returned.get(), list(updates)
    for i in pruned:
        new[i] = lax.optimization_barrier(jnp.asarray(updates[i]))
        if returned is not None:
            passed = [each for each in returned if each.array() is updates[i]]
            returned.append(Returned(paths[i], settings, weakref.ref(new[i]), passed))
    return new


def changed_later(tx: Any, params: Any) -> list[str]:
    """The paths of leaves whose updates a later link of a chain changes, so they may not be zero.

    A link that computes new updates counts, whatever their values are: `optax.scale(1.0)`, too.

    Args:
      tx: an optax transformation.
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
    arrays = only_arrays(params)
    returned: list[Returned] = []
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


def state_shapes(tx: Any, params: Any) -> Any:
    """The shapes and dtypes of the first state of an optimizer; nothing is computed."""
    with traced_anew(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `init` gives them when it is used
        return jax.eval_shape(tx.init, only_arrays(params))


def mixing_wrapper(opt_state: Any) -> str | None:
    """The transformation of optax around one of jaxprune that mixes its updates with weights.

    The zeros do not survive that; `instead_of` says what to do.

    Args:
      opt_state: of an optimizer, or its shapes and dtypes.

    Example:
      >>> import jaxprune, jax.numpy as jnp, optax
      >>> params, schedule = {"w": jnp.ones((4, 4))}, jaxprune.one_shot_schedule(0.5)
      >>> around = optax.contrib.schedule_free(jaxprune.prune(schedule, inner=optax.sgd(0.1)), 0.1)
      >>> mixing_wrapper(around.init(params))
      'schedule_free'
      >>> inside = jaxprune.prune(schedule, inner=optax.contrib.schedule_free(optax.sgd(0.1), 0.1))
      >>> mixing_wrapper(inside.init(params)) is None
      True
    """
    is_mixing = lambda x: type(x).__name__ in _MIXING and type(x).__module__.startswith("optax")
    mixing = filter(is_mixing, jax.tree.leaves(opt_state, is_leaf=is_mixing))
    wrapper = next((_MIXING[type(x).__name__] for x in mixing if _prunes(x)), None)
    if wrapper is None and hasattr(opt_state, "opt_state"):
        return mixing_wrapper(opt_state.opt_state)
    return wrapper


def instead_of(wrapper: str) -> str:
    """What to do about a wrapper that `mixing_wrapper` found."""
    if wrapper == _MIXING["LookaheadState"]:
        return AFTER_LOOKAHEAD
    return f"Wrap it instead: prune(schedule, inner={wrapper}(...))."


def _not_among(returned: Sequence[Returned], updates: Any) -> list[str]:
    """The paths for which a transformation returned an array that did not get into the updates.

    One with equal settings may stand for it, because it drops the same weights.
    """
    paths, leaves, _ = leaves_with_paths(updates)
    update_of = dict(zip(paths, leaves, strict=True))
    arrived = [each for each in returned if each.array() is update_of.get(each.path, returned)]
    for each in arrived:  # it grows
        arrived += each.passed
    kept = {(each.path, each.settings) for each in arrived}
    lost = [each for each in returned if (each.path, each.settings) not in kept]
    return list(dict.fromkeys(each.path for each in lost if each.path in update_of))


def _is_followed(state: Any) -> bool:
    """Whether something computes updates behind a transformation of jaxprune in a chain."""
    if isinstance(state, PruneState):
        return _is_followed(state.inner_state)
    if isinstance(state, dict):
        links = list(state.values())
    elif type(state) is tuple:
        links = list(state)
    elif isinstance(state, tuple):  # the state of one transformation, which may wrap some by name
        fields = [list(x.values()) if isinstance(x, dict) else [x] for x in state]
        return any(map(_is_followed, itertools.chain(*fields)))
    else:
        return False
    behind_first = list(itertools.dropwhile(lambda link: not _prunes(link), links))[1:]
    return any(map(_is_followed, links)) or not all(map(only_prunes, behind_first))


def _prunes(state: Any) -> bool:
    """Whether the state of an optimizer contains one of jaxprune."""
    is_state = lambda x: isinstance(x, PruneState)
    return any(map(is_state, jax.tree.leaves(state, is_leaf=is_state)))
