"""Weights that exist: the argument `structural=`, for networks with structural zeros.

A masked autoregressive network multiplies its kernels by constant masks, so that an output depends
on some inputs only. A weight where such a mask is zero has no effect: it does not exist. `Existing`
is the structure of a leaf with such weights, so that budgets count the others only.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import BadValue, shown
from jaxprune._base.on_host import to_host
from jaxprune._base.paths import Rule, as_rules, rule_for, shown_path
from jaxprune._recipe.traits import SingleWeights, Structure, traits_of


@dataclasses.dataclass(frozen=True)
class Existing(SingleWeights):
    """Each existing weight is kept or dropped by itself, and all others are always dropped.

    Scores of weights that do not exist are ignored. The mask is held as bytes, because a structure
    must be hashable.

    Attributes:
      shape: of the mask.
      packed: one bit for each weight, 1 for a weight that exists.

    Example:
      >>> existing = Existing.of(np.tri(3, k=-1))
      >>> existing.n_units((3, 3)), existing.exists.sum(1).tolist()
      (3, [0, 1, 2])
    """

    shape: tuple[int, ...]
    packed: bytes

    @staticmethod
    def of(mask: Any) -> "Existing":
        """The structure of a leaf with this mask; nonzero where a weight exists."""
        flags = np.asarray(mask) != 0
        return Existing(flags.shape, np.packbits(flags).tobytes())

    @functools.cached_property
    def exists(self) -> np.ndarray:
        """The mask, bool."""
        n = int(np.prod(self.shape, dtype=np.int64))
        flags = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=n)
        return flags.astype(bool).reshape(self.shape)

    @functools.cached_property
    def n_absent(self) -> int:
        """How many weights do not exist."""
        return self.exists.size - int(self.exists.sum())

    @property
    def is_elementwise(self) -> bool:
        """True: each weight is decided without looking at its neighbours."""
        return True

    def n_units(self, shape: tuple[int, ...]) -> int:
        """The number of weights that exist."""
        del shape
        return self.exists.size - self.n_absent

    def n_units_of_slices(self, axes: Sequence[int]) -> list[int]:
        """The number of weights that exist in each slice along some axes, in row-major order."""
        others = tuple(axis for axis in range(len(self.shape)) if axis not in axes)
        return self.exists.sum(others, dtype=np.int64).reshape(-1).tolist()

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """One: all weights of a leaf compete with each other."""
        del shape
        return 1

    def __repr__(self) -> str:
        n = self.exists.size
        return f"structural: {n - self.n_absent:,} of {n:,} exist"


def as_structural(structural: Any) -> tuple[tuple[Rule, Existing], ...]:
    """The rules of the argument `structural`, each with the weights that exist.

    Raises:
      TypeError, ValueError: something else than a mapping from regexes to masks, or a mask of which
        no weight exists.
    """
    if structural is None:
        return ()
    if not isinstance(structural, Mapping):
        raise TypeError(
            'structural must map regexes to masks, like {"made/fc/kernel": mask}, got '
            f"{shown(structural)}."
        )
    rules = as_rules(tuple(structural), "structural")
    masks = [_existing(f"structural[{rule!r}]", mask) for rule, mask in structural.items()]
    return tuple(zip(rules, masks, strict=True))


def _existing(name: str, mask: Any) -> Existing:
    """The weights that exist by a mask of the user."""
    if isinstance(mask, Mapping):
        raise TypeError(
            f"{name} must be a mask, got a mapping. Name each leaf by its whole path, like "
            '{"made/fc/kernel": mask}.'
        )
    if isinstance(mask, jax.core.Tracer):
        raise TypeError(
            f"{name} must be a NumPy or JAX array with known values, got a traced value. Make the "
            "mask outside jit."
        )
    mask = to_host(name, mask, "mask")
    dtype = mask.dtype
    if not (jnp.issubdtype(dtype, jnp.bool_) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(
            f"{name} must be bool or integer (nonzero = the weight exists), got {shown(mask)}. "
            "Convert it: mask != 0."
        )
    existing = Existing.of(mask)
    if existing.n_absent == existing.exists.size:
        raise ValueError(
            f"{name}: no weight exists in this mask of shape {existing.shape}. True (or 1) is for "
            "weights that exist; did you mean ~mask? Leave such a leaf out with exclude."
        )
    return existing


def with_existing(
    path: str, shape: tuple[int, ...], structure: Structure, existing: Existing | None
) -> Structure:
    """The structure of a leaf, some of whose weights may not exist.

    Args:
      path: of the leaf.
      shape: of the leaf.
      structure: the structure that the user chose for it.
      existing: the weights that exist; None where all do.

    Raises:
      ValueError: a mask of another shape, or a structure of larger units.
    """
    if existing is None:
        return structure
    check_fits(path, shape, existing)
    if traits_of(structure).is_elementwise:
        return existing
    raise BadValue(
        f"{shown_path(path)}: {structure!r} decides several weights together, but by structural "
        f"only {existing.n_units(shape):,} of {existing.exists.size:,} weights exist.",
        "Use Unstructured() for this leaf, or leave it out of structural.",
    )


def check_fits(path: str, shape: tuple[int, ...], existing: Existing) -> None:
    """Raises where a mask has another shape than its leaf."""
    if existing.shape != tuple(shape):
        transposed = ", such as mask.T" if existing.shape == tuple(shape)[::-1] else ""
        raise BadValue(
            f"{shown_path(path)}: the mask in structural has shape {existing.shape}, but the leaf "
            f"has shape {tuple(shape)}.",
            f"Pass a mask with one entry for each weight{transposed}: {{structural}}.",
            structural={rule_for(path): ...},
        )
