"""How many weights each pruned leaf will lose, as far as shapes alone can tell."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from jaxprune._recipe.budget import Budget
from jaxprune._recipe.pools import round_half_up
from jaxprune._recipe.traits import n_weights_in

Shape = tuple[int, ...]
UnitSizes = Mapping[Fraction, int]  # weights of a unit -> how many units have as many


class Shared(NamedTuple):
    """Leaves of one pool whose shares depend on their weights.

    Attributes:
      members: the leaves, as positions in `budget.chosen`.
      n_zero: how many weights they lose together.
      is_exact: whether `n_zero` is exact, because all units have the same number of weights. If
        not, it is what they lose if each leaf loses the same part of its units.
      n_units: how many units they have together.
      n_dropped: how many of these are dropped.
    """

    members: tuple[int, ...]
    n_zero: int
    is_exact: bool
    n_units: int
    n_dropped: int


class Forecast(NamedTuple):
    """The zeros after the last fire.

    Attributes:
      n_zero: of each leaf in `budget.chosen`; None where its part of a pool depends on the weights.
      is_exact: for each of these, whether it is exact. It is an average where units of the leaf
        differ in size, so that it matters which of them are dropped.
      shared: the leaves where it does, by pool.
      asked: the fraction of units that the schedule asks to drop, overrides included.
      reached: the fraction that is dropped; less where a density floor prevents the target.
      n_spared: how many units the density floor keeps beyond what the schedule asks for.
    """

    n_zero: list[int | None]
    is_exact: list[bool]
    shared: list[Shared]
    asked: Fraction
    reached: Fraction
    n_spared: int


def forecast(budget: Budget, shapes: Sequence[Shape]) -> Forecast:
    """The zeros of each pruned leaf after the last fire.

    The share of a leaf that competes with others is known only if nothing is dropped, if no other
    leaf of the pool can lose weights, or if the density floor stops all of them.

    Args:
      budget: of a tree.
      shapes: of the leaves in `budget.chosen`.
    """
    unit_sizes = [leaf.unit_sizes(shape) for leaf, shape in zip(budget.leaves, shapes, strict=True)]
    expected = budget.n_zero([n_weights_in(sizes) for sizes in unit_sizes])
    n_zero: list[int | None] = list(expected)
    is_exact = [len(sizes) < 2 or not n for sizes, n in zip(unit_sizes, expected, strict=True)]
    shared = []
    for pool, n_entries in collections.Counter(budget.pools.pool_of).items():
        if n_entries < 2:
            continue
        members = {
            k: unit_sizes[k] for k, leaf in enumerate(budget.leaves) if leaf.pools == (pool,)
        }
        dropped = _dropped_units(budget, pool, members)
        for k, units in dropped.items():
            n_units = sum(members[k].values())
            n_zero[k] = None if units is None else _average(members[k], units)
            is_exact[k] = len(members[k]) < 2 or units in (0, n_units)
        if None in dropped.values():
            shared.append(_shared(budget, pool, members, dropped))
    n_drop = int(budget.pools.n_drop[-1].sum()) if budget.leaves else 0
    all_units = max(sum(budget.pools.n_units), 1)
    asked, reached = Fraction(budget.n_asked, all_units), Fraction(n_drop, all_units)
    return Forecast(n_zero, is_exact, shared, asked, reached, budget.n_asked - n_drop)


def _dropped_units(
    budget: Budget, pool: int, members: Mapping[int, UnitSizes]
) -> dict[int, int | None]:
    """How many units of each leaf in a pool are dropped; None where that depends on the weights."""
    most = {k: sum(sizes.values()) - budget.leaves[k].floor for k, sizes in members.items()}
    deciders = _deciders(budget, [k for k in members if most[k]])
    n_drop = int(budget.pools.n_drop[-1, pool])
    compete = len(deciders) > 1 and 0 < n_drop < sum(most[ks[0]] for ks in deciders)
    return {k: None if compete and most[k] else min(most[k], n_drop) for k in members}


def _shared(
    budget: Budget,
    pool: int,
    members: Mapping[int, UnitSizes],
    dropped: Mapping[int, int | None],
) -> Shared:
    """The leaves of a pool whose shares are not known."""
    decided = [k for k in members if dropped[k] is not None]
    others = tuple(k for k in members if dropped[k] is None)
    n_dropped = int(budget.pools.n_drop[-1, pool])
    n_dropped -= sum(dropped[ks[0]] or 0 for ks in _deciders(budget, decided))
    deciders = _deciders(budget, others)
    n_units = sum(sum(members[ks[0]].values()) for ks in deciders)
    n_weights = sum(n_weights_in(members[k]) for k in others)
    n_zero = round_half_up(Fraction(n_weights * n_dropped, n_units))
    # The size of a unit in all leaves that are decided together.
    sizes = {sum((size for k in ks for size in members[k]), Fraction(0)) for ks in deciders}
    is_exact = len(sizes) == 1 and all(len(members[k]) == 1 for k in others)
    return Shared(others, n_zero, is_exact, n_units, n_dropped)


def _deciders(budget: Budget, members: Iterable[int]) -> list[list[int]]:
    """The leaves that are decided together: coupled ones, and each other leaf alone."""
    by_name: dict[Any, list[int]] = {}
    for k in members:
        by_name.setdefault(budget.leaves[k].traits.coupled_group or k, []).append(k)
    return list(by_name.values())


def _average(sizes: UnitSizes, n_dropped: int) -> int:
    """How many weights so many units of a leaf have on average."""
    return round_half_up(Fraction(n_weights_in(sizes) * n_dropped, max(sum(sizes.values()), 1)))
