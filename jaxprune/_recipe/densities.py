"""The densities of leaves that share a total in proportion to weights, as in Erdos-Renyi-Kernel.

The arithmetic is rational, so that the total is exact. This module does not know pools or leaves.
"""

import bisect
from collections.abc import Sequence
from fractions import Fraction


class Densities:
    """Densities `clip(scale * weight, floor, 1)` whose counts have exactly a given sum.

    The sum is piecewise linear in the scale. Each leaf adds two corners, where it leaves its floor
    and where it becomes dense. Bisection over the corners finds the scale.

    Args:
      sizes: how many units each leaf has.
      weights: the weight of each leaf, positive.
      floor: the minimum density.

    Example:
      >>> densities = Densities([10, 40], [Fraction(4), Fraction(1)], Fraction(0))
      >>> densities.at(20), densities.at(30)
      ([Fraction(1, 1), Fraction(1, 4)], [Fraction(1, 1), Fraction(1, 2)])
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[Fraction], floor: Fraction):
        self.sizes, self.weights, self.floor = sizes, weights, floor
        self.corners = sorted({bound / w for w in weights for bound in (floor, Fraction(1))})
        slope, total, last = Fraction(0), floor * sum(sizes), Fraction(0)
        change: dict[Fraction, Fraction] = {}
        for n, w in zip(sizes, weights, strict=True):
            change[floor / w] = change.get(floor / w, Fraction(0)) + n * w
            change[1 / w] = change.get(1 / w, Fraction(0)) - n * w
        self.totals = []
        for corner in self.corners:
            total += slope * (corner - last)
            self.totals.append(total)
            slope, last = slope + change[corner], corner

    def at(self, n_keep: int) -> list[Fraction]:
        """The density of each leaf; the floor of each where the floors already keep too many."""
        if not self.sizes:
            return []
        i = bisect.bisect_left(self.totals, n_keep)
        if i in (0, len(self.totals)):
            scale = self.corners[max(i - 1, 0)]
        else:
            (x0, x1), (y0, y1) = self.corners[i - 1 : i + 1], self.totals[i - 1 : i + 1]
            scale = x0 + (x1 - x0) * (n_keep - y0) / (y1 - y0)
        return [min(max(scale * w, self.floor), Fraction(1)) for w in self.weights]
