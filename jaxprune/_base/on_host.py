"""The values of arrays on the host, where this process can read all of them."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def is_here(x: Any) -> bool:
    """Whether this process can read a whole array: no part lies on devices of another alone.

    Example:
      >>> is_here(np.ones(2)), is_here(jax.numpy.ones(2))
      (True, True)
    """
    if not isinstance(x, jax.Array) or isinstance(x, Tracer):
        return True
    return x.is_fully_addressable or x.is_fully_replicated


def check_here(where: str, x: Any, gather: str = "params") -> None:
    """Raises a ValueError where other processes hold parts of an array.

    Args:
      where: the path or the argument, for the error.
      x: an array; anything else passes.
      gather: what the user should gather, as Python text.
    """
    if not is_here(x):
        raise ValueError(
            f"{where}: an array of shape {tuple(x.shape)} is spread over several processes, and "
            f"process {jax.process_index()} can't read all of it. Type host = "
            f"jax.experimental.multihost_utils.process_allgather({gather}, tiled=True) in all "
            "processes, and pass host. Write files in one of them: if jax.process_index() == 0."
        )


def to_host(where: str, x: Any, gather: str = "params") -> np.ndarray:
    """An array as a NumPy array; raises as `check_here` does.

    Example:
      >>> to_host("w", jax.numpy.arange(3)).tolist()
      [0, 1, 2]
    """
    check_here(where, x, gather)
    return np.asarray(x)
