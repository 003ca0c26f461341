"""Counting zeros: `summarize` returns a `Report`, a table that `table.py` prints."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import shown
from jaxprune._base.counting import total
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.on_host import is_here
from jaxprune._base.paths import check_not_donated, leaves_with_paths, shown_path, spec_of
from jaxprune._base.trees import ArrayTree
from jaxprune._recipe.argument_types import Structural
from jaxprune._recipe.structural_rules import existing_of
from jaxprune._recipe.tree_errors import PASS_PARAMS, check_no_optimizer_state
from jaxprune._report.table import LeafReport, Report, leaf_report
from jaxprune._state.masks_of_states import masks_by_path
from jaxprune._state.recount import absent_by_path


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
