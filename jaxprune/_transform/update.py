"""One update of the transformation, from the updates that come in to those that go out.

`transformation` turns `Settings` into the `init` and `update` that optax calls. What happens at a
fire is in `fire.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax

from jaxprune._base.agreement import remember
from jaxprune._base.caching import jitted_unless_traced
from jaxprune._base.paths import leaves_with_paths, shape_of, spec_of
from jaxprune._base.sharding import typed_like
from jaxprune._recipe.budget import Budget
from jaxprune._recipe.errors import check_shuffled
from jaxprune._recipe.schedule_list import ScheduleList
from jaxprune._recipe.score_checks import check_without_grads
from jaxprune._recipe.scores import accumulates, reads_grads, required_grads
from jaxprune._state.bit_masks import (
    bits_typed_like,
    from_bits,
    full_bits,
    to_bits_like,
    widths_of,
)
from jaxprune._state.masks import keep, land
from jaxprune._state.progress import CAN_PASS_64_BITS, Progress, count_dtype, zeros_of
from jaxprune._state.prune_state import PruneState
from jaxprune._state.pruned_paths import record_pruned
from jaxprune._topk.problem import axis_length
from jaxprune._transform.accounts import (
    accounts_of,
    first_counts,
    no_progress,
    progress_at,
    progress_of_masks,
)
from jaxprune._transform.algorithms import Inputs
from jaxprune._transform.checks import (
    Tree,
    check_absent,
    check_choices,
    check_state,
    check_sums,
    check_updates,
    check_width,
    checked,
    parallel,
    visible,
)
from jaxprune._transform.fire import Fired, fire, without_gradients
from jaxprune._transform.inner import Wrapped, as_optimizer, first_state
from jaxprune._transform.parts import check_parts
from jaxprune._transform.placement import asks_inner, is_asked, returned_for
from jaxprune._transform.recorded import record
from jaxprune._transform.settings import TRAIN, Settings


class Transform(NamedTuple):
    """What `init` and `update` are bound to.

    Attributes:
      settings: what the transformation does.
      optimizer: the optimizer that it wraps, or None.
      key: PRNG key of random masks and scores; None for the seed in the settings.
    """

    settings: Settings
    optimizer: optax.GradientTransformationExtraArgs | None
    key: Any = None


def transformation(
    settings: Settings, inner: optax.GradientTransformation | None, key: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The transformation that does what the settings say, around an optimizer or without one.

    Args:
      settings: what it does.
      inner: the optimizer to wrap, or None.
      key: PRNG key of random masks and scores; None for the seed in the settings.
    """
    transform = Transform(settings, None if inner is None else as_optimizer(inner), key)
    of_two_copies = transform._replace(settings=_of_two_copies(settings))

    def transform_of(params: Any) -> Transform:
        return of_two_copies if isinstance(params, optax.LookaheadParams) else transform

    def init(params: optax.Params) -> PruneState:
        return _init(transform_of(params), params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PruneState]:
        return _update(transform_of(params), updates, state, params, extra_args)

    vars(init).update(settings=settings, optimizer=transform.optimizer)  # for `plan`
    return optax.GradientTransformationExtraArgs(init, update)


def _of_two_copies(settings: Settings) -> Settings:
    """The settings for a tree that holds two copies of the params, as lookahead has."""
    recipe = dataclasses.replace(settings.recipe, has_two_copies=True)
    return settings._replace(recipe=recipe)


def _init(transform: Transform, params: optax.Params) -> PruneState:
    """The state before the first update."""
    settings, optimizer, key = transform
    paths, leaves, treedef = leaves_with_paths(params)
    masks: list[Any] = []
    progress = no_progress(settings)
    record(settings, params)
    if leaves:  # optax.tree.map_params calls init with a tree of no leaves
        budget = checked_budget(settings, params, paths, leaves)
        masks = settings.algorithm.first_masks(settings, budget, leaves, key)
        progress = _first_progress(settings, paths, leaves, masks)
        record_pruned(transform, paths, budget.chosen)
    sums = None
    if accumulates(settings.recipe.score):
        sums = treedef.unflatten(map(_zeros, leaves))
    return PruneState(
        prune_step=jnp.zeros((), jnp.int32),
        masks=treedef.unflatten(_as_bits(settings, masks) if settings.bit_masks else masks),
        thresholds=jnp.zeros((len(leaves),), jnp.float32),
        violations=jnp.zeros((), jnp.int32),
        inner_state=optax.EmptyState() if optimizer is None else first_state(optimizer, params),
        widths=widths_of(leaves) if settings.bit_masks else None,
        score_state=sums,
        progress=progress,
    )


def _as_bits(settings: Settings, masks: Sequence[jax.Array]) -> list[jax.Array]:
    """The first masks as bit masks."""
    if not settings.recipe.structural:  # all ones, with the shardings of the masks
        return list(map(full_bits, masks))
    return [to_bits_like(mask, mask) for mask in masks]


