"""The file or folder that a command writes: which format it has, and whether it may be replaced."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune._cli.words import WrongOption, wrong_option
from jaxprune._files import any_kind
from jaxprune._files.any_kind import Source
from jaxprune._files.formats import SHARDS, format_for
from jaxprune._files.interchange import check_folder
from jaxprune._files.shard_index import find_index
from jaxprune._files.shards import check_new_folder


class Output(NamedTuple):
    """What to write.

    Attributes:
      path: of the file or the folder.
      kind: one of `formats.FORMATS`, or `formats.SHARDS`.
    """

    path: Path
    kind: str


class Written(NamedTuple):
    """What was written.

    Attributes:
      path: of the file or the folder.
      n_bytes: of all files.
      left_out: leaves that the format can't hold, or files beside the shards.
      reason: why these were left out.
      not_read: what was not taken from the file that was read: why, by path or name.
    """

    path: Path
    n_bytes: int
    left_out: list[str]
    reason: str
    not_read: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        left_out = [*self.not_read, *self.left_out]
        return {"out": str(self.path), "bytes": self.n_bytes, "left_out": left_out}


def check_exists(file: Path) -> None:
    """Raises where the file to read does not exist, with the most similar name beside it."""
    if file.exists():
        return
    names = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
    close = difflib.get_close_matches(file.name, names, n=1)
    hint = f" Did you mean {file.with_name(close[0])}?" if close else ""
    raise FileNotFoundError(f"{file}: there is no such file.{hint}")


def checked_output(file: Path, out: Path, kind: str | None, *, force: bool) -> Output:
    """What to write; raises unless `file` exists, and `out` does not or may be replaced.

    Raises:
      WrongOption: `out` is a wrong name for the format, or the folder that is read.
      FileNotFoundError, FileExistsError: as above.
    """
    check_exists(file)
    index = find_index(file)
    with wrong_option():
        kind = format_for(out, kind, from_shards=index is not None)
        if kind == "csr":
            check_folder(out)
    folder = file if file.is_dir() else file.parent
    if out.exists() and out.samefile(folder):
        raise WrongOption(f"--out {out} is the folder that is read. Choose another name.")
    is_taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if is_taken and not force:
        problem = "is the file that is read" if out.samefile(file) else "exists"
        raise FileExistsError(f"{out}: {problem}. Choose another name, or replace it with --force.")
    return Output(out, kind)


def check_source(output: Output, source: Source) -> None:
    """Raises where writing would destroy shards that are read, or mix with other weights."""
    index = source.shards
    if index is None:
        return
    if output.kind == SHARDS:
        check_new_folder(index, output.path)
    elif output.path.exists():
        for path in (index.path, *index.paths):
            if output.path.samefile(path):
                raise WrongOption(
                    f"--out {output.path} is one of the files that are read. Choose another name."
                )


def write(output: Output, source: Source, arrays: Iterable[tuple[str, np.ndarray]]) -> Written:
    """Writes the leaves of a source."""
    out, kind = output
    left_out = any_kind.write(out, kind, source.leaves, arrays, source.metadata, source.shards)
    files = [out]
    reason = ""
    if kind == "csr":
        files, reason = list(out.rglob("*.npz")), "is not 2-D"
    if kind == SHARDS and source.shards is not None:
        names = [source.shards.path.name, *(shard.name for shard in source.shards.shards)]
        files, reason = [out / name for name in names], "holds weights, but is not in the index"
    n_bytes = sum(path.stat().st_size for path in files)
    return Written(out, n_bytes, left_out, reason, source.left_out)
