"""What the tracer knows about the arrays of a program: `TracedArray` and its `Axis`es.

During tracing, an array is replaced by a description of its axes. The description holds no entries:
only the label of every index (see `tracer`) and, where it is known without running the program, the
one value that a whole slice holds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a traced array.

    Attributes:
      size: its length.
      labels: int64[size], one label per index; None where the length can't change, such as that of
        a batch axis.
      known: float64[size], for each index the one value that every entry of that slice holds,
        whatever the inputs are; NaN where there is no such value or it is unknown, and infinity
        where it is not finite (see `constant_folding`). None means NaN everywhere.
    """

    size: int
    labels: np.ndarray | None = None
    known: np.ndarray | None = None

    def known_values(self) -> np.ndarray:
        """`known` as an array: all NaN if it is None."""
        return np.full(self.size, np.nan) if self.known is None else self.known

    def is_zero(self) -> np.ndarray:
        """Whether each slice is known to be zero: bool[size]."""
        return self.known_values() == 0

    def take(self, index: Any) -> "Axis":
        """The axis after indexing it with a slice or an integer array."""
        labels = None if self.labels is None else self.labels[index]
        known = None if self.known is None else self.known[index]
        size = len(np.empty(self.size, np.int8)[index])
        return Axis(size, labels, known)

    def with_known(self, known: np.ndarray | None) -> "Axis":
        """The same axis with other known values."""
        return Axis(self.size, self.labels, known)

    def with_zeros(self, zero: np.ndarray) -> "Axis":
        """The same axis, known to be zero where `zero` is True, and unknown elsewhere."""
        return self.with_known(np.where(zero, 0.0, np.nan) if zero.any() else None)

    def zeros_only(self) -> "Axis":
        """The same axis, without the known values that are finite and not zero."""
        if self.known is None:
            return self
        return self.with_known(
            np.where((self.known == 0) | np.isposinf(self.known), self.known, np.nan)
        )


@dataclasses.dataclass(frozen=True)
class TracedArray:
    """One array of the program, described by its axes.

    Attributes:
      axes: one per axis of the array.
      scalar: the value of an array without axes; NaN where it is unknown.
      from_params: whether it is computed from params alone, without any input of the model.
    """

    axes: tuple[Axis, ...] = ()
    scalar: float = np.nan
    from_params: bool = False

    @staticmethod
    def of(axes: Sequence[Axis]) -> "TracedArray":
        """An array with these axes."""
        return TracedArray(tuple(axes))

    def single_value(self) -> float:
        """The value that every entry of the array holds; NaN where it is unknown."""
        for axis in self.axes:
            if axis.known is not None and axis.size and np.all(axis.known == axis.known[0]):
                return float(axis.known[0])
        return np.nan if self.axes else self.scalar


def fixed_array(shape: Sequence[int]) -> TracedArray:
    """An array whose shape can't change and whose values are unknown, such as an input."""
    return TracedArray.of([Axis(int(size)) for size in shape])


def constant_array(x: Any) -> TracedArray:
    """An array that is part of the program: its shape can't change, its values are known."""
    try:
        x = known_numbers(np.asarray(x))
    except (TypeError, ValueError):  # a PRNG key
        return fixed_array(np.shape(x))
    axes = [Axis(size, None, slice_values(x, k)) for k, size in enumerate(x.shape)]
    return TracedArray(tuple(axes), float(x) if x.ndim == 0 else np.nan)


def known_numbers(x: np.ndarray) -> np.ndarray:
    """Numbers as float64: complex ones that are not real are NaN, which stands for unknown.

    Example:
      >>> known_numbers(np.array([0, 2, 1j]))
      array([ 0.,  2., nan])
    """
    if np.iscomplexobj(x):
        return np.where(np.imag(x) == 0, np.real(x), np.nan).astype(np.float64)
    return x.astype(np.float64)


def slice_values(x: np.ndarray, axis: int) -> np.ndarray | None:
    """`Axis.known` of an axis of a NumPy array: the value of each slice whose entries are equal."""
    if not x.size:
        return None
    other_axes = tuple(i for i in range(x.ndim) if i != axis)
    low, high = x.min(other_axes), x.max(other_axes)
    known = np.where(low == high, low, np.nan)
    return None if np.isnan(known).all() else known


def common_known(axes: Sequence[Axis]) -> np.ndarray:
    """The known values that several axes of one length have in common.

    NaN where they differ, and infinite where any of them may not be finite.
    """
    known = [axis.known_values() for axis in axes]
    agree = np.all([values == known[0] for values in known], axis=0)
    infinite = np.any(np.isposinf(known), axis=0)
    return np.where(infinite, np.inf, np.where(agree, known[0], np.nan))


def zeros_of_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The known values of an elementwise product, from those of its two factors.

    Zero where a factor is zero, infinite where a factor may not be finite, and NaN (unknown)
    elsewhere.
    """
    zero = np.where((a == 0) | (b == 0), 0.0, np.nan)
    return np.where(np.isposinf(a) | np.isposinf(b), np.inf, zero)
