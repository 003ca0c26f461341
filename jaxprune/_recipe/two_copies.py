"""A tree that holds two copies of the params, as `optax.lookahead` trains: `fast` and `slow`.

Slow params move towards the fast ones, and these are reset to the slow ones. If each copy kept
other weights, what one of them keeps would be dropped in the other, and neither could learn it. So
the scores of the fast params decide for both.
"""

from collections.abc import Sequence

import numpy as np

from jaxprune._base.paths import listed, rule_for
from jaxprune._recipe.leaf import Leaf
from jaxprune._recipe.pools import Pools


def fast_places(leaves: Sequence[Leaf]) -> list[int]:
    """The place of the fast copy of each pruned leaf."""
    place_of = {leaf.path: i for i, leaf in enumerate(leaves)}
    return [place_of[_names(leaf.path)[0]] for leaf in leaves]


def scored_as_fast(leaves: Sequence[Leaf]) -> list[Leaf]:
    """The leaves, as scores see them: the slow ones with the paths and roles of the fast ones."""
    fast = [leaves[i] for i in fast_places(leaves)]
    return [x._replace(path=y.path, roles=y.roles) for x, y in zip(leaves, fast, strict=True)]


def with_equal_counts(pools: Pools, leaves: Sequence[Leaf]) -> Pools:
    """The pools, those of slow leaves with the budgets of the fast ones.

    Where a total is spread over leaves, equal leaves may differ by a unit.

    Args:
      pools: of the whole tree.
      leaves: those that are pruned.

    Raises:
      ValueError: only one of two copies is pruned, or they are pruned in different ways, or they
        would compete with each other.
    """
    _check(leaves)
    n_drop = np.array(pools.n_drop)
    for leaf, i in zip(leaves, fast_places(leaves), strict=True):
        n_drop[:, list(leaf.pools)] = n_drop[:, list(leaves[i].pools)]
    n_drop.flags.writeable = False
    return pools._replace(n_drop=n_drop)


def _check(leaves: Sequence[Leaf]) -> None:
    leaf_of = {leaf.path: leaf for leaf in leaves}
    for path in leaf_of:
        names = _names(path)
        fast, slow = map(leaf_of.get, names)
        if fast is None or slow is None or _how(fast) != _how(slow):
            _, slash, end = path.partition("/")
            raise ValueError(
                f"{listed(names)}: lookahead averages these two copies of a param, so both must "
                "be pruned in the same way. Write rules that match both, such as "
                f"'(fast|slow){slash}{rule_for(end)}'."
            )
        is_shared = not set(fast.pools).isdisjoint(slow.pools)
        if is_shared and fast.traits.coupled_group is None:
            raise ValueError(
                "distribution: a pool of several leaves is not possible with lookahead, because "
                f"its two copies of each param, such as {listed(names)}, would compete with each "
                "other. Use distribution=jaxprune.erk or jaxprune.uniform."
            )


def _names(path: str) -> tuple[str, str]:
    """The paths of both copies of a param."""
    _, slash, end = path.partition("/")
    return f"fast{slash}{end}", f"slow{slash}{end}"


def _how(leaf: Leaf) -> tuple[object, ...]:
    """What must be equal for both copies."""
    is_coupled = leaf.traits.coupled_group is not None
    structure = None if is_coupled else leaf.structure
    return structure, is_coupled, leaf.axes, len(leaf.pools), leaf.floor, leaf.overrides
