"""The safetensors format: a header, and the tensors that it describes; plain or in a zstd frame.

Writes any list of tensors, and reads the header of a file. Nothing here knows about masks. A file
is not trusted: its names, dtypes, shapes, offsets and sizes are checked, against each other and
against limits, before memory is allocated for them. `stream.py` reads the bytes.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from jaxprune._base.plurals import counted
from jaxprune._files.atomic import atomic_file
from jaxprune._files.dtypes import CODES, code_in_saved, n_bytes_in_file
from jaxprune._files.extras import import_extra
from jaxprune._files.stream import DAMAGED, Stream

_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_MAX_RATIO = 100  # header to compressed file: parsing JSON takes twenty times the header's memory
_MAX_AXES = 64  # the limit of NumPy
_MAX_SIZE = 2**58  # entries, so that NumPy can count the bytes of every dtype
# Limits of names. Nested dicts take 200 bytes per key, and JAX flattens only a thousand levels.
_MAX_KEYS = 256
_MAX_NAME = 4096  # characters


class Tensor(NamedTuple):
    """A tensor as the header of a file describes it.

    Attributes:
      name: unique in the file.
      code: safetensors' name of the dtype, such as `F32`.
      shape: of the array.
    """

    name: str
    code: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return n_bytes_in_file(self.code, self.shape) or 0


class Header(NamedTuple):
    """The header of a file: the tensors in the order of their data, and the metadata."""

    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]


def tensor_for(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Tensor:
    """The header entry of an array in a file of `save`; some dtypes are stored as bytes.

    Example:
      >>> tensor_for("w", np.dtype("float32"), (2, 3)).code
      'F32'
      >>> tensor_for("z", np.dtype("complex128"), (2, 3))
      Tensor(name='z', code='U8', shape=(96,))
    """
    code = code_in_saved(dtype)
    if code is None:
        return Tensor(name, "U8", (math.prod(shape) * dtype.itemsize,))
    return Tensor(name, code, tuple(shape))


def raw_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array in row-major order, as a uint8 array of one axis.

    Example:
      >>> raw_bytes(np.array([1, 256], "<u2")).tolist()
      [1, 0, 0, 1]
    """
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


# Writing


def write(
    path: Path,
    tensors: Sequence[Tensor],
    buffers: Iterable[np.ndarray],
    metadata: Mapping[str, str],
    *,
    level: int | None = None,
) -> None:
    """Writes a file, one buffer at a time.

    Args:
      path: of the file.
      tensors: what the header describes.
      buffers: the data of each tensor, in the same order; consumed one by one.
      metadata: a dict of strings, stored in the header.
      level: zstd compression level; None writes a plain file.

    Raises:
      ValueError: a buffer does not have the size of its tensor, or a name can't be used.
    """
    header = _header_bytes(path, tensors, metadata)
    size = len(header) + sum(t.n_bytes for t in tensors)
    zstd = None if level is None else import_extra("zstandard")
    with atomic_file(path) as file:
        out: Any = file
        if zstd is not None:
            compressor = zstd.ZstdCompressor(level=level, write_checksum=True)
            out = compressor.stream_writer(file, size=size, closefd=False)
        out.write(header)
        for tensor, buffer in zip(tensors, buffers, strict=True):
            if buffer.nbytes != tensor.n_bytes:
                raise ValueError(
                    f"{tensor.name}: got {buffer.nbytes} bytes, but its shape and dtype take "
                    f"{tensor.n_bytes}."
                )
            out.write(raw_bytes(buffer).data)
        if zstd is not None:  # no `with`: it would end the frame after an error too, and hide it
            out.flush(zstd.FLUSH_FRAME)


