"""Checks that all processes of a `jax.distributed` run, and all devices, prune in the same way.

Each process builds its transformation from its own arguments. A process with another sparsity would
compile another program, and the run would hang or mix results without a warning. Processes compare
digests of their configurations, on the host: every process must call these checks at the same
place.

A transformation cannot wait for other processes while it is traced. It records its digest, and
`jaxprune.check` compares the digests later.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import shown_path

# The digests of what this process has traced for each tree since all agreed, by the paths
# of the tree. With one process it stays empty.
_recorded: dict[tuple[str, ...], set[bytes]] = {}


def check_agreement(*configured: Any, what: str = "the pruning configuration") -> None:
    """Raises an error in every process unless all processes pass equal values.

    Functions are compared by their modules and names. With one process it returns immediately.

    With several processes, call it in all of them: it waits for the others. Only print under
    `if jax.process_index() == 0`.

    Args:
      configured: what to compare: NumPy arrays, or host values whose `repr` shows every difference,
        such as the keyword arguments of `prune`, a schedule, or the paths and shapes of the params.
      what: the name of these values in the error.

    Raises:
      ValueError: naming the processes whose values differ from those of process 0.

    Example:
      >>> import jaxprune
      >>> schedule = jaxprune.cubic_schedule(0.9, 1_000, 9_000)
      >>> check_agreement(schedule, {"exclude": "embed/.*"})
    """
    if jax.process_count() == 1:
        return
    if different := _processes_that_differ(digest(*configured)):
        raise ValueError(
            f"{what} differs between processes: {_listed(different)} from process 0; in process "
            f"{jax.process_index()} it is {_text(configured)}. Pass the same arguments in all "
            "processes."
        )


def remember(paths: Sequence[str], *configured: Any) -> None:
    """Records what the tree of these paths is pruned with; with one process, nothing."""
    if jax.process_count() > 1:
        _recorded.setdefault(tuple(paths), set()).add(digest(*configured))


def check_remembered(trees: Iterable[Sequence[str]]) -> None:
    """Raises an error in every process if they have pruned one of these trees in different ways.

    All processes must call this at the same place. A process may have traced other transformations
    of the same tree, only to look at them; so the processes agree if they have as many digests in
    common as the tree has states. One that has traced none since all agreed, for instance
    because it has restored the state, agrees with all others.

    Args:
      trees: the paths of the tree of each prune state.

    Raises:
      ValueError: naming the processes that differ.
    """
    if jax.process_count() == 1:
        return
    for tree, n_states in Counter(map(tuple, trees)).items():
        traced = {i: own for i, own in enumerate(_all_recorded(tree)) if own}
        if not traced:
            continue
        first = next(iter(traced.values()))
        common = first.intersection(*traced.values())
        if len(common) < min([n_states, *map(len, traced.values())]):
            different = [i for i, own in traced.items() if own != first]
            raise ValueError(
                "prune was given different arguments in different processes: "
                f"{_listed(different)} from the first. Build the same transformation in all of "
                "them; jaxprune.check_agreement(schedule, ...) shows where they differ."
            )
        if len(traced) == jax.process_count():
            _recorded.pop(tree)


def _all_recorded(tree: tuple[str, ...]) -> list[set[bytes]]:
    """The digests that each process has recorded for a tree."""
    own = sorted(_recorded.get(tree, ()))
    n_most = max(1, int(_of_all_processes("check", np.array(len(own))).max()))
    rows = np.zeros((n_most, hashlib.sha256().digest_size), np.uint8)  # no digest is all zeros
    for row, its_digest in zip(rows, own, strict=False):
        row[:] = np.frombuffer(its_digest, np.uint8)
    gathered = _of_all_processes("check", rows)
    return [{row.tobytes() for row in of_process if row.any()} for of_process in gathered]


def _processes_that_differ(own_digest: bytes) -> list[int]:
    """The processes whose digest is not equal to the first."""
    rows = _of_all_processes("check_agreement", np.frombuffer(own_digest, np.uint8))
    return [i for i, row in enumerate(rows) if not np.array_equal(row, rows[0])]


def _of_all_processes(function: str, x: np.ndarray) -> np.ndarray:
    """An array of every process, stacked; `function` is the public one that the user called."""
    from jax.experimental import multihost_utils

    try:
        return np.asarray(multihost_utils.process_allgather(x))
    except Exception as error:
        error.add_note(
            f"jaxprune.{function}: all {jax.process_count()} processes exchange digests here, so "
            f"call it in every process, and only print under `if jax.process_index() == 0`. If "
            "they all do, look for one that has stopped with another error."
        )
        raise


def digest(*configured: Any) -> bytes:
    """A hash of 32 bytes, equal in all processes for equal configurations.

    Example:
      >>> digest({"a": 1, "b": abs}) == digest({"b": abs, "a": 1}) != digest({"a": 2, "b": abs})
      True
    """
    return hashlib.sha256(_text(configured).encode()).digest()


def _text(value: Any) -> str:
    """A `repr` that is equal in all processes: without addresses, and with sorted mappings."""
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
    if isinstance(value, np.ndarray):  # its `repr` leaves out most of many numbers
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _listed(processes: list[int]) -> str:
    numbers = f"{', '.join(map(str, processes))} of {jax.process_count()}"
    return f"process {numbers} differs" if len(processes) == 1 else f"processes {numbers} differ"


# Devices


def diverged(paths: Sequence[str], leaves: Sequence[Any]) -> list[str]:
    """One line for each array whose copies differ between devices.

    Processes exchange digests, so that all of them return the same lines. If an array spans several
    processes, all of them must call this.

    Args:
      paths: the name of each leaf.
      leaves: of any kind. Those that are not arrays, or that have no copies, are skipped.

    Example:
      >>> import jax.numpy as jnp
      >>> diverged(["w"], [jnp.ones(3)])
      []
    """
    copied = [
        (path, x, copies)
        for path, x in zip(paths, leaves, strict=True)
        if (copies := _copies_of(x))
    ]
    place = {device.id: i for i, device in enumerate(jax.devices())}
    lines = []
    for (path, _, copies), row in zip(copied, _digests([x for _, x, _ in copied]), strict=True):
        digest_of = {device: row[i].tobytes() for device, i in place.items()}
        odd = [
            device
            for first, *rest in copies
            for device in rest
            if digest_of[device] != digest_of[first]
        ]
        if odd:
            devices = ", ".join(map(str, odd[:8])) + (", ..." if len(odd) > 8 else "")
            lines.append(f"{shown_path(path)}: another copy on device {devices}")
    return lines


def _digests(arrays: Sequence[jax.Array]) -> np.ndarray:
    """The digest of the part of each array on each device: uint8[n_arrays, n_devices, 8]."""
    place = {device.id: i for i, device in enumerate(jax.devices())}
    digests = np.zeros((len(arrays), len(place), 8), np.uint8)
    for row, x in zip(digests, arrays, strict=True):
        for shard in x.addressable_shards:
            row[place[shard.device.id]] = np.frombuffer(_digest_of_part(shard.data), np.uint8)
    if not all(x.is_fully_addressable for x in arrays):
        digests = _of_all_processes("check", digests).max(0)
    return digests


def _copies_of(x: Any) -> list[list[int]]:
    """The ids of the devices that hold each part of an array, for parts on several devices."""
    if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
        return []
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # PRNG keys
        return []
    holders: dict[str, list[int]] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        holders.setdefault(str(index), []).append(device.id)
    return [sorted(ids) for ids in holders.values() if len(ids) > 1]


def _digest_of_part(part: jax.Array) -> bytes:
    return hashlib.blake2b(np.asarray(part).tobytes(), digest_size=8).digest()
