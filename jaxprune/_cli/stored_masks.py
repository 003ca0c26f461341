"""The masks that a file holds beside its params, as a training state has them.

They are kept at one bit per weight while the params are read a leaf at a time.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxprune._files.any_kind import Source, some
from jaxprune._files.leaves import Leaf
from jaxprune._state.bit_masks import bit_mask_shape


def mask_paths(leaves: Sequence[Leaf]) -> dict[str, str]:
    """Which leaf of a file is the mask of which, by the path of the param.

    A mask is found by its path, `.../masks/PARAM`, its dtype and its shape, that of the param or
    packed at one bit per weight. Of several leaves that end in `PARAM`, moments and averages among
    them, the one that is nearest to the root is the param, and the first below `params` or `model`.

    Example:
      >>> w, m = Leaf("params/w", (8, 20), np.dtype("f4")), np.dtype("u1")
      >>> mask_paths([w, Leaf("opt_state/1/masks/w", (8, 3), m)])
      {'params/w': 'opt_state/1/masks/w'}
    """
    found = {}
    for mask in leaves:
        match = re.fullmatch(r"(?:.*/)?masks/(.*)", mask.path)
        if match is None or mask.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
            continue
        end = "/" + _bare(match[1])
        candidates = [
            leaf.path
            for leaf in leaves
            if ("/" + _bare(leaf.path)).endswith(end)
            and "masks" not in leaf.path.split("/")
            and mask.shape in (leaf.shape, bit_mask_shape(leaf.shape))
        ]
        if candidates:
            found[min(candidates, key=_distance)] = mask.path
    return found


def _bare(path: str) -> str:
    """The path without the `value` that flax puts behind its variables."""
    return path.removesuffix("/value")


def _distance(path: str) -> tuple[int, bool, str]:
    keys = path.split("/")
    return len(keys), keys[0] not in ("params", "model"), path


def read_masks(found: Source, paths: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The masks of a file, by the path of the param, at one bit per weight."""
    if not paths:
        return {}
    shapes = {leaf.path: leaf.shape for leaf in found.leaves}
    params = {mask: param for param, mask in paths.items()}
    masks = {}
    for path, array in some(found, list(params)).arrays():
        packed = array.shape != shapes[params[path]] or not array.ndim
        masks[params[path]] = (
            array if packed else np.packbits(array != 0, axis=-1, bitorder="little")
        )
    return masks


def kept(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The bool mask of a leaf of this shape.

    Example:
      >>> kept(np.array([5], np.uint8), (3,)).tolist()
      [True, False, True]
    """
    if not shape:
        return bits.astype(bool)
    return np.unpackbits(bits, axis=-1, count=shape[-1], bitorder="little").view(bool)
