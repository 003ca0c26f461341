"""What was pruned, what will be, and whether it holds: `plan`, `summarize`, `metrics`, `check`.

What they say stands in a `Report`, a table that `table.py` prints.
"""

import math
import numbers
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.agreement import check_remembered, diverged
from jaxprune._base.arguments import as_sparsity
from jaxprune._base.counting import total
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import leaves_with_paths, rule_name, shown_path, spec_of
from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.distributions import Distribution, uniform
from jaxprune._recipe.schedules import SparsitySchedule, check_schedule
from jaxprune._recipe.scores import magnitude
from jaxprune._recipe.structures import Unstructured
from jaxprune._report.table import Report, leaf_report
from jaxprune._state.prune_state import find_states, get_masks, get_state, masks_by_path, unboxed


def plan(
    params: chex.ArrayTree,
    schedule: SparsitySchedule | float,
    *,
    include: Any = None,
    exclude: Any = (),
    overrides: Any = None,
    distribution: Distribution = uniform,
    structure: Any = Unstructured(),
    score: Any = magnitude,
) -> Report:
    """A dry run of `prune`: the leaves it takes, their exact counts, and rules that met nothing.

    Args:
      params: a tree of arrays, or of `jax.ShapeDtypeStruct`: nothing is computed.
      schedule: as for `prune`, or a final sparsity.
      include: as for `prune`, and so are the arguments after it.
      exclude: leaves to leave out.
      overrides: regex -> final sparsity.
      distribution: who competes with whom.
      structure: what one decision covers.
      score: accepted so that the arguments of `prune` can be passed as they are.

    Returns:
      A `Report` of the masks after the last fire. It prints as a table.

    Raises:
      TypeError, ValueError: what `prune` and its `init` would raise.

    Example:
      >>> import jax.numpy as jnp
      >>> ones = lambda *shape: jnp.ones(shape, jnp.float32)
      >>> params = {"fc": {"kernel": ones(8, 4), "bias": ones(4)}}
      >>> print(plan(params, 0.9))
      plan: 0.9 at step 0, 1 fire
      leaf       shape  dtype    weights  nonzero  sparsity  note
      fc/bias    4      float32        4        4     0.00%  1-D
      fc/kernel  8x4    float32       32        3    90.62%
      total                           36        7    80.56%
    """
    if not isinstance(schedule, SparsitySchedule):
        if not isinstance(schedule, numbers.Real) or isinstance(schedule, bool):
            check_schedule(schedule, " or a final sparsity")
        schedule = SparsitySchedule(0, 0, 1, (as_sparsity(schedule, "schedule"),))
    recipe = Recipe.of(
        schedule.targets, include, exclude, overrides, distribution, structure, score
    )
    paths, leaves, _ = leaves_with_paths(params)
    budget = recipe.budget(paths, leaves)
    n_zero = [0] * len(paths)
    notes = [choice.reason for choice in budget.choices]
    sizes = [leaves[i].size for i in budget.chosen]
    for i, leaf, n in zip(budget.chosen, budget.leaves, budget.n_zero(sizes), strict=True):
        n_zero[i] = n
        shared = sum(p == leaf.pools[0] for p in budget.pools.pool_of) > 1 and leaf.axis is None
        if shared:
            notes[i] = f"in one pool ({distribution}): its share"
        override = budget.choices[i].override
        if override is not None:
            notes[i] = f"override {rule_name(recipe.overrides[override][0])}"
        elif not shared and leaf.structure != Unstructured():
            notes[i] = repr(leaf.structure)
    first, last, n_fires = schedule.begin_step, schedule.end_step, len(schedule.targets)
    when = f"step {last}, 1 fire" if n_fires == 1 else f"steps {first} to {last}, {n_fires} fires"
    return Report(
        f"plan: {float(schedule.final_sparsity):.4g} at {when}",
        tuple(map(leaf_report, paths, leaves, n_zero, notes)),
        tuple(f"unused: {line}" for line in budget.unused),
    )


