"""What is left of the axes of a program when some units are removed."""

from collections.abc import Iterable

import numpy as np

from jaxprune._trace.traced_arrays import Axis
from jaxprune._trace.tracer import Tracer


def units_of_labels(tracer: Tracer) -> np.ndarray:
    """For each label of a traced program, the units that it goes with.

    Returns:
      int64[n_labels, n]; units are named by the smallest of their labels. A row with fewer than n
      units ends with -1.
    """
    return tracer.units.atoms_of_all(tracer.n_labels)


class Cut:
    """Some units of a traced program, to be removed."""

    def __init__(self, units_of: np.ndarray, removed: Iterable[int]):
        """Args: `units_of_labels` of the program, and the units to remove."""
        # Index -1, for entries that belong to no unit, reads the last entry.
        is_removed = np.zeros(len(units_of) + 1, bool)
        is_removed[list(removed)] = True
        self._is_removed = np.asarray(is_removed[units_of].any(1))

    def length(self, axis: Axis) -> int:
        """How many indices of an axis are left."""
        if axis.labels is None:
            return axis.size
        return axis.size - int(np.count_nonzero(self._is_removed[axis.labels]))
