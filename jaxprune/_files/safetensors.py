"""A safetensors file, plain or inside one zstd frame: its header, and its tensors in turn.

Nothing here knows what a mask is. A file is taken for hostile until shown otherwise: names, dtypes,
shapes, offsets and sizes are checked, against each other and against a limit, before anything is
allocated for them. `stream.py` owns the bytes.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp
import numpy as np

from jaxprune._files.stream import CUT, Stream, extra, written

_MAX_HEADER = 100_000_000  # bytes; the safetensors library stops there, too
_MAX_RATIO = 100  # of a header to a file in zstd: its JSON takes twenty times as much memory
_MAX_AXES = 64  # as NumPy
_MAX_SIZE = 2**58  # entries, so that no dtype makes more bytes than NumPy can count
_CODES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
# What safetensors has no name for is stored as bytes, and named in the metadata.
_BYTES = ("complex128", "int2", "int4", "uint2", "uint4", "float4_e2m1fn", "float8_e3m4") + (
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
)
_NAMES = {name: code for code, name in _CODES.items()} | dict.fromkeys(_BYTES, "U8")


class Tensor(NamedTuple):
    """A tensor as the header of a file names it."""

    name: str
    code: str  # of its dtype, in safetensors' words
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """How long its data is."""
        return math.prod(self.shape) * code_dtype(self.code).itemsize


class Header(NamedTuple):
    """What stands before the data: the tensors in the order of their data, and the metadata."""

    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]


def dtype_of(name: Any) -> np.dtype | None:
    """The dtype of this name if a file may hold it, else None.

    Example:
      >>> dtype_of("bfloat16").itemsize, dtype_of("object")
      (2, None)
    """
    if not isinstance(name, str) or name not in _NAMES:
        return None
    try:
        return np.dtype(getattr(jnp, name, name))
    except TypeError:  # an ml_dtypes that is older than the dtype
        return None


def tensor_for(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Tensor:
    """The header entry of an array; as bytes where safetensors has no name for its dtype.

    Example:
      >>> tensor_for("w", np.dtype("float32"), (2, 3)).code
      'F32'
      >>> tensor_for("z", np.dtype("complex128"), (2, 3))
      Tensor(name='z', code='U8', shape=(96,))
    """
    if dtype.name in _BYTES:
        return Tensor(name, "U8", (math.prod(shape) * dtype.itemsize,))
    return Tensor(name, _NAMES[dtype.name], tuple(shape))


def code_dtype(code: str) -> np.dtype:
    """The dtype that a safetensors code stands for."""
    return np.dtype(getattr(jnp, _CODES[code], _CODES[code]))


# Writing


def write(
    path: Path,
    tensors: Sequence[Tensor],
    buffers: Iterable[np.ndarray],
    metadata: Mapping[str, str],
    *,
    level: int | None = None,
) -> None:
    """Writes a file, a buffer at a time.

    Args:
      path: of the file.
      tensors: the header.
      buffers: the data of each tensor, in the same order; they are taken one by one.
      metadata: strings by name.
      level: of zstd; None for a plain file.

    Raises:
      ValueError: a buffer of another length than its tensor.
    """
    head = _header_bytes(path, tensors, metadata)
    size = len(head) + sum(t.n_bytes for t in tensors)
    with written(path) as file, contextlib.ExitStack() as stack:
        out: Any = file
        if level is not None:
            zstd = extra("zstandard").ZstdCompressor(level=level, write_checksum=True)
            out = stack.enter_context(zstd.stream_writer(file, size=size, closefd=False))
        out.write(head)
        for tensor, buffer in zip(tensors, buffers, strict=True):
            if buffer.nbytes != tensor.n_bytes:
                raise ValueError(f"{tensor.name}: {buffer.nbytes} bytes, not {tensor.n_bytes}.")
            out.write(np.ascontiguousarray(buffer).reshape(-1).view(np.uint8).data)


def _header_bytes(path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in tensors:
        check_name(path, tensor.name)
        begin, end = end, end + tensor.n_bytes
        if tensor.name in header or tensor.name == "__metadata__":
            raise ValueError(
                f"{tensor.name}: two tensors of the file would have this name. Rename one."
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
    """The header of a file, checked; leaves the stream where the data begins.

    Raises:
      ValueError: anything that is not as it should be, with the path of the file.
    """
    where = stream.path
    if stream.n_bytes is not None and stream.n_bytes < 8:
        raise ValueError(f"{where}: {stream.n_bytes} bytes are no safetensors file.")
    length = int.from_bytes(stream.read(8).tobytes(), "little")
    most = min(_MAX_HEADER, max(2**20, _MAX_RATIO * stream.n_stored))
    if length > min(most, (stream.n_bytes or _MAX_HEADER) - 8):
        raise ValueError(
            f"{where}: not a safetensors file, or a damaged one: its header would have {length} "
            "bytes."
        )
    try:
        raw = json.loads(stream.read(length).tobytes().decode(), object_pairs_hook=no_twins)
        if not isinstance(raw, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        if str(error).startswith(f"{where}:"):
            raise
        raise ValueError(
            f"{where}: not a safetensors file, or a damaged one: its header is not JSON as it "
            f"should be ({error})."
        ) from None
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{where}: its metadata must be strings by name.")
    tensors = _in_order(where, {name: _entry(where, name, e) for name, e in raw.items()})
    size = 8 + length + sum(tensor.n_bytes for tensor in tensors)
    if stream.n_bytes not in (None, size):
        raise ValueError(f"{where}: {stream.n_bytes} bytes where its header says {size}, {CUT}")
    return Header(tensors, metadata)


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict; a `ValueError` where a name stands there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _entry(where: Path, name: str, entry: Any) -> tuple[int, int, Tensor]:
    """Where a tensor begins and ends, and what it is."""
    check_name(where, name)
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = is_shape(shape) and _is_length(begin) and _is_length(end)
    except (TypeError, KeyError, ValueError):
        sound, code, shape, begin, end = False, None, [], 0, 0
    if not sound:
        raise ValueError(f"{where}: {name}: its entry in the header is damaged.")
    if not isinstance(code, str) or code not in _CODES:
        raise ValueError(
            f"{where}: {name}: has dtype {shown(code)}, which can't be read; known are "
            f"{', '.join(_CODES)}."
        )
    tensor = Tensor(name, code, tuple(shape))
    if end - begin != tensor.n_bytes:
        raise ValueError(
            f"{where}: {name}: {end - begin} bytes for {code} of shape {tensor.shape}, which takes "
            f"{tensor.n_bytes}; the file is damaged."
        )
    return begin, end, tensor


def check_name(where: Any, name: str) -> None:
    """Raises unless a name can be shown: one with escape codes could take over a terminal.

    Example:
      >>> check_name("a.npz", "fc/kernel")
    """
    if not name.isprintable():
        raise ValueError(f"{where}: {shown(name)}: a name must be printable. Rename the leaf.")


def shown(value: Any) -> str:
    r"""What stands in a file, fit for a message: printable and not long.

    Example:
      >>> shown("F32"), shown("\x1b[2J"), shown([1] * 100)[-5:]
      ("'F32'", "'\\x1b[2J'", '1,...')
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def is_shape(shape: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of lengths that an array may have.

    Example:
      >>> is_shape([2, 3]), is_shape([-1]), is_shape([0, 2**40, 2**40])
      (True, False, False)
    """
    lengths = isinstance(shape, list) and len(shape) <= _MAX_AXES and all(map(_is_length, shape))
    return lengths and math.prod(max(n, 1) for n in shape) <= _MAX_SIZE


def _is_length(n: Any) -> bool:
    return type(n) is int and 0 <= n < 2**62


def _in_order(where: Path, entries: Mapping[str, tuple[int, int, Tensor]]) -> tuple[Tensor, ...]:
    """The tensors in the order of their data, which must follow each other without a gap."""
    end, found = 0, []
    for begin, stop, tensor in sorted(entries.values(), key=lambda entry: entry[:2]):
        if begin != end:
            raise ValueError(
                f"{where}: {tensor.name}: begins at {begin}, where the tensor before it ends at "
                f"{end}; the file is damaged."
            )
        end = stop
        found.append(tensor)
    return tuple(found)
