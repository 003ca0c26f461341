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
        """The lengths (*window, in, out): axes of one role are one, those of stacks left out.

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
    """Pools with integer budgets.

    Attributes:
      pool_of: the pool of each leaf, or of each slice of a stacked leaf.
      n_units: how many units each pool has.
      n_drop: int64[n_fires, n_pools], how many units of each pool are zero from each fire on.
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


def largest_remainder(parts: Sequence[Fraction], total: int, least: Sequence[int]) -> list[int]:
    """Rounds `parts` to integers that sum to `total`, each at least its entry in `least`.

    Parts with the largest remainders are rounded up; among equal ones, the first.

    Example:
      >>> largest_remainder([Fraction(3, 2), Fraction(3, 2), Fraction(2)], 5, [0, 0, 0])
      [2, 1, 2]
    """
    counts = [max(math.floor(part), low) for part, low in zip(parts, least, strict=True)]
    by_remainder = sorted(range(len(parts)), key=lambda i: counts[i] - parts[i])
    missing = min(total, sum(map(math.ceil, parts))) - sum(counts)
    for i in by_remainder if missing > 0 else ():
        if missing and counts[i] < math.ceil(parts[i]):
            counts[i], missing = counts[i] + 1, missing - 1
    for i in reversed(by_remainder):
        while missing < 0 and counts[i] > least[i]:
            counts[i], missing = counts[i] - 1, missing + 1
    return counts
