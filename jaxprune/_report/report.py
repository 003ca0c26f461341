"""What a run has done: `summarize` counts zeros, `check` verifies them.

`summarize` returns a `Report`, a table that `table.py` prints.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.agreement import check_remembered, diverged
from jaxprune._base.arguments import as_flag, shown
from jaxprune._base.counting import total
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.on_host import is_here, to_host
from jaxprune._base.paths import (
    check_not_donated,
    flattened,
    leaves_with_paths,
    listed,
    paths_of,
    shown_path,
    spec_of,
)
from jaxprune._base.sharding import in_default_memory
from jaxprune._base.trees import ArrayTree
from jaxprune._recipe.argument_types import Structural
from jaxprune._recipe.structural_rules import existing_of
from jaxprune._recipe.tree_errors import NO_LEAVES, PASS_PARAMS, check_no_optimizer_state
from jaxprune._report.nonzero import nonzero_of, of_several_networks
from jaxprune._report.table import LeafReport, Report, leaf_report
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
from jaxprune._state.recount import absent_by_path
from jaxprune._transform.placement import instead_of, mixing_wrapper


def summarize(
    params: ArrayTree, masks: Any = None, *, structural: Structural | None = None
) -> Report:
    """Counts the zeros of every leaf.

    With several processes, call it in all of them: it waits for the others. Only print under
    `if jax.process_index() == 0`.

    Args:
      params: a tree of arrays. Those of this process are copied to the host; those that span
        several are counted on their devices.
      masks: masks, or an optimizer state that holds them. With masks, dropped weights are counted;
        without, zeros.
      structural: which weights exist, as in `prune`; the table counts these only. An optimizer
        state made with `structural` knows this itself.

    Returns:
      A `Report`. It prints as a table. With masks, the note of a leaf says how many dropped weights
      are not zero and how many kept weights are zero, if there are any.

    Raises:
      TypeError: `params` is the name of a file, a train state or an optimizer state, or a leaf has
        no values.
      ValueError: a mask that does not fit its param, with the path; rules of `structural` that
        match nothing.

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
    check_no_optimizer_state(params)
    _check_arrays(paths, leaves)
    check_not_donated("summarize: params", params)
    check_not_donated("summarize: masks", masks)
    by_leaf = [None] * len(leaves) if masks is None else masks_by_path(masks, paths, leaves)
    exist = [None] * len(leaves)
    if structural is not None:
        exist = existing_of(structural, params, paths, leaves)
    absent = absent_by_path(masks)
    rows = zip(paths, leaves, by_leaf, exist, strict=True)
    return Report("summary", tuple(_row(*row, absent.get(row[0], 0)) for row in rows))


def _check_arrays(paths: list[str], leaves: list[Any]) -> None:
    """Raises where `summarize` is given a file or shapes in place of params."""
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, (jax.ShapeDtypeStruct, jax.core.Tracer)):
            raise TypeError(
                f"summarize: {shown_path(path)}: needs values to count zeros, got {shown(leaf)}. "
                "Pass arrays, outside jit; jaxprune.plan takes shapes."
            )
    if paths == [""] and isinstance(leaves[0], (str, bytes, os.PathLike)):
        raise TypeError(
            f"summarize: params must be a tree of arrays, got {shown(leaves[0])}. For a file, call "
            "jaxprune.summarize(jaxprune.load(path)), or `jaxprune inspect PATH` in a shell."
        )
    if leaves and all(spec_of(leaf) is None for leaf in leaves):
        where = f" at {paths[0]}" if paths[0] else ""
        raise TypeError(
            f"summarize: params must be a tree of arrays, got {shown(leaves[0])}{where}. "
            f"{PASS_PARAMS}"
        )


