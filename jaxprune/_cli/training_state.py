"""What a leaf of a whole training state is: a param, a mask, or a part of the optimizer state.

A file may hold more than params: a `TrainState`, a step of a trainer with several items, or the
params beside the state of an optimizer. Only paths, shapes and dtypes are known, which suffices for
the names that Flax, Optax and trainers use, and for states without one, as in a tuple.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune._base.paths import listed, parts_of
from jaxprune._cli.optimizer_states import (
    PARAMS_KEYS,
    Keys,
    OptimizerStates,
    find_optimizer_states,
    parents,
)
from jaxprune._cli.words import WrongOption
from jaxprune._files.any_kind import Source
from jaxprune._files.leaves import Leaf
from jaxprune._state.bit_masks import is_mask_shape

PARAMS, MASKS, OPTIMIZER, OTHER = "params", "masks", "optimizer state", "other"


class TrainingState(NamedTuple):
    """What the leaves of a file are.

    Attributes:
      groups: the part of the file that each leaf belongs to, by path: params, masks, optimizer
        state, or other.
      param_of: the path of the param of each mask of a prune state.
      unclear: trees of which only one may be the params of an optimizer state.
    """

    groups: dict[str, str]
    param_of: dict[str, str]
    unclear: list[str]


def training_state_of(source: Source, params: Sequence[str] | None = None) -> TrainingState:
    """What the leaves of a file are.

    Where a file has params with a key such as `params` or `model`, the leaves without one, such as
    batch statistics, the step or a moving average, are other leaves. Beside optimizer states, the
    params are those that belong to them. In all other files, every leaf is a param.

    Args:
      source: the file.
      params: paths of the trees of params, if the user gives them.

    Raises:
      WrongOption: a path in `params` at which there is nothing.

    Example:
      >>> f4, u1 = np.dtype("f4"), np.dtype("u1")
      >>> leaves = [Leaf("params/w", (8,), f4), Leaf("opt_state/0/mu/w", (8,), f4)]
      >>> leaves += [Leaf("opt_state/1/masks/w", (8,), u1), Leaf("step", (), f4)]
      >>> training_state_of(Source("npz", tuple(leaves), lambda _: iter(()))).groups.values()
      dict_values(['params', 'optimizer state', 'masks', 'other'])
    """
    keys_of = _keys_of(source.leaves)
    path_of = {keys: path for path, keys in keys_of.items()}
    given = _given(params or (), keys_of)
    shapes = {keys_of[leaf.path]: leaf.shape for leaf in source.leaves}
    states = find_optimizer_states(shapes, given)
    groups = _known_groups(source.leaves, keys_of, states.nodes)
    is_of_training = bool(groups)
    groups = {p: group for p, group in groups.items() if given.isdisjoint(parents(keys_of[p]))}
    others = {path: keys for path, keys in keys_of.items() if path not in groups}
    roots = given or _roots(others.values(), states, is_of_training)
    for path, keys in others.items():
        is_param = not roots or () in roots or not roots.isdisjoint(parents(keys))
        groups[path] = PARAMS if is_param else OTHER
    return TrainingState(
        {path: groups[path] for path in keys_of},
        {path_of[mask]: path_of[param] for mask, param in states.param_of.items()},
        [] if given else ["/".join(root) for roots in states.unclear[:1] for root in roots],
    )


def _keys_of(leaves: Sequence[Leaf]) -> dict[str, Keys]:
    """The keys of each path. Where no path of a file has a slash, dots separate them."""
    has_slashes = any("/" in leaf.path for leaf in leaves)
    return {
        leaf.path: tuple(leaf.path.split("/")) if has_slashes else parts_of(leaf.path)
        for leaf in leaves
    }


def _given(params: Sequence[str], keys_of: Mapping[str, Keys]) -> set[Keys]:
    """The trees that a user calls params."""
    nodes = {node for keys in keys_of.values() for node in parents(keys)}
    by_path = {"/".join(node): node for node in nodes} | {".".join(node): node for node in nodes}
    for path in params:
        if path not in by_path:
            tops = list(dict.fromkeys(keys[0] for keys in keys_of.values()))
            raise WrongOption(
                f"--params {path!r}: there is nothing at this path. The file has {listed(tops)}."
            )
    return {by_path[path] for path in params}


def _roots(others: Collection[Keys], states: OptimizerStates, is_of_training: bool) -> set[Keys]:
    """The trees of params; empty where all leaves are params."""
    is_nested = is_of_training or any(keys[1:2] == ("batch_stats",) for keys in others)
    words = PARAMS_KEYS if is_of_training else PARAMS_KEYS[:2]
    nodes = {node for keys in others for node in parents(keys[:-1])}
    if is_of_training:
        nodes |= {keys for keys in others if len(keys) == 1}
    roots = states.params or _by_words(nodes, words, 2 if is_nested else 1)
    return {(*root, "params") if (*root, "params") in nodes else root for root in roots}


def _known_groups(
    leaves: Sequence[Leaf], keys_of: Mapping[str, Keys], optimizers: set[Keys]
) -> dict[str, str]:
    """The masks and the leaves of optimizer states, each with the part of the file, by path."""
    shapes: dict[Keys, set[tuple[int, ...]]] = {}  # of all but masks, by every end of a path
    for leaf in leaves:
        keys = () if is_mask(leaf) else keys_of[leaf.path]
        for i in range(len(keys)):
            shapes.setdefault(keys[i:], set()).add(leaf.shape)
    groups = {}
    for leaf in leaves:
        in_optimizer = not optimizers.isdisjoint(parents(keys_of[leaf.path]))
        if is_mask(leaf) and (in_optimizer or _is_of_a_param(leaf, keys_of[leaf.path], shapes)):
            groups[leaf.path] = MASKS
        elif in_optimizer:
            groups[leaf.path] = OPTIMIZER
    return groups


def _is_of_a_param(
    mask: Leaf, keys: Keys, shapes: Mapping[Keys, Collection[tuple[int, ...]]]
) -> bool:
    """Whether a leaf has the path and the shape for a mask; a model may have others of its own."""
    of_param = shapes.get(keys[len(keys) - keys[::-1].index("masks") :], ())
    return any(is_mask_shape(mask.shape, shape) for shape in of_param)


def _by_words(nodes: Collection[Keys], words: Collection[str], depth: int) -> set[Keys]:
    """The keys of the trees of params, at most `depth` of them; the last is one of some words.

    Beside `params` at the top, those of another tree, such as a moving average, are none.
    """
    roots = {node for node in nodes if len(node) <= depth and node[-1] in words}
    return {("params",)} if ("params",) in roots else roots


def is_mask(leaf: Leaf) -> bool:
    """Whether a leaf is a mask of a prune state, by its path and dtype."""
    is_mask_dtype = leaf.dtype in (np.dtype(np.uint8), np.dtype(bool))
    return is_mask_dtype and _BEFORE_PARAM.match(leaf.path) is not None


_BEFORE_PARAM = re.compile("(?:.*[/.])?masks[/.](?=.)", re.DOTALL)


def end_of_param(mask: Leaf) -> str:
    """How the path of the param of a mask ends.

    Example:
      >>> end_of_param(Leaf("opt_state/1/masks/fc/kernel", (8,), np.dtype("u1")))
      'fc/kernel'
    """
    return _BEFORE_PARAM.sub("", mask.path, count=1)


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
