"""`prune` and its relatives: what users chain into their optimizers."""

import math
from collections.abc import Mapping
from typing import Any

import optax

from jaxprune._base.arguments import as_int, as_part, check_step, shown
from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.distributions import Distribution, erk, global_pool, uniform
from jaxprune._recipe.schedules import (
    SparsitySchedule,
    check_schedule,
    cubic_schedule,
    one_shot_schedule,
)
from jaxprune._recipe.scores import gradient_magnitude, magnitude, random_score
from jaxprune._recipe.structures import Unstructured
from jaxprune._recipe.traits import traits_of
from jaxprune._topk.topk import check_ties
from jaxprune._transform.update import HOLD, TRAIN, ZERO, Spec, transformation


def prune(
    schedule: SparsitySchedule,
    *,
    inner: optax.GradientTransformation | None = None,
    include: Any = None,
    exclude: Any = (),
    overrides: Any = None,
    distribution: Distribution = uniform,
    structure: Any = Unstructured(),
    score: Any = magnitude,
    packed: bool = False,
    regrow: bool | str = False,
    ties: str = "index",
    seed: int | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the largest weights and takes the others to exactly zero, at every update.

    As the last link of a chain, or around an optimizer:

    >>> import jaxprune, optax
    >>> schedule = jaxprune.cubic_schedule(0.9, begin_step=1_000, end_step=9_000, every=100)
    >>> tx = optax.chain(optax.adamw(3e-4), jaxprune.prune(schedule))
    >>> tx = jaxprune.prune(schedule, inner=optax.adamw(3e-4))

    Laws. After `optax.apply_updates`, every finite dropped weight is +0.0, on every step and not
    only when the schedule fires, so a torn restore heals itself. Updates of kept weights pass
    bit-unchanged. Each fire leaves exactly the budgeted number of zeros per pool, and masks only
    shrink. Scores are those of the params that `update` is given. The emitted dtype at a pruned
    leaf is the wider of the param's and the update's: a narrower one could not land on zero.

    With `inner`, the optimizer sees gradients that are zero at dropped weights, those dropped at
    this step included, so momentum and the norm that global clipping takes are those of the sparse
    network, and `prune` can't be put in the wrong place. In a chain it must come last; `violations`
    in the state and `check` tell when it does not.

    Args:
      schedule: when to fire and what sparsity to reach. Steps count this transform's updates.
      inner: the optimizer to wrap.
      include: which leaves to prune: a regex for the whole `/`-joined path, a function
        `(path, shape_and_dtype) -> bool`, or a sequence of these. By default every leaf of inexact
        dtype with two or more axes.
      exclude: leaves to leave out, likewise. It wins over `include`.
      overrides: regex -> final sparsity, for chosen leaves whose schedule is scaled to end there.
        The first match wins.
      distribution: who competes with whom; `uniform` gives every leaf the same sparsity.
      structure: what one decision covers: one for all leaves, or a mapping from regexes to
        structures, of which the first match wins and no match means `Unstructured()`.
      score: what a weight is worth: `(params, grads, key) -> scores`, one per weight of one leaf,
        larger = keep. `grads` are the updates that come in when there is an `inner`, else what is
        passed as `update(..., grads=grads)`, else None.
      packed: hold the masks at one bit per weight instead of a byte. `get_masks` and all else work
        as before; `pack_masks` and `unpack_masks` convert a checkpoint of one kind to the other.
      regrow: whether a fire may take dropped weights back. False: they are zero for good. `"zero"`:
        they are zero, but each fire chooses anew, which a schedule that falls needs
        (`acdc_schedule`). True or `"hold"`: they hold the value that they had when they were
        dropped and may return by it, as in the code that Zhu & Gupta published. `"train"`: they go
        on learning. With these two the params stay dense: take `apply_masks(params, opt_state)`, or
        `straight_through` to let gradients through, in the forward pass.
      ties: which of equal scores are kept: `"index"` for the lower index, `"hashed"` for a fixed
        shuffle of the indices. Many bfloat16 weights are equal, and by index they are all dropped
        at one end of the leaf.
      seed: of the PRNG keys that scores are given, a new one for every leaf and fire; 0 by default.
      axis_name: for `update` inside `shard_map`, `pmap` or `vmap`, where every leaf is a part of
        one that is spread over this axis in equal parts: counts are summed over it, and all parts
        share the budget and the threshold of the whole. Without it each part is pruned by itself,
        to the same sparsity (and `shard_map` needs `check_vma=False`, since thresholds differ).
        Arrays that are sharded under plain `jit` do not need it.

    Returns:
      A transformation whose state is a `PruneState`. `update` needs `params`.

    Raises:
      TypeError, ValueError: here for arguments; in `init` for a leaf that can't be pruned or would
        lose all of its weights, or when nothing is chosen; while tracing `update` for missing
        params or masks that do not fit.

    References:
      Zhu and Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_, 2017.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, -2.0]]), "bias": jnp.ones(2)}
      >>> tx = optax.chain(optax.sgd(0.5), jaxprune.prune(jaxprune.one_shot_schedule(0.5)))
      >>> state = tx.init(params)
      >>> grads = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(grads, state, params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[2.5, 0.0], [0.0, -2.5]]
    """
    check_schedule(schedule)
    if regrow not in (False, True, ZERO, HOLD, TRAIN):
        raise ValueError(
            f'regrow must be False, "zero", "hold" (or True) or "train", got {shown(regrow)}.'
        )
    if schedule.may_fall and not regrow:
        raise ValueError(
            "this schedule may lower the sparsity, but masks only shrink. Pass "
            'regrow="zero" to let fires take dropped weights back.'
        )
    if not isinstance(packed, bool):
        raise TypeError(f"packed must be True or False, got {shown(packed)}.")
    if axis_name is not None:
        _check_spread(distribution, structure)
    recipe = Recipe.of(
        schedule.targets, include, exclude, overrides, distribution, structure, score
    )
    spec = Spec(
        schedule,
        recipe,
        packed=packed,
        regrow=None if regrow is False else HOLD if regrow is True else str(regrow),
        ties=check_ties(ties),
        seed=0 if seed is None else as_int("seed", seed),
        axis_name=axis_name,
    )
    return transformation(spec, inner)


def rigl(
    final_sparsity: float,
    end_step: int,
    *,
    inner: optax.GradientTransformation,
    every: int = 100,
    drop_fraction: float = 0.3,
    distribution: Distribution = erk,
    key: Any = None,
    include: Any = None,
    exclude: Any = (),
    overrides: Any = None,
    structure: Any = Unstructured(),
    grow: Any = gradient_magnitude,
) -> optax.GradientTransformationExtraArgs:
    r"""Sparse from the start: every so often the smallest weights make room for others.

    The first masks are random. At steps `every, 2 * every, ...` the smallest kept weights of each
    leaf are dropped, and as many others are grown where the gradient is largest. The part that is
    swapped decays to nothing at `end_step`:

    .. math::
      f_t = \frac{\alpha}{2} \left(1 + \cos \frac{\pi t}{t_{end}}\right)

    The number of kept weights never changes. A grown weight starts at zero with zero moments in the
    optimizer, and learns from the next step on.

    Mask the params once before training, so that the first gradient is that of the sparse network:
    `params = jaxprune.apply_masks(params, opt_state)`. Every update lands dropped weights on zero
    anyway.

    Args:
      final_sparsity: fraction of zeros, from the start, in [0, 1).
      end_step: step from which the masks stay.
      inner: the optimizer. The updates that come in must be gradients, of dropped weights too.
      every: steps between swaps; the paper used 100.
      drop_fraction: :math:`\alpha`, the part of the kept weights that the first swaps exchange, in
        [0, 1].
      distribution: how sparsity is spread over leaves, `erk` or `uniform`. Leaves do not exchange
        weights, so there is no global pool.
      key: PRNG key of the first masks and of random growth; by default `jax.random.key(0)`.
      include: as in `prune`, and so are the arguments after it.
      exclude: leaves to leave out.
      overrides: regex -> sparsity.
      structure: what is dropped and grown together.
      grow: score of what to grow.

    Returns:
      A transformation whose state is a `PruneState`, with 2 in the masks where a weight grew at the
      last swap.

    Raises:
      TypeError, ValueError: as `prune`.

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
    check_step("end_step", end_step)
    every = as_int("every", every)
    schedule = one_shot_schedule(final_sparsity, min(every, end_step))
    if every < end_step:
        n_fires = len(cubic_schedule(0.0, every, end_step, every).targets)
        targets = (schedule.final_sparsity,) * n_fires
        schedule = SparsitySchedule(every, end_step, every, targets)
    part = as_part("drop_fraction", drop_fraction)
    parts = tuple(
        part / 2 * (1 + math.cos(math.pi * step / end_step)) if step < end_step else 0.0
        for step in schedule.fire_steps
    )
    recipe = Recipe.of(schedule.targets, include, exclude, overrides, distribution, structure, grow)
    _check_leafwise("rigl", distribution, structure)
    if inner is None:
        raise TypeError("rigl: inner must be the optimizer: its moments follow the masks.")
    return transformation(Spec(schedule, recipe, grow=grow, parts=parts), inner, key)


