"""The bytes of a file, read in order, with zstd decompressed.

What the bytes mean is the business of `safetensors.py`, which reads them.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxprune._base.plurals import counted
from jaxprune._files.atomic import errors_of
from jaxprune._files.extras import import_extra

_RUN_BLOCK = 1  # the type of a block that repeats one byte
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_RATIO = 2**15  # of zstd: a block of 4 bytes may stand for 2**17
_MIN_BLOCK = 2**10  # bytes that a block decompresses to on average; otherwise there are at most
_MAX_BLOCKS = 2**16  # this many, because counting them is slower than decompressing them
DAMAGED = "so it was cut off or damaged. Copy or save it again."  # the end of error messages


class Stream:
    """The bytes of a file in order, with zstd decompressed.

    A damaged file is a `ValueError` that begins with its path; so is one that the memory can't
    hold.

    Attributes:
      path: of the file.
      n_file_bytes: size of the file on disk.
      n_bytes: how many bytes can be read, after decompression; None where zstd does not say.
      max_bytes: the most bytes that a file of this size can hold, after decompression.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.n_file_bytes = os.fstat(file.fileno()).st_size
        self.n_bytes: int | None = self.n_file_bytes
        self.max_bytes = self.n_file_bytes
        self._n_read = 0
        self._file = file
        self._source: Any = file
        self._zstd_errors: tuple[type[Exception], ...] = ()
        head = file.read(18)  # the longest header of a zstd frame
        file.seek(0)
        self._is_zstd = head.startswith(ZSTD_MAGIC)
        if self._is_zstd:
            self.max_bytes = _MAX_RATIO * self.n_file_bytes
            zstd = import_extra("zstandard")
            self._zstd_errors = (zstd.ZstdError,)
            with self._errors():
                parameters = zstd.get_frame_parameters(head)
                self._first_block = zstd.frame_header_size(head)
                self._n_checksum_bytes = 4 * parameters.has_checksum
                size = parameters.content_size
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
        self._n_read += n_bytes
        return data

    def finish(self) -> None:
        """Checks that the file ends here, and that the checksum of its zstd frame is right.

        A zstd file must be a single frame, with nothing behind it.
        """
        with self._errors():
            rest = self._source.read(2)
        if rest != (_WithSentinel.content if self._is_zstd else b""):
            raise ValueError(f"{self.path}: does not end where it should, {DAMAGED}")
        if self._is_zstd and (n_more := self.n_file_bytes - self._end_of_frame()):
            size = counted(n_more, "byte")
            raise ValueError(f"{self.path}: has {size} behind its zstd frame, {DAMAGED}")

    def _end_of_frame(self) -> int:
        """Where the first zstd frame ends in the file, by walking over its blocks.

        zstandard does not say it when it reads a file in pieces of limited size.
        """
        position, is_last = self._first_block, False
        for _ in range(_MAX_BLOCKS + self._n_read // _MIN_BLOCK):
            with self._errors():
                self._file.seek(position)
                header = int.from_bytes(self._file.read(3), "little")
            is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
            position += 3 + (1 if kind == _RUN_BLOCK else size)
            if is_last:
                return position + self._n_checksum_bytes
        raise ValueError(f"{self.path}: has too many blocks for its size. Compress it again.")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with errors_of(self.path):
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
