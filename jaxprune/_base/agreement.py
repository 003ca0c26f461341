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
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import shown_path

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


# Devices


def diverged(paths: Sequence[str], leaves: Sequence[Any]) -> list[str]:
    """One line for each array of which some device has another copy than the first.

    Processes exchange digests, so that all of them return the same: where an array is spread over
    several processes, all must call this.

    Args:
      paths: what each leaf is called.
      leaves: of any kind; what is no array on several devices, or has no copies, is passed over.

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
    digests = np.zeros((len(copied), len(place), 8), np.uint8)
    for row, (_, x, _) in zip(digests, copied, strict=True):
        for shard in x.addressable_shards:
            row[place[shard.device.id]] = np.frombuffer(_digest_of_part(shard.data), np.uint8)
    if not all(x.is_fully_addressable for _, x, _ in copied):
        from jax.experimental import multihost_utils

        digests = np.asarray(multihost_utils.process_allgather(digests)).max(0)
    lines = []
    for row, (path, _, copies) in zip(digests, copied, strict=True):
        of = {device: row[i].tobytes() for device, i in place.items()}
        odd = [device for first, *others in copies for device in others if of[device] != of[first]]
        if odd:
            shown = ", ".join(map(str, odd[:8])) + (", ..." if len(odd) > 8 else "")
            lines.append(f"{shown_path(path)}: another copy on device {shown}")
    return lines


def _copies_of(x: Any) -> list[list[int]]:
    """The ids of the devices that hold each part of an array, of the parts that several hold."""
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
