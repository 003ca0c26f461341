"""The optax shell: one update, from the state and the updates that come in to those that go out.

`Spec` says what kind of pruning it is; `prune` and its relatives in `transform` only differ in it.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxprune._base.agreement import remember
from jaxprune._base.arguments import shown
from jaxprune._base.counting import as_counts, take
from jaxprune._base.paths import leaves_with_paths, paths_of, spec_of, warn_unused
from jaxprune._base.sharding import everywhere, placed_like, typed_like
from jaxprune._recipe.budget import Budget, Recipe
from jaxprune._recipe.distributions import round_half_up
from jaxprune._recipe.errors import check_shuffled
from jaxprune._recipe.schedules import SparsitySchedule
from jaxprune._recipe.scores import (
    Accumulated,
    accumulates,
    itself,
    needs_key,
    random_score,
    reads_grads,
    required_grads,
)
from jaxprune._state.bit_masks import bits_typed_like, from_bits, full_bits, to_bits
from jaxprune._state.masks import count_violations, full_mask, keep, land
from jaxprune._state.prune_state import PruneState, widths_of
from jaxprune._transform.checks import check_state, check_updates, checked, parallel
from jaxprune._transform.decide import Operand, swap, tighten

ZERO, HOLD, TRAIN = "zero", "hold", "train"


class Spec(NamedTuple):
    """What a transformation does; host values, hashable.

    Attributes:
      schedule: when it fires, and how much is zero then.
      recipe: what is pruned and how.
      packed: masks take one bit per weight.
      regrow: None where dropped weights stay so; else a fire may take them back, and until then
        they are zero (`ZERO`), hold their value (`HOLD`) or go on training (`TRAIN`).
      ties: which of equal scores are kept.
      seed: of the keys that scores are given.
      grow: score by which fires swap weights while their number stays, or None.
      parts: with `grow`, the part of the kept units that each fire swaps.
      axis_name: a mapped axis over which every leaf is spread, or None.
    """

    schedule: SparsitySchedule
    recipe: Recipe
    packed: bool = False
    regrow: str | None = None
    ties: str = "index"
    seed: int = 0
    grow: Any = None
    parts: tuple[float, ...] = ()
    axis_name: Any = None

    @property
    def lands(self) -> bool:
        """Whether dropped weights are zero."""
        return self.regrow in (None, ZERO)


def transformation(
    spec: Spec, inner: optax.GradientTransformation | None, key: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The transformation that a spec describes; see `prune`."""
    inner_tx = None if inner is None else _as_extra_args(inner)
    recipe, packed = spec.recipe, spec.packed
    in_full = from_bits if packed else lambda mask, _: mask
    as_param = bits_typed_like if packed else typed_like

    def init(params: optax.Params) -> Any:
        paths, leaves, treedef = leaves_with_paths(params)
        masks = [full_mask(leaf, jnp.uint8) for leaf in leaves]
        if leaves:  # optax.tree.map_params calls init with a tree of no leaves
            budget = recipe.budget(paths, leaves)
            if spec.ties == "hashed":
                check_shuffled(paths, budget)
            warn_unused("prune", budget.unused, paths)
            if spec.grow is not None:
                random = _random_masks(spec, budget, leaves, key)
                for i, m in zip(budget.chosen, random, strict=True):
                    masks[i] = placed_like(m, masks[i])
        sums = None
        if accumulates(recipe.score):
            sums = treedef.unflatten([_zeros(leaf) for leaf in leaves])
        return PruneState(
            prune_step=jnp.zeros((), jnp.int32),
            masks=treedef.unflatten([full_bits(m) if packed else m for m in masks]),
            thresholds=jnp.zeros((len(leaves),), jnp.float32),
            violations=jnp.zeros((), jnp.int32),
            inner_state=optax.EmptyState() if inner_tx is None else inner_tx.init(params),
            widths=widths_of(leaves) if packed else None,
            score_state=sums,
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        paths, p_leaves, treedef = checked(params, state)
        remember(paths, spec)
        masks = parallel(paths, treedef, state.masks, "masks in the state")
        u_leaves = parallel(paths, treedef, updates, "updates", holes=True)
        check_state(paths, p_leaves, masks, state, packed)
        budget = recipe.budget(paths, p_leaves, _n_parts(spec))
        chosen = budget.chosen
        check_updates(chosen, paths, p_leaves, u_leaves, "update")
        here = [jnp.asarray(p_leaves[i]) for i in chosen]
        grads = None
        if spec.grow is not None or reads_grads(recipe.score):
            given = extra_args.get("grads")
            if given is not None:
                g_leaves = parallel(paths, treedef, given, "grads", holes=True)
                check_updates(chosen, paths, p_leaves, g_leaves, "gradient in `grads`")
                grads = [jnp.asarray(g_leaves[i]) for i in chosen]
            elif inner_tx is not None:
                grads = [jnp.asarray(u_leaves[i]) for i in chosen]
        sums, summed = state.score_state, None
        if accumulates(recipe.score):
            s_leaves = parallel(paths, treedef, sums, "score_state in the state")
            summed = _summed(recipe.score, [s_leaves[i] for i in chosen], here, grads)
            for i, s in zip(chosen, summed, strict=True):
                s_leaves[i] = s
            sums = treedef.unflatten(s_leaves)
        kept, thresholds, violations, inner_state = _fire(
            spec,
            inner_tx if spec.grow is not None else None,
            treedef,
            budget,
            here if summed is None else summed,
            here,
            [as_param(jnp.asarray(masks[i]), p) for i, p in zip(chosen, here, strict=True)],
            grads,
            key,
            (state.prune_step, state.thresholds, state.violations, state.inner_state),
        )
        # Only the new masks are read from here on, so that XLA updates them in place: a use of the
        # old ones after the fire would cost a copy of each on every step.
        live = [in_full(m, p) for m, p in zip(kept, here, strict=True)]
        if spec.grow is not None:  # what has just grown starts at zero: its update waits a step
            fires = spec.schedule.fires(state.prune_step)
            live = [(m == 1) | ((m == 2) & ~fires) for m in live]
        if inner_tx is not None:
            for i, m in zip(chosen, live, strict=True):
                g = jnp.asarray(u_leaves[i])
                u_leaves[i] = g if spec.regrow == TRAIN else keep(g, m)
            updates, inner_state = inner_tx.update(
                treedef.unflatten(u_leaves), inner_state, params, **extra_args
            )
            u_leaves = parallel(paths, treedef, updates, "updates of `inner`", holes=True)
            check_updates(chosen, paths, p_leaves, u_leaves, "update of `inner`")
        for i, p, m, new in zip(chosen, here, live, kept, strict=True):
            u = jnp.asarray(u_leaves[i])
            u_leaves[i] = land(p, u, m) if spec.lands else u if spec.regrow == TRAIN else keep(u, m)
            masks[i] = new
        return treedef.unflatten(u_leaves), PruneState(
            prune_step=jnp.asarray(optax.safe_increment(state.prune_step)),
            masks=treedef.unflatten(masks),
            thresholds=thresholds,
            violations=violations,
            inner_state=inner_state,
            widths=state.widths,
            score_state=sums,
        )

    return optax.GradientTransformationExtraArgs(init, update)


# Compiled here so that an update outside `jit` does not compile its loop again; inside, XLA inlines
# it.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fire(
    spec: Spec,
    inner_tx: optax.GradientTransformationExtraArgs | None,
    treedef: Any,
    budget: Budget,
    scored: list[jax.Array],
    params: list[jax.Array],
    masks: list[jax.Array],
    grads: list[jax.Array] | None,
    key: Any,
    counters: tuple[jax.Array, jax.Array, jax.Array, Any],
) -> tuple[list[jax.Array], jax.Array, jax.Array, Any]:
    """Masks of the chosen leaves, thresholds, violations and the inner state after this step.

    The fire is a loop of at most one trip rather than a `cond`. The loop updates its carry in
    place, so that a quiet step copies nothing, and under `vmap` it still runs only when some member
    fires, where a `cond` becomes a select that runs the selection on every step.
    """
    prune_step, thresholds, violations, inner_state = counters
    if not budget.chosen:
        return masks, thresholds, violations, inner_state
    n_keep = as_counts(budget.n_keep())
    chosen = np.array(budget.chosen)

    def trip(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        # Tied to the carry: else XLA computes what depends on the params alone before the loop, on
        # every step under `vmap`.
        inputs, carry = lax.optimization_barrier(((scored, params, grads), carry))
        scored_here, here, grads_here = inputs
        stored, thresholds, violations, resets, _ = carry
        packed = spec.packed
        old = [from_bits(m, p) for m, p in zip(stored, here, strict=True)] if packed else stored
        fire = jnp.maximum(spec.schedule.index(prune_step), 0)
        operands = _operands(spec, scored_here, grads_here, key, prune_step, budget.chosen)
        if spec.grow is not None:
            n_swap = take(as_counts(_n_swap(spec, budget)), fire)
            new, found = swap(
                operands, old, take(n_keep, fire), n_swap, budget.leaves, grow=spec.grow
            )
            resets = _reset_grown(inner_tx, treedef, budget.paths, resets, budget.chosen, new)
        else:
            new, found = tighten(
                operands,
                old if spec.regrow is None else None,
                take(n_keep, fire),
                budget.leaves,
                normalized=spec.recipe.distribution.normalized,
                score=itself if accumulates(spec.recipe.score) else spec.recipe.score,
                start=thresholds[chosen],
                ties=spec.ties,
                axis_name=spec.axis_name,
            )
            if packed:
                new = [bits_typed_like(to_bits(m), p) for m, p in zip(new, here, strict=True)]
        new = [m.astype(s.dtype) for m, s in zip(new, stored, strict=True)]
        thresholds = thresholds.at[chosen].set(found.astype(thresholds.dtype))
        if spec.lands:
            count = count_violations(here, old).astype(violations.dtype)
            count = jnp.where(prune_step > 0, count, 0)  # no update has landed them yet
            if spec.axis_name is not None:
                count = lax.psum(count, spec.axis_name)
            violations = jnp.maximum(violations, count)
        if spec.axis_name is not None:  # equal in all parts, and typed as such
            thresholds, violations = lax.pmax((thresholds, violations), spec.axis_name)
        return new, thresholds, violations, resets, jnp.zeros((), bool)

    resets = inner_state if spec.grow is not None else ()
    carry = (masks, thresholds, violations, resets, spec.schedule.fires(prune_step))
    new, thresholds, violations, resets, _ = lax.while_loop(lambda c: c[-1], trip, carry)
    thresholds = everywhere(thresholds, params)
    return new, thresholds, violations, resets if spec.grow is not None else inner_state


def _n_parts(spec: Spec) -> int:
    """How many parts every leaf is in."""
    return 1 if spec.axis_name is None else lax.psum(1, spec.axis_name)


def _operands(
    spec: Spec, params: Sequence[Any], grads: Any, key: Any, step: Any, chosen: Sequence[int]
) -> list[Operand]:
    """What the scores of each leaf are computed from, with a key of its own for each step."""
    scores = (spec.recipe.score, spec.grow or spec.recipe.score)
    keys: list[Any] = [None] * len(chosen)
    if any(map(needs_key, scores)):
        key = jax.random.key(spec.seed) if key is None else key
        key = jax.random.fold_in(key, step)
        keys = [jax.random.fold_in(key, i) for i in chosen]
    return [Operand(p, None if grads is None else grads[k], keys[k]) for k, p in enumerate(params)]


def _n_swap(spec: Spec, budget: Budget) -> np.ndarray:
    """How many units each pool swaps at each fire: int64[n_fires, n_pools]."""
    n_keep = budget.n_keep()
    return np.array(
        [
            [round_half_up(Fraction(part) * int(n)) for n in row]
            for part, row in zip(spec.parts, n_keep, strict=True)
        ],
        np.int64,
    ).reshape(n_keep.shape)


def _random_masks(spec: Spec, budget: Budget, leaves: Sequence[Any], key: Any) -> list[jax.Array]:
    """Masks to start from, uint8, as many units kept as the budget says."""
    params = [jnp.asarray(leaves[i]) for i in budget.chosen]
    if not params:
        return []
    spec = spec._replace(grow=random_score)
    operands = _operands(spec, params, None, key, 2**31 - 1, budget.chosen)
    n_keep = as_counts(budget.n_keep()[-1])
    masks, _ = tighten(operands, None, n_keep, budget.leaves, score=random_score)
    return [m.astype(jnp.uint8) for m in masks]


def _reset_grown(
    inner_tx: Any, treedef: Any, paths: Sequence[str], state: Any, chosen: Any, masks: list[Any]
) -> Any:
    """The inner state with zeros, the moments of a fresh weight, where a weight has just grown."""
    grown: list[Any] = [False] * treedef.num_leaves
    for i, mask in zip(chosen, masks, strict=True):
        grown[i] = mask == 2

    def reset(leaf: Any, grown: Any) -> Any:
        if grown is False or jnp.shape(leaf) != grown.shape:  # adafactor holds rows and columns
            return leaf
        return jnp.where(grown, jnp.zeros_like(leaf), leaf)

    try:
        return optax.tree.map_params(inner_tx, reset, state, treedef.unflatten(grown))
    except ValueError:  # wrappers leave holes in their states, where whole trees do not fit
        by_path = {f"/{path}": flags for path, flags in zip(paths, grown, strict=True)}

    leaves, state_treedef = jax.tree.flatten(state)
    for i, path in enumerate(paths_of(state)):
        if ends := [end for end in by_path if f"/{path}".endswith(end)]:
            leaves[i] = reset(leaves[i], by_path[max(ends, key=len)])
    return state_treedef.unflatten(leaves)


def _summed(
    score: Accumulated, sums: Sequence[Any], params: Sequence[Any], grads: Any
) -> list[jax.Array]:
    """The accumulated scores after this step."""
    grads = required_grads(score, grads)
    return [
        jnp.asarray(s) + score.increment(p, g).astype(jnp.float32)
        for s, p, g in zip(sums, params, grads, strict=True)
    ]


def _zeros(leaf: Any) -> jax.Array:
    """A float32 zero for each entry, on the devices of the leaf."""
    is_number = spec_of(leaf) is not None and jnp.issubdtype(leaf.dtype, jnp.number)
    return jnp.zeros_like(leaf, jnp.float32) if is_number else jnp.zeros(jnp.shape(leaf))


def _as_extra_args(inner: Any) -> optax.GradientTransformationExtraArgs:
    if not callable(getattr(inner, "init", None)) or not callable(getattr(inner, "update", None)):
        raise TypeError(
            f"inner must be an optax transformation such as optax.adamw(3e-4), got {shown(inner)}."
        )
    return optax.with_extra_args_support(inner)
