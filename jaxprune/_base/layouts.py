"""The layout of arrays in memory, where XLA would choose one that costs a copy of a whole array.

XLA chooses layouts for the kernels that read an array most. A loop that reads some columns of a
matrix at a time would so make it transpose the whole matrix before the loop.
"""

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxprune._base.sharding import on_gpu


def row_by_row(x: jax.Array) -> jax.Array:
    """`x`, which a GPU stores row by row, with the entries of the last axis next to each other.

    XLA for CPUs and TPUs still chooses its own layout.
    """
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if on_gpu([x]) else x
