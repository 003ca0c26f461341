"""What a transformation does, as one hashable value: `Settings`.

The functions in `prune.py` and `rigl.py` check a user's arguments and store them here; `update.py`
acts on them, and `plan` reads them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.schedule_list import ChosenSchedule, ScheduleList
from jaxprune._recipe.schedules import SparsitySchedule
from jaxprune._state.progress import Progress

# What a fire may do with dropped weights, and what they do until then.
NEVER = "never"  # they stay dropped, and zero
ZERO = "zero"  # they are zero, but a fire may keep them again
HOLD = "hold"  # they keep the value that they had when they were dropped
TRAIN = "train"  # they are trained like the others


class Algorithm(NamedTuple):
    """How masks begin and change: the functions in which gradual pruning and RigL differ.

    Attributes:
      first_masks: `(settings, budget, leaves, key) -> uint8 masks`, one for each leaf of the tree.
      decide: `(settings, budget, inputs, masks, thresholds) -> (masks, thresholds)` of the pruned
        leaves, at a fire.
      trained: `(masks, schedule, step) -> flags`, the weights that get an update in this step.
      resets: whether a fire sets the optimizer's moments of some weights to zero.
      changes: whether masks change at all.
      budgeted: whether budgets say how many weights are dropped, and not the first masks.
    """

    first_masks: Callable[..., list[Any]]
    decide: Callable[..., tuple[list[Any], Any]]
    trained: Callable[..., list[Any]]
    resets: bool
    changes: bool = True
    budgeted: bool = True


class Settings(NamedTuple):
    """What a transformation does; host values, hashable.

    Attributes:
      schedule: when it fires, and which fraction is zero then; or a list of schedules. While an
        update is traced, `followed` puts the one that the state follows in its place.
      recipe: what is pruned and how.
      algorithm: how masks begin and change.
      bit_masks: masks are stored at one bit per weight.
      regrow: what happens to dropped weights: `NEVER`, `ZERO`, `HOLD` or `TRAIN`.
      ties: which of equal scores are kept.
      seed: seed of the PRNG keys that score functions get.
      swap_fractions: for each fire, the fraction of the kept units that it swaps; empty where fires
        do not swap.
      axis_name: a mapped axis over which every leaf is split, or None.
    """

    schedule: SparsitySchedule | ScheduleList | ChosenSchedule
    recipe: Recipe
    algorithm: Algorithm
    bit_masks: bool = False
    regrow: str = NEVER
    ties: str = "index"
    seed: int = 0
    swap_fractions: tuple[float, ...] = ()
    axis_name: Any = None

    def followed(self, progress: Progress | None) -> "Settings":
        """The settings with the one schedule that a state with this progress follows."""
        if not isinstance(self.schedule, ScheduleList):
            return self
        choices: Any = getattr(progress, "choices", None)
        return self._replace(schedule=self.schedule.at(choices.number))

    @property
    def lands(self) -> bool:
        """Whether updates set dropped weights to zero."""
        return self.regrow in (NEVER, ZERO)

    @property
    def is_exact(self) -> bool:
        """Whether masks are sparse from the start, and always drop exactly what is budgeted."""
        return bool(self.swap_fractions)
