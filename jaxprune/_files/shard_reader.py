"""Reads params leaf by leaf, from one file or from shards.

`ShardReader` has the attributes and methods of `LeafReader`, so `load` does not care which of them
it gets. `open_params` opens whichever a path names.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxprune._files.leaf_files import LeafReader, check_memory, open_leaves
from jaxprune._files.leaves import Leaf
from jaxprune._files.other_formats import files_of_params
from jaxprune._files.shard_index import SUFFIX, Index, find_index, read_index


class ShardReader:
    """A model in shards: its leaves, and their arrays one by one.

    Attributes:
      leaves: of all shards, without their data.
      metadata: of all shards; where they differ, the first one wins.
    """

    def __init__(self, index: Index, max_bytes: int | None = None):
        self._index = index
        self.leaves: tuple[Leaf, ...] = index.leaves
        self.metadata: Mapping[str, str] = index.metadata
        check_memory(index.path, self.leaves, max_bytes)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the array of each leaf, one shard after the other.

        Raises:
          ValueError: a shard is damaged, or has changed since the index was read.
        """
        return read_shards(self._index, self.leaves)


def read_shards(index: Index, leaves: Sequence[Leaf]) -> Iterator[tuple[str, np.ndarray]]:
    """The path and the array of each of these leaves, one shard after the other.

    Raises:
      ValueError: a shard is damaged, or has changed since the index was read.
    """
    paths = {leaf.path for leaf in leaves}
    for shard in index.shards:
        if paths.isdisjoint(leaf.path for leaf in shard.leaves):
            continue
        with open_leaves(index.folder / shard.name) as reader:
            if reader.leaves != shard.leaves:
                raise ValueError(
                    f"{index.folder / shard.name}: has changed while it was read. Start again."
                )
            yield from ((path, array) for path, array in reader.arrays() if path in paths)


@contextlib.contextmanager
def open_params(
    path: str | os.PathLike[str], max_bytes: int | None = None
) -> Iterator[LeafReader | ShardReader]:
    """Opens a file of `save`, a safetensors file, or shards, to read it by leaves.

    Args:
      path: of the file, of the index of shards, or of the folder that holds an index.
      max_bytes: as for `open_leaves`.

    Raises:
      ValueError: the file, the index or a shard is damaged or too large, or they do not fit.
      FileNotFoundError: the file, the index or a shard does not exist.
      IsADirectoryError: it is a folder without an index.

    Example:
      >>> import tempfile, jaxprune
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jaxprune.save_safetensors(f"{folder}/a.safetensors", {"w": np.ones(2)})
      ...     index = '{"weight_map": {"w": "a.safetensors"}}'
      ...     _ = Path(folder, "model.safetensors.index.json").write_text(index)
      ...     with open_params(folder) as reader:
      ...         [(path, array.tolist()) for path, array in reader.arrays()]
      [('w', [1.0, 1.0])]
    """
    path = Path(path)
    if index_path := find_index(path):
        yield ShardReader(read_index(index_path), max_bytes)
        return
    if path.is_dir():
        files = [p for p in files_of_params(path) if p.suffix != ".npz"]
        raise IsADirectoryError(
            f"{path}: is a folder that has no index of shards (*{SUFFIX}). Pass one file that "
            f"jaxprune.save or safetensors wrote{f', such as {files[0]}' if files else ''}; read a "
            "checkpoint with the library that wrote it, or convert it with `jaxprune export`."
        )
    with open_leaves(path, max_bytes) as reader:
        yield reader
