"""What a leaf of a whole training state is: a param, a mask, or a part of the optimizer state.

A file may hold more than params: a `TrainState`, a step of a trainer with several items, or the
params beside the state of an optimizer. Only paths, shapes and dtypes are known, which suffices for
the names that Flax, Optax and trainers use, and for states without one, as in a tuple.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from jaxprune._cli.mirrored import mirrored
from jaxprune._files.any_kind import Source
from jaxprune._files.leaves import Leaf
from jaxprune._state.bit_masks import bit_mask_shape

PARAMS, MASKS, OPTIMIZER, OTHER = "params", "masks", "optimizer state", "other"
_PARAMS_KEYS = ("params", "model_params", "model")
_OPTIMIZER_ENDS = ("opt_state", "optimizer_state")
# These may also be the names of layers; what is inside shows which.
_OPTIMIZER_NAMES = ("optimizer", "opt", "optim")
_IN_OPTIMIZERS = frozenset(
    ("mu", "nu", "m", "v", "trace", "momentum", "velocity", "slots", "exp_avg", "exp_avg_sq")
    + ("count", "step", "hyperparams", "param_groups", "inner_state", "opt_state", "prune_step")
)

_Keys = tuple[str, ...]


def groups_of(source: Source) -> dict[str, str]:
    """The group of each leaf of a file, by path: params, masks, optimizer state, or other.

    Where a file has params with a key such as `params` or `model`, the leaves without one, such as
    batch statistics, the step or a moving average, are other leaves. Beside optimizer states, the
    params are those that belong to them. In all other files, every leaf is a param.

    Example:
      >>> f4, u1 = np.dtype("f4"), np.dtype("u1")
      >>> leaves = [Leaf("params/w", (8,), f4), Leaf("opt_state/0/mu/w", (8,), f4)]
      >>> leaves += [Leaf("opt_state/1/masks/w", (8,), u1), Leaf("step", (), f4)]
      >>> list(groups_of(Source("npz", tuple(leaves), lambda _: iter(()))).values())
      ['params', 'optimizer state', 'masks', 'other']
    """
    keys_of = {leaf.path: tuple(leaf.path.split("/")) for leaf in source.leaves}
    optimizers = _optimizers(keys_of.values())
    shapes = {keys_of[leaf.path]: leaf.shape for leaf in source.leaves}
    unnamed = mirrored({k: shapes[k] for k in shapes if optimizers.isdisjoint(_parents(k))})
    optimizers |= {state.optimizer for state in unnamed}
    groups = _known_groups(source.leaves, keys_of, optimizers)
    others = {path: keys for path, keys in keys_of.items() if path not in groups}
    is_of_training = bool(groups)
    is_nested = is_of_training or any(keys[1:2] == ("batch_stats",) for keys in others.values())
    words = _PARAMS_KEYS if is_of_training else _PARAMS_KEYS[:2]
    nodes = {node for keys in others.values() for node in _parents(keys)}
    roots = _with_optimizers(nodes, optimizers) | {state.params for state in unnamed}
    roots = roots or _by_words(nodes, words, 2 if is_nested else 1)
    roots = {(*root, "params") if (*root, "params") in nodes else root for root in roots}
    for path, keys in others.items():
        is_param = not roots or () in roots or not roots.isdisjoint(_parents(keys))
        groups[path] = PARAMS if is_param else OTHER
    return {path: groups[path] for path in keys_of}


def _optimizers(paths: Collection[_Keys]) -> set[_Keys]:
    """The keys of the optimizer states of a file. Below `params`, a layer may be called `opt`."""
    found = set()
    for keys in paths:
        for i, key in enumerate(keys[:-1]):
            if key == "params":
                break
            is_named = key in _OPTIMIZER_NAMES and not _IN_OPTIMIZERS.isdisjoint(keys[i + 1 :])
            if is_named or key in _OPTIMIZER_ENDS or key.endswith(_AFTER_NAME):
                found.add(keys[: i + 1])
                break
    return found


_AFTER_NAME = tuple(f"_{end}" for end in _OPTIMIZER_ENDS)


def _known_groups(
    leaves: Sequence[Leaf], keys_of: Mapping[str, _Keys], optimizers: set[_Keys]
) -> dict[str, str]:
    """The groups of masks and optimizer states, by path."""
    shapes: dict[str, set[tuple[int, ...]]] = {}  # of all but masks, by every end of a path
    for leaf in leaves:
        keys = () if is_mask(leaf) else keys_of[leaf.path]
        for i in range(len(keys)):
            shapes.setdefault("/".join(keys[i:]), set()).add(leaf.shape)
    groups = {}
    for leaf in leaves:
        in_optimizer = not optimizers.isdisjoint(_parents(keys_of[leaf.path]))
        if is_mask(leaf) and (in_optimizer or _is_of_a_param(leaf, shapes)):
            groups[leaf.path] = MASKS
        elif in_optimizer:
            groups[leaf.path] = OPTIMIZER
    return groups


def _is_of_a_param(mask: Leaf, shapes: Mapping[str, Collection[tuple[int, ...]]]) -> bool:
    """Whether a leaf has the path and the shape for a mask; a model may have others of its own."""
    of_param = shapes.get(end_of_param(mask), ())
    return any(mask.shape in (shape, bit_mask_shape(shape)) for shape in of_param)


def _with_optimizers(nodes: Collection[_Keys], optimizers: Collection[_Keys]) -> set[_Keys]:
    """The trees of params that have an optimizer state beside them, with a name like theirs."""
    beside = {
        (*parents, f"{key.removesuffix(end)}params")
        for *parents, key in optimizers
        for end in _OPTIMIZER_ENDS
        if key.endswith(end)
    }
    return beside & set(nodes)


def _by_words(nodes: Collection[_Keys], words: Collection[str], depth: int) -> set[_Keys]:
    """The keys of the trees of params, at most `depth` of them; the last is one of some words.

    Beside `params` at the top, those of another tree, such as a moving average, are none.
    """
    roots = {node for node in nodes if len(node) <= depth and node[-1] in words}
    return {("params",)} if ("params",) in roots else roots


def _parents(keys: _Keys) -> Iterator[_Keys]:
    """The first key, the first two, and so on."""
    return (keys[:n] for n in range(1, len(keys) + 1))


def is_mask(leaf: Leaf) -> bool:
    """Whether a leaf is a mask of a prune state, by its path and dtype."""
    is_mask_dtype = leaf.dtype in (np.dtype(np.uint8), np.dtype(bool))
    return is_mask_dtype and re.fullmatch(r"(?:.*/)?masks/.*", leaf.path) is not None


def end_of_param(mask: Leaf) -> str:
    """How the path of the param of a mask ends.

    Example:
      >>> end_of_param(Leaf("opt_state/1/masks/fc/kernel", (8,), np.dtype("u1")))
      'fc/kernel'
    """
    return re.sub(r"(?:.*/)?masks/", "", mask.path, count=1)


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
