"""Structures: the units of a leaf, which are kept or dropped as a whole.

A structure turns the scores of a leaf into one score per unit, and a mask of units into a mask of
weights. It does not know budgets or other leaves. A structure may split the units of a leaf into
groups of equal budget, which are pools of their own: the groups of `NM`, the block columns of a
balanced `Block`. `jaxprune._recipe.traits` describes what every structure has.
"""

import dataclasses
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.arguments import as_flag, as_int, is_int, shown
from jaxprune._base.float_bits import order_key
from jaxprune._base.sharding import merge_axis, split_axis


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight is kept or dropped by itself.

    Example:
      >>> Unstructured().n_units((3, 4))
      12
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

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

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The scores unchanged."""
        return scores

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """The mask unchanged."""
        return mask

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The mask unchanged."""
        del shape
        return unit_mask


@dataclasses.dataclass(frozen=True)
class NM:
    """Keeps `n` of every `m` neighbours along one axis, the pattern of sparse matrix hardware.

    While the sparsity of the schedule rises, every group of `m` keeps the same number of weights,
    from `m` down to `n`. The final sparsity of the leaf must be exactly `1 - n / m`. Among equal
    scores in a group, the lower index is kept.

    Choose the axis that the matrix product sums over. That is -2 for the kernels of flax linen
    (`Dense`, `Conv`), NNX (`Linear`, `Conv`) and Haiku (`Linear.w`), all of shape (..., in, out),
    and -1 for Equinox (`nn.Linear.weight` of shape (out, in)).

    Args:
      n: how many weights each group keeps, in [1, m).
      m: the size of a group.
      axis: the axis along which neighbours form groups. Its length must be a multiple of `m`.

    References:
      Zhou et al., `Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch
      <https://arxiv.org/abs/2102.04010>`_, 2021.

    Example:
      >>> import jaxprune
      >>> w = jnp.array([[1.0], [-4.0], [3.0], [2.0]])
      >>> masks = jaxprune.prune_params({"w": w}, 0.5, structure=NM(2, 4))[1]
      >>> masks["w"][:, 0].tolist()
      [False, True, True, False]
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    n: int
    m: int
    axis: int = -2

    def __post_init__(self) -> None:
        for name in ("n", "m", "axis"):
            object.__setattr__(self, name, as_int(f"NM: {name}", getattr(self, name)))
        if not 1 <= self.n < self.m:
            raise ValueError(
                f"NM: n must be in [1, m), got n={self.n} of m={self.m}. NM(2, 4) keeps 2 of every "
                "4."
            )

    @property
    def decides_in_groups(self) -> bool:
        """True: `keep_best` chooses within each group of `m`."""
        return True

    @property
    def final_sparsity(self) -> Fraction:
        """The fraction of zeros of the pattern, `1 - n / m`."""
        return Fraction(self.m - self.n, self.m)

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of weights."""
        return math.prod(shape)

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """The number of groups of `m`.

        Raises:
          ValueError: the leaf does not have the axis, or its length is not a multiple of `m`.
        """
        axis = _axis_of(shape, self.axis, self)
        if shape[axis] % self.m:
            raise ValueError(
                f"{self!r} needs an axis whose length is a multiple of {self.m}, but axis "
                f"{self.axis} of shape {shape} has length {shape[axis]}"
            )
        return math.prod(shape) // self.m

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The scores unchanged."""
        return scores

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """The mask unchanged."""
        return mask

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The mask unchanged."""
        del shape
        return unit_mask

    def keep_best(self, scores: jax.Array, allowed: jax.Array, n_keep: jax.Array) -> jax.Array:
        """Marks the `n_keep` largest scores of each group.

        Args:
          scores: one per weight.
          allowed: the weights that may be kept; fewer are kept where a group allows fewer.
          n_keep: how many each group keeps, an int32 scalar.

        Returns:
          A bool mask of the shape of `scores`.
        """
        axis = _axis_of(scores.shape, self.axis, self)
        key = order_key(scores)
        key = jnp.where(allowed.astype(bool), key, jnp.zeros_like(key))
        groups = split_axis(key, axis, self.m)
        place = lax.broadcasted_iota(jnp.int32, groups.shape, axis + 1)
        rank = jnp.zeros(groups.shape, jnp.int32)
        # Ranks by comparing with every other member: XLA fuses this, which it can't do with a sort.
        for shift in range(1, self.m):
            neighbour = jnp.roll(groups, shift, axis + 1)
            has_lower_index = place >= shift
            wins = (neighbour > groups) | ((neighbour == groups) & has_lower_index)
            rank = rank + wins.astype(jnp.int32)
        mask = merge_axis(rank < n_keep, scores)
        return mask & allowed.astype(bool)


