"""Several schedules in one program, one of which is chosen by a number in the state.

The tables of all schedules follow each other, so that a fire is a row: schedule 1 begins where
schedule 0 ends. `ScheduleList.at` returns the schedule with a number that may be traced; it has the
methods of a `SparsitySchedule` that an update calls.
"""

import dataclasses
import inspect
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import shown
from jaxprune._base.functions import takes_arguments
from jaxprune._recipe.fire_steps import fires_at, latest_fire
from jaxprune._recipe.schedules import SparsitySchedule


@dataclasses.dataclass(frozen=True)
class ChosenSchedule:
    """One schedule of a list; every field is an int32 scalar that may be traced.

    Attributes:
      number: of the schedule in its list.
      begin_step: its first fire.
      end_step: its last fire.
      every: steps between fires.
      first_row: the row of its first fire.
      n_fires: how many fires it has.
    """

    number: Any
    begin_step: Any
    end_step: Any
    every: Any
    first_row: Any
    n_fires: Any

    def fires(self, step: Any) -> Any:
        """Whether the schedule fires at `step`."""
        return fires_at(step, self.begin_step, self.end_step, self.every)

    def index(self, step: Any) -> Any:
        """The row of the latest fire at a step; -1 before the first."""
        last = self.n_fires - 1
        number = latest_fire(step, self.begin_step, self.end_step, self.every, last)
        return jnp.where(step < self.begin_step, -1, self.first_row + number)

    @property
    def last_row(self) -> Any:
        """The row of the last fire."""
        return self.first_row + self.n_fires - 1

    def fires_left(self, step: Any) -> Any:
        """How many fires come after a step."""
        row = self.index(step)
        return jnp.where(row < 0, self.n_fires, self.last_row - row)


@dataclasses.dataclass(frozen=True)
class ScheduleList:
    """Schedules that `choose_schedule` chooses from; a hashable host value.

    Attributes:
      schedules: at least one.

    Example:
      >>> from jaxprune import linear_schedule, one_shot_schedule
      >>> both = ScheduleList((one_shot_schedule(0.5, 3), linear_schedule(0.9, 0, 20, every=10)))
      >>> both.n_fires
      (1, 3)
      >>> chosen = both.at(1)
      >>> [int(chosen.index(step)) for step in (0, 9, 10, 20, 99)]  # row 0 belongs to the first
      [1, 1, 2, 3, 3]
    """

    schedules: tuple[SparsitySchedule, ...]

    @property
    def may_fall(self) -> bool:
        """Whether the targets of any schedule may fall."""
        return any(schedule.may_fall for schedule in self.schedules)

    @property
    def targets(self) -> tuple[Fraction, ...]:
        """The targets of all schedules, one after the other."""
        return tuple(target for schedule in self.schedules for target in schedule.targets)

    @property
    def n_fires(self) -> tuple[int, ...]:
        """How many fires each schedule has."""
        return tuple(len(schedule.targets) for schedule in self.schedules)

    def steps(self) -> np.ndarray:
        """The first fire, the last, and the steps between fires of each: int32[n_schedules, 3]."""
        rows = [(s.begin_step, s.end_step, s.every) for s in self.schedules]
        return np.array(rows, np.int32)

    def at(self, number: Any) -> ChosenSchedule:
        """The schedule with a number, an int32 scalar; the nearest where there is none."""
        number = jnp.clip(jnp.asarray(number, jnp.int32), 0, len(self.schedules) - 1)
        n_fires = np.array(self.n_fires, np.int32)
        table = np.column_stack([self.steps(), np.cumsum(n_fires) - n_fires, n_fires])
        row: jax.Array = jnp.asarray(table, jnp.int32)[number]
        return ChosenSchedule(number, *row)


def as_schedule(schedule: Any, also: str = "") -> SparsitySchedule | ScheduleList:
    """The user's schedule, or list of schedules.

    Args:
      schedule: what the user passed.
      also: what else the caller accepts, for errors.

    Raises:
      TypeError: neither a schedule nor a sequence of them.
      ValueError: an empty list.
    """
    if isinstance(schedule, SparsitySchedule):
        return schedule
    if not isinstance(schedule, (list, tuple)) or hasattr(schedule, "_fields"):
        check_schedule(schedule, also)
    if not schedule:
        raise ValueError(
            "schedule must hold at least one schedule, got an empty list. Pass "
            "[jaxprune.cubic_schedule(0.9, begin_step=..., end_step=...), ...]."
        )
    for member in schedule:
        check_schedule(member)
    return ScheduleList(tuple(schedule))


def check_schedule(schedule: Any, also: str = "") -> None:
    """Raises a TypeError that says how to build a schedule, unless `schedule` is one.

    `also` names what else the caller accepts.
    """
    if isinstance(schedule, SparsitySchedule):
        return
    is_own = (getattr(schedule, "__module__", None) or "").partition(".")[0] == "jaxprune"
    name = getattr(schedule, "__name__", "")
    if isinstance(schedule, (int, float, np.ndarray, jax.Array)):
        fix = (
            "For a constant sparsity pass jaxprune.one_shot_schedule(sparsity), for a gradual one "
            "jaxprune.cubic_schedule(sparsity, begin_step=..., end_step=...)."
        )
    elif hasattr(schedule, "init"):
        fix = "Pass the optimizer by name: prune(schedule, inner=optimizer)."
    elif is_own and name.endswith("_schedule"):
        first = "fn" if name == "from_optax_schedule" else "0.9"
        fix = f"Call it: jaxprune.{name}({first}, ...)."
    elif also and is_own and name in _OPTIMIZERS:
        fix = f"Call it: plan(params, jaxprune.{name}(...))."
    elif factory := _factory_named(schedule):
        fix = f"Call it: plan(params, {factory}(...))."
        if not also:
            fix = f"Call it, and pass it by name: prune(schedule, inner={factory}(...))."
    elif callable(schedule) and not is_own:
        fix = "Wrap it: jaxprune.from_optax_schedule(fn, begin_step=..., end_step=...)."
    else:
        fix = "Build one with jaxprune.cubic_schedule(0.9, begin_step=..., end_step=...)."
    raise TypeError(
        f"schedule must be a jaxprune.SparsitySchedule{also}, got {shown(schedule)}. {fix}"
    )


def _factory_named(value: Any) -> str:
    """The name of a function that makes an optimizer; empty for anything else.

    Functions of optax make one, unless they make a schedule, or are one: a function inside another.
    So may a function without arguments, which is no schedule.
    """
    if not inspect.isroutine(value) or value.__name__ == "<lambda>":
        return ""
    name, package = value.__name__, value.__module__.partition(".")[0]
    if package == "optax":
        is_schedule = "<locals>" in value.__qualname__ or "schedule" in value.__module__
        return "" if is_schedule else f"optax.{name}"
    return "" if package == "jaxprune" or takes_arguments(value, 1) else name


_OPTIMIZERS = ("prune", "rigl", "set_", "static_sparse", "keep_zeros")
