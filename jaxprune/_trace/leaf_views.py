"""Which entries of a leaf of the params an array of the program holds: `View`.

A program transposes, splits, reshapes and slices a kernel before it multiplies by it. A view says
where each entry of the result lies in the leaf. Its coordinate along a leaf axis is a sum,

    start + step_0[i_0] + step_1[i_1] + ...

with one term for each axis of the array, looked up by the index on that axis. No entry of a leaf is
stored, only these small tables, so that kernels of any size can be followed.

Axes that a reshape has merged keep their parts, the digits of a mixed-radix number: the last digit
counts fastest. A later reshape that cuts the axis at the same place only takes them apart again.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune._trace.tracer import EquationPath

# The most entries of a table. A longer axis is followed only while it consists of several digits.
MAX_TABLE = 2**23


class UnclearError(Exception):
    """An array whose entries can't be described by a `View`. It never leaves this package."""


@dataclasses.dataclass(frozen=True, eq=False)
class Digit:
    """An axis of an array, or a part of a merged axis.

    Attributes:
      size: its number of indices.
      steps: leaf axis -> int64[size], what each index adds to the coordinate along that leaf axis.
      present: bool[size], at which indices there are entries of the leaf; at the others there is
        something else, such as another part of a concatenation. None means everywhere.
      unknown: leaf axes along which the coordinate depends on the index in a way that only the
        running program knows.
    """

    size: int
    steps: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    present: np.ndarray | None = None
    unknown: frozenset[int] = frozenset()

    def mask(self) -> np.ndarray:
        """`present` as an array, also where it is None."""
        return np.ones(self.size, bool) if self.present is None else self.present

    def take(self, index: np.ndarray) -> "Digit":
        """The digit after indexing it; index -1 is an entry that is not from the leaf."""
        present = self.mask()[index] & (index >= 0)
        steps = {axis: step[index] for axis, step in self.steps.items()}
        return Digit(len(index), steps, None if present.all() else present, self.unknown)

    def varies(self, axis: int) -> bool:
        """Whether the coordinate along a leaf axis depends on the index."""
        if axis in self.unknown and self.size > 1:
            return True
        step = self.steps.get(axis)
        if step is None:
            return False
        step = step if self.present is None else step[self.present]
        return bool(len(step)) and bool((step != step[0]).any())


Digits = tuple[Digit, ...]  # of one axis; axes of length 1 may have none


class Lookup(NamedTuple):
    """A slice whose position only the running program knows.

    Attributes:
      path: of the equation.
      axis: of the array from which it is taken.
      digits: of that axis. They say what a position adds to the coordinates.
      size: how many indices the slice takes.
      n_positions: how many positions the equation reads at.
    """

    path: EquationPath
    axis: int
    digits: Digits
    size: int
    n_positions: int


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """Where the entries of an array come from in a leaf of the params.

    Attributes:
      leaf: the number of the leaf.
      axes: the digits of each axis of the array.
      start: int per leaf axis, the coordinate at index 0 but for the steps of the digits.
      loops: (path of the equation, digits) of each scan in whose body the array is one of many
        slices: in slice i the coordinates are larger by the steps at index i.
      inner: (path of the equation, digits) of axes that ended in a product with another param.
      indexed: (leaf axis, path of the equation) where the program computes the position of a slice,
        so that `start` is not known.
      looked_up: whether such a position depends on an input of the model.
      lookups: what `indexed` leaves out: how the coordinates follow from the positions.
    """

    leaf: int
    axes: tuple[Digits, ...]
    start: tuple[int, ...]
    loops: tuple[tuple[EquationPath, Digits], ...] = ()
    inner: tuple[tuple[EquationPath, Digits], ...] = ()
    indexed: tuple[tuple[int, EquationPath], ...] = ()
    looked_up: bool = False
    lookups: tuple[Lookup, ...] = ()

    def with_axes(self, axes: Iterable[Digits]) -> "View":
        """The same view with other axes."""
        return dataclasses.replace(self, axes=tuple(axes))

    def without_axes(self, removed: Sequence[int]) -> "View | None":
        """Without axes of length 1, whose steps move into `start`; None if nothing is left."""
        start = list(self.start)
        for k in removed:
            for digit in self.axes[k]:
                if not digit.mask()[0]:
                    return None
                for axis, step in digit.steps.items():
                    start[axis] += int(step[0])
        axes = tuple(axis for k, axis in enumerate(self.axes) if k not in removed)
        return dataclasses.replace(self, axes=axes, start=tuple(start))

    def is_empty(self) -> bool:
        """Whether no entry of the array is from the leaf."""
        digits = [digit for axis in self.axes for digit in axis]
        return any(d.size == 0 or (d.present is not None and not d.present.any()) for d in digits)

    def key(self) -> tuple[object, ...]:
        """A hashable value that is equal for equal views."""
        loops, inner = (
            tuple((path, _digits_key(digits)) for path, digits in parts)
            for parts in (self.loops, self.inner)
        )
        axes = tuple(map(_digits_key, self.axes))
        lookups = tuple((where[:2], _digits_key(where.digits)) for where in self.lookups)
        return (self.leaf, axes, self.start, loops, inner, self.indexed, self.looked_up, lookups)


def _digits_key(digits: Digits) -> tuple[object, ...]:
    return tuple(
        (
            digit.size,
            tuple((axis, step.tobytes()) for axis, step in sorted(digit.steps.items())),
            None if digit.present is None else digit.present.tobytes(),
            digit.unknown,
        )
        for digit in digits
    )


Views = tuple[View, ...]


