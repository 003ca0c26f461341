"""The plan of an optimizer that contains several transformations of jaxprune, or a hidden one.

`optax.masked` and `optax.partition` give a transformation a part of the leaves, and a chain may
hold two transformations with different rules.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import shown
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import leaves_with_paths
from jaxprune._report.table import LeafReport, PoolReport, Report, leaf_report
from jaxprune._state.progress import zeros_of
from jaxprune._transform.keep_zeros import masks_of_zeros
from jaxprune._transform.settings import Settings
from jaxprune._transform.update import checked_budget

_HIDDEN = "hidden from prune"


def combined(params: Any, plans: Sequence[Report]) -> Report:
    """One table for all leaves of a tree.

    A leaf that one transformation prunes has the row of its plan. If several prune it, at least as
    many weights are zero as in the plan with the most zeros. Where a transformation gets another
    tree, as in `optax.lookahead`, the table has the leaves of that tree alone.

    Args:
      params: the whole tree.
      plans: one for each transformation.
    """
    paths, leaves, _ = leaves_with_paths(params)
    leaf_of = dict(zip(paths, leaves, strict=True))
    planned = [row for plan in plans for row in plan.leaves]
    is_same_tree = all(row.path in leaf_of for row in planned)
    rows: dict[str, list[LeafReport]] = {path: [] for path in paths if is_same_tree}
    for row in planned:
        rows.setdefault(row.path, []).append(row)
    titles = [plan.title.removeprefix("plan: ") for plan in plans]
    return Report(
        f"plan: {'; '.join(titles)}",
        tuple(
            _combined_row(same_leaf) if same_leaf else leaf_report(path, leaf_of[path], 0, _HIDDEN)
            for path, same_leaf in rows.items()
        ),
        tuple(dict.fromkeys(note for plan in plans for note in plan.notes)),
        _disjoint(pool for plan in plans for pool in plan.pools),
    )


def with_leaves(tree: Any, leaf_of: Mapping[str, Any]) -> Any:
    """A tree with these leaves in the place of their shapes; leaves of other paths stay.

    Args:
      tree: of shapes and dtypes.
      leaf_of: leaves by path.
    """
    paths, leaves, treedef = leaves_with_paths(tree)
    return treedef.unflatten(map(leaf_of.get, paths, leaves))


def plan_of_zeros(params: Any, settings: Settings) -> Report:
    """The plan of `keep_zeros`: the zeros that arrays have.

    Raises:
      ValueError: a leaf is not an array.
    """
    paths, leaves, _ = leaves_with_paths(params)
    budget = checked_budget(settings, params, paths, leaves)
    if not all(isinstance(leaves[i], (jax.Array, np.ndarray)) for i in budget.chosen):
        raise ValueError(
            "plan: keep_zeros keeps the zeros that the params have when init is called, so their "
            f"values are needed, got {shown(leaves[budget.chosen[0]])}. Pass the arrays."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of leaves that are free, which get a note
        masks = masks_of_zeros("plan", settings.recipe, budget, leaves)
    counts = np.asarray(zeros_of(masks)).tolist()
    notes = [choice.reason for choice in budget.choices]
    for i in budget.chosen:
        if not counts[i] and not np.any(is_nonzero(jnp.asarray(leaves[i]))):
            notes[i] = "only zeros: free to learn"
    return Report(
        "plan: the zeros that are kept from the start",
        tuple(map(leaf_report, paths, leaves, counts, notes)),
        tuple(f"unused: {line}" for line in budget.unused),
    )


def _combined_row(rows: Sequence[LeafReport]) -> LeafReport:
    """The row of a leaf, from its rows in several plans."""
    pruned = [row for row in rows if row.n_zero != 0]
    if len(pruned) < 2:
        return (pruned or rows)[0]
    notes = [note for note in dict.fromkeys(row.note for row in pruned) if note]
    note = "; ".join([f"pruned by {len(pruned)} transformations", *notes])
    unknown = next((row for row in pruned if row.n_zero is None), None)
    most = unknown or max(pruned, key=lambda row: row.n_zero or 0)
    return dataclasses.replace(most, note=note)


def _disjoint(pools: Any) -> tuple[PoolReport, ...]:
    """The pools that share no leaf with an earlier one, so that no zero counts twice."""
    kept: list[PoolReport] = []
    taken: set[str] = set()
    for pool in pools:
        if taken.isdisjoint(pool.paths):
            kept.append(pool)
            taken |= set(pool.paths)
    return tuple(kept)
