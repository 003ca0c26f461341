"""The file that `save` writes, written and read one leaf at a time.

It is a safetensors file with an entry `jaxprune` in its metadata, which says how each leaf is
stored. Any other safetensors file is read as well, each tensor as a dense leaf. `leaves.py` encodes
and decodes the leaves, `safetensors.py` owns the header, and `docs/format.md` describes the format.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune._base.arguments import is_int, shown
from jaxprune._base.paths import listed, shown_path
from jaxprune._base.plurals import counted, is_or_are
from jaxprune._files import dtypes, safetensors
from jaxprune._files.leaves import (
    BITS,
    Leaf,
    bytes_for_bits,
    decode_leaf,
    encode_leaf,
    sparse_tensors,
)
from jaxprune._files.other_formats import check_format, check_no_zip
from jaxprune._files.safetensors import Header, Tensor
from jaxprune._files.stream import Stream

VERSION = 1
_ENTRY = "jaxprune"  # name of our entry in the metadata

# Writing


def save_leaves(
    path: str | os.PathLike[str],
    leaves: Iterable[tuple[str, np.ndarray]],
    *,
    structure: Any = None,
    metadata: Mapping[str, str] | None = None,
    level: int | None = 3,
    spool: Any = None,
) -> None:
    """Writes leaves that arrive one by one, as `save` does.

    Args:
      path: as for `save`.
      leaves: paths and arrays.
      structure: as for `save`.
      metadata: as for `save`.
      level: as for `save`.
      spool: a temporary binary file that holds the encoded leaves until the last one has arrived,
        so that only one leaf is in memory; by default all of them stay in memory.
    """
    metadata = checked_metadata(metadata)
    _check_level(level)
    tensors: list[Tensor] = []
    buffers: list[np.ndarray] = []
    entries: dict[str, Any] = {}
    n_stored = size = 0
    for leaf_path, array in leaves:
        leaf = encode_leaf(leaf_path, array)
        shape, dtype = list(array.shape), array.dtype.name
        entries[leaf_path] = {"shape": shape, "dtype": dtype, "packed": leaf.is_sparse}
        n_stored, size = n_stored + leaf.n_stored, size + array.size
        tensors += leaf.tensors
        if spool is None:
            buffers += leaf.buffers
        else:
            for buffer in leaf.buffers:
                spool.write(safetensors.raw_bytes(buffer).data)
    metadata[_ENTRY] = _description(entries, (size - n_stored) / max(size, 1), structure)
    data = buffers if spool is None else _read_spool(spool, tensors)
    safetensors.write(Path(path), tensors, data, metadata, level=level)


def _description(entries: Mapping[str, Any], sparsity: float, structure: Any) -> str:
    """Our entry of the metadata."""
    about: dict[str, Any] = {"version": VERSION, "sparsity": round(sparsity, 6)}
    if structure is not None:
        about["structure"] = str(structure)
    about["leaves"] = dict(entries)
    return json.dumps(about, separators=(",", ":"), ensure_ascii=False)


def _read_spool(spool: Any, tensors: Sequence[Tensor]) -> Iterator[np.ndarray]:
    """The bytes of each tensor, from the beginning of the temporary file."""
    spool.seek(0)
    for tensor in tensors:
        yield np.frombuffer(spool.read(tensor.n_bytes), np.uint8)


def checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The metadata of a user as a dict.

    Raises:
      TypeError: it does not map strings to strings.
      ValueError: it has the name under which `save` describes the leaves.

    Example:
      >>> checked_metadata({"format": "pt"}), checked_metadata(None)
      ({'format': 'pt'}, {})
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(
            f"metadata must map strings to strings, got {shown(metadata)}. Pass a dict, such as "
            "{'step': '9000'}."
        )
    strings = dict(metadata or {})
    for name, value in strings.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"metadata must map strings to strings, got {name!r}: {value!r}. Write "
                f"{str(name)!r}: {str(value)!r}."
            )
    if _ENTRY in strings:
        raise ValueError(f"metadata: the name {_ENTRY!r} is reserved. Choose another name.")
    return strings


def _check_level(level: Any) -> None:
    if level is not None and (not is_int(level) or not 1 <= level <= 22):
        raise ValueError(
            f"level must be 1 to 22, or None for no zstd, got {shown(level)}. The default is 3."
        )


# Reading


class LeafReader:
    """An open file: its leaves, and their arrays one by one, in the order of the file.

    Attributes:
      leaves: of the file, without their data.
      metadata: strings by name, without the entry of jaxprune.
      about: `version`, `sparsity` and `structure` as `save` wrote them; empty for other files.
    """

    def __init__(self, stream: Stream, max_bytes: int | None = None):
        self._stream = stream
        header = safetensors.read_header(stream)
        self.about, self.leaves = _read_leaves(stream.path, header)
        self.metadata = {name: text for name, text in header.metadata.items() if name != _ENTRY}
        check_memory(stream.path, self.leaves, max_bytes)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the array of each leaf; can be iterated once.

        Raises:
          ValueError: the file is damaged; names the file and the leaf.
        """
        for leaf in self.leaves:
            yield leaf.path, self._read_array(leaf)
        self._stream.finish()

    def _read_array(self, leaf: Leaf) -> np.ndarray:
        """The array of the leaf whose data comes next in the stream."""
        where = _place(self._stream.path, leaf.path)
        bits = None
        if leaf.n_stored is not None:
            bits = self._stream.read(bytes_for_bits(leaf.size))
            _check_bits(where, bits, leaf)
        n_values = leaf.size if leaf.n_stored is None else leaf.n_stored
        n_bits = leaf.n_bits or 8 * leaf.dtype.itemsize
        values = self._stream.read(n_values * n_bits // 8)
        if leaf.dtype == bool and values.max(initial=0) > 1:
            raise ValueError(f"{where}: has bools that are neither 0 nor 1; the file is damaged.")
        try:
            if bits is not None:
                return decode_leaf(leaf, bits, values)
            if leaf.n_bits:
                values = dtypes.separate_entries(values, leaf.n_bits)
        except MemoryError:
            raise ValueError(f"{where}: {leaf.n_bytes:,} bytes do not fit into memory.") from None
        return values.view(leaf.dtype).reshape(leaf.shape)


def check_memory(path: Path, leaves: Sequence[Leaf], max_bytes: int | None) -> None:
    """Raises where the params need too much memory.

    Args:
      path: of the file, for the error.
      leaves: of the file.
      max_bytes: most bytes that all leaves together may take; by default each leaf alone must fit
        into the memory of this machine.

    Example:
      >>> check_memory(Path("a"), [Leaf("w", (4,), np.dtype("float32"))], 15)
      Traceback (most recent call last):
      ...
      ValueError: a: holds 16 bytes of params, over the limit of 15. ...
    """
    sizes = [leaf.n_bytes for leaf in leaves]
    if max_bytes is None:
        limit, needed = memory_bytes(), max(sizes, default=0)
    else:
        limit, needed = max_bytes, sum(sizes)
    if needed > limit:
        raise ValueError(
            f"{path}: holds {needed:,} bytes of params, over the limit of {limit:,}. If you trust "
            f"it, pass max_bytes={needed} to jaxprune.load."
        )


@contextlib.contextmanager
def open_leaves(path: str | os.PathLike[str], max_bytes: int | None = None) -> Iterator[LeafReader]:
    """Opens a file of `save`, or any safetensors file in zstd or plain, to read it by leaves.

    Args:
      path: of the file.
      max_bytes: most bytes that all leaves together may take in memory; by default each leaf alone
        must fit into the memory of this machine.

    Raises:
      ValueError: not a safetensors file, or damaged, or too large.
      FileNotFoundError: the file does not exist.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_leaves(f"{folder}/a", [("w", np.zeros(3))], level=None)
      ...     with open_leaves(f"{folder}/a") as reader:
      ...         reader.leaves[0].shape, [array.tolist() for _, array in reader.arrays()]
      ((3,), [[0.0, 0.0, 0.0]])
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path.")
    check_format(path)
    check_no_zip(path)
    with path.open("rb") as file:
        yield LeafReader(Stream(path, file), max_bytes)


def memory_bytes() -> int:
    """Memory of this machine; 64 GiB if the system does not say."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**36


class _Entries(NamedTuple):
    """Our entry of the metadata, with the leaves apart from the rest.

    Attributes:
      about: all but the leaves.
      leaves: shape and dtype by path, not checked yet.
      is_sparse: by path, not checked yet.
    """

    about: dict[str, Any]
    leaves: dict[str, Any]
    is_sparse: dict[str, Any]


def _read_leaves(path: Path, header: Header) -> tuple[dict[str, Any], tuple[Leaf, ...]]:
    """What `save` wrote about the file, and its leaves in the order of their data."""
    text = header.metadata.get(_ENTRY)
    if text is None:
        return {}, tuple(map(_plain_leaf, header.tensors))
    entries = _read_entries(path, text)
    unused = dict(entries.leaves)
    leaves = []
    tensors = iter(header.tensors)
    for tensor in tensors:
        if entries.is_sparse.get(tensor.name) is False:
            name, values = tensor.name, None
        else:  # bits, with the values right behind them
            name, values = tensor.name.removesuffix(BITS), next(tensors, None)
        where = _place(path, name)
        leaf = _read_leaf(where, name, unused.pop(name, None))
        leaves.append(_with_tensors(where, leaf, tensor, values))
    if unused:
        raise ValueError(f"{path}: has no data for {listed(list(unused))}; the file is damaged.")
    return entries.about, tuple(leaves)


def _plain_leaf(tensor: Tensor) -> Leaf:
    """The leaf of a tensor in a plain safetensors file."""
    n_bits = dtypes.n_bits(tensor.code)
    dtype = dtypes.code_dtype(tensor.code)
    return Leaf(tensor.name, tensor.shape, dtype, n_bits=n_bits if n_bits < 8 else 0)


def _read_entries(path: Path, text: str) -> _Entries:
    """Parses our entry of the metadata."""
    try:
        about = json.loads(text, object_pairs_hook=safetensors.unique_names)
        version, leaves = about["version"], about.pop("leaves")
        is_sparse = {leaf_path: entry["packed"] for leaf_path, entry in leaves.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{path}: its description of the leaves is damaged.") from None
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"{path}: has version {safetensors.printable(version)} of the format, but this "
            f"jaxprune reads version {VERSION}. Update jaxprune."
        )
    for leaf_path in leaves:
        safetensors.check_name(path, leaf_path)
    return _Entries(about, leaves, is_sparse)


def _read_leaf(where: str, path: str, entry: Any) -> Leaf:
    """A leaf from its entry in the metadata; not yet whether it is dense or sparse."""
    shape = entry.get("shape") if isinstance(entry, dict) else None
    dtype = dtypes.dtype_of(entry.get("dtype")) if isinstance(entry, dict) else None
    if not safetensors.is_shape(shape):
        raise ValueError(f"{where}: its description in the file is damaged.")
    if dtype is None:
        raise ValueError(
            f"{where}: has dtype {safetensors.printable(entry.get('dtype'))}, which this jaxprune "
            "can't read."
        )
    return Leaf(path, tuple(shape), dtype)


def _with_tensors(where: str, leaf: Leaf, tensor: Tensor, values: Tensor | None) -> Leaf:
    """The leaf, dense or sparse; raises unless these are exactly its tensors."""
    if values is None:
        is_valid = tensor == safetensors.tensor_for(leaf.path, leaf.dtype, leaf.shape)
    else:
        leaf = leaf._replace(n_stored=values.n_bytes // leaf.dtype.itemsize)
        is_valid = (tensor, values) == sparse_tensors(leaf) and (leaf.n_stored or 0) <= leaf.size
    if not is_valid:
        raise ValueError(
            f"{where}: its tensors do not fit {leaf.dtype} of shape {leaf.shape}; the file is "
            "damaged."
        )
    return leaf


def _check_bits(where: str, bits: np.ndarray, leaf: Leaf) -> None:
    n_set = int(np.bitwise_count(bits).sum(dtype=np.int64))
    tail = leaf.size % 8
    if n_set != leaf.n_stored or (tail and int(bits[-1]) >> tail):
        values = "value" if leaf.n_stored == 1 else "values"
        raise ValueError(
            f"{where}: {counted(n_set, 'bit')} {is_or_are(n_set)} set for {leaf.n_stored} "
            f"{values}; the file is damaged."
        )


def _place(file: Path, path: str) -> str:
    """The file and the leaf, as error messages begin."""
    return f"{file}: {shown_path(path)}"