def _first_progress(
    settings: Settings, paths: Sequence[str], leaves: Sequence[Any], masks: Sequence[Any]
) -> Progress | None:
    """The progress before the first update; None if it needs counts that this JAX can't pass on."""
    try:
        n_parts = _n_parts(settings)
    except ValueError:  # `init` gets whole leaves, outside the map over the axis
        n_parts = 1
    accounts = accounts_of(settings, settings.recipe.budget(paths, leaves, n_parts))
    if not CAN_PASS_64_BITS and jnp.int64 in map(count_dtype, accounts.largest):
        if isinstance(settings.schedule, ScheduleList):
            raise ValueError(
                "schedule: a list of schedules needs counts of 64 bits for this tree, got JAX "
                f"{jax.__version__}. Update to JAX 0.8 or newer, or pass one schedule."
            )
        return None
    if not settings.algorithm.budgeted:
        return progress_of_masks(settings, accounts, zeros_of(masks))
    zeros = zeros_of(masks) if settings.is_exact else None
    return progress_at(settings, accounts, -1, first_counts(accounts, zeros))


def checked_budget(
    settings: Settings, params: Any, paths: Sequence[str], leaves: Sequence[Any]
) -> Budget:
    """The budget of a tree of params, after all checks that `init` makes.

    Args:
      settings: what is pruned and how.
      params: the tree.
      paths: the path of each leaf.
      leaves: arrays, or their shapes and dtypes.

    Raises:
      TypeError, ValueError: a leaf that cannot be pruned as asked, no leaf to prune, or rules that
        match nothing.
    """
    if isinstance(params, optax.LookaheadParams):
        settings = _of_two_copies(settings)
    budget = settings.recipe.checked_budget(params, paths, leaves)
    check_width(budget.chosen, paths, leaves)
    if settings.ties == "hashed":
        check_shuffled(paths, budget)
    return budget


def _update(
    transform: Transform, updates: optax.Updates, state: Any, params: Any, extra_args: Any
) -> tuple[optax.Updates, PruneState]:
    """The updates to apply, and the next state."""
    settings, optimizer, _ = transform
    tree = checked(params, state)
    remember(tree.paths, settings)
    masks = parallel(tree, state.masks, "masks in the state")
    u_leaves = parallel(tree, updates, "updates", holes=True)
    check_state(tree, masks, state, settings)
    check_choices(settings.schedule, state.progress)
    check_absent(settings.recipe, state.progress)
    check_sums(settings.recipe.score, state.score_state)
    budget = settings.recipe.budget(tree.paths, tree.leaves, _n_parts(settings))
    record_pruned(transform, tree.paths, budget.chosen)
    check_width(budget.chosen, tree.paths, tree.leaves)
    check_updates(budget.chosen, tree, u_leaves, "update")
    if is_asked():  # by `plan`: what becomes of updates that set weights to zero, nothing else
        if optimizer is not None and asks_inner(state.inner_state):
            updates, _ = optimizer.update(updates, state.inner_state, params, **extra_args)
            u_leaves = parallel(tree, updates, "updates of `inner`", holes=True)
        pruned = budget.chosen if settings.lands else ()
        return tree.treedef.unflatten(returned_for(settings, tree.paths, u_leaves, pruned)), state
    grads = _grads(transform, tree, budget, u_leaves, extra_args.get("grads"))
    pruned_paths = [tree.paths[i] for i in budget.chosen]
    check_parts(settings, pruned_paths, _chosen(tree.leaves, budget), grads)
    inputs, score_state = _inputs(transform, tree, budget, state, grads)
    fired, inner_state = _fire_if_due(transform, tree, budget, state, masks, inputs)
    # Only the new masks are read from here on, so that XLA updates them in place: a use of the old
    # ones after the fire would cost a copy of each on every step.
    trained = _trained(settings, inputs, fired.masks)
    if optimizer is not None:
        masked = _masked_grads(settings, _chosen(u_leaves, budget), trained)
        updates, inner_state = optimizer.update(
            tree.treedef.unflatten(_replaced(u_leaves, budget, masked)),
            inner_state,
            params,
            **extra_args,
        )
        u_leaves = parallel(tree, updates, "updates of `inner`", holes=True)
        check_updates(budget.chosen, tree, u_leaves, "update of `inner`")
    emitted = _emitted(settings, inputs.params, _chosen(u_leaves, budget), trained)
    return tree.treedef.unflatten(_replaced(u_leaves, budget, emitted)), PruneState(
        prune_step=jnp.asarray(optax.safe_increment(state.prune_step)),
        masks=tree.treedef.unflatten(_replaced(masks, budget, fired.masks)),
        thresholds=fired.thresholds,
        violations=fired.violations,
        inner_state=inner_state,
        widths=state.widths,
        score_state=score_state,
        progress=fired.progress,
    )


def _n_parts(settings: Settings) -> int:
    """How many parts every leaf is split into."""
    return axis_length(settings.axis_name)


