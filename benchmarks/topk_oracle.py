"""Random weights of several kinds, the exact mask of the largest by NumPy, and a judge of masks.

`judge` compares a mask with the exact one and answers

- `exact`: the mask that jaxprune promises: the lower index wins ties, and subnormals are ordered;
- `ties`: correct except that it keeps other entries, or more or fewer, among those that tie at the
  threshold;
- `wrong`: anything else, for example a float comparison that treats subnormals as zero.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

_SHAPES = {
    10**4: (100, 100),
    10**5: (250, 400),
    10**6: (1000, 1000),
    10**7: (4000, 2500),
    10**8: (10_000, 10_000),
    10**9: (40_000, 25_000),
}
ORDINARY = ("normal", "uniform", "heavy")
KINDS = (*ORDINARY, "bf16", "f16", "zeros90", "ties", "constant", "zero", "subnormal")
_DTYPES = {"bf16": jnp.bfloat16, "f16": np.float16}


def weights(kind: str, n: int, seed: int = 0) -> np.ndarray:
    """Weights of one kind, made on the host in chunks so that 1e9 entries fit in memory."""
    rng = np.random.default_rng(seed)
    out = np.empty(n, _DTYPES.get(kind, np.float32))
    chunk = 1 << 24
    for i in range(0, n, chunk):
        out[i : i + chunk] = _chunk(kind, min(chunk, n - i), rng)
    return out.reshape(_SHAPES.get(n, (n,)))


def _chunk(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    match kind:
        case "constant":
            return np.full(n, 0.5, np.float32)
        case "zero":
            return np.zeros(n, np.float32)
        case "uniform":
            return rng.random(n, np.float32) * 2 - 1
    normal = rng.standard_normal(n, np.float32)
    match kind:
        case "normal" | "bf16" | "f16":
            return normal
        case "ties":
            return np.round(2 * normal)
        case "heavy":
            return np.sign(normal) * np.exp(3 * rng.standard_normal(n, np.float32))
        case "zeros90":
            return np.where(rng.random(n, np.float32) < 0.9, np.float32(0), normal)
        case "subnormal":
            return (normal.astype(np.float64) * 1e-39).clip(-1e-38, 1e-38).astype(np.float32)
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def keys_of(w: np.ndarray) -> np.ndarray:
    """Magnitudes as flat unsigned integers, which sort like them without a float comparison."""
    bits = np.dtype(f"u{w.dtype.itemsize}")
    return w.reshape(-1).view(bits) & bits.type(np.iinfo(bits).max >> 1)


def oracle(w: np.ndarray, n_keep: int) -> np.ndarray:
    """The exact mask, by NumPy: the largest keys, the lower index first among ties."""
    key = keys_of(w)
    if not n_keep:
        return np.zeros(w.shape, bool)
    threshold = _largest(key, n_keep)
    mask = key > threshold
    mask[np.flatnonzero(key == threshold)[: n_keep - np.count_nonzero(mask)]] = True
    return mask.reshape(w.shape)


def _largest(key: np.ndarray, n: int) -> Any:
    """The `n`-th largest key. 16-bit keys use a histogram, which ties do not slow down."""
    if key.itemsize > 2:
        return np.partition(key, key.size - n)[key.size - n]
    chunks = range(0, key.size, 1 << 24)
    counts = sum(np.bincount(key[i : i + (1 << 24)], minlength=2**16) for i in chunks)
    return key.dtype.type(2**16 - 1 - np.searchsorted(np.cumsum(counts[::-1]), n))


def judge(mask: np.ndarray, w: np.ndarray, expected: np.ndarray) -> str:
    """Classifies a mask as `exact`, `ties` or `wrong`, as the module docstring defines them."""
    if np.array_equal(mask, expected):
        return "exact"
    key = keys_of(w)
    differ = key[(mask != expected).reshape(-1)]
    at_threshold = expected.any() and np.all(differ == key[expected.reshape(-1)].min())
    return "ties" if at_threshold else "wrong"
