"""Checks of the distributions of users: their fields, and the pools that they return."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxprune._base.arguments import as_flag, as_int, as_sparsity, is_int, shown
from jaxprune._base.functions import takes_arguments
from jaxprune._base.paths import as_rules, is_hashable, shown_path
from jaxprune._base.plurals import counted
from jaxprune._recipe.pools import LeafShape, Pools


def checked_floor(distribution: Any) -> Fraction:
    """The minimum density of a new `Distribution`, after a check of all its fields.

    Raises:
      TypeError, ValueError: naming the field, and the distribution.
    """
    name, assign = distribution.name, distribution.assign
    if not isinstance(name, str):
        fix = "Swap the first two arguments: " if isinstance(assign, str) else "Pass it first: "
        raise TypeError(
            f'Distribution: name must be a string, got {shown(name)}. {fix}Distribution("mine", '
            "assign)."
        )
    where = f"Distribution {name}:"
    if not callable(assign) or isinstance(assign, type) or not takes_arguments(assign, 2):
        raise TypeError(
            f"{where} assign must be a function (leaves, floor) -> Pools, got {shown(assign)}. "
            "Write one, or pass that of another distribution, such as jaxprune.uniform.assign."
        )
    if not is_hashable(assign):
        raise TypeError(
            f"{where} assign {shown(assign)} cannot be hashed, so its budgets cannot be cached. "
            "Wrap it: lambda leaves, floor: assign(leaves, floor)."
        )
    normalized = distribution.normalized
    if not isinstance(normalized, (bool, np.bool_)) and not _is(normalized, "l2"):
        raise TypeError(
            f"{where} normalized must be True, False or 'l2', got {shown(normalized)}. Pass 'l2' "
            "for the Euclidean norm of a leaf, True for its root mean square."
        )
    _check_stacked(where, distribution.stacked)
    as_flag(f"{where} pooled", distribution.pooled)
    as_flag(f"{where} needs_whole_leaves", distribution.needs_whole_leaves)
    return as_sparsity(distribution.floor, f"{where} floor", of="kept weights")


def _is(value: Any, text: str) -> bool:
    return isinstance(value, str) and value == text


def _check_stacked(where: str, stacked: Any) -> None:
    is_pair = lambda pair: isinstance(pair, tuple) and len(pair) == 2
    if not isinstance(stacked, tuple) or not all(map(is_pair, stacked)):
        raise TypeError(
            f"{where} stacked must be a tuple of pairs (rule, axis), got {shown(stacked)}. Use "
            'jaxprune.per_slice(".*layers/.*", distribution), which makes them.'
        )
    as_rules(tuple(rule for rule, _ in stacked), f"{where} stacked")
    for rule, axis in stacked:
        as_int(f"{where} the axis of {rule!r}", axis)


def assigned(distribution: Any, leaves: Sequence[LeafShape], floor: Fraction) -> Pools:
    """The pools that a distribution assigns to these leaves, after a check.

    Raises:
      TypeError, ValueError: the distribution did not return valid pools for these leaves; the error
        names it. If its function raises an error, a note on the error names the distribution.
    """
    try:
        pools = distribution.assign(leaves, floor)
    except Exception as error:  # whatever a function of the user raises
        if not distribution.assign.__module__.startswith("jaxprune."):
            n_leaves = counted(len(leaves), "leaf", "leaves")
            error.add_note(f"distribution {distribution.name}: its assign got {n_leaves}.")
        raise
    where = f"distribution {distribution.name}: assign returned"
    if not isinstance(pools, Pools):
        raise TypeError(
            f"{where} {shown(pools)}, not Pools. Return jaxprune.Pools(pool_of, n_units, n_drop)."
        )
    if leaves:
        _check_pool_of(where, pools, leaves)
        _check_n_drop(where, pools, leaves)
    return pools


def _check_pool_of(where: str, pools: Pools, leaves: Sequence[LeafShape]) -> None:
    """Raises unless each leaf has a pool, and each pool has as many units as its leaves."""
    for name in ("pool_of", "n_units"):
        numbers = getattr(pools, name)
        if not isinstance(numbers, (tuple, list)) or not all(map(is_int, numbers)):
            raise TypeError(
                f"{where} {name}={shown(numbers)}, which must be a tuple of ints. Return one for "
                f"each {'leaf' if name == 'pool_of' else 'pool'}."
            )
    n_pools = len(pools.n_units)
    if len(pools.pool_of) != len(leaves):
        raise ValueError(
            f"{where} {counted(len(pools.pool_of), 'number')} in pool_of for "
            f"{counted(len(leaves), 'leaf', 'leaves')}. Return the pool of each leaf."
        )
    if not all(0 <= pool < n_pools for pool in pools.pool_of):
        raise ValueError(
            f"{where} a pool {max(pools.pool_of, key=abs)} in pool_of, but n_units has {n_pools}. "
            "Count the pools from 0, and return the units of each in n_units."
        )
    needed = [0] * n_pools
    for pool, leaf in zip(pools.pool_of, leaves, strict=True):
        needed[pool] += leaf.n_units
    for pool, (n, expected) in enumerate(zip(pools.n_units, needed, strict=True)):
        if n != expected:
            raise ValueError(
                f"{where} n_units[{pool}]={n}, but the leaves of this pool have {expected} units. "
                "Return the sum of their n_units."
            )


def _check_n_drop(where: str, pools: Pools, leaves: Sequence[LeafShape]) -> None:
    """Raises unless `n_drop` has a possible number of units for each fire and each pool."""
    shape = (len(leaves[0].targets), len(pools.n_units))
    n_drop = pools.n_drop
    if not isinstance(n_drop, np.ndarray) or n_drop.dtype.kind not in "iu":
        raise TypeError(
            f"{where} n_drop={shown(n_drop)}, which must be a NumPy array of integers. Return "
            "np.array(n_drop, np.int64), with a row for each fire."
        )
    if n_drop.shape != shape:
        raise ValueError(
            f"{where} n_drop of shape {n_drop.shape} for {shape[0]} fires and {shape[1]} pools. "
            f"Return one of shape {shape}, with a row for each fire."
        )
    wrong = np.argwhere((n_drop < 0) | (n_drop > np.array(pools.n_units, np.int64)))
    if len(wrong):
        fire, pool = wrong[0].tolist()
        raise ValueError(
            f"{where} n_drop[{fire}, {pool}]={n_drop[fire, pool]} for a pool of "
            f"{pools.n_units[pool]} units. Return a number from 0 to {pools.n_units[pool]}."
        )
    _check_totals(where, pools, leaves)
    for pool, leaf in zip(pools.pool_of, leaves, strict=True):
        if leaf.n_groups > 1 and np.any(n_drop[:, pool] % leaf.n_groups):
            raise ValueError(
                f"{shown_path(leaf.path)}: {where} n_drop that can't be shared equally by the "
                f"{leaf.n_groups} groups of this leaf. Return multiples of leaf.n_groups."
            )


def _check_totals(where: str, pools: Pools, leaves: Sequence[LeafShape]) -> None:
    """Raises where a pool has fewer zeros than at the fire before, although no target falls.

    Then `n_drop` probably holds the units that each fire adds, not the total. As masks only shrink,
    the run would end too dense.
    """
    n_drop = pools.n_drop
    for fire, pool in (np.argwhere(n_drop[1:] < n_drop[:-1]) + [1, 0]).tolist():
        members = [leaf for p, leaf in zip(pools.pool_of, leaves, strict=True) if p == pool]
        if not any(leaf.targets[fire] < leaf.targets[fire - 1] for leaf in members):
            raise ValueError(
                f"{where} n_drop[{fire}, {pool}]={n_drop[fire, pool]} after "
                f"n_drop[{fire - 1}, {pool}]={n_drop[fire - 1, pool]}, but no target falls there. "
                "Return how many units are zero from each fire on, those of earlier fires included."
            )
