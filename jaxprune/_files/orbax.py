"""Orbax checkpoints, read a group of leaves at a time: what is not asked for stays on the disk."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune._base.paths import leaves_with_paths, listed
from jaxprune._files import safetensors as container
from jaxprune._files.leaves import Leaf
from jaxprune._files.stream import extra

_GROUP = 2**26  # bytes: each restore takes some milliseconds, so that small leaves share one
_ITEMS = ("default", "params", "state")  # names of the tree in a folder of several


class Checkpoint:
    """A checkpoint that is open.

    Attributes:
      leaves: those that are arrays of numbers or bools, in the order of the tree.
    """

    def __init__(self, path: Path):
        self._path = path
        self._ocp = extra("orbax.checkpoint", "demo")
        self._folder = _tree_folder(path)
        with _errors(path), self._ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.metadata(self._folder)
            found = getattr(found, "item_metadata", found)
            tree = getattr(found, "tree", found)
            if tree is None:
                raise ValueError("its metadata do not say what is in it.")
        paths, self._metadata, self._treedef = leaves_with_paths(tree)
        self._places = {}
        leaves = []
        for i, (name, about) in enumerate(zip(paths, self._metadata, strict=True)):
            container.check_name(path, name)
            shape, dtype = getattr(about, "shape", None), getattr(about, "dtype", None)
            if shape is None or dtype is None:
                continue
            if container.dtype_of(np.dtype(dtype).name) is not None:
                leaves.append(Leaf(name, tuple(shape), np.dtype(dtype)))
                self._places[name] = i
        self.leaves = tuple(leaves)

    def arrays(self, leaves: Sequence[Leaf]) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the array of each of these leaves."""
        for group in _groups(leaves):
            with _errors(self._path):
                found = self._restored([self._places[leaf.path] for leaf in group])
            for leaf in group:
                array = np.asarray(found.pop(self._places[leaf.path]))
                if array.shape != leaf.shape or array.dtype != leaf.dtype:
                    raise ValueError(
                        f"{self._path}: {leaf.path}: {array.dtype} of shape {array.shape}, where "
                        f"the metadata say {leaf.dtype} of {leaf.shape}; the checkpoint is damaged."
                    )
                yield leaf.path, array

    def _restored(self, places: Sequence[int]) -> dict[int, Any]:
        """The leaves at these places of the tree."""
        ocp, wanted = self._ocp, set(places)
        n = len(self._metadata)
        item = [0 if i in wanted else ocp.PLACEHOLDER for i in range(n)]
        kinds = [ocp.RestoreArgs(restore_type=np.ndarray)] * n
        args = ocp.args.PyTreeRestore(
            item=self._treedef.unflatten(item), restore_args=self._treedef.unflatten(kinds)
        )
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(self._folder, args=args)
        found = jax.tree.leaves(tree, is_leaf=lambda x: x is ocp.PLACEHOLDER)
        return {i: found[i] for i in places}


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """What orbax, tensorstore or a parser raises becomes a `ValueError` of one line."""
    try:
        yield
    except Exception as error:
        text = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"{path}: not readable as an orbax checkpoint: {text}") from None


def _groups(leaves: Sequence[Leaf]) -> Iterator[list[Leaf]]:
    """The leaves in runs of at most `_GROUP` bytes, or of one."""
    group: list[Leaf] = []
    n_bytes = 0
    for leaf in leaves:
        if group and n_bytes + leaf.n_bytes > _GROUP:
            yield group
            group, n_bytes = [], 0
        group.append(leaf)
        n_bytes += leaf.n_bytes
    if group:
        yield group


def _tree_folder(path: Path) -> Path:
    """The folder of the tree itself, in the folder of a checkpoint, its steps or a step."""
    where = path.absolute()
    for _ in range(3):
        if (where / "_METADATA").is_file():
            return where
        inner = sorted(p for p in where.iterdir() if p.is_dir())
        steps = sorted((p for p in inner if p.name.isdecimal()), key=lambda p: int(p.name))
        items = [p for name in _ITEMS for p in inner if p.name == name]
        items = items or [p for p in inner if (p / "_METADATA").is_file()]
        if not steps and len(items) > 1 and items[0].name not in _ITEMS:
            raise ValueError(
                f"{path}: holds several trees, {listed([p.name for p in items])}. Give the folder "
                "of one."
            )
        if not (steps or items):
            break
        where = steps[-1] if steps else items[0]
    raise ValueError(
        f"{path}: a folder, but no orbax checkpoint. Give a file, or the folder of a step."
    )
