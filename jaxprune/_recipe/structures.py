"""What one decision covers: a single weight, or a group of weights that stay or go together.

A structure turns the scores of a leaf into one score per unit, and a mask of units back into a mask
of weights. It knows nothing of budgets or of other leaves. Where it says so itself, a leaf is
several pools: the groups of `NM`, the block columns of a balanced `Block`.
"""

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.float_bits import order_key
from jaxprune._base.sharding import merge_axis, split_axis


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight is a unit of its own.

    Example:
      >>> Unstructured().n_units((3, 4))
      12
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    def n_units(self, shape: tuple[int, ...]) -> int:
        """How many decisions a leaf of this shape takes."""
        return math.prod(shape)

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """How many pools of equal size and budget the units of a leaf fall into."""
        del shape
        return 1

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


@dataclasses.dataclass(frozen=True)
class NM:
    """Keeps `n` of every `m` neighbours along one axis, as sparse matrix units want it.

    While the schedule rises every group keeps the same number, from `m` down to `n`; the final
    sparsity of the leaf must be exactly `1 - n / m`. Among equal scores in a group the lower index
    is kept.

    The axis is the one that a matrix product sums over. That is -2 for the kernels of flax linen
    (`Dense`, `Conv`), NNX (`Linear`, `Conv`) and Haiku (`Linear.w`), all of shape (..., in, out),
    and -1 for Equinox (`nn.Linear.weight` of shape (out, in)).

    Args:
      n: kept of each group, in [1, m).
      m: size of a group.
      axis: whose neighbours compete. Its length must be a multiple of `m`.

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
            object.__setattr__(self, name, _as_int(f"NM: {name}", getattr(self, name)))
        if not 1 <= self.n < self.m:
            raise ValueError(
                f"NM: n must be in [1, m), got n={self.n} of m={self.m}. NM(2, 4) keeps 2 of every "
                "4."
            )

    def n_units(self, shape: tuple[int, ...]) -> int:
        """Every weight is a unit."""
        return math.prod(shape)

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """The groups of `m`.

        Raises:
          ValueError: the leaf has no such axis, or its length is no multiple of `m`.
        """
        axis = _axis_of(shape, self.axis, self)
        if shape[axis] % self.m:
            raise ValueError(
                f"{self!r} wants an axis of a multiple of {self.m} weights, but axis {self.axis} "
                f"of shape {shape} has {shape[axis]}"
            )
        return math.prod(shape) // self.m

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The scores themselves."""
        return scores

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """The mask itself."""
        return mask

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The mask itself."""
        del shape
        return unit_mask

    def keep_best(self, scores: jax.Array, allowed: jax.Array, n_keep: jax.Array) -> jax.Array:
        """Marks the best `n_keep` of each group among those allowed: bool, like `scores`."""
        axis = _axis_of(scores.shape, self.axis, self)
        key = order_key(scores)
        key = jnp.where(allowed.astype(bool), key, jnp.zeros_like(key))
        groups = split_axis(key, axis, self.m)
        place = lax.broadcasted_iota(jnp.int32, groups.shape, axis + 1)
        rank = jnp.zeros(groups.shape, jnp.int32)
        for shift in range(1, self.m):  # against every neighbour: no sort, and it fuses
            other = jnp.roll(groups, shift, axis + 1)
            earlier = place >= shift  # the neighbour that came around from below
            wins = (other > groups) | ((other == groups) & earlier)
            rank = rank + wins.astype(jnp.int32)
        mask = merge_axis(rank < n_keep, scores)
        return mask & allowed.astype(bool)


@dataclasses.dataclass(frozen=True)
class Block:
    """Blocks of weights stay or go together.

    Blocks tile the last `len(shape)` axes, from index 0; those at the edge may be smaller, and are
    scored by the weights they have. Earlier axes are not blocked.

    Args:
      shape: of one block, for the last axes of a leaf. `Block((1, 16))` of a kernel (in, out) takes
        16 neighbouring outputs of one input.
      pooling: the score of a block from those of its weights, `"mean"` or `"max"`.
      balanced: every column of blocks along the last axis keeps the same number, so that a block
        product can gather rows of equal length.

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
            raise TypeError(f"Block: shape must be a tuple such as (4, 4), got {self.shape!r}.")
        shape = tuple(_as_int("Block: shape", n) for n in self.shape)
        if min(shape) < 1:
            raise ValueError(f"Block: shape must hold lengths of at least 1, got {shape}.")
        if self.pooling not in ("mean", "max"):
            raise ValueError(f'Block: pooling must be "mean" or "max", got {self.pooling!r}.')
        object.__setattr__(self, "shape", shape)

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The blocks, those at ragged edges included."""
        return math.prod(self._grid(shape))

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """The columns of blocks along the last axis if balanced, else one."""
        return max(self._grid(shape)[-1], 1) if self.balanced else 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The mean or the largest score of each block, float32 or wider."""
        wide = scores.astype(_wide(scores))
        if self.pooling == "max":
            return self._reduced(wide, -jnp.inf, jnp.max)
        ones = jnp.ones(scores.shape, wide.dtype)
        return self._reduced(wide, 0, jnp.sum) / self._reduced(ones, 0, jnp.sum)

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """That of the first weight of each block."""
        for axis, length in self._lengths(mask.shape):
            mask = lax.slice_in_dim(mask, 0, mask.shape[axis], length, axis)
        return mask

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Every weight as its block."""
        for axis, length in self._lengths(shape):
            unit_mask = jnp.repeat(unit_mask, length, axis)
            unit_mask = lax.slice_in_dim(unit_mask, 0, shape[axis], axis=axis)
        return unit_mask

    def _lengths(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        if len(shape) < len(self.shape):
            raise ValueError(f"{self!r} wants {len(self.shape)} axes, but the shape is {shape}")
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
    """All weights of one index along an axis stay or go together: a neuron, a filter.

    Args:
      axis: the one whose indices are the channels. -1 is the output of kernels of shape (..., in,
        out).
      norm: the score of a channel from those of its weights: 1 for their sum, 2 for their
        Euclidean norm.

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
        object.__setattr__(self, "axis", _as_int("Channel: axis", self.axis))
        if self.norm not in (1, 2):
            raise ValueError(f"Channel: norm must be 1 or 2, got {self.norm!r}.")

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The channels; none in an empty leaf."""
        return shape[_axis_of(shape, self.axis, self)] if math.prod(shape) else 0

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """One."""
        del shape
        return 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """The norm of each channel, float32 or wider."""
        wide = scores.astype(_wide(scores))
        axis = _axis_of(scores.shape, self.axis, self)
        others = tuple(i for i in range(scores.ndim) if i != axis)
        if self.norm == 1:
            return jnp.sum(wide, others)
        return jnp.sqrt(jnp.sum(wide * wide, others))

    def unit_mask(self, mask: jax.Array) -> jax.Array:
        """That of the first weight of each channel."""
        axis = _axis_of(mask.shape, self.axis, self)
        for i in range(mask.ndim):
            if i != axis:
                mask = lax.slice_in_dim(mask, 0, min(mask.shape[i], 1), axis=i)
        return mask.reshape(-1)

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Every weight as its channel."""
        return lax.broadcast_in_dim(unit_mask, shape, (_axis_of(shape, self.axis, self),))


def _wide(x: jax.Array) -> Any:
    return x.dtype if x.dtype == jnp.float64 else jnp.float32


def _axis_of(shape: tuple[int, ...], axis: int, structure: Any) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{structure!r} wants an axis {axis}, but the shape is {shape}")
    return axis % len(shape)


def _as_int(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}.") from None


# Their examples run, although by `__module__` they belong to `jaxprune`.
__test__ = {"Unstructured": Unstructured, "NM": NM, "Block": Block, "Channel": Channel}
