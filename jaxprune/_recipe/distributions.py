"""Distributions: which units compete with each other, and how many each pool drops at every fire.

A distribution turns shapes and target sparsities into pools with exact integer budgets. It runs on
the host, in rational arithmetic: float32 is off by up to 28 units at 2**30 units, and rounds a tie
such as a quarter of 6 units up or down by chance. It never sees a weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxprune._base.argument_types import Sparsity
from jaxprune._base.arguments import as_int, as_sparsity, shown
from jaxprune._base.paths import Rule, as_rules, shown_path
from jaxprune._recipe.densities import Densities
from jaxprune._recipe.distribution_checks import checked_floor
from jaxprune._recipe.pools import LeafShape, Pools, largest_remainder, round_half_up


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A named way to spread sparsity over leaves.

    It is a value and not a function, because `optax.inject_hyperparams` treats every callable
    argument as a schedule.

    Attributes:
      name: its name in reports and errors.
      assign: `(leaves, floor) -> Pools`. `leaves` is a list of `LeafShape`, with the attributes
        `path`, `shape`, `n_units`, `targets`, `fixed`, `n_groups` and `roles`. `floor` is the
        minimum density, a fraction.
      normalized: what scores are divided by before leaves compete: False for nothing, True for the
        root mean square of their leaf, `"l2"` for its Euclidean norm.
      floor: the minimum density of every leaf.
      stacked: rules, each with the axis whose slices are treated as leaves.
      pooled: whether weights of different leaves compete with each other in one pool.
      needs_whole_leaves: whether the budgets depend on more than the number of units in each leaf,
        so that `axis_name`, which shows only parts of leaves, is not possible.

    Example:
      >>> import fractions, jaxprune
      >>> tenth = fractions.Fraction(1, 10)
      >>> dense_first = Distribution("dense_first", jaxprune.uniform.assign, floor=tenth)
      >>> dense_first
      dense_first
    """

    name: str
    assign: Callable[[Sequence[LeafShape], Fraction], Pools]
    normalized: bool | str = False
    floor: Fraction = Fraction(0)
    stacked: tuple[tuple[Rule, int], ...] = ()
    pooled: bool = False
    needs_whole_leaves: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "floor", checked_floor(self))

    def __repr__(self) -> str:
        return self.name


# The same sparsity for all leaves


def _own_budget(leaf: LeafShape, floor: Fraction) -> list[int]:
    """How many units a leaf drops at each fire to reach its own target.

    All groups of its structure, such as those of `NM`, drop the same number.
    """
    n = leaf.n_units // leaf.n_groups
    most = math.floor(n * (1 - floor))
    return [leaf.n_groups * min(round_half_up(target * n), most) for target in leaf.targets]


def _uniform(leaves: Sequence[LeafShape], floor: Fraction = Fraction(0)) -> Pools:
    known: dict[Any, list[int]] = {}  # many layers have the same shape
    columns = []
    for leaf in leaves:
        key = (leaf.n_units, leaf.n_groups, id(leaf.targets))  # hashes of fractions are slow
        if key not in known:
            known[key] = _own_budget(leaf, floor)
        columns.append(known[key])
    return _pools(tuple(range(len(leaves))), [leaf.n_units for leaf in leaves], columns, leaves)


def _pools(
    pool_of: Sequence[int], n_units: Sequence[int], columns: Any, leaves: Sequence[LeafShape]
) -> Pools:
    n_fires = len(leaves[0].targets) if leaves else 0
    table = np.array(columns, np.int64).reshape(len(n_units), n_fires).T
    return Pools(tuple(pool_of), tuple(n_units), table)


uniform = Distribution("uniform", _uniform, needs_whole_leaves=False)
"""Every leaf reaches the same sparsity on its own, as in Zhu & Gupta (2017).

Example:
  >>> import jax.numpy as jnp, jaxprune
  >>> params = {"a": jnp.ones((10, 10)), "b": jnp.ones((20, 100))}
  >>> {leaf.path: leaf.sparsity for leaf in jaxprune.plan(params, 0.9).leaves}
  {'a': 0.9, 'b': 0.9}
"""


