"""At which steps a schedule fires. All functions but `fire_grid` also take traced steps."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def fire_grid(begin_step: int, end_step: int, every: int) -> tuple[int, ...]:
    """The steps at which a schedule fires: `every` steps from the first, and always the last.

    Example:
      >>> fire_grid(10, 25, 10)
      (10, 20, 25)
    """
    return (*range(begin_step, end_step, every), end_step)


def fires_at(step: Any, begin_step: Any, end_step: Any, every: Any) -> Any:
    """Whether a schedule with these steps fires at `step`; all of them may be traced."""
    inside = (step >= begin_step) & (step < end_step)
    on_grid = inside & (_periods(step - begin_step, every) * every == step - begin_step)
    return on_grid | (step == end_step)


def latest_fire(step: Any, begin_step: Any, end_step: Any, every: Any, last: Any) -> jax.Array:
    """Which of `last + 1` fires is the latest at a step that is not before the first."""
    return jnp.where(step >= end_step, last, _periods(step - begin_step, every))


def _periods(n_steps: Any, every: Any) -> Any:
    """How often `every` steps fit into `n_steps`, if these are not negative.

    `//` of arrays rounds negative quotients down, and takes ten operations.
    """
    if not isinstance(n_steps, jax.Array):
        return n_steps // every
    return lax.div(*jnp.broadcast_arrays(n_steps, jnp.asarray(every, n_steps.dtype)))
