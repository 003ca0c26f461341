"""The role of each axis of a leaf in one product, from the view that the product has of it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxprune._trace.leaf_views import Digit, Digits, UnclearError, split
from jaxprune._trace.view_tracer import Product

_SUMMED = ("in", "window")
_GROUPS = "groups"  # of a convolution: its output channels by group


class Use(NamedTuple):
    """How a product uses a leaf.

    Attributes:
      roles: of each axis of the leaf; empty if there is a reason.
      reason: why the leaf has no roles in this product.
    """

    roles: tuple[str, ...]
    reason: str = ""


class _Part(NamedTuple):
    """A digit of an axis of the operand, and the role of that axis."""

    role: str
    digit: Digit


def use_of(product: Product, shape: Sequence[int]) -> Use | None:
    """How a product uses a leaf; None if it sums over no axis of the leaf.

    For example, a scale (1, out) that multiplies a kernel (in, out) is in no sum.

    Args:
      product: with a view of the leaf.
      shape: of the leaf.
    """
    parts = list(_parts(product))
    varying = [[p for p in parts if p.digit.varies(axis)] for axis in range(len(shape))]
    summed = [axis for axis, p in enumerate(varying) if any(part.role in _SUMMED for part in p)]
    inner = _inner_axes(product, len(shape))
    if not summed and not any(inner) and not _sums_one_entry(product):
        return None
    if not summed and len({path for paths in inner for path in paths}) > 1:
        return Use((), "it is multiplied by other params on both sides")
    removed = _removed_axes(product)
    roles = []
    for axis in range(len(shape)):
        names = {part.role for part in varying[axis]}
        if inner[axis]:
            names.add("out" if summed else "in")
        if "out" in names and names & set(_SUMMED):
            return Use((), f"axis {axis} is only partly summed over")
        constant = [part.role for part in parts if axis in part.digit.steps]
        roles.append(_role(names, constant, axis in removed))
    return Use(_with_groups(roles, product, shape))


def _role(names: set[str], constant: Sequence[str], is_removed: bool) -> str:
    """The role of a leaf axis.

    Args:
      names: of the axes of the operand along which the coordinate varies.
      constant: of all axes of the operand that it lies on.
      is_removed: whether a loop or an index takes slices along it.
    """
    for name in ("in", "window", "out", _GROUPS, "stack"):  # (in, window) is a matrix of patches
        if name in names:
            return name
    return constant[0] if constant and not is_removed else "stack"


def _parts(product: Product) -> Iterator[_Part]:
    """All digits of the operand, those of groups of output channels apart."""
    axes = zip(product.roles, product.view.axes, strict=True)
    for role, digits in axes:
        if role != "out" or product.n_groups == 1:
            yield from (_Part(role, digit) for digit in digits)
            continue
        groups, channels = _split_groups(digits, product.n_groups)
        yield from (_Part(_GROUPS, digit) for digit in groups)
        yield from (_Part("out", digit) for digit in channels)


def _split_groups(digits: Digits, n_groups: int) -> tuple[Digits, Digits]:
    """The output channels of a convolution: the groups, and the channels in each."""
    size = 1
    for digit in digits:
        size *= digit.size
    try:
        groups, channels = split(digits, (n_groups, size // n_groups))
    except UnclearError:
        return (), digits
    return groups, channels


def _with_groups(roles: list[str], product: Product, shape: Sequence[int]) -> tuple[str, ...]:
    """The roles with "groups" replaced.

    `vmap` of a convolution makes one convolution with groups, in which the axis of the models is
    that of the groups: a stack. The channels of a depthwise convolution are its outputs, although
    each is a group of its own: the last axis over the groups is "out" if no other is.
    """
    if "out" not in roles and _GROUPS in roles:
        roles[len(roles) - 1 - roles[::-1].index(_GROUPS)] = "out"
    roles = ["stack" if role == _GROUPS else role for role in roles]
    # An axis of length 1 that a reshape or an index has removed is the one that is missing.
    removed = [k for k, role in enumerate(roles) if role == "stack" and shape[k] == 1]
    for k, role in zip(removed, _missing(roles, product), strict=False):
        roles[k] = role
    return tuple(roles)


def _missing(roles: Sequence[str], product: Product) -> list[str]:
    """The roles of axes of the operand that no axis of the leaf has."""
    rest, missing = list(roles), []
    for role in product.roles:
        if role in rest:
            rest.remove(role)
        elif role != "stack":
            missing.append(role)
    return missing if "out" in (*roles, *missing) else [*missing, "out"]


def _inner_axes(product: Product, n_axes: int) -> list[list[object]]:
    """For each leaf axis, the paths of products with other params that sum over it."""
    return [
        [path for path, digits in product.view.inner if any(d.varies(axis) for d in digits)]
        for axis in range(n_axes)
    ]


def _sums_one_entry(product: Product) -> bool:
    """Whether the operand has an axis of length 1 of the leaf that is summed over."""
    return any(
        role in _SUMMED and len(digits) == 1 and digits[0].size == 1 and digits[0].steps
        for role, digits in zip(product.roles, product.view.axes, strict=True)
    )


def _removed_axes(product: Product) -> set[int]:
    """The leaf axes along which loops and computed positions take slices."""
    looped = {
        axis
        for _, digits in product.view.loops
        for digit in digits
        for axis in digit.steps
        if digit.varies(axis)
    }
    return looped | {axis for axis, _ in product.view.indexed}
