"""The types of trees of arrays in signatures.

A function that returns a tree like its argument has two overloads: a type of `Params` or `State` is
also that of the result. Of anything else the result is `Any`, above all of the trees of optax,
whose type is a union that says nothing, so that a result could not be indexed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import jax

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    # Type checkers accept every tree, as the functions do: the trees of optax, Flax and users have
    # types of their own, which are no `chex.ArrayTree`. And a result can be indexed.
    ArrayTree = Any

    class HoldsState(Protocol):
        """A TrainState, or an NNX optimizer."""

        @property
        def opt_state(self) -> Any:
            """The optimizer state."""

    Containers = Mapping[Any, Any] | list[Any] | tuple[Any, ...] | DataclassInstance
    Params = TypeVar("Params", bound=Containers | jax.Array)
    State = TypeVar("State", bound=Containers | HoldsState)
else:
    from chex import ArrayTree as ArrayTree

    Params = TypeVar("Params")
    State = TypeVar("State")
