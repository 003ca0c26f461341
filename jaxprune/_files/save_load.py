"""Params to a file and back, bit by bit: `save` and `load`.

Trees in, trees out; `saved.py` owns what is in the file. Everything here runs on the host.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import leaves_with_paths, listed, shown_path, spec_of
from jaxprune._files import safetensors as container
from jaxprune._files.leaves import Leaf, is_stored, memory_bytes, opened, save_leaves
from jaxprune._state.prune_state import masks_by_path


def save(
    path: str | os.PathLike[str],
    params: chex.ArrayTree,
    masks: Any = None,
    *,
    structure: Any = None,
    metadata: Mapping[str, str] | None = None,
    level: int | None = 3,
) -> None:
    """Writes params to one file, small where they are sparse; `load` gives them back bit by bit.

    Args:
      path: of the file, `model.safetensors.zst` say. What is there is replaced, in one move.
      params: any tree of arrays of numbers or bools.
      masks: masks, or any optimizer state with a prune state inside. With them, what should be
        zero is looked at first, and a -0.0 there is written as +0.0, which packs better.
      structure: noted in the file.
      metadata: strings by name, noted in the file.
      level: of zstd, 1 to 22; None leaves zstd out, and with it the need for `zstandard`.

    Raises:
      TypeError: a leaf that is no array of numbers or bools, or metadata that are not strings.
      ValueError: masks that do not fit, or a dropped weight that is not zero, with the path.
      ImportError: `zstandard` is not installed.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/model.safetensors.zst", {"fc": {"kernel": jnp.eye(8)}})
      ...     load(f"{folder}/model.safetensors.zst")["fc"]["kernel"][:2, :3].tolist()
      [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    names, leaves, _ = leaves_with_paths(params)
    found = masks_by_path(masks, names, leaves) if masks is not None else [None] * len(names)
    arrays = (as_host(name, leaf) for name, leaf in zip(names, leaves, strict=True))
    masked = (
        (name, x if mask is None else landed(name, x, np.asarray(mask) != 0))
        for name, x, mask in zip(names, arrays, found, strict=True)
    )
    save_leaves(path, masked, structure=structure, metadata=metadata, level=level)


def load(path: str | os.PathLike[str], *, like: Any = None, max_bytes: int | None = None) -> Any:
    """The params of a file of `save`, or of any safetensors file, bit by bit.

    The file is not trusted: sizes, shapes, dtypes and bit counts are checked before memory is taken
    for them, and zstd's checksum after.

    Args:
      path: of the file.
      like: a tree of arrays, or of `jax.ShapeDtypeStruct`, to fill. Without it the paths are split
        at `/`, and lists come back as dicts with keys "0", "1", ...
      max_bytes: most bytes that the params may take; by default the memory of this machine.

    Returns:
      Nested dicts of NumPy arrays; or a tree like `like`, on its devices where its leaves are JAX
      arrays. A file of a single array without a path gives the array.

    Raises:
      ValueError: a file that is cut off, damaged or too large; or, with `like`, other paths, shapes
        or dtypes.
      FileNotFoundError: there is none.
      ImportError: `zstandard` is not installed.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/model.safetensors.zst", [np.zeros(3), np.ones(1)])
      ...     load(f"{folder}/model.safetensors.zst")
      ...     load(f"{folder}/model.safetensors.zst", like=[np.ones(3), np.zeros(1)])
      {'0': array([0., 0., 0.]), '1': array([1.])}
      [array([0., 0., 0.]), array([1.])]
    """
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 0):
        raise ValueError(f"max_bytes must be an integer of at least 0, got {max_bytes!r}.")
    with opened(path, memory_bytes() if max_bytes is None else max_bytes) as file:
        if like is None:
            _check_nesting(path, [leaf.path for leaf in file.leaves])
            return nested(file.arrays())
        paths, wanted, treedef = leaves_with_paths(like)
        _check_like(path, file.leaves, paths, wanted)
        arrays = dict(file.arrays())
    filled = [_placed(arrays[name], leaf) for name, leaf in zip(paths, wanted, strict=True)]
    return treedef.unflatten(filled)


def _placed(array: np.ndarray, like: Any) -> Any:
    sharding = getattr(like, "sharding", None)
    if not isinstance(like, jax.Array) and sharding is None:
        return array
    return jax.device_put(array, sharding)


def as_host(path: str, leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array that a file can hold.

    Raises:
      TypeError: it is not one, with the path.

    Example:
      >>> as_host("b", np.ones(2, ">f4")).dtype.byteorder
      '='
    """
    spec = spec_of(leaf)
    if spec is None:
        raise TypeError(
            f"{shown_path(path)}: {type(leaf).__name__} is not an array. Make it one with "
            "numpy.asarray, or leave it out of the params."
        )
    if jnp.issubdtype(spec.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"{shown_path(path)}: a file can't hold keys of {spec.dtype}. Save jax.random.key_data "
            "of it."
        )
    array = np.asarray(leaf)
    if container.dtype_of(array.dtype.name) is None:
        raise TypeError(
            f"{shown_path(path)}: a file can't hold dtype {array.dtype}. Cast it to one of numbers "
            "or bools."
        )
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.byteorder == ">" else array


def landed(path: str, array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The array with +0.0 where the mask drops.

    Raises:
      ValueError: a dropped weight that is not zero, with the path.

    Example:
      >>> landed("w", np.array([-0.0, 2.0]), np.array([False, True])).tolist()
      [0.0, 2.0]
    """
    dropped = ~mask
    n_wrong = int(np.count_nonzero(dropped & (array != 0)))
    if n_wrong:
        verb = "is" if n_wrong == 1 else "are"
        raise ValueError(
            f"{shown_path(path)}: {n_wrong} of {int(dropped.sum())} dropped weights {verb} not "
            "zero. Save jaxprune.apply_masks(params, masks), or find out what moves them with "
            "jaxprune.check(params, opt_state)."
        )
    if not np.any(dropped & is_stored(array)):
        return array
    array = array.copy()
    array[dropped] = 0
    return array


def nested(leaves: Iterable[tuple[str, Any]]) -> Any:
    """Dicts in dicts, from paths.

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


def _check_nesting(where: Any, paths: Sequence[str]) -> None:
    above = {"/".join(keys[:n]) for keys in (p.split("/") for p in paths) for n in range(len(keys))}
    both = [path for path in paths if path in above and len(paths) > 1]
    if both:
        raise ValueError(
            f"{where}: {shown_path(both[0])} is the path of a leaf and the beginning of others, so "
            "dicts can't hold them. Pass like=, a tree of the shapes of the params."
        )


def _check_like(
    where: Any, leaves: Sequence[Leaf], paths: Sequence[str], wanted: Sequence[Any]
) -> None:
    stored = {leaf.path: leaf for leaf in leaves}
    if missing := [path for path in paths if path not in stored]:
        raise ValueError(f"{where}: has no {listed(missing)}; it has {listed(list(stored))}.")
    if more := sorted(set(stored) - set(paths)):
        raise ValueError(f"{where}: has {listed(more)}, which `like` has not.")
    for path, want in zip(paths, wanted, strict=True):
        spec, leaf = spec_of(want), stored[path]
        if spec is None:
            raise TypeError(f"like: {shown_path(path)}: {type(want).__name__} is not an array.")
        if spec.shape != leaf.shape or spec.dtype != leaf.dtype:
            raise ValueError(
                f"{where}: {shown_path(path)}: {leaf.dtype} of shape {leaf.shape}, where `like` "
                f"has {spec.dtype} of shape {spec.shape}."
            )
