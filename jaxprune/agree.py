"""Whether all processes of a `jax.distributed` run prune alike.

Each process builds its transformation from its own arguments, and a rank with another sparsity
would compile another program: a hang, or a silent mixture. A digest of what was configured tells.
It is compared on the host, so every process must call this at the same place.
"""

import hashlib
from typing import Any

import jax
import numpy as np


def check_agreement(*configured: Any, what: str = "the pruning configuration") -> None:
    """Raises, on every process alike, unless all processes were given the same.

    A function among the arguments counts by its module and name. With one process it returns at
    once.

    Args:
      configured: host values with a `repr` that tells them apart: the keyword arguments of
        `prune`, a schedule, the paths and shapes of the params.
      what: what differs, for the error.

    Raises:
      ValueError: naming the processes that differ from the first.

    Example:
      >>> import jaxprune
      >>> schedule = jaxprune.cubic_schedule(0.9, 1_000, 9_000)
      >>> check_agreement(schedule, {"exclude": "embed/.*"})
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mine = np.frombuffer(digest(*configured), np.uint8)
    all_of_them = np.asarray(multihost_utils.process_allgather(mine))
    others = [i for i, one in enumerate(all_of_them) if not np.array_equal(one, all_of_them[0])]
    if others:
        raise ValueError(
            f"{what} differs between processes: {_listed(others)} of {len(all_of_them)} "
            f"not that of process 0. Here, in process {jax.process_index()}, it is "
            f"{_text(configured)}. Give all processes the same arguments."
        )


def digest(*configured: Any) -> bytes:
    """32 bytes that are equal for equal configurations, in any process.

    Example:
      >>> digest({"a": 1, "b": abs}) == digest({"b": abs, "a": 1}) != digest({"a": 2, "b": abs})
      True
    """
    return hashlib.sha256(_text(configured).encode()).digest()


def _text(value: Any) -> str:
    """A `repr` without addresses, and with mappings in the order of their keys."""
    if isinstance(value, dict):
        pairs = sorted((_text(key), _text(item)) for key, item in value.items())
        return "{" + ", ".join(f"{key}: {item}" for key, item in pairs) + "}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}(" + ", ".join(map(_text, value)) + ")"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def _listed(processes: list[int]) -> str:
    names = ", ".join(map(str, processes))
    return f"process {names} has one that is" if len(processes) == 1 else f"{names} have ones"
