"""The role of each axis of the two factors of a product, and where the axis is in the result."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class OperandRoles(NamedTuple):
    """The axes of one factor.

    Attributes:
      roles: of each axis: "in" and "window" are summed over, "stack" is a batch axis, "out" is an
        axis of the result alone.
      positions: of each axis in the result; None where it is summed over.
      n_groups: of a convolution: its output channels are this many groups of neighbours, and each
        group sums over other input channels. 1 for other products.
      is_weight: whether a param in this place is a kernel; False for the image of a convolution.
    """

    roles: tuple[str, ...]
    positions: tuple[int | None, ...]
    n_groups: int = 1
    is_weight: bool = True


Shape = Sequence[int]


def dot_general(eqn: Any, left: Shape, right: Shape) -> tuple[OperandRoles, OperandRoles]:
    """A matrix product; its result has the batch axes, those of the left, those of the right."""
    summed, batch = eqn.params["dimension_numbers"]
    n_batch = len(batch[0])
    n_left = len(left) - n_batch - len(summed[0])
    return (
        _factor(len(left), summed[0], batch[0], n_batch),
        _factor(len(right), summed[1], batch[1], n_batch + n_left),
    )


def _factor(n_axes: int, summed: Sequence[int], batch: Sequence[int], start: int) -> OperandRoles:
    """One factor of a matrix product, whose own axes are in the result from `start` on."""
    roles: list[str] = []
    positions: list[int | None] = []
    for k in range(n_axes):
        if k in summed:
            roles.append("in")
            positions.append(None)
        elif k in batch:
            roles.append("stack")
            positions.append(list(batch).index(k))
        else:
            roles.append("out")
            positions.append(start)
            start += 1
    return OperandRoles(tuple(roles), tuple(positions))


def ragged_dot_general(eqn: Any, left: Shape, right: Shape) -> tuple[OperandRoles, OperandRoles]:
    """A matrix product with a matrix for each group of rows; the axis of groups is a stack."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    summed, batch = numbers.dot_dimension_numbers
    factors = []
    for n_axes, sums, stack in (
        (len(left), summed[0], batch[0]),
        (len(right), summed[1], (*batch[1], *numbers.rhs_group_dimensions)),
    ):
        roles = _factor(n_axes, sums, stack, 0).roles
        factors.append(OperandRoles(roles, (None,) * n_axes))  # its groups depend on data
    return factors[0], factors[1]


def conv_general_dilated(eqn: Any, left: Shape, right: Shape) -> tuple[OperandRoles, OperandRoles]:
    """A convolution: of an image, the left factor, with a kernel."""
    params = eqn.params
    numbers = params["dimension_numbers"]
    n_groups = params["feature_group_count"] * params["batch_group_count"]
    factors = []
    for spec, position, is_weight in (
        (numbers.lhs_spec, numbers.out_spec[0], False),
        (numbers.rhs_spec, numbers.out_spec[1], True),
    ):
        out, into, *_ = spec
        role_of = {out: "out", into: "in"}
        roles = tuple(role_of.get(k, "window") for k in range(len(spec)))
        positions = tuple(position if k == out else None for k in range(len(spec)))
        factors.append(OperandRoles(roles, positions, n_groups, is_weight))
    return factors[0], factors[1]


PRODUCTS: dict[str, Callable[[Any, Shape, Shape], tuple[OperandRoles, OperandRoles]]] = {
    "dot_general": dot_general,
    "ragged_dot_general": ragged_dot_general,
    "conv_general_dilated": conv_general_dilated,
}
