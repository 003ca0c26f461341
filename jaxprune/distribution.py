"""Who competes with whom, and how many units each pool drops at every fire.

A distribution turns shapes and target sparsities into pools with exact integer budgets. It works on
the host, in rational arithmetic: float32 is off by up to 28 units at 2**30, and a tie such as a
quarter of 6 units falls either way. It never sees a weight.
"""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class LeafShape(NamedTuple):
    """What a distribution knows of a leaf."""

    path: str
    shape: tuple[int, ...]
    n_units: int
    targets: tuple[Fraction, ...]  # per fire, an override already applied


class Pools(NamedTuple):
    """Pools with integer budgets.

    Attributes:
      pool_of: the pool of each leaf.
      n_units: units in each pool.
      n_drop: int64[n_fires, n_pools], how many units are zero from each fire on.
    """

    pool_of: tuple[int, ...]
    n_units: tuple[int, ...]
    n_drop: np.ndarray


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A named way to spread sparsity over leaves.

    It is a value and not a function, so that wrappers which take every callable argument for a
    schedule (`optax.inject_hyperparams`) leave it alone.
    """

    name: str
    assign: Callable[[Sequence[LeafShape]], Pools]

    def __repr__(self) -> str:
        return self.name


def round_half_up(x: Fraction) -> int:
    """The nearest integer; exactly half goes up.

    Example:
      >>> round_half_up(Fraction(1, 4) * 6), round_half_up(Fraction(1, 4) * 5)
      (2, 1)
    """
    return (2 * x.numerator + x.denominator) // (2 * x.denominator)


def _uniform(leaves: Sequence[LeafShape]) -> Pools:
    n_drop: dict[tuple[int, tuple[Fraction, ...]], list[int]] = {}  # layers repeat their shapes
    columns = []
    for leaf in leaves:
        key = (leaf.n_units, leaf.targets)
        if key not in n_drop:
            n_drop[key] = [round_half_up(target * leaf.n_units) for target in leaf.targets]
        columns.append(n_drop[key])
    n_fires = len(leaves[0].targets) if leaves else 0
    table = np.array(columns, np.int64).reshape(len(leaves), n_fires).T
    return Pools(tuple(range(len(leaves))), tuple(leaf.n_units for leaf in leaves), table)


uniform = Distribution("uniform", _uniform)
"""Every leaf reaches the same sparsity by itself, as in Zhu & Gupta (2017)."""
