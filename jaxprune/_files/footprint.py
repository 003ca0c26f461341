"""What an array takes in each format, and what structure its zeros have."""

import math
import zlib

import numpy as np

from jaxprune._files.leaves import encoded, is_stored
from jaxprune._files.stream import extra

# In the order of tables; those that compress take time.
QUICK = ("dense", "CSR int32", "delta uint8", "bitmask", "bound")
SLOW = ("gzip", "jaxprune")
_CHUNK = 2**22


def sizes(array: np.ndarray, formats: tuple[str, ...] = QUICK + SLOW) -> dict[str, int]:
    """Bytes by format.

    `dense` is the array, `gzip` that compressed as `numpy.savez_compressed` does. `CSR int32` has a
    column index of 4 bytes for each nonzero value, `delta uint8` the distance from the one before,
    with a filler at every 255 zeros, `bitmask` one bit per entry. `jaxprune` is what `save` writes.
    `bound` is no format: the values and the entropy of their places, under which none of those
    comes that take the values as they are.

    Args:
      array: any array that `save` takes.
      formats: which.

    Example:
      >>> sizes(np.eye(100, dtype=np.float32), ("dense", "CSR int32", "bitmask"))
      {'dense': 40000, 'CSR int32': 1204, 'bitmask': 1650}
    """
    n, width = array.size, array.dtype.itemsize
    stored = is_stored(array).reshape(-1)
    n_stored = int(np.count_nonzero(stored))
    values = n_stored * width
    n_rows = n // array.shape[-1] if array.ndim and n else 1
    of = {
        "dense": lambda: n * width,
        "gzip": lambda: _gzip(array),
        "CSR int32": lambda: 4 * (n_rows + 1) + 4 * n_stored + values,
        "delta uint8": lambda: (n_stored + _fillers(stored)) * (1 + width),
        "bitmask": lambda: -(-n // 8) + values,
        "jaxprune": lambda: _zstd(array),
        "bound": lambda: values + math.ceil(n * _entropy(n_stored / max(n, 1)) / 8),
    }
    return {name: of[name]() for name in formats}


def _entropy(p: float) -> float:
    """Bits per entry that say where a fraction `p` of entries is."""
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)


def _fillers(stored: np.ndarray) -> int:
    places = np.flatnonzero(stored)
    gaps = np.diff(places, prepend=-1) - 1
    return int(np.sum(gaps // 256))


def _gzip(array: np.ndarray) -> int:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    packer = zlib.compressobj(6)
    chunks = (raw[i : i + _CHUNK].data for i in range(0, raw.size, _CHUNK))
    return sum(len(packer.compress(chunk)) for chunk in chunks) + len(packer.flush())


def _zstd(array: np.ndarray) -> int:
    packer = extra("zstandard").ZstdCompressor(level=3).compressobj()
    n_bytes = 0
    for _, data in encoded("", array)[0]:
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        for i in range(0, raw.size, _CHUNK):
            n_bytes += len(packer.compress(raw[i : i + _CHUNK].data))
    return n_bytes + len(packer.flush())


def structure_of(kept: np.ndarray) -> str:
    """The structure of a mask, in words.

    Channels that are dropped whole, `2 of 4` neighbours, blocks that go together: whichever is
    found first. Only exact structure counts, and only of at least eight groups.

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
    return _channels(kept, n_kept) or _n_of_m(kept) or _blocks(kept) or "unstructured"


def _channels(kept: np.ndarray, n_kept: int) -> str:
    for axis in range(kept.ndim):
        alive = kept.any(axis=tuple(i for i in range(kept.ndim) if i != axis))
        if int(alive.sum()) * (kept.size // kept.shape[axis]) == n_kept:
            return f"channels, axis {axis}"
    return ""


def _n_of_m(kept: np.ndarray) -> str:
    for axis, length in enumerate(kept.shape):
        for m in (4, 8, 16, 32):
            if length % m or kept.size < 8 * m:
                continue
            groups = np.moveaxis(kept, axis, -1).reshape(-1, m)
            counts = groups.sum(1, dtype=np.int32)
            if 0 < counts[0] < m and (counts == counts[0]).all():
                return f"{counts[0]} of {m}, axis {axis}"
    return ""


def _blocks(kept: np.ndarray) -> str:
    matrix = kept.reshape(-1, kept.shape[-1])
    for n in (64, 32, 16, 8, 4):
        for rows, columns in ((n, n), (1, n), (n, 1)):
            if matrix.shape[0] % rows or matrix.shape[1] % columns:
                continue
            if matrix.size < 8 * rows * columns:
                continue
            split = matrix.reshape(-1, rows, matrix.shape[1] // columns, columns)
            if (split.any((1, 3)) == split.all((1, 3))).all():
                return f"blocks, {rows}x{columns}"
    return ""