def summarize(params: chex.ArrayTree, masks: Any = None) -> Report:
    """How sparse params are, leaf by leaf.

    Args:
      params: a tree of arrays. It is read on the host.
      masks: masks, or an optimizer state that holds them. With them the dropped weights are
        counted; without them, the zeros.

    Returns:
      A `Report`. It prints as a table. With masks, a leaf where a dropped weight is not zero, or a
      kept one is, says so in its note.

    Raises:
      ValueError: masks that do not fit, with the path.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.eye(4, dtype="float32"), "bias": jnp.ones(4, "float32")}
      >>> print(summarize(params))
      summary
      leaf    shape  dtype    weights  nonzero  sparsity  note
      bias    4      float32        4        4     0.00%
      kernel  4x4    float32       16        4    75.00%
      total                        20        8    60.00%
    """
    paths, leaves, _ = leaves_with_paths(params)
    by_leaf = [None] * len(leaves) if masks is None else masks_by_path(masks, paths, leaves)
    rows = []
    for path, leaf, mask in zip(paths, leaves, by_leaf, strict=True):
        spec = spec_of(leaf)
        nonzero = np.ones(() if spec is None else spec.shape, bool)
        if spec is not None and (jnp.issubdtype(spec.dtype, jnp.number) or spec.dtype == bool):
            nonzero = np.asarray(is_nonzero(jnp.asarray(leaf)))
        kept = nonzero if mask is None else np.asarray(mask) != 0
        leaks, idle = int(np.sum(nonzero & ~kept)), int(np.sum(~nonzero & kept))
        notes = [f"{leaks:,} dropped but nonzero"] * (leaks > 0) + [f"{idle:,} kept but zero"] * (
            idle > 0
        )
        rows.append(leaf_report(path, leaf, int(np.sum(~kept)), "; ".join(notes)))
    return Report("summary", tuple(rows))


def metrics(opt_state: Any, *, per_leaf: bool = False) -> dict[str, jax.Array]:
    """Scalars for a logger; works inside `jit`.

    Args:
      opt_state: any optimizer state with one prune state inside.
      per_leaf: add the sparsity and the threshold of every leaf, by path.

    Returns:
      float32 and int32 scalars: `prune/step` (updates so far), `prune/sparsity` (fraction of
      dropped weights over all leaves), `prune/n_zero` (float32: how many), `prune/violations`; with
      `per_leaf` also `prune/sparsity/PATH` and `prune/threshold/PATH`.

    Raises:
      ValueError: no prune state, or several.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
      >>> state = tx.init({"kernel": jnp.ones((2, 2))})
      >>> {name: float(value) for name, value in metrics(state).items()}
      {'prune/step': 0.0, 'prune/sparsity': 0.0, 'prune/n_zero': 0.0, 'prune/violations': 0.0}
    """
    state = get_state(opt_state)
    paths, masks, _ = leaves_with_paths(state.masks)
    if state.widths is None:
        dropped = [~m.astype(bool) for m in masks]
        sizes: list[Any] = [np.float32(np.size(m)) for m in masks]
    else:
        dropped = [lax.population_count(~m) if m.ndim else 1 - m for m in masks]
        widths = unboxed(state.widths)
        rows = np.array([math.prod(m.shape[:-1]) for m in masks], np.float32)
        sizes = list(jnp.asarray(rows) * widths.astype(jnp.float32))
    zeros = [total(d).astype(jnp.float32) for d in dropped]
    n_zero = sum(zeros, jnp.zeros((), jnp.float32))
    size = sum(sizes, np.float32(0))
    out = {
        "prune/step": unboxed(state.prune_step),
        "prune/sparsity": n_zero / jnp.maximum(size, 1),
        "prune/n_zero": n_zero,
        "prune/violations": unboxed(state.violations),
    }
    if per_leaf:
        thresholds = unboxed(state.thresholds)
        for i, path in enumerate(paths):
            out[f"prune/sparsity/{path}"] = zeros[i] / jnp.maximum(sizes[i], 1)
            out[f"prune/threshold/{path}"] = thresholds[i]
    return out


