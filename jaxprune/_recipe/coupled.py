"""A structure over several leaves: channels that are kept or dropped together in all of them.

`jaxprune._shrink.channels` finds which channels are coupled; this module applies the result to one
leaf. The leaves of one group of coupled channels share one selection and one budget.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.float_bits import power_of_two
from jaxprune._recipe.norms import largest, widened
from jaxprune._recipe.pooling import any_of


@dataclasses.dataclass(frozen=True, repr=False)
class Coupled:
    """The part that one leaf has in a group of coupled channels.

    Attributes:
      group: the name of the group of coupled channels, the same for all of its leaves.
      axis: the axis of this leaf along which the channels lie.
      unit_of: the channel that each index of the axis belongs to; -1 for one that is always kept.
      n: how many channels the group has.

    Example:
      >>> leaf = Coupled("fc", axis=1, unit_of=(0, 1, 0, -1), n=2)
      >>> leaf.expand(jnp.array([True, False]), (1, 4)).tolist()
      [[True, False, True, True]]
    """

    group: str
    axis: int
    unit_of: tuple[int, ...]
    n: int

    def __repr__(self) -> str:
        return f"Coupled({self.group!r}, axis={self.axis})"

    @property
    def coupled_group(self) -> str:
        """The name of the group of coupled channels, as in `Traits`."""
        return self.group

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of channels in the group; 0 in an empty leaf.

        Raises:
          ValueError: the shape is not the one that the channels were found for.
        """
        if not self.axis < len(shape) or shape[self.axis] != len(self.unit_of):
            raise ValueError(
                f"{self!r} needs length {len(self.unit_of)} along axis {self.axis}, but the shape "
                f"is {shape}"
            )
        return self.n if math.prod(shape) else 0

    def unit_sizes(self, shape: tuple[int, ...]) -> dict[int, int]:
        """The number of channels of each size: {weights of this leaf in a channel: channels}."""
        if not self.n_units(shape):
            return {}
        n_other = math.prod(shape) // shape[self.axis]
        n_indices = np.bincount(self._droppable()[1], minlength=self.n)
        sizes, counts = np.unique(n_indices * n_other, return_counts=True)
        return dict(zip(sizes.tolist(), counts.tolist(), strict=True))

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """1: all channels are in one pool."""
        del shape
        return 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The Euclidean norm of this leaf's weights in each channel, float32 or wider."""
        scores = widened(scores)
        other_axes = tuple(i for i in range(scores.ndim) if i != self.axis)
        droppable, unit_of = self._droppable()
        zeros = jnp.zeros(self.n, scores.dtype)
        unit = power_of_two(zeros.at[unit_of].max(largest(scores, other_axes)[droppable]))
        along = jnp.ones(len(self.unit_of), scores.dtype).at[droppable].set(unit[unit_of])
        parts = scores / jnp.expand_dims(along, other_axes)
        squares = jnp.sum(parts * parts, other_axes)
        return jnp.sqrt(zeros.at[unit_of].add(squares[droppable])) * unit

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """Whether any weight of each channel is kept."""
        along = any_of(mask, tuple(i for i in range(mask.ndim) if i != self.axis))
        droppable, unit_of = self._droppable()
        return jnp.zeros(self.n, bool).at[unit_of].max(along[droppable])

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Each weight gets the mask of its channel."""
        unit_of = np.array(self.unit_of)
        along = jnp.where(unit_of < 0, True, unit_mask.astype(bool)[np.maximum(unit_of, 0)])
        return jax.lax.broadcast_in_dim(along, shape, (self.axis,))

    def _droppable(self) -> tuple[np.ndarray, np.ndarray]:
        """The indices along the axis that belong to a channel, and the channel of each."""
        unit_of = np.array(self.unit_of)
        indices = np.flatnonzero(unit_of >= 0)
        return indices, unit_of[indices]
