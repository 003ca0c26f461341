"""`plan`: what a transformation will do to a tree of params, from their shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Sequence
from typing import Any

import optax

from jaxprune._base.argument_types import Overrides, Regrow, Selection, Sparsity, Ties
from jaxprune._base.arguments import as_sparsity, shown
from jaxprune._base.paths import leaves_with_paths, listed, rule_name
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._base.trees import ArrayTree
from jaxprune._recipe.argument_types import Roles, ScoreFunction, Structural, Structures
from jaxprune._recipe.budget import Budget, Recipe
from jaxprune._recipe.distributions import Distribution, uniform
from jaxprune._recipe.leaf import Leaf
from jaxprune._recipe.leaf_axes import note_of_name
from jaxprune._recipe.schedule_list import ScheduleList, check_schedule
from jaxprune._recipe.schedules import SparsitySchedule
from jaxprune._recipe.scores import Accumulated, magnitude
from jaxprune._recipe.structures import Unstructured
from jaxprune._recipe.tree_errors import NO_LEAVES
from jaxprune._report.combined_plans import combined, plan_of_zeros, with_leaves
from jaxprune._report.forecast import Forecast, Shared, forecast
from jaxprune._report.plan_notes import (
    axis_notes,
    floor_notes,
    pool_note,
    schedule_notes,
    size_notes,
    units_spared,
)
from jaxprune._report.table import PoolReport, Report, leaf_report
from jaxprune._transform.algorithms import swap_counts
from jaxprune._transform.placement import (
    changed_later,
    instead_of,
    mixing_wrapper,
    state_shapes,
)
from jaxprune._transform.prune import prune
from jaxprune._transform.recorded import (
    is_transformation,
    is_without_optimizer,
    settings_of,
    transformations_in,
)
from jaxprune._transform.settings import Settings
from jaxprune._transform.update import checked_budget


def plan(
    params: ArrayTree,
    schedule: SparsitySchedule
    | Sequence[SparsitySchedule]
    | Sparsity
    | optax.GradientTransformation,
    *,
    inner: optax.GradientTransformation | None = None,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Overrides | None = None,
    distribution: Distribution = uniform,
    structure: Structures = Unstructured(),
    roles: Roles | None = None,
    structural: Structural | None = None,
    score: ScoreFunction | Accumulated = magnitude,
    packed: bool = False,
    regrow: Regrow = False,
    ties: Ties = "index",
    seed: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Report:
    """Shows what a transformation will prune, before training: exact counts for every leaf.

    It accepts the arguments of `prune`, or an optimizer with transformations of jaxprune inside: a
    chain, `optax.masked`, a transformation of `prune` that wraps another one, and so on.

    Args:
      params: a tree of arrays or of `jax.ShapeDtypeStruct`. Nothing is computed, except for
        `keep_zeros`, whose plan counts the zeros of arrays.
      schedule: as in `prune`, or a final sparsity, or an optimizer, or an object that has one as
        `.tx`, such as a TrainState. An optimizer has its own arguments, so pass no others with it.
        If it contains several transformations of jaxprune, the table shows what all of them prune.
        Of a list of schedules, the table shows the first, and the notes have the totals of the
        others.
      inner: checked, but changes no count. It and all arguments after it are those of `prune`.
      include: which leaves to prune.
      exclude: which leaves to leave out.
      overrides: maps regexes to final sparsities.
      distribution: how sparsity is spread over leaves.
      structure: what is kept or dropped together.
      roles: what each axis does in the products of the model; the table shows those it used.
      structural: which weights exist; the table counts these only.
      score: checked, but changes no count.
      packed: checked, but changes no count.
      regrow: checked, but changes no count.
      ties: checked, but changes no count.
      seed: checked, but changes no count.
      axis_name: checked, but changes no count: the counts are those of the leaves in `params`.

    Returns:
      A `Report` of the zeros after the last fire, which prints as a table. Its notes name the rules
      that have no effect, and the leaves whose dropped weights a later link of a chain moves. Where
      leaves compete in one pool, only the total of the pool is known: `n_zero` of these leaves is
      None, and `pools` has the totals. Where units differ in size, as at the edges of a leaf of
      blocks, a count is an average: `is_exact` is False, and it is printed as `~100`. If several
      transformations prune a leaf, a note says that the total is a lower bound.

    Raises:
      TypeError, ValueError: whatever `prune`, and `init` of what it returns, would raise; other
        arguments together with an optimizer; an optimizer that does not prune; `keep_zeros` with
        shapes in place of arrays.

    Example:
      >>> import jax.numpy as jnp, jaxprune, optax
      >>> ones = lambda *shape: jnp.ones(shape, jnp.float32)
      >>> params = {"fc": {"kernel": ones(80, 40), "bias": ones(40)}}
      >>> print(plan(params, 0.9))
      plan: 0.9 at step 0, 1 fire
      leaf       shape  dtype    weights  nonzero  sparsity  note
      fc/bias    40     float32       40       40     0.00%  1-D
      fc/kernel  80x40  float32    3,200      320    90.00%
      total                        3,240      360    88.89%
      >>> tx = jaxprune.rigl(0.75, end_step=1_000, inner=optax.adam(1e-3))
      >>> print(plan(params, tx).title)
      plan: 0.75 from the start, swaps at steps 100 to 900
    """
    arguments: dict[str, Any] = dict(inner=inner, include=include, exclude=exclude)
    arguments |= dict(overrides=overrides, distribution=distribution, structure=structure)
    arguments |= dict(roles=roles, score=score, packed=packed, regrow=regrow, ties=ties, seed=seed)
    arguments |= dict(axis_name=axis_name, structural=structural)
    if is_transformation(params) or isinstance(params, SparsitySchedule):
        raise TypeError(
            f"plan: params must be a tree of arrays, got {shown(params)}, and as schedule "
            f"{shown(schedule)}. Swap the arguments: plan(params, tx), or plan(params, schedule) "
            "with one such as jaxprune.cubic_schedule(0.9, begin_step=..., end_step=...)."
        )
    tx = getattr(schedule, "tx", schedule)
    if not is_transformation(tx):
        return _planned_by(params, prune(_as_schedule(tx), **arguments))
    _check_alone(arguments)
    report = _planned_by(params, tx)
    if tx is schedule or not is_without_optimizer(tx):
        return report
    return dataclasses.replace(report, notes=(_NO_OPTIMIZER, *report.notes))


_NO_OPTIMIZER = (
    "order: prune is the whole optimizer, and hands on the gradients, so that apply_updates adds "
    "them to the params: pass optax.chain(optimizer, prune(schedule)), or prune(schedule, "
    "inner=optimizer)"
)


def _as_schedule(schedule: Any) -> Any:
    """The schedules of a user, or one that prunes once to a given sparsity."""
    if isinstance(schedule, (SparsitySchedule, list)) or type(schedule) is tuple:
        return schedule
    if not isinstance(schedule, numbers.Real) or isinstance(schedule, bool):
        check_schedule(schedule, " or a final sparsity")
    return SparsitySchedule(0, 0, 1, (as_sparsity(schedule, "schedule"),))


def _check_alone(arguments: dict[str, Any]) -> None:
    """Raises where other arguments are given beside a transformation, which has its own."""
    parameters = inspect.signature(plan).parameters
    given = [name for name, x in arguments.items() if x is not parameters[name].default]
    if given:
        raise TypeError(
            f"plan: got a transformation and also {', '.join(given)}, but a transformation has its "
            "own arguments. Pass plan(params, tx) alone, or plan(params, schedule, ...) with the "
            "arguments of prune."
        )


def _planned_by(params: ArrayTree, tx: Any) -> Report:
    """The plan of an optimizer."""
    parts = transformations_in(tx, params)
    if not parts:
        raise TypeError(
            "plan: the optimizer contains no transformation of jaxprune, so it prunes nothing. "
            "Pass one that contains jaxprune.prune, such as "
            "optax.chain(optimizer, jaxprune.prune(schedule))."
        )
    paths, leaves, _ = leaves_with_paths(params)
    leaf_of = dict(zip(paths, leaves, strict=True))
    plans = [_planned(with_leaves(part.params, leaf_of), part.settings) for part in parts]
    is_whole = len(plans) == 1 and len(plans[0].leaves) == len(paths)
    report = plans[0] if is_whole else combined(params, plans)
    empty = () if paths else (f"empty: {NO_LEAVES}",)
    is_alone = len(parts) == 1 and settings_of(tx) is not None  # nothing follows it
    order = () if is_alone else _order_notes(tx, params)
    return dataclasses.replace(report, notes=(*empty, *order, *report.notes))


def _order_notes(tx: Any, params: ArrayTree) -> list[str]:
    """What may be wrong if a chain goes on after pruning, and changes the updates."""
    if wrapper := mixing_wrapper(state_shapes(tx, params)):
        fix = instead_of(wrapper).removesuffix(".")
        return [
            f"order: {wrapper} around prune mixes its updates with other weights, so that dropped "
            f"weights will not stay zero. {fix}"
        ]
    changed = changed_later(tx, params)
    if not changed:
        return []
    return [
        f"order: a later link of the chain changes the updates of {listed(changed)}, so that "
        "dropped weights may not stay zero; make jaxprune.prune the last link, or wrap the "
        "optimizer: prune(schedule, inner=optimizer)"
    ]


def _planned(params: ArrayTree, settings: Any) -> Report:
    """The plan of one transformation of jaxprune."""
    if not settings.algorithm.budgeted:
        return plan_of_zeros(params, settings)
    if not isinstance(settings.schedule, ScheduleList):
        return _planned_once(params, settings)
    schedules = zip(settings.schedule.schedules, settings.recipe.by_schedule(), strict=True)
    plans = [
        _planned_once(params, settings._replace(schedule=schedule, recipe=recipe))
        for schedule, recipe in schedules
    ]
    totals = [
        f"schedule {i}: {plan.title.removeprefix('plan: ')}: {'' if plan.is_exact else '~'}"
        f"{plan.n_zero:,} of {counted(plan.size, 'weight')} {is_or_are(plan.n_zero)} zero "
        f"({plan.sparsity:.2%})"
        for i, plan in enumerate(plans)
    ]
    first = plans[0]
    title = f"plan: schedule 0 of {len(plans)}: {first.title.removeprefix('plan: ')}"
    return dataclasses.replace(first, title=title, notes=(*first.notes, *totals[1:]))


def _planned_once(params: ArrayTree, settings: Settings) -> Report:
    """The plan of settings with a single schedule."""
    paths, leaves, _ = leaves_with_paths(params)
    budget = checked_budget(settings, params, paths, leaves)
    counts: list[int | None] = [0] * len(paths)
    notes = [choice.reason for choice in budget.choices]
    roles: list[tuple[str, ...] | None] = [None] * len(paths)
    expected = forecast(budget, [tuple(leaves[i].shape) for i in budget.chosen])
    absent, is_exact = [0] * len(paths), [True] * len(paths)
    for k, (i, leaf) in enumerate(zip(budget.chosen, budget.leaves, strict=True)):
        counts[i], is_exact[i] = expected.n_zero[k], expected.is_exact[k]
        absent[i] = leaf.traits.n_absent
        notes[i] = _note(settings.recipe, budget, i, leaf)
        roles[i] = leaf.roles
    pools = [_pool_report(shared, budget, leaves) for shared in expected.shared]
    distribution = settings.recipe.distribution
    return Report(
        f"plan: {_when(settings, budget, expected)}",
        tuple(map(leaf_report, paths, leaves, counts, notes, roles, absent, is_exact)),
        (
            *schedule_notes(settings),
            *floor_notes(distribution, expected),
            *axis_notes(budget),
            *size_notes(budget, expected),
            *map(functools.partial(pool_note, distribution), expected.shared, pools),
            *(f"unused: {line}" for line in budget.unused),
        ),
        tuple(pools),
    )


def _pool_report(shared: Shared, budget: Budget, leaves: Sequence[Any]) -> PoolReport:
    """The total of leaves whose shares are not known."""
    indices = [budget.chosen[k] for k in shared.members]
    paths = tuple(budget.paths[i] for i in indices)
    sizes = [budget.leaves[k].n_weights(leaves[budget.chosen[k]].shape) for k in shared.members]
    return PoolReport(paths, sum(sizes), shared.n_zero, shared.is_exact)


def _note(recipe: Recipe, budget: Budget, i: int, leaf: Leaf) -> str:
    """What decides the count of a pruned leaf, apart from the target; and what its name says."""
    notes = [note] if (note := note_of_name(budget.paths[i])) else []
    if leaf.traits.exists is not None:
        notes.append(repr(leaf.structure))
    overrides = dict.fromkeys(k for k in leaf.overrides if k is not None)
    if overrides:
        rules = ", ".join(rule_name(recipe.overrides[k][0]) for k in overrides)
        n = sum(k is not None for k in leaf.overrides)
        slices = f" ({n} of {len(leaf.overrides)} slices)" if n < len(leaf.overrides) else ""
        notes.append(f"override {rules}{slices}")
    elif not leaf.axes and budget.pools.pool_of.count(leaf.pools[0]) > 1:
        notes.append(f"in one pool ({recipe.distribution})")
    if leaf.traits.exists is None and not leaf.traits.is_elementwise:
        notes.append(repr(leaf.structure))
    return "; ".join(notes)


def _when(settings: Settings, budget: Budget, expected: Forecast) -> str:
    """The sparsity to reach, and the steps at which masks change."""
    schedule: Any = settings.schedule
    final = f"{float(schedule.final_sparsity):.4g}"
    if expected.reached != expected.asked:
        has_overrides = any(k is not None for leaf in budget.leaves for k in leaf.overrides)
        allowed = f"allows {float(expected.reached):.4g}"
        # With overrides, the sparsity of all leaves is not the one that was asked for.
        kept = f"keeps {units_spared(expected)} more"
        final += f" (the density floor {kept if has_overrides else allowed})"
    if not settings.swap_fractions:
        n_fires = len(schedule.targets)
        steps = _steps(schedule.begin_step, schedule.end_step)
        return f"{final} at {steps}, {counted(n_fires, 'fire')}"
    n_swaps = swap_counts(settings, budget).sum(1)
    steps = [step for step, n in zip(schedule.fire_steps, n_swaps, strict=True) if n]
    if not steps:
        return f"{final} from the start, the masks never change"
    swaps = "swap" if len(steps) == 1 else "swaps"
    return f"{final} from the start, {swaps} at {_steps(steps[0], steps[-1])}"


def _steps(first: int, last: int) -> str:
    return f"step {last}" if first == last else f"steps {first} to {last}"
