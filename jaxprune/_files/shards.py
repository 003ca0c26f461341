"""Writes models in several safetensors files, one tensor at a time.

The result is a folder like the one that was read: shards of the same names, an index of its own,
and copies of the other files, such as the configuration and the tokenizer.
"""

import itertools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxprune._base.paths import listed
from jaxprune._files.atomic import atomic_file, atomic_folder, errors_of
from jaxprune._files.interchange import write_safetensors
from jaxprune._files.shard_index import SUFFIX, Index, n_bytes_in_file, shown_file

# Files that may hold weights. Beside pruned shards they would be mistaken for pruned weights.
_WEIGHTS = (
    ".safetensors",
    ".zst",
    ".npz",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".onnx_data",
    SUFFIX,
)


def check_new_folder(index: Index, out: Path) -> None:
    """Raises where the new folder would mix with other weights.

    Raises:
      NotADirectoryError: it is a file.
      FileExistsError: it holds weights that would not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(
            f"{out}: is a file, but shards are written as a folder. Choose another name."
        )
    new = {shard.name for shard in index.shards} | {index.path.name}
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if others := [name for name in names if _holds_weights(name) and name not in new]:
        shown = listed(list(map(shown_file, others)))
        raise FileExistsError(
            f"{out}: has other weights, which would not be replaced: {shown}. Choose another "
            "folder, or delete them."
        )


def write_shards(out: Path, index: Index, arrays: Iterable[tuple[str, np.ndarray]]) -> list[str]:
    """Writes all shards, an index, and copies of the other files.

    No file appears in the folder before all are complete.

    Args:
      out: the folder, created if it does not exist.
      index: the index of the model that was read, which names the shards to write.
      arrays: the paths and arrays of all leaves, in the order of `index.leaves`.

    Returns:
      The files that were not copied because they hold other weights.

    Raises:
      OSError: a file can't be written; then none is.
    """
    copied, left_out = _other_files(index, out)
    each = iter(arrays)
    with atomic_folder(out) as folder:
        for shard in index.shards:
            path = folder / shard.name
            path.parent.mkdir(parents=True, exist_ok=True)
            values = (array for _, array in itertools.islice(each, len(shard.leaves)))
            write_safetensors(path, shard.leaves, values, shard.metadata)
        with atomic_file(folder / index.path.name) as file:
            file.write(_index_text(index).encode())
        for name in copied:
            _copy(index.folder / name, folder / name)
        next(each, None)  # so that the source checks its end
    return list(map(shown_file, left_out))


def _index_text(index: Index) -> str:
    """The text of the index in the new folder."""
    file_of = {leaf.path: shard.name for shard in index.shards for leaf in shard.leaves}
    entries: dict[str, object] = {}
    if index.about is not None:
        entries["metadata"] = dict(index.about)
        if "total_size" in index.about:
            total = sum(map(n_bytes_in_file, index.leaves))
            entries["metadata"] = {**index.about, "total_size": total}
    entries["weight_map"] = {name: file_of[name] for name in index.names}
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def _holds_weights(name: str) -> bool:
    return name.endswith(_WEIGHTS)


def _other_files(index: Index, out: Path) -> tuple[list[str], list[str]]:
    """The files beside the shards: those to copy, and those that hold other weights.

    Hidden files and folders, such as `.git`, are skipped, and so is the new folder.
    """
    copied, left_out = [], []
    own = {shard.name for shard in index.shards} | {index.path.name}
    for above, folders, files in os.walk(index.folder):
        folder = Path(above)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (folder / name).resolve() != out.resolve()
        )
        for file in sorted(files):
            name = (folder / file).relative_to(index.folder).as_posix()
            if file.startswith(".") or name in own or not (folder / file).is_file():
                continue
            (left_out if _holds_weights(file) else copied).append(name)
    return copied, left_out


def _copy(path: Path, to: Path) -> None:
    """Copies a file into a folder that may not exist yet."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with errors_of(path):
        file = path.open("rb")
    with file, atomic_file(to) as new:
        shutil.copyfileobj(file, new, 2**20)
