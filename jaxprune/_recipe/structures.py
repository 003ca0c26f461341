"""Structures: the units of a leaf, which are kept or dropped as a whole.

A structure turns the scores of a leaf into one score per unit, and a mask of units into a mask of
weights. It does not know budgets or other leaves. A structure may split the units of a leaf into
groups with equal budgets, each of which is a pool of its own: the groups of `NM`, or the block
columns of a balanced `Block`. `jaxprune._recipe.traits` describes the methods and attributes of
structures. `NM` has a file of its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._base.arguments import as_flag, as_int, is_int, is_list, shown
from jaxprune._base.sharding import on_gpu
from jaxprune._recipe.leaf_axes import AxesOf, axis_of, known_roles, places
from jaxprune._recipe.matrix_view import MatrixView, Outputs
from jaxprune._recipe.norms import norm_over, widened
from jaxprune._recipe.pooling import any_of, any_of_neighbours, pooled
from jaxprune._recipe.traits import SingleWeights, Structure


@dataclasses.dataclass(frozen=True)
class Unstructured(SingleWeights):
    """Every weight is kept or dropped by itself.

    Example:
      >>> Unstructured().n_units((3, 4))
      12
    """

    @property
    def is_elementwise(self) -> bool:
        """True: each weight is decided without looking at its neighbours."""
        return True

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of weights."""
        return math.prod(shape)

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """1: all weights of a leaf are in one pool."""
        del shape
        return 1


