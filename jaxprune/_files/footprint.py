"""How many bytes an array would take in each format, and the structure of its zeros.

Nothing is written: sizes are counted, or the compressed bytes are thrown away.
"""

import math
import zlib
from collections.abc import Iterator

import numpy as np

from jaxprune._files.extras import import_extra
from jaxprune._files.leaves import encode_leaf, is_stored
from jaxprune._files.safetensors import raw_bytes

# In the order of tables. The slow formats compress.
QUICK = ("dense", "CSR int32", "delta uint8", "bitmask", "bound")
SLOW = ("gzip", "jaxprune")
_CHUNK_BYTES = 2**22


def sizes(array: np.ndarray, formats: tuple[str, ...] = QUICK + SLOW) -> dict[str, int]:
    """Bytes by format.

    - `dense`: the array itself.
    - `gzip`: the array compressed as `numpy.savez_compressed` does.
    - `CSR int32`: the nonzero values, a column index of 4 bytes for each, and row pointers.
    - `delta uint8`: the nonzero values, and for each the distance from the one before in one byte;
      longer distances take an additional zero for every 256 entries.
    - `bitmask`: the nonzero values, and one bit per entry.
    - `jaxprune`: the file of `save`.
    - `bound`: the nonzero values, and the entropy of their positions. Not a format: with the values
      uncompressed, none is smaller, unless the positions have a pattern such as blocks.

    Args:
      array: any array that `save` accepts.
      formats: which of these.

    Example:
      >>> sizes(np.eye(100, dtype=np.float32), ("dense", "CSR int32", "bitmask"))
      {'dense': 40000, 'CSR int32': 1204, 'bitmask': 1650}
    """
    n, width = array.size, array.dtype.itemsize
    stored = is_stored(array).reshape(-1)
    n_stored = int(np.count_nonzero(stored))
    n_values_bytes = n_stored * width
    n_rows = n // array.shape[-1] if array.ndim and n else 1
    count = {
        "dense": lambda: n * width,
        "gzip": lambda: _gzip_size(array),
        "CSR int32": lambda: 4 * (n_rows + 1) + 4 * n_stored + n_values_bytes,
        "delta uint8": lambda: (n_stored + _n_fillers(stored)) * (1 + width),
        "bitmask": lambda: -(-n // 8) + n_values_bytes,
        "jaxprune": lambda: _zstd_size(array),
        "bound": lambda: n_values_bytes + math.ceil(n * _entropy(n_stored / max(n, 1)) / 8),
    }
    return {name: count[name]() for name in formats}


def _entropy(density: float) -> float:
    """Bits per entry that it takes to say which entries are stored."""
    return -sum(p * math.log2(p) for p in (density, 1 - density) if p > 0)


def _n_fillers(stored: np.ndarray) -> int:
    """How many additional zeros delta coding stores, one for every 256 skipped entries."""
    positions = np.flatnonzero(stored)
    gaps = np.diff(positions, prepend=-1) - 1
    return int(np.sum(gaps // 256))


def _gzip_size(array: np.ndarray) -> int:
    compressor = zlib.compressobj(6)
    n_bytes = sum(len(compressor.compress(chunk)) for chunk in _chunks(array))
    return n_bytes + len(compressor.flush())


def _zstd_size(array: np.ndarray) -> int:
    compressor = import_extra("zstandard").ZstdCompressor(level=3).compressobj()
    chunks = (chunk for buffer in encode_leaf("", array).buffers for chunk in _chunks(buffer))
    n_bytes = sum(len(compressor.compress(chunk)) for chunk in chunks)
    return n_bytes + len(compressor.flush())


def _chunks(array: np.ndarray) -> Iterator[memoryview]:
    raw = raw_bytes(array)
    return (raw[i : i + _CHUNK_BYTES].data for i in range(0, raw.size, _CHUNK_BYTES))


def structure_of(kept: np.ndarray) -> str:
    """The structure of a mask, in words.

    One of: whole channels are dropped; as in `2 of 4`, every run of m neighbours keeps equally
    many; whole blocks are dropped; no run of 4 keeps more than 2, as hardware for 2:4 needs it. The
    first that holds for every entry is returned, and only if the mask has at least eight runs or
    blocks.

    Args:
      kept: True where a weight is not zero.

    Example:
      >>> structure_of(np.arange(64).reshape(16, 4) % 2 == 0)
      'channels, axis 1'
      >>> structure_of(np.tile([[1, 0], [0, 1], [1, 0], [0, 1]], (8, 8)) == 1)
      '2 of 4, axis 0'
      >>> structure_of(np.repeat(np.arange(64).reshape(8, 8) % 5 == 0, 16, axis=1))
      'blocks, 1x16'
    """
    n_kept = int(np.count_nonzero(kept))
    if n_kept in (0, kept.size):
        return "all zero" if kept.size and not n_kept else "dense"
    if kept.ndim < 2:
        return "unstructured"
    exact = _channels(kept, n_kept) or _n_of_m(kept) or _blocks(kept)
    return exact or _at_most_2_of_4(kept) or "unstructured"


def _channels(kept: np.ndarray, n_kept: int) -> str:
    for axis in range(kept.ndim):
        channel_kept = kept.any(axis=tuple(i for i in range(kept.ndim) if i != axis))
        if int(channel_kept.sum()) * (kept.size // kept.shape[axis]) == n_kept:
            return f"channels, axis {axis}"
    return ""


def _n_of_m(kept: np.ndarray) -> str:
    for axis, length in enumerate(kept.shape):
        for m in (4, 8, 16, 32):
            if length % m or kept.size < 8 * m:
                continue
            counts = _counts(kept, axis, m)
            if 0 < counts[0] < m and (counts == counts[0]).all():
                return f"{counts[0]} of {m}, axis {axis}"
    return ""


def _counts(kept: np.ndarray, axis: int, m: int) -> np.ndarray:
    """How many of every m neighbours along an axis are kept."""
    return np.moveaxis(kept, axis, -1).reshape(-1, m).sum(1, dtype=np.int32)


def _at_most_2_of_4(kept: np.ndarray) -> str:
    for axis, length in enumerate(kept.shape):
        if length % 4 == 0 and kept.size >= 32 and _counts(kept, axis, 4).max() <= 2:
            return f"at most 2 of 4, axis {axis}"
    return ""


def _blocks(kept: np.ndarray) -> str:
    matrix = kept.reshape(-1, kept.shape[-1])
    for n in (64, 32, 16, 8, 4):
        for rows, columns in ((n, n), (1, n), (n, 1)):
            if matrix.shape[0] % rows or matrix.shape[1] % columns:
                continue
            if matrix.size < 8 * rows * columns:
                continue
            blocks = matrix.reshape(-1, rows, matrix.shape[1] // columns, columns)
            if (blocks.any((1, 3)) == blocks.all((1, 3))).all():
                return f"blocks, {rows}x{columns}"
    return ""
