"""N:M, which keeps n of every m neighbouring weights: a structure that decides in groups."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.arguments import as_int
from jaxprune._base.float_bits import order_key
from jaxprune._base.sharding import merge_axis, on_gpu, split_axis
from jaxprune._recipe.leaf_axes import AxesOf, axis_of, known_roles, places
from jaxprune._recipe.matrix_view import MatrixView
from jaxprune._recipe.traits import SingleWeights, Structure

# Groups of at most this many are compared member by member: the program grows with the square.
_UNROLLED = 8
# On a GPU the mask of a group of at most this many weights is stored in one number.
_MOST_BITS = 32


@dataclasses.dataclass(frozen=True)
class NM(SingleWeights):
    """Keeps `n` of every `m` neighbouring inputs, the pattern of sparse matrix hardware.

    While the sparsity of the schedule rises, every group of `m` keeps the same number of weights,
    from `m` down to `n`. The final sparsity of the leaf must be exactly `1 - n / m`. Among equal
    scores in a group, the lower index is kept.

    Groups must lie along what a matrix product sums over. By default these are the axes whose role
    is `"in"`, flattened in their order; see the argument `roles` of `prune`. Without roles, it is
    axis -2 of a leaf of two axes, or of a convolution (a leaf named `kernel` or `w` whose parent is
    named like `conv`). Other leaves are refused: leaves named like weights of torch and Equinox
    (`weight`, `weight_ih`), which are (out, in); tables of embeddings, which are looked up or tied;
    transposed convolutions, whose order differs between libraries; and kernels of convolutions that
    are (out, in, height, width), as `jax.lax.conv` takes them.

    Args:
      n: how many weights each group keeps, in [1, m).
      m: the size of a group.
      axis: the axis along which neighbours form groups, such as -2 for the kernels of scanned
        layers of shape (layers, in, out). Its length must be a multiple of `m`. None for the
        axes whose role is `"in"`.

    Raises:
      TypeError: an argument is not an int.
      ValueError: `n` is not in [1, m).

    References:
      Zhou et al., `Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch
      <https://arxiv.org/abs/2102.04010>`_, 2021.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> w = jnp.array([[1.0], [-4.0], [3.0], [2.0]])
      >>> masks = jaxprune.prune_params({"w": w}, 0.5, structure=NM(2, 4))[1]
      >>> masks["w"][:, 0].tolist()
      [False, True, True, False]
    """

    n: int
    m: int
    axis: int | None = None

    def __post_init__(self) -> None:
        names = ("n", "m") if self.axis is None else ("n", "m", "axis")
        for name in names:
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

    @property
    def follows_roles(self) -> bool:
        """Whether no axis is given."""
        return self.axis is None

    def for_leaf(self, leaf: AxesOf) -> Structure:
        """The structure for a leaf whose axes are known: with an axis, or of several axes.

        Raises:
          ValueError: which axes are inputs is not known, or none is.
        """
        if self.axis is not None:
            return self
        named = dataclasses.replace(self, axis=-2)
        purpose, meaning = "groups weights along inputs", "the axis that is summed over"
        roles = known_roles(leaf, "in", self, purpose, meaning, with_axis=named)
        if roles is None:
            return named
        inputs = places(roles, "in")
        if len(inputs) == 1 or leaf.shape[inputs[-1]] % self.m == 0:
            return dataclasses.replace(self, axis=inputs[-1] - len(roles))
        others = tuple(axis for axis in range(len(roles)) if axis not in inputs)
        return MatrixView(named, lead=(), rows=inputs, cols=others)

    def note_of(self, roles: tuple[str, ...]) -> str:
        """What `plan` says about groups that do not lie along inputs; empty where they do.

        Args:
          roles: of the axes of a leaf.

        Example:
          >>> NM(2, 4, axis=0).note_of(("in", "out")), NM(2, 4, axis=1).note_of(("in", "out"))
          ('', "along an axis of role 'out'")
        """
        role = "in" if self.axis is None else roles[self.axis]
        return "" if role == "in" else f"along an axis of role {role!r}"

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of weights."""
        return math.prod(shape)

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """The number of groups of `m`.

        Raises:
          ValueError: the leaf does not have the axis, or its length is not a multiple of `m`.
        """
        axis = axis_of(shape, self.axis, self, default=-2)
        if shape[axis] % self.m:
            name = axis if self.axis is None else self.axis
            raise ValueError(
                f"{self!r} needs an axis whose length is a multiple of {self.m}, but axis "
                f"{name} of shape {shape} has length {shape[axis]}"
            )
        return math.prod(shape) // self.m

    def keep_best(self, scores: jax.Array, allowed: jax.Array, n_keep: jax.Array) -> jax.Array:
        """Marks the `n_keep` largest scores of each group.

        Args:
          scores: one per weight.
          allowed: the weights that may be kept; fewer are kept where a group allows fewer.
          n_keep: how many each group keeps, an int32 scalar.

        Returns:
          A bool mask of the shape of `scores`.
        """
        axis = axis_of(scores.shape, self.axis, self, default=-2)
        key = order_key(scores)
        key = jnp.where(allowed.astype(bool), key, jnp.zeros_like(key))
        groups = split_axis(key, axis, self.m)
        ranks = _ranks_in_groups(groups, axis + 1)
        if on_gpu([scores]) and self.m <= _MOST_BITS:
            # An entry of the mask must not be read for its neighbours: then XLA for GPUs writes the
            # new mask into the memory of the old one.
            may_stay = split_axis(allowed.astype(bool), axis, self.m)
            best = [of_members < n_keep for of_members in ranks]
            return merge_axis(_by_bits(best, may_stay, axis + 1), scores)
        mask = merge_axis(jnp.concatenate(ranks, axis + 1) < n_keep, scores)
        return mask & allowed.astype(bool)


