"""What a fire decides: the masks of gradual pruning, and those of sparse training.

The fires of `TIGHTEN` keep the best weights, as many as the schedule says (gradual pruning). Those
of `SWAP` drop the smallest kept weights and grow as many others (RigL, SET). Which units win is
decided in `decide.py`, and when a fire happens in `fire.py`.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.counting import as_counts, counting, is_wide, take
from jaxprune._base.paths import check_values
from jaxprune._base.places import picked
from jaxprune._base.sharding import on_gpu, placed_like
from jaxprune._recipe.budget import Budget
from jaxprune._recipe.leaf import Leaf
from jaxprune._recipe.pools import round_half_up
from jaxprune._recipe.schedules import SparsitySchedule
from jaxprune._recipe.scores import accumulates, itself, needs_key, random_score
from jaxprune._recipe.two_copies import fast_places, scored_as_fast
from jaxprune._state.bit_masks import from_bits, to_bits_like
from jaxprune._state.masks import full_mask
from jaxprune._topk.bit_flags import BitFlags
from jaxprune._transform.decide import tighten
from jaxprune._transform.existing import among_existing, first_existing
from jaxprune._transform.operand import Operand, Rules
from jaxprune._transform.settings import NEVER, Algorithm, Settings

_MANY_POOLS = 1024  # a table of fewer is small whatever it holds


class Inputs(NamedTuple):
    """What a fire reads and does not change; lists have one entry per pruned leaf.

    Attributes:
      params: the params.
      sums: of a score that accumulates over steps, which the score function gets as its `params`;
        else None.
      grads: their gradients, or None.
      key: a PRNG key that the user chose, or None.
      step: updates applied so far.
      progress: of the state, if it follows one of several schedules; else None.
    """

    params: list[jax.Array]
    sums: list[jax.Array] | None
    grads: list[jax.Array] | None
    key: Any
    step: Any
    progress: Any = None


def _operands(settings: Settings, score: Any, inputs: Inputs, budget: Budget) -> list[Any]:
    """What the scores of each pruned leaf are computed from, with a key for each leaf and step."""
    keys: list[Any] = [None] * len(budget.chosen)
    if needs_key(score):
        key = jax.random.key(settings.seed) if inputs.key is None else inputs.key
        key = jax.random.fold_in(key, inputs.step)
        if settings.axis_name is not None:  # parts of a leaf get different numbers
            key = jax.random.fold_in(key, lax.axis_index(settings.axis_name))
        keys = [jax.random.fold_in(key, i) for i in budget.chosen]
    grads = [None] * len(budget.chosen) if inputs.grads is None else inputs.grads
    scored = inputs.params if inputs.sums is None else inputs.sums
    operands = list(map(Operand, scored, grads, keys))
    if settings.recipe.has_two_copies:
        operands = [operands[i] for i in fast_places(budget.leaves)]
    return operands


def _index(settings: Settings, step: Any) -> Any:
    """Which fire of the schedule this is: a row of the budget."""
    schedule: Any = settings.schedule
    return jnp.maximum(schedule.index(step), 0)


def _row(table: np.ndarray, index: Any) -> jax.Array:
    """One row of a table with a row for each fire and a column for each pool.

    Thousands of slices have few different columns, so that the program stores each of them once.
    """
    if table.shape[1] < _MANY_POOLS:
        return take(as_counts(table), index)
    first: dict[bytes, int] = {}
    columns = np.ascontiguousarray(table.T)
    column_of = np.array([first.setdefault(column.tobytes(), len(first)) for column in columns])
    different = np.unique(column_of, return_index=True)[1]
    return take(take(as_counts(table[:, different]), index), column_of)


# Gradual pruning


def _full_masks(
    settings: Settings, budget: Budget, leaves: Sequence[Any], key: Any
) -> list[jax.Array]:
    """Masks that keep every weight that exists."""
    del settings, key
    return first_existing(budget, [full_mask(leaf, jnp.uint8) for leaf in leaves])


def _tighten(
    settings: Settings, budget: Budget, inputs: Inputs, masks: list[Any], thresholds: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Masks of the best weights: among those that are kept so far, unless weights may return."""
    recipe = settings.recipe
    score: Any = itself if accumulates(recipe.score) else recipe.score
    rules = Rules(score, settings.ties, recipe.distribution.normalized, settings.axis_name)
    index = _index(settings, inputs.step)
    operands = _operands(settings, score, inputs, budget)
    n_keep = _row(budget.n_keep(), index)
    leaves: Sequence[Leaf] = budget.leaves
    if recipe.has_two_copies:  # the slow one may have masks that a user has set
        leaves = scored_as_fast(leaves)
        masks = [masks[i] for i in fast_places(budget.leaves)]
    allowed = masks if settings.regrow == NEVER else None
    allowed = among_existing(budget.leaves, inputs.params, allowed)
    start = picked(thresholds, budget.chosen)
    return tighten(operands, allowed, n_keep, leaves, rules, start)


