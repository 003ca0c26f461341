"""From a file straight to packed kernels: the dense ones are never all in memory."""

import os
from typing import Any

import jax
import numpy as np

from jaxprune._base.paths import as_rules, listed, matches
from jaxprune._blocks.packed_matrix import PackedMatrix, pack_matrix
from jaxprune._files.leaves import opened
from jaxprune._files.save_load import nested


def load_packed(
    path: str | os.PathLike[str],
    include: Any = ".*kernel",
    *,
    block: tuple[int, int] = (1, 16),
    batch: int = 1,
) -> tuple[Any, dict[str, PackedMatrix]]:
    """The params of a file of `save`, the matrices that the rules choose packed as they are read.

    One dense kernel is in memory at a time, so that a sparse model takes about what its file does.
    The file is not trusted, as for `load`.

    Args:
      path: of the file.
      include: as for `prune`; what has not two axes is left out.
      block: as for `pack_matrix`.
      batch: as for `pack_matrix`.

    Returns:
      The other leaves, as nested dicts of NumPy arrays, and the packed matrices by path, as
      `packed_apply` takes them.

    Raises:
      ValueError: a file that is damaged, or no matrix is chosen.
      FileNotFoundError: there is none.

    Example:
      >>> import jaxprune, tempfile
      >>> w = np.zeros((6, 32), np.float32)
      >>> w[2, :16] = 1
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jaxprune.save(f"{folder}/a.zst", {"fc": {"kernel": w, "bias": np.ones(2)}})
      ...     rest, packed = load_packed(f"{folder}/a.zst")
      >>> rest, packed["fc/kernel"].values.shape
      ({'fc': {'bias': array([1., 1.])}}, (2, 1, 16))
    """
    rules = as_rules(include, "include")
    rest: dict[str, np.ndarray] = {}
    packed: dict[str, PackedMatrix] = {}
    with opened(path) as file:
        paths = [leaf.path for leaf in file.leaves]
        for name, array in file.arrays():
            spec = jax.ShapeDtypeStruct(array.shape, array.dtype)
            if array.ndim == 2 and any(matches(rule, name, spec) for rule in rules):
                packed[name] = pack_matrix(array, block=block, batch=batch)
            else:
                rest[name] = array
    if not packed:
        raise ValueError(
            f"{path}: include={include!r} meets no matrix; the paths are {listed(paths)}."
        )
    return nested(rest.items()), packed
