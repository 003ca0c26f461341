"""`prune`: the optax shell around the pure step. The only module that imports optax."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxprune.budget import Budget, Recipe
from jaxprune.distribution import Distribution, uniform
from jaxprune.mask import count_violations, full_mask, keep, land, tighten
from jaxprune.packed import full_packed, pack, packed_shape, unpack
from jaxprune.paths import leaves_with_paths, listed, rule_for, spec_of
from jaxprune.schedule import SparsitySchedule, check_schedule, shown
from jaxprune.score import magnitude
from jaxprune.state import PruneState, widths_of, wrong_shape
from jaxprune.structure import Unstructured


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
      structure: what one decision covers.
      score: `(params, grads, key) -> scores`, elementwise in one leaf, larger = keep.
      packed: hold the masks at one bit per weight instead of a byte. `get_masks` and all else work
        as before; `pack_masks` and `unpack_masks` convert a checkpoint of one kind to the other.

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
    recipe = Recipe.of(
        schedule.targets, include, exclude, overrides, distribution, structure, score
    )
    inner_tx = None if inner is None else _as_extra_args(inner)
    if not isinstance(packed, bool):
        raise TypeError(f"packed must be True or False, got {shown(packed)}.")
    in_full = unpack if packed else lambda mask, _: mask

    def new_mask(leaf: Any) -> jax.Array:
        mask = full_mask(leaf, jnp.uint8)
        return full_packed(mask) if packed else mask

    def init(params: optax.Params) -> Any:
        paths, leaves, treedef = leaves_with_paths(params)
        if leaves:  # optax.tree.map_params calls init with a tree of no leaves
            for line in recipe.budget(paths, leaves).unused:
                warnings.warn(
                    f"jaxprune.prune: {line}; the paths are {listed(paths)}", stacklevel=2
                )
        return PruneState(
            prune_step=jnp.zeros((), jnp.int32),
            masks=treedef.unflatten([new_mask(leaf) for leaf in leaves]),
            thresholds=jnp.zeros((len(leaves),), jnp.float32),
            violations=jnp.zeros((), jnp.int32),
            inner_state=optax.EmptyState() if inner_tx is None else inner_tx.init(params),
            widths=widths_of(leaves) if packed else None,
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError(
                "jaxprune.prune needs the params: call tx.update(updates, state, params)."
            )
        if not isinstance(state, PruneState):
            raise TypeError(
                f"jaxprune.prune: the state must be a PruneState, got {shown(state)}. Pass what "
                "init or the last update of this transformation returned; restore a checkpoint "
                "into the structure of tx.init(params)."
            )
        paths, p_leaves, treedef = leaves_with_paths(params)
        masks = _parallel(paths, treedef, state.masks, "masks in the state")
        u_leaves = _parallel(paths, treedef, updates, "updates", holes=True)
        budget = recipe.budget(paths, p_leaves)
        _check_state(paths, p_leaves, masks, state, packed)
        _check_updates(budget, paths, p_leaves, u_leaves, "update")
        chosen = [jnp.asarray(p_leaves[i]) for i in budget.chosen]
        kept, thresholds, violations = _fire(
            schedule,
            recipe,
            packed,
            tuple(paths),
            tuple(map(spec_of, p_leaves)),
            chosen,
            [jnp.asarray(masks[i]) for i in budget.chosen],
            (state.prune_step, state.thresholds, state.violations),
        )
        # Only the new masks are read from here on, so that XLA updates them in place: a use of the
        # old ones after the fire would cost a copy of each on every step.
        inner_state = state.inner_state
        if inner_tx is not None:
            for i, m in zip(budget.chosen, kept, strict=True):
                u_leaves[i] = keep(jnp.asarray(u_leaves[i]), in_full(m, p_leaves[i]))
            updates, inner_state = inner_tx.update(
                treedef.unflatten(u_leaves), inner_state, params, **extra_args
            )
            u_leaves = _parallel(paths, treedef, updates, "updates of `inner`", holes=True)
            _check_updates(budget, paths, p_leaves, u_leaves, "update of `inner`")
        for i, p, m in zip(budget.chosen, chosen, kept, strict=True):
            u_leaves[i], masks[i] = land(p, jnp.asarray(u_leaves[i]), in_full(m, p)), m
        return treedef.unflatten(u_leaves), PruneState(
            prune_step=jnp.asarray(optax.safe_increment(state.prune_step)),
            masks=treedef.unflatten(masks),
            thresholds=thresholds,
            violations=violations,
            inner_state=inner_state,
            widths=state.widths,
        )

    return optax.GradientTransformationExtraArgs(init, update)


# Compiled here so that an update outside `jit` does not compile its loop again; inside, XLA inlines
# it.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _fire(
    schedule: SparsitySchedule,
    recipe: Recipe,
    packed: bool,
    paths: tuple[str, ...],
    specs: tuple[jax.ShapeDtypeStruct | None, ...],
    params: list[jax.Array],
    masks: list[jax.Array],
    counters: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Masks of the chosen leaves, thresholds and violations after this step.

    The fire is a loop of at most one trip rather than a `cond`. The loop updates its carry in
    place, so that a quiet step copies nothing, and under `vmap` it still runs only when some member
    fires, where a `cond` becomes a select that runs the selection on every step.
    """
    prune_step, thresholds, violations = counters
    _, chosen, pools, *_ = recipe.budget(paths, specs)
    if not chosen:
        return masks, thresholds, violations
    n_keep = jnp.asarray(np.array(pools.n_units) - pools.n_drop, jnp.int32)
    pool_of, leaf = np.array(pools.pool_of), np.array(chosen)
    first_leaf = leaf[[pools.pool_of.index(pool) for pool in range(len(pools.n_units))]]

    def trip(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        # Tied to the carry: else XLA computes what depends on the params alone before the loop, on
        # every step under `vmap`.
        here, (old, thresholds, violations, fires) = lax.optimization_barrier((params, carry))
        old = [unpack(m, p) for m, p in zip(old, here, strict=True)] if packed else old
        new, found = tighten(
            here,
            old,
            n_keep[jnp.maximum(schedule.index(prune_step), 0)],
            pools.pool_of,
            score=recipe.score,
            structure=recipe.structure,
            start=thresholds[first_leaf],
        )
        thresholds = thresholds.at[leaf].set(found[pool_of].astype(thresholds.dtype))
        violations = jnp.maximum(violations, count_violations(here, old).astype(violations.dtype))
        new = [pack(m) for m in new] if packed else new
        return new, thresholds, violations, jnp.zeros_like(fires)

    carry = (masks, thresholds, violations, schedule.fires(prune_step))
    new, thresholds, violations, _ = lax.while_loop(lambda c: c[3], trip, carry)
    return new, thresholds, violations


def _as_extra_args(inner: Any) -> optax.GradientTransformationExtraArgs:
    if not callable(getattr(inner, "init", None)) or not callable(getattr(inner, "update", None)):
        raise TypeError(
            f"inner must be an optax transformation such as optax.adamw(3e-4), got {shown(inner)}."
        )
    return optax.with_extra_args_support(inner)


def _parallel(
    paths: list[str], treedef: Any, tree: Any, what: str, holes: bool = False
) -> list[Any]:
    """The leaves of `tree`, one per leaf of the params; with `holes`, some may be None."""
    try:
        leaves = treedef.flatten_up_to(tree)
    except ValueError:
        leaves = []
    is_leaf = [(holes and x is None) or jax.tree_util.all_leaves([x]) for x in leaves]
    if len(leaves) == len(paths) and all(is_leaf):
        return leaves
    theirs, _, _ = leaves_with_paths(tree)
    lines = []
    for one, have, other, lack in (
        ("params", paths, what, theirs),
        (what, theirs, "params", paths),
    ):
        odd = [path for path in have if path not in set(lack)]
        if odd:
            lines.append(f"the {one} have {listed(odd)}, the {other} do not")
    differ = "; ".join(lines) or "the same paths, but in other containers"
    raise ValueError(
        f"jaxprune.prune: the {what} and the params differ in structure: {differ}. Pass the "
        "params that the state was initialised with, and gradients with respect to them."
    )


def _check_state(
    paths: list[str], params: list[Any], masks: list[Any], state: PruneState, packed: bool
) -> None:
    if packed != (state.widths is not None):
        have, convert = ("packed", "unpack_masks") if not packed else ("not packed", "pack_masks")
        raise ValueError(
            f"the masks in the state are {have}, but this is prune(..., packed={packed}). Convert "
            f"the state: jaxprune.{convert}(opt_state)."
        )
    for path, param, mask in zip(paths, params, masks, strict=True):
        spec = spec_of(param)
        if spec is None:
            continue
        if jnp.shape(mask) != (packed_shape(spec.shape) if packed else spec.shape):
            raise ValueError(wrong_shape(path, jnp.shape(mask), spec.shape, packed))
    if jnp.shape(state.thresholds) != (len(paths),):
        raise ValueError(
            f"the thresholds in the state have shape {jnp.shape(state.thresholds)} but the params "
            f"have {len(paths)} leaves. Was the state restored from another model?"
        )
    step = jnp.asarray(state.prune_step)
    if step.shape or not jnp.issubdtype(step.dtype, jnp.integer):
        raise ValueError(
            f"prune_step in the state must be an int32 scalar, got {step.dtype} of shape "
            f"{step.shape}. Restore checkpoints into the dtypes of tx.init(params)."
        )


def _check_updates(
    budget: Budget, paths: list[str], params: list[Any], updates: list[Any], what: str
) -> None:
    for i in budget.chosen:
        path = paths[i] or "(root)"
        if updates[i] is None:
            raise ValueError(
                f"{path}: the {what} is None, but the leaf is pruned. Leave it out with "
                f"exclude={rule_for(paths[i])!r}, or give it a gradient."
            )
        if jnp.shape(updates[i]) != jnp.shape(params[i]):
            raise ValueError(
                f"{path}: the {what} has shape {jnp.shape(updates[i])} but the param has shape "
                f"{jnp.shape(params[i])}. Pass gradients with respect to these params."
            )
