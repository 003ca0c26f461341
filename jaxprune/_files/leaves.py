"""One leaf as the tensors of a file, and back.

A leaf is stored dense, as one tensor; or, if it has enough zeros, sparse, as two: one bit per entry
that says whether the entry is stored, then the values of the stored entries. An entry counts as
zero only if all its bits are zero, so NaN payloads, subnormals and -0.0 come back bit for bit.
Everything runs on the host. `docs/format.md` describes the format.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxprune._files import safetensors
from jaxprune._files.safetensors import Tensor

BITS, VALUES = ":bits", ":values"  # follow the path of a sparse leaf in the names of its tensors
# One bit per entry takes less room than the zeros from 1 / (8 * itemsize) zeros on. Below this
# sparsity the gain is not worth the time.
_LEAST_SPARSITY = 0.05
_CHUNK = 2**18  # entries decoded at a time; a multiple of 8


class Leaf(NamedTuple):
    """A leaf of a file, without its data.

    Attributes:
      path: of the leaf.
      shape: of its array.
      dtype: of its array.
      n_stored: how many entries are stored, of a sparse leaf; None for a dense one.
      n_bits: the bits of an entry in the file, where several entries share a byte; otherwise 0.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    n_stored: int | None = None
    n_bits: int = 0

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Memory of its array."""
        return self.size * self.dtype.itemsize


class EncodedLeaf(NamedTuple):
    """The tensors of a leaf, with their data.

    Attributes:
      tensors: one for a dense leaf; bits and values for a sparse one.
      buffers: the data of each tensor.
      n_stored: how many entries of the leaf are not +0.0.
    """

    tensors: tuple[Tensor, ...]
    buffers: tuple[np.ndarray, ...]
    n_stored: int

    @property
    def is_sparse(self) -> bool:
        """Whether the leaf is stored as bits and values."""
        return len(self.tensors) == 2


def encode_leaf(path: str, array: np.ndarray) -> EncodedLeaf:
    """The tensors that store a leaf, in whichever way is smaller.

    Example:
      >>> leaf = encode_leaf("w", np.eye(10))
      >>> [tensor.name for tensor in leaf.tensors], leaf.n_stored
      (['w:bits', 'w:values'], 10)
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype == bool:
        flat = flat.view(np.uint8) != 0  # makes every True the byte 1
    stored = is_stored(flat)
    n_stored = int(np.count_nonzero(stored))
    n_zero = flat.size - n_stored
    is_smaller = n_zero * flat.dtype.itemsize > bytes_for_bits(flat.size)
    if not is_smaller or n_zero < _LEAST_SPARSITY * flat.size:
        tensor = safetensors.tensor_for(path, array.dtype, array.shape)
        return EncodedLeaf((tensor,), (flat,), n_stored)
    bits = np.packbits(stored, bitorder="little")
    values = flat[stored] if flat.dtype.itemsize == 16 else _as_unsigned(flat)[stored]
    tensors = sparse_tensors(Leaf(path, array.shape, array.dtype, n_stored))
    return EncodedLeaf(tensors, (bits, values), n_stored)


def sparse_tensors(leaf: Leaf) -> tuple[Tensor, Tensor]:
    """The tensors of a sparse leaf: bits and values.

    Example:
      >>> sparse_tensors(Leaf("w", (3, 4), np.dtype("float32"), 5))[0]
      Tensor(name='w:bits', code='U8', shape=(2,))
    """
    bits = Tensor(leaf.path + BITS, "U8", (bytes_for_bits(leaf.size),))
    shape = (leaf.n_stored or 0,)
    return bits, safetensors.tensor_for(leaf.path + VALUES, leaf.dtype, shape)


def bytes_for_bits(size: int) -> int:
    """Bytes that hold one bit for each of `size` entries."""
    return -(-size // 8)


def is_stored(array: np.ndarray) -> np.ndarray:
    """True where any bit of an entry is set: everywhere but at +0.0.

    Example:
      >>> is_stored(np.array([0.0, -0.0, 1.0])).tolist()
      [False, True, True]
    """
    array = np.ascontiguousarray(array)
    if array.dtype.itemsize == 16:
        return (array.view(np.uint64).reshape(*array.shape, 2) != 0).any(-1)
    return _as_unsigned(array) != 0


def _as_unsigned(array: np.ndarray) -> np.ndarray:
    """A contiguous array of at most 8 bytes per entry, seen as unsigned integers."""
    return array.view(_unsigned_like(array.dtype))


def _unsigned_like(dtype: np.dtype) -> Any:
    """The unsigned integer type as wide as a dtype of at most 8 bytes."""
    return {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[dtype.itemsize]


def decode_leaf(leaf: Leaf, bits: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The array of a sparse leaf, from the bytes of its two tensors.

    Example:
      >>> leaf = Leaf("w", (3,), np.dtype("float32"), 1)
      >>> decode_leaf(leaf, np.array([2], np.uint8), np.ones(1, np.float32)).tolist()
      [0.0, 1.0, 0.0]
    """
    dtype = leaf.dtype if leaf.dtype.itemsize == 16 else _unsigned_like(leaf.dtype)
    flat, values = np.zeros(leaf.size, dtype), values.view(dtype)
    n_done = 0
    for start in range(0, leaf.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        flags = np.unpackbits(bits[start // 8 :], count=chunk.size, bitorder="little")
        # Assigning by indices is 2-3 times faster than by a boolean mask; chunks keep it small.
        positions = np.flatnonzero(flags.view(bool))
        chunk[positions] = values[n_done : n_done + positions.size]
        n_done += positions.size
    return flat.view(leaf.dtype).reshape(leaf.shape)
