"""Atomic writes: a file appears at its path complete, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`, which replaces `path` when the block succeeds.

    If the block raises, the temporary file is deleted and an existing file at `path` is unchanged.

    Raises:
      FileNotFoundError: the folder of `path` does not exist.
      IsADirectoryError: `path` is a folder.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with atomic_file(Path(folder, "a")) as file:
      ...         _ = file.write(b"abc")
      ...     Path(folder, "a").read_bytes()
      b'abc'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path}: the folder {path.parent} does not exist. Create it first."
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder. Give the name of a file.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