def _header_bytes(path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in tensors:
        check_name(path, tensor.name)
        begin, end = end, end + tensor.n_bytes
        if tensor.name == "__metadata__":
            raise ValueError(
                f"{tensor.name}: safetensors files keep this name for their metadata, so no tensor "
                "can have it. Rename the leaf; for metadata, pass metadata={name: text}."
            )
        if tensor.name in header:
            raise ValueError(
                f"{tensor.name}: two tensors of the file would have this name. Rename a leaf."
            )
        header[tensor.name] = {
            "dtype": tensor.code,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


# Reading


def read_header(stream: Stream) -> Header:
    """Reads and checks the header of a file; afterwards the stream is where the data begins.

    Raises:
      ValueError: the file is not a safetensors file, or is damaged; begins with its path.
    """
    path = stream.path
    length, entries = _read_json(stream)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path}: its metadata must map names to strings, so it is damaged.")
    tensors = _in_order(path, {name: _tensor_at(path, name, e) for name, e in entries.items()})
    size = 8 + length + sum(tensor.n_bytes for tensor in tensors)
    if stream.n_bytes not in (None, size) or size > stream.max_bytes:
        n_bytes = min(stream.n_bytes or stream.max_bytes, stream.max_bytes)
        raise ValueError(
            f"{path}: holds at most {n_bytes} bytes, but its header says {size}, {DAMAGED}"
        )
    return Header(tensors, metadata)


def _read_json(stream: Stream) -> tuple[int, dict[str, Any]]:
    """The length of the header in bytes, and its JSON object."""
    path = stream.path
    if stream.n_bytes is not None and stream.n_bytes < 8:
        raise ValueError(
            f"{path}: is no safetensors file, as it has only "
            f"{counted(stream.n_bytes, 'byte')}. Copy or save it again."
        )
    length = int.from_bytes(stream.read(8).tobytes(), "little")
    limit = min(_MAX_HEADER, max(2**20, _MAX_RATIO * stream.n_file_bytes))
    if length > min(limit, (stream.n_bytes or _MAX_HEADER) - 8):
        raise ValueError(
            f"{path}: not a safetensors file, or a damaged one: its header would have {length} "
            "bytes. Give another file, or copy or save it again."
        )
    data = stream.read(length).tobytes()
    try:
        entries = json.loads(data.decode(), object_pairs_hook=unique_names)
        if not isinstance(entries, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a safetensors file, or a damaged one: its header is not valid JSON "
            f"({error})."
        ) from None
    return length, entries


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict, for `json.loads`; a `ValueError` if a name occurs twice."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _tensor_at(path: Path, name: str, entry: Any) -> tuple[int, int, Tensor]:
    """Where the data of a tensor begins and ends, and the tensor, from its entry in the header."""
    check_name(path, name)
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        is_valid = is_shape(shape) and _is_length(begin) and _is_length(end)
    except (TypeError, KeyError, ValueError):
        is_valid, code, shape, begin, end = False, None, [], 0, 0
    if not is_valid:
        raise ValueError(f"{path}: {name}: its entry in the header is damaged.")
    if not isinstance(code, str) or code not in CODES:
        raise ValueError(
            f"{path}: {name}: has dtype {printable(code)}, which can't be read. Known dtypes are "
            f"{', '.join(CODES)}."
        )
    tensor = Tensor(name, code, tuple(shape))
    needed = n_bytes_in_file(code, tensor.shape)
    if end - begin != needed:
        takes = "does not fill whole bytes" if needed is None else f"takes {needed}"
        raise ValueError(
            f"{path}: {name}: has {end - begin} bytes, but {code} of shape {tensor.shape} {takes}; "
            "the file is damaged."
        )
    return begin, end, tensor


def check_name(path: Any, name: str) -> None:
    """Raises unless a name is printable, with a limited number of characters and of keys.

    Escape codes in a name could take over a terminal.

    Example:
      >>> check_name("a.npz", "fc/kernel")
    """
    if not name.isprintable():
        raise ValueError(f"{path}: {printable(name)}: a name must be printable. Rename the leaf.")
    n_keys = name.count("/") + 1
    if n_keys > _MAX_KEYS or len(name) > _MAX_NAME:
        raise ValueError(
            f"{path}: {printable(name)}: the name has {n_keys} keys and {len(name)} characters, "
            f"over the limit of {_MAX_KEYS} or {_MAX_NAME}. Rename the leaf."
        )


def printable(value: Any) -> str:
    r"""A value from a file, for an error message: without control characters, and shortened.

    Example:
      >>> printable("F32"), printable("\x1b[2J"), printable([1] * 100)[-5:]
      ("'F32'", "'\\x1b[2J'", '1,...')
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def is_shape(shape: Any) -> TypeGuard[list[int]]:
    """Whether `shape` is a list of lengths that an array can have.

    Example:
      >>> is_shape([2, 3]), is_shape([-1]), is_shape([0, 2**40, 2**40])
      (True, False, False)
    """
    if not isinstance(shape, list) or len(shape) > _MAX_AXES or not all(map(_is_length, shape)):
        return False
    return math.prod(max(n, 1) for n in shape) <= _MAX_SIZE


def _is_length(n: Any) -> bool:
    return type(n) is int and 0 <= n < 2**62


def _in_order(path: Path, entries: Mapping[str, tuple[int, int, Tensor]]) -> tuple[Tensor, ...]:
    """The tensors in the order of their data, which must follow each other without a gap."""
    tensors = []
    previous_end = 0
    for begin, end, tensor in sorted(entries.values(), key=lambda entry: entry[:2]):
        if begin != previous_end:
            raise ValueError(
                f"{path}: {tensor.name}: its data begins at {begin}, but the tensor before it ends "
                f"at {previous_end}; the file is damaged."
            )
        previous_end = end
        tensors.append(tensor)
    return tuple(tensors)
