"""Who competes with whom, and how many units each pool drops at every fire.

A distribution turns shapes and target sparsities into pools with exact integer budgets. It works on
the host, in rational arithmetic: float32 is off by up to 28 units at 2**30, and a tie such as a
quarter of 6 units falls either way. It never sees a weight.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from jaxprune._base.arguments import as_sparsity
from jaxprune._base.paths import Rule, as_rules, shown_path


class LeafShape(NamedTuple):
    """What a distribution knows of a leaf, or of one slice of a stacked leaf."""

    path: str
    shape: tuple[int, ...]
    n_units: int
    targets: tuple[Fraction, ...]  # per fire, an override already applied
    fixed: bool = False  # its sparsity was given for itself: it takes no part in the sharing
    n_groups: int = 1  # pools of one budget that its units fall into by themselves


class Pools(NamedTuple):
    """Pools with integer budgets.

    Attributes:
      pool_of: the pool of each leaf (of each slice of a stacked leaf).
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

    Attributes:
      name: as reports and errors call it.
      assign: `(leaves, least density of each leaf) -> Pools`.
      normalized: scores are divided by the root mean square of their leaf.
      floor: least density of every leaf.
      stacked: rules with the axis whose slices count as leaves.

    Example:
      >>> dense_first = Distribution("dense_first", uniform.assign, floor=Fraction(1, 10))
      >>> dense_first
      dense_first
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    name: str
    assign: Callable[[Sequence[LeafShape], Fraction], Pools]
    normalized: bool = False
    floor: Fraction = Fraction(0)
    stacked: tuple[tuple[Rule, int], ...] = ()

    def __repr__(self) -> str:
        return self.name


def round_half_up(x: Fraction) -> int:
    """The nearest integer; exactly half goes up.

    Example:
      >>> round_half_up(Fraction(1, 4) * 6), round_half_up(Fraction(1, 4) * 5)
      (2, 1)
    """
    return (2 * x.numerator + x.denominator) // (2 * x.denominator)


# One sparsity for all


def _by_itself(leaf: LeafShape, floor: Fraction) -> list[int]:
    """What the leaf drops at each fire at its own sparsity, the same in each of its groups."""
    n = leaf.n_units // leaf.n_groups
    most = math.floor(n * (1 - floor))
    return [leaf.n_groups * min(round_half_up(target * n), most) for target in leaf.targets]


def _uniform(leaves: Sequence[LeafShape], floor: Fraction = Fraction(0)) -> Pools:
    known: dict[Any, list[int]] = {}  # layers repeat their shapes
    columns = []
    for leaf in leaves:
        key = (leaf.n_units, leaf.n_groups, leaf.targets)
        if key not in known:
            known[key] = _by_itself(leaf, floor)
        columns.append(known[key])
    return _pools(tuple(range(len(leaves))), [leaf.n_units for leaf in leaves], columns, leaves)


def _pools(
    pool_of: Sequence[int], n_units: Sequence[int], columns: Any, leaves: Sequence[LeafShape]
) -> Pools:
    n_fires = len(leaves[0].targets) if leaves else 0
    table = np.array(columns, np.int64).reshape(len(n_units), n_fires).T
    return Pools(tuple(pool_of), tuple(n_units), table)


uniform = Distribution("uniform", _uniform)
"""Every leaf reaches the same sparsity by itself, as in Zhu & Gupta (2017)."""


# More for leaves that have few


def _erk(leaves: Sequence[LeafShape], floor: Fraction) -> Pools:
    return _by_weight("erk", leaves, floor, lambda shape: Fraction(sum(shape), math.prod(shape)))


def _er(leaves: Sequence[LeafShape], floor: Fraction) -> Pools:
    def weight(shape: tuple[int, ...]) -> Fraction:
        ends = shape[-2:]
        return Fraction(sum(ends), math.prod(ends))

    return _by_weight("er", leaves, floor, weight)


def _by_weight(
    name: str,
    leaves: Sequence[LeafShape],
    floor: Fraction,
    weight: Callable[[tuple[int, ...]], Fraction],
) -> Pools:
    """Densities in proportion to a weight, at most 1, with an exact total at every fire."""
    sharing = [i for i, leaf in enumerate(leaves) if not leaf.fixed and leaf.n_units]
    for i in sharing:
        if leaves[i].n_groups > 1:
            raise ValueError(
                f"{shown_path(leaves[i].path)}: {name} shares out an exact total, which groups of "
                "equal counts (NM, balanced blocks) cannot take up. Use distribution=uniform, or "
                "give the leaf a sparsity of its own in overrides."
            )
    columns = [_by_itself(leaf, floor) for leaf in leaves]
    sizes = [leaves[i].n_units for i in sharing]
    shared = [[0] * len(leaves[0].targets) for _ in sharing] if leaves else []
    densities = _Densities(sizes, [weight(leaves[i].shape) for i in sharing], floor)
    before = [0] * len(sharing)
    for fire in range(len(leaves[0].targets) if sharing else 0):
        target = leaves[sharing[0]].targets[fire]
        n_drop = round_half_up(target * sum(sizes))
        parts = [n * (1 - d) for n, d in zip(sizes, densities.at(sum(sizes) - n_drop), strict=True)]
        if sum(before) > n_drop:  # the schedule takes some back
            before = [0] * len(sharing)
        before = largest_remainder(parts, n_drop, before)
        for column, n in zip(shared, before, strict=True):
            column[fire] = n
    for i, column in zip(sharing, shared, strict=True):
        columns[i] = column
    return _pools(range(len(leaves)), [leaf.n_units for leaf in leaves], columns, leaves)


