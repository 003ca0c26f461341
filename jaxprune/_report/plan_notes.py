"""The notes below the table of a plan: what is not as a reader may expect."""

from typing import Any

from jaxprune._base.paths import listed
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._recipe.budget import Budget
from jaxprune._recipe.distributions import Distribution
from jaxprune._recipe.leaf_axes import is_table
from jaxprune._report.forecast import Forecast, Shared
from jaxprune._report.table import PoolReport
from jaxprune._transform.settings import Settings


def size_notes(budget: Budget, expected: Forecast) -> list[str]:
    """Which leaves have counts that depend on which of their units are dropped."""
    leaves = zip(budget.leaves, expected.n_zero, expected.is_exact, strict=True)
    paths = [leaf.path for leaf, n, is_exact in leaves if n is not None and not is_exact]
    if not paths:
        return []
    return [
        f"units: some units of {listed(paths)} have fewer weights than others, so the number of "
        "zeros depends on which of them are dropped; ~ marks an average"
    ]


def pool_note(distribution: Distribution, shared: Shared, pool: PoolReport) -> str:
    """What leaves of one pool lose together: weights, or units where these differ in size."""
    n_dropped, size, noun = pool.n_zero, pool.size, "weight"
    if not shared.is_exact:
        n_dropped, size, noun = shared.n_dropped, shared.n_units, "unit"
    note = (
        f"pool: {len(pool.paths)} leaves compete in {distribution}: {n_dropped:,} of their "
        f"{counted(size, noun)} {is_or_are(n_dropped)} dropped in total ({n_dropped / size:.2%}); "
        "the share of each leaf is not known in advance"
    )
    if shared.is_exact:
        return note
    return (
        f"{note}. As units differ in size, ~ marks the total for leaves that all lose the same part"
    )


def schedule_notes(settings: Settings) -> list[str]:
    """What a schedule with only two fires loses: its gradual rise, or its dense phases."""
    schedule: Any = settings.schedule
    targets = schedule.targets
    first, last = schedule.begin_step, schedule.end_step
    if settings.swap_fractions or len(targets) != 2 or not targets[1] or last - first < 2:
        return []
    if schedule.may_fall:
        lost, phases = "no phase is dense", 10
        wanted = "sparse and dense phases in turn"
    elif not targets[0]:
        lost, phases = f"all pruning happens in one step, {last}", 20
        wanted = "gradual pruning"
    else:
        return []
    return [
        f"schedule: every={schedule.every} is not shorter than the time from step {first} to step "
        f"{last}, so {lost}; for {wanted}, pass every={max((last - first) // phases, 1)}"
    ]


def floor_notes(distribution: Distribution, expected: Forecast) -> list[str]:
    """What a density floor changes, if it prevents the target."""
    if expected.reached == expected.asked:
        return []
    return [
        f"floor: {distribution} prevents the target: {float(expected.reached):.4g} of the units in "
        f"pruned leaves are dropped in the end, not {float(expected.asked):.4g} "
        f"({units_spared(expected)} fewer)"
    ]


def axis_notes(budget: Budget) -> list[str]:
    """Which structures have an axis that the roles of a leaf do not speak for."""
    paths_of: dict[tuple[Any, str], list[str]] = {}
    for leaf in budget.leaves:
        note_of = getattr(leaf.structure, "note_of", None)
        if note_of is None or leaf.roles is None or is_table(leaf.path):
            continue
        roles = tuple(role for axis, role in enumerate(leaf.roles) if axis not in leaf.axes)
        if note := note_of(roles):
            paths_of.setdefault((leaf.structure, note), []).append(leaf.path)
    return [
        f"axis: {structure!r} groups weights of {listed(paths)} {note}, not along inputs, which "
        "products sum over; without axis=, it follows the roles"
        for (structure, note), paths in paths_of.items()
    ]


def units_spared(expected: Forecast) -> str:
    """How many units a density floor keeps beyond what the schedule asks for, in words."""
    return counted(expected.n_spared, "unit")
