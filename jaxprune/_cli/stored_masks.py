"""Finds the masks in a file that holds a whole training state: params and optimizer state.

`inspect` uses them to report weights that should be zero. Read from the file, the masks are kept in
memory as bit masks, while the params are read one leaf at a time.
"""

import types
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxprune._cli.training_state import end_of_param, is_mask
from jaxprune._files.any_kind import Source
from jaxprune._files.leaves import Leaf
from jaxprune._state.bit_masks import bit_mask_shape


def mask_paths(
    leaves: Sequence[Leaf], param_of: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, str]:
    """The path of each mask in a file, by the path of its param.

    A mask is a leaf `.../masks/PARAM` of dtype bool or uint8, with the shape of the param or that
    of its bit mask. Several leaves may end in `PARAM`, such as the moments of Adam or an average:
    the one with the fewest keys is the param, and among equals one below `params` or `model`.
    Where `param_of` has the param of a mask, which must fit, it is that one.

    Example:
      >>> w, m = Leaf("params/w", (8, 20), np.dtype("f4")), np.dtype("u1")
      >>> mask_paths([w, Leaf("opt_state/1/masks/w", (8, 3), m)])
      {'params/w': 'opt_state/1/masks/w'}
    """
    param_of_mask = {
        mask.path: end_of_param(mask)
        for mask in leaves
        if is_mask(mask) and mask.path not in param_of
    }
    endings = _Endings(param_of_mask.values())
    for leaf in leaves:
        if "masks" not in leaf.path.split("/"):
            endings.offer(leaf)
    known = {param: mask for mask, param in param_of.items()}
    mask_of = dict(known)
    for mask in leaves:
        if mask.path in param_of_mask:
            param = endings.best(param_of_mask[mask.path], mask.shape)
            if param is not None and param not in known:
                mask_of[param] = mask.path
    return mask_of


class _Endings:
    """For each of some endings of paths, the best leaf whose path ends so, by the mask's shape.

    The endings are a tree of their keys, the last key first, so that a path is compared with all of
    them at once: the work grows with the number of leaves, and not with that of pairs.
    """

    def __init__(self, endings: Iterable[str]):
        self._nodes: dict[tuple[int, str], int] = {}  # a node below the root 0, by parent and key
        # By the node of an ending and a shape, the rank, which ends with the path.
        self._best: dict[tuple[int, tuple[int, ...]], tuple[int, bool, str]] = {}
        self._node_of = {ending: self._add(ending) for ending in endings}
        self._ends = set(self._node_of.values())

    def _add(self, ending: str) -> int:
        node = 0
        for key in _keys_backwards(ending):
            node = self._nodes.setdefault((node, key), len(self._nodes) + 1)
        return node

    def offer(self, leaf: Leaf) -> None:
        """Makes the leaf the best one of every ending of its path, unless there is a better one."""
        node, rank = 0, _rank(leaf.path)
        for key in _keys_backwards(leaf.path):
            node = self._nodes.get((node, key))
            if node is None:
                return
            if node in self._ends:
                for shape in {leaf.shape, bit_mask_shape(leaf.shape)}:
                    self._best[node, shape] = min(rank, self._best.get((node, shape), rank))

    def best(self, ending: str, mask_shape: tuple[int, ...]) -> str | None:
        """The path of the best leaf that has this ending and fits a mask of this shape."""
        rank = self._best.get((self._node_of[ending], mask_shape))
        return None if rank is None else rank[-1]


def _keys_backwards(path: str) -> list[str]:
    return _without_value(path).split("/")[::-1]


def _without_value(path: str) -> str:
    """The path without the key `value` that Flax adds to its variables."""
    return path.removesuffix("/value")


def _rank(path: str) -> tuple[int, bool, str]:
    """Sorts the paths that may belong to a param; the first is chosen."""
    keys = path.split("/")
    return len(keys), keys[0] not in ("params", "model"), path


def read_masks(source: Source, mask_of: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The bit masks of a file, by the path of the param; `mask_of` is from `mask_paths`."""
    if not mask_of:
        return {}
    shapes = {leaf.path: leaf.shape for leaf in source.leaves}
    param_of = {mask: param for param, mask in mask_of.items()}
    bit_masks = {}
    for path, array in source.only(list(param_of)).arrays():
        param = param_of[path]
        is_bit_mask = array.shape != shapes[param] or not array.ndim
        bit_masks[param] = (
            array if is_bit_mask else np.packbits(array != 0, axis=-1, bitorder="little")
        )
    return bit_masks


def to_mask(bit_mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The bool mask of a leaf of this shape; True means kept.

    Example:
      >>> to_mask(np.array([5], np.uint8), (3,)).tolist()
      [True, False, True]
    """
    if not shape:
        return bit_mask.astype(bool)
    return np.unpackbits(bit_mask, axis=-1, count=shape[-1], bitorder="little").view(bool)
