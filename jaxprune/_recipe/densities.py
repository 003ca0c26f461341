"""The densities of leaves that share a total in proportion to weights, as in Erdos-Renyi-Kernel.

The arithmetic is rational, so that the total is exact. This module does not know pools or leaves.
"""

import bisect
from collections.abc import Sequence
from fractions import Fraction


class Densities:
    """Densities `clip(scale * weight, least, 1)` whose counts have exactly a given sum.

    The sum is piecewise linear in the scale. Each leaf adds two corners, where it leaves its least
    density and where it becomes dense. Bisection over the corners finds the scale.

    Args:
      sizes: how many units each leaf has.
      weights: the weight of each leaf, positive.
      least: the minimum density of each leaf.

    Example:
      >>> densities = Densities([10, 40], [Fraction(4), Fraction(1)], [Fraction(0)] * 2)
      >>> densities.at(20), densities.at(30)
      ([Fraction(1, 1), Fraction(1, 4)], [Fraction(1, 1), Fraction(1, 2)])
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[Fraction], least: Sequence[Fraction]
    ):
        self.sizes, self.weights, self.least = sizes, weights, least
        slope, total, last = Fraction(0), Fraction(0), Fraction(0)
        change: dict[Fraction, Fraction] = {}
        for n, w, low in zip(sizes, weights, least, strict=True):
            total += low * n
            change[low / w] = change.get(low / w, Fraction(0)) + n * w
            change[1 / w] = change.get(1 / w, Fraction(0)) - n * w
        self.corners = sorted(change)
        self.totals = []
        for corner in self.corners:
            total += slope * (corner - last)
            self.totals.append(total)
            slope, last = slope + change[corner], corner

    def at(self, n_keep: int) -> list[Fraction]:
        """The density of each leaf; the least of each where these already keep too many."""
        if not self.sizes:
            return []
        i = bisect.bisect_left(self.totals, n_keep)
        if i in (0, len(self.totals)):
            scale = self.corners[max(i - 1, 0)]
        else:
            (x0, x1), (y0, y1) = self.corners[i - 1 : i + 1], self.totals[i - 1 : i + 1]
            scale = x0 + (x1 - x0) * (n_keep - y0) / (y1 - y0)
        pairs = zip(self.weights, self.least, strict=True)
        return [min(max(scale * w, low), Fraction(1)) for w, low in pairs]
