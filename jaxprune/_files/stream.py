"""The bytes of files: read in order, with zstd undone, and written in one move.

It knows nothing of what is in them.
"""

import contextlib
import importlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
CUT = "so it was cut off or damaged. Copy or save it again."


def extra(name: str, of: str = "files") -> Any:
    """A module of a package that comes with an extra.

    Args:
      name: of the module.
      of: the extra.

    Raises:
      ImportError: it is not there; the text says what to type.

    Example:
      >>> extra("no_such_package.module")
      Traceback (most recent call last):
      ...
      ImportError: no_such_package is not installed. Type: pip install 'jaxprune[files]'
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(
            f"{package} is not installed. Type: pip install 'jaxprune[{of}]'", name=package
        ) from None


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to fill, which takes its place at `path` in one move when the `with` ends well.

    Raises:
      FileNotFoundError: there is no such folder.
      IsADirectoryError: `path` is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}. Make it first.")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file.")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class Stream:
    """The bytes of a file in order, zstd undone; a shortfall is a `ValueError` with its path."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.n_stored = os.fstat(file.fileno()).st_size
        self.n_bytes: int | None = self.n_stored
        self._source: Any = file
        self._zstd_errors: tuple[type[Exception], ...] = ()
        head = file.read(18)  # the longest header of a zstd frame
        file.seek(0)
        self._is_zstd = head.startswith(ZSTD_MAGIC)
        if self._is_zstd:
            zstd = extra("zstandard")
            self._zstd_errors = (zstd.ZstdError,)
            with self._errors():
                size = zstd.get_frame_parameters(head).content_size
                self.n_bytes = None if size == zstd.CONTENTSIZE_UNKNOWN else size
                self._source = zstd.ZstdDecompressor().stream_reader(
                    _WithSentinel(file), read_across_frames=True
                )

    def read(self, n_bytes: int) -> np.ndarray:
        """The next bytes, exactly so many."""
        try:
            out = np.empty(n_bytes, np.uint8)
        except MemoryError:
            raise ValueError(f"{self.path}: {n_bytes:,} bytes do not fit into memory.") from None
        view, done = out.data, 0
        while done < n_bytes:
            with self._errors():
                n_read = self._source.readinto(view[done : done + 2**24])
            if not n_read:
                raise ValueError(f"{self.path}: ends too early, {CUT}")
            done += n_read
        return out

    def finish(self) -> None:
        """Raises unless this is the end, and the checksum of a zstd frame is right."""
        with self._errors():
            rest = self._source.read(2)
        if rest != (_WithSentinel.content if self._is_zstd else b""):
            raise ValueError(f"{self.path}: does not end where it should, {CUT}")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._zstd_errors as error:
            raise ValueError(f"{self.path}: {error}; {CUT}") from None


class _WithSentinel:
    """A zstd file with one more frame behind it.

    zstd's reader takes the end of its input for the end of a frame, so that a missing checksum goes
    unnoticed. With a frame to follow, the first one is read to its end, or fails.
    """

    content = b"!"
    # Magic, frame header (single segment, one byte), last raw block of one byte.
    _frame = ZSTD_MAGIC + b"\x20\x01" + b"\x09\x00\x00" + content

    def __init__(self, file: BinaryIO):
        self._file = file
        self._rest = self._frame

    def read(self, n_bytes: int = -1) -> bytes:
        found = self._file.read(n_bytes)
        if not found:
            found, self._rest = self._rest, b""
        return found
