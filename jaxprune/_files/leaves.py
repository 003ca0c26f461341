"""The leaves of a file of `save`, packed and unpacked one by one.

A leaf with enough zeros becomes one bit per weight and the values that are not zero: two tensors of
the container, which `format.py` owns. All on the host, on bits: NaN payloads, subnormals and -0.0
come back as they were. The format is described in `docs/format.md`.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune._base.paths import listed, shown_path
from jaxprune._files import safetensors as container
from jaxprune._files.safetensors import Header, Tensor
from jaxprune._files.stream import Stream

VERSION = 1
_KEY = "jaxprune"  # of our entry in the metadata
_BITS, _VALUES = ":bits", ":values"
# Bits in place of zeros pay from 1 / (8 * itemsize) zeros on; below this they are not worth it.
_LEAST_SPARSITY = 0.05
_CHUNK = 2**18  # entries unpacked at a time; a multiple of 8


class Leaf(NamedTuple):
    """A leaf as a file holds it: packed, or dense where `n_kept` is None."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    n_kept: int | None = None

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """How much memory its array takes."""
        return self.size * self.dtype.itemsize


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
    """As `save`, of leaves that come one by one.

    Args:
      path: as for `save`.
      leaves: paths and arrays.
      structure: as for `save`.
      metadata: as for `save`.
      level: as for `save`.
      spool: a binary file to keep what is packed in until all is, so that one leaf is in memory; by
        default all of it stays there.
    """
    head = _checked_metadata(metadata)
    _check_level(level)
    tensors: list[Tensor] = []
    buffers: list[np.ndarray] = []
    about: dict[str, Any] = {}
    n_zero = size = 0
    for name, array in leaves:
        parts, n_kept = encoded(name, array)
        about[name] = {"shape": list(array.shape), "dtype": array.dtype.name}
        about[name] |= {"packed": len(parts) == 2}
        n_zero, size = n_zero + array.size - n_kept, size + array.size
        for tensor, data in parts:
            tensors.append(tensor)
            if spool is None:
                buffers.append(data)
            else:
                spool.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
    ours = {"version": VERSION, "sparsity": round(n_zero / max(size, 1), 6)}
    ours |= {} if structure is None else {"structure": str(structure)}
    head[_KEY] = json.dumps(ours | {"leaves": about}, separators=(",", ":"), ensure_ascii=False)
    found = buffers if spool is None else _unspooled(spool, tensors)
    container.write(Path(path), tensors, found, head, level=level)


def _unspooled(spool: Any, tensors: Sequence[Tensor]) -> Iterator[np.ndarray]:
    """What was spooled, a tensor at a time."""
    spool.seek(0)
    for tensor in tensors:
        yield np.frombuffer(spool.read(tensor.n_bytes), np.uint8)


def _checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    head = dict(metadata or {})
    for name, value in head.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"metadata must be strings by name, got {name!r}: {value!r}. Write "
                f"{str(name)!r}: {str(value)!r}."
            )
    if _KEY in head:
        raise ValueError(f"metadata: the name {_KEY!r} is taken. Choose another.")
    return head


def _check_level(level: Any) -> None:
    if level is not None and (type(level) is not int or not 1 <= level <= 22):
        raise ValueError(f"level must be 1 to 22, or None for no zstd, got {level!r}.")


def is_stored(array: np.ndarray) -> np.ndarray:
    """Where an array has any bit set: what differs from +0.0, in the shape of the array."""
    array = np.ascontiguousarray(array)
    if array.dtype.itemsize == 16:
        return (array.view(np.uint64).reshape(*array.shape, 2) != 0).any(-1)
    return as_bits(array) != 0


def as_bits(array: np.ndarray) -> np.ndarray:
    """An array of at most 8 bytes per entry, contiguous, seen as unsigned integers."""
    return array.view(unsigned_of(array.dtype))