# Higher density for small leaves


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
    """Densities in proportion to a weight of each leaf, at most 1, with an exact total per fire."""
    sharing = [i for i, leaf in enumerate(leaves) if not leaf.fixed and leaf.n_units]
    for i in sharing:
        if leaves[i].n_groups > 1:
            raise ValueError(
                f"{shown_path(leaves[i].path)}: {name} distributes an exact total, which "
                "structures with groups of equal counts (NM, balanced blocks) cannot follow. Use "
                "distribution=uniform, or give the leaf its own sparsity with overrides."
            )
    columns: list[Any] = [None] * len(leaves)
    if sharing:
        shares = _shares([leaves[i] for i in sharing], floor, weight)
        for i, column in zip(sharing, shares, strict=True):
            columns[i] = column
    for i, leaf in enumerate(leaves):
        columns[i] = _own_budget(leaf, floor) if columns[i] is None else columns[i]
    return _pools(range(len(leaves)), [leaf.n_units for leaf in leaves], columns, leaves)


def _shares(
    leaves: Sequence[LeafShape], floor: Fraction, weight: Callable[[tuple[int, ...]], Fraction]
) -> np.ndarray:
    """How many units each of these leaves drops at each fire: int64[n_leaves, n_fires]."""
    kinds: dict[tuple[int, tuple[int, ...]], int] = {}  # a model has many leaves of few kinds
    kind_of = [kinds.setdefault((leaf.n_units, leaf.kernel), len(kinds)) for leaf in leaves]
    sizes = [n for n, _ in kinds]
    n_of_kind = [n * count for n, count in zip(sizes, np.bincount(kind_of).tolist(), strict=True)]
    least = [Fraction(math.ceil(n * floor), n) for n in sizes]  # in whole units
    densities = Densities(n_of_kind, [weight(kernel) for _, kernel in kinds], least)
    total = sum(n_of_kind)
    rows: list[np.ndarray] = []
    previous = np.zeros(len(leaves), np.int64)
    for target in leaves[0].targets:
        n_drop = round_half_up(target * total)
        parts = [n * (1 - d) for n, d in zip(sizes, densities.at(total - n_drop), strict=True)]
        if previous.sum() > n_drop:  # the sparsity of the schedule falls
            previous = np.zeros(len(leaves), np.int64)
        previous = largest_remainder(parts, n_drop, previous, kind_of)
        rows.append(previous)
    return np.stack(rows, 1)


erk = Distribution("erk", _erk)
"""Erdos-Renyi-Kernel: small leaves stay denser than large ones.

The density of a leaf is proportional to the sum of the lengths of its axes, divided by their
product.

Where the roles of a leaf are known, its axes are the window of a convolution, the flattened inputs
and the flattened outputs, so that (512, 8, 64) has the density of 512 x 512. Leaves that are pruned
together, as those of `channel_groups`, have the density of the one with most axes.

Where a density would exceed 1 the leaf stays dense, and the other leaves absorb the difference, as
in Evci et al. 2020 (arXiv:1911.11134). The total is exact.

Example:
  >>> import jax.numpy as jnp, jaxprune
  >>> params = {"a": jnp.ones((10, 10)), "b": jnp.ones((20, 100))}
  >>> report = jaxprune.plan(params, 0.9, distribution=jaxprune.erk)
  >>> {leaf.path: leaf.sparsity for leaf in report.leaves}
  {'a': 0.7, 'b': 0.91}
"""

er = Distribution("er", _er)
"""Erdos-Renyi: `erk` on inputs and outputs only (Mocanu et al. 2018, arXiv:1707.04780).

Without roles, these are the last two axes.

Example:
  >>> import jax.numpy as jnp, jaxprune
  >>> params = {"a": jnp.ones((3, 3, 10, 10)), "b": jnp.ones((20, 100))}
  >>> report = jaxprune.plan(params, 0.5, distribution=jaxprune.er)
  >>> {leaf.path: round(leaf.sparsity, 2) for leaf in report.leaves}
  {'a': 0.03, 'b': 0.71}
"""


# One pool for all leaves


def _global(leaves: Sequence[LeafShape], floor: Fraction) -> Pools:
    pool_of, n_units, columns = [], [], []
    sharing = [leaf for leaf in leaves if not leaf.fixed]
    for leaf in sharing:
        if leaf.n_groups > 1:
            raise ValueError(
                f"{shown_path(leaf.path)}: structures with groups of equal counts (NM, "
                "balanced blocks) cannot compete in a global pool. Use distribution=uniform, or "
                "give the leaf its own sparsity with overrides."
            )
    if sharing:
        total = sum(leaf.n_units for leaf in sharing)
        most = sum(leaf.n_units - math.ceil(leaf.n_units * floor) for leaf in sharing)
        n_units.append(total)
        columns.append([min(round_half_up(target * total), most) for target in sharing[0].targets])
    for leaf in leaves:
        if leaf.fixed:
            n_units.append(leaf.n_units)
            columns.append(_own_budget(leaf, floor))
        pool_of.append(len(n_units) - 1 if leaf.fixed else 0)
    return _pools(pool_of, n_units, columns, leaves)


