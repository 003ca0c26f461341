"""The dtypes of safetensors: their codes, and entries that take less than a byte in a file.

Two kinds of file differ. A plain safetensors file uses every code that safetensors has. A file of
`save` uses those of version 1 of its format, and stores every other dtype as bytes, which its
metadata names.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

# The codes that a file of `save` uses too.
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
# The codes that only plain files use.
_PLAIN_CODES = {
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F6_E2M3": "float6_e2m3fn",
    "F6_E3M2": "float6_e3m2fn",
    "F4": "float4_e2m1fn",
}
# A file of `save` stores these as bytes, one or more for each entry.
_STORED_AS_BYTES = (
    "complex128",
    "int2",
    "int4",
    "uint2",
    "uint4",
    "float4_e2m1fn",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
)
_ALL_CODES = _CODES | _PLAIN_CODES
_CODE_OF = {name: code for code, name in _CODES.items()} | dict.fromkeys(_STORED_AS_BYTES, "U8")
_PLAIN_CODE_OF = {name: code for code, name in _ALL_CODES.items()}
_N_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_CHUNK = 2**20  # entries that are joined or separated at a time; a multiple of 8
DTYPE_NAMES = tuple(_CODE_OF)
CODES = tuple(_ALL_CODES)


def dtype_of(name: Any) -> np.dtype | None:
    """The dtype with this name; None if there is no such dtype or a file can't hold it.

    Example:
      >>> dtype_of("bfloat16").itemsize, dtype_of("object")
      (2, None)
    """
    if not isinstance(name, str) or name not in _CODE_OF:
        return None
    try:
        return np.dtype(getattr(jnp, name, name))
    except TypeError:  # the installed ml_dtypes is older than the dtype
        return None


def code_dtype(code: str) -> np.dtype:
    """The dtype of a safetensors code such as `F32`.

    Raises:
      TypeError: the installed ml_dtypes does not have it.
    """
    return np.dtype(getattr(jnp, _ALL_CODES[code], _ALL_CODES[code]))


def code_in_saved(dtype: np.dtype) -> str | None:
    """The code of a dtype in a file of `save`; None where its entries are stored as bytes.

    Example:
      >>> code_in_saved(np.dtype("float32")), code_in_saved(np.dtype("complex128"))
      ('F32', None)
    """
    return None if dtype.name in _STORED_AS_BYTES else _CODE_OF[dtype.name]


def code_in_plain(dtype: np.dtype) -> str | None:
    """The code of a dtype in a plain safetensors file; None where safetensors has none.

    Example:
      >>> code_in_plain(dtype_of("float4_e2m1fn")), code_in_plain(dtype_of("int4"))
      ('F4', None)
    """
    return _PLAIN_CODE_OF.get(dtype.name)


# Entries of less than a byte


def n_bits(code: str) -> int:
    """How many bits an entry takes in a file.

    Example:
      >>> n_bits("F4"), n_bits("BOOL"), n_bits("C64")
      (4, 8, 64)
    """
    return _N_BITS.get(code) or 8 * code_dtype(code).itemsize


def n_bytes_in_file(code: str, shape: tuple[int, ...]) -> int | None:
    """The bytes of a tensor in a file; None where its entries do not fill whole bytes.

    Example:
      >>> n_bytes_in_file("F4", (3, 2)), n_bytes_in_file("F4", (3,))
      (3, None)
    """
    n_bytes, rest = divmod(math.prod(shape) * n_bits(code), 8)
    return None if rest else n_bytes


def separate_entries(raw: np.ndarray, n_bits: int) -> np.ndarray:
    """A byte for each entry, where several share a byte; the first is in the lowest bits.

    Args:
      raw: uint8.
      n_bits: of an entry, below 8.

    Example:
      >>> separate_entries(np.array([0x21, 0x43], np.uint8), 4).tolist()
      [1, 2, 3, 4]
    """
    entries = np.empty(raw.size * 8 // n_bits, np.uint8)
    for start in range(0, entries.size, _CHUNK):
        part = raw[start * n_bits // 8 : (start + _CHUNK) * n_bits // 8]
        bits = np.unpackbits(part, bitorder="little").reshape(-1, n_bits)
        entries[start : start + _CHUNK] = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    return entries


def join_entries(entries: np.ndarray, n_bits: int) -> np.ndarray:
    """The bytes of a file, from a byte for each entry; the inverse of `separate_entries`.

    Example:
      >>> join_entries(np.array([1, 2, 3, 4], np.uint8), 4).tolist()
      [33, 67]
    """
    raw = np.empty(entries.size * n_bits // 8, np.uint8)
    for start in range(0, entries.size, _CHUNK):
        part = entries[start : start + _CHUNK, None]
        bits = np.unpackbits(part, axis=1, count=n_bits, bitorder="little")
        end = start * n_bits // 8 + bits.size // 8
        raw[start * n_bits // 8 : end] = np.packbits(bits.reshape(-1), bitorder="little")
    return raw
