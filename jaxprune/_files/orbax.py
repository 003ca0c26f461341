"""Orbax checkpoints, read a few leaves at a time; only what is asked for is read.

A step of a trainer may hold several items, such as params and optimizer state, as a tree each.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune._base.paths import leaves_with_paths, listed
from jaxprune._files import safetensors
from jaxprune._files.dtypes import dtype_of
from jaxprune._files.extras import import_extra
from jaxprune._files.leaf_files import memory_bytes
from jaxprune._files.leaves import Leaf
from jaxprune._files.other_formats import folder_hint

_GROUP_BYTES = 2**26  # read by one restore: each takes some milliseconds, so small leaves share one
_ITEM_NAMES = ("default", "params", "state")  # folders that may hold the tree of a checkpoint


class Checkpoint:
    """A checkpoint that is open: the tree of a step, or the trees of all its items.

    The paths of several items begin with their names, as in `model_params/fc/kernel`.

    Attributes:
      leaves: the arrays of numbers or bools, in the order of the trees, without their data.
      left_out: the other leaves and items, by path or name: why they can't be read.
    """

    def __init__(self, path: Path):
        folders = _tree_folders(path)
        prefixes = [f"{folder.name}/" if len(folders) > 1 else "" for folder in folders]
        self._trees = [Tree(path, *pair) for pair in zip(folders, prefixes, strict=True)]
        self.leaves = tuple(leaf for tree in self._trees for leaf in tree.leaves)
        names = [name for tree in self._trees for name in tree.left_out]
        self.left_out = dict.fromkeys(names, "no array of numbers")
        self.left_out |= dict.fromkeys(_other_items(path, folders), "no tree of arrays")

    def arrays(self, leaves: Sequence[Leaf]) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the array of each of these leaves."""
        chosen = set(leaves)
        for tree in self._trees:
            yield from tree.arrays([leaf for leaf in tree.leaves if leaf in chosen])


class Tree:
    """One tree of a checkpoint.

    Attributes:
      leaves: the arrays of numbers or bools, in the order of the tree, without their data.
      left_out: the paths of the other leaves, such as texts.
    """

    def __init__(self, path: Path, folder: Path, prefix: str):
        self._path, self._folder = path, folder
        self._ocp = import_extra("orbax.checkpoint", "demo")
        tree = self._read_metadata()
        with _errors(path):
            paths, self._metadata, self._treedef = leaves_with_paths(tree)
        self._position_of = {}  # in the tree, by path
        leaves, left_out = [], []
        names = [prefix + name for name in _without_value(paths)]
        for position, (name, about) in enumerate(zip(names, self._metadata, strict=True)):
            safetensors.check_name(path, name)
            shape, dtype = getattr(about, "shape", None), getattr(about, "dtype", None)
            if shape is None or dtype is None or dtype_of(np.dtype(dtype).name) is None:
                left_out.append(name)
                continue
            leaves.append(_checked(path, Leaf(name, tuple(shape), np.dtype(dtype))))
            self._position_of[name] = position
        self.leaves, self.left_out = tuple(leaves), tuple(left_out)

    def _read_metadata(self) -> Any:
        """The tree of the checkpoint, with metadata in place of arrays."""
        with _errors(self._path), self._ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(self._folder)
            metadata = getattr(metadata, "item_metadata", metadata)  # depends on orbax's version
            tree = getattr(metadata, "tree", metadata)
            if tree is None:
                raise ValueError("its metadata do not describe its content.")
        return tree

    def arrays(self, leaves: Sequence[Leaf]) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the array of each of these leaves."""
        for group in _groups(leaves):
            with _errors(self._path):
                restored = self._restore([self._position_of[leaf.path] for leaf in group])
            for leaf in group:
                array = np.asarray(restored.pop(self._position_of[leaf.path]))
                if array.shape != leaf.shape or array.dtype != leaf.dtype:
                    raise ValueError(
                        f"{self._path}: {leaf.path}: is {array.dtype} of shape {array.shape}, but "
                        f"the metadata say {leaf.dtype} of shape {leaf.shape}; the checkpoint is "
                        "damaged."
                    )
                yield leaf.path, array

    def _restore(self, positions: Sequence[int]) -> dict[int, Any]:
        """The leaves at these positions of the tree, by position."""
        ocp, chosen = self._ocp, set(positions)
        n = len(self._metadata)
        item = [0 if i in chosen else ocp.PLACEHOLDER for i in range(n)]
        restore_args = [ocp.RestoreArgs(restore_type=np.ndarray)] * n
        args = ocp.args.PyTreeRestore(
            item=self._treedef.unflatten(item), restore_args=self._treedef.unflatten(restore_args)
        )
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(self._folder, args=args)
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: x is ocp.PLACEHOLDER)
        return {i: leaves[i] for i in positions}


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turns every error of orbax, tensorstore or a parser into a `ValueError` of one line."""
    try:
        yield
    except Exception as error:
        text = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"{path}: not readable as an orbax checkpoint: {text}") from None


