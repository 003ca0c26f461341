"""Sparse training: `rigl` and its variants `set_` and `static_sparse`, which wrap an optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optax

from jaxprune._base.argument_types import Overrides, Selection, Sparsity
from jaxprune._base.arguments import as_int, as_part, as_sparsity, check_key, check_step
from jaxprune._recipe.argument_types import Roles, ScoreFunction, Structural, Structures
from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.distributions import Distribution, erk
from jaxprune._recipe.schedules import SparsitySchedule, cubic_schedule, one_shot_schedule
from jaxprune._recipe.scores import accumulates, gradient_magnitude, random_score
from jaxprune._recipe.structures import Unstructured
from jaxprune._recipe.traits import traits_of
from jaxprune._transform.algorithms import STATIC, SWAP
from jaxprune._transform.settings import Settings
from jaxprune._transform.update import transformation


def rigl(
    final_sparsity: Sparsity,
    end_step: int,
    *,
    inner: optax.GradientTransformation,
    every: int = 100,
    drop_fraction: float = 0.3,
    key: Any = None,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Overrides | None = None,
    distribution: Distribution = erk,
    structure: Structures = Unstructured(),
    roles: Roles | None = None,
    structural: Structural | None = None,
    grow: ScoreFunction = gradient_magnitude,
) -> optax.GradientTransformationExtraArgs:
    """Trains sparse from the start, and regularly swaps small weights for more useful ones.

    The first masks are random. At steps `every, 2 * every, ...` before `end_step`, the smallest
    kept weights of each leaf are dropped, and as many weights grow where the gradient is largest.
    The weights that were just dropped compete too, as in the paper; one that grows again at once
    keeps its value. The fraction of kept weights that is dropped in a swap decreases to zero at
    `end_step`; at step t it is `drop_fraction / 2 * (1 + cos(pi * t / end_step))`.

    The number of kept weights of each leaf never changes. After `set_masks` with masks of your own
    that keep more than the sparsity says, the next update drops the smallest. Masks that keep fewer
    grow only at swaps, each by at most the number of weights that it drops, so they may never reach
    the sparsity. To keep the counts of your masks, give each leaf the sparsity of its mask with
    `overrides`. A weight that was zero before and grows starts at zero, with zero moments in the
    optimizer, and is trained from the next step on.

    Mask the params once before training, so that the first gradient is that of the sparse network:
    `params = jaxprune.apply_masks(params, opt_state)`. Without this, the first update sets dropped
    weights to zero.

    Args:
      final_sparsity: fraction of zeros, from the first step on, in [0, 1).
      end_step: the step from which masks no longer change.
      inner: the optimizer. The incoming updates must be gradients, of dropped weights too.
      every: steps between swaps; the paper used 100.
      drop_fraction: the largest fraction of the kept weights that a swap drops, in [0, 1]. The
        formula above has this value at step 0.
      key: PRNG key of the first masks and of random growth; `jax.random.key(0)` by default.
      include: which leaves to prune. This and the next six arguments are those of `prune`.
      exclude: which leaves to leave out.
      overrides: maps regexes to sparsities.
      distribution: how sparsity is spread over leaves, such as `erk` or `uniform`. Leaves do not
        exchange weights, so `global_pool` is an error.
      structure: what is dropped and grown together.
      roles: what each axis does in the products of the model.
      structural: which weights exist; the others are neither drawn nor grown.
      grow: score function of the weights to grow.

    Returns:
      A transformation whose state is a `PruneState`. In its masks, 2 marks the weights that grew at
      the last swap.

    Raises:
      TypeError: `inner` is None, or an argument has a wrong type.
      ValueError: a value out of range, a distribution in which leaves share a pool, the structure
        `NM`, or a `grow` that adds up over steps. `init` raises as that of `prune` does.

    References:
      Evci et al., `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_, 2020.

    Example:
      >>> import jax.numpy as jnp, jaxprune, optax
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> tx = rigl(0.75, end_step=1_000, inner=optax.adam(1e-3))
      >>> state = tx.init(params)
      >>> params = jaxprune.apply_masks(params, state)
      >>> int(params["kernel"].sum())
      8
    """
    swaps = _swap_schedule(final_sparsity, check_step("end_step", end_step), every)
    return _sparse_training(
        "rigl",
        swaps,
        as_part("drop_fraction", drop_fraction),
        inner,
        key,
        include=include,
        exclude=exclude,
        overrides=overrides,
        distribution=distribution,
        structure=structure,
        score=grow,
        roles=roles,
        structural=structural,
    )


def set_(
    final_sparsity: Sparsity,
    end_step: int,
    *,
    inner: optax.GradientTransformation,
    every: int = 100,
    drop_fraction: float = 0.3,
    key: Any = None,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Overrides | None = None,
    distribution: Distribution = erk,
    structure: Structures = Unstructured(),
    roles: Roles | None = None,
    structural: Structural | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sparse evolutionary training: `rigl` with random growth.

    Mocanu et al. 2018 (arXiv:1707.04780) swap a constant fraction after every epoch; here the
    fraction decreases, as in the comparison of Evci et al. 2020.

    Args:
      final_sparsity: fraction of zeros, from the first step on, in [0, 1).
      end_step: the step from which masks no longer change.
      inner: the optimizer.
      every: steps between swaps.
      drop_fraction: the largest fraction of the kept weights that a swap drops, in [0, 1].
      key: PRNG key of the first masks and of random growth; `jax.random.key(0)` by default.
      include: which leaves to prune. This and the next six arguments are those of `prune`.
      exclude: which leaves to leave out.
      overrides: maps regexes to sparsities.
      distribution: how sparsity is spread over leaves, as in `rigl`.
      structure: what is dropped and grown together.
      roles: what each axis does in the products of the model.
      structural: which weights exist; the others are neither drawn nor grown.

    Returns:
      A transformation whose state is a `PruneState`, as that of `rigl`.

    Raises:
      TypeError, ValueError: as in `rigl`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = set_(0.5, end_step=1_000, inner=optax.adam(1e-3))
      >>> state = tx.init({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)})
      >>> int(state.masks["kernel"].sum())
      8
    """
    swaps = _swap_schedule(final_sparsity, check_step("end_step", end_step), every)
    return _sparse_training(
        "set_",
        swaps,
        as_part("drop_fraction", drop_fraction),
        inner,
        key,
        include=include,
        exclude=exclude,
        overrides=overrides,
        distribution=distribution,
        structure=structure,
        score=random_score,
        roles=roles,
        structural=structural,
    )


def static_sparse(
    sparsity: Sparsity,
    *,
    inner: optax.GradientTransformation,
    key: Any = None,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Overrides | None = None,
    distribution: Distribution = erk,
    structure: Structures = Unstructured(),
    roles: Roles | None = None,
    structural: Structural | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Random masks that never change: the baseline of sparse training.

    To train with masks of your own, see `set_masks`.

    Args:
      sparsity: fraction of zeros, from the first step on, in [0, 1).
      inner: the optimizer.
      key: PRNG key of the masks; `jax.random.key(0)` by default.
      include: which leaves to prune. This and the next six arguments are those of `prune`.
      exclude: which leaves to leave out.
      overrides: maps regexes to sparsities.
      distribution: how sparsity is spread over leaves. Distributions in which leaves share a pool,
        such as `global_pool`, are an error, as in `rigl`.
      structure: what is kept or dropped together.
      roles: what each axis does in the products of the model.
      structural: which weights exist; the masks drop all others.

    Returns:
      A transformation whose state is a `PruneState`.

    Raises:
      TypeError, ValueError: as in `rigl`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = static_sparse(0.5, inner=optax.adam(1e-3))
      >>> state = tx.init({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)})
      >>> int(state.masks["kernel"].sum())
      8
    """
    as_sparsity(sparsity, "sparsity")
    return _sparse_training(
        "static_sparse",
        one_shot_schedule(sparsity),
        0.0,
        inner,
        key,
        include=include,
        exclude=exclude,
        overrides=overrides,
        distribution=distribution,
        structure=structure,
        score=gradient_magnitude,
        roles=roles,
        structural=structural,
    )


def _sparse_training(
    function: str,
    schedule: SparsitySchedule,
    drop_fraction: float,
    inner: Any,
    key: Any,
    **rules: Any,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of `rigl` and its variants.

    Args:
      function: the public function, for errors.
      schedule: fires at the swaps; masks never change if its only step is 0.
      drop_fraction: of the kept weights, at step 0.
      inner: the optimizer.
      key: PRNG key, or None.
      rules: the other arguments of `Recipe.of`; `score` is that of the weights to grow.
    """
    recipe = Recipe.of(schedule.targets, **rules)
    _check_leafwise(function, rules["distribution"], rules["structure"])
    if accumulates(rules["score"]):
        raise ValueError(
            f"{function}: grow={rules['score']} adds up over steps, but swaps need the scores of "
            "one step. Use jaxprune.gradient_magnitude, or another score function."
        )
    if inner is None:
        raise TypeError(
            f"{function}: inner must be the optimizer to wrap, got None. Pass one, such as "
            "inner=optax.adamw(3e-4)."
        )
    if key is not None:
        check_key("key", key)
    fractions = _swap_fractions(schedule, drop_fraction)
    algorithm = SWAP if schedule.end_step else STATIC
    settings = Settings(schedule, recipe, algorithm, swap_fractions=fractions)
    return transformation(settings, inner, key)


def _swap_schedule(final_sparsity: Sparsity, end_step: int, every: Any) -> SparsitySchedule:
    """Constant sparsity; fires at the multiples of `every` up to `end_step`, and there."""
    every = as_int("every", every)
    schedule = one_shot_schedule(final_sparsity, min(every, end_step))
    if every >= end_step:
        return schedule
    n_fires = len(cubic_schedule(0.0, every, end_step, every).targets)
    return SparsitySchedule(every, end_step, every, (schedule.final_sparsity,) * n_fires)


def _swap_fractions(schedule: SparsitySchedule, first: float) -> tuple[float, ...]:
    """The fraction of kept units that each fire drops: half a cosine from `first` to zero."""
    end_step = schedule.end_step
    return tuple(
        first / 2 * (1 + math.cos(math.pi * step / end_step)) if step < end_step else 0.0
        for step in schedule.fire_steps
    )


def _check_leafwise(name: str, distribution: Any, structure: Any) -> None:
    """Raises where leaves would exchange weights, or masks would have groups of NM."""
    if distribution.pooled:
        raise ValueError(
            f"{name}: leaves do not exchange weights, so {distribution} is not possible. Use "
            "distribution=jaxprune.erk or jaxprune.uniform."
        )
    structures = structure.values() if isinstance(structure, Mapping) else (structure,)
    if any(traits_of(s).decides_in_groups for s in structures):
        raise ValueError(
            f"{name}: masks with NM groups are not possible. Use prune(..., structure=NM(n, m)), "
            "or another structure."
        )
