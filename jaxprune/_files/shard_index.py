"""The index of a model in several safetensors files: which tensor is in which file (shard).

The index is a JSON file beside the shards, `*.index.json`. It is not trusted: sizes, names and
paths are checked before any shard is opened, and every shard must hold exactly the tensors that the
index says.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jaxprune._base.paths import listed
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._files import safetensors
from jaxprune._files.leaf_files import open_leaves
from jaxprune._files.leaves import Leaf

SUFFIX = ".index.json"
_MAX_BYTES = 100_000_000  # of an index, as of the header of a shard
_SERIES = re.compile(r"(.*)-\d+-of-\d+\.safetensors", re.DOTALL)


class Shard(NamedTuple):
    """One of the files.

    Attributes:
      name: its path in the folder, with `/` between parts.
      leaves: its tensors, in the order of the file.
      metadata: the strings of its header.
    """

    name: str
    leaves: tuple[Leaf, ...]
    metadata: Mapping[str, str]


class Index(NamedTuple):
    """What an index says, with the headers of its shards.

    Attributes:
      path: of the index.
      about: what it says about the model as a whole, such as `total_size`; None where the index
        has no such entry.
      names: of all tensors, in the order of the index.
      shards: in the order of their names.
    """

    path: Path
    about: dict[str, Any] | None
    names: tuple[str, ...]
    shards: tuple[Shard, ...]

    @property
    def folder(self) -> Path:
        """The folder that all files are in."""
        return self.path.parent

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tensors of all shards."""
        return tuple(leaf for shard in self.shards for leaf in shard.leaves)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The shards."""
        return tuple(self.folder / shard.name for shard in self.shards)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of all shards; where they differ, the first one wins."""
        merged: dict[str, str] = {}
        for shard in self.shards:
            merged = {**shard.metadata, **merged}
        return merged


def find_index(path: Path) -> Path | None:
    """The index at a path or in a folder; None where there is none.

    Raises:
      ValueError: the folder has several.

    Example:
      >>> find_index(Path("model.safetensors.index.json")).name
      'model.safetensors.index.json'
      >>> find_index(Path("model.safetensors"))
    """
    if not path.is_dir():
        return path if path.name.endswith(SUFFIX) else None
    names = sorted(p.name for p in path.iterdir() if p.name.endswith(SUFFIX) and p.is_file())
    names = [name for name in names if name.endswith(f".safetensors{SUFFIX}")] or names
    if len(names) > 1:
        raise ValueError(
            f"{path}: has several indices: {listed(names)}. Give the path of one of them."
        )
    return path / names[0] if names else None


def read_index(path: Path) -> Index:
    """Reads an index and the headers of its shards, and checks that they fit.

    Raises:
      ValueError: the index or a shard is damaged, or they do not fit; with the path.
      FileNotFoundError: the index or a shard does not exist.
    """
    entries = _read_json(path)
    file_of, about = entries.get("weight_map"), entries.get("metadata")
    if not isinstance(file_of, dict) or not file_of:
        raise ValueError(
            f"{path}: is not an index of shards: it must have an entry 'weight_map' that maps the "
            "name of each tensor to its file."
        )
    if about is not None and not isinstance(about, dict):
        raise ValueError(f"{path}: its entry 'metadata' must be a JSON object. Correct the index.")
    for name, file in file_of.items():
        safetensors.check_name(path, name)
        _check_file_name(path, name, file)
    names_of: dict[str, set[str]] = {}
    for name, file in file_of.items():
        names_of.setdefault(file, set()).add(name)
    _check_files(path, names_of)
    shards = tuple(_read_shard(path, file, names_of[file]) for file in sorted(names_of))
    index = Index(path, about, tuple(file_of), shards)
    _check_total(index)
    return index


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of limited size."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path.")
    n_bytes = path.stat().st_size
    if n_bytes > _MAX_BYTES or not path.is_file():
        raise ValueError(f"{path}: is no index of shards: it has {counted(n_bytes, 'byte')}.")
    try:
        entries = json.loads(path.read_bytes().decode(), object_pairs_hook=safetensors.unique_names)
        if not isinstance(entries, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: is no index of shards: it is not valid JSON ({error}). Download or save it "
            "again."
        ) from None
    return entries


