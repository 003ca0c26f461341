"""The type of trees of arrays in signatures."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Type checkers accept every tree, as the functions do: the trees of optax, Flax and users have
    # types of their own, which are no `chex.ArrayTree`. And a result can be indexed.
    ArrayTree = Any
else:
    from chex import ArrayTree as ArrayTree
