"""From arguments and a tree of shapes to the leaves that are pruned and their budgets.

A `Recipe` holds the arguments, checked once. A `Budget` is what a recipe means for one tree. Both
are host values and hashable, so that compiled functions take them as static arguments.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxprune._base.arguments import BadValue
from jaxprune._base.caching import bounded_cache
from jaxprune._base.paths import Rule, as_rules, spec_of
from jaxprune._recipe import errors
from jaxprune._recipe.choice import Choice, LeafRules, RuleUse
from jaxprune._recipe.default_choice import Specs
from jaxprune._recipe.distribution_checks import assigned
from jaxprune._recipe.distributions import Distribution, uniform
from jaxprune._recipe.leaf import Leaf, leaves_of
from jaxprune._recipe.parts import Part, PartRules, joined
from jaxprune._recipe.pools import LeafShape, Pools, largest_remainder, round_half_up
from jaxprune._recipe.roles import RoleRules, as_roles
from jaxprune._recipe.scores import magnitude
from jaxprune._recipe.spelling import spelled_pairs, spelled_recipe
from jaxprune._recipe.structural import Existing, as_structural
from jaxprune._recipe.structures import Unstructured
from jaxprune._recipe.traits import Structure
from jaxprune._recipe.tree_errors import (
    check_no_optimizer_state,
    check_variables,
    nothing_chosen,
)
from jaxprune._recipe.two_copies import with_equal_counts
from jaxprune._recipe.unmatched import check_rules
from jaxprune._recipe.user_rules import UserRules, as_include, as_overrides, as_structures


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to prune and how, with all arguments checked.

    Attributes:
      targets: the sparsity at each fire; those of several schedules follow each other.
      include: rules of the leaves to prune; None for the default.
      exclude: rules of the leaves to leave out.
      overrides: rules, each with a final sparsity of its own.
      distribution: how sparsity is spread over leaves.
      structures: rules, each with a structure. The first match decides; the last rule matches all.
      score: what a weight is worth; a `Score` or an `Accumulated`.
      roles: the roles of axes; None where none are given.
      n_fires: how many fires each schedule of a list has; empty for a single schedule.
      structural: rules, each with the weights that exist in a leaf.
      has_two_copies: whether the tree holds two copies of the params; see `two_copies.py`.
    """

    targets: tuple[Fraction, ...]
    include: tuple[Rule, ...] | None
    exclude: tuple[Rule, ...]
    overrides: tuple[tuple[Rule, Fraction], ...]
    distribution: Distribution
    structures: tuple[tuple[Rule, Structure], ...]
    score: Any
    roles: RoleRules | None = None
    n_fires: tuple[int, ...] = ()
    structural: tuple[tuple[Rule, Existing], ...] = ()
    has_two_copies: bool = False

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        """The hash of the fields, computed once: a long schedule has many fractions."""
        return hash(tuple(getattr(self, field.name) for field in dataclasses.fields(self)))

    @staticmethod
    def of(
        targets: tuple[Fraction, ...],
        include: Any = None,
        exclude: Any = (),
        overrides: Any = None,
        distribution: Any = uniform,
        structure: Any = Unstructured(),
        score: Any = magnitude,
        roles: Any = None,
        n_fires: tuple[int, ...] = (),
        structural: Any = None,
    ) -> "Recipe":
        """Checks the arguments of a user.

        Raises:
          TypeError, ValueError: naming the argument, its value, and what to type instead.
        """
        errors.check_distribution(distribution)
        errors.check_score_type(score)
        structures = as_structures(structure)
        for _, one in structures:
            errors.check_sign(score, one)
        return Recipe(
            targets=targets,
            include=as_include(include),
            exclude=as_rules(() if exclude is None else exclude, "exclude"),
            overrides=as_overrides(overrides, _finals(targets, n_fires)),
            distribution=distribution,
            structures=structures,
            score=score,
            roles=as_roles(roles),
            n_fires=n_fires,
            structural=as_structural(structural),
        )

    def by_schedule(self) -> list["Recipe"]:
        """The recipe of each schedule of a list."""
        ends = list(itertools.accumulate(self.n_fires))
        parts = zip([0, *ends], ends, strict=False)
        return [dataclasses.replace(self, targets=self.targets[a:b], n_fires=()) for a, b in parts]

    @property
    def may_hold_tracers(self) -> tuple[Any, ...]:
        """The attributes that may be functions or hold some; see `_base.caching`."""
        rules = self.include, self.exclude, self.overrides, self.structures, self.structural
        return self.distribution, self.score, *rules

    @property
    def last_rows(self) -> tuple[int, ...]:
        """The row of the last fire of each schedule."""
        lengths = self.n_fires or (len(self.targets),)
        return tuple(end - 1 for end in itertools.accumulate(lengths))

    @property
    def part_rules(self) -> PartRules:
        """What decides the parts of leaves."""
        return PartRules(*(getattr(self, name) for name in PartRules._fields))

    def checked_budget(self, params: Any, paths: Sequence[str], leaves: Sequence[Any]) -> "Budget":
        """The budget of a tree, after a check that no rule is useless.

        Args:
          params: the tree; its placeholders show which leaves another transformation has.
          paths: of the leaves.
          leaves: arrays, tracers or shapes.

        Raises:
          TypeError: the tree holds the state of an optimizer.
          ValueError: listing the rules that match nothing; and as `budget`.
        """
        recipe = self._spelled(tuple(paths), leaves)
        if recipe is not self:
            return recipe.checked_budget(params, paths, leaves)
        check_no_optimizer_state(params)
        check_variables(paths)  # before the rules, whose errors would advise to name collections
        assigned = dict(overrides=self.overrides, structure=self.structures[:-1])
        assigned |= dict(per_slice=self.distribution.stacked, structural=self.structural)
        slices = self._slices(paths, leaves)
        rules = UserRules(self.include, self.exclude, assigned, self.roles, slices)
        check_rules(rules, params, paths, leaves)
        return self.budget(paths, leaves)

    def _spelled(self, paths: tuple[str, ...], leaves: Sequence[Any]) -> "Recipe":
        """The recipe with its rules in the spelling of the paths; itself where none changes."""
        recipe = spelled_recipe(self, paths)
        overrides = recipe.overrides
        if slices := recipe._slices(paths, leaves):
            overrides = spelled_pairs(overrides, (*paths, *slices))
        if overrides == recipe.overrides:
            return recipe
        return dataclasses.replace(recipe, overrides=overrides)

    def _slices(self, paths: Sequence[str], leaves: Sequence[Any]) -> dict[str, str]:
        """The path of each slice that overrides may name -> the path of its leaf."""
        if not self.overrides or not (self.roles or self.distribution.stacked):
            return {}
        specs = tuple(map(spec_of, leaves))
        choices = LeafRules(self.include, self.exclude).choose(paths, specs, RuleUse())
        return {
            name: path
            for path, spec, choice in zip(paths, specs, choices, strict=True)
            if choice.chosen
            for name in self.part_rules.slice_names(path, spec)
        }

    def budget(self, paths: Sequence[str], leaves: Sequence[Any], n_parts: int = 1) -> "Budget":
        """The budget of a tree; the same object for the same tree, as long as it is cached.

        Args:
          paths: of the leaves.
          leaves: arrays, tracers or shapes.
          n_parts: how many equal parts each leaf was split into, of which `leaves` holds one. The
            budget is that of the whole leaves.

        Raises:
          ValueError: naming a leaf that can't be pruned, or when no leaf is chosen.
        """
        paths = tuple(paths)
        recipe = self._spelled(paths, leaves)
        return _budget(recipe, paths, tuple(map(spec_of, leaves)), n_parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
    """What a recipe means for one tree.

    Two budgets are equal if they were made from the same recipe, paths, shapes and number of parts.

    Attributes:
      choices: one for each leaf of the tree.
      chosen: the indices of the leaves that are pruned.
      leaves: how each leaf in `chosen` is decided.
      pools: the pools and their budgets. They list one entry for each leaf in `chosen`, or for each
        of its slices; coupled leaves have one entry together.
      unused: one line for each rule that has no effect.
      n_asked: how many units the pools would drop in the end without a density floor.
      made_from: what the budget was made from.
    """

    choices: tuple[Choice, ...]
    chosen: tuple[int, ...]
    leaves: tuple[Leaf, ...]
    pools: Pools
    unused: tuple[str, ...]
    n_asked: int
    made_from: tuple[Recipe, tuple[str, ...], Specs, int] = dataclasses.field(repr=False)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Budget):
            return NotImplemented
        return self._hash == other._hash and self.made_from == other.made_from

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.made_from)

    @property
    def may_hold_tracers(self) -> tuple[Any, ...]:
        """The recipe; see `_base.caching`."""
        return (self.made_from[0],)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all leaves of the tree."""
        return self.made_from[1]

    def n_keep(self) -> np.ndarray:
        """How many units each pool keeps from each fire on: int64[n_fires, n_pools]."""
        return np.array(self.pools.n_units, np.int64) - self.pools.n_drop

    def n_zero(self, sizes: Sequence[int], fire: int = -1) -> list[int]:
        """How many weights each leaf in `chosen` drops at a fire.

        Leaves that share a pool are expected to drop in proportion to their sizes, rounded by
        largest remainder. Where units differ in size, the number is an average: which units are
        dropped decides.

        Args:
          sizes: the number of weights that units have, of each leaf in `chosen`.
          fire: which fire.
        """
        if not self.leaves:
            return []
        n_drop = self.pools.n_drop[fire].tolist()
        exact = []
        for leaf, size in zip(self.leaves, sizes, strict=True):
            n_units = sum(self.pools.n_units[pool] for pool in leaf.pools)
            dropped = sum(n_drop[pool] for pool in leaf.pools)
            exact.append(Fraction(dropped, max(n_units, 1)) * size)
        counts = [round_half_up(n) for n in exact]
        by_pools: dict[tuple[int, ...], list[int]] = {}
        for i, leaf in enumerate(self.leaves):
            by_pools.setdefault(leaf.pools, []).append(i)
        for pools, members in by_pools.items():
            if len(pools) == 1 and len(members) > 1:
                parts = [exact[i] for i in members]
                total = round_half_up(sum(parts, Fraction(0)))
                shares = largest_remainder(parts, total, [0] * len(members)).tolist()
                for i, n in zip(members, shares, strict=True):
                    counts[i] = n
        return counts


def _finals(targets: Sequence[Fraction], n_fires: Sequence[int]) -> list[Fraction]:
    """The final sparsity of each schedule."""
    return [targets[end - 1] for end in itertools.accumulate(n_fires or (len(targets),))]


def _budget_of_list(recipe: Recipe, paths: tuple[str, ...], specs: Specs, n_parts: int) -> Budget:
    """The budget of a list of schedules: that of each, one after the other."""
    budgets = [_budget(one, paths, specs, n_parts) for one in recipe.by_schedule()]
    n_drop = np.concatenate([budget.pools.n_drop for budget in budgets])
    n_drop.flags.writeable = False
    return dataclasses.replace(
        budgets[0],
        pools=budgets[0].pools._replace(n_drop=n_drop),
        made_from=(recipe, paths, specs, n_parts),
    )


@bounded_cache(maxsize=64)
def _budget(recipe: Recipe, paths: tuple[str, ...], specs: Specs, n_parts: int) -> Budget:
    if recipe.n_fires:
        return _budget_of_list(recipe, paths, specs, n_parts)
    check_variables(paths)
    use = RuleUse()
    rules = LeafRules(recipe.include, recipe.exclude, _rules(recipe.overrides))
    choices = rules.choose(paths, specs, use)
    chosen = tuple(i for i, choice in enumerate(choices) if choice.chosen)
    if paths and not chosen:
        raise nothing_chosen(paths, choices, specs, recipe.include)
    parts = _parts(recipe, [(paths[i], specs[i], choices[i].override) for i in chosen], use)
    entries, entries_of = joined(parts, n_parts)
    pools = _pools(recipe.distribution, entries)
    leaf_paths = [paths[i] for i in chosen]
    leaves = leaves_of(recipe.distribution, leaf_paths, parts, entries_of, pools)
    if recipe.has_two_copies:
        pools = with_equal_counts(pools, leaves)
    unlimited = pools
    if recipe.distribution.floor:
        unlimited = assigned(recipe.distribution, entries, Fraction(0))
    return Budget(
        choices=choices,
        chosen=chosen,
        leaves=leaves,
        pools=pools,
        unused=(
            *rules.unused(use),
            *use.unused("structure", _rules(recipe.structures[:-1]), decides=True),
            *use.unused("per_slice", _rules(recipe.distribution.stacked), decides=True),
            *use.unused("structural", _rules(recipe.structural), decides=True),
        ),
        n_asked=int(unlimited.n_drop[-1].sum()) if entries else 0,
        made_from=(recipe, paths, specs, n_parts),
    )


def _parts(recipe: Recipe, leaves: Sequence[tuple[str, Any, Any]], use: RuleUse) -> list[Part]:
    """The parts of chosen leaves, each given by its path, its spec and its override."""
    part_rules = recipe.part_rules
    parts, misfits = [], []
    for path, spec, override in leaves:
        try:
            parts.append(part_rules.part(path, spec, override, use))
        except BadValue as error:
            misfits.append((path, error))
    if misfits:
        raise errors.together(misfits, len(leaves))
    return parts


def _rules(pairs: Sequence[tuple[Rule, Any]]) -> tuple[Rule, ...]:
    return tuple(rule for rule, _ in pairs)


def _pools(distribution: Distribution, entries: Sequence[LeafShape]) -> Pools:
    """The pools, none of which drops everything; the budgets are read-only."""
    pools = assigned(distribution, entries, distribution.floor)
    most = pools.n_drop.max(0, initial=0)  # not at the last fire, if the schedule falls
    misfits = {
        entry.path: errors.all_dropped(entry, pools.n_units[pool])
        for entry, pool in zip(entries, pools.pool_of, strict=True)
        if pools.n_units[pool] and most[pool] >= pools.n_units[pool]
    }
    if misfits:
        raise errors.together(list(misfits.items()), len({entry.path for entry in entries}))
    n_drop = np.array(pools.n_drop, np.int64)
    n_drop.flags.writeable = False
    return pools._replace(n_drop=n_drop)
