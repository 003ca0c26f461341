"""`prune`, which users chain with an optimizer or wrap around it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import optax

from jaxprune._base.argument_types import Overrides, Regrow, Selection, Ties
from jaxprune._base.arguments import as_flag, as_seed, shown
from jaxprune._recipe.argument_types import Roles, ScoreFunction, Structural, Structures
from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.distributions import Distribution, uniform
from jaxprune._recipe.schedule_list import ScheduleList, as_schedule
from jaxprune._recipe.schedules import SparsitySchedule
from jaxprune._recipe.scores import Accumulated, magnitude
from jaxprune._recipe.structures import Unstructured
from jaxprune._recipe.traits import traits_of
from jaxprune._topk.topk import check_ties
from jaxprune._transform.algorithms import TIGHTEN
from jaxprune._transform.settings import HOLD, NEVER, TRAIN, ZERO, Settings
from jaxprune._transform.update import transformation

P = ParamSpec("P")
T = TypeVar("T")


def _all_but_the_schedule_by_name(function: Callable[P, T]) -> Callable[P, T]:
    """`prune`, with an error that names the argument where Python's only counts them."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if len(args) > 1:
            is_optimizer = hasattr(args[1], "init") and hasattr(args[1], "update")
            misplaced = "the optimizer" if is_optimizer else "every other argument"
            example = "inner=optimizer" if is_optimizer else "exclude='head/.*'"
            raise TypeError(
                f"prune takes one argument by position, the schedule, got {shown(args[1])} as "
                f"another. Pass {misplaced} by name: prune(schedule, {example})."
            )
        return function(*args, **kwargs)

    return checked


