"""What a leaf of a whole training state is: a param, a mask, or a part of the optimizer state.

A file may hold more than params: a `TrainState`, a step of a trainer with several items, or the
params beside the state of an optimizer. Only paths and dtypes are known, which suffices for the
names that Flax, Optax and trainers use.
"""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jaxprune._files.any_kind import Source
from jaxprune._files.leaves import Leaf

PARAMS, MASKS, OPTIMIZER, OTHER = "params", "masks", "optimizer state", "other"
_PARAMS_KEYS = ("params", "model_params", "model")
_OPTIMIZER_KEYS = ("opt_state", "optimizer_state", "optimizer", "opt", "optim")


def groups_of(source: Source) -> dict[str, str]:
    """The group of each leaf of a file, by path: params, masks, optimizer state, or other.

    Where a file has params with a key such as `params` or `model`, the leaves without one, such as
    batch statistics, the step or a moving average, are other leaves. In all other files, every leaf
    is a param.

    Example:
      >>> f4, u1 = np.dtype("f4"), np.dtype("u1")
      >>> leaves = [Leaf("params/w", (8,), f4), Leaf("opt_state/0/mu/w", (8,), f4)]
      >>> leaves += [Leaf("opt_state/1/masks/w", (8,), u1), Leaf("step", (), f4)]
      >>> list(groups_of(Source("npz", tuple(leaves), lambda _: iter(()))).values())
      ['params', 'optimizer state', 'masks', 'other']
    """
    groups = {leaf.path: _known_group(leaf) for leaf in source.leaves}
    keys_of = {path: path.split("/") for path, group in groups.items() if group is None}
    is_of_training = any(groups.values())
    is_nested = is_of_training or any(keys[1:2] == ["batch_stats"] for keys in keys_of.values())
    words = _PARAMS_KEYS if is_of_training else _PARAMS_KEYS[:2]
    roots = _roots(keys_of.values(), words, 2 if is_nested else 1)
    rooted = {path for path, keys in keys_of.items() if not roots.isdisjoint(_parents(keys, 3))}
    return {
        path: group or (PARAMS if not roots or path in rooted else OTHER)
        for path, group in groups.items()
    }


def _roots(
    paths: Collection[Sequence[str]], words: Collection[str], depth: int
) -> set[tuple[str, ...]]:
    """The keys of the trees of params, at most `depth` of them; the last is one of some words.

    A `model` that is a `TrainState` itself has `params` in turn. Beside `params` at the top, those
    of another tree, such as a moving average, are none.
    """
    nodes = {node for keys in paths for node in _parents(keys, depth + 1)}
    roots = {node for node in nodes if len(node) <= depth and node[-1] in words}
    if ("params",) in roots:
        roots = {("params",)}
    return {(*root, "params") if (*root, "params") in nodes else root for root in roots}


def _parents(keys: Sequence[str], depth: int) -> set[tuple[str, ...]]:
    """The first key, the first two, and so on."""
    return {tuple(keys[:n]) for n in range(1, min(depth, len(keys)) + 1)}


def _known_group(leaf: Leaf) -> str | None:
    """Masks or optimizer state, if the path shows it."""
    if is_mask(leaf):
        return MASKS
    parents = leaf.path.split("/")[:-1]
    if "params" in parents:  # below it, a layer may be called `opt`
        parents = parents[: parents.index("params")]
    return None if set(_OPTIMIZER_KEYS).isdisjoint(parents) else OPTIMIZER


def is_mask(leaf: Leaf) -> bool:
    """Whether a leaf is a mask of a prune state, by its path and dtype."""
    is_mask_dtype = leaf.dtype in (np.dtype(np.uint8), np.dtype(bool))
    return is_mask_dtype and re.fullmatch(r"(?:.*/)?masks/.*", leaf.path) is not None


def outside_params(groups: Mapping[str, str]) -> dict[str, str]:
    """Why leaves are not pruned, by path: those that are no params.

    Example:
      >>> outside_params({"params/w": PARAMS, "batch_stats/mean": OTHER, "opt_state/mu": OPTIMIZER})
      {'batch_stats/mean': 'not a param', 'opt_state/mu': 'optimizer state'}
    """
    notes = {OTHER: "not a param"}
    return {path: notes.get(group, group) for path, group in groups.items() if group != PARAMS}


def without_training(source: Source, groups: Mapping[str, str]) -> Source:
    """The file without the leaves that only its training needs: masks and optimizer state."""
    dropped = {
        path: f"{group}, which only training needs"
        for path, group in groups.items()
        if group in (MASKS, OPTIMIZER)
    }
    kept = source.only([path for path in groups if path not in dropped])
    return kept._replace(left_out={**source.left_out, **dropped})
