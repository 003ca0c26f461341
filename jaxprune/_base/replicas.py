"""Whether the devices that hold the same part of an array hold the same numbers.

JAX takes that for granted. It stops being so where `shard_map` is told not to look
(`check_vma=False`), or where processes run different programs: ranks that prune to other
sparsities. Then every device goes on with its own copy, and what is read is that of some device.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
        (path, x, copies) for path, x in zip(paths, leaves, strict=True) if (copies := _of(x))
    ]
    place = {device.id: i for i, device in enumerate(jax.devices())}
    digests = np.zeros((len(copied), len(place), 8), np.uint8)
    for row, (_, x, _) in zip(digests, copied, strict=True):
        for shard in x.addressable_shards:
            row[place[shard.device.id]] = np.frombuffer(_digest(shard.data), np.uint8)
    if not all(x.is_fully_addressable for _, x, _ in copied):
        from jax.experimental import multihost_utils

        digests = np.asarray(multihost_utils.process_allgather(digests)).max(0)
    lines = []
    for row, (path, _, copies) in zip(digests, copied, strict=True):
        of = {device: row[i].tobytes() for device, i in place.items()}
        odd = [device for first, *others in copies for device in others if of[device] != of[first]]
        if odd:
            shown = ", ".join(map(str, odd[:8])) + (", ..." if len(odd) > 8 else "")
            lines.append(f"{path or '(root)'}: another copy on device {shown}")
    return lines


def _of(x: Any) -> list[list[int]]:
    """The ids of the devices that hold each part of an array, of the parts that several hold."""
    if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
        return []
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # PRNG keys
        return []
    holders: dict[str, list[int]] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        holders.setdefault(str(index), []).append(device.id)
    return [sorted(ids) for ids in holders.values() if len(ids) > 1]


def _digest(part: jax.Array) -> bytes:
    return hashlib.blake2b(np.asarray(part).tobytes(), digest_size=8).digest()
