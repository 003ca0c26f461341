"""What the tracer records about labels, and the reasons that users read.

`tracer` explains the words.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxprune._trace.traced_arrays import TracedArray

# Reasons to freeze an axis, as users read them after its name: `w[0]: it must be ...`.
FIXED_BY_INPUT = "it must be as long as an input or a constant array"
FIXED_BY_OUTPUT = "it is an axis of the output"
WINDOW = "it is a window axis of a convolution kernel"
SCANNED = "scan loops over it"
CUT_UP = "a reshape cuts it up together with other axes"

# Of a leaf and an axis of it: `Axis.known` of that axis. Of axis -1: the value of a scalar leaf, in
# an array of length 1.
KnownValues = Callable[[int, int], np.ndarray | None]
# Where an equation is: its number in the program. For an equation of an inner program, such as the
# body of a loop, the path of the outer equation, the name of the param that holds the inner program
# and its number there come first.
EquationPath = tuple[int | str, ...]


class LeafSlice(NamedTuple):
    """The slice of a leaf of the params at one position of one axis."""

    leaf: int
    axis: int
    position: int


class EquationArrays(NamedTuple):
    """The operands and the results of an equation."""

    operands: list[TracedArray]
    results: list[TracedArray]


class FrozenLabels(NamedTuple):
    """Labels of units that can't be removed, the reason, and the equation, if any, that says so.

    `tracer` explains frozen units. This has nothing to do with frozen params or a `FrozenDict`.
    """

    labels: np.ndarray
    reason: str
    path: EquationPath = ()


class Tiling(NamedTuple):
    """An axis that is cut into parts of equal length.

    Attributes:
      parts: the labels, [number of parts, length of a part].
      path: of the equation that cuts it.
      forced: whether the parts must have equal lengths whatever the program is, as the groups of a
        grouped convolution must; otherwise that depends on how the program computes the lengths.
    """

    parts: np.ndarray
    path: EquationPath
    forced: bool


class Contraction(NamedTuple):
    """An axis that a product sums over.

    Attributes:
      labels: of the axis, in either factor.
      zero: bool, for each index whether one of the factors is known to be zero there.
      weight_labels: the labels in the factor that is computed from params alone; None where both
        factors are, or none.
    """

    labels: np.ndarray
    zero: np.ndarray
    weight_labels: np.ndarray | None
