"""What a schedule asks of every account at every step, and the progress of a state.

See `jaxprune._state.progress` for what an account is. The tables are host values. A step without a
fire compares one row of them, and the fields of the progress, with what it expects, and changes
neither.
"""

import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.caching import bounded_cache
from jaxprune._base.counting import counting, is_wide, sum_of_counts
from jaxprune._recipe.budget import Budget, Recipe
from jaxprune._recipe.leaf import Leaf
from jaxprune._recipe.schedule_list import ChosenSchedule, ScheduleList
from jaxprune._recipe.traits import text_of_units
from jaxprune._state.progress import Choices, Progress, count_dtype
from jaxprune._transform.settings import Settings


class Counts(NamedTuple):
    """The counts in a progress that a fire changes: `zeros` and `reached`."""

    zeros: Any
    reached: Any


class Accounts(NamedTuple):
    """What a transformation asks of the accounts of a tree; host values.

    Attributes:
      pool_of: int32[n_leaves], the account of each leaf; -1 for a leaf that is not pruned.
      unit_size: int32[n_leaves], as in `Progress`.
      asked: int64[n_fires + 1, n_leaves], how many units each account drops before the first fire,
        and from each fire on. The fires of several schedules follow each other.
      last_rows: the row of the last fire of each schedule in `asked`.
      largest: the largest number of weights in a leaf, and of units in an account.
      size: the number of weights that exist in pruned leaves, in all of their parts.
      targets: the sparsity of the pruned leaves when each schedule is done.
      absent: int64[n_leaves], how many weights of each leaf do not exist; None where all do.
      sizes: int64[n_leaves], how many weights each leaf has, those that are pruned in all parts.
    """

    pool_of: np.ndarray
    unit_size: np.ndarray
    asked: np.ndarray
    last_rows: tuple[int, ...]
    largest: tuple[int, int]
    size: int
    targets: tuple[float, ...]
    absent: np.ndarray | None
    sizes: np.ndarray


def accounts_of(settings: Settings, budget: Budget) -> Accounts:
    """The accounts of a tree with this budget."""
    return _accounts_of(settings.is_exact, budget)


@bounded_cache(maxsize=64)
def _accounts_of(is_exact: bool, budget: Budget) -> Accounts:
    """`accounts_of`; `is_exact` says that masks are sparse from the start."""
    recipe, paths, specs, n_parts = budget.made_from
    shapes: list[Any] = [getattr(specs[i], "shape", ()) for i in budget.chosen]
    pairs = list(zip(budget.leaves, shapes, strict=True))
    sizes = [leaf.n_weights(shape) * n_parts for leaf, shape in pairs]
    n_leaves, n_fires = len(paths), len(budget.pools.n_drop)
    n_weights = [math.prod(getattr(spec, "shape", ())) for spec in specs]
    chosen = set(budget.chosen)
    pool_of = np.full(n_leaves, -1, np.int32)
    unit_size = np.zeros(n_leaves, np.int32)
    asked = np.zeros((n_fires + 1, n_leaves), np.int64)
    n_units = [0]
    account_of: dict[tuple[int, ...], int] = {}  # by its pools
    units_of: dict[int, list[str]] = {}  # of each account
    for i, leaf, shape in zip(budget.chosen, budget.leaves, shapes, strict=True):
        account = account_of.setdefault(leaf.pools, i)
        pool_of[i] = account
        is_counted = _is_one_pool_of_weights(leaf, shape)
        if account == i:
            pools = list(leaf.pools)
            asked[1:, i] = budget.pools.n_drop[:, pools].sum(1)
            n_units.append(sum(budget.pools.n_units[pool] for pool in pools))
            unit_size[i] = is_counted
        elif not is_counted:
            unit_size[account] = 0
        units_of.setdefault(account, []).append(f"{text_of_units(leaf.structure)} {leaf.axes}")
    for account, units in units_of.items():
        if not unit_size[account]:
            unit_size[account] = -1 - zlib.crc32("; ".join(units).encode()) % (2**31 - 1)
    if is_exact:
        asked[0] = asked[1]
    largest = max(map(math.prod, shapes), default=0) * n_parts, max(n_units)
    in_units = [leaf.n_in_units(shape) * n_parts for leaf, shape in pairs]
    finals = [sum(budget.n_zero(in_units, row)) for row in recipe.last_rows]
    return Accounts(
        pool_of,
        unit_size,
        asked,
        tuple(row + 1 for row in recipe.last_rows),
        largest,
        sum(sizes),
        tuple(n / max(sum(sizes), 1) for n in finals),
        _absent(recipe, budget, n_leaves),
        np.array([n * (n_parts if i in chosen else 1) for i, n in enumerate(n_weights)], np.int64),
    )


def _absent(recipe: Recipe, budget: Budget, n_leaves: int) -> np.ndarray | None:
    """How many weights of each leaf do not exist; None without `structural`."""
    if not recipe.structural:
        return None
    absent = np.zeros(n_leaves, np.int64)
    absent[list(budget.chosen)] = [leaf.traits.n_absent for leaf in budget.leaves]
    return absent


def _is_one_pool_of_weights(leaf: Leaf, shape: tuple[int, ...]) -> bool:
    """Whether all weights of a leaf compete with each other, one by one."""
    return not leaf.axes and leaf.traits.is_elementwise and leaf.structure.n_groups(shape) == 1