def _checked(path: Path, leaf: Leaf) -> Leaf:
    """The leaf; raises if the memory of this machine can't hold it."""
    if not safetensors.is_shape(list(leaf.shape)) or leaf.n_bytes > memory_bytes():
        raise ValueError(
            f"{path}: {leaf.path}: {leaf.dtype} of shape {leaf.shape} does not fit into memory; "
            "the checkpoint may be damaged."
        )
    return leaf


def _groups(leaves: Sequence[Leaf]) -> Iterator[list[Leaf]]:
    """Consecutive leaves that together have at most `_GROUP_BYTES`; a larger leaf comes alone."""
    group: list[Leaf] = []
    n_bytes = 0
    for leaf in leaves:
        if group and n_bytes + leaf.n_bytes > _GROUP_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append(leaf)
        n_bytes += leaf.n_bytes
    if group:
        yield group


def _without_value(paths: Sequence[str]) -> list[str]:
    """Paths as rules see them: without the last key `value` where a variable of NNX has no other.

    Example:
      >>> _without_value(["fc/kernel/value", "cache/key", "cache/value"])
      ['fc/kernel', 'cache/key', 'cache/value']
    """
    n_children: dict[str, int] = {}
    for path in paths:
        keys = path.split("/")
        for n in range(1, len(keys)):
            parent = "/".join(keys[:n])
            n_children[parent] = n_children.get(parent, 0) + 1
    return [
        path.removesuffix("/value") if n_children.get(path.removesuffix("/value")) == 1 else path
        for path in paths
    ]


def _tree_folders(path: Path) -> list[Path]:
    """The folders of the trees, given the folder of all steps, of one step, or of a tree itself.

    Among several steps it is the last one.
    """
    folder = path.absolute()
    for _ in range(3):
        if (folder / "_METADATA").is_file():
            return [folder]
        inner = sorted(p for p in folder.iterdir() if p.is_dir())
        steps = sorted((p for p in inner if p.name.isdecimal()), key=lambda p: int(p.name))
        items = [p for p in inner if (p / "_METADATA").is_file()]
        if len(items) > 1 and not steps:
            if (folder / "_CHECKPOINT_METADATA").is_file():
                return items
            names = listed([p.name for p in items])
            raise ValueError(f"{path}: holds several trees: {names}. Give the folder of one tree.")
        items = items or [p for name in _ITEM_NAMES for p in inner if p.name == name]
        if not (steps or items):
            break
        folder = steps[-1] if steps else items[0]
    raise ValueError(
        f"{path}: is a folder, but no orbax checkpoint{folder_hint(path)}. Give a file, the folder "
        "of a checkpoint, or that of shards with their index."
    )


def _other_items(path: Path, folders: Sequence[Path]) -> list[str]:
    """The names of the items of a step that are no trees, such as metrics, which are JSON."""
    step = folders[0].parent
    if folders[0] == path.absolute() or not (step / "_CHECKPOINT_METADATA").is_file():
        return []
    return sorted(item.name for item in step.iterdir() if item.is_dir() and item not in folders)
