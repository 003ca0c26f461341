"""Finds the masks in a file that holds a whole training state: params and optimizer state.

`inspect` uses them to report weights that should be zero. Read from the file, the masks are kept in
memory as bit masks, while the params are read one leaf at a time.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxprune._files.any_kind import Source
from jaxprune._files.leaves import Leaf
from jaxprune._state.bit_masks import bit_mask_shape


def mask_paths(leaves: Sequence[Leaf]) -> dict[str, str]:
    """The path of each mask in a file, by the path of its param.

    A mask is a leaf `.../masks/PARAM` of dtype bool or uint8, with the shape of the param or that
    of its bit mask. Several leaves may end in `PARAM`, such as the moments of Adam or an average:
    the one with the fewest keys is the param, and among equals one below `params` or `model`.

    Example:
      >>> w, m = Leaf("params/w", (8, 20), np.dtype("f4")), np.dtype("u1")
      >>> mask_paths([w, Leaf("opt_state/1/masks/w", (8, 3), m)])
      {'params/w': 'opt_state/1/masks/w'}
    """
    mask_of = {}
    for mask in leaves:
        match = re.fullmatch(r"(?:.*/)?masks/(.*)", mask.path)
        if match is None or mask.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
            continue
        suffix = "/" + _without_value(match[1])
        candidates = [
            leaf.path
            for leaf in leaves
            if ("/" + _without_value(leaf.path)).endswith(suffix)
            and "masks" not in leaf.path.split("/")
            and mask.shape in (leaf.shape, bit_mask_shape(leaf.shape))
        ]
        if candidates:
            mask_of[min(candidates, key=_rank)] = mask.path
    return mask_of


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
