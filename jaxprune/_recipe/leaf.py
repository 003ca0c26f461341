"""What is needed to choose the masks of one pruned leaf, once its pools are known."""

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
    """How the mask of one pruned leaf is chosen.

    Attributes:
      structure: what the units of the leaf are.
      axes: the axes whose slices are pools of their own; none for a leaf in one pool.
      pools: the pool of the leaf, or of each slice in row-major order.
      floor: the smallest number of units that the leaf keeps, whatever the budget of its pool is.
      path: the path of the leaf.
      roles: the role of each axis of the leaf; None where they are not known.
      overrides: the index of the override that sets the sparsity of the leaf, or of each slice;
        None where no override does.
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
        """The traits of the structure of the leaf."""
        return traits_of(self.structure)

    def decided_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that the structure is applied to: of one slice, or else of the whole leaf.

        Args:
          shape: of the leaf.
        """
        return tuple(n for axis, n in enumerate(shape) if axis not in self.axes)

    def n_weights(self, shape: Sequence[int]) -> int:
        """The number of weights that exist in the leaf, if it has this shape."""
        return math.prod(shape) - self.traits.n_absent

    def unit_sizes(self, shape: Sequence[int]) -> dict[Fraction, int]:
        """The number of units of each size, over all slices: {weights in a unit: units}."""
        if self.traits.is_elementwise:
            return {Fraction(1): self.n_weights(shape)}
        n_slices = math.prod(shape[axis] for axis in self.axes)
        sizes = unit_sizes_of(self.structure, self.decided_shape(shape))
        return {size: n * n_slices for size, n in sizes.items() if n * n_slices}

    def n_in_units(self, shape: Sequence[int]) -> int:
        """The number of weights that can be dropped, because they belong to a unit."""
        return n_weights_in(self.unit_sizes(shape))


def leaves_of(
    distribution: Distribution,
    paths: Sequence[str],
    parts: Sequence[Part],
    entries_of: Sequence[range],
    pools: Pools,
) -> tuple[Leaf, ...]:
    """The `Leaf` of each chosen leaf.

    Args:
      distribution: the distribution that made the pools.
      paths: the paths of the chosen leaves.
      parts: the parts of these leaves, in the same order.
      entries_of: for each leaf, the indices of its entries in `pools.pool_of`.
      pools: the pools of all entries.
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
