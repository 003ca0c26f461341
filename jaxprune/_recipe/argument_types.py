"""The types of the arguments that say what to prune, for type checkers and for `help()`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.typing import ArrayLike

from jaxprune._recipe.role_table import AxisRoles
from jaxprune._recipe.traits import Structure

# One structure for all leaves, or regexes or functions -> structures.
Structures = Structure | Mapping[Any, Structure]
# The roles of each axis: by path, or regexes -> a tuple of roles, or a sequence of such tuples.
Roles = AxisRoles | Mapping[str, Sequence[Any]]
# Regexes or functions -> which weights exist.
Structural = Mapping[Any, ArrayLike]
# `(params, grads, key) -> scores`; it may also take `path` and `roles`.
ScoreFunction = Callable[..., Any]