class _Densities:
    """Densities `clip(scale * weight, floor, 1)` whose counts have a given sum, exactly.

    The sum is piecewise linear in the scale, with a corner where a leaf leaves its floor and one
    where it becomes dense, so the scale is found by bisection over the corners.
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
        """The density of each leaf; all at their floor where that is too many already."""
        if not self.sizes:
            return []
        i = bisect.bisect_left(self.totals, n_keep)
        if i in (0, len(self.totals)):
            scale = self.corners[max(i - 1, 0)]
        else:
            (x0, x1), (y0, y1) = self.corners[i - 1 : i + 1], self.totals[i - 1 : i + 1]
            scale = x0 + (x1 - x0) * (n_keep - y0) / (y1 - y0)
        return [min(max(scale * w, self.floor), Fraction(1)) for w in self.weights]


def largest_remainder(parts: Sequence[Fraction], total: int, least: Sequence[int]) -> list[int]:
    """Integers near `parts` that sum to `total`, none below `least`; the first of equals gains."""
    whole = [max(math.floor(part), low) for part, low in zip(parts, least, strict=True)]
    by_lack = sorted(range(len(parts)), key=lambda i: whole[i] - parts[i])
    missing = min(total, sum(map(math.ceil, parts))) - sum(whole)
    for i in by_lack if missing > 0 else ():
        if missing and whole[i] < math.ceil(parts[i]):
            whole[i], missing = whole[i] + 1, missing - 1
    for i in reversed(by_lack):
        while missing < 0 and whole[i] > least[i]:
            whole[i], missing = whole[i] - 1, missing + 1
    return whole


erk = Distribution("erk", _erk)
"""Erdos-Renyi-Kernel: the density of a leaf is in proportion to (sum of its axes) / (product).

Small leaves stay denser than large ones. Leaves that would be more than dense are dense, and the
others share out the rest, as in Evci et al. 2020 (arXiv:1911.11134); the total is exact.
"""

er = Distribution("er", _er)
"""Erdos-Renyi: as `erk`, but of the last two axes only (Mocanu et al. 2018, arXiv:1707.04780)."""


# All in one


def _global(leaves: Sequence[LeafShape], floor: Fraction) -> Pools:
    pool_of, n_units, columns = [], [], []
    sharing = [leaf for leaf in leaves if not leaf.fixed]
    for leaf in sharing:
        if leaf.n_groups > 1:
            raise ValueError(
                f"{shown_path(leaf.path)}: groups of equal counts (NM, balanced blocks) compete "
                "among themselves and not in a global pool. Use distribution=uniform, or give the "
                "leaf a sparsity of its own in overrides."
            )
    if sharing:
        total = sum(leaf.n_units for leaf in sharing)
        most = sum(leaf.n_units - math.ceil(leaf.n_units * floor) for leaf in sharing)
        n_units.append(total)
        columns.append([min(round_half_up(target * total), most) for target in sharing[0].targets])
    for leaf in leaves:
        if leaf.fixed:
            n_units.append(leaf.n_units)
            columns.append(_by_itself(leaf, floor))
        pool_of.append(len(n_units) - 1 if leaf.fixed else 0)
    return _pools(pool_of, n_units, columns, leaves)


global_pool = Distribution("global_pool", _global)
"""All leaves compete in one pool by their scores as they are."""

normalized_pool = Distribution("normalized_pool", _global, normalized=True)
"""All leaves compete in one pool by scores divided by the root mean square of their leaf."""


# Conditions on any of these


def min_density(density: float, distribution: Distribution = uniform) -> Distribution:
    """A distribution that leaves every leaf at least this dense.

    Args:
      density: the least fraction of units that stay, in [0, 1).
      distribution: who shares out the rest. Where all leaves together must keep more than the
        schedule asks for, its target is missed, which `plan` shows.

    Returns:
      A `Distribution`.

    Example:
      >>> min_density(0.05, erk)
      min_density(0.05, erk)
    """
    floor = as_sparsity(density, "min_density: density")
    _check_distribution("min_density", distribution)
    name = f"min_density({density!r}, {distribution})"
    return dataclasses.replace(distribution, name=name, floor=floor)


def per_slice(rules: str | Mapping[str, int], distribution: Distribution = uniform) -> Distribution:
    """A distribution that counts every slice of a stacked axis as a leaf of its own.

    `scan` over layers keeps all of them in one leaf; without this they are one pool.

    Args:
      rules: regex for the whole path -> the stacked axis; a regex alone means axis 0.
      distribution: what is shared out among leaves and slices.

    Returns:
      A `Distribution`.

    Raises:
      ValueError: a distribution of one pool, in which slices make no difference.

    Example:
      >>> per_slice(".*layers/.*")
      per_slice({'.*layers/.*': 0}, uniform)
    """
    if isinstance(rules, str):
        rules = {rules: 0}
    _check_distribution("per_slice", distribution)
    if not isinstance(rules, Mapping) or not rules:
        raise TypeError(
            f'per_slice: rules must be a regex or map regexes to axes, such as {{".*layers/.*": '
            f"0}}, got {rules!r}."
        )
    for rule, axis in rules.items():
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"per_slice: the axis of {rule!r} must be an integer, got {axis!r}.")
    if distribution.assign is _global:
        raise ValueError(
            f"per_slice: in {distribution} all slices are in one pool already; use it by itself."
        )
    as_rules(tuple(rules), "per_slice: rules")
    name = f"per_slice({dict(rules)!r}, {distribution})"
    return dataclasses.replace(distribution, name=name, stacked=tuple(rules.items()))


def _check_distribution(function: str, distribution: Any) -> None:
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"{function}: distribution must be one such as jaxprune.erk, got {distribution!r}."
        )


# Their examples run, although by `__module__` they belong to `jaxprune`.
__test__ = {"Distribution": Distribution}