@_all_but_the_schedule_by_name
def prune(
    schedule: SparsitySchedule | Sequence[SparsitySchedule],
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
) -> optax.GradientTransformationExtraArgs:
    """Prunes weights during training: sets the smallest to exactly zero, at every update.

    Add it as the last link of a chain, or wrap an optimizer with it:

    >>> import jaxprune, optax
    >>> schedule = jaxprune.cubic_schedule(0.9, begin_step=1_000, end_step=9_000, every=100)
    >>> tx = optax.chain(optax.adamw(3e-4), jaxprune.prune(schedule))
    >>> tx = jaxprune.prune(schedule, inner=optax.adamw(3e-4))

    The schedule fires at some steps: there the masks are recomputed. Weights compete with the
    others of their pool; by default each leaf is a pool. Each fire drops exactly the budgeted
    number of weights of every pool.

    After `optax.apply_updates`, every dropped weight that was finite is exactly +0.0, in every step
    and not only at fires, so the next update repairs a checkpoint whose params and masks do not
    match. Updates of kept weights are not changed by a single bit, and dropped weights stay
    dropped; for both, `regrow` makes exceptions. Scores are computed from the params passed to
    `update`. The update of a pruned leaf has the wider of the dtypes of the param and the incoming
    update, because a narrower one could miss zero.

    With `inner`, gradients of dropped weights are set to zero before the optimizer sees them, those
    dropped in this step included. Momentum and global-norm clipping then see the gradients of the
    sparse network, and no part of the optimizer can come after `prune`. In a chain it must be the
    last link. If it is not, `plan(params, tx)` says so, `violations` in the state becomes positive
    and `check` raises an error.

    Args:
      schedule: when to fire, and the sparsity to reach. Steps count the updates of this
        transformation. Or a list of schedules, which share one compiled program: a state follows
        the first until `choose_schedule` chooses another, and members of a `vmap` may differ.
      inner: the optimizer to wrap.
      include: which leaves to prune: a regex that must match the whole `/`-joined path, a function
        `(path, shape_and_dtype) -> bool`, or a sequence of these. The default is every leaf of
        floating point or complex dtype with two or more axes, except biases, scales, masks,
        params that hold logarithms (such as `log_std`), parameters of normalisation layers and
        LoRA factors; docs/guides/which-leaves.md has the details. A regex that matches no leaf is
        an error.
      exclude: which leaves to leave out, in the same form. It overrules `include`.
      overrides: maps regexes to final sparsities. The schedule of a leaf that matches is scaled to
        end there; the first match counts.
      distribution: how sparsity is spread over leaves; `uniform` gives each the same.
      structure: what is kept or dropped together: one structure for all leaves, or a mapping from
        regexes to structures. The first match counts; other leaves are `Unstructured()`.
      roles: what each axis of the leaves does in the products of the model, `"in"`, `"window"`,
        `"out"` or `"stack"`: what `axis_roles` returns, or a mapping from regexes to tuples of
        roles, such as `{".*weight": ("out", "in")}` or `jaxprune.torch_roles`, which
        docs/reference/what.md describes. A rule applies to leaves that have as many axes as it has
        roles. `NM`, `Channel` and `Block` then form groups, channels and blocks by what the axes
        mean, `erk` and `er` count inputs and outputs, and slices along `"stack"` axes, such as
        layers or experts, are pools of their own, unless all leaves are one pool.
      structural: for models with weights that do not exist, such as masked autoregressive ones:
        maps regexes to bool or integer arrays, True (or 1) where a weight exists. Missing weights
        count neither as weights nor as zeros: sparsity is a fraction of the weights that exist.
        They are dropped in every mask, so they are zero from the first update on, which changes
        nothing in a model that multiplies by its own mask. Only for leaves that are
        `Unstructured()`; any distribution; not with `axis_name`.
      score: how important each weight is: a function `(params, grads, key) -> scores` that gets one
        leaf, or an `Accumulated`, such as `movement`. Weights with larger scores are kept. With
        `Channel`, scores must not be negative, because the score of a channel is the norm of the
        scores of its weights. `grads` is `update(..., grads=grads)` if given; otherwise the
        incoming updates if there is an `inner`, and None if not. A function with a keyword argument
        `path` or `roles` gets the path of the leaf, or the roles of its axes (None where they are
        not known). Scores of simple elementwise functions are recomputed rather than stored; set
        `score.elementwise` to True or False to override this.
      packed: store masks at one bit per weight instead of one byte. `get_masks` and everything else
        work as before; `pack_masks` and `unpack_masks` convert the state in a checkpoint.
      regrow: whether a fire may keep weights again that were dropped. False: never. `"zero"`:
        dropped weights are zero, but every fire chooses among all weights, which a falling schedule
        needs (`acdc_schedule`). True or `"hold"`: dropped weights hold the value they had when they
        were dropped, and compete with it at the next fire, as in the code published with the paper.
        `"train"`: dropped weights go on training. With the last two the params stay dense: in the
        forward pass use `apply_masks(params, opt_state)`, or `straight_through`, which also passes
        gradients on to dropped weights.
      ties: which of equal scores are kept: `"index"` for those of lower index, `"hashed"` for a
        fixed shuffle of the indices. Many bfloat16 weights are equal; with `"index"` those at the
        end of a leaf are dropped first.
      seed: seed of the PRNG keys for `score`, which gets another key for every leaf and fire; 0 by
        default.
      axis_name: for `update` inside `shard_map`, `pmap` or `vmap`, if every leaf there is an equal
        part of a whole leaf split over this axis. Counts are summed over the axis, so all parts
        share the budget and the threshold of the whole. Without it each part is pruned on its own
        to the same sparsity (`shard_map` then needs `check_vma=False`, as thresholds differ, and
        the state holds the counts of one part, unless the parts have a leading axis of their own).
        Arrays sharded under plain `jit` do not need it.

    Returns:
      A transformation whose state is a `PruneState`. Its `update` needs `params`.

    Raises:
      TypeError, ValueError: for invalid arguments. `init` raises for a leaf that can't be pruned or
        would lose all of its weights, for regexes that match nothing, and if no leaf is chosen;
        `update` raises, while tracing, if `params` is missing or the masks do not fit them.

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
    checked = as_schedule(schedule)
    checked_regrow = _checked_regrow(regrow, checked)
    packed = as_flag("packed", packed)
    recipe = Recipe.of(
        checked.targets,
        include,
        exclude,
        overrides,
        distribution,
        structure,
        score,
        roles,
        n_fires=checked.n_fires if isinstance(checked, ScheduleList) else (),
        structural=structural,
    )
    if axis_name is not None:
        _check_axis_name(axis_name)
        _check_split(recipe, structure)
    settings = Settings(
        checked,
        recipe,
        TIGHTEN,
        bit_masks=packed,
        regrow=checked_regrow,
        ties=check_ties(ties),
        seed=0 if seed is None else as_seed("seed", seed),
        axis_name=axis_name,
    )
    return transformation(settings, inner)


def _checked_regrow(regrow: Any, schedule: SparsitySchedule | ScheduleList) -> str:
    """The user's `regrow` as one of the constants in `settings.py`."""
    is_flag = isinstance(regrow, (bool, np.bool_))
    if not is_flag and not (isinstance(regrow, str) and regrow in (ZERO, HOLD, TRAIN)):
        raise ValueError(
            f'regrow must be False, "zero", "hold" (or True) or "train", got {shown(regrow)}.'
        )
    if schedule.may_fall and not regrow:
        raise ValueError(
            "regrow=False, so masks only shrink, but this schedule may lower the sparsity. Pass "
            'regrow="zero", so that fires may keep dropped weights again.'
        )
    if isinstance(regrow, str):
        return regrow
    return HOLD if regrow else NEVER


def _check_axis_name(axis_name: Any) -> None:
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"axis_name must be the name of a mapped axis, got {shown(axis_name)}. Pass the string "
            'that jax.shard_map, jax.pmap or jax.vmap has, such as axis_name="data".'
        )


def _check_split(recipe: Recipe, structure: Any) -> None:
    """Raises where counts over all parts of a leaf do not suffice to decide a part."""
    distribution = recipe.distribution
    if distribution.needs_whole_leaves:
        raise ValueError(
            f"axis_name: {distribution!r} needs the shapes of whole leaves, but sees those of "
            "their parts. Use jaxprune.uniform or jaxprune.global_pool, or shard the arrays under "
            "jit."
        )
    if not traits_of(structure).is_elementwise:
        raise ValueError(
            f"axis_name: {structure!r} is not possible, because units may extend over several "
            "parts. Use jaxprune.Unstructured(), or shard the arrays under jit."
        )
    if recipe.structural:
        raise ValueError(
            "axis_name: structural= is not possible, because its masks are of whole leaves. Shard "
            "the arrays under jit, without axis_name."
        )
    if recipe.roles is not None and recipe.roles.has_stacks and not distribution.pooled:
        raise ValueError(
            "axis_name: roles with 'stack' axes make a pool of every slice, which is not possible "
            "where leaves are split. Leave out roles, or shard the arrays under jit."
        )
