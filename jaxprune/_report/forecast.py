"""How many weights each pruned leaf will lose, as far as shapes alone can tell."""

import collections
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from jaxprune._recipe.budget import Budget
from jaxprune._recipe.pools import round_half_up

Shape = tuple[int, ...]


class Shared(NamedTuple):
    """Leaves of one pool whose shares depend on their weights.

    Attributes:
      members: the leaves, as positions in `budget.chosen`.
      n_zero: how many weights they lose together.
      is_exact: whether `n_zero` is exact, because all units have the same number of weights.
    """

    members: tuple[int, ...]
    n_zero: int
    is_exact: bool


class Forecast(NamedTuple):
    """The zeros after the last fire.

    Attributes:
      n_zero: of each leaf in `budget.chosen`; None where it depends on the weights.
      shared: the leaves where it does, by pool.
      asked: the fraction of units that the schedule asks to drop, overrides included.
      reached: the fraction that is dropped; less where a density floor prevents the target.
      n_spared: how many units the density floor keeps beyond what the schedule asks for.
    """

    n_zero: list[int | None]
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
    sizes = [leaf.n_weights(shape) for leaf, shape in zip(budget.leaves, shapes, strict=True)]
    expected = budget.n_zero(sizes)
    n_zero: list[int | None] = list(expected)
    shared = []
    for pool, n_entries in collections.Counter(budget.pools.pool_of).items():
        if n_entries < 2:
            continue
        members = [k for k, leaf in enumerate(budget.leaves) if leaf.pools == (pool,)]
        n_units = {k: budget.leaves[k].structure.n_units(shapes[k]) for k in members}
        dropped = _dropped_units(budget, pool, n_units)
        for k in members:
            unit = Fraction(sizes[k], max(n_units[k], 1))
            units = dropped[k]
            n_zero[k] = None if units is None else round_half_up(unit * units)
        undecided = tuple(k for k in members if n_zero[k] is None)
        if undecided:
            total = sum(expected[k] for k in members) - sum(n_zero[k] or 0 for k in members)
            units = {Fraction(sizes[k], n_units[k]) for k in undecided}
            is_exact = len(units) == 1 and units.pop().denominator == 1
            shared.append(Shared(undecided, total, is_exact))
    n_drop = int(budget.pools.n_drop[-1].sum()) if budget.leaves else 0
    all_units = max(sum(budget.pools.n_units), 1)
    asked, reached = Fraction(budget.n_asked, all_units), Fraction(n_drop, all_units)
    return Forecast(n_zero, shared, asked, reached, budget.n_asked - n_drop)


def _dropped_units(budget: Budget, pool: int, n_units: dict[int, int]) -> dict[int, int | None]:
    """How many units of each leaf in a pool are dropped; None where that depends on the weights."""
    most = {k: n_units[k] - budget.leaves[k].floor for k in n_units}
    # Coupled leaves are decided as one.
    deciders = {budget.leaves[k].traits.coupled_group or k: k for k in n_units if most[k]}
    n_drop = int(budget.pools.n_drop[-1, pool])
    compete = len(deciders) > 1 and 0 < n_drop < sum(most[k] for k in deciders.values())
    return {k: None if compete and most[k] else min(most[k], n_drop) for k in n_units}
