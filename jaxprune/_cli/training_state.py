"""What a leaf of a whole training state is: a param, a mask, or a part of the optimizer state.

A file may hold more than params: a `TrainState`, a step of a trainer with several items, or the
params beside the state of an optimizer. Only paths and dtypes are known, which suffices for the
names that Flax, Optax and trainers use.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprune._files.any_kind import Source
from jaxprune._files.leaves import Leaf

PARAMS, MASKS, OPTIMIZER, OTHER = "params", "masks", "optimizer state", "other"
_PARAMS_KEYS = ("params", "model_params", "model")
_OPTIMIZER_KEYS = ("opt_state", "optimizer_state", "optimizer", "opt", "optim")


def groups_of(source: Source) -> dict[str, str]:
    """The group of each leaf of a file, by path: params, masks, optimizer state, or other.

    Where a training state has params with a key such as `params` or `model`, the leaves without
    one, such as the step or a moving average, are other leaves. So are those beside the `params` of
    a checkpoint. In all other files, every leaf is a param.

    Example:
      >>> f4, u1 = np.dtype("f4"), np.dtype("u1")
      >>> leaves = [Leaf("params/w", (8,), f4), Leaf("opt_state/0/mu/w", (8,), f4)]
      >>> leaves += [Leaf("opt_state/1/masks/w", (8,), u1), Leaf("step", (), f4)]
      >>> list(groups_of(Source("npz", tuple(leaves), lambda _: iter(()))).values())
      ['params', 'optimizer state', 'masks', 'other']
    """
    groups = {leaf.path: _known_group(leaf) for leaf in source.leaves}
    depth = 2 if any(groups.values()) else int(source.kind == "orbax")
    words = _PARAMS_KEYS if depth == 2 else _PARAMS_KEYS[:2]
    rooted = {
        path
        for path, group in groups.items()
        if group is None and not set(words).isdisjoint(path.split("/")[:depth])
    }
    return {
        path: group or (PARAMS if not rooted or path in rooted else OTHER)
        for path, group in groups.items()
    }


def _known_group(leaf: Leaf) -> str | None:
    """Masks or optimizer state, if the path shows it."""
    if is_mask(leaf):
        return MASKS
    is_optimizer = not set(_OPTIMIZER_KEYS).isdisjoint(leaf.path.split("/")[:-1])
    return OPTIMIZER if is_optimizer else None


def is_mask(leaf: Leaf) -> bool:
    """Whether a leaf is a mask of a prune state, by its path and dtype."""
    is_mask_dtype = leaf.dtype in (np.dtype(np.uint8), np.dtype(bool))
    return is_mask_dtype and re.fullmatch(r"(?:.*/)?masks/.*", leaf.path) is not None


class OutsideParams:
    """A rule for `exclude`: the leaves of a training state that are no params."""

    __name__ = "the default for training states"  # in reports and errors

    def __init__(self, groups: Mapping[str, str]):
        self.groups = {path: group for path, group in groups.items() if group != PARAMS}

    def __call__(self, path: str, leaf: Any) -> bool:
        """Whether the leaf is left out."""
        del leaf
        return path in self.groups
