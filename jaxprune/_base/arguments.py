"""Checks of what users pass: sparsities, steps, and how a value is shown in an error."""

import numbers
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_LAST_STEP = 2**31 - 2  # steps are counted in int32
_MOST_FIRES = 100_000  # one exact target and one budget per leaf is tabulated for each


def as_sparsity(value: Any, name: str) -> Fraction:
    """The exact fraction that a number stands for: 0.9 is nine tenths, not its binary float.

    Raises:
      TypeError: not a real number.
      ValueError: outside [0, 1).
    """
    if isinstance(value, np.generic) and jnp.issubdtype(value.dtype, jnp.floating):
        value = value if isinstance(value, numbers.Real) else float(value)  # bfloat16 is no Real
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        hint = ""
        if isinstance(value, jax.Array):
            hint = (
                " Sparsity is decided on the host, before tracing: pass a Python float; under "
                "optax.inject_hyperparams, name the argument in static_args."
            )
        raise TypeError(f"{name} must be a real number in [0, 1), got {shown(value)}.{hint}")
    number: Any = value
    if not 0 <= number < 1:
        fix = f" Did you mean {float(number) / 100:g}?" if 2 <= number < 100 else ""
        fix = " Sparsity 1 would leave no weight." if number == 1 else fix
        raise ValueError(f"{name} is a fraction of zeros in [0, 1), got {number}.{fix}")
    return number if isinstance(number, Fraction) else Fraction(str(number))


def check_steps(begin_step: Any, end_step: Any, every: Any) -> tuple[int, int, int]:
    """The three as Python ints: NumPy's overflow, and have no exact powers."""
    begin_step = check_step("begin_step", begin_step)
    end_step = check_step("end_step", end_step)
    every = as_int("every", every)
    if end_step < begin_step:
        raise ValueError(
            f"end_step must be at least begin_step, got begin_step={begin_step} and "
            f"end_step={end_step}. Did you swap them?"
        )
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}.")
    n_fires = -(-(end_step - begin_step) // every) + 1
    if n_fires > _MOST_FIRES:
        raise ValueError(
            f"every={every} from step {begin_step} to step {end_step} makes {n_fires} fires; at "
            f"most {_MOST_FIRES} are tabulated. Recompute the masks less often, "
            f"every={-(-(end_step - begin_step) // 1000)} for 1000 times."
        )
    return begin_step, end_step, every


def check_step(name: str, value: Any) -> int:
    """A step as a Python int, at least 0."""
    value = as_int(name, value)
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}.")
    if value > _LAST_STEP:
        raise ValueError(f"{name} must be at most {_LAST_STEP}, got {value}.")
    return value


def as_int(name: str, value: Any) -> int:
    """An integer of any kind but bool as a Python int."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        fix = ""
        if isinstance(value, jax.Array):
            fix = " Steps are decided on the host, before tracing: pass a Python int."
        elif isinstance(value, float) and value.is_integer():
            fix = f" Did you mean {int(value)}?"
        raise TypeError(f"{name} must be an int, got {shown(value)}.{fix}")
    return int(value)


def shown(value: Any) -> str:
    """A value in an error: its repr if that is short, else its type; arrays and trees are long."""
    if isinstance(value, Tracer):
        return "a traced value"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def as_part(name: str, value: Any) -> float:
    """A number in [0, 1] as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number in [0, 1], got {shown(value)}.")
    part = float(value)
    if not 0 <= part <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}.")
    return part
