"""NumPy's `.npz` files, written and read one array at a time.

A file is not trusted: the shape, dtype and size of an array are checked before it is read, and
nothing is unpickled.
"""

import contextlib
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxprune._base.plurals import counted
from jaxprune._files import safetensors
from jaxprune._files.atomic import atomic_file
from jaxprune._files.dtypes import dtype_of
from jaxprune._files.leaf_files import memory_bytes
from jaxprune._files.leaves import Leaf
from jaxprune._files.other_formats import ZIP_MAGICS

_MAX_HEADER = 10_100  # bytes of the header of an array: the limit of NumPy, and what is before it
# The most bytes that one byte of the file can stand for, for each method that NumPy uses.
_MAX_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}

# Writing


def write_npz(path: Path, leaves: Sequence[Leaf], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes leaves as a compressed `.npz` file.

    Args:
      path: of the file.
      leaves: all leaves that will arrive.
      arrays: their paths and arrays, consumed one by one.

    Raises:
      TypeError: NumPy's files can't hold the dtype of a leaf.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_npz(Path(folder, "a.npz"), [], [("w", np.ones(2))])
      ...     np.load(f"{folder}/a.npz")["w"].tolist()
      [1.0, 1.0]
    """
    for leaf in leaves:
        if leaf.dtype.kind not in "biufc":
            raise TypeError(
                f"{leaf.path}: NumPy's files can't hold {leaf.dtype}. Write .safetensors.zst or "
                ".safetensors instead."
            )
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for leaf_path, array in arrays:
            with archive.open(f"{leaf_path}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


# Reading


def is_zip(path: Path) -> bool:
    """Whether a file begins like a zip file, as every `.npz` does."""
    with path.open("rb") as file:
        return file.read(4) in ZIP_MAGICS


class NpzReader:
    """An open `.npz` file.

    Attributes:
      leaves: of the file, without their data.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path = path
        self._archive = archive
        self._n_file_bytes = path.stat().st_size
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        if not members:
            raise ValueError(
                f"{path}: holds no arrays: it is a zip file without .npy files in it. Save the "
                "params again, with numpy.savez(path, **arrays)."
            )
        leaves = {info.filename: self._read_header(info) for info in members}
        if len(leaves) < len(members):
            raise ValueError(f"{path}: two arrays have the same name; the file is damaged.")
        if sum(info.compress_size for info in members) > self._n_file_bytes:
            raise ValueError(f"{path}: two arrays share their data; the file is damaged.")
        self.leaves = tuple(leaves.values())

    def arrays(self, leaves: Sequence[Leaf]) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the array of each of these leaves."""
        for leaf in leaves:
            with _errors(self._path), self._archive.open(f"{leaf.path}.npy") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            yield leaf.path, array.astype(leaf.dtype, copy=False)  # in this machine's byte order

    def _read_header(self, info: zipfile.ZipInfo) -> Leaf:
        """What the header of an array says, checked."""
        name = info.filename.removesuffix(".npy")
        safetensors.check_name(self._path, name)
        with _errors(self._path), self._archive.open(info) as member:
            file = io.BytesIO(member.read(_MAX_HEADER))  # a header may claim 4 GB
            if np.lib.format.read_magic(file) == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            leaf = Leaf(name, tuple(shape), dtype.newbyteorder("="))
            n_data_bytes = info.file_size - file.tell()
        where = f"{self._path}: {name}"
        if dtype_of(dtype.name) is None:
            raise ValueError(
                f"{where}: has dtype {dtype}, which does not hold numbers or bools. NumPy's files "
                "have no bfloat16: use jaxprune.save."
            )
        max_bytes = _MAX_RATIO.get(info.compress_type, 0) * self._n_file_bytes
        is_valid = safetensors.is_shape(list(leaf.shape)) and leaf.n_bytes <= memory_bytes()
        if not is_valid or leaf.n_bytes != n_data_bytes or info.file_size > max_bytes:
            raise ValueError(
                f"{where}: has {counted(n_data_bytes, 'byte')} for {dtype} of shape {leaf.shape}; "
                "the file is damaged."
            )
        return leaf


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[NpzReader]:
    """Opens an `.npz` file.

    Raises:
      ValueError: not an `.npz` file, or damaged; with its path.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/a.npz", w=np.ones((2, 3)))
      ...     with open_npz(Path(folder, "a.npz")) as reader:
      ...         reader.leaves[0].path, reader.leaves[0].shape
      ('w', (2, 3))
    """
    with contextlib.ExitStack() as stack:
        with _errors(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
        yield NpzReader(path, archive)


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turns every error of zipfile, the decompressors and NumPy's parser into a `ValueError`."""
    try:
        yield
    except Exception as error:
        text = str(error) or type(error).__name__
        raise ValueError(f"{path}: not readable as .npz: {text}. Copy or save it again.") from None