def set_(
    final_sparsity: float,
    end_step: int,
    *,
    inner: optax.GradientTransformation,
    every: int = 100,
    drop_fraction: float = 0.3,
    distribution: Distribution = erk,
    key: Any = None,
    include: Any = None,
    exclude: Any = (),
    overrides: Any = None,
    structure: Any = Unstructured(),
) -> optax.GradientTransformationExtraArgs:
    """Sparse evolutionary training: `rigl` with random growth.

    Mocanu et al. 2018 (arXiv:1707.04780) swap a constant part after every epoch; here it decays, as
    in the comparison of Evci et al. 2020. All arguments are those of `rigl`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = set_(0.5, end_step=1_000, inner=optax.adam(1e-3))
      >>> state = tx.init({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)})
      >>> int(state.masks["kernel"].sum())
      8
    """
    return rigl(
        final_sparsity,
        end_step,
        inner=inner,
        every=every,
        drop_fraction=drop_fraction,
        distribution=distribution,
        key=key,
        include=include,
        exclude=exclude,
        overrides=overrides,
        structure=structure,
        grow=random_score,
    )


def static_sparse(
    sparsity: float,
    *,
    inner: optax.GradientTransformation,
    distribution: Distribution = erk,
    key: Any = None,
    include: Any = None,
    exclude: Any = (),
    overrides: Any = None,
    structure: Any = Unstructured(),
) -> optax.GradientTransformationExtraArgs:
    """Random masks that never change: the baseline of sparse training.

    All arguments are those of `rigl`. To train with masks of your own, see `set_masks`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = static_sparse(0.5, inner=optax.adam(1e-3))
      >>> state = tx.init({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)})
      >>> int(state.masks["kernel"].sum())
      8
    """
    return rigl(
        sparsity,
        0,
        inner=inner,
        every=1,
        drop_fraction=0.0,
        distribution=distribution,
        key=key,
        include=include,
        exclude=exclude,
        overrides=overrides,
        structure=structure,
    )


def _check_spread(distribution: Any, structure: Any) -> None:
    """Raises where a part of a leaf cannot be decided by counts over all parts."""
    if distribution not in (uniform, global_pool):
        raise ValueError(
            f"axis_name: a part does not know the shape of the whole, which {distribution!r} "
            "needs. Use jaxprune.uniform or jaxprune.global_pool, or shard the arrays under jit."
        )
    if structure != Unstructured():
        raise ValueError(
            f"axis_name: units may cross from part to part, so {structure!r} is not possible. Use "
            "jaxprune.Unstructured(), or shard the arrays under jit."
        )


def _check_leafwise(name: str, distribution: Any, structure: Any) -> None:
    """Raises where weights would be exchanged between leaves, or within groups of m."""
    if isinstance(distribution, Distribution) and distribution.pooled:
        raise ValueError(
            f"{name}: leaves do not exchange weights, so {distribution} is not possible. Use "
            "distribution=jaxprune.erk or jaxprune.uniform."
        )
    structures = structure.values() if isinstance(structure, Mapping) else (structure,)
    if any(traits_of(s).decides_in_groups for s in structures):
        raise ValueError(
            f"{name}: NM groups are not swapped. Use prune(..., structure=NM(n, m)), or another "
            "structure."
        )
