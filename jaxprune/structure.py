"""What one decision covers: a single weight, or a group of weights that stay or go together.

A structure turns the scores of a leaf into one score per unit, and a mask of units back into a mask
of weights. It knows nothing of budgets or of other leaves.
"""

import dataclasses
import math

import jax


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight is a unit of its own.

    Example:
      >>> Unstructured().n_units((3, 4))
      12
    """

    def n_units(self, shape: tuple[int, ...]) -> int:
        """How many decisions a leaf of this shape takes."""
        return math.prod(shape)

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """One score per unit."""
        return scores

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """The mask of units that a mask of weights stands for."""
        return mask

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The mask of weights that a mask of units stands for."""
        del shape
        return unit_mask
