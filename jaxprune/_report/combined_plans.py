"""The plan of an optimizer that contains several transformations of jaxprune, or a hidden one.

`optax.masked` and `optax.partition` give a transformation a part of the leaves, and a chain may
hold two transformations with different rules.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import shown
from jaxprune._base.float_bits import is_nonzero
from jaxprune._base.paths import check_not_donated, leaves_with_paths, listed
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._report.table import LeafReport, PoolReport, Report, leaf_report
from jaxprune._state.progress import zeros_of
from jaxprune._transform.keep_zeros import masks_of_zeros
from jaxprune._transform.settings import Settings
from jaxprune._transform.update import checked_budget

_HIDDEN = "hidden from prune"


def combined(params: Any, plans: Sequence[Report]) -> Report:
    """One table for all leaves of a tree.

    A leaf that one transformation prunes has the row of its plan. If several prune it, no more
    weights are kept than in the plan that keeps the fewest, and a note says that the total is a
    lower bound. It counts pools that share no leaf; a leaf of another pool is in no pool of the
    table. Where a transformation gets another tree, as in `optax.lookahead`, the table has the
    leaves of that tree alone.

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
    pools = _counted_pools(plans)
    pooled = {path for pool in pools for path in pool.paths}
    report = Report(
        f"plan: {'; '.join(titles)}",
        tuple(
            _combined_row(same_leaf, path in pooled)
            if same_leaf
            else leaf_report(path, leaf_of[path], 0, _HIDDEN)
            for path, same_leaf in rows.items()
        ),
        tuple(dict.fromkeys(note for plan in plans for note in plan.notes)),
        pools,
    )
    repeated = [path for path, same_leaf in rows.items() if len(_pruned(same_leaf)) > 1]
    if not repeated:
        return report
    bound = (
        f"total: at least {'' if report.is_exact else '~'}{report.n_zero:,} of "
        f"{counted(report.size, 'weight')} {is_or_are(report.n_zero)} zero, because several "
        f"transformations prune {listed(repeated)}"
    )
    return dataclasses.replace(report, notes=(*report.notes, bound))


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
    check_not_donated("plan: params", {paths[i]: leaves[i] for i in budget.chosen})
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


def _pruned(rows: Sequence[LeafReport]) -> list[LeafReport]:
    """The rows whose zeros are some, or not known."""
    return [row for row in rows if row.n_zero != 0]


def _combined_row(rows: Sequence[LeafReport], is_in_pool: bool) -> LeafReport:
    """The row of a leaf, from its rows in several plans.

    Args:
      rows: the rows.
      is_in_pool: whether its zeros count as those of a pool.
    """
    pruned = _pruned(rows)
    if len(pruned) < 2:
        return (pruned or rows)[0]
    notes = [note for note in dict.fromkeys(row.note for row in pruned) if note]
    note = "; ".join([f"pruned by {len(pruned)} transformations", *notes])
    unknown = [row for row in pruned if row.n_zero is None]
    known = [row for row in pruned if row.n_zero is not None]
    if is_in_pool or not known:
        return dataclasses.replace(unknown[0], note=note)
    return dataclasses.replace(min(known, key=lambda row: row.size - (row.n_zero or 0)), note=note)


def _counted_pools(plans: Sequence[Report]) -> tuple[PoolReport, ...]:
    """The pools whose zeros count, so that none counts twice; all where no two share a leaf.

    A leaf whose zeros are known is a pool of its own here. Pools are taken by their zeros, the most
    first; then again with all of one plan before the others, for each plan. The most zeros win, so
    the total is never below that of one plan.
    """
    by_plan = [[*plan.pools, *_single_leaves(plan)] for plan in plans]
    by_zeros = sorted(itertools.chain(*by_plan), key=lambda pool: pool.n_zero, reverse=True)
    attempts = [_disjoint([*first, *by_zeros]) for first in ([], *by_plan)]
    best = max(attempts, key=lambda pools: sum(pool.n_zero for pool in pools))
    return tuple(pool for plan in plans for pool in plan.pools if any(pool is x for x in best))


def _single_leaves(plan: Report) -> list[PoolReport]:
    """The leaves that have zeros, as many as is known, each as a pool."""
    return [
        PoolReport((leaf.path,), leaf.size, leaf.n_zero, leaf.is_exact)
        for leaf in plan.leaves
        if leaf.n_zero
    ]


def _disjoint(pools: Iterable[PoolReport]) -> list[PoolReport]:
    """The pools that share no leaf with an earlier one."""
    kept: list[PoolReport] = []
    taken: set[str] = set()
    for pool in pools:
        if taken.isdisjoint(pool.paths):
            kept.append(pool)
            taken |= set(pool.paths)
    return kept
