"""Pruning without an optimizer: once, or from the zeros that are there already."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxprune._base.arguments import as_int, as_sparsity
from jaxprune._base.counting import as_counts
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import leaves_with_paths, listed, warn_unused
from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.distributions import Distribution, uniform
from jaxprune._recipe.scores import accumulates, magnitude, reads_grads
from jaxprune._recipe.structures import Unstructured
from jaxprune._state.masks import full_mask, keep
from jaxprune._topk.topk import check_ties
from jaxprune._transform.decide import Operand, tighten


def prune_params(
    params: chex.ArrayTree,
    sparsity: float,
    *,
    include: Any = None,
    exclude: Any = (),
    overrides: Any = None,
    distribution: Distribution = uniform,
    structure: Any = Unstructured(),
    score: Callable[..., jax.Array] = magnitude,
    grads: Any = None,
    ties: str = "index",
    seed: int | None = None,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Prunes once, without an optimizer; works under `jit`.

    Args:
      params: any tree.
      sparsity: fraction of zeros, in [0, 1).
      include: as in `prune`, and so are the arguments after it.
      exclude: leaves left alone.
      overrides: regex -> sparsity.
      distribution: who competes with whom.
      structure: what one decision covers.
      score: what a weight is worth.
      grads: gradients like the params, for scores that want them; `saliency` with the gradients of
        one batch at initialisation is SNIP.
      ties: which of equal scores are kept, `"index"` or `"hashed"`.
      seed: of the keys that scores are given.

    Returns:
      The params with +0.0 at every dropped weight, and bool masks (True = kept) at every leaf.

    Raises:
      TypeError, ValueError: as `prune`.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, -2.0]]), "bias": jnp.ones(2)}
      >>> params, masks = prune_params(params, 0.5)
      >>> params["kernel"].tolist(), masks["bias"].tolist()
      ([[3.0, 0.0], [0.0, -2.0]], [True, True])
    """
    if accumulates(score):
        raise ValueError(f"prune_params: {score} adds up over training steps; use prune.")
    targets = (as_sparsity(sparsity, "sparsity"),)
    recipe = Recipe.of(targets, include, exclude, overrides, distribution, structure, score)
    paths, leaves, treedef = leaves_with_paths(params)
    budget = recipe.budget(paths, leaves)
    warn_unused("prune_params", budget.unused, paths)
    masks = [full_mask(leaf, bool) for leaf in leaves]
    if not budget.chosen:
        return params, treedef.unflatten(masks)
    n_keep = as_counts(budget.n_keep()[-1])
    arrays = [jnp.asarray(leaves[i]) for i in budget.chosen]
    by_leaf = [None] * len(leaves) if grads is None else _grads_of(grads, paths)
    key = jax.random.key(0 if seed is None else as_int("seed", seed))
    operands = [
        Operand(p, by_leaf[i] if reads_grads(score) else None, jax.random.fold_in(key, i))
        for i, p in zip(budget.chosen, arrays, strict=True)
    ]
    kept, _ = tighten(
        operands,
        None,
        n_keep,
        budget.leaves,
        score=score,
        ties=check_ties(ties),
        normalized=distribution.normalized,
    )
    for i, p, m in zip(budget.chosen, arrays, kept, strict=True):
        leaves[i], masks[i] = keep(p, m), m
    return treedef.unflatten(leaves), treedef.unflatten(masks)


def masks_from_params(
    params: chex.ArrayTree, *, include: Any = None, exclude: Any = ()
) -> chex.ArrayTree:
    """Masks that drop what is zero already: the way back from sparse params without a prune state.

    Args:
      params: any tree.
      include: leaves to look at; by default those that `prune` takes.
      exclude: leaves to leave out. A leaf that is not chosen is kept whole, zeros and all.

    Returns:
      Bool masks, False where a chosen leaf is exactly zero. Put them into an optimizer state with
      `jaxprune.set_masks(opt_state, masks)`.

    Raises:
      TypeError, ValueError: as `prune`.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = masks_from_params({"kernel": jnp.array([[0.0, 1.0]]), "bias": jnp.zeros(2)})
      >>> masks["kernel"].tolist(), masks["bias"].tolist()
      ([[False, True]], [True, True])
    """
    paths, leaves, treedef = leaves_with_paths(params)
    recipe = Recipe.of((as_sparsity(0.0, "sparsity"),), include, exclude)
    masks = [full_mask(leaf, bool) for leaf in leaves]
    budget = recipe.budget(paths, leaves)
    warn_unused("masks_from_params", budget.unused, paths)
    for i in budget.chosen:
        masks[i] = is_nonzero(jnp.asarray(leaves[i]))
    return treedef.unflatten(masks)


def _grads_of(grads: Any, paths: list[str]) -> list[Any]:
    theirs, leaves, _ = leaves_with_paths(grads)
    if theirs != paths:
        raise ValueError(
            f"prune_params: grads must have the leaves of the params, {listed(paths)}, got "
            f"{listed(theirs)}."
        )
    return leaves