class Value(NamedTuple):
    """What is known about an array of the program.

    Attributes:
      shape: of the array.
      views: the leaves that it holds entries of, if it is computed from params and constants alone,
        or is looked up in a param at a position that depends on an input.
      is_data: whether it depends on an input of the model.
      trail: views of the results of earlier products that it is made of; see `trails`.
      known: computes the array if it is a constant; else None.
    """

    shape: tuple[int, ...]
    views: Views = ()
    is_data: bool = False
    trail: Views = ()
    known: Callable[[], Any] | None = None

    def is_plain_data(self) -> bool:
        """Whether it depends on an input and is not just looked up."""
        return self.is_data and not self.views


def leaf_view(leaf: int, shape: Sequence[int]) -> View:
    """The view of a whole leaf."""
    axes = [(Digit(size, {k: np.arange(size)}),) for k, size in enumerate(shape)]
    return View(leaf, tuple(axes), (0,) * len(shape))


def blank(size: int) -> Digits:
    """An axis whose index does not matter: the same entries of the leaf at each."""
    return (Digit(size),)


def size_of(digits: Iterable[Digit]) -> int:
    """The length of an axis."""
    return math.prod(digit.size for digit in digits)


def table(digits: Digits) -> Digit:
    """An axis as one digit.

    Raises:
      UnclearError: it is too long.
    """
    if len(digits) == 1:
        return digits[0]
    shape = [digit.size for digit in digits]
    size = math.prod(shape)
    if size > MAX_TABLE:
        raise UnclearError(f"a merged axis of length {size} is cut at another place")
    indices = np.unravel_index(np.arange(size), shape) if digits else ()
    steps: dict[int, np.ndarray] = {}
    present = np.ones(size, bool)
    for digit, index in zip(digits, indices, strict=True):
        present &= digit.mask()[index]
        for axis, step in digit.steps.items():
            steps[axis] = steps.get(axis, 0) + step[index]
    unknown = frozenset().union(*(digit.unknown for digit in digits))
    return Digit(size, steps, None if present.all() else present, unknown)


def index_range(start: int, stop: int, step: int = 1) -> np.ndarray:
    """The indices of a slice, for `take`.

    Raises:
      UnclearError: there are too many.
    """
    size = len(range(start, stop, step))
    if size > MAX_TABLE:
        raise UnclearError(f"{size} entries of a longer axis are taken")
    return np.arange(start, stop, step)


def take(digits: Digits, index: np.ndarray | None) -> Digits:
    """An axis after indexing it.

    Args:
      digits: of the axis.
      index: integers, where -1 is an entry that is not from the leaf. None takes the whole axis.
    """
    if index is None:
        return digits
    size = size_of(digits)
    if len(index) == size and np.array_equal(index, np.arange(size)):
        return digits
    inner = size_of(digits[1:])
    if len(digits) > 1 and len(index) and len(index) % inner == 0:
        rows = index.reshape(-1, inner)
        if (rows == rows[:, :1] + np.arange(inner)).all() and (rows[:, 0] % inner == 0).all():
            return (digits[0].take(rows[:, 0] // inner), *digits[1:])
    return (table(digits).take(index),)


def split(digits: Digits, sizes: Sequence[int]) -> list[Digits]:
    """An axis cut into several, whose lengths multiply to its own.

    Raises:
      UnclearError: the coordinates are not a sum over the new axes.
    """
    remaining, axes = [digit for digit in digits if digit.size > 1], []
    for size in reversed(sizes):
        axis: list[Digit] = []
        while size > 1:
            digit = remaining.pop()
            while digit.size % size and size % digit.size:
                digit = table((remaining.pop(), digit))
            if digit.size > size:
                high, digit = _cut(digit, size)
                remaining.append(high)
            axis.insert(0, digit)
            size //= digit.size
        axes.insert(0, tuple(axis))
    return axes


def _cut(digit: Digit, size: int) -> tuple[Digit, Digit]:
    """A digit cut in two, the second of this size."""
    if not digit.steps and digit.present is None:
        rows = digit.size // size
        return Digit(rows, unknown=digit.unknown), Digit(size, unknown=digit.unknown)
    present = digit.mask().reshape(-1, size)
    rows, columns = np.any(present, axis=1), np.any(present, axis=0)
    if (present != rows[:, None] & columns).any():
        raise UnclearError("a reshape cuts up a concatenated axis")
    row, column = rows.argmax(), columns.argmax()
    high, low = {}, {}
    for axis, step in digit.steps.items():
        matrix = step.reshape(-1, size)
        high[axis], low[axis] = matrix[:, column], matrix[row] - matrix[row, column]
        if (present & (matrix != high[axis][:, None] + low[axis])).any():
            raise UnclearError("a reshape cuts up an axis in which entries were rearranged")
    return (
        Digit(len(rows), high, None if rows.all() else rows, digit.unknown),
        Digit(size, low, None if columns.all() else columns, digit.unknown),
    )


def reshaped(view: View, shape: Sequence[int]) -> View:
    """A view after a reshape; its entries stay in row-major order."""
    start = list(view.start)
    digits: list[Digit] = []
    for digit in (digit for axis in view.axes for digit in axis):
        if digit.size > 1:
            digits.append(digit)
            continue
        if not digit.mask()[0]:
            raise UnclearError("a reshape removes an axis that is not from the leaf")
        for axis, step in digit.steps.items():
            start[axis] += int(step[0])
    axes = split(tuple(digits), shape)
    return dataclasses.replace(view, axes=tuple(axes), start=tuple(start))


def coordinates(view: View, axes: Sequence[int]) -> Digit:
    """The steps of some axes of the array, flattened in this order, as one digit."""
    return table(tuple(digit for k in axes for digit in view.axes[k]))