def check(params: chex.ArrayTree, opt_state: Any) -> None:
    """Raises unless every dropped weight is exactly zero and has been at every fire.

    Call it on the host, where you save or evaluate.

    Args:
      params: the params that the optimizer holds.
      opt_state: any optimizer state with prune states inside.

    Raises:
      ValueError: naming the leaves where a dropped weight is not zero, or not finite; where masks
        do not fit; where an earlier fire found dropped weights that had moved (`violations`);
        and, on all processes alike, where they were given other arguments for `prune`, or where
        devices that hold the same part of a param or of the prune state hold other numbers.

    Example:
      >>> import jax.numpy as jnp, jaxprune, optax
      >>> params = {"kernel": jnp.array([[3.0, -1.0]])}
      >>> tx = optax.chain(jaxprune.prune(jaxprune.one_shot_schedule(0.5)), optax.scale(0.1))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> check(optax.apply_updates(params, updates), state)
      Traceback (most recent call last):
      ...
      ValueError: kernel: 1 of 1 dropped weights is not zero. Something changes the updates after
        prune: ...
    """
    get_masks(opt_state, params)  # raises where there is no prune state
    paths, leaves, _ = leaves_with_paths(params)
    _check_copies(params, opt_state)  # first: what follows may differ between processes
    lines, not_finite = [], False
    for path, leaf, mask in zip(
        paths, leaves, masks_by_path(opt_state, paths, leaves), strict=True
    ):
        if mask is None or spec_of(leaf) is None or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        dropped = ~mask.astype(bool)
        n_dropped = int(total(dropped))
        n_moved = int(total(dropped & is_nonzero(leaf)))
        n_wild = int(total(dropped & ~jnp.isfinite(leaf)))
        if n_moved:
            verb = "is" if n_moved == 1 else "are"
            wild = f", {n_wild} of them not finite" if n_wild else ""
            lines.append(
                f"{shown_path(path)}: {n_moved} of {n_dropped} dropped weights {verb} not "
                f"zero{wild}"
            )
            not_finite |= bool(n_wild)
    if lines:
        raise ValueError("; ".join(lines) + ". " + (_NOT_FINITE if not_finite else _MISPLACED))
    violations = max(int(np.max(unboxed(s.violations))) for s in find_states(opt_state))
    if violations:
        raise ValueError(
            f"every dropped weight is zero now, but a fire found {violations} that had moved. "
            f"{_MISPLACED}"
        )


def _check_copies(params: Any, opt_state: Any) -> None:
    """Raises where processes prune in other ways, or devices hold other copies of an array."""
    states = [state._replace(inner_state=None) for state in find_states(opt_state)]
    named = [leaves_with_paths(params)[:2], leaves_with_paths(states)[:2]]
    paths = [*named[0][0], *(f"prune state {path}" for path in named[1][0])]
    leaves = [*named[0][1], *named[1][1]]
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        check_remembered([leaves_with_paths(state.masks)[0] for state in states])
    if lines := diverged(paths, leaves):
        raise ValueError("; ".join(lines[:8]) + ". " + _DIVERGED)


_DIVERGED = (
    "Every device has its own masks from here on. In shard_map or pmap, average the gradients over "
    "the axis and pass its name, prune(..., axis_name=...); with several processes, build the same "
    "transformation on all, which jaxprune.check_agreement(schedule, ...) compares."
)
_MISPLACED = (
    "Something changes the updates after prune: make jaxprune.prune the last link of the chain, or "
    "wrap the optimizer with prune(schedule, inner=optimizer). If the params were restored without "
    "their optimizer state, or are an average, take jaxprune.apply_masks(params, opt_state)."
)
_NOT_FINITE = (
    "No update can take NaN or inf to zero: repair the params with "
    "jaxprune.apply_masks(params, opt_state) and look for what made them."
)
