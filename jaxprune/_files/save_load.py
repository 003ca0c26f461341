"""`save` and `load`: params to one compact file and back, bit for bit.

Here are the trees; `leaf_files.py` writes and reads the file. Everything runs on the host.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import jax.core
import numpy as np

from jaxprune._base.arguments import as_file_path, is_int, shown
from jaxprune._base.on_host import to_host
from jaxprune._base.paths import (
    check_not_donated,
    leaves_with_paths,
    listed,
    shown_path,
    spec_of,
)
from jaxprune._base.trees import ArrayTree, Params
from jaxprune._files.host_arrays import as_host, in_order, zero_dropped
from jaxprune._files.leaf_files import memory_bytes, save_leaves
from jaxprune._files.leaves import Leaf
from jaxprune._files.other_formats import check_own_name
from jaxprune._files.shard_reader import open_params
from jaxprune._state.masks_of_states import masks_by_path


def save(
    path: str | os.PathLike[str],
    params: ArrayTree,
    masks: Any = None,
    *,
    structure: Any = None,
    metadata: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
    level: int | None = 3,
) -> None:
    """Writes params to one file, compact if they are sparse; `load` returns them bit for bit.

    Args:
      path: of the file, for example `model.safetensors.zst`. An existing file is replaced, in one
        step.
      params: any tree of arrays of numbers or bools.
      masks: masks, or an optimizer state that contains the state of `prune`. If given, every
        dropped weight must be zero, and is written as +0.0 even if it is -0.0, which saves room.
      structure: a note for people who read the header of the file; jaxprune does not read it.
      metadata: strings by name, stored in the file.
      order: the paths of all leaves in the order that the file should have; by default that of the
        tree. `load_metadata` returns the metadata and the order of a file.
      level: zstd compression level, 1 to 22; None writes without zstd, so that `zstandard` need not
        be installed.

    Raises:
      TypeError: a leaf is not an array of numbers or bools, or a metadata value is not a string.
      ValueError: the masks do not fit the params, a dropped weight is not zero, or other processes
        hold parts of an array; with the path. Or `order` does not hold exactly the paths of the
        leaves, the level is out of range, the metadata have the name `jaxprune`, or the name of the
        file is one of another format.
      FileNotFoundError: the folder of the file does not exist.
      IsADirectoryError: `path` is a folder.
      ImportError: `zstandard` is not installed.

    Example:
      >>> import jax.numpy as jnp, jaxprune, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/model.safetensors.zst", {"fc": {"kernel": jnp.eye(8)}})
      ...     jaxprune.load(f"{folder}/model.safetensors.zst")["fc"]["kernel"][:2, :3].tolist()
      [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    path = as_file_path("save", path)
    check_own_name(path, level)
    paths, leaves, _ = leaves_with_paths(params)
    check_not_donated("save: params", params)
    check_not_donated("save: masks", masks)
    all_masks = masks_by_path(masks, paths, leaves) if masks is not None else [None] * len(paths)

    positions = in_order("save", paths, order)

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for i in positions:
            name, mask = paths[i], all_masks[i]
            array = as_host(name, leaves[i])
            if mask is not None:
                where = f"save: masks: {shown_path(name)}"
                kept = to_host(where, mask, "jaxprune.get_masks(opt_state)") != 0
                array = zero_dropped(name, array, kept)
            yield name, array

    save_leaves(path, arrays(), structure=structure, metadata=metadata, level=level)


@overload  # arrays, where `like` has shapes
def load(
    path: str | os.PathLike[str],
    *,
    like: Mapping[str, jax.ShapeDtypeStruct],
    max_bytes: int | None = None,
) -> Any: ...


@overload
def load(path: str | os.PathLike[str], *, like: Params, max_bytes: int | None = None) -> Params: ...


@overload
def load(
    path: str | os.PathLike[str], *, like: Any = None, max_bytes: int | None = None
) -> Any: ...


def load(path: str | os.PathLike[str], *, like: Any = None, max_bytes: int | None = None) -> Any:
    """Reads the params of a file that `save` wrote, or of safetensors files, bit for bit.

    A model in several safetensors files (shards) is read as one, by its index. Files are not
    trusted: sizes, shapes, dtypes and bit counts are checked before memory is allocated for them,
    and zstd's checksum afterwards.

    Args:
      path: of the file, of the index of shards (`model.safetensors.index.json`), or of the folder
        that holds it.
      like: a tree of arrays or `jax.ShapeDtypeStruct`s, whose structure the result has. Without it,
        paths are split at `/`, and lists come back as dicts with keys "0", "1", ...
      max_bytes: most memory that the params may take, in bytes; by default the memory of this
        machine.

    Returns:
      Nested dicts of NumPy arrays. With `like`, a tree of its structure, with JAX arrays on the
      same devices where `like` has JAX arrays. If the file holds a single array without a path,
      that array.

    Raises:
      ValueError: a file is cut off, damaged or too large; its paths, shapes or dtypes are not those
        of `like`; or a shard does not hold exactly the tensors that the index says.
      FileNotFoundError: the file or a shard does not exist.
      IsADirectoryError: it is a folder without an index of shards.
      ImportError: `zstandard` is not installed.

    Example:
      >>> import jaxprune, numpy as np, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jaxprune.save(f"{folder}/model.safetensors.zst", [np.zeros(3), np.ones(1)])
      ...     load(f"{folder}/model.safetensors.zst")
      ...     load(f"{folder}/model.safetensors.zst", like=[np.ones(3), np.zeros(1)])
      {'0': array([0., 0., 0.]), '1': array([1.])}
      [array([0., 0., 0.]), array([1.])]
    """
    path = as_file_path("load", path)
    if max_bytes is not None and (not is_int(max_bytes) or max_bytes < 0):
        raise ValueError(f"max_bytes must be an integer of at least 0, got {shown(max_bytes)}.")
    with open_params(path, memory_bytes() if max_bytes is None else max_bytes) as reader:
        if like is None:
            _check_nesting(path, [leaf.path for leaf in reader.leaves])
            return nested(reader.arrays())
        paths, like_leaves, treedef = leaves_with_paths(like)
        _check_like(path, reader.leaves, paths, like_leaves)
        arrays = dict(reader.arrays())
    placed = [_placed(arrays[name], leaf) for name, leaf in zip(paths, like_leaves, strict=True)]
    return treedef.unflatten(placed)


def _placed(array: np.ndarray, like: Any) -> Any:
    """The array on the devices of `like`; a NumPy array if `like` is on none."""
    sharding = getattr(like, "sharding", None)
    if not isinstance(like, jax.Array) and sharding is None:
        return array
    return jax.device_put(array, sharding)


def nested(leaves: Iterable[tuple[str, Any]]) -> Any:
    """Nested dicts, from paths with keys joined by `/`; a leaf whose path is empty stays alone.

    Example:
      >>> nested([("fc/kernel", 1), ("fc/bias", 2)])
      {'fc': {'kernel': 1, 'bias': 2}}
    """
    root: dict[str, Any] = {}
    for path, value in leaves:
        if not path:
            return value
        *above, last = path.split("/")
        node = root
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return root


def _check_nesting(file: Any, paths: Sequence[str]) -> None:
    """Raises if a leaf would be both an array and a dict."""
    # Sorted, a leaf comes right before the paths that begin with it, as no name contains "\0".
    in_order = sorted(path.replace("/", "\0") for path in paths)
    for leaf, following in itertools.pairwise(in_order):
        if not leaf or following.startswith(f"{leaf}\0"):
            path = leaf.replace("\0", "/")
            raise ValueError(
                f"{file}: {shown_path(path)} is a leaf, and other paths begin with it, which dicts "
                "can't hold. Pass like=, a tree with the structure of the params."
            )


_OF_LIKE = "Pass the params of the same model as `like`, or load without it."
_OF_SHRUNK = (
    " If the file is of a model that was shrunk, load it without `like`, and give the result to "
    "jaxprune.resize_nnx or resize_linen (for Haiku and Equinox, see docs/guides/shrinking.md)."
)


def _check_like(
    file: Any, leaves: Sequence[Leaf], paths: Sequence[str], like_leaves: Sequence[Any]
) -> None:
    """Raises unless the file has exactly these paths, with the shapes and dtypes of `like`."""
    in_file = {leaf.path: leaf for leaf in leaves}
    if missing := [path for path in paths if path not in in_file]:
        leaf_of = dict(zip(paths, like_leaves, strict=True))
        if all(spec_of(leaf_of[path]) is None for path in missing):
            raise TypeError(
                f"like: {listed(missing)}: no arrays, which {file} does not have. Pass arrays or "
                "jax.ShapeDtypeStructs alone. Of an Equinox model: arrays, static = "
                "eqx.partition(model, eqx.is_array), then eqx.combine(jaxprune.load(path, "
                "like=arrays), static)."
            )
        raise ValueError(
            f"{file}: does not have {listed(missing)}, which `like` has; it has "
            f"{listed(list(in_file))}. {_OF_LIKE}"
        )
    if extra := sorted(set(in_file) - set(paths)):
        raise ValueError(f"{file}: has {listed(extra)}, which `like` does not have. {_OF_LIKE}")
    for path, like_leaf in zip(paths, like_leaves, strict=True):
        spec, leaf = spec_of(like_leaf), in_file[path]
        if spec is None:
            raise TypeError(
                f"like: {shown_path(path)}: {type(like_leaf).__name__} is not an array. Pass "
                "arrays or jax.ShapeDtypeStructs."
            )
        if spec.shape != leaf.shape or spec.dtype != leaf.dtype:
            raise ValueError(
                f"{file}: {shown_path(path)}: is {leaf.dtype} of shape {leaf.shape}, but `like` "
                f"has {spec.dtype} of shape {spec.shape}. {_OF_LIKE}"
                f"{_OF_SHRUNK if _is_shorter(leaf.shape, spec.shape) else ''}"
            )


def _is_shorter(shape: Sequence[int], like: Sequence[int]) -> bool:
    """Whether an array may be what `shrink` has left of another."""
    is_of_rank = len(shape) == len(like) and tuple(shape) != tuple(like)
    return is_of_rank and all(n <= m for n, m in zip(shape, like, strict=True))