def _check_file_name(path: Path, name: str, file: Any) -> None:
    """Raises unless the file of a tensor is a safetensors file inside the folder of the index."""
    if not isinstance(file, str) or not file.isprintable() or len(file) > 1024:
        raise ValueError(
            f"{path}: {name}: its file must be a name, got {safetensors.printable(file)}. Correct "
            "the index."
        )
    parts = PurePosixPath(file).parts
    is_inside = file == "/".join(parts) and ".." not in parts and not file.startswith("/")
    if not is_inside or "\\" in file or ":" in file:
        raise ValueError(
            f"{path}: {name}: its file {safetensors.printable(file)} is outside the folder of the "
            "index. Move the shards beside the index, and write their names alone."
        )
    if not file.endswith(".safetensors"):
        raise ValueError(
            f"{path}: {name}: its file {safetensors.printable(file)} is not a .safetensors file, "
            "and no other kind of shard can be read. Save the model with safetensors."
        )


def _check_files(path: Path, names_of: Mapping[str, set[str]]) -> None:
    """Raises where a shard is missing, or where one of the same series is not in the index."""
    folder = path.parent
    if missing := sorted(file for file in names_of if not (folder / file).is_file()):
        raise FileNotFoundError(
            f"{path}: {len(missing):,} of {counted(len(names_of), 'shard')} "
            f"{is_or_are(len(missing))} missing: {listed(missing)}. Download or copy "
            f"{'it' if len(missing) == 1 else 'them'} into the folder."
        )
    series = {match[1] for file in names_of if (match := _SERIES.fullmatch(file))}
    foreign = sorted(
        p.name
        for p in folder.iterdir()
        if (match := _SERIES.fullmatch(p.name)) and match[1] in series and p.name not in names_of
    )
    if foreign:
        names = listed(list(map(shown_file, foreign)))
        raise ValueError(
            f"{path}: does not name {names}, which have the names of its shards. They may belong "
            "to another model: move them away, or correct the index."
        )


def shown_file(name: str) -> str:
    r"""The name of a file for a terminal: without escape codes.

    Example:
      >>> shown_file("a.bin"), shown_file("\x1b[2J")
      ('a.bin', "'\\x1b[2J'")
    """
    return name if name.isprintable() else ascii(name)


def _read_shard(path: Path, file: str, names: set[str]) -> Shard:
    """The header of a shard; raises unless it has exactly these tensors."""
    with open_leaves(path.parent / file) as reader:
        if reader.about:
            raise ValueError(
                f"{path.parent / file}: is a file of jaxprune.save, which can't be a shard. Give "
                "it alone."
            )
        shard = Shard(file, reader.leaves, reader.metadata)
    held = {leaf.path for leaf in shard.leaves}
    if missing := sorted(names - held):
        raise ValueError(
            f"{path}: {file} does not hold {listed(missing)}, which the index says it does. The "
            "shard may belong to another model: download or save it again."
        )
    if extra := sorted(held - names):
        raise ValueError(
            f"{path}: {file} holds {listed(extra)}, which the index does not say. The shard may "
            "belong to another model, or a tensor is in two shards: download or save both again."
        )
    return shard


def n_bytes_in_file(leaf: Leaf) -> int:
    """The bytes of a leaf in a plain safetensors file.

    Example:
      >>> import numpy as np
      >>> n_bytes_in_file(Leaf("w", (4, 2), np.dtype("uint8"), n_bits=4))
      4
    """
    return leaf.size * leaf.n_bits // 8 if leaf.n_bits else leaf.n_bytes


def _check_total(index: Index) -> None:
    """Raises where the index says another size than the shards have."""
    total = sum(map(n_bytes_in_file, index.leaves))
    said = (index.about or {}).get("total_size", total)
    if said != total:
        raise ValueError(
            f"{index.path}: says that all tensors have {safetensors.printable(said)} bytes, but "
            f"the shards hold {total}. If the shards are complete, write {total} as its "
            "'total_size'."
        )