global_pool = Distribution("global_pool", _global, pooled=True, needs_whole_leaves=False)
"""All leaves compete in one pool by their unscaled scores.

Example:
  >>> import jax.numpy as jnp, jaxprune
  >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0, 4.0]])}
  >>> jaxprune.prune_params(params, 0.25, distribution=jaxprune.global_pool)[1]["a"].tolist()
  [[False, True]]
"""

normalized_pool = Distribution("normalized_pool", _global, normalized=True, pooled=True)
"""All leaves compete in one pool by scores divided by the root mean square of their leaf.

Example:
  >>> import jax.numpy as jnp, jaxprune
  >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[30.0, 900.0]])}
  >>> jaxprune.prune_params(params, 0.25, distribution=jaxprune.normalized_pool)[1]["b"].tolist()
  [[False, True]]
"""

l2_pool = Distribution("l2_pool", _global, normalized="l2", pooled=True)
"""All leaves compete in one pool by scores divided by the Euclidean norm of their leaf.

This is the global pruning of JaxPruner and nncf. The norm grows with the number of weights, so a
large leaf loses more of its weights than a small one of the same scale; in `normalized_pool` both
lose the same part.

Example:
  >>> import jax.numpy as jnp, jaxprune
  >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones((1, 2))}
  >>> jaxprune.prune_params(params, 0.5, distribution=jaxprune.l2_pool)[1]["a"].tolist()
  [[True, False], [False, False]]
"""


# Variants of a distribution


def min_density(density: Sparsity, distribution: Distribution = uniform) -> Distribution:
    """A distribution in which every leaf keeps at least a given density.

    Args:
      density: the smallest fraction of units that every leaf keeps, in [0, 1).
      distribution: how the remaining sparsity is spread. If the leaves together must keep more than
        the schedule allows, its target is missed; `plan` shows the counts.

    Returns:
      A `Distribution`.

    Raises:
      TypeError: `density` is not a real number, or `distribution` is not a `Distribution`.
      ValueError: a density outside [0, 1).

    Example:
      >>> import jaxprune
      >>> min_density(0.05, jaxprune.erk)
      min_density(0.05, erk)
    """
    if isinstance(density, Distribution):
        raise TypeError(
            f"min_density: density must be a real number in [0, 1), got the distribution {density}."
            " Pass the number first, and then the distribution without its own minimum, such as "
            "min_density(0.05, jaxprune.global_pool)."
        )
    floor = as_sparsity(density, "min_density: density", of="kept weights")
    _check_distribution("min_density", distribution)
    name = f"min_density({density!r}, {distribution})"
    return dataclasses.replace(distribution, name=name, floor=floor, needs_whole_leaves=True)


def per_slice(rules: str | Mapping[str, int], distribution: Distribution = uniform) -> Distribution:
    """A distribution that treats every slice along a stacked axis as a leaf of its own.

    `scan` over layers stacks all of them in one leaf, which is one pool by default. Where the roles
    of a leaf are known, see the argument `roles` of `prune`, each slice along its axes of role
    `"stack"` is a pool already.

    A rule of `overrides` may name a single slice by its index, as one more part of the path:
    `{"layers/w/2": 0.5}`.

    Args:
      rules: regex for the whole path -> the stacked axis; a regex alone means axis 0.
      distribution: how sparsity is spread over leaves and slices.

    Returns:
      A `Distribution`.

    Raises:
      TypeError: rules that are neither a regex nor map regexes to ints, or no `Distribution`.
      ValueError: an invalid regex, or one pool for all leaves, where slices make no difference.

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
            f"0}}, got {shown(rules)}."
        )
    axes = {rule: as_int(f"per_slice: the axis of {rule!r}", axis) for rule, axis in rules.items()}
    if distribution.pooled:
        raise ValueError(
            f"per_slice: {distribution} puts all slices in one pool, so per_slice has no effect. "
            "Leave it out, and pass the distribution itself."
        )
    as_rules(tuple(axes), "per_slice: rules")
    name = f"per_slice({axes!r}, {distribution})"
    stacked = tuple(axes.items())
    return dataclasses.replace(distribution, name=name, stacked=stacked, needs_whole_leaves=True)


def _check_distribution(function: str, distribution: Any) -> None:
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"{function}: distribution must be a Distribution such as jaxprune.erk, got "
            f"{shown(distribution)}."
        )


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
Distribution.__module__ = "jaxprune"
__test__ = {"Distribution": Distribution}
