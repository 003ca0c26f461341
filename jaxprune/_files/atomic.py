"""Atomic writes: a file appears at its path complete, or not at all.

Every file that jaxprune writes is written here, into a temporary file beside its path. A full disk
is an `OSError` that names the path, and whatever stops the writing, the temporary file is deleted.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# How many bytes of the name of a file its temporary file has.
_LONGEST_NAME = 200


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`, which replaces `path` when the block succeeds.

    If the block raises, the temporary file is deleted and an existing file at `path` is unchanged.
    A new file has the permissions of the one that it replaces. A symbolic link is replaced, and
    what it points to stays as it is.

    Raises:
      FileNotFoundError: the folder of `path` does not exist.
      IsADirectoryError: `path` is a folder.
      FileExistsError: `path` is a device or a pipe, which a file can't replace.
      OSError: the file can't be written, for example because the disk is full; its `filename` is
        `path`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with atomic_file(Path(folder, "a")) as file:
      ...         _ = file.write(b"abc")
      ...     Path(folder, "a").read_bytes()
      b'abc'
    """
    path = Path(path)
    with _temporary_file(path) as (file, temporary):
        yield file
        file.flush()
        with errors_of(path):
            os.fsync(file.fileno())
        file.close()
        with errors_of(path):
            temporary.replace(path)


