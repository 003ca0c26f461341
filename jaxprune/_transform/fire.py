"""A fire: the step at which masks are decided anew, as a loop of at most one trip.

There are two kinds of fires. Those of `TIGHTEN` keep the best weights, as many as the schedule says
(gradual pruning). Those of `SWAP` drop the smallest kept weights and grow as many others (RigL,
SET). Which units win is decided in `decide.py`.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import as_counts, counting, is_wide, take
from jaxprune._base.sharding import everywhere, placed_like
from jaxprune._recipe.budget import Budget
from jaxprune._recipe.pools import round_half_up
from jaxprune._recipe.schedules import SparsitySchedule
from jaxprune._recipe.scores import accumulates, itself, needs_key, random_score
from jaxprune._state.bit_masks import bits_typed_like, from_bits, to_bits
from jaxprune._state.masks import count_violations, full_mask
from jaxprune._state.progress import zeros_of
from jaxprune._transform.accounts import Counts, accounts_of, counted, is_behind
from jaxprune._transform.decide import Operand, Rules, tighten
from jaxprune._transform.inner import Wrapped, reset_grown
from jaxprune._transform.settings import NEVER, Algorithm, Settings

_MANY_POOLS = 1024  # a table of fewer is small whatever it holds


class Inputs(NamedTuple):
    """What a fire reads and does not change; lists have one entry per pruned leaf.

    Attributes:
      scored: what the score function gets as `params`: the params, or the sums of a score that
        accumulates over steps.
      params: the params.
      grads: their gradients, or None.
      key: a PRNG key that the user chose, or None.
      step: updates applied so far.
      progress: of the state, if it follows one of several schedules; else None.
    """

    scored: list[jax.Array]
    params: list[jax.Array]
    grads: list[jax.Array] | None
    key: Any
    step: Any
    progress: Any = None


class Fired(NamedTuple):
    """What a fire changes.

    Attributes:
      masks: one per pruned leaf, as the state stores them.
      thresholds: float32, one per leaf of the whole tree.
      violations: int32 scalar.
      inner_state: state of the wrapped optimizer where the fire resets moments, else `()`.
      counts: `Counts`; None for a state without progress.
    """

    masks: list[jax.Array]
    thresholds: jax.Array
    violations: jax.Array
    inner_state: Any
    counts: Counts | None = None


class Carry(NamedTuple):
    """What the loop of a fire carries: what it changes, and whether a fire is still due."""

    fired: Fired
    due: jax.Array


# Compiled here so that an update outside `jit` does not compile its loop again; inside, XLA inlines
# it.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def fire(
    settings: Settings, budget: Budget, wrapped: Wrapped | None, inputs: Inputs, before: Fired
) -> Fired:
    """The masks and all that goes with them after this step; equal to `before` on a quiet step.

    The fire is a loop of at most one trip rather than a `cond`. The loop updates its carry in
    place, so that a quiet step copies nothing, and under `vmap` it still runs only when some member
    fires, where a `cond` becomes a select that runs the selection on every step.

    Args:
      settings: what the transformation does.
      budget: what that means for this tree.
      wrapped: the optimizer whose moments are reset, or None.
      inputs: what the fire reads.
      before: what the fire may change.
    """
    if not budget.chosen or not settings.algorithm.changes:
        return before
    settings = settings.followed(inputs.progress)
    trip = functools.partial(_trip, settings, budget, wrapped, inputs)
    carry = Carry(before, _is_due(settings, budget, inputs.step, before.counts))
    fired, _ = lax.while_loop(lambda carry: carry.due, trip, carry)
    thresholds, counts = jax.tree.map(
        lambda x: everywhere(x, inputs.params), (fired.thresholds, fired.counts)
    )
    return fired._replace(thresholds=thresholds, counts=counts)


def _is_due(settings: Settings, budget: Budget, step: Any, counts: Counts | None) -> Any:
    """Whether the masks change at this step: the schedule fires, or they are behind it."""
    schedule: Any = settings.schedule
    due = schedule.fires(step)
    if counts is None:
        return due
    return due | is_behind(settings, accounts_of(settings, budget), step, counts)


def _trip(
    settings: Settings, budget: Budget, wrapped: Wrapped | None, inputs: Inputs, carry: Carry
) -> Carry:
    """The one trip of the loop."""
    inputs, carry = _tied(inputs, carry)
    params, before = inputs.params, carry.fired
    old = before.masks
    if settings.bit_masks:
        old = [from_bits(m, p) for m, p in zip(before.masks, params, strict=True)]
    chosen = np.array(budget.chosen)
    masks, reached = settings.algorithm.decide(settings, budget, inputs, old, before.thresholds)
    counts = before.counts
    if counts is not None:
        counts = _counted(settings, budget, inputs.step, counts, masks)
    inner_state = before.inner_state
    if wrapped is not None:
        inner_state = reset_grown(wrapped, inner_state, budget, masks)
    if settings.bit_masks:
        masks = [bits_typed_like(to_bits(m), p) for m, p in zip(masks, params, strict=True)]
    masks = [m.astype(b.dtype) for m, b in zip(masks, before.masks, strict=True)]
    thresholds = before.thresholds.at[chosen].set(reached.astype(before.thresholds.dtype))
    violations = before.violations
    if settings.lands:
        violations = jnp.maximum(violations, _violations_now(settings, inputs, old, violations))
    if settings.axis_name is not None:  # equal in all parts; `pmax` makes their types say so
        equal = thresholds, violations, counts
        thresholds, violations, counts = lax.pmax(equal, settings.axis_name)
    fired = Fired(masks, thresholds, violations, inner_state, counts)
    return Carry(fired, jnp.zeros((), bool))


def _counted(
    settings: Settings, budget: Budget, step: Any, old: Counts, masks: Sequence[jax.Array]
) -> Counts:
    """The counts with new masks."""
    zeros = zeros_of(masks)
    if settings.axis_name is not None:
        with counting(is_wide(old.zeros)):
            zeros = lax.psum(zeros.astype(old.zeros.dtype), settings.axis_name)
    return counted(settings, accounts_of(settings, budget), step, old, budget.chosen, zeros)


def _tied(inputs: Inputs, carry: Carry) -> tuple[Inputs, Carry]:
    """The same values, in an order that XLA must keep: nothing is computed before the loop.

    Without this XLA computes whatever depends on the params alone before the loop, which under
    `vmap` means on every step.
    """
    arrays, carry = lax.optimization_barrier(((inputs.scored, inputs.params, inputs.grads), carry))
    scored, params, grads = arrays
    return inputs._replace(scored=scored, params=params, grads=grads), carry


def _violations_now(
    settings: Settings, inputs: Inputs, masks: Sequence[jax.Array], like: jax.Array
) -> jax.Array:
    """How many weights that the last masks dropped are not zero.

    Before the first update none has landed. Nor has one before a fire that catches up, if a user
    has just set the masks, so only the fires of the schedule count.
    """
    count = count_violations(inputs.params, masks).astype(like.dtype)
    schedule: Any = settings.schedule
    counts = (inputs.step > 0) & schedule.fires(inputs.step)
    count = jnp.where(counts, count, 0)
    return count if settings.axis_name is None else lax.psum(count, settings.axis_name)


def _operands(settings: Settings, score: Any, inputs: Inputs, chosen: Sequence[int]) -> list[Any]:
    """What the scores of each pruned leaf are computed from, with a key for each leaf and step."""
    keys: list[Any] = [None] * len(chosen)
    if needs_key(score):
        key = jax.random.key(settings.seed) if inputs.key is None else inputs.key
        key = jax.random.fold_in(key, inputs.step)
        keys = [jax.random.fold_in(key, i) for i in chosen]
    grads = [None] * len(chosen) if inputs.grads is None else inputs.grads
    return list(map(Operand, inputs.scored, grads, keys))


def _index(settings: Settings, step: Any) -> Any:
    """Which fire of the schedule this is: a row of the budget."""
    schedule: Any = settings.schedule
    return jnp.maximum(schedule.index(step), 0)


def _row(table: np.ndarray, index: Any) -> jax.Array:
    """One row of a table with a row for each fire and a column for each pool.

    Thousands of slices have few different columns, so that the program stores each of them once.
    """
    if table.shape[1] < _MANY_POOLS:
        return take(as_counts(table), index)
    first: dict[bytes, int] = {}
    columns = np.ascontiguousarray(table.T)
    column_of = np.array([first.setdefault(column.tobytes(), len(first)) for column in columns])
    different = np.unique(column_of, return_index=True)[1]
    return take(take(as_counts(table[:, different]), index), column_of)


# Gradual pruning


def _full_masks(
    settings: Settings, budget: Budget, leaves: Sequence[Any], key: Any
) -> list[jax.Array]:
    """Masks that keep everything."""
    del settings, budget, key
    return [full_mask(leaf, jnp.uint8) for leaf in leaves]


def _tighten(
    settings: Settings, budget: Budget, inputs: Inputs, masks: list[Any], thresholds: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Masks of the best weights: among those that are kept so far, unless weights may return."""
    recipe = settings.recipe
    score: Any = itself if accumulates(recipe.score) else recipe.score
    rules = Rules(score, settings.ties, recipe.distribution.normalized, settings.axis_name)
    index = _index(settings, inputs.step)
    operands = _operands(settings, score, inputs, budget.chosen)
    n_keep = _row(budget.n_keep(), index)
    allowed = masks if settings.regrow == NEVER else None
    start = thresholds[np.array(budget.chosen)]
    return tighten(operands, allowed, n_keep, budget.leaves, rules, start)


