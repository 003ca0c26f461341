"""Schedules: at which steps the masks are recomputed, and how sparse the leaves are afterwards.

A `SparsitySchedule` is a short list of steps, each with an exact rational target, on the host. So
budgets are exact, and a compiled update finds out by a few scalar operations whether it fires.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.argument_types import Sparsity
from jaxprune._base.arguments import (
    as_flag,
    as_sparsity,
    check_step,
    check_steps,
    is_int,
    is_list,
    shown,
)
from jaxprune._recipe.fire_steps import fire_grid, fires_at, latest_fire

_LARGEST_EXACT_POWER = 100


@dataclasses.dataclass(frozen=True)
class SparsitySchedule:
    """Steps at which masks are recomputed, and the target sparsity of each.

    It fires at `begin_step, begin_step + every, ...` and always at `end_step`, so that the
    last target is reached even if the grid of steps misses it. Steps count the updates applied so
    far: step 0 is the first update.

    Attributes:
      begin_step: the first fire.
      end_step: the last fire.
      every: steps between fires.
      targets: one exact sparsity per fire, in [0, 1).
      may_fall: whether a target may be lower than the one before it. False by default, because
        masks only shrink; `prune` accepts a schedule that falls only with `regrow`.

    Raises:
      TypeError: a step is not an int, `targets` is not a tuple or a list of real numbers, or
        `may_fall` is not a bool.
      ValueError: steps as for `polynomial_schedule`, a target outside [0, 1), not exactly one
        target per fire, or targets that fall without `may_fall`.

    Example:
      >>> import jaxprune
      >>> schedule = jaxprune.cubic_schedule(0.9, begin_step=10, end_step=25, every=10)
      >>> schedule.fire_steps
      (10, 20, 25)
      >>> [schedule.sparsity(step) for step in (9, 10, 20, 24, 25, 1000)]
      [0.0, 0.0, 0.8666666666666667, 0.8666666666666667, 0.9, 0.9]
    """

    begin_step: int
    end_step: int
    every: int
    targets: tuple[Fraction, ...]
    may_fall: bool = False

    if TYPE_CHECKING:  # `targets` becomes a tuple of fractions

        def __init__(
            self,
            begin_step: int,
            end_step: int,
            every: int,
            targets: Sequence[Sparsity],
            may_fall: bool = False,
        ) -> None: ...

    def __post_init__(self) -> None:
        steps = check_steps(self.begin_step, self.end_step, self.every)
        if not is_list(self.targets):
            raise TypeError(f"targets must be a tuple of sparsities, got {shown(self.targets)}.")
        targets = tuple(as_sparsity(t, f"targets[{i}]") for i, t in enumerate(self.targets))
        fire_steps = fire_grid(*steps)
        if len(targets) != len(fire_steps):
            raise ValueError(
                f"targets must hold one sparsity per fire, {len(fire_steps)} of them, got "
                f"{len(targets)}. cubic_schedule and from_optax_schedule compute them."
            )
        for i in range(1, len(targets)):
            if targets[i] < targets[i - 1] and not self.may_fall:
                raise ValueError(
                    "targets must not fall, because masks only shrink, got "
                    f"{float(targets[i - 1])} at step {fire_steps[i - 1]} and {float(targets[i])} "
                    f"at step {fire_steps[i]}. Pass targets in increasing order, or "
                    "may_fall=True for prune(..., regrow='zero')."
                )
        for name, value in zip(("begin_step", "end_step", "every"), steps, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "may_fall", as_flag("may_fall", self.may_fall))

    @property
    def fire_steps(self) -> tuple[int, ...]:
        """The steps at which the masks are recomputed, in order."""
        return fire_grid(self.begin_step, self.end_step, self.every)

    @property
    def final_sparsity(self) -> Fraction:
        """The last target."""
        return self.targets[-1]

    @overload
    def fires(self, step: int) -> bool: ...
    @overload
    def fires(self, step: jax.Array) -> jax.Array: ...
    @overload
    def fires(self, step: Any) -> Any: ...

    def fires(self, step: Any) -> Any:
        """Whether the schedule fires at `step`: a bool for an int, else a bool array."""
        step = _checked_step("fires", step)
        return fires_at(step, self.begin_step, self.end_step, self.every)

    @overload
    def index(self, step: int) -> int: ...
    @overload
    def index(self, step: jax.Array) -> jax.Array: ...
    @overload
    def index(self, step: Any) -> Any: ...

    def index(self, step: Any) -> Any:
        """Which fire is the latest at a step, counted from 0; -1 before the first. Int or array."""
        last = len(self.targets) - 1
        if is_int(step):
            step = int(step)
            if step < self.begin_step:
                return -1
            return last if step >= self.end_step else (step - self.begin_step) // self.every
        step = jnp.asarray(_checked_step("index", step))
        fired = latest_fire(step, self.begin_step, self.end_step, self.every, last)
        return jnp.where(step < self.begin_step, -1, fired)

    @overload
    def sparsity(self, step: int) -> float: ...
    @overload
    def sparsity(self, step: jax.Array) -> jax.Array: ...
    @overload
    def sparsity(self, step: Any) -> Any: ...

    def sparsity(self, step: Any) -> Any:
        """The target sparsity after update `step`; it stays the same from one fire to the next.

        Args:
          step: an int, or an integer array or tracer.

        Returns:
          A float for an int; a float32 array otherwise. 0 before the first fire.
        """
        if is_int(step):
            index = self.index(step)
            return float(self.targets[index]) if index >= 0 else 0.0
        step = _checked_step("sparsity", step)
        table = jnp.asarray(np.array([0.0, *map(float, self.targets)], np.float32))
        return table[self.index(step) + 1]


def _checked_step(method: str, step: Any) -> Any:
    """A step that is an integer, or an array of integers; raises a TypeError for anything else."""
    is_array = isinstance(step, (np.ndarray, np.generic, jax.Array))
    if is_int(step):
        return int(step)
    if is_array and jnp.issubdtype(step.dtype, jnp.integer):
        return _as_int32(step)
    fix = "Pass the number of updates so far, such as jaxprune.get_state(opt_state).prune_step."
    if isinstance(step, float) and step.is_integer():
        fix = f"Did you mean {int(step)}?"
    raise TypeError(
        f"{method}: step must be an int or an array of integers, got {shown(step)}. {fix}"
    )


def _as_int32(step: Any) -> Any:
    """Steps as int32, which holds those of every schedule; larger ones are after its end."""
    if step.dtype == np.int32:
        return step
    xp: Any = jnp if isinstance(step, jax.Array) else np
    if step.dtype.itemsize >= 4:
        step = xp.minimum(step, step.dtype.type(np.iinfo(np.int32).max))
    return step.astype(np.int32)


def polynomial_schedule(
    final_sparsity: Sparsity,
    begin_step: int,
    end_step: int,
    every: int = 100,
    initial_sparsity: Sparsity = 0.0,
    power: float = 3,
) -> SparsitySchedule:
    """Gradual pruning along a polynomial: fast at first, while many weights are redundant.

    The sparsity at step t is `s1 + (s0 - s1) * (1 - (t - t0) / (t1 - t0)) ** p`.

    Args:
      final_sparsity: `s1`, the fraction of zeros from `end_step` on, in [0, 1).
      begin_step: `t0`, the step of the first fire.
      end_step: `t1`, the step of the last fire, which need not be on the grid.
      every: steps between fires.
      initial_sparsity: `s0`, reached at `begin_step`; at most `final_sparsity`.
      power: `p` > 0. Integers up to 100 are evaluated exactly, in rational arithmetic, and
        all other powers in double precision.

    Returns:
      A `SparsitySchedule`.

    Raises:
      TypeError: a sparsity is not a real number, or a step is not an int.
      ValueError: a sparsity outside [0, 1), a negative step, `begin_step > end_step`, `every < 1`.

    Example:
      >>> polynomial_schedule(0.5, 0, 4, every=2, power=2).targets
      (Fraction(0, 1), Fraction(3, 8), Fraction(1, 2))
    """
    final = as_sparsity(final_sparsity, "final_sparsity")
    initial = as_sparsity(initial_sparsity, "initial_sparsity")
    if initial > final:
        raise ValueError(
            f"initial_sparsity must be at most final_sparsity, got {initial_sparsity!r} > "
            f"{final_sparsity!r}, because masks only shrink. Lower it, or raise final_sparsity."
        )
    if isinstance(power, bool) or not isinstance(power, numbers.Real):
        raise TypeError(
            f"power must be a real number, got {shown(power)}. The cubic schedule has power=3."
        )
    try:
        is_finite = 0 < float(power) < math.inf
    except OverflowError:  # an int that no float is as large as
        is_finite = False
    if not is_finite:
        raise ValueError(
            f"power must be positive and finite, got {shown(power)}. The cubic schedule has "
            "power=3."
        )
    begin_step, end_step, every = check_steps(begin_step, end_step, every)
    # A fraction to the power of a billion has billions of digits.
    is_exact = power == int(power) and power <= _LARGEST_EXACT_POWER

    def target(step: int) -> Fraction:
        if step == end_step:
            return final
        remaining = Fraction(end_step - step, end_step - begin_step)
        part = remaining ** int(power) if is_exact else float(remaining) ** float(power)
        return final + (initial - final) * Fraction(part)

    steps = fire_grid(begin_step, end_step, every)
    return SparsitySchedule(begin_step, end_step, every, tuple(map(target, steps)))


def cubic_schedule(
    final_sparsity: Sparsity,
    begin_step: int,
    end_step: int,
    every: int = 100,
    initial_sparsity: Sparsity = 0.0,
) -> SparsitySchedule:
    """The gradual schedule of Zhu & Gupta (2017), equation 1: `polynomial_schedule` with power 3.

    Args:
      final_sparsity: fraction of zeros from `end_step` on, in [0, 1).
      begin_step: step of the first fire.
      end_step: step of the last fire. In the paper it is on the grid; here it need not be.
      every: steps between fires; the paper used 100 to 1000.
      initial_sparsity: reached at `begin_step`.

    Returns:
      A `SparsitySchedule`.

    Raises:
      TypeError, ValueError: as `polynomial_schedule`.

    References:
      Zhu and Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_, 2017.

    Example:
      >>> [float(t) for t in cubic_schedule(0.8, 0, 4, every=1).targets]
      [0.0, 0.4625, 0.7, 0.7875, 0.8]
    """
    return polynomial_schedule(
        final_sparsity, begin_step, end_step, every, initial_sparsity, power=3
    )


def linear_schedule(
    final_sparsity: Sparsity,
    begin_step: int,
    end_step: int,
    every: int = 100,
    initial_sparsity: Sparsity = 0.0,
) -> SparsitySchedule:
    """A schedule that rises in proportion to the step: `polynomial_schedule` with power 1.

    Args:
      final_sparsity: fraction of zeros from `end_step` on, in [0, 1).
      begin_step: step of the first fire.
      end_step: step of the last fire. If it is not on the grid, the last rise is smaller.
      every: steps between fires.
      initial_sparsity: reached at `begin_step`.

    Returns:
      A `SparsitySchedule`.

    Raises:
      TypeError, ValueError: as `polynomial_schedule`.

    Example:
      >>> [float(t) for t in linear_schedule(0.8, 0, 4, every=1).targets]
      [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    return polynomial_schedule(
        final_sparsity, begin_step, end_step, every, initial_sparsity, power=1
    )


def one_shot_schedule(final_sparsity: Sparsity, step: int = 0) -> SparsitySchedule:
    """A schedule that reaches its final sparsity in one step; leaves are dense before it.

    Args:
      final_sparsity: fraction of zeros from `step` on, in [0, 1).
      step: the only fire; 0 is the first update.

    Returns:
      A `SparsitySchedule`.

    Raises:
      TypeError, ValueError: as `polynomial_schedule`.

    Example:
      >>> one_shot_schedule(0.5, step=100).fire_steps
      (100,)
    """
    check_step("step", step)
    return polynomial_schedule(final_sparsity, step, step, every=1)


def acdc_schedule(
    final_sparsity: Sparsity, begin_step: int, end_step: int, every: int = 1000
) -> SparsitySchedule:
    """Alternating sparse and dense phases: AC/DC (Peste et al. 2021, arXiv:2106.12379).

    The first phase is sparse. Each phase lasts `every` steps, but for one that `end_step` ends
    early: from `end_step` on, the network is sparse. Pass this schedule to `prune` with
    `regrow="zero"`. Unlike the authors' code, this does not reset the moments of the optimizer when
    a dense phase begins.

    Args:
      final_sparsity: fraction of zeros in the sparse phases, in [0, 1).
      begin_step: step of the first fire; the network is dense before.
      end_step: step of the last fire.
      every: the length of each phase in steps.

    Returns:
      A `SparsitySchedule`.

    Raises:
      TypeError, ValueError: as `polynomial_schedule`.

    Example:
      >>> [float(t) for t in acdc_schedule(0.9, 10, 35, every=10).targets]
      [0.9, 0.0, 0.9, 0.9]
    """
    final = as_sparsity(final_sparsity, "final_sparsity")
    begin_step, end_step, every = check_steps(begin_step, end_step, every)
    steps = fire_grid(begin_step, end_step, every)
    sparse = [i % 2 == 0 or step == end_step for i, step in enumerate(steps)]
    targets = [final if phase else Fraction(0) for phase in sparse]
    return SparsitySchedule(begin_step, end_step, every, tuple(targets), may_fall=True)


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
SparsitySchedule.__module__ = "jaxprune"
__test__ = {"SparsitySchedule": SparsitySchedule}
