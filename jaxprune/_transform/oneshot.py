"""Pruning once, without an optimizer, and masks from params that are sparse already."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, overload

import jax
import jax.core
import jax.numpy as jnp

from jaxprune._base.argument_types import Overrides, Selection, Sparsity, Ties
from jaxprune._base.arguments import as_seed, as_sparsity, shown
from jaxprune._base.counting import as_counts
from jaxprune._base.paths import (
    check_not_donated,
    leaves_with_paths,
    listed,
    rule_for,
    shown_path,
    spec_of,
)
from jaxprune._base.sharding import in_default_memory
from jaxprune._base.trees import ArrayTree, Params
from jaxprune._recipe.argument_types import Roles, ScoreFunction, Structural, Structures
from jaxprune._recipe.budget import Budget, Recipe
from jaxprune._recipe.distributions import Distribution, uniform
from jaxprune._recipe.score_checks import check_without_grads
from jaxprune._recipe.scores import accumulates, magnitude, reads_grads
from jaxprune._recipe.structures import Unstructured
from jaxprune._state.masks import full_mask, keep
from jaxprune._topk.topk import check_ties
from jaxprune._transform.checks import Tree, check_updates
from jaxprune._transform.decide import tighten
from jaxprune._transform.existing import among_existing
from jaxprune._transform.keep_zeros import masks_of_zeros
from jaxprune._transform.operand import Operand, Rules


@overload
def prune_params(
    params: Params,
    sparsity: Sparsity,
    *,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Overrides | None = None,
    distribution: Distribution = uniform,
    structure: Structures = Unstructured(),
    roles: Roles | None = None,
    structural: Structural | None = None,
    score: ScoreFunction = magnitude,
    grads: Any = None,
    ties: Ties = "index",
    seed: int | None = None,
) -> tuple[Params, Params]: ...


@overload
def prune_params(
    params: ArrayTree,
    sparsity: Sparsity,
    *,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Overrides | None = None,
    distribution: Distribution = uniform,
    structure: Structures = Unstructured(),
    roles: Roles | None = None,
    structural: Structural | None = None,
    score: ScoreFunction = magnitude,
    grads: Any = None,
    ties: Ties = "index",
    seed: int | None = None,
) -> tuple[ArrayTree, ArrayTree]: ...


def prune_params(
    params: ArrayTree,
    sparsity: Sparsity,
    *,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Overrides | None = None,
    distribution: Distribution = uniform,
    structure: Structures = Unstructured(),
    roles: Roles | None = None,
    structural: Structural | None = None,
    score: ScoreFunction = magnitude,
    grads: Any = None,
    ties: Ties = "index",
    seed: int | None = None,
) -> tuple[ArrayTree, ArrayTree]:
    """Prunes once, without an optimizer; works under `jit`.

    With several processes, call it in all of them: it waits for the others. Only print under
    `if jax.process_index() == 0`.

    Args:
      params: any tree.
      sparsity: fraction of zeros, in [0, 1).
      include: which leaves to prune. This and the next seven arguments are those of `prune`.
      exclude: which leaves to leave out.
      overrides: maps regexes to sparsities.
      distribution: how sparsity is spread over leaves.
      structure: what is kept or dropped together.
      roles: what each axis does in the products of the model.
      structural: which weights exist; the masks drop all others.
      score: how important each weight is.
      grads: gradients with the structure of the params, for scores that need them. `saliency` with
        the gradients of one batch at initialisation, and `distribution=global_pool`, is SNIP.
      ties: which of equal scores are kept, `"index"` or `"hashed"`; see `prune`.
      seed: seed of the PRNG keys for `score`; 0 by default.

    Returns:
      The params with +0.0 at every dropped weight, and bool masks (True = kept) for all leaves.

    Raises:
      TypeError, ValueError: as in `prune`.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, -2.0]]), "bias": jnp.ones(2)}
      >>> params, masks = prune_params(params, 0.5)
      >>> params["kernel"].tolist(), masks["bias"].tolist()
      ([[3.0, 0.0], [0.0, -2.0]], [True, True])
    """
    check_once("prune_params(params, sparsity, ", score, grads)
    targets = (as_sparsity(sparsity, "sparsity"),)
    recipe = Recipe.of(
        targets,
        include,
        exclude,
        overrides,
        distribution,
        structure,
        score,
        roles,
        structural=structural,
    )
    rules = Rules(score, check_ties(ties), distribution.normalized)
    key = jax.random.key(0 if seed is None else as_seed("seed", seed))
    paths, leaves, treedef = leaves_with_paths(params)
    _check_values("prune_params", params, paths, leaves)
    budget = recipe.checked_budget(params, paths, leaves)
    masks = [full_mask(leaf, bool) for leaf in leaves]
    if not budget.chosen:
        return params, treedef.unflatten(masks)
    operands = _operands(Tree(paths, leaves, treedef), budget, score, grads, key)
    allowed = among_existing(budget.leaves, [operand.param for operand in operands], None)
    kept, _ = tighten(operands, allowed, as_counts(budget.n_keep()[-1]), budget.leaves, rules)
    _warn_emptied(paths, budget, distribution, kept)
    for i, operand, mask in zip(budget.chosen, operands, kept, strict=True):
        leaves[i], masks[i] = keep(operand.param, mask), mask
    return treedef.unflatten(leaves), treedef.unflatten(masks)


def check_once(call: str, score: Any, grads: Any) -> None:
    """Raises for a score that cannot be computed once, or that lacks its gradients.

    Args:
      call: the call of the public function, up to its keyword arguments.
      score: the score.
      grads: the gradients, or None.
    """
    function = call.partition("(")[0]
    if grads is None and getattr(score, "reads_grads", False) is True:
        raise ValueError(
            f"{function}: score={getattr(score, '__name__', shown(score))} needs gradients, got "
            f"grads=None. Pass them: {call}score=score, grads=jax.grad(loss)(params))."
        )
    if accumulates(score):
        raise ValueError(
            f"{function}: score {score} adds up over training steps, but there are none here. "
            "Use jaxprune.prune, or another score."
        )


def _operands(tree: Tree, budget: Budget, score: Any, grads: Any, key: jax.Array) -> list[Operand]:
    """What the scores of the pruned leaves are computed from, with a key for each leaf."""
    by_leaf: list[Any] = [None] * len(tree.leaves)
    if grads is not None:
        by_leaf = _grads_of(grads, tree)
        check_updates(budget.chosen, tree, by_leaf, "gradient in `grads`")
    elif reads_grads(score):
        check_without_grads(budget.leaves, [tree.leaves[i] for i in budget.chosen], score)
    return [
        Operand(
            jnp.asarray(in_default_memory(tree.leaves[i])),
            by_leaf[i] if reads_grads(score) else None,
            jax.random.fold_in(key, i),
        )
        for i in budget.chosen
    ]


def _warn_emptied(
    paths: list[str], budget: Budget, distribution: Distribution, masks: list[jax.Array]
) -> None:
    """Warns of leaves that lose all of their weights because they compete with other leaves."""
    competing = [
        (paths[i], ~jnp.any(mask))
        for i, leaf, mask in zip(budget.chosen, budget.leaves, masks, strict=True)
        if budget.pools.pool_of.count(leaf.pools[0]) > 1 and not leaf.axes and mask.size
    ]
    is_known = not any(isinstance(is_empty, jax.core.Tracer) for _, is_empty in competing)
    emptied = [path for path, is_empty in competing if is_known and is_empty]
    if emptied:
        warnings.warn(
            f"jaxprune.prune_params: {listed(emptied)}: all weights are dropped, because in "
            f"{distribution} the weights of all leaves compete. Keep some in every leaf with "
            "distribution=jaxprune.min_density(0.05, jaxprune.global_pool) (or another "
            "distribution in place of global_pool), or leave leaves out with "
            f"exclude={rule_for(emptied[0])!r}.",
            stacklevel=3,
        )


@overload
def masks_from_params(
    params: Params, *, include: Selection | None = None, exclude: Selection | None = ()
) -> Params: ...


@overload
def masks_from_params(
    params: ArrayTree, *, include: Selection | None = None, exclude: Selection | None = ()
) -> ArrayTree: ...


def masks_from_params(
    params: ArrayTree, *, include: Selection | None = None, exclude: Selection | None = ()
) -> ArrayTree:
    """Masks that drop the weights which are zero, to continue from sparse params without a state.

    To fine-tune sparse params, `keep_zeros` does all of it in one call, and also masks biases and
    other leaves that `prune` leaves out by default.

    Args:
      params: any tree.
      include: which leaves to look at; by default those that `prune` would prune. A leaf that
        contains only zeros is kept whole, so that it can learn, unless `include` matches it.
      exclude: which leaves to leave out. A leaf that is not chosen is kept whole, zeros included.

    Returns:
      Bool masks, False where a chosen leaf is exactly zero. Put them into an optimizer state with
      `jaxprune.set_masks(opt_state, masks)`. Its `prune` must have the same `include` and
      `exclude`, because it enforces masks of the leaves that it prunes only: for channels of
      `channel_groups`, pass `include=tuple(groups)` to both. Outside `jit` a warning names the
      leaves that are kept whole because they contain only zeros.

    Raises:
      TypeError, ValueError: as in `prune`.

    Example:
      >>> import jax.numpy as jnp
      >>> masks = masks_from_params({"kernel": jnp.array([[0.0, 1.0]]), "bias": jnp.zeros(2)})
      >>> masks["kernel"].tolist(), masks["bias"].tolist()
      ([[False, True]], [True, True])
    """
    paths, leaves, treedef = leaves_with_paths(params)
    _check_values("masks_from_params", params, paths, leaves)
    recipe = Recipe.of((as_sparsity(0.0, "sparsity"),), include, exclude)
    budget = recipe.checked_budget(params, paths, leaves)
    return treedef.unflatten(masks_of_zeros("masks_from_params", recipe, budget, leaves))


def _check_values(function: str, params: Any, paths: list[str], leaves: list[Any]) -> None:
    """Raises where a leaf has a shape but no values."""
    check_not_donated(f"{function}: params", params)
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"{function}: {shown_path(path)}: needs the values of the params, got "
                f"{shown(leaf)}. Pass arrays; jaxprune.plan shows what would be pruned."
            )


def _grads_of(grads: Any, tree: Tree) -> list[Any]:
    """The gradient of each leaf; None for one that is no array, such as a function of Equinox."""
    by_path = grads_by_path("prune_params", grads, tree.paths, tree.leaves)
    return [by_path.get(path) for path in tree.paths]


def grads_by_path(
    function: str, grads: Any, paths: Sequence[str], leaves: Sequence[Any]
) -> dict[str, Any]:
    """The gradients by path; those of leaves that are no arrays may be missing.

    Raises:
      ValueError: other leaves than those of the params, in an argument of the public `function`.
    """
    grad_paths, grad_leaves, _ = leaves_with_paths(grads)
    needed = [path for path, leaf in zip(paths, leaves, strict=True) if spec_of(leaf) is not None]
    if grad_paths not in (list(paths), needed):
        raise ValueError(
            f"{function}: grads must have the leaves of the params, {listed(needed)}, got "
            f"{listed(grad_paths)}. Pass gradients with respect to these params."
        )
    return dict(zip(grad_paths, grad_leaves, strict=True))
