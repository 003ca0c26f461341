"""Whether a run prunes as it should: `check`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import numpy as np

from jaxprune._base.agreement import check_remembered, diverged
from jaxprune._base.arguments import as_flag
from jaxprune._base.on_host import to_host
from jaxprune._base.paths import (
    check_not_donated,
    flattened,
    leaves_with_paths,
    listed,
    paths_of,
    shown_path,
)
from jaxprune._base.sharding import in_default_memory
from jaxprune._base.trees import ArrayTree
from jaxprune._recipe.tree_errors import NO_LEAVES
from jaxprune._report import check_advice as advice
from jaxprune._report.nonzero import nonzero_of, of_several_networks
from jaxprune._report.unfinished import (
    check_whole,
    does_land,
    emptied,
    require_progress,
    unfinished,
)
from jaxprune._state.masks_of_states import get_masks, masks_by_path
from jaxprune._state.prune_state import (
    PruneState,
    check_params,
    find_states,
    require_states,
    unboxed,
)
from jaxprune._transform.placement import instead_of, mixing_wrapper


def check(params: ArrayTree, opt_state: Any, *, done: bool = False) -> None:
    """Raises an error unless every dropped weight is exactly zero, now and at all fires so far.

    Call it outside `jit`, where you save or evaluate. With `done=True` it also verifies that
    pruning is finished: use that form for the params that you keep. With `regrow="hold"` and
    `"train"` the params stay dense: without `done`, pass `apply_masks(params, opt_state)`.

    With several processes, call it in all of them: it waits for the others. Only print under
    `if jax.process_index() == 0`.

    Args:
      params: the params that the optimizer trains.
      opt_state: any optimizer state with prune states inside. Of several networks with the same
        paths, check each with its own state: `check(params["q1"], states["q1"])`.
      done: whether the schedule must be finished and the params must have as many zeros as it
        promises. Masks are counted, and params too, unless they stay dense (`regrow="hold"` and
        `"train"`). The masks of `rigl` and its variants must drop exactly as many as budgeted.

    Raises:
      TypeError: called under `jit`, or with the arguments swapped.
      ValueError: with `done`, there are no params, the schedule is not finished, the masks were
        lost or the params are those of an earlier step, with the counts of every leaf; or the state
        has no `progress`, which `upgrade_state` adds. In any case, a dropped weight is not zero, or
        not finite, naming the leaf; dropped weights were not zero at an earlier fire
        (`violations`); a mask does not fit its param, or no param has a mask. Also, in all
        processes alike: `prune` got other arguments in some process, or devices that should hold
        the same part of a param or of the prune state hold different values.

    Example:
      >>> import jax.numpy as jnp, jaxprune, optax
      >>> params = {"kernel": jnp.array([[3.0, -1.0]])}
      >>> tx = optax.chain(jaxprune.prune(jaxprune.one_shot_schedule(0.5)), optax.scale(0.1))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> check(optax.apply_updates(params, updates), state)
      Traceback (most recent call last):
      ...
      ValueError: kernel: 1 of 1 dropped weight is not zero. Something changes the updates after
        prune: ...
    """
    done = as_flag("check: done", done)
    states = _states_of(params, opt_state)
    check_whole(states)
    if len({tuple(paths_of(state.masks)) for state in states}) == 1:
        get_masks(opt_state)  # raises where these are masks of several networks
    paths, leaves, _ = leaves_with_paths(params)
    _check_copies(paths, leaves, states)  # first: the checks below may differ between processes
    leaves = in_default_memory(leaves)
    masks = masks_by_path(opt_state, paths, leaves)
    if paths and all(mask is None for mask in masks):
        raise ValueError(
            f"check: the prune state has no masks, but the params have {listed(paths)}. The "
            "optimizer was made for an empty tree, so nothing is pruned: pass the params to "
            "tx.init, or wrt=nnx.Param to nnx.Optimizer."
        )
    lacking: tuple[str, ...] = ()
    if done:
        if not paths:
            raise ValueError(f"check: {NO_LEAVES}.")
        lacking = _check_done(paths, leaves, states)
        landing = [state for state in states if does_land(state)]
        masks = masks_by_path(landing, paths, leaves) if landing else [None] * len(leaves)
    nonzero = [m for m in map(nonzero_of, paths, leaves, masks) if m is not None]
    violations = max(
        int(to_host("check: violations", unboxed(s.violations), "(params, opt_state)").max())
        for s in states
    )
    if nonzero:
        shared = of_several_networks(states, [m.path for m in nonzero])
        not_finite = any(m.n_not_finite for m in nonzero)
        if lacking and not violations and not not_finite:
            raise ValueError(
                f"the params are not pruned as the masks are: {_some(lacking)}. {shared}"
                f"{advice.EARLIER}"
            )
        fix = _misplaced(opt_state)
        if not_finite:
            fix = advice.NOT_FINITE
        elif _stay_dense(states):
            fix = advice.DENSE
        raise ValueError("; ".join(map(str, nonzero)) + ". " + shared + fix)
    if violations:
        raise ValueError(
            f"every dropped weight is zero now, but at an earlier fire {violations} were not. "
            f"{_misplaced(opt_state)}{advice.REPLACED}"
        )


def _states_of(params: Any, opt_state: Any) -> list[PruneState]:
    """The prune states; raises where the arguments are not params and their optimizer state."""
    leaves, _ = flattened((params, opt_state))
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        raise TypeError(
            "check: needs the values of params and state, got a traced value. Call it outside jit."
        )
    check_not_donated("check: params", params)
    states = find_states(opt_state)
    check_not_donated("check: opt_state", states)
    if find_states(params) and not states:
        raise TypeError(
            "check: got the optimizer state in the place of the params. Pass them in this order: "
            "check(params, opt_state)."
        )
    check_params("check: params", params)
    return states or require_states(opt_state)  # raises


def _misplaced(opt_state: Any) -> str:
    """Why dropped weights are not zero, and what to do."""
    wrapper = mixing_wrapper(opt_state)
    if wrapper is None:
        return advice.MISPLACED
    return f"{wrapper} around prune mixes its updates with other weights. {instead_of(wrapper)}"


def _check_done(
    paths: list[str], leaves: list[Any], states: Sequence[PruneState]
) -> tuple[str, ...]:
    """Raises unless the schedules are finished and the masks drop what is due.

    Returns:
      One line for each leaf that has too few zeros in the params.
    """
    require_progress(states)
    reports = [unfinished(paths, leaves, state) for state in states]
    in_masks = [line for report in reports for line in report.in_masks]
    in_params = tuple(line for report in reports for line in report.in_params)
    if copied := [path for report in reports for path in report.copied]:
        raise ValueError(
            f"every member of the mapped axis has a copy of {listed(copied)}, but the state counts "
            f"over all members. {advice.COPIED}"
        )
    waiting = max(reports, key=lambda report: report.fires_left)
    if waiting.fires_left:
        verb = "fire is" if waiting.fires_left == 1 else "fires are"
        lines = in_masks or in_params
        raise ValueError(
            f"the schedule is not finished: {waiting.fires_left:,} {verb} left, the last at step "
            f"{waiting.last_step:,}, and the state is at step {waiting.step:,}"
            + (f"; {_some(lines)}. " if lines else ". ")
            + (advice.NOT_DONE if waiting.step else advice.NOT_STARTED)
        )
    if in_masks:
        is_sparse_training = any(np.any(unboxed(state.progress.exact)) for state in states)
        fix = advice.LOST_IN_SPARSE_TRAINING if is_sparse_training else advice.LOST
        raise ValueError(f"the masks are not those of a finished run: {_some(in_masks)}. {fix}")
    for path in dict.fromkeys(path for state in states for path in emptied(state)):
        warnings.warn(
            f"jaxprune.check: {shown_path(path)}: every weight of this leaf is dropped. Keep some "
            "in each leaf with distribution=jaxprune.min_density(0.05, jaxprune.global_pool) (or "
            "another distribution in place of global_pool), or exclude the leaf.",
            stacklevel=3,
        )
    return in_params


def _stay_dense(states: Sequence[PruneState]) -> bool:
    """Whether the params of some state hold dropped weights that are not zero."""
    return any(state.progress is not None and not does_land(state) for state in states)


def _some(lines: Sequence[str]) -> str:
    """The first 8 lines, and how many more there are."""
    more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
    return "; ".join(lines[:8]) + more


def _check_copies(paths: list[str], leaves: list[Any], states: Sequence[PruneState]) -> None:
    """Raises where processes prune differently, or devices hold different copies of an array."""
    own = [state._replace(inner_state=None) for state in states]
    state_paths, state_leaves, _ = leaves_with_paths(own)
    paths = [*paths, *(f"prune state {path}" for path in state_paths)]
    leaves = [*leaves, *state_leaves]
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        check_remembered([leaves_with_paths(state.masks)[0] for state in states])
    if lines := diverged(paths, leaves):
        raise ValueError("; ".join(lines[:8]) + ". " + advice.DIVERGED)