@contextlib.contextmanager
def spool_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` to write and read; it is deleted after the block.

    Raises:
      OSError: as for `atomic_file`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with spool_file(Path(folder, "a")) as file:
      ...         file.write(b"abc"), file.seek(0), file.read()
      ...     list(Path(folder).iterdir())
      (3, 0, b'abc')
      []
    """
    with _temporary_file(Path(path)) as (file, _):
        yield file


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Makes every `OSError` in the block name `path`, and no temporary file.

    Example:
      >>> with errors_of(Path("model.npz")):
      ...     raise OSError(errno.ENOSPC, "No space left on device")
      Traceback (most recent call last):
      ...
      OSError: [Errno 28] No space left on device: 'model.npz'
    """
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, error.strerror or str(error), str(path)) from None


class _File(io.FileIO):
    """A new file whose errors name another path, the one that the user knows."""

    def __init__(self, temporary: Path, path: Path):
        self._path = path
        with errors_of(path):
            super().__init__(temporary, "x+b")

    def write(self, data: bytes | memoryview) -> int:  # pyright: ignore
        with errors_of(self._path):
            return super().write(data)

    def close(self) -> None:
        with errors_of(self._path):
            super().close()


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[tuple[io.BufferedRandom, Path]]:
    """A new file beside `path`, and its path. It is deleted after the block unless it was moved."""
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path}: the folder {path.parent} does not exist. Create it first."
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder. Give the name of a file.")
    if path.exists() and not path.is_file():
        raise FileExistsError(
            f"{path}: is a device or a pipe, which a file would replace. Give another name."
        )
    temporary = _hidden_name(path)
    with _cleaned_by(lambda: _delete(temporary)):
        raw = _File(temporary, path)
        _copy_mode(path, temporary)
        try:
            yield io.BufferedRandom(raw), temporary
        finally:
            raw.close()  # and not the buffer, which would try to write the rest


def _copy_mode(path: Path, new: Path) -> None:
    """Gives a new file the permissions of an existing one, if there is one."""
    with contextlib.suppress(OSError):  # also of file systems without permissions
        shutil.copymode(path, new)


def _delete(temporary: Path) -> None:
    """Deletes a temporary file, if there is one. A read-only file system has none."""
    with contextlib.suppress(OSError):
        try:
            temporary.unlink(missing_ok=True)
        except PermissionError:  # Windows deletes no file that has the mode of a read-only one
            temporary.chmod(stat.S_IWRITE)
            temporary.unlink()


def _hidden_name(path: Path) -> Path:
    """A new name beside a path. Most file systems allow 255 bytes."""
    name = path.name.encode(errors="ignore")[:_LONGEST_NAME].decode(errors="ignore")
    return path.with_name(f".{name}.{secrets.token_hex(4)}.part")


@contextlib.contextmanager
def _cleaned_by(clean: Callable[[], None]) -> Iterator[None]:
    """Calls `clean` at the end, whatever happens.

    If Ctrl-C strikes while a `with` statement enters or leaves its block, Python does not run what
    comes after `yield`; and Ctrl-C may interrupt `clean`. In both cases it is called when Python
    deletes the objects of the block, or at the end of the process.
    """
    block = _Block()
    finalizer = weakref.finalize(block, clean)
    try:
        yield
    finally:
        clean()
        finalizer.detach()


class _Block:
    """An object that lives until its block has ended."""


# Folders


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Makes a temporary folder, whose files move into `folder` when the block succeeds.

    Files of the same name are replaced, others stay. If anything raises, everything is as before.

    Args:
      folder: created if it does not exist, with those above it.

    Raises:
      OSError: a file can't be written; its `filename` begins with `folder`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as above:
      ...     with atomic_folder(Path(above, "out")) as temporary:
      ...         Path(temporary, "a").write_text("abc")
      ...     Path(above, "out", "a").read_text()
      3
      'abc'
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    files = _Files(_hidden_name(existing / (folder.name or "params")), folder)
    with _errors_in(files.new, folder), _cleaned_by(files.clean):
        with errors_of(folder):
            files.temporary.mkdir()
            files.new.mkdir()
        yield files.new
        files.move()


@contextlib.contextmanager
def _errors_in(temporary: Path, folder: Path) -> Iterator[None]:
    """Makes every `OSError` that names a file below `temporary` name it below `folder`."""
    try:
        yield
    except OSError as error:
        path = Path(str(error.filename))
        if not path.is_relative_to(temporary):
            raise
        path = folder / path.relative_to(temporary)
        raise OSError(error.errno, error.strerror, str(path)) from None


class _Files:
    """Files that move from a temporary folder to another one, all or none.

    Attributes:
      temporary: the temporary folder, which `clean` deletes.
      new: the folder inside it from which the files move.
    """

    def __init__(self, temporary: Path, folder: Path):
        self.temporary, self.new = temporary, temporary / "new"
        self._old, self._folder = temporary / "old", folder  # `_old` keeps what is replaced
        self._names: list[Path] = []
        self._replaced: set[Path] = set()  # the names that existed in the folder before
        self._made: list[Path] = []  # folders, the outer ones first
        self._is_moving = False

    def move(self) -> None:
        """Moves the files, which replace files of the same name; needs no room on the disk."""
        new = sorted(path for path in self.new.rglob("*") if path.is_file())
        self._names = [path.relative_to(self.new) for path in new]
        paths = [self._folder / name for name in self._names]
        for path in paths:
            if path.is_dir():
                raise IsADirectoryError(f"{path}: is a folder, but a file goes there. Move it.")
        above = {parent for path in paths for parent in path.parents}
        self._made = sorted(parent for parent in above if not parent.exists())
        self._replaced = {name for name in self._names if (self._folder / name).exists()}
        for name in self._replaced:
            with errors_of(self._folder / name):
                _copy_mode(self._folder / name, self.new / name)
                _link(self._folder / name, self._old / name)
        self._is_moving = True
        for name, path in zip(self._names, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with errors_of(path):
                (self.new / name).replace(path)
        self._is_moving = False

    def clean(self) -> None:
        """Undoes a move that did not end, and deletes the temporary folder."""
        if self._is_moving:
            self._undo()
            self._is_moving = False
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _undo(self) -> None:
        for name in self._names:
            if name not in self._replaced:
                (self._folder / name).unlink(missing_ok=True)
            elif (self._old / name).exists():  # otherwise it was moved back before an interrupt
                (self._old / name).replace(self._folder / name)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _link(path: Path, link: Path) -> None:
    """A second name for a file; a copy where the file system has no links."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, link)
    except OSError:
        shutil.copy2(path, link)