def _chosen(leaves: Sequence[Any], budget: Budget) -> list[jax.Array]:
    """The leaves that are pruned, as arrays."""
    return [jnp.asarray(leaves[i]) for i in budget.chosen]


def _replaced(leaves: Sequence[Any], budget: Budget, new: Sequence[Any]) -> list[Any]:
    """All leaves, with new ones in the place of those that are pruned."""
    leaves = list(leaves)
    for i, leaf in zip(budget.chosen, new, strict=True):
        leaves[i] = leaf
    return leaves


def _grads(
    transform: Transform, tree: Tree, budget: Budget, updates: list[Any], given: Any
) -> list[jax.Array] | None:
    """Gradients for the score: the argument `grads`, else the incoming updates of an optimizer."""
    if not reads_grads(transform.settings.recipe.score):
        return None
    if given is not None:
        leaves = visible(tree, given, "grads")
        check_updates(budget.chosen, tree, leaves, "gradient in `grads`")
        return _chosen(leaves, budget)
    return None if transform.optimizer is None else _chosen(updates, budget)


def _inputs(
    transform: Transform,
    tree: Tree,
    budget: Budget,
    state: PruneState,
    grads: list[jax.Array] | None,
) -> tuple[Inputs, Any]:
    """What a fire reads, and the next `score_state`."""
    score, params = transform.settings.recipe.score, _chosen(tree.leaves, budget)
    follows = state.progress if isinstance(transform.settings.schedule, ScheduleList) else None
    inputs = Inputs(params, None, grads, transform.key, state.prune_step, follows)
    if not accumulates(score):
        if grads is None and reads_grads(score):
            check_without_grads(budget.leaves, params, score)
        return inputs, state.score_state
    sums = parallel(tree, state.score_state, "score_state in the state")
    summed = _summed(score, _chosen(sums, budget), params, grads)
    return inputs._replace(sums=summed), tree.treedef.unflatten(_replaced(sums, budget, summed))


def _summed(
    score: Any, sums: Sequence[jax.Array], params: Sequence[Any], grads: Any
) -> list[jax.Array]:
    """The accumulated scores after this step.

    Increments that are not finite add nothing. A sum would stay NaN for the rest of the run, also
    where `inner` skips the gradients that made it so.
    """
    new = []
    for s, p, g in zip(sums, params, required_grads(score, grads), strict=True):
        increment = score.increment(p, g).astype(jnp.float32)
        new.append(jnp.where(jnp.isfinite(increment), s + increment, s))
    return new


def _fire_if_due(
    transform: Transform,
    tree: Tree,
    budget: Budget,
    state: PruneState,
    masks: list[Any],
    inputs: Inputs,
) -> tuple[Fired, Any]:
    """What a fire changes, and the optimizer's state, after a fire if this step has one."""
    settings, optimizer, _ = transform
    typed = bits_typed_like if settings.bit_masks else typed_like
    stored = list(map(typed, _chosen(masks, budget), inputs.params))
    inputs, thresholds = without_gradients(inputs, state.thresholds)
    before = Fired(stored, thresholds, state.violations, (), state.progress)
    if optimizer is None or not settings.algorithm.resets:
        decide = jitted_unless_traced(fire, settings.recipe)
        return decide(settings, budget, None, inputs, before), state.inner_state
    wrapped = Wrapped(optimizer, tree.treedef)
    before = before._replace(inner_state=state.inner_state)
    # `optax.inject_hyperparams` makes an optimizer of traced values in every trace.
    decide = jitted_unless_traced(fire, settings.recipe, inputs)
    fired = decide(settings, budget, wrapped, inputs, before)
    return fired, fired.inner_state


def _trained(settings: Settings, inputs: Inputs, masks: Sequence[Any]) -> list[jax.Array]:
    """Which weights get an update in this step, one array of flags per pruned leaf."""
    if settings.bit_masks:
        masks = list(map(from_bits, masks, inputs.params))
    return settings.algorithm.trained(masks, settings.schedule, inputs.step)


def _masked_grads(
    settings: Settings, grads: Sequence[jax.Array], trained: Sequence[jax.Array]
) -> Sequence[jax.Array]:
    """The gradients for the wrapped optimizer: zero at dropped weights, unless they train."""
    return grads if settings.regrow == TRAIN else list(map(keep, grads, trained))


def _emitted(
    settings: Settings,
    params: Sequence[jax.Array],
    updates: Sequence[jax.Array],
    trained: Sequence[jax.Array],
) -> Sequence[jax.Array]:
    """The updates to apply: what they do to a dropped weight depends on `regrow`."""
    if settings.lands:
        return list(map(land, params, updates, trained))
    return updates if settings.regrow == TRAIN else list(map(keep, updates, trained))


def _zeros(leaf: Any) -> jax.Array:
    """A float32 zero for each entry, on the devices of the leaf."""
    is_number = spec_of(leaf) is not None and jnp.issubdtype(leaf.dtype, jnp.number)
    return jnp.zeros_like(leaf, jnp.float32) if is_number else jnp.zeros(shape_of(leaf))
