"""Safetensors files made and read by hand: what the library under test must agree with."""

import json
import math

import numpy as np

# Bits of an entry, from the documentation of safetensors 0.8.
N_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


def random_tensor(seed, code, shape):
    """The code, the shape and random bytes of a tensor."""
    rng = np.random.default_rng(seed)
    n_bytes, rest = divmod(math.prod(shape) * N_BITS[code], 8)
    assert not rest
    top = 2 if code == "BOOL" else 256
    return code, list(shape), rng.integers(0, top, n_bytes, np.uint8).tobytes()


def write_file(path, tensors, metadata=None):
    """Writes tensors, `{name: (code, shape, bytes)}`, in their order."""
    header = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (code, shape, data) in tensors.items():
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def read_file(path):
    """The tensors in the order of their data, and the metadata; the inverse of `write_file`."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    metadata = header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        tensors[name] = entry["dtype"], entry["shape"], raw[start + begin : start + end]
    return tensors, metadata