@dataclasses.dataclass(frozen=True)
class Block:
    """Keeps or drops blocks of weights as a whole.

    Blocks tile the last `len(shape)` axes of a leaf, starting at index 0. Blocks at the edge may be
    smaller; they are scored by the weights that they contain. Earlier axes are not tiled.

    Where the roles of a leaf are known, blocks of one or two axes tile the matrix whose rows are
    the axes with the roles `"window"` and `"in"`, flattened, and whose columns are those with the
    role `"out"`. So `Block((1, 16))` always covers 16 neighbouring outputs of one input.

    Args:
      shape: the lengths of a block along the last axes of a leaf, or of its matrix. On a kernel of
        shape (in, out), `Block((1, 16))` covers 16 neighbouring outputs of one input.
      pooling: how the score of a block is computed from those of its weights, `"mean"` or `"max"`.
      balanced: whether every column of blocks along the last axis keeps the same number of blocks,
        so that a block product can gather rows of equal length.

    Raises:
      TypeError: `shape` is not a tuple of ints, or `balanced` is not a bool.
      ValueError: an empty length, or another `pooling`.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> w = jnp.array([[1.0, 1.0, 5.0, 0.0], [3.0, 3.0, 0.0, 0.0]])
      >>> masks = jaxprune.prune_params({"w": w}, 0.5, structure=Block((1, 2)))[1]
      >>> masks["w"].astype(int).tolist()
      [[0, 0, 1, 1], [1, 1, 0, 0]]
    """

    shape: tuple[int, ...]
    pooling: Literal["mean", "max"] = "mean"
    balanced: bool = False

    def __post_init__(self) -> None:
        if not is_list(self.shape) or not self.shape:
            raise TypeError(
                f"Block: shape must be a tuple such as (4, 4), got {shown(self.shape)}."
            )
        shape = tuple(as_int("Block: shape", n) for n in self.shape)
        if min(shape) < 1:
            raise ValueError(
                f"Block: shape must hold lengths of at least 1, got {shape}. Pass a shape such as "
                f"{tuple(max(n, 1) for n in shape)}."
            )
        if not isinstance(self.pooling, str) or self.pooling not in ("mean", "max"):
            raise ValueError(f'Block: pooling must be "mean" or "max", got {shown(self.pooling)}.')
        object.__setattr__(self, "balanced", as_flag("Block: balanced", self.balanced))
        object.__setattr__(self, "shape", shape)

    @property
    def follows_roles(self) -> bool:
        """Whether the roles of a leaf decide how it is tiled: with blocks of one or two axes."""
        return len(self.shape) <= 2

    def for_leaf(self, leaf: AxesOf) -> Structure:
        """The structure for a leaf: this one, or a view of the leaf as a matrix."""
        if leaf.roles is None or len(self.shape) > 2:
            return self
        lead, rows, cols = (
            places(leaf.roles, "stack"),
            places(leaf.roles, "in", "window"),
            places(leaf.roles, "out"),
        )
        in_order = (*lead, *rows, *cols) == tuple(range(len(leaf.roles)))
        if in_order and len(rows) == len(cols) == 1:
            return self
        return MatrixView(self, lead, rows, cols)

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of blocks, smaller ones at the edges included."""
        return math.prod(self._grid(shape))

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """The number of block columns along the last axis if balanced, else 1."""
        return max(self._grid(shape)[-1], 1) if self.balanced else 1

    def unit_sizes(self, shape: tuple[int, ...]) -> dict[int, int]:
        """The number of blocks of each size: {weights in a block: blocks}.

        Blocks at the edges may be smaller.
        """
        lengths = dict(self._lengths(shape))
        sizes = {1: 1}
        for axis, n in enumerate(shape):
            n_whole, rest = divmod(n, lengths.get(axis, 1))
            of_axis = {lengths.get(axis, 1): n_whole} | ({rest: 1} if rest else {})
            sizes = _multiplied(sizes, of_axis)
        return sizes

    def rows_of_unit(self, shape: tuple[int, ...]) -> int | None:
        """How many rows of a matrix each block covers; None if some cover fewer."""
        n_rows = self._grid(shape)[0] if len(shape) == 2 and shape[0] else 0
        return shape[0] // n_rows if n_rows and shape[0] % n_rows == 0 else None

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The mean or the largest score of each block, float32 or wider."""
        x = widened(scores)
        for axis, length in self._lengths(scores.shape):
            x = pooled(x, axis, length, self.pooling)
        if self.pooling == "mean":
            x = x / self._n_weights(scores.shape, x.dtype)
        # Without the barrier, XLA for GPUs would store the sums, too.
        return lax.optimization_barrier(x) if on_gpu([scores]) else x

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """Whether any weight of each block is kept."""
        for axis, length in self._lengths(mask.shape):
            mask = any_of_neighbours(mask, axis, length)
        return mask

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Each weight gets the mask of its block."""
        for axis, length in self._lengths(shape):
            unit_mask = jnp.repeat(unit_mask, length, axis)
            unit_mask = lax.slice_in_dim(unit_mask, 0, shape[axis], axis=axis)
        return unit_mask

    def _lengths(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        if len(shape) < len(self.shape):
            raise ValueError(
                f"{self!r} needs at least {len(self.shape)} axes, but the shape is {shape}"
            )
        first = len(shape) - len(self.shape)
        return [(first + i, n) for i, n in enumerate(self.shape) if n > 1]

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        grid = list(shape)
        for axis, length in self._lengths(shape):
            grid[axis] = -(-shape[axis] // length)
        return tuple(grid)

    def _n_weights(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """How many weights each block has: one number, or an array if some blocks are smaller."""
        counts: Any = 1
        for axis, length in self._lengths(shape):
            starts = np.arange(0, shape[axis], length)
            of_axis = np.minimum(length, shape[axis] - starts).astype(dtype)
            is_even = shape[axis] % length == 0
            others = [i for i in range(len(shape)) if i != axis]
            counts = counts * (length if is_even else jnp.asarray(np.expand_dims(of_axis, others)))
        return counts


@dataclasses.dataclass(frozen=True)
class Channel:
    """Keeps or drops all weights of an output together: a neuron, a filter.

    Args:
      axis: the axis whose indices are the channels, such as the heads of an attention kernel of
        shape (in, heads, head_dim). None for single outputs: the axes whose role is `"out"`,
        flattened. Without roles, the last axis of a leaf of two axes or of a convolution, as in
        `NM`.
      norm: how the score of a channel is computed from those of its weights: 1 for their sum, 2 for
        their Euclidean norm.

    Raises:
      TypeError: `axis` is not an int.
      ValueError: `norm` is neither 1 nor 2.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> w = jnp.array([[3.0, 1.0, -2.0], [0.0, 1.5, -2.0]])
      >>> masks = jaxprune.prune_params({"w": w}, 1 / 3, structure=Channel())[1]
      >>> masks["w"].astype(int).tolist()
      [[1, 0, 1], [1, 0, 1]]
    """

    axis: int | None = None
    norm: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.axis is not None:
            object.__setattr__(self, "axis", as_int("Channel: axis", self.axis))
        if not is_int(self.norm) or self.norm not in (1, 2):
            raise ValueError(f"Channel: norm must be 1 or 2, got {shown(self.norm)}.")

    @property
    def follows_roles(self) -> bool:
        """Whether the roles of a leaf decide which axes are channels: without `axis`."""
        return self.axis is None

    def for_leaf(self, leaf: AxesOf) -> Structure:
        """The structure for a leaf: channels along one axis, or along several that are outputs.

        Raises:
          ValueError: it is not known which axes are outputs, or none of them is.
        """
        if self.axis is not None:
            return self
        roles = known_roles(
            leaf, "out", self, "drops outputs", "the axis of outputs", with_axis=Channel(-1)
        )
        if roles is None:
            return dataclasses.replace(self, axis=-1)
        axes = places(roles, "stack", "out")
        if len(axes) == 1:
            return dataclasses.replace(self, axis=axes[0] - len(roles))
        return Outputs(axes, self.norm)

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of channels; 0 in an empty leaf."""
        return shape[self._axis(shape)] if math.prod(shape) else 0

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """1: all channels of a leaf are in one pool."""
        del shape
        return 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The norm of each channel, float32 or wider."""
        axis = self._axis(scores.shape)
        return norm_over(scores, tuple(i for i in range(scores.ndim) if i != axis), self.norm)

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """Whether any weight of each channel is kept."""
        axis = self._axis(mask.shape)
        return any_of(mask, tuple(i for i in range(mask.ndim) if i != axis))

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Each weight gets the mask of its channel."""
        return lax.broadcast_in_dim(unit_mask, shape, (self._axis(shape),))

    def _axis(self, shape: tuple[int, ...]) -> int:
        return axis_of(shape, self.axis, self, default=-1)


def _multiplied(sizes: dict[int, int], of_axis: dict[int, int]) -> dict[int, int]:
    """The number of blocks of each size, after one more axis is tiled.

    Args:
      sizes: {weights in a block: blocks}, from the axes before.
      of_axis: {length of a block along the new axis: such lengths}.
    """
    product: dict[int, int] = {}
    for size, n in sizes.items():
        for length, m in of_axis.items():
            product[size * length] = product.get(size * length, 0) + n * m
    return {size: n for size, n in product.items() if n}


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# these classes belong to `jaxprune`.
Unstructured.__module__ = Block.__module__ = Channel.__module__ = "jaxprune"
__test__ = {"Unstructured": Unstructured, "Block": Block, "Channel": Channel}
