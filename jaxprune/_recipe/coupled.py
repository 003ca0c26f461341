"""A structure over several leaves: their channels stay or go together.

`channels` finds what is coupled; here is what it means for one leaf. Leaves of one group are
decided by one selection, in `fire`, and share a budget, in `budget`.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, repr=False)
class Coupled:
    """The part that one leaf has in a group of channels that stay or go together.

    Attributes:
      group: its name, the same for all leaves in it.
      axis: of this leaf.
      unit_of: the channel that each index of the axis belongs to, -1 for one that always stays.
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

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The channels of the group.

        Raises:
          ValueError: the leaf is of another shape than the one that was looked at.
        """
        if not self.axis < len(shape) or shape[self.axis] != len(self.unit_of):
            raise ValueError(
                f"{self!r} wants {len(self.unit_of)} along axis {self.axis}, but the shape is "
                f"{shape}"
            )
        return self.n if math.prod(shape) else 0

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """One."""
        del shape
        return 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The Euclidean norm of what this leaf has of each channel, float32 or wider."""
        wide = scores if scores.dtype == jnp.float64 else scores.astype(jnp.float32)
        others = tuple(i for i in range(scores.ndim) if i != self.axis)
        squares = jnp.sum(wide * wide, others)
        mine = np.array(self.unit_of) >= 0
        unit_of = np.array(self.unit_of)[mine]
        zeros = jnp.zeros(self.n, squares.dtype)
        return jnp.sqrt(zeros.at[unit_of].add(squares[np.flatnonzero(mine)]))

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """That of the first weight of each channel."""
        unit_of = np.array(self.unit_of)
        first = [int(np.argmax(unit_of == unit)) for unit in range(self.n)]
        corner = tuple(slice(None) if i == self.axis else 0 for i in range(mask.ndim))
        return mask[corner][np.array(first)].astype(bool)

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Every weight as its channel."""
        unit_of = np.array(self.unit_of)
        along = jnp.where(unit_of < 0, True, unit_mask.astype(bool)[np.maximum(unit_of, 0)])
        return jax.lax.broadcast_in_dim(along, shape, (self.axis,))


def combined(scores: Sequence[jax.Array]) -> jax.Array:
    """The norm of each channel over all leaves, from that in each."""
    if len(scores) == 1:
        return scores[0]
    total = scores[0] * scores[0]
    for score in scores[1:]:
        total = total + score.astype(total.dtype) ** 2
    return jnp.sqrt(total)
