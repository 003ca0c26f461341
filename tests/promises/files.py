"""Damaged files: each reader returns arrays or refuses with the path, in bounded memory.

A file is cut, lengthened, or has bytes and bits changed at random places, mostly in its header.
What carries a checksum is read as it was saved, or refused.
"""

import functools
import tempfile
import time
import tracemalloc
from pathlib import Path

import jax
import numpy as np

import jaxprune
from promises.runner import Promise

N_PER_CHUNK = 100
LIMIT = 2**20  # bytes of params that a file may claim
OVERHEAD = 2**21  # of Python and zstd
SECONDS = 30  # more than any of them takes on a busy machine


def tree():
    """A sparse leaf, a narrow one, flags and a number."""
    rng = np.random.default_rng(0)
    w = np.where(rng.random((7, 33)) < 0.1, rng.normal(size=(7, 33)), 0).astype(np.float32)
    flags = np.array([True, False])
    return {"fc": {"kernel": w, "bias": np.ones(3, np.float16)}, "flags": flags, "s": np.int8(3)}


def leaf_bytes(x):
    """Dtype, shape and bytes of each leaf."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(x)]
    return [(leaf.dtype, leaf.shape, np.ascontiguousarray(leaf).tobytes()) for leaf in leaves]


@functools.cache
def good_files():
    """The bytes of a file of each kind, and whether a checksum covers all of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jaxprune.save(folder / "plain", tree(), level=None, metadata={"who": "me"})
        jaxprune.save(folder / "zstd", tree(), level=3)
        jaxprune.save_safetensors(folder / "model.safetensors", tree())
        flat = {"fc/kernel": tree()["fc"]["kernel"], "fc/bias": tree()["fc"]["bias"]}
        np.savez(folder / "arrays.npz", **flat)
        np.savez_compressed(folder / "packed.npz", **flat)
        kinds = ("plain", "zstd", "model.safetensors", "arrays.npz", "packed.npz")
        return [(kind, (folder / kind).read_bytes(), kind == "zstd") for kind in kinds]


def damaged(data, rng):
    """The bytes with one to three of them, or of their bits or parts, changed."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        # Half of the changes lie in the header, or at the end, where zip files have theirs.
        reach = len(data) if rng.random() < 0.5 else min(len(data), 400)
        at = int(rng.integers(0, reach))
        at = len(data) - 1 - at if rng.random() < 0.3 else at
        kind = rng.integers(0, 6)
        if kind == 0:
            data[at] ^= 1 << rng.integers(0, 8)
        elif kind == 1:
            data[at] = rng.integers(0, 256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = rng.bytes(int(rng.integers(1, 20)))
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 20))]
        else:
            digits = [i for i, byte in enumerate(data[:600]) if 48 <= byte < 58]
            if digits:
                data[digits[rng.integers(0, len(digits))]] = rng.integers(48, 58)
        if not data:
            break
    return bytes(data)


def check(chunk):
    """Reads 100 damaged files, 20 of each kind."""
    rng = np.random.default_rng(chunk)
    with tempfile.TemporaryDirectory() as folder:
        for case in range(N_PER_CHUNK):
            kind, data, checksummed = good_files()[case % len(good_files())]
            path = Path(folder) / kind
            bad = damaged(data, rng)
            path.write_bytes(bad)
            start = time.monotonic()
            tracemalloc.start()
            try:
                loaded = jaxprune.load(path, max_bytes=LIMIT)
            except ValueError as error:
                loaded, text = None, str(error)
                assert text.startswith(str(path)), f"{chunk} {case}: no path in {text!r}"
                assert text.isprintable(), f"{chunk} {case}: {text!r}"
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert peak < 3 * LIMIT + OVERHEAD, f"{chunk} {case}: {peak} bytes"
            assert time.monotonic() - start < SECONDS, f"{chunk} {case}: too slow"
            if loaded is not None:
                assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(loaded))
                if checksummed:
                    assert leaf_bytes(loaded) == leaf_bytes(tree()), f"{chunk} {case}: silent"
    return N_PER_CHUNK


PROMISE = Promise(
    "files",
    "Reading a damaged file returns what is in it or raises an error with its path, in bounded "
    "time and memory; values under a checksum never come back changed.",
    100,
    check,
    few=(0,),
)
