"""Schedules whose targets are the values of a user's function, such as an optax schedule."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import as_sparsity, check_steps, shown
from jaxprune._recipe.fire_steps import fire_grid
from jaxprune._recipe.schedules import SparsitySchedule

_ROUNDING = Fraction(1, 10**6)  # a float32 schedule may fall by this much through rounding


def from_optax_schedule(
    fn: Callable[[Any], Any], begin_step: int, end_step: int, every: int = 100
) -> SparsitySchedule:
    """A schedule with the values of any optax schedule, which is called only while it is built.

    Args:
      fn: a function from a step, an int32 scalar, to a sparsity. It is called once for each fire. A
        float32 value stands for the shortest decimal that rounds to it, so 0.9 means exactly nine
        tenths.
      begin_step: step of the first fire.
      end_step: step of the last fire, which always fires.
      every: steps between fires.

    Returns:
      A `SparsitySchedule`.

    Raises:
      TypeError: `fn` is not callable or fails, or a step is not an int.
      ValueError: a value is outside [0, 1), or lower than the one before: masks only shrink.

    Example:
      >>> import optax
      >>> from_optax_schedule(optax.linear_schedule(0.0, 0.75, 10), 0, 10, every=5).targets
      (Fraction(0, 1), Fraction(3, 8), Fraction(3, 4))
    """
    if not callable(fn):
        raise TypeError(
            f"from_optax_schedule: `fn` must be a function of the step, got {shown(fn)}. For a "
            "constant sparsity use one_shot_schedule."
        )
    begin_step, end_step, every = check_steps(begin_step, end_step, every)
    steps = fire_grid(begin_step, end_step, every)
    with jax.ensure_compile_time_eval():
        values = [_value_at(fn, step) for step in steps]
    targets = tuple(
        as_sparsity(value[()] if value.ndim == 0 else value, f"from_optax_schedule: fn({step})")
        for step, value in zip(steps, values, strict=True)
    )
    for i in range(1, len(steps)):
        if targets[i - 1] - targets[i] > _ROUNDING:
            raise ValueError(
                f"from_optax_schedule: the sparsity falls from {float(targets[i - 1])} at step "
                f"{steps[i - 1]} to {float(targets[i])} at step {steps[i]}, but masks only shrink. "
                "Pass a schedule of the fraction of zeros that does not fall."
            )
    rising = tuple(itertools.accumulate(targets, max))
    return SparsitySchedule(begin_step, end_step, every, rising)


def _value_at(fn: Callable[[Any], Any], step: int) -> np.ndarray:
    """The value of a user's schedule at one step."""
    try:
        return np.asarray(fn(jnp.asarray(step, jnp.int32)))
    except Exception as error:  # of any type: it comes from the code of the user
        cause = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": .")
        raise TypeError(
            f"from_optax_schedule: fn({step}) fails with {cause}. `fn` must be a function from a "
            f"step, an int32 scalar, to a sparsity, got {shown(fn)}. Pass a schedule such as "
            "optax.linear_schedule(0.0, 0.9, 1000)."
        ) from error