def _by_bits(best: Sequence[jax.Array], may_stay: jax.Array, axis: int) -> jax.Array:
    """The mask of all groups, read from a stored number for each group, in which it is bits.

    Args:
      best: flags of the members of the groups along an axis, in several parts.
      may_stay: flags of all members; others are not kept.
      axis: of the members.
    """
    m = may_stay.shape[axis]
    dtype = next(t for t in (jnp.uint8, jnp.uint16, jnp.uint32) if m <= jnp.iinfo(t).bits)
    place = lax.broadcasted_iota(dtype, may_stay.shape, axis)
    bits = jnp.where(may_stay, jnp.ones_like(place) << place, jnp.zeros_like(place))
    numbers: Any = 0
    end = 0
    for flags in best:
        first, end = end, end + flags.shape[axis]
        part = lax.slice_in_dim(bits, first, end, axis=axis)
        numbers += jnp.sum(
            jnp.where(flags, part, jnp.zeros_like(part)), axis, dtype=dtype, keepdims=True
        )
    numbers = lax.optimization_barrier(numbers)
    return ((numbers >> place) & jnp.ones_like(place)).astype(bool)


def _ranks_in_groups(groups: jax.Array, axis: int) -> list[jax.Array]:
    """How many of the other members along an axis beat each member; of equal ones, the first does.

    The members come in some parts along the axis, in their order: each alone if they are few.

    Ranks come from comparing with every other member: XLA fuses this, which it can't do with a
    sort. Members of small groups are compared one by one, because XLA CPU does not vectorise the
    comparison of an array with a broadcast slice of itself along the last axis.
    """
    m = groups.shape[axis]
    members = [lax.slice_in_dim(groups, i, i + 1, axis=axis) for i in range(m)]
    if m <= _UNROLLED:
        ranks = []
        for i, member in enumerate(members):
            wins = [other >= member for other in members[:i]]
            wins += [other > member for other in members[i + 1 :]]
            ranks.append(sum(won.astype(jnp.int32) for won in wins))
        return ranks
    place = lax.broadcasted_iota(jnp.int32, groups.shape, axis)
    rank = jnp.zeros(groups.shape, jnp.int32)
    for i, member in enumerate(members):
        rank += jnp.where(place > i, member >= groups, member > groups).astype(jnp.int32)
    return [rank]


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
NM.__module__ = "jaxprune"
__test__ = {"NM": NM}
