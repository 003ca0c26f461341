"""A fire: the step at which masks are decided anew.

It is a loop of at most one trip rather than a `cond`. The loop updates its carry in place, so that
a quiet step copies nothing, and under `vmap` it still runs only when some member fires, where a
`cond` becomes a select that runs the selection on every step. The progress changes on no other
step, unless the state comes from elsewhere: it is updated by a loop around that of the masks. All
that a quiet step computes is whether this outer loop makes its trip.

What it decides is in `algorithms.py`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.counting import counting, is_wide
from jaxprune._base.places import placed
from jaxprune._base.sharding import everywhere, on_gpu, on_one_device
from jaxprune._recipe.budget import Budget
from jaxprune._state.bit_masks import from_bits, to_bits_like
from jaxprune._state.masks import count_violations
from jaxprune._state.progress import LANDS, Progress, zeros_of
from jaxprune._topk.bit_flags import BitFlags
from jaxprune._transform.accounts import accounts_of, next_progress
from jaxprune._transform.algorithms import Inputs
from jaxprune._transform.due import (
    counted,
    dropped_by_stale_masks,
    has_work,
    in_dtypes,
    is_behind,
    with_known_counts,
    with_own_choices,
)
from jaxprune._transform.inner import Wrapped, reset_grown
from jaxprune._transform.settings import Settings


class Fired(NamedTuple):
    """What a fire changes.

    Attributes:
      masks: one per pruned leaf, as the state stores them.
      thresholds: float32, one per leaf of the whole tree.
      violations: int32 scalar.
      inner_state: state of the wrapped optimizer where the fire resets moments, else `()`.
      progress: `Progress`; None for a state that has none.
    """

    masks: list[jax.Array]
    thresholds: jax.Array
    violations: jax.Array
    inner_state: Any
    progress: Any = None


class Carry(NamedTuple):
    """What the loop of a fire carries: what it changes, and whether its trip is still due."""

    fired: Fired
    due: jax.Array


def without_gradients(inputs: Inputs, thresholds: jax.Array) -> tuple[Inputs, jax.Array]:
    """What the loop of a fire reads, cut off from the gradient of the params.

    Masks have no gradient, and JAX can't differentiate a loop in reverse, such as one under
    `jax.checkpoint`. Moments that a fire resets have a gradient; they are not cut off.
    """
    arrays = lax.stop_gradient(_arrays_of(inputs))
    return _with_arrays(inputs, arrays), lax.stop_gradient(thresholds)


# Compiled here so that an update outside `jit` does not compile its loop again; inside, XLA inlines
# it.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def fire(
    settings: Settings, budget: Budget, wrapped: Wrapped | None, inputs: Inputs, before: Fired
) -> Fired:
    """The masks and all that goes with them after this step; equal to `before` on a quiet step.

    Args:
      settings: what the transformation does.
      budget: what that means for this tree.
      wrapped: the optimizer whose moments are reset, or None.
      inputs: what the fire reads.
      before: what the fire may change.
    """
    settings = settings.followed(inputs.progress)
    with_new_masks = functools.partial(_with_new_masks, settings, budget, wrapped, inputs)
    if before.progress is None or not settings.algorithm.budgeted:
        return with_new_masks(before)
    accounts, step = accounts_of(settings, budget), inputs.step

    def trip(carry: Carry) -> Carry:
        old = carry.fired
        if settings.lands and settings.algorithm.changes:
            stale = dropped_by_stale_masks(accounts, old.progress).astype(old.violations.dtype)
            old = old._replace(violations=jnp.maximum(old.violations, stale))
        known = with_known_counts(settings, accounts, old.progress)
        fired = with_new_masks(old._replace(progress=known))
        progress = next_progress(settings, accounts, step, fired.progress)
        return Carry(_everywhere(fired._replace(progress=progress), inputs), jnp.zeros((), bool))

    choices = with_own_choices(settings, accounts, before.progress.choices)  # no fire changes them
    progress = in_dtypes(accounts, before.progress._replace(choices=None))
    before = _everywhere(before._replace(progress=progress), inputs)
    carry = Carry(before, has_work(settings, accounts, step, before.progress))
    fired, _ = lax.while_loop(lambda carry: carry.due, trip, carry)
    return fired._replace(progress=fired.progress._replace(choices=choices))


def _everywhere(fired: Fired, inputs: Inputs) -> Fired:
    """The same, its small arrays with a copy on every device in their types."""
    thresholds, progress = jax.tree.map(
        lambda x: everywhere(x, inputs.params), (fired.thresholds, fired.progress)
    )
    return fired._replace(thresholds=thresholds, progress=progress)


def _with_new_masks(
    settings: Settings, budget: Budget, wrapped: Wrapped | None, inputs: Inputs, before: Fired
) -> Fired:
    """What is after this step, but for what the progress says of the schedule."""
    if not budget.chosen or not settings.algorithm.changes:
        return before
    trip = functools.partial(_trip, settings, budget, wrapped, inputs)
    carry = Carry(before, _is_due(settings, budget, inputs.step, before.progress))
    fired, _ = lax.while_loop(lambda carry: carry.due, trip, carry)
    return _everywhere(fired, inputs)


def _is_due(settings: Settings, budget: Budget, step: Any, progress: Progress | None) -> Any:
    """Whether the masks change at this step: the schedule fires, or they are behind it."""
    schedule: Any = settings.schedule
    due = schedule.fires(step)
    if progress is None:
        return due
    return due | is_behind(settings, accounts_of(settings, budget), step, progress)


def _trip(
    settings: Settings, budget: Budget, wrapped: Wrapped | None, inputs: Inputs, carry: Carry
) -> Carry:
    """The one trip of the loop."""
    inputs, carry = _tied(inputs, carry)
    params, before = inputs.params, carry.fired
    old: list[Any] = before.masks
    violations = before.violations
    if settings.lands:
        flags = list(map(from_bits, old, params)) if settings.bit_masks else old
        violations = jnp.maximum(violations, _violations_now(settings, inputs, flags, before))
        if on_gpu(params) and not on_one_device(params):
            inputs, old, violations = _after(inputs, old, violations)
    if settings.bit_masks:
        old = [BitFlags(bits, from_bits, to_bits_like) for bits in old]
    masks, reached = settings.algorithm.decide(settings, budget, inputs, old, before.thresholds)
    inner_state = before.inner_state
    if wrapped is not None:
        inner_state = reset_grown(wrapped, inner_state, budget, masks)
    kept = masks
    if settings.bit_masks:
        masks = [
            m.bits if isinstance(m, BitFlags) else to_bits_like(m, p)
            for m, p in zip(masks, params, strict=True)
        ]
    masks = [m.astype(b.dtype) for m, b in zip(masks, before.masks, strict=True)]
    # XLA for GPUs stores masks twice, unless they are counted after a barrier.
    if settings.bit_masks and on_gpu(params):
        masks = lax.optimization_barrier(masks)
        kept = list(map(from_bits, masks, params))
    elif not settings.bit_masks:
        masks = kept = lax.optimization_barrier(masks)
    progress = before.progress
    if progress is not None:
        progress = _counted(settings, budget, inputs.step, progress, kept)
    reached = reached.astype(before.thresholds.dtype)
    thresholds = placed(before.thresholds, budget.chosen, reached)
    if settings.axis_name is not None:  # equal in all parts; `pmax` makes their types say so
        equal = thresholds, violations, progress
        thresholds, violations, progress = lax.pmax(equal, settings.axis_name)
    fired = Fired(masks, thresholds, violations, inner_state, progress)
    return Carry(fired, jnp.zeros((), bool))


def _counted(
    settings: Settings, budget: Budget, step: Any, old: Progress, masks: Sequence[jax.Array]
) -> Progress:
    """The progress with the counts of new masks."""
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
    arrays, carry = lax.optimization_barrier((_arrays_of(inputs), carry))
    return _with_arrays(inputs, arrays), carry


def _after(
    inputs: Inputs, masks: list[jax.Array], violations: jax.Array
) -> tuple[Inputs, list[jax.Array], jax.Array]:
    """The same values; XLA computes nothing else of the inputs before the violations.

    Otherwise XLA for many GPUs may count them last, and keeps the old masks until then.
    """
    arrays, masks, violations = lax.optimization_barrier((_arrays_of(inputs), masks, violations))
    return _with_arrays(inputs, arrays), masks, violations


def _arrays_of(inputs: Inputs) -> tuple[Any, ...]:
    return inputs.params, inputs.sums, inputs.grads


def _with_arrays(inputs: Inputs, arrays: tuple[Any, ...]) -> Inputs:
    params, sums, grads = arrays
    return inputs._replace(params=params, sums=sums, grads=grads)


def _violations_now(
    settings: Settings, inputs: Inputs, masks: Sequence[jax.Array], before: Fired
) -> jax.Array:
    """How many weights that the last masks dropped are not zero.

    Before the first update none has landed. Nor has one before a fire that catches up, or if a user
    has just set the masks.
    """
    count = count_violations(inputs.params, masks).astype(before.violations.dtype)
    schedule: Any = settings.schedule
    counts = (inputs.step > 0) & schedule.fires(inputs.step)
    if before.progress is not None:
        counts &= before.progress.lands == LANDS
    count = jnp.where(counts, count, 0)
    return count if settings.axis_name is None else lax.psum(count, settings.axis_name)