@dataclasses.dataclass(frozen=True)
class Block:
    """Keeps or drops blocks of weights as a whole.

    Blocks tile the last `len(shape)` axes of a leaf, starting at index 0. Blocks at the edge may be
    smaller; their score is that of the weights that they have. Earlier axes are not tiled.

    Args:
      shape: the lengths of a block along the last axes of a leaf. On a kernel of shape (in, out),
        `Block((1, 16))` covers 16 neighbouring outputs of one input.
      pooling: how the score of a block is computed from those of its weights, `"mean"` or `"max"`.
      balanced: whether every column of blocks along the last axis keeps the same number of blocks,
        so that a block product can gather rows of equal length.

    Example:
      >>> import jaxprune
      >>> w = jnp.array([[1.0, 1.0, 5.0, 0.0], [3.0, 3.0, 0.0, 0.0]])
      >>> masks = jaxprune.prune_params({"w": w}, 0.5, structure=Block((1, 2)))[1]
      >>> masks["w"].astype(int).tolist()
      [[0, 0, 1, 1], [1, 1, 0, 0]]
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    shape: tuple[int, ...]
    pooling: str = "mean"
    balanced: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.shape, (tuple, list)) or not self.shape:
            raise TypeError(
                f"Block: shape must be a tuple such as (4, 4), got {shown(self.shape)}."
            )
        shape = tuple(as_int("Block: shape", n) for n in self.shape)
        if min(shape) < 1:
            raise ValueError(f"Block: shape must hold lengths of at least 1, got {shape}.")
        if not isinstance(self.pooling, str) or self.pooling not in ("mean", "max"):
            raise ValueError(f'Block: pooling must be "mean" or "max", got {shown(self.pooling)}.')
        object.__setattr__(self, "balanced", as_flag("Block: balanced", self.balanced))
        object.__setattr__(self, "shape", shape)

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of blocks, smaller ones at the edges included."""
        return math.prod(self._grid(shape))

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """The number of block columns along the last axis if balanced, else 1."""
        return max(self._grid(shape)[-1], 1) if self.balanced else 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The mean or the largest score of each block, float32 or wider."""
        wide = scores.astype(_wide(scores))
        if self.pooling == "max":
            return self._reduced(wide, -jnp.inf, jnp.max)
        ones = jnp.ones(scores.shape, wide.dtype)
        return self._reduced(wide, 0, jnp.sum) / self._reduced(ones, 0, jnp.sum)

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """The mask at the first weight of each block."""
        for axis, length in self._lengths(mask.shape):
            mask = lax.slice_in_dim(mask, 0, mask.shape[axis], length, axis)
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

    def _reduced(self, x: jax.Array, fill: Any, reduce: Any) -> jax.Array:
        for axis, length in self._lengths(x.shape):
            if x.shape[axis] % length:
                widths = [(0, 0)] * x.ndim
                widths[axis] = (0, -x.shape[axis] % length)
                x = jnp.pad(x, widths, constant_values=fill)
            x = reduce(split_axis(x, axis, length), axis=axis + 1)
        return x


@dataclasses.dataclass(frozen=True)
class Channel:
    """Keeps or drops all weights at one index of an axis together: a neuron, a filter.

    Args:
      axis: the axis whose indices are the channels. -1 is the output axis of kernels of shape
        (..., in, out).
      norm: how the score of a channel is computed from those of its weights: 1 for their sum, 2 for
        their Euclidean norm.

    Example:
      >>> import jaxprune
      >>> w = jnp.array([[3.0, 1.0, -2.0], [0.0, 1.5, -2.0]])
      >>> masks = jaxprune.prune_params({"w": w}, 1 / 3, structure=Channel())[1]
      >>> masks["w"].astype(int).tolist()
      [[1, 0, 1], [1, 0, 1]]
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    axis: int = -1
    norm: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", as_int("Channel: axis", self.axis))
        if not is_int(self.norm) or self.norm not in (1, 2):
            raise ValueError(f"Channel: norm must be 1 or 2, got {shown(self.norm)}.")

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of channels; 0 in an empty leaf."""
        return shape[_axis_of(shape, self.axis, self)] if math.prod(shape) else 0

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """1: all channels of a leaf are in one pool."""
        del shape
        return 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The norm of each channel, float32 or wider."""
        wide = scores.astype(_wide(scores))
        axis = _axis_of(scores.shape, self.axis, self)
        other_axes = tuple(i for i in range(scores.ndim) if i != axis)
        if self.norm == 1:
            return jnp.sum(wide, other_axes)
        return jnp.sqrt(jnp.sum(wide * wide, other_axes))

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """The mask at the first weight of each channel."""
        axis = _axis_of(mask.shape, self.axis, self)
        for i in range(mask.ndim):
            if i != axis:
                mask = lax.slice_in_dim(mask, 0, min(mask.shape[i], 1), axis=i)
        return mask.reshape(-1)

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Each weight gets the mask of its channel."""
        return lax.broadcast_in_dim(unit_mask, shape, (_axis_of(shape, self.axis, self),))


def _wide(x: jax.Array) -> Any:
    return x.dtype if x.dtype == jnp.float64 else jnp.float32


def _axis_of(shape: tuple[int, ...], axis: int, structure: Any) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{structure!r} needs an axis {axis}, but the shape is {shape}")
    return axis % len(shape)


# Their examples run, although by `__module__` they belong to `jaxprune`.
__test__ = {"Unstructured": Unstructured, "NM": NM, "Block": Block, "Channel": Channel}
