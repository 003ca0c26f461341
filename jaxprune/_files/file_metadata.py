"""What a file of params holds beside the values: `load_metadata`."""

from __future__ import annotations

import os
from typing import NamedTuple

from jaxprune._base.arguments import as_file_path
from jaxprune._files.shard_reader import open_params


class FileMetadata(NamedTuple):
    """The metadata of a file of params, and the order of its leaves.

    Attributes:
      metadata: strings by name; for a file that `save` wrote, those that the user gave.
      order: the paths of the leaves in the order of the file.

    Example:
      >>> about = FileMetadata({"by": "me"}, order=("a", "b"))
      >>> about.metadata["by"], about.order
      ('me', ('a', 'b'))
    """

    metadata: dict[str, str]
    order: tuple[str, ...]


def load_metadata(path: str | os.PathLike[str]) -> FileMetadata:
    """Reads the metadata and the order of the leaves of a file that `load` can read.

    Pass both to `save` or `save_safetensors` to keep them: other programs may need the metadata,
    and a tree of dicts has an order of its own.

    Args:
      path: of the file, of the index of shards, or of its folder. Only headers are read.

    Returns:
      A named tuple: `metadata`, a dict of strings, and `order`, a tuple of paths. For a model in
      several shards, `order` has the leaves of one shard after those of the other; where their
      metadata differ, the first shard wins.

    Raises:
      ValueError: the file is damaged.
      FileNotFoundError: the file or a shard does not exist.
      IsADirectoryError: it is a folder without an index of shards.
      ImportError: `zstandard` is not installed.

    Example:
      >>> import jaxprune, numpy as np, tempfile
      >>> params = {"a": np.ones(2), "b": np.zeros(2)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jaxprune.save(f"{folder}/a.zst", params, metadata={"by": "me"})
      ...     about, params = load_metadata(f"{folder}/a.zst"), jaxprune.load(f"{folder}/a.zst")
      ...     jaxprune.save(f"{folder}/b.zst", params, metadata=about.metadata, order=about.order)
      >>> about
      FileMetadata(metadata={'by': 'me'}, order=('a', 'b'))
    """
    with open_params(as_file_path("load_metadata", path)) as reader:
        return FileMetadata(dict(reader.metadata), tuple(leaf.path for leaf in reader.leaves))


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
FileMetadata.__module__ = "jaxprune"
__test__ = {"FileMetadata": FileMetadata}
