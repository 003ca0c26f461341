"""What a structure is: the methods that all of them have, and the optional traits.

The rest of the package asks for traits and never for the class of a structure, so that user-defined
structures are treated like the built-in ones.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np


class Structure(Protocol):
    """The type of structures, for annotations: the methods that every structure has.

    A structure of your own need not inherit from it. It must be hashable: make it a frozen
    dataclass. It may have two more methods. `unit_sizes(shape)` returns the number of units of each
    size, as a dict {weights in a unit: units}; without it, all units of a leaf are taken to have
    the same size. `for_leaf(leaf)` returns the structure to use for one leaf; `leaf` has the
    attributes `path`, `shape` and `roles`.

    Example:
      >>> from jaxprune import Block
      >>> block: Structure = Block((1, 4))
      >>> block.n_units((2, 8)), block.n_groups((2, 8))
      (4, 1)
    """

    # What a structure can do beyond these methods is described by `Traits`.

    def n_units(self, shape: tuple[int, ...], /) -> int:
        """The number of units in a leaf of this shape; a `ValueError` if the shape does not fit."""
        ...

    def n_groups(self, shape: tuple[int, ...], /) -> int:
        """The number of groups, of equal size and with equal budgets, that the units form."""
        ...

    def unit_scores(self, scores: jax.Array, /) -> jax.Array:
        """One score per unit, from one score per weight."""
        ...

    def unit_mask(self, mask: jax.Array, /) -> jax.Array:
        """Which units have a kept weight, from a mask of weights."""
        ...

    def expand(self, unit_mask: jax.Array, shape: tuple[int, ...], /) -> jax.Array:
        """The mask of weights, from a mask of units."""
        ...


class SingleWeights:
    """The methods of a structure whose units are single weights: arrays pass unchanged."""

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


class Traits(NamedTuple):
    """What a structure can do; each is an optional attribute of the structure itself.

    Attributes:
      is_elementwise: every weight is a unit of one pool, so that `unit_scores`, `unit_mask` and
        `expand` return their first argument.
      follows_roles: for a leaf with roles, the method `for_leaf` depends on them alone, so that a
        slice along an axis of role `"stack"` may be treated like a leaf.
      decides_in_groups: the structure itself chooses what each of its groups keeps, with a method
        `keep_best(scores, allowed, n_keep)` like that of `NM`. Its units are weights.
      final_sparsity: the only sparsity that the structure can end at; None for any.
      coupled_group: the name of the group of coupled channels that the leaf belongs to. All leaves
        of such a group have the same units, which share one budget; the score of a unit is the
        Euclidean norm of its scores in these leaves. None for a leaf that is decided alone.
      exists: bool, in the shape of the leaf: which weights exist; None where all do. The others are
        dropped in every mask, and count neither as weights nor as zeros.
      n_absent: how many weights do not exist.
    """

    is_elementwise: bool = False
    follows_roles: bool = False
    decides_in_groups: bool = False
    final_sparsity: Fraction | None = None
    coupled_group: str | None = None
    exists: np.ndarray | None = None
    n_absent: int = 0


def traits_of(structure: Structure) -> Traits:
    """The traits of a structure, with the default for each that it does not define.

    Example:
      >>> from jaxprune import NM, Block, Unstructured
      >>> traits_of(Unstructured()).is_elementwise, traits_of(Block((4, 4))).is_elementwise
      (True, False)
      >>> traits_of(NM(1, 4)).final_sparsity
      Fraction(3, 4)
    """
    defined = {name: getattr(structure, name, None) for name in Traits._fields}
    return Traits(**{name: value for name, value in defined.items() if value is not None})


def text_of_units(structure: Any) -> str:
    """A text that describes the units of a structure, and is the same in every process.

    Example:
      >>> from jaxprune import NM
      >>> text_of_units(NM(2, 4))
      'NM(n=2, m=4, axis=None)'
    """
    if dataclasses.is_dataclass(structure):
        names = [field.name for field in dataclasses.fields(structure)]
        values = (f"{name}={text_of_units(getattr(structure, name))}" for name in names)
        return f"{type(structure).__qualname__}({', '.join(values)})"
    if isinstance(structure, np.ndarray):
        return f"{structure.dtype}{structure.shape}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(structure))


def unit_sizes_of(structure: Structure, shape: tuple[int, ...]) -> dict[Fraction, int]:
    """The number of units of each size in a leaf: {weights in a unit: units}.

    Weights that belong to no unit, because they are never dropped, do not count.

    Example:
      >>> from jaxprune import Block, Channel
      >>> unit_sizes_of(Channel(), (5, 4))
      {Fraction(5, 1): 4}
      >>> unit_sizes_of(Block((1, 4)), (2, 6))
      {Fraction(4, 1): 2, Fraction(2, 1): 2}
    """
    sizes_of: Any = getattr(structure, "unit_sizes", None)
    if sizes_of is not None:
        return {Fraction(size): n for size, n in sizes_of(shape).items()}
    n_units = structure.n_units(shape)
    return {Fraction(math.prod(shape), n_units): n_units} if n_units else {}


def n_weights_in(unit_sizes: Mapping[Fraction, int]) -> int:
    """The total number of weights, from the result of `unit_sizes_of`.

    Example:
      >>> n_weights_in({Fraction(4): 2, Fraction(2): 2})
      12
    """
    return int(sum(size * n for size, n in unit_sizes.items()))


# doctest needs the list: by `__module__`, this class belongs to `jaxprune`.
Structure.__module__ = "jaxprune"
__test__ = {"Structure": Structure}