def unsigned_of(dtype: np.dtype) -> Any:
    """The unsigned integers as wide as a dtype of at most 8 bytes."""
    return {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[dtype.itemsize]


def encoded(path: str, array: np.ndarray) -> tuple[list[tuple[Tensor, np.ndarray]], int]:
    """The tensors of a leaf, and how many of its entries are not +0.0.

    Example:
      >>> tensors, n_stored = encoded("w", np.eye(10))
      >>> [tensor.name for tensor, _ in tensors], n_stored
      (['w:bits', 'w:values'], 10)
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype == bool:
        flat = flat.view(np.uint8) != 0  # True is 1, whatever else the byte was
    stored = is_stored(flat)
    n_kept = int(np.count_nonzero(stored))
    n_dropped = flat.size - n_kept
    pays = n_dropped * flat.dtype.itemsize > -(-flat.size // 8)
    if not pays or n_dropped < _LEAST_SPARSITY * flat.size:
        return [(container.tensor_for(path, array.dtype, array.shape), flat)], n_kept
    bits = np.packbits(stored, bitorder="little")
    values = flat[stored] if flat.dtype.itemsize == 16 else as_bits(flat)[stored]
    return [
        (Tensor(path + _BITS, "U8", bits.shape), bits),
        (container.tensor_for(path + _VALUES, array.dtype, (n_kept,)), values),
    ], n_kept


# Reading


class SavedParams:
    """A file that is open: its leaves, and their arrays one by one, in the order of the file.

    Attributes:
      leaves: what is in it.
      metadata: strings by name, without ours.
      about: what `save` noted: `version`, `sparsity`, `structure`; empty for other files.
    """

    def __init__(self, stream: Stream, max_bytes: int | None = None):
        self._stream = stream
        header = container.read_header(stream)
        self.about, self.leaves = _described(stream.path, header)
        self.metadata = {name: text for name, text in header.metadata.items() if name != _KEY}
        sizes = [leaf.n_bytes for leaf in self.leaves]
        most, needed = memory_bytes(), max(sizes, default=0)
        if max_bytes is not None:
            most, needed = max_bytes, sum(sizes)
        if needed > most:
            raise ValueError(
                f"{stream.path}: holds {needed:,} bytes of params, over the limit of {most:,}. "
                f"If you trust the file, pass max_bytes={needed} to jaxprune.load."
            )

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """The path and the array of each leaf; to be used once.

        Raises:
          ValueError: the file is damaged, with its path and that of the leaf.
        """
        for leaf in self.leaves:
            yield leaf.path, self._next(leaf)
        self._stream.finish()

    def _next(self, leaf: Leaf) -> np.ndarray:
        where = f"{self._stream.path}: {shown_path(leaf.path)}"
        bits = None
        if leaf.n_kept is not None:
            bits = self._stream.read(-(-leaf.size // 8))
            _check_bits(where, bits, leaf)
        n_entries = leaf.size if leaf.n_kept is None else leaf.n_kept
        raw = self._stream.read(n_entries * leaf.dtype.itemsize)
        if leaf.dtype == bool and raw.max(initial=0) > 1:
            raise ValueError(f"{where}: has bools that are neither 0 nor 1; the file is damaged.")
        if bits is None:
            return raw.view(leaf.dtype).reshape(leaf.shape)
        try:
            return _decoded(leaf, bits, raw)
        except MemoryError:
            raise ValueError(f"{where}: {leaf.n_bytes:,} bytes do not fit into memory.") from None


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], max_bytes: int | None = None) -> Iterator[SavedParams]:
    """A file of `save`, or any safetensors file, zstd undone, to be read a leaf at a time.

    Args:
      path: of the file.
      max_bytes: most bytes that all leaves may take; by default no leaf may take more than the
        memory of this machine.

    Raises:
      ValueError: it is not one, or damaged, or too large.
      FileNotFoundError: there is none.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_leaves(f"{folder}/a", [("w", np.zeros(3))], level=None)
      ...     with opened(f"{folder}/a") as file:
      ...         file.leaves[0].shape, [array.tolist() for _, array in file.arrays()]
      ((3,), [[0.0, 0.0, 0.0]])
    """
    with Path(path).open("rb") as file:
        yield SavedParams(Stream(Path(path), file), max_bytes)


def memory_bytes() -> int:
    """Memory of this machine; 64 GiB where it does not say."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**36


def _described(where: Path, header: Header) -> tuple[dict[str, Any], tuple[Leaf, ...]]:
    """What `save` noted, and the leaves in the order of the file."""
    text = header.metadata.get(_KEY)
    if text is None:
        return {}, tuple(
            Leaf(tensor.name, tensor.shape, container.code_dtype(tensor.code))
            for tensor in header.tensors
        )
    try:
        about = json.loads(text, object_pairs_hook=container.no_twins)
        version, noted = about["version"], about.pop("leaves")
        is_packed = {path: entry["packed"] for path, entry in noted.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{where}: what it says of its leaves is damaged.") from None
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"{where}: has version {container.shown(version)} of the format, and this jaxprune "
            f"reads {VERSION}. Update jaxprune."
        )
    for path in noted:
        container.check_name(where, path)
    queue = list(reversed(header.tensors))
    found = []
    while queue:
        tensor = queue.pop()
        if is_packed.get(tensor.name) is False:
            path, values = tensor.name, None
        else:
            path, values = tensor.name.removesuffix(_BITS), queue.pop() if queue else None
        found.append(_leaf(f"{where}: {shown_path(path)}", path, noted.pop(path, None)))
        _check_tensors(f"{where}: {shown_path(path)}", found[-1], tensor, values)
        if values is not None:
            n_kept = values.n_bytes // found[-1].dtype.itemsize
            found[-1] = found[-1]._replace(n_kept=n_kept)
    if noted:
        raise ValueError(f"{where}: has no data of {listed(list(noted))}; it is damaged.")
    return about, tuple(found)


def _leaf(where: str, path: str, entry: Any) -> Leaf:
    """A leaf as the metadata describe it."""
    shape = entry.get("shape") if isinstance(entry, dict) else None
    dtype = container.dtype_of(entry.get("dtype")) if isinstance(entry, dict) else None
    if not container.is_shape(shape):
        raise ValueError(f"{where}: what the file says of it is damaged.")
    if dtype is None:
        raise ValueError(
            f"{where}: has dtype {container.shown(entry.get('dtype'))}, which this jaxprune can't "
            "read."
        )
    return Leaf(path, tuple(shape), dtype)


def _check_tensors(where: str, leaf: Leaf, tensor: Tensor, values: Tensor | None) -> None:
    """Raises unless these are the tensors of the leaf, of the sizes that it must have."""
    if values is None:
        sound = tensor == container.tensor_for(leaf.path, leaf.dtype, leaf.shape)
    else:
        n_kept = values.n_bytes // leaf.dtype.itemsize
        sound = (
            tensor == Tensor(leaf.path + _BITS, "U8", (-(-leaf.size // 8),))
            and values == container.tensor_for(leaf.path + _VALUES, leaf.dtype, (n_kept,))
            and n_kept <= leaf.size
        )
    if not sound:
        raise ValueError(f"{where}: its tensors are not those of {leaf.dtype} of {leaf.shape}.")


def _check_bits(where: str, bits: np.ndarray, leaf: Leaf) -> None:
    n_set = int(np.bitwise_count(bits).sum(dtype=np.int64))
    tail = leaf.size % 8
    if n_set != leaf.n_kept or (tail and int(bits[-1]) >> tail):
        raise ValueError(
            f"{where}: {n_set} bits are set for {leaf.n_kept} values; the file is damaged."
        )


def _decoded(leaf: Leaf, bits: np.ndarray, values: np.ndarray) -> np.ndarray:
    unsigned = leaf.dtype if leaf.dtype.itemsize == 16 else unsigned_of(leaf.dtype)
    flat, values = np.zeros(leaf.size, unsigned), values.view(unsigned)
    done = 0
    for start in range(0, leaf.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        flags = np.unpackbits(bits[start // 8 :], count=chunk.size, bitorder="little")
        # By index is two to three times faster than by flags, and in chunks takes little memory.
        places = np.flatnonzero(flags.view(bool))
        chunk[places] = values[done : done + places.size]
        done += places.size
    return flat.view(leaf.dtype).reshape(leaf.shape)
