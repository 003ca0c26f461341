"""Structures for leaves that have several axes of one role.

`MatrixView` applies a structure to a leaf that is reshaped to a matrix, and `Outputs` drops outputs
that lie on several axes. `Block`, `NM` and `Channel` return one of these from `for_leaf` where they
need it. The rest of the package treats them like any other structure.
"""

import dataclasses
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._recipe.norms import norm_over
from jaxprune._recipe.pooling import any_of
from jaxprune._recipe.traits import Structure, traits_of, unit_sizes_of


@dataclasses.dataclass(frozen=True, repr=False)
class MatrixView:
    """Applies a structure to a leaf that is reshaped to (*lead, rows, cols).

    Some axes of the leaf, flattened in the given order, are the rows; others are the columns.

    Attributes:
      structure: the structure of the matrix, which only uses the last two axes.
      lead: the axes of the leaf that stay separate.
      rows: the axes of the leaf that form the rows.
      cols: the axes of the leaf that form the columns.

    Example:
      >>> from jaxprune import NM
      >>> view = MatrixView(NM(2, 4, axis=-2), lead=(), rows=(0, 2), cols=(1,))
      >>> view.n_groups((2, 5, 6)) == NM(2, 4, axis=-2).n_groups((12, 5))
      True
    """

    structure: Structure
    lead: tuple[int, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]

    def __repr__(self) -> str:
        return f"{self.structure!r} on axes {self.rows} by {self.cols}"

    @property
    def decides_in_groups(self) -> bool:
        """Whether the structure of the matrix decides in groups, as in `Traits`."""
        return traits_of(self.structure).decides_in_groups

    @property
    def final_sparsity(self) -> Fraction | None:
        """The only sparsity that the structure of the matrix can end at; None for any."""
        return traits_of(self.structure).final_sparsity

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of units in the matrix."""
        return self.structure.n_units(self._matrix_shape(shape))

    def unit_sizes(self, shape: tuple[int, ...]) -> dict[Fraction, int]:
        """The number of units of each size: {weights in a unit: units}."""
        return unit_sizes_of(self.structure, self._matrix_shape(shape))

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """The number of groups of equal budget that the structure splits the matrix into.

        Raises:
          ValueError: the structure does not fit the matrix.
        """
        try:
            return self.structure.n_groups(self._matrix_shape(shape))
        except ValueError as error:
            raise ValueError(
                f"{error}; it is the matrix of axes {self.rows} by {self.cols} of shape {shape}"
            ) from None

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The scores of the units of the matrix."""
        return self.structure.unit_scores(self._as_matrix(scores))

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """The mask of the units of the matrix."""
        return self.structure.unit_mask(self._as_matrix(mask))

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The mask of weights, in the axes of the leaf."""
        mask = self.structure.expand(unit_mask, self._matrix_shape(shape))
        order = self._order
        mask = mask.reshape(tuple(shape[axis] for axis in order))
        return jnp.transpose(mask, tuple(map(int, np.argsort(order))))

    def keep_best(self, scores: jax.Array, allowed: jax.Array, n_keep: jax.Array) -> jax.Array:
        """Marks the best units of each group, as the structure of the matrix does."""
        structure: Any = self.structure
        return structure.keep_best(scores, allowed, n_keep)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.lead, *self.rows, *self.cols)

    def _matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        lead, rows, cols = ([shape[i] for i in axes] for axes in (self.lead, self.rows, self.cols))
        return (*lead, math.prod(rows), math.prod(cols))

    def _as_matrix(self, x: jax.Array) -> jax.Array:
        return jnp.transpose(x, self._order).reshape(self._matrix_shape(x.shape))


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Keeps or drops single outputs of a leaf whose outputs lie on several axes.

    Attributes:
      axes: the axes of the outputs, in ascending order. Each combination of their indices is one
        output.
      norm: how the score of an output is computed from those of its weights, as in `Channel`.

    Example:
      >>> outputs = Outputs(axes=(1, 2), norm=1)
      >>> outputs.unit_scores(jnp.ones((5, 2, 3))).tolist()
      [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]
    """

    axes: tuple[int, ...]
    norm: int

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of outputs; 0 in an empty leaf."""
        return math.prod(shape[axis] for axis in self.axes) if math.prod(shape) else 0

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """1: all outputs of a leaf are in one pool."""
        del shape
        return 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The norm of each output, float32 or wider."""
        return norm_over(scores, self._summed(scores.ndim), self.norm)

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """Whether any weight of each output is kept."""
        return any_of(mask, self._summed(mask.ndim))

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Each weight gets the mask of its output."""
        return lax.broadcast_in_dim(unit_mask, shape, self.axes)

    def _summed(self, n_axes: int) -> tuple[int, ...]:
        return tuple(axis for axis in range(n_axes) if axis not in self.axes)