def _all_kept(masks: list[Any], schedule: SparsitySchedule, step: Any) -> list[Any]:
    """Every kept weight is trained."""
    del schedule, step
    return masks


TIGHTEN = Algorithm(_full_masks, _tighten, _all_kept, resets=False)


# Sparse training


def _random_masks(
    settings: Settings, budget: Budget, leaves: Sequence[Any], key: Any
) -> list[jax.Array]:
    """Random masks that keep as many units as budgeted."""
    masks = _full_masks(settings, budget, leaves, key)
    if not budget.chosen:
        return masks
    chosen = {budget.paths[i]: leaves[i] for i in budget.chosen}
    check_values("init of rigl, set_ and static_sparse: params", chosen)
    params = list(map(jnp.asarray, chosen.values()))
    # The step is one that no fire has, so that the key is used for nothing else.
    inputs = Inputs(params, None, None, key, step=2**31 - 1)
    operands = _operands(settings, random_score, inputs, budget)
    n_keep = as_counts(budget.n_keep()[-1])
    allowed = among_existing(budget.leaves, params, None)
    random, _ = tighten(operands, allowed, n_keep, budget.leaves, Rules(random_score))
    for i, mask in zip(budget.chosen, random, strict=True):
        masks[i] = placed_like(mask.astype(jnp.uint8), masks[i])
    return masks


def _swap(
    settings: Settings, budget: Budget, inputs: Inputs, masks: list[Any], thresholds: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Masks in which the smallest kept weights have made room for the best others.

    The weights that grow have the best scores among all that are not kept, including those that
    were just dropped, as in RigL. The number of kept units does not change.

    Returns:
      uint8 masks: 0 dropped, 1 kept, 2 kept now and not before; and the threshold of each leaf.
    """
    del thresholds
    grow: Any = settings.recipe.score
    index = _index(settings, inputs.step)
    operands = _operands(settings, grow, inputs, budget)
    n_swap = _row(swap_counts(settings, budget), index)
    n_keep = _row(budget.n_keep(), index)
    with counting(is_wide(n_keep)):
        schedule: Any = settings.schedule
        n_swap = jnp.where(schedule.fires(inputs.step), n_swap, jnp.zeros_like(n_swap))
        n_stay = n_keep - n_swap
    stay, thresholds = tighten(operands, masks, n_stay, budget.leaves)
    dropped, may_grow = _dropped(stay, inputs.params)
    allowed = among_existing(budget.leaves, inputs.params, may_grow)
    grown, _ = tighten(operands, allowed, n_swap, budget.leaves, Rules(grow))
    new = [
        jnp.where(g & (m == 0), jnp.uint8(2), (~d | g).astype(jnp.uint8))
        for d, g, m in zip(dropped, grown, masks, strict=True)
    ]
    return new, thresholds


def _dropped(
    stay: Sequence[jax.Array], params: Sequence[jax.Array]
) -> tuple[Sequence[jax.Array], Sequence[Any]]:
    """Which weights do not stay: flags of them, and in the form in which `tighten` reads them.

    This is all that is stored of `stay` while weights grow: without the barrier XLA would store
    both. On a GPU it takes a bit a weight.
    """
    dropped = [~mask for mask in stay]
    if not on_gpu(params):
        dropped = lax.optimization_barrier(dropped)
        return dropped, dropped
    bits = map(to_bits_like, dropped, params)
    may_grow = [BitFlags(x, from_bits) for x in lax.optimization_barrier(list(bits))]
    return [flags.flags(p) for flags, p in zip(may_grow, params, strict=True)], may_grow


def swap_counts(settings: Settings, budget: Budget) -> np.ndarray:
    """How many units each pool swaps at each fire: int64[n_fires, n_pools]."""
    n_keep = budget.n_keep()
    table = [
        [round_half_up(Fraction(fraction) * int(n)) for n in row]
        for fraction, row in zip(settings.swap_fractions, n_keep, strict=True)
    ]
    return np.array(table, np.int64).reshape(n_keep.shape)


def _all_but_grown(masks: list[Any], schedule: SparsitySchedule, step: Any) -> list[Any]:
    """Every kept weight is trained, except those that grew in this step: they start at zero."""
    fires = schedule.fires(step)
    return [(mask == 1) | ((mask == 2) & ~fires) for mask in masks]


SWAP = Algorithm(_random_masks, _swap, _all_but_grown, resets=True)
STATIC = SWAP._replace(resets=False, changes=False)
