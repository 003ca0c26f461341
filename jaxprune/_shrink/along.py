"""Removes the same units from other trees: optimizer moments, averages, masks of a prune state.

A leaf of such a tree belongs to a param if its path ends with the path of the param, as
`0/mu/fc/kernel` does, and it has the shape of the param.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxprune._base.paths import flattened, paths_of, shown_path
from jaxprune._shrink.removal import RemovedIndices, smaller_leaf
from jaxprune._state.bit_masks import to_bits, widths_of
from jaxprune._state.masks_of_states import masks_of
from jaxprune._state.prune_state import PruneState, batch_shape_of
from jaxprune._trace.program import Program


class Carrier:
    """Removes from trees what was removed from the params of a model."""

    def __init__(self, program: Program, removed: Mapping[int, RemovedIndices]):
        """Args: the model, and for each leaf of it the indices that were removed, by axis."""
        names = [path.removeprefix("params/") for path in program.paths]
        self._shapes = {
            name: np.shape(leaf) for name, leaf in zip(names, program.leaves, strict=True)
        }
        self._removed = {names[leaf]: axes for leaf, axes in removed.items()}

    def smaller(self, tree: Any) -> Any:
        """A tree without what was removed.

        Masks of a prune state get smaller, too. The state then has no `progress`, because its
        counts belong to the larger params.

        Raises:
          ValueError: a leaf belongs to a param that got smaller, but has another shape.
        """
        nodes, treedef = flattened(tree, _is_state)
        paths = paths_of(treedef.unflatten([0 if _is_state(node) else node for node in nodes]))
        smaller = [
            self._smaller_state(node) if _is_state(node) else self._smaller_leaf(path, node)
            for path, node in zip(paths, nodes, strict=True)
        ]
        return treedef.unflatten(smaller)

    def _smaller_state(self, state: PruneState) -> PruneState:
        masks, widths = self.smaller(masks_of(state)), None
        if state.widths is not None:
            batch = batch_shape_of(state)
            widths = widths_of(jax.tree.leaves(masks), batch)
            masks = jax.tree.map(lambda mask: to_bits(mask, len(batch)), masks)
        rest = {name: self.smaller(getattr(state, name)) for name in ("inner_state", "score_state")}
        return state._replace(masks=masks, widths=widths, progress=None, **rest)

    def _smaller_leaf(self, path: str, leaf: Any) -> Any:
        name = self._param_of(path)
        if name not in self._removed or np.size(leaf) <= 1:
            return leaf
        if np.shape(leaf) != self._shapes[name]:
            raise ValueError(
                f"{shown_path(path)}: shrink: along has shape {np.shape(leaf)} where {name} had "
                f"{self._shapes[name]}, so it is unclear what to remove from it. Leave it out of "
                "`along`, and initialize it again for the smaller params."
            )
        return smaller_leaf(leaf, self._removed[name])

    def _param_of(self, path: str) -> str:
        """The longest path of a param that a path ends with; empty if there is none."""
        while path and path not in self._shapes:
            path = path.partition("/")[2]
        return path


def without_progress(opt_state: Any) -> Any:
    """The state of an NNX optimizer, its prune states without progress, as in `Carrier.smaller`."""

    def strip(node: Any) -> Any:
        if not _is_state(node):
            return node
        return node._replace(progress=None, inner_state=without_progress(node.inner_state))

    return jax.tree.map(strip, opt_state, is_leaf=_is_state)


def _is_state(node: Any) -> bool:
    return isinstance(node, PruneState)
