"""Whether all processes of a `jax.distributed` run prune alike.

Each process builds its transformation from its own arguments, and a rank with another sparsity
would compile another program: a hang, or a silent mixture. A digest of what was configured tells.
It is compared on the host, so every process must call this at the same place.

Every transformation also leaves its digest here when it is traced, for `check` to compare: the
program is the same for all processes then, where the transformation itself must not wait for them.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

# What this process prunes trees with: digests, by the paths of the tree. Empty with one process.
_used: dict[tuple[str, ...], set[bytes]] = {}


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
    if others := _others(digest(*configured)):
        raise ValueError(
            f"{what} differs between processes: {_listed(others)} than process 0. "
            f"Here, in process {jax.process_index()}, it is "
            f"{_text(configured)}. Give all processes the same arguments."
        )


def remember(paths: Sequence[str], *configured: Any) -> None:
    """Leaves a note of what the tree of these paths is pruned with; with one process, none."""
    if jax.process_count() > 1:
        _used.setdefault(tuple(paths), set()).add(digest(*configured))


def check_remembered(trees: Iterable[Sequence[str]]) -> None:
    """Raises, on every process alike, where they have pruned one of these trees in other ways.

    All processes must call this at the same place. One that has not pruned a tree yet, but for
    instance restored it, agrees with the others.

    Args:
      trees: the paths of each tree.

    Raises:
      ValueError: naming the processes that differ.
    """
    if jax.process_count() == 1:
        return
    for paths in trees:
        used = sorted(_used.get(tuple(paths), ()))
        if others := _others(digest(used) if used else None):
            raise ValueError(
                f"prune was given other arguments in other processes: {_listed(others)} than the "
                "first. Build the same transformation in all of them, which "
                "jaxprune.check_agreement(schedule, ...) compares and shows."
            )


def _others(mine: bytes | None) -> list[int]:
    """The processes whose digest is not that of the first that has one."""
    from jax.experimental import multihost_utils

    row = np.frombuffer(mine or bytes(hashlib.sha256().digest_size), np.uint8)
    digests = [one.tobytes() for one in np.asarray(multihost_utils.process_allgather(row))]
    first = next((one for one in digests if any(one)), None)
    return [i for i, one in enumerate(digests) if any(one) and one != first]


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
    if isinstance(value, functools.partial):
        return f"partial{_text((value.func, value.args, value.keywords))}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (getattr(value, field.name) for field in dataclasses.fields(value))
        return type(value).__name__ + _text(tuple(fields))
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _listed(processes: list[int]) -> str:
    of = f"{', '.join(map(str, processes))} of {jax.process_count()}"
    return f"process {of} has others" if len(processes) == 1 else f"processes {of} have others"