def _all_kept(masks: list[Any], schedule: SparsitySchedule, step: Any) -> list[Any]:
    """Every kept weight is trained."""
    del schedule, step
    return masks


TIGHTEN = Algorithm(_full_masks, _tighten, _all_kept, resets=False)


# Sparse training


def _random_masks(
    settings: Settings, budget: Budget, leaves: Sequence[Any], key: Any
) -> list[jax.Array]:
    """Random masks that keep as many units as budgeted."""
    masks = _full_masks(settings, budget, leaves, key)
    if not budget.chosen:
        return masks
    params = [jnp.asarray(leaves[i]) for i in budget.chosen]
    # The step is one that no fire has, so that the key is used for nothing else.
    inputs = Inputs(params, params, None, key, step=2**31 - 1)
    operands = _operands(settings, random_score, inputs, budget.chosen)
    n_keep = as_counts(budget.n_keep()[-1])
    random, _ = tighten(operands, None, n_keep, budget.leaves, Rules(random_score))
    for i, mask in zip(budget.chosen, random, strict=True):
        masks[i] = placed_like(mask.astype(jnp.uint8), masks[i])
    return masks


def _swap(
    settings: Settings, budget: Budget, inputs: Inputs, masks: list[Any], thresholds: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Masks in which the smallest kept weights have made room for the best others.

    The weights that grow have the best scores among all that are not kept, including those that
    were just dropped, as in RigL. The number of kept units does not change.

    Returns:
      uint8 masks: 0 dropped, 1 kept, 2 kept now and not before; and the threshold of each leaf.
    """
    del thresholds
    grow: Any = settings.recipe.score
    index = _index(settings, inputs.step)
    operands = _operands(settings, grow, inputs, budget.chosen)
    n_swap = _row(swap_counts(settings, budget), index)
    n_keep = _row(budget.n_keep(), index)
    with counting(is_wide(n_keep)):
        schedule: Any = settings.schedule
        n_swap = jnp.where(schedule.fires(inputs.step), n_swap, jnp.zeros_like(n_swap))
        n_stay = n_keep - n_swap
    stay, thresholds = tighten(operands, masks, n_stay, budget.leaves)
    dropped = [~mask for mask in stay]
    grown, _ = tighten(operands, dropped, n_swap, budget.leaves, Rules(grow))
    new = [
        jnp.where(g & (m == 0), jnp.uint8(2), (s | g).astype(jnp.uint8))
        for s, g, m in zip(stay, grown, masks, strict=True)
    ]
    return new, thresholds


def swap_counts(settings: Settings, budget: Budget) -> np.ndarray:
    """How many units each pool swaps at each fire: int64[n_fires, n_pools]."""
    n_keep = budget.n_keep()
    table = [
        [round_half_up(Fraction(fraction) * int(n)) for n in row]
        for fraction, row in zip(settings.swap_fractions, n_keep, strict=True)
    ]
    return np.array(table, np.int64).reshape(n_keep.shape)


def _all_but_grown(masks: list[Any], schedule: SparsitySchedule, step: Any) -> list[Any]:
    """Every kept weight is trained, except those that grew in this step: they start at zero."""
    fires = schedule.fires(step)
    return [(mask == 1) | ((mask == 2) & ~fires) for mask in masks]


SWAP = Algorithm(_random_masks, _swap, _all_but_grown, resets=True)
STATIC = SWAP._replace(resets=False, changes=False)
