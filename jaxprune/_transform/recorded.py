"""Which transformations of jaxprune an optimizer contains, and the params that each of them gets.

An optimizer of optax is a pair of functions, which hide what is combined in them. But every
transformation in it gets its params in `init`. So `init` is traced, with shapes alone, while each
transformation of jaxprune records its settings and its params.
"""

import contextvars
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxprune._base.arguments import BadArgument
from jaxprune._base.caching import traced_anew
from jaxprune._base.paths import spec_of
from jaxprune._transform.settings import Settings


class Initialised(NamedTuple):
    """A transformation of jaxprune in an optimizer.

    Attributes:
      settings: what it does.
      params: the shapes and dtypes that its `init` gets. `optax.masked` and others put placeholders
        in the place of leaves that they hide from it.
    """

    settings: Settings
    params: Any


_records: contextvars.ContextVar[list[Initialised] | None] = contextvars.ContextVar(
    "records", default=None
)


def record(settings: Settings, params: Any) -> None:
    """Records a call of `init`, if `initialised_by` asks for it."""
    records = _records.get()
    if records is not None:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        records.append(Initialised(settings, shapes))


def initialised_by(init: Callable[[Any], Any], params: Any) -> list[Initialised]:
    """The transformations of jaxprune whose `init` is called by that of an optimizer, each once.

    Args:
      init: of the optimizer. Nothing is computed.
      params: a tree of arrays, or of their shapes and dtypes. Anything else in it, such as the
        functions of an Equinox model, becomes None.

    Raises:
      Exception: whatever `init` raises for these shapes.

    Example:
      >>> import jaxprune, jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.adam(1e-3), jaxprune.prune(jaxprune.one_shot_schedule(0.5)))
      >>> [part.settings.regrow for part in initialised_by(tx.init, {"w": jnp.ones((4, 4))})]
      ['never']
      >>> initialised_by(optax.adam(1e-3).init, {"w": jnp.ones((4, 4))})
      []
    """
    arrays = only_arrays(params)
    records: list[Initialised] = []
    token = _records.set(records)
    try:
        with traced_anew():
            jax.eval_shape(lambda params: (init(params), None)[1], arrays)
    finally:
        _records.reset(token)
    return [part for i, part in enumerate(records) if part not in records[:i]]


def only_arrays(params: Any) -> Any:
    """The tree with None in the place of what is neither an array nor the shape of one."""
    return jax.tree.map(lambda x: None if spec_of(x) is None else x, params)


def settings_of(tx: Any) -> Settings | None:
    """The settings of a transformation that `transformation` returned; None for anything else.

    Example:
      >>> import jaxprune, optax
      >>> settings_of(jaxprune.prune(jaxprune.one_shot_schedule(0.5))).regrow
      'never'
      >>> settings_of(optax.sgd(0.1)) is None
      True
    """
    settings = getattr(getattr(tx, "init", None), "settings", None)
    return settings if isinstance(settings, Settings) else None


def is_without_optimizer(tx: Any) -> bool:
    """Whether this is a transformation of jaxprune that wraps no optimizer.

    Example:
      >>> import jaxprune, optax
      >>> is_without_optimizer(jaxprune.prune(jaxprune.one_shot_schedule(0.5)))
      True
      >>> is_without_optimizer(optax.sgd(0.1))
      False
    """
    return settings_of(tx) is not None and vars(tx.init)["optimizer"] is None


def transformations_in(tx: Any, params: Any) -> list[Initialised]:
    """The transformations of jaxprune in an optimizer, outer ones first, with what each prunes.

    Args:
      tx: an optax transformation, which may be one of jaxprune.
      params: a tree of arrays, or of their shapes and dtypes.

    Raises:
      Exception: whatever `tx.init` raises for these shapes; of the optimizer that a transformation
        of jaxprune wraps, only what jaxprune raises.

    Example:
      >>> import jaxprune, jax.numpy as jnp, optax
      >>> inner = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.sgd(0.1))
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.9), inner=inner)
      >>> parts = transformations_in(tx, {"w": jnp.ones((4, 4))})
      >>> [float(part.settings.schedule.final_sparsity) for part in parts]
      [0.9, 0.5]
    """
    settings = settings_of(tx)
    if settings is None:
        return initialised_by(tx.init, params)
    outer = [Initialised(settings, params)]
    optimizer = vars(tx.init)["optimizer"]
    if optimizer is None:
        return outer
    try:
        return outer + initialised_by(optimizer.init, params)
    except BadArgument:  # of a transformation of jaxprune inside
        raise
    except Exception:  # of an optimizer, which raises it again in `init`
        return outer


def is_transformation(x: Any) -> bool:
    """Whether a value has the two functions of a transformation of optax.

    Example:
      >>> import optax
      >>> is_transformation(optax.sgd(0.1)), is_transformation(0.5)
      (True, False)
    """
    return callable(getattr(x, "init", None)) and callable(getattr(x, "update", None))
