"""Some numbers of a small array, read or replaced.

XLA for CPUs and GPUs makes a kernel of every scatter, and often of a gather. If the places are
evenly spaced, as those of the weights among weights and biases, a slice and a padded array do the
same, as parts of the kernels that use or compute the numbers: programs compile faster.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.sharding import on_cpu, on_tpu


def picked(x: jax.Array, places: Sequence[int] | np.ndarray) -> jax.Array:
    """The numbers at these places of an array [n], in this order."""
    places = np.array(places)
    step = _even_step(x, places)
    if not step:
        return x[places]
    return lax.slice(x, (int(places[0]),), (int(places[-1]) + 1,), (step,))


def picked_in_rows(x: jax.Array, places: jax.Array) -> jax.Array:
    """The numbers at these places of each row of an array [n, length]: [n, k], as `places`."""
    if not on_cpu([x]):
        return jnp.take_along_axis(x, places, axis=1)
    # A gather of single numbers needs no kernel that joins the numbers of rows and columns.
    first = lax.broadcasted_iota(places.dtype, places.shape, 0) * x.shape[1]
    return x.reshape(-1).at[first + places].get(mode="promise_in_bounds")


def placed(x: jax.Array, places: Sequence[int] | np.ndarray, new: jax.Array) -> jax.Array:
    """An array [n] with new numbers of its dtype at these places, of which none comes twice.

    Example:
      >>> placed(jnp.zeros(5, jnp.int32), [0, 2], jnp.array([7, 8], jnp.int32)).tolist()
      [7, 0, 8, 0, 0]
    """
    places = np.array(places)
    step = _even_step(x, places)
    if not step:
        return x.at[places].set(new)
    before, after = int(places[0]), len(x) - int(places[-1]) - 1
    spread = lax.pad(new, np.zeros((), np.dtype(x.dtype)), ((before, after, step - 1),))
    is_new = np.zeros(len(x), bool)
    is_new[places] = True
    return jnp.where(is_new, spread, x)


def _even_step(x: Any, places: np.ndarray) -> int:
    """The distance between places that rise evenly; 0 for others, and on a TPU."""
    steps = set(np.diff(places).tolist()) or {1}
    step = min(steps)
    return step if len(places) and len(steps) == 1 and step > 0 and not on_tpu([x]) else 0
