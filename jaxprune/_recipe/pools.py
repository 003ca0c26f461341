"""What a distribution gets and returns, and how it rounds: leaves, pools, integers.

Budgets are computed in rational arithmetic and rounded here.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class LeafShape(NamedTuple):
    """What a distribution is told about a leaf, or about one slice of a stacked leaf.

    Attributes:
      path: of the leaf.
      shape: of the leaf, or of the slice.
      n_units: how many units it has.
      targets: its target sparsity at each fire, with its override applied.
      fixed: whether an override sets its sparsity, so that it does not share with other leaves.
      n_groups: the groups of equal budget that its structure splits it into.
      roles: the role of each axis of `shape`; None where they are not known.

    Example:
      >>> from fractions import Fraction
      >>> leaf = LeafShape("w", (20, 20), 400, targets=(Fraction(1, 2),))
      >>> [int(target * leaf.n_units) for target in leaf.targets]
      [200]
    """

    path: str
    shape: tuple[int, ...]
    n_units: int
    targets: tuple[Fraction, ...]
    fixed: bool = False
    n_groups: int = 1
    roles: tuple[str, ...] | None = None

    @property
    def kernel(self) -> tuple[int, ...]:
        """The lengths (*window, in, out): axes of one role are multiplied, stack axes left out.

        Without roles it is the shape.

        Example:
          >>> LeafShape("w", (512, 8, 64), 262_144, (), roles=("in", "out", "out")).kernel
          (512, 512)
        """
        if self.roles is None:
            return self.shape
        lengths = {role: [] for role in ("window", "in", "out")}
        for role, n in zip(self.roles, self.shape, strict=True):
            lengths.setdefault(role, []).append(n)
        return (*lengths["window"], math.prod(lengths["in"]), math.prod(lengths["out"]))


class Pools(NamedTuple):
    """What the `assign` of a `Distribution` returns: pools with integer budgets.

    Attributes:
      pool_of: the pool of each leaf, or of each slice of a stacked leaf.
      n_units: how many units each pool has.
      n_drop: int64[n_fires, n_pools], how many units of each pool are zero from each fire on.

    Example:
      >>> import numpy as np
      >>> one_pool = Pools(pool_of=(0, 0), n_units=(100 + 200,), n_drop=np.array([[150], [270]]))
      >>> one_pool.n_drop.shape  # two fires
      (2, 1)
    """

    pool_of: tuple[int, ...]
    n_units: tuple[int, ...]
    n_drop: np.ndarray


def round_half_up(x: Fraction) -> int:
    """The nearest integer; exactly half goes up.

    Example:
      >>> round_half_up(Fraction(1, 4) * 6), round_half_up(Fraction(1, 4) * 5)
      (2, 1)
    """
    return (2 * x.numerator + x.denominator) // (2 * x.denominator)


def largest_remainder(
    parts: Sequence[Fraction],
    total: int,
    least: Sequence[int] | np.ndarray,
    part_of: Sequence[int] | None = None,
) -> np.ndarray:
    """Rounds parts to integers that sum to `total`, each at least its entry in `least`.

    Parts with the largest remainders are rounded up; among equal ones, the first.

    Args:
      parts: the numbers to round.
      total: their sum after rounding.
      least: int[n].
      part_of: the position in `parts` of each of the n numbers, where many are equal; None where
        they are the parts in order.

    Returns:
      int64[n].

    Example:
      >>> largest_remainder([Fraction(3, 2), Fraction(3, 2), Fraction(2)], 5, [0, 0, 0])
      array([2, 1, 2])
      >>> largest_remainder([Fraction(3, 2), Fraction(2)], 5, [0, 0, 0], part_of=[0, 0, 1])
      array([2, 1, 2])
    """
    number = np.arange(len(parts)) if part_of is None else np.asarray(part_of)
    low = np.asarray(least, np.int64)
    highest = np.array([math.ceil(part) for part in parts], np.int64)[number]
    counts = np.maximum(np.array([math.floor(part) for part in parts], np.int64)[number], low)
    order = _by_remainder(parts, number, counts)
    missing = min(total, int(highest.sum())) - int(counts.sum())
    if missing > 0:
        counts[order[(counts < highest)[order]][:missing]] += 1
    elif missing < 0:
        last_first = order[::-1]
        spare = (counts - low)[last_first]
        before = np.cumsum(spare) - spare
        counts[last_first] -= np.clip(-missing - before, 0, spare)
    return counts


def _by_remainder(parts: Sequence[Fraction], number: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The positions of `counts`, those that were rounded down most first, in order where equal."""
    floors = np.array([math.floor(part) for part in parts], np.int64)
    above = counts - floors[number]
    n_above = int(above.max(initial=0)) + 1
    pairs, pair_of = np.unique(number * n_above + above, return_inverse=True)  # few of them
    excess = [
        int(floors[i]) + k - parts[i] for i, k in (divmod(x, n_above) for x in pairs.tolist())
    ]
    rank_of = {x: rank for rank, x in enumerate(sorted(set(excess)))}
    ranks = np.array([rank_of[x] for x in excess], np.int64)
    return np.argsort(ranks[pair_of.reshape(-1)], kind="stable")


# Pickles have the public names, wherever this file lives. doctest needs the list: by `__module__`,
# these classes belong to `jaxprune`.
LeafShape.__module__ = Pools.__module__ = "jaxprune"
__test__ = {"LeafShape": LeafShape, "Pools": Pools}
