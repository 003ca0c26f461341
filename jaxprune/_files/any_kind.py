"""Opens a file of params whatever its format, and writes one in a given format.

Reads the files of `save`, safetensors (one file, or shards with an index), NumPy's `.npz` and orbax
checkpoints; writes all but the last, and folders of SciPy's CSR. Only one leaf, or one group of
small leaves, is in memory at a time.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxprune._files.atomic import spool_file
from jaxprune._files.extras import import_extra
from jaxprune._files.formats import SHARDS
from jaxprune._files.interchange import write_csr_folder, write_safetensors
from jaxprune._files.leaf_files import LeafReader, open_leaves, save_leaves
from jaxprune._files.leaves import Leaf
from jaxprune._files.npz import is_zip, open_npz, write_npz
from jaxprune._files.orbax import Checkpoint
from jaxprune._files.other_formats import check_format
from jaxprune._files.shard_index import Index, find_index, read_index
from jaxprune._files.shard_reader import read_shards
from jaxprune._files.shards import write_shards


class Source(NamedTuple):
    """An open file of any kind.

    Attributes:
      kind: "jaxprune", "safetensors", "shards", "npz" or "orbax".
      leaves: of the file, without their data.
      read: given some of the leaves, in the same order, yields the path and the array of each; can
        be called once.
      metadata: strings by name, which a safetensors file or a file of `save` has.
      shards: their index, of "shards".
      left_out: what the file holds beside the leaves, by path or name: why it is no leaf.
    """

    kind: str
    leaves: tuple[Leaf, ...]
    read: Callable[[Sequence[Leaf]], Iterator[tuple[str, np.ndarray]]]
    metadata: Mapping[str, str] = types.MappingProxyType({})
    shards: Index | None = None
    left_out: Mapping[str, str] = types.MappingProxyType({})

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the array of each leaf; can be iterated once."""
        return self.read(self.leaves)

    def only(self, paths: Collection[str]) -> "Source":
        """The same file with only the leaves of these paths.

        Example:
          >>> w, b = (Leaf(path, (), np.dtype("float32")) for path in "wb")
          >>> source = Source("npz", (w, b), lambda leaves: ((leaf.path, 1) for leaf in leaves))
          >>> list(source.only(["b"]).arrays())
          [('b', 1)]
        """
        chosen = set(paths)
        return self._replace(leaves=tuple(leaf for leaf in self.leaves if leaf.path in chosen))


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Opens a file of params, the index of shards or its folder, or the folder of a checkpoint.

    Raises:
      ValueError: the format is unknown, or the file is damaged; with its path.
      FileNotFoundError: the file does not exist.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/a.npz", w=np.ones((2, 3)))
      ...     with open_source(Path(folder, "a.npz")) as source:
      ...         source.kind, source.leaves[0].path, source.leaves[0].shape
      ('npz', 'w', (2, 3))
    """
    if index_path := find_index(path):
        index = read_index(index_path)
        read = functools.partial(read_shards, index)
        yield Source("shards", index.leaves, read, index.metadata, index)
    elif path.is_dir():
        checkpoint = Checkpoint(path)
        yield Source("orbax", checkpoint.leaves, checkpoint.arrays, left_out=checkpoint.left_out)
    elif _is_npz(path):
        with open_npz(path) as archive:
            yield Source("npz", archive.leaves, archive.arrays)
    else:
        with open_leaves(path) as reader:
            kind = "jaxprune" if reader.about else "safetensors"
            read = functools.partial(_read_only, reader)
            yield Source(kind, reader.leaves, read, reader.metadata)


def _is_npz(path: Path) -> bool:
    """Whether a file is an `.npz`; raises where it is of a kind that is not supported."""
    check_format(path)
    return is_zip(path)


def _read_only(reader: LeafReader, leaves: Sequence[Leaf]) -> Iterator[tuple[str, np.ndarray]]:
    """Reads the whole file, and yields the arrays of these leaves."""
    paths = {leaf.path for leaf in leaves}
    return ((path, array) for path, array in reader.arrays() if path in paths)


def write(
    out: Path,
    kind: str,
    leaves: Sequence[Leaf],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
    index: Index | None = None,
) -> list[str]:
    """Writes leaves that arrive one by one; the file appears complete, or not at all.

    Args:
      out: the file, or the folder for `csr` and `shards`.
      kind: one of `formats.FORMATS`, or `formats.SHARDS`.
      leaves: all leaves that will arrive.
      arrays: their paths and arrays, in the same order.
      metadata: strings by name; left out where the format has no place for them.
      index: of the shards that were read, for `shards`.

    Returns:
      What was left out: leaves that the format can't hold, or files beside the shards.

    Raises:
      ValueError, TypeError: the format can't hold a leaf, with its path.
      ImportError: a package that the format needs is not installed.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     leaves = [Leaf("w", (2,), np.dtype("float64"))]
      ...     write(Path(folder, "a.npz"), "npz", leaves, [("w", np.ones(2))])
      ...     np.load(Path(folder, "a.npz"))["w"].tolist()
      []
      [1.0, 1.0]
    """
    if kind == SHARDS and index is not None:
        return write_shards(out, index, arrays)
    if kind == "csr":
        return write_csr_folder(out, leaves, arrays)
    if kind == "jaxprune":
        import_extra("zstandard")  # fails before anything is read
        with spool_file(out) as spool:
            save_leaves(out, arrays, metadata=metadata, spool=spool)
    elif kind == "safetensors":
        write_safetensors(out, leaves, (array for _, array in arrays), metadata)
    else:
        write_npz(out, leaves, arrays)
    return []