def no_progress(settings: Settings) -> Progress:
    """The progress for a tree of no leaves."""
    none = np.zeros(0, np.int32)
    n_schedules = len(settings.recipe.last_rows)
    accounts = Accounts(
        none,
        none,
        np.zeros((1, 0), np.int64),
        (0,) * n_schedules,
        (0, 0),
        0,
        (0.0,) * n_schedules,
        none if settings.recipe.structural else None,
        none,
    )
    return progress_at(settings, accounts, -1, first_counts(accounts))


def first_counts(accounts: Accounts, zeros: Any = None) -> Counts:
    """The counts of a new state.

    Args:
      accounts: of the tree.
      zeros: int[n_leaves], how many entries of each first mask are zero, which are as many as the
        schedule asks for; None for masks that keep all weights that exist.
    """
    if zeros is None:
        return Counts(as_ints(np.zeros_like(accounts.pool_of), accounts.largest[0]), _row(accounts))
    if accounts.absent is not None:
        with counting(is_wide(zeros)):
            zeros = zeros - as_ints(accounts.absent, accounts.largest[0])
    return Counts(zeros, as_ints(accounts.asked[0], accounts.largest[1]))


def _row(accounts: Accounts) -> jax.Array:
    return as_ints(np.zeros_like(accounts.pool_of), accounts.largest[1])


def as_ints(values: np.ndarray, largest: int) -> jax.Array:
    """Counts as an array of the dtype that counts up to `largest` need."""
    dtype = count_dtype(largest)
    with counting(dtype == jnp.int64):
        return jnp.array(values, dtype)


def next_progress(
    settings: Settings, accounts: Accounts, step: Any, progress: Progress
) -> Progress:
    """The progress after update `step`, with the same counts."""
    counts = Counts(progress.zeros, progress.reached)
    new = progress_at(settings, accounts, step, counts)
    sizes = progress.sizes
    if sizes is not None:  # those of a leaf that is not pruned say what its old counts are of
        with counting(is_wide(sizes)):
            sizes = jnp.where(jnp.asarray(accounts.pool_of >= 0), new.sizes, sizes)
    return new._replace(choices=progress.choices, absent=progress.absent, sizes=sizes)


def progress_of_masks(settings: Settings, accounts: Accounts, zeros: jax.Array) -> Progress:
    """The progress of masks that never change: what they drop is what is due.

    Args:
      settings: what the transformation does; every weight is a unit.
      accounts: of the tree; each leaf is one.
      zeros: int[n_leaves], how many weights each mask drops.
    """
    schedule: Any = settings.schedule
    progress = progress_at(settings, accounts, schedule.end_step, Counts(zeros, zeros))
    n_zero = sum_of_counts(zeros, accounts.size).astype(jnp.float32)
    with counting(is_wide(zeros)):
        due, reached = jnp.copy(zeros), jnp.copy(zeros)  # a buffer can be donated only once
    size = float(max(accounts.size, 1))  # an integer might not fit into an int32
    return progress._replace(due=due, reached=reached, target=n_zero / size)


def progress_at(settings: Settings, accounts: Accounts, step: Any, counts: Counts) -> Progress:
    """The progress after update `step`; after `init` for step -1.

    That of a list of schedules follows the first of them.
    """
    choices = None
    if isinstance(settings.schedule, ScheduleList):
        schedules = jnp.asarray(settings.schedule.steps())
        choices = choices_of(accounts, jnp.zeros((), jnp.int32), schedules)
        settings = settings._replace(schedule=settings.schedule.at(0))
    schedule: Any = settings.schedule
    if isinstance(schedule, ChosenSchedule):
        left = schedule.fires_left(step)
        rows, targets = jnp.array(accounts.last_rows), jnp.array(accounts.targets, jnp.float32)
        table = as_ints(accounts.asked, accounts.largest[1])
        with counting(is_wide(table)):
            due = table[rows[schedule.number]]
        target = targets[schedule.number]
        steps = jnp.stack([schedule.begin_step, schedule.end_step, schedule.every])
    else:
        left = jnp.asarray(len(schedule.targets) - 1 - schedule.index(step), jnp.int32)
        due = as_ints(accounts.asked[-1], accounts.largest[1])
        target = jnp.asarray(accounts.targets[0], jnp.float32)
        steps = np.array([schedule.begin_step, schedule.end_step, schedule.every], np.int32)
    return Progress(
        pool_of=jnp.array(accounts.pool_of),
        zeros=counts.zeros,
        due=due,
        reached=counts.reached,
        unit_size=jnp.array(accounts.unit_size),
        schedule=jnp.asarray(steps),
        fires_left=jnp.asarray(left, jnp.int32),
        target=target,
        lands=jnp.asarray(int(settings.lands), jnp.int32),
        exact=jnp.asarray(int(settings.is_exact), jnp.int32),
        choices=choices,
        absent=None if accounts.absent is None else as_ints(accounts.absent, accounts.largest[0]),
        sizes=None if settings.axis_name is None else as_ints(accounts.sizes, accounts.largest[0]),
    )


def choices_of(accounts: Accounts, number: Any, schedules: Any) -> Choices:
    """What `choose_schedule` needs to know of each schedule.

    Args:
      accounts: of the tree.
      number: which schedule is followed.
      schedules: as in `Choices`.
    """
    return Choices(
        number=number,
        schedules=schedules,
        due=as_ints(accounts.asked[list(accounts.last_rows)], accounts.largest[1]),
        target=jnp.asarray(accounts.targets, jnp.float32),
    )
