"""From arguments and a tree of shapes to the leaves that are pruned and their budgets.

`Recipe` is the arguments, checked once; `Budget` is what they mean for one tree. Both live on the
host and are the same while tracing and outside. The transform, the one-shot form and the dry run
share them.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune._base import paths as paths_lib
from jaxprune._base.arguments import as_sparsity
from jaxprune._base.paths import Choice, Rule, shown_path
from jaxprune._recipe.coupled import Coupled
from jaxprune._recipe.distributions import (
    Distribution,
    LeafShape,
    Pools,
    largest_remainder,
    round_half_up,
    uniform,
)
from jaxprune._recipe.errors import (
    Specs,
    check_leaf,
    check_nm,
    check_score,
    emptied,
    nothing_chosen,
)
from jaxprune._recipe.scores import Accumulated, magnitude
from jaxprune._recipe.structures import NM, Unstructured

Structures = tuple[tuple[Rule, Any], ...]
_ANY = "(?s:.*)"  # matches every path, line ends included


class Leaf(NamedTuple):
    """How one leaf is decided.

    Attributes:
      structure: what a unit is.
      axis: an axis whose slices are pools of their own; None for one pool.
      pools: the pool of the leaf, or of each slice.
      floor: how many units of the leaf are kept at least, whatever its pool says.
    """

    structure: Any = Unstructured()
    axis: int | None = None
    pools: tuple[int, ...] = (0,)
    floor: int = 0


class Budget(NamedTuple):
    """What a recipe means for one tree.

    Attributes:
      choices: one per leaf of the tree.
      chosen: indices of the leaves that are pruned.
      leaves: how each leaf in `chosen` is decided.
      pools: budgets; `pool_of` has one entry per leaf in `chosen`, or per slice of it.
      targets: per leaf in `chosen`, the sparsity asked of it at every fire.
      unused: one line per rule that decided nothing.
    """

    choices: tuple[Choice, ...]
    chosen: tuple[int, ...]
    leaves: tuple[Leaf, ...]
    pools: Pools
    targets: tuple[tuple[Fraction, ...], ...]
    unused: tuple[str, ...]

    def n_keep(self) -> np.ndarray:
        """How many units each pool keeps from each fire on: int64[n_fires, n_pools]."""
        return np.array(self.pools.n_units, np.int64) - self.pools.n_drop

    def n_zero(self, sizes: Sequence[int], fire: int = -1) -> list[int]:
        """The weights that each leaf in `chosen` drops at a fire.

        Where leaves share a pool each has its share, by largest remainder; where blocks are ragged
        it is the nearest number.
        """
        parts = []
        for leaf, size in zip(self.leaves, sizes, strict=True):
            n_drop = sum(int(self.pools.n_drop[fire, pool]) for pool in leaf.pools)
            n_units = sum(self.pools.n_units[pool] for pool in leaf.pools)
            parts.append(Fraction(n_drop, max(n_units, 1)) * size)
        found = [round_half_up(part) for part in parts]
        for pool in {leaf.pools[0] for leaf in self.leaves}:
            mine = [k for k, leaf in enumerate(self.leaves) if leaf.pools == (pool,)]
            if len(mine) > 1:
                shared = [parts[k] for k in mine]
                whole = largest_remainder(
                    shared, round_half_up(sum(shared, Fraction(0))), [0] * len(mine)
                )
                for k, n in zip(mine, whole, strict=True):
                    found[k] = n
        return found


class Recipe(NamedTuple):
    """What to prune and how, checked; every field is a host value and hashable."""

    targets: tuple[Fraction, ...]
    include: tuple[Rule, ...] | None
    exclude: tuple[Rule, ...]
    overrides: tuple[tuple[Rule, Fraction], ...]
    distribution: Distribution
    structures: Structures  # the first that matches; the last matches all
    score: Any

    @staticmethod
    def of(
        targets: tuple[Fraction, ...],
        include: Any = None,
        exclude: Any = (),
        overrides: Any = None,
        distribution: Any = uniform,
        structure: Any = Unstructured(),
        score: Any = magnitude,
    ) -> "Recipe":
        """Checks a user's arguments.

        Raises:
          TypeError, ValueError: naming the argument, what was got, and what to type instead.
        """
        _check_part("distribution", distribution, isinstance(distribution, Distribution), "uniform")
        ok = isinstance(score, Accumulated) or (callable(score) and not isinstance(score, type))
        _check_part("score", score, ok, "magnitude")
        if not paths_lib.is_hashable(score):
            raise TypeError(
                f"score: {score!r} cannot be hashed, so that its compilation can't be remembered. "
                "Wrap it: lambda params, grads, key: score(params, grads, key)."
            )
        include = None if include is None else paths_lib.as_rules(include, "include")
        if include == ():
            raise ValueError(
                "include must hold at least one rule, got none. Leave it out for the default."
            )
        return Recipe(
            targets=targets,
            include=include,
            exclude=paths_lib.as_rules(() if exclude is None else exclude, "exclude"),
            overrides=_as_overrides(overrides, targets[-1]),
            distribution=distribution,
            structures=_as_structures(structure),
            score=score,
        )

    def budget(self, paths: Sequence[str], leaves: Sequence[Any], n_parts: int = 1) -> Budget:
        """The budget of a tree, from the paths and the leaves (arrays, tracers or shapes) of it.

        Of leaves that are parts, one of `n_parts` equal ones, it is the budget of the whole.

        Raises:
          ValueError: with the path of a leaf that can't be pruned, or when nothing is.
        """
        specs = tuple(paths_lib.spec_of(leaf) for leaf in leaves)
        return _budget(self, tuple(paths), specs, n_parts)


@functools.lru_cache(maxsize=64)
def _budget(recipe: Recipe, paths: tuple[str, ...], specs: Specs, n_parts: int) -> Budget:
    if {"params", "batch_stats"} <= {path.partition("/")[0] for path in paths}:
        raise ValueError(
            "batch_stats: these are all variables of a linen model, and statistics are no weights. "
            "Pass variables['params'] alone, to the optimizer too."
        )
    rules = tuple(rule for rule, _ in recipe.overrides)
    choices, unused = paths_lib.choose(paths, specs, recipe.include, recipe.exclude, rules)
    chosen = tuple(i for i, choice in enumerate(choices) if choice.chosen)
    if paths and not chosen:
        raise ValueError(nothing_chosen(paths, choices, specs, recipe.include is None))
    met: set[tuple[str, int]] = set()
    shapes: list[LeafShape] = []
    parts = []  # of each chosen leaf: structure, stacked axis, its place in `shapes`
    leads: dict[str, int] = {}  # the first leaf of each group of coupled ones, which counts for all
    for i in chosen:
        spec = specs[i]
        assert spec is not None  # only arrays are chosen
        check_leaf(paths[i], spec)
        check_score(paths[i], spec, recipe.score)
        structure = _first("structure", recipe.structures, paths[i], spec, met)
        axis = _first("per_slice", recipe.distribution.stacked, paths[i], spec, met)
        if isinstance(structure, Coupled) and axis is not None:
            raise ValueError(
                f"{paths[i]}: {structure!r} decides for several leaves, and per_slice for parts of "
                "one. Leave the leaf out of one of them."
            )
        mine = _leaf_shapes(recipe, paths[i], spec, choices[i].override, structure, axis)
        parts.append((structure, axis, range(len(shapes), len(shapes) + len(mine))))
        counts = not isinstance(structure, Coupled) or structure.group not in leads
        if isinstance(structure, Coupled):
            _lead(leads, structure.group, mine[0], shapes)
        shapes += [shape._replace(n_units=shape.n_units * n_parts * counts) for shape in mine]
    pools = recipe.distribution.assign(shapes, recipe.distribution.floor)
    for shape, pool in zip(shapes, pools.pool_of, strict=True):
        if pools.n_units[pool] and pools.n_drop[-1, pool] >= pools.n_units[pool]:
            raise ValueError(emptied(shape, pools.n_units[pool]))
    shared = len(set(pools.pool_of)) < len(pools.pool_of)
    leaves = tuple(
        Leaf(
            structure,
            None if axis is None else axis % len(specs[i].shape),  # type: ignore[union-attr]
            tuple(pools.pool_of[_lead_of(leads, structure, k)] for k in mine),
            math.ceil(shapes[mine[0]].n_units * recipe.distribution.floor) if shared else 0,
        )
        for i, (structure, axis, mine) in zip(chosen, parts, strict=True)
    )
    unused += _unmet("structure", recipe.structures[:-1], met)
    unused += _unmet("per_slice", recipe.distribution.stacked, met)
    targets = tuple(shapes[mine[0]].targets for _, _, mine in parts)
    return Budget(tuple(choices), chosen, leaves, pools, targets, tuple(unused))


def _lead_of(leads: dict[str, int], structure: Any, place: int) -> int:
    return leads[structure.group] if isinstance(structure, Coupled) else place


def _lead(leads: dict[str, int], group: str, mine: LeafShape, shapes: list[LeafShape]) -> None:
    """Notes the first leaf of a group; an override of any leaf in it is that of the group."""
    lead = leads.setdefault(group, len(shapes))
    if mine.fixed and lead < len(shapes):
        shapes[lead] = shapes[lead]._replace(targets=mine.targets, fixed=True)


def _leaf_shapes(
    recipe: Recipe,
    path: str,
    spec: jax.ShapeDtypeStruct,
    override: int | None,
    structure: Any,
    axis: int | None,
) -> list[LeafShape]:
    """What the distribution is told of a leaf: once, or once per slice of a stacked axis."""
    targets, shape, n_slices = recipe.targets, spec.shape, 1
    if override is not None:
        final = recipe.overrides[override][1]
        targets = tuple(target * final / recipe.targets[-1] for target in targets)
    if axis is not None:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"{path}: per_slice wants an axis {axis}, but the shape is {shape}.")
        n_slices = shape[axis]
        shape = tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
    try:
        n_units, n_groups = structure.n_units(shape), structure.n_groups(shape)
    except ValueError as error:
        rule = paths_lib.rule_for(path)
        raise ValueError(
            f"{shown_path(path)}: {error}. Leave the leaf out with exclude={rule!r}, or give it "
            f"another structure with structure={{{rule!r}: ...}}."
        ) from None
    if isinstance(structure, NM):
        check_nm(path, structure, targets[-1])
    one = LeafShape(path, shape, n_units, targets, override is not None, max(n_groups, 1))
    return [one] * max(n_slices, 1)


def _first(
    argument: str, rules: Sequence[tuple[Rule, Any]], path: str, spec: Any, met: set[Any]
) -> Any:
    """What the first rule that matches a leaf says, or None; and that it was met."""
    for i, (rule, value) in enumerate(rules):
        if paths_lib.matches(rule, path, spec):
            met.add((argument, i))
            return value
    return None


def _unmet(argument: str, rules: Sequence[tuple[Rule, Any]], met: set[Any]) -> list[str]:
    return [
        f"{argument}: {paths_lib.rule_name(rule)} decides for no leaf that is pruned"
        for i, (rule, _) in enumerate(rules)
        if (argument, i) not in met
    ]


def _as_structures(structure: Any) -> Structures:
    """The structures by rule, the one for all other leaves last."""
    if not isinstance(structure, Mapping):
        _check_structure("structure", structure)
        return ((_ANY, structure),)
    rules = paths_lib.as_rules(tuple(structure), "structure")
    for rule, value in structure.items():
        _check_structure(f"structure[{rule!r}]", value)
    return (*zip(rules, structure.values(), strict=True), (_ANY, Unstructured()))


def _check_structure(name: str, value: Any) -> None:
    needed = ("n_units", "n_groups", "unit_scores", "unit_mask", "expand")
    ok = all(hasattr(value, part) for part in needed) and not isinstance(value, type)
    _check_part(name, value, ok, "Unstructured()")


def _as_overrides(overrides: Any, final: Fraction) -> tuple[tuple[Rule, Fraction], ...]:
    if overrides is None:
        return ()
    if not isinstance(overrides, Mapping):
        raise TypeError(
            f'overrides must map regexes to sparsities, like {{".*head/kernel": 0.5}}, got '
            f"{overrides!r}."
        )
    if overrides and final == 0:
        raise ValueError(
            "overrides scale the schedule to another final sparsity, but this schedule ends at 0. "
            "Use a schedule with a positive final_sparsity."
        )
    rules = paths_lib.as_rules(tuple(overrides), "overrides")
    values = [as_sparsity(value, f"overrides[{key!r}]") for key, value in overrides.items()]
    return tuple(zip(rules, values, strict=True))


def _check_part(name: str, value: Any, ok: bool, example: str) -> None:
    if ok:
        return
    hint = ""
    if isinstance(value, (jax.Array, np.ndarray)):
        hint = (
            " If optax.inject_hyperparams made an array of it, name it there: "
            f"inject_hyperparams(prune, static_args=({name!r},))."
        )
    articles = {"distribution": "a Distribution", "structure": "a structure", "score": "a function"}
    article = articles[name.partition("[")[0]]
    raise TypeError(f"{name} must be {article} such as jaxprune.{example}, got {value!r}.{hint}")