def _row(path: str, leaf: Any, mask: Any, exists: Any, n_absent: int) -> LeafReport:
    """The row of a leaf; `n_absent` of its weights do not exist, but no user said which."""
    spec = spec_of(leaf)
    nonzero: Any = np.ones(() if spec is None else spec.shape, bool)
    if spec is not None and (jnp.issubdtype(spec.dtype, jnp.number) or spec.dtype == bool):
        nonzero = _flags(is_nonzero(jnp.asarray(leaf)))
    kept = nonzero if mask is None else _flags(mask)
    if exists is not None:
        nonzero, kept = nonzero & exists, kept & exists
        n_absent = exists.size - int(exists.sum())
    n_moved, n_idle = _n_true(nonzero & ~kept), _n_true(~nonzero & kept)
    notes = []
    if n_moved:
        notes.append(f"{n_moved:,} dropped but nonzero")
    if n_idle:
        notes.append(f"{n_idle:,} kept but zero")
    n_zero = max(kept.size - _n_true(kept) - n_absent, 0)
    return leaf_report(path, leaf, n_zero, "; ".join(notes), n_absent=n_absent)


def _flags(x: Any) -> Any:
    """Which entries are not 0: on the host, or on the devices where other processes hold parts."""
    return np.asarray(x) != 0 if is_here(x) else x.astype(bool)


