"""The bytes of a file, read in order, with zstd decompressed.

What the bytes mean is the business of `safetensors.py`, which reads them.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxprune._files.extras import import_extra

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
DAMAGED = "so it was cut off or damaged. Copy or save it again."  # the end of error messages


class Stream:
    """The bytes of a file in order, with zstd decompressed.

    Every failure is a `ValueError` that begins with the path of the file.

    Attributes:
      path: of the file.
      n_file_bytes: size of the file on disk.
      n_bytes: how many bytes can be read, after decompression; None where zstd does not say.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.n_file_bytes = os.fstat(file.fileno()).st_size
        self.n_bytes: int | None = self.n_file_bytes
        self._source: Any = file
        self._zstd_errors: tuple[type[Exception], ...] = ()
        head = file.read(18)  # the longest header of a zstd frame
        file.seek(0)
        self._is_zstd = head.startswith(ZSTD_MAGIC)
        if self._is_zstd:
            zstd = import_extra("zstandard")
            self._zstd_errors = (zstd.ZstdError,)
            with self._errors():
                size = zstd.get_frame_parameters(head).content_size
                self.n_bytes = None if size == zstd.CONTENTSIZE_UNKNOWN else size
                self._source = zstd.ZstdDecompressor().stream_reader(
                    _WithSentinel(file), read_across_frames=True
                )

    def read(self, n_bytes: int) -> np.ndarray:
        """The next `n_bytes` bytes, as uint8."""
        try:
            data = np.empty(n_bytes, np.uint8)
        except MemoryError:
            raise ValueError(f"{self.path}: {n_bytes:,} bytes do not fit into memory.") from None
        view, done = data.data, 0
        while done < n_bytes:
            with self._errors():
                n_read = self._source.readinto(view[done : done + 2**24])
            if not n_read:
                raise ValueError(f"{self.path}: ends too early, {DAMAGED}")
            done += n_read
        return data

    def finish(self) -> None:
        """Checks that the file ends here, and that the checksum of its zstd frame is right."""
        with self._errors():
            rest = self._source.read(2)
        if rest != (_WithSentinel.content if self._is_zstd else b""):
            raise ValueError(f"{self.path}: does not end where it should, {DAMAGED}")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._zstd_errors as error:
            raise ValueError(f"{self.path}: {error}, {DAMAGED}") from None


class _WithSentinel:
    """A zstd file with one more frame after it.

    zstd's reader treats the end of its input as the end of a frame, so a missing checksum would go
    unnoticed. Because another frame follows, the first one is read to its end, or fails.
    """

    content = b"!"
    # Magic number, frame header (single segment, one byte), last raw block of one byte.
    _frame = ZSTD_MAGIC + b"\x20\x01" + b"\x09\x00\x00" + content

    def __init__(self, file: BinaryIO):
        self._file = file
        self._rest = self._frame

    def read(self, n_bytes: int = -1) -> bytes:
        data = self._file.read(n_bytes)
        if not data:
            data, self._rest = self._rest, b""
        return data
