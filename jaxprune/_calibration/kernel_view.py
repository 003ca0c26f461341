"""A kernel of any shape as the matrices (slices, in, out) that Wanda and SparseGPT prune.

The roles of the axes decide. The rows of each matrix are the flattened `"in"` and `"window"` axes,
the columns are the flattened `"out"` axes, and every index of the `"stack"` axes is a matrix of its
own. Axes are flattened in the order in which the leaf has them. The outputs of a grouped
convolution see different inputs: each group of outputs is a matrix of its own, too.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune._base.arguments import BadValue
from jaxprune._base.paths import parts_of, rule_for, shown_path
from jaxprune._recipe.roles import RoleRules, is_out_in_name

_IN_OUT = ("in", "out")


class KernelView(NamedTuple):
    """How the axes of a leaf form matrices.

    Attributes:
      shape: of the leaf.
      roles: of its axes.
      n_groups: into how many equal parts the columns are cut, each with inputs of its own.
      windows_first: whether rows are ordered by window position first, so that neighbours along
        the `"in"` axes are neighbours in the matrix.
    """

    shape: tuple[int, ...]
    roles: tuple[str, ...] = _IN_OUT
    n_groups: int = 1
    windows_first: bool = False

    def axes(self, *roles: str) -> list[int]:
        """The axes with one of these roles, in order."""
        return [k for k, role in enumerate(self.roles) if role in roles]

    def sizes(self, *roles: str) -> tuple[int, ...]:
        """The lengths of the axes with one of these roles, in order."""
        return tuple(self.shape[k] for k in self.axes(*roles))

    @property
    def stack(self) -> tuple[int, ...]:
        """The lengths of the `"stack"` axes."""
        return self.sizes("stack")

    @property
    def n_rows(self) -> int:
        """The number of inputs of each output."""
        return math.prod(self.sizes("in", "window"))

    @property
    def n_columns(self) -> int:
        """The number of outputs of each matrix."""
        return math.prod(self.sizes("out")) // self.n_groups

    @property
    def n_matrices(self) -> int:
        """The number of matrices."""
        return math.prod(self.stack) * self.n_groups

    def _order(self) -> list[int]:
        rows = self.axes("in", "window")
        if self.windows_first:
            rows = [*self.axes("window"), *self.axes("in")]
        return [*self.axes("stack"), *rows, *self.axes("out")]

    def matrices(self, leaf: jax.Array) -> jax.Array:
        """The leaf as (matrices, in, out)."""
        n_stack = math.prod(self.stack)
        x = leaf.transpose(self._order())
        x = x.reshape(n_stack, self.n_rows, self.n_groups, self.n_columns)
        return x.swapaxes(1, 2).reshape(self.n_matrices, self.n_rows, self.n_columns)

    def leaf(self, matrices: jax.Array) -> jax.Array:
        """The inverse of `matrices`."""
        order = self._order()
        x = matrices.reshape(math.prod(self.stack), self.n_groups, self.n_rows, self.n_columns)
        x = x.swapaxes(1, 2).reshape([self.shape[k] for k in order])
        return x.transpose(np.argsort(order))

    def row_order(self) -> np.ndarray | None:
        """The row of the leaf that each row of a matrix is; None where they are in order."""
        axes = self.axes("in", "window")
        rows = np.arange(self.n_rows).reshape([self.shape[k] for k in axes])
        order = [axes.index(k) for k in self._order() if k in axes]
        return None if order == sorted(order) else rows.transpose(order).reshape(-1)

    def slice_paths(self, path: str) -> list[str]:
        """The path of each index of the stack axes, such as `w_up/2`; none without stack axes."""
        if not self.stack:
            return []
        return ["/".join((path, *map(str, index))) for index in np.ndindex(self.stack)]

    def per_slice(self, values: Any) -> Any:
        """One value for each index of the stack axes, in a shape that broadcasts to the leaf."""
        shape = [
            n if role == "stack" else 1 for n, role in zip(self.shape, self.roles, strict=True)
        ]
        return np.asarray(values).reshape(shape)


def view_of(path: str, shape: Sequence[int], roles: RoleRules | None) -> KernelView:
    """How a leaf forms matrices.

    Without roles, a leaf of two axes is taken as (in, out), unless it is named like a weight of
    torch or Equinox.

    Args:
      path: of the leaf.
      shape: of the leaf.
      roles: the roles of the leaves, or None.

    Raises:
      ValueError: its roles are not known, or no axis is summed over.
    """
    shape = tuple(shape)
    axis_roles = None if roles is None else roles.of(path, shape)
    reason = "" if roles is None else roles.reason(path)
    if axis_roles is None and len(shape) == 2 and not reason and not is_out_in_name(path):
        axis_roles = _IN_OUT
    if axis_roles is None:
        raise _without_roles(path, shape, reason)
    if not {"in", "window"} & set(axis_roles):
        raise BadValue(
            f"{shown_path(path)}: no axis has the role 'in', got roles {axis_roles!r}.",
            "Mark the axes that the product sums over with 'in', or leave the leaf out with "
            "{exclude}.",
            exclude=rule_for(path),
        )
    return KernelView(shape, axis_roles)


def _without_roles(path: str, shape: tuple[int, ...], reason: str) -> BadValue:
    if reason:
        problem = f"its axes (shape {shape}) have no roles: {reason}."
    elif len(shape) == 2:
        problem = (
            f"a leaf named {parts_of(path)[-1]!r} (shape {shape}) may be stored as "
            "(out, in), as in torch and Equinox."
        )
    else:
        problem = f"which axes of shape {shape} the product sums over is not known."
    return BadValue(
        f"{shown_path(path)}: {problem}",
        "Collect the inputs with jaxprune.layer_inputs, which knows the roles, or pass {roles}; or "
        "leave the leaf out with {exclude}.",
        roles={rule_for(path): _example(shape)},
        exclude=rule_for(path),
    )


def _example(shape: tuple[int, ...]) -> tuple[str, ...]:
    if len(shape) == 2:
        return ("out", "in")
    return ("in", *["out"] * (len(shape) - 1))
