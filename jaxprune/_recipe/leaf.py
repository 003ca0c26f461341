"""How one pruned leaf is decided, once its pools are known."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from jaxprune._recipe.distributions import Distribution
from jaxprune._recipe.parts import Part
from jaxprune._recipe.pools import Pools
from jaxprune._recipe.structures import Unstructured
from jaxprune._recipe.traits import Structure, Traits, n_weights_in, traits_of, unit_sizes_of


class Leaf(NamedTuple):
    """How one pruned leaf is decided.

    Attributes:
      structure: what a unit is.
      axes: the axes whose slices are pools of their own; none for a leaf in one pool.
      pools: the pool of the leaf, or of each slice in row-major order.
      floor: how many units the leaf keeps at least, whatever the budget of its pool is.
      path: of the leaf.
      roles: the role of each of its axes; None where they are not known.
      overrides: the index of the override of the leaf, or of each slice; None where it has none.
    """

    structure: Structure = Unstructured()
    axes: tuple[int, ...] = ()
    pools: tuple[int, ...] = (0,)
    floor: int = 0
    path: str = ""
    roles: tuple[str, ...] | None = None
    overrides: tuple[int | None, ...] = (None,)

    @property
    def traits(self) -> Traits:
        """What the structure of the leaf can do."""
        return traits_of(self.structure)

    def decided_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that the structure decides: that of a slice, or that of the leaf, `shape`."""
        return tuple(n for axis, n in enumerate(shape) if axis not in self.axes)

    def n_weights(self, shape: Sequence[int]) -> int:
        """The number of weights that exist in the leaf, which has this shape."""
        return math.prod(shape) - self.traits.n_absent

    def unit_sizes(self, shape: Sequence[int]) -> dict[Fraction, int]:
        """How many units of the leaf, in all of its slices, have how many weights."""
        if self.traits.is_elementwise:
            return {Fraction(1): self.n_weights(shape)}
        n_slices = math.prod(shape[axis] for axis in self.axes)
        sizes = unit_sizes_of(self.structure, self.decided_shape(shape))
        return {size: n * n_slices for size, n in sizes.items() if n * n_slices}

    def n_in_units(self, shape: Sequence[int]) -> int:
        """The number of weights that belong to a unit, so that they can be dropped."""
        return n_weights_in(self.unit_sizes(shape))


def leaves_of(
    distribution: Distribution,
    paths: Sequence[str],
    parts: Sequence[Part],
    entries_of: Sequence[range],
    pools: Pools,
) -> tuple[Leaf, ...]:
    """How each chosen leaf is decided.

    Args:
      distribution: that made the pools.
      paths: of the chosen leaves.
      parts: of these leaves.
      entries_of: the places of the entries of each leaf in `pools.pool_of`.
      pools: of all entries.
    """
    is_shared = len(set(pools.pool_of)) < len(pools.pool_of)
    least = distribution.floor if is_shared else Fraction(0)
    return tuple(
        Leaf(
            structure=part.structure,
            axes=part.axes,
            pools=tuple(pools.pool_of[k] for k in indices),
            floor=math.ceil(part.entries[0].n_units * least),
            path=path,
            roles=part.roles,
            overrides=part.overrides,
        )
        for path, part, indices in zip(paths, parts, entries_of, strict=True)
    )
