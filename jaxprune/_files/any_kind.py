"""Files of params of any kind, read and written a leaf at a time.

Reads what `save` writes, safetensors, NumPy's `.npz` and orbax checkpoints; writes the first three
and folders of SciPy's CSR. One leaf is in memory, or a group of small ones.
"""

import contextlib
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune._base.paths import listed
from jaxprune._files import safetensors as container
from jaxprune._files.interchange import plain_tensor, write_csr
from jaxprune._files.leaves import Leaf, memory_bytes, opened, save_leaves
from jaxprune._files.orbax import Checkpoint
from jaxprune._files.stream import extra, written


class Source(NamedTuple):
    """A file that is open.

    Attributes:
      kind: "jaxprune", "safetensors", "npz" or "orbax".
      leaves: what is in it.
      read: a function that gives the path and the array of each of some leaves, in order, once.
    """

    kind: str
    leaves: tuple[Leaf, ...]
    read: Callable[[Sequence[Leaf]], Iterator[tuple[str, np.ndarray]]]

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the array of each leaf in `leaves`."""
        return self.read(self.leaves)


@contextlib.contextmanager
def source(path: Path) -> Iterator[Source]:
    """Opens a file, whatever kind it is.

    Raises:
      ValueError: it is none that can be read, or damaged, with its path.
      FileNotFoundError: there is none.

    Example:
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/a.npz", w=np.ones((2, 3)))
      ...     with source(Path(folder, "a.npz")) as found:
      ...         found.leaves[0].path, found.leaves[0].shape
      ('w', (2, 3))
    """
    if path.is_dir():
        checkpoint = Checkpoint(path)
        yield Source("orbax", checkpoint.leaves, checkpoint.arrays)
    elif _is_zip(path):
        with contextlib.ExitStack() as stack:
            with _zip_errors(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
            yield _npz(path, archive)
    else:
        with opened(path) as file:
            kind = "jaxprune" if file.about else "safetensors"
            yield Source(kind, file.leaves, lambda leaves: _only(leaves, file.arrays()))


def _only(leaves: Sequence[Leaf], arrays: Iterator[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Those of the arrays that are of these leaves; the others go by."""
    wanted = {leaf.path for leaf in leaves}
    return ((path, array) for path, array in arrays if path in wanted)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _npz(path: Path, archive: zipfile.ZipFile) -> Source:
    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if not members:
        raise ValueError(f"{path}: a zip file without arrays is no .npz.")
    found = {info.filename: _npy_header(path, archive, info) for info in members}
    if len(found) < len(members):
        raise ValueError(f"{path}: two arrays of the file have the same name; it is damaged.")

    def read(leaves: Sequence[Leaf]) -> Iterator[tuple[str, np.ndarray]]:
        for leaf in leaves:
            with _zip_errors(path), archive.open(f"{leaf.path}.npy") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            yield leaf.path, array.astype(leaf.dtype, copy=False)  # in the order of our bytes

    return Source("npz", tuple(found.values()), read)


def _npy_header(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Leaf:
    """What an array of an `.npz` is, checked before it is read."""
    name = info.filename.removesuffix(".npy")
    container.check_name(path, name)
    with _zip_errors(path), archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
        leaf, n_head = Leaf(name, tuple(shape), dtype.newbyteorder("=")), file.tell()
    if container.dtype_of(dtype.name) is None:
        raise ValueError(
            f"{path}: {name}: has dtype {dtype}, which is none of numbers. NumPy's files have no "
            "bfloat16: use jaxprune.save."
        )
    lengths = container.is_shape(list(leaf.shape))
    if not lengths or leaf.n_bytes > memory_bytes() or leaf.n_bytes != info.file_size - n_head:
        raise ValueError(
            f"{path}: {name}: {info.file_size - n_head} bytes for {dtype} of shape {leaf.shape}; "
            "the file is damaged."
        )
    return leaf


@contextlib.contextmanager
def _zip_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of zipfile, of three decompressors, and of NumPy's parser
        text = str(error) or type(error).__name__
        raise ValueError(f"{path}: not readable as .npz: {text}.") from None


# Writing


def write(
    out: Path, kind: str, leaves: Sequence[Leaf], arrays: Iterable[tuple[str, np.ndarray]]
) -> list[str]:
    """Writes leaves that come one by one; a file appears complete or not at all.

    Args:
      out: the file, or the folder for `csr`.
      kind: one of `formats.FORMATS`.
      leaves: what is coming.
      arrays: paths and arrays, in the order of `leaves`.

    Returns:
      The paths of leaves that the format can't hold and that were left out.

    Raises:
      ValueError, TypeError: what a format can't hold, with the path.
      ImportError: a package of the format is not installed.

    Example:
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     leaves = [Leaf("w", (2,), np.dtype("float64"))]
      ...     write(Path(folder, "a.npz"), "npz", leaves, [("w", np.ones(2))])
      ...     np.load(Path(folder, "a.npz"))["w"].tolist()
      []
      [1.0, 1.0]
    """
    if kind == "jaxprune":
        extra("zstandard")
        with tempfile.TemporaryFile(dir=out.parent if out.parent.is_dir() else None) as spool:
            save_leaves(out, arrays, spool=spool)
    elif kind == "safetensors":
        tensors = [plain_tensor(leaf.path, leaf.dtype, leaf.shape) for leaf in leaves]
        container.write(out, tensors, (array for _, array in arrays), {})
    elif kind == "npz":
        _write_npz(out, leaves, arrays)
    else:
        return _write_csr(out, leaves, arrays)
    return []


def _write_npz(out: Path, leaves: Sequence[Leaf], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    for leaf in leaves:
        if leaf.dtype.kind not in "biufc":
            raise TypeError(
                f"{leaf.path}: NumPy's files have no {leaf.dtype}. Write .safetensors.zst or "
                ".safetensors."
            )
    with written(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, array in arrays:
            with archive.open(f"{path}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_csr(
    out: Path, leaves: Sequence[Leaf], arrays: Iterable[tuple[str, np.ndarray]]
) -> list[str]:
    if not any(len(leaf.shape) == 2 for leaf in leaves):
        raise ValueError(
            f"nothing to write: no leaf has two axes; there are {listed([x.path for x in leaves])}."
        )
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: is a file; csr makes a folder. Choose another name.")
    out.parent.mkdir(parents=True, exist_ok=True)
    left_out = []
    with tempfile.TemporaryDirectory(
        dir=out.parent, prefix=f".{out.name}.", suffix=".part"
    ) as part:
        written_files = []
        for path, array in arrays:
            if array.ndim == 2:
                written_files.append(write_csr(part, path, array).relative_to(part))
            else:
                left_out.append(path)
        for file in written_files:  # all is well: in place, one after the other
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            Path(part, file).replace(out / file)
    return left_out


def some(found: Source, paths: Sequence[str]) -> Source:
    """A source with only these paths.

    Example:
      >>> w, b = (Leaf(path, (), np.dtype("float32")) for path in "wb")
      >>> few = some(Source("npz", (w, b), lambda leaves: ((x.path, 1) for x in leaves)), ["b"])
      >>> list(few.arrays())
      [('b', 1)]
    """
    wanted = set(paths)
    return found._replace(leaves=tuple(leaf for leaf in found.leaves if leaf.path in wanted))
