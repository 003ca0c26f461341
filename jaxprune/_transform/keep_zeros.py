"""`keep_zeros`: fine-tuning of params that are sparse already."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax

from jaxprune._base.argument_types import Selection
from jaxprune._base.arguments import shown
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import check_arrays, listed
from jaxprune._base.sharding import placed_like
from jaxprune._recipe.budget import Budget, Recipe
from jaxprune._recipe.default_choice import (
    default_reasons,
    is_default_of_keep_zeros,
    may_keep_zeros,
)
from jaxprune._recipe.schedules import one_shot_schedule
from jaxprune._recipe.two_copies import fast_places
from jaxprune._state.masks import full_mask
from jaxprune._transform.algorithms import TIGHTEN
from jaxprune._transform.settings import Settings
from jaxprune._transform.update import transformation


def keep_zeros(
    inner: optax.GradientTransformation,
    *,
    include: Selection | None = None,
    exclude: Selection | None = (),
) -> optax.GradientTransformationExtraArgs:
    """Fine-tunes sparse params: weights that are zero when `init` is called stay zero.

    `init` derives the masks from the params that it is given, and they never change. All leaves of
    floating point or complex numbers are masked, biases and normalisation parameters too: a dropped
    channel whose bias learns is no longer zero. Logarithms such as `log_std` are not masked,
    because there a zero means the value one.

    A leaf that contains only zeros is not masked, because LoRA factors and zero-initialised heads
    start at zero and have to learn. A bias may start at zero, too, and if it learns, dropped
    channels come back. `include` replaces this default: `include=".*"` masks all leaves. For
    channels of `channel_groups`, write `include=tuple(groups)`.

    Args:
      inner: the optimizer to wrap.
      include: which leaves to mask; by default all that have a nonzero entry. A leaf that contains
        only zeros is masked if `include` matches it, and then can't learn.
      exclude: which leaves not to mask, such as biases of which only some entries start at zero.

    Returns:
      A transformation whose state is a `PruneState`. Its `update` needs `params`.

    Raises:
      TypeError, ValueError: for invalid arguments. `init` raises if no leaf is chosen. Where the
        values are known, it warns if there are no zeros to keep, and of leaves that are not
        masked because they contain only zeros, if `prune` would prune them by default.

    Example:
      >>> import jax.numpy as jnp, jaxprune, optax
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, -2.0]]), "bias": jnp.zeros(2)}
      >>> tx = keep_zeros(optax.sgd(0.5))
      >>> state = tx.init(params)
      >>> grads = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, state, params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[2.5, 0.0], [0.0, -2.5]]
    """
    if inner is None:
        raise TypeError(
            f"keep_zeros: inner must be the optimizer to wrap, got {shown(inner)}. Call "
            "keep_zeros(optax.adamw(1e-3))."
        )
    schedule = one_shot_schedule(0.0)
    recipe = Recipe.of(schedule.targets, may_keep_zeros if include is None else include, exclude)
    return transformation(Settings(schedule, recipe, KEEP), inner)


def masks_of_zeros(
    function: str, recipe: Recipe, budget: Budget, leaves: Sequence[Any], stacklevel: int = 3
) -> list[jax.Array]:
    """Bool masks of all leaves: False where a chosen leaf is zero.

    A chosen leaf that contains only zeros is kept whole, unless the user has given `include`. The
    warning names those of them that `prune` would prune by default: a bias often starts at zero.

    Args:
      function: the public function, for the warning.
      recipe: holds the rules of the user.
      budget: of the tree.
      leaves: of the tree.
      stacklevel: the frame that the warning points to; 3 is the caller of the caller.
    """
    masks = [full_mask(leaf, bool) for leaf in leaves]
    is_default = recipe.include is None or is_default_of_keep_zeros(recipe.include)
    free = []
    for i in budget.chosen:
        mask = is_nonzero(jnp.asarray(leaves[i]))
        if is_default:
            has_weights = jnp.any(mask)
            mask = mask | ~has_weights
            if mask.size and not isinstance(has_weights, jax.core.Tracer) and not has_weights:
                free.append(i)
        masks[i] = placed_like(mask, masks[i])
    if names := _pruned_by_default(budget, free):
        warnings.warn(
            f"jaxprune.{function}: {listed(names)}: only zeros, so not masked and free to learn. "
            "To keep these zeros, name the leaves with include; to hide this warning, exclude "
            "them.",
            stacklevel=stacklevel,
        )
    return masks


def _pruned_by_default(budget: Budget, indices: Sequence[int]) -> list[str]:
    """The paths of those leaves that `prune` would prune by default."""
    _, paths, specs, _ = budget.made_from
    reasons = default_reasons(paths, specs)
    return [paths[i] for i in indices if not reasons[i]]


def _first_masks(
    settings: Settings, budget: Budget, leaves: Sequence[Any], key: Any
) -> list[jax.Array]:
    """Masks of the zeros in the params."""
    del key
    check_arrays("keep_zeros: params", {budget.paths[i]: leaves[i] for i in budget.chosen})
    masks = masks_of_zeros("keep_zeros", settings.recipe, budget, leaves, stacklevel=5)
    if settings.recipe.has_two_copies:  # what one of them has is no zero of the model
        for i, place in zip(budget.chosen, fast_places(budget.leaves), strict=True):
            fast = budget.chosen[place]
            masks[i] = masks[fast] = masks[i] | masks[fast]
    no_zeros = [jnp.all(masks[i]) for i in budget.chosen]
    if no_zeros and not any(isinstance(x, jax.core.Tracer) for x in no_zeros) and all(no_zeros):
        names = [budget.paths[i] for i in budget.chosen]
        names = _pruned_by_default(budget, budget.chosen) or names
        warnings.warn(
            f"jaxprune.keep_zeros: {listed(names)}: no zeros to keep, so all weights train. Prune "
            "or load the params before tx.init.",
            stacklevel=4,
        )
    return [mask.astype(jnp.uint8) for mask in masks]


KEEP = TIGHTEN._replace(first_masks=_first_masks, changes=False, budgeted=False)
