"""What is left of the axes of a program when some units are removed."""

from collections.abc import Iterable

import numpy as np

from jaxprune._trace.traced_arrays import Axis
from jaxprune._trace.tracer import Tracer


def unit_of_labels(tracer: Tracer) -> np.ndarray:
    """For each label of a traced program, the smallest label of its unit."""
    n_labels = int(tracer.new_labels(1)[0])
    return np.array(tracer.units.find_all(np.arange(n_labels)), np.int64)


class Cut:
    """Some units of a traced program, to be removed."""

    def __init__(self, unit_of: np.ndarray, removed: Iterable[int]):
        """Args: `unit_of_labels` of the program, and the units to remove."""
        is_removed = np.zeros(len(unit_of), bool)
        is_removed[list(removed)] = True
        self._is_removed = is_removed[unit_of]

    def length(self, axis: Axis) -> int:
        """How many indices of an axis are left."""
        if axis.labels is None:
            return axis.size
        return axis.size - int(np.count_nonzero(self._is_removed[axis.labels]))