def _n_true(flags: Any) -> int:
    return int(total(flags) if isinstance(flags, jax.Array) else np.sum(flags))


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
      ValueError: kernel: 1 of 1 dropped weights is not zero. Something changes the updates after
        prune: ...
    """
    done = as_flag("check: done", done)
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
    states = states or require_states(opt_state)  # raises
    check_whole(states)
    if len({tuple(paths_of(state.masks)) for state in states}) == 1:
        get_masks(opt_state)  # raises where these are masks of several networks
    paths, leaves, _ = leaves_with_paths(params)
    _check_copies(params, opt_state)  # first: the checks below may differ between processes
    leaves = in_default_memory(leaves)
    masks = masks_by_path(opt_state, paths, leaves)
    if paths and all(mask is None for mask in masks):
        raise ValueError(
            f"check: the prune state has no masks, but the params have {listed(paths)}. The "
            "optimizer was made for an empty tree, so nothing is pruned: pass the params to "
            "tx.init, or wrt=nnx.Param to nnx.Optimizer."
        )
    if done and not paths:
        raise ValueError(f"check: {NO_LEAVES}.")
    violations = max(
        int(to_host("check: violations", unboxed(s.violations), "(params, opt_state)").max())
        for s in states
    )
    lacking: tuple[str, ...] = ()
    if done:
        lacking = _check_done(paths, leaves, states)
        landing = [state for state in states if does_land(state)]
        masks = masks_by_path(landing, paths, leaves) if landing else [None] * len(leaves)
    nonzero = [m for m in map(nonzero_of, paths, leaves, masks) if m is not None]
    if nonzero:
        not_finite = any(m.n_not_finite for m in nonzero)
        shared = of_several_networks(states, [m.path for m in nonzero])
        if lacking and not violations and not not_finite:
            raise ValueError(
                f"the params are not pruned as the masks are: {_some(lacking)}. {shared}{_EARLIER}"
            )
        misplaced = _misplaced(opt_state)
        fix = _NOT_FINITE if not_finite else _DENSE if _stay_dense(states) else misplaced
        raise ValueError("; ".join(map(str, nonzero)) + ". " + shared + fix)
    if violations:
        raise ValueError(
            f"every dropped weight is zero now, but at an earlier fire {violations} were not. "
            f"{_misplaced(opt_state)}{_REPLACED}"
        )


def _misplaced(opt_state: Any) -> str:
    """Why dropped weights are not zero, and what to do."""
    wrapper = mixing_wrapper(opt_state)
    if wrapper is None:
        return _MISPLACED
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
            f"over all members. {_COPIED}"
        )
    waiting = max(reports, key=lambda report: report.fires_left)
    if waiting.fires_left:
        verb = "fire is" if waiting.fires_left == 1 else "fires are"
        lines = in_masks or in_params
        raise ValueError(
            f"the schedule is not finished: {waiting.fires_left:,} {verb} left, the last at step "
            f"{waiting.last_step:,}, and the state is at step {waiting.step:,}"
            + (f"; {_some(lines)}. " if lines else ". ")
            + (_NOT_DONE if waiting.step else _NOT_STARTED)
        )
    if in_masks:
        is_sparse_training = any(np.any(unboxed(state.progress.exact)) for state in states)
        advice = _LOST_IN_SPARSE_TRAINING if is_sparse_training else _LOST
        raise ValueError(f"the masks are not those of a finished run: {_some(in_masks)}. {advice}")
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


def _check_copies(params: Any, opt_state: Any) -> None:
    """Raises where processes prune differently, or devices hold different copies of an array."""
    states = [state._replace(inner_state=None) for state in find_states(opt_state)]
    param_paths, param_leaves, _ = leaves_with_paths(params)
    state_paths, state_leaves, _ = leaves_with_paths(states)
    paths = [*param_paths, *(f"prune state {path}" for path in state_paths)]
    leaves = [*param_leaves, *state_leaves]
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        check_remembered([leaves_with_paths(state.masks)[0] for state in states])
    if lines := diverged(paths, leaves):
        raise ValueError("; ".join(lines[:8]) + ". " + _DIVERGED)


_DIVERGED = (
    "From now on every device has its own masks. In shard_map or pmap, where each device holds all "
    "params and a part of the batch, average the gradients before tx.update, grads = "
    "jax.lax.pmean(grads, axis), and leave out axis_name. Where the leaves are split over the "
    "axis, pass prune(..., axis_name=axis). With several processes, build the same transformation "
    "in all of them; "
    "jaxprune.check_agreement(schedule, ...) compares them."
)
_COPIED = (
    "prune(..., axis_name=...) is for leaves that are split over this axis: it counts all copies "
    "together, so that no copy has the masks that are due. If only the data are split, leave "
    "axis_name out, and average the gradients before tx.update: jax.lax.pmean(grads, axis)."
)
_MISPLACED = (
    "Something changes the updates after prune: make jaxprune.prune the last link of the chain, or "
    "wrap the optimizer with prune(schedule, inner=optimizer). Apply every update, params = "
    "optax.apply_updates(params, updates), and change the params in no other way. If the params "
    "are of an earlier step, were restored without their optimizer state, or are an average, use "
    "jaxprune.apply_masks(params, opt_state). If the model sets or rescales this leaf itself (a "
    "reparametrised weight), exclude it from pruning."
)
_REPLACED = (
    " If you replaced weights, such as those of a layer that you reset, mask them before the next "
    "update, params = jaxprune.apply_masks(params, opt_state), and now set the count to 0: "
    "opt_state = optax.tree.set(opt_state, violations=jnp.int32(0)). If a leaf was left out of "
    "pruning for a while and then pruned again, its old mask came back: call "
    "jaxprune.upgrade_state(tx, params, opt_state) whenever the rules change."
)
_DENSE = (
    'With regrow="hold" and "train" the params stay dense. Check what the model uses, '
    "jaxprune.check(jaxprune.apply_masks(params, opt_state), opt_state), or, at the end, only the "
    "masks, jaxprune.check(params, opt_state, done=True)."
)
_NOT_DONE = (
    "Train until the last fire, or let the schedule end earlier. Steps are updates since tx.init; "
    "inside optax.MultiSteps, k calls are one. If these are the best params of a longer run (early "
    "stopping), select among params from after the last fire."
)
_NOT_STARTED = (
    "This state has counted no update: pass the one that the last tx.update returned, not the one "
    "of tx.init."
)
_LOST = (
    "Were the masks lost when the state was restored, or replaced? One more tx.update catches up: "
    "it drops the smallest weights until the counts are right."
)
_LOST_IN_SPARSE_TRAINING = (
    "Were the masks lost when the state was restored, or replaced? If they drop too few weights, "
    "one more tx.update of rigl or set_ catches up; but none brings weights back, and "
    "static_sparse keeps its masks. Pass set_masks masks that drop as many weights as are due, or "
    "build the transformation with their sparsity."
)
_EARLIER = (
    "Are the params an average, or from an earlier step than the state, such as the best "
    "checkpoint of early stopping? Pass params and state of the same step, or prune these params "
    "with jaxprune.apply_masks(params, opt_state). If they are of the same step, something changes "
    "the updates after prune: make jaxprune.prune the last link of the chain."
)
_NOT_FINITE = (
    "An update cannot turn NaN or inf into zero: repair the params with "
    "jaxprune.apply_masks(params, opt_state), and find out where these values come from."
)
