"""Randomly damaged files: each is read correctly or rejected with its path, in bounded memory."""

import copy
import io
import json
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jaxprune._files import safetensors
from jaxprune._files.any_kind import open_source
from jaxprune._files.save_load import load, save

zstandard = pytest.importorskip("zstandard")

LIMIT = 2**20  # bytes of params that a file may claim
OVERHEAD = 2**21  # of Python, of zstd and of the tests themselves


def tree():
    rng = np.random.default_rng(0)
    w = np.where(rng.random((7, 33)) < 0.1, rng.normal(size=(7, 33)), 0).astype(np.float32)
    flags = np.array([True, False])
    return {"fc": {"kernel": w, "bias": np.ones(3, np.float16)}, "flags": flags, "s": np.int8(3)}


def as_bytes(x):
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).tobytes()


def is_tree(loaded):
    return jax.tree.structure(loaded) == jax.tree.structure(tree()) and all(
        (x.dtype, x.shape, as_bytes(x)) == (np.asarray(y).dtype, np.shape(y), as_bytes(y))
        for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree()), strict=True)
    )


def refused(error, path):
    assert str(error).startswith(f"{path}: ")
    assert str(error).isprintable()


def outcome(path):
    """What `load` returns, checked for its memory, or None if it rejects the file."""
    tracemalloc.start()
    try:
        loaded = load(path, max_bytes=LIMIT)
    except ValueError as error:
        return refused(error, path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * LIMIT + OVERHEAD
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(loaded))
    return loaded


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a file, plain and in zstd."""
    path = tmp_path_factory.mktemp("good") / "a"
    data_of = {}
    for level in (None, 3):
        save(path, tree(), level=level, metadata={"who": "me"})
        data_of[level] = path.read_bytes()
    return data_of


spans = st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40))


def spliced(data, edits):
    """Bytes in which some parts are replaced by others."""
    for where, n_cut, new in edits:
        at = round(where * len(data))
        data = data[:at] + new + data[at + n_cut :]
    return data


@given(edits=st.lists(spans, min_size=1, max_size=3), framed=st.booleans())
def test_bytes_changed_under_the_checksum(tmp_path_factory, good, edits, framed):
    path = tmp_path_factory.mktemp("f") / "a"
    data = spliced(good[None], edits)
    path.write_bytes(zstandard.compress(data) if framed else data)
    outcome(path)


@given(edits=st.lists(spans, min_size=1, max_size=3))
def test_bytes_changed_in_the_frame_are_seen(tmp_path_factory, good, edits):
    path = tmp_path_factory.mktemp("f") / "a"
    path.write_bytes(spliced(good[3], edits))
    loaded = outcome(path)
    assert loaded is None or is_tree(loaded)


# Values that are invalid in a header.
numbers = st.one_of(
    st.integers(-2, 40), st.sampled_from((2**31, 2**32, 2**50, 2**58, 2**62, 2**64, 10**30))
)
values = st.one_of(
    numbers,
    st.sampled_from((None, True, 1.0, 1e308, "", "F32", "F64", "U8", "I4", "O", "float64", "w")),
    st.sampled_from(("object", "bool", "complex128", "int4", "\ud800", "\x1b[2J", "../x", "[" * 9)),
    st.lists(numbers, max_size=5),
    st.just([1] * 70),
    st.just({}),
    st.dictionaries(st.sampled_from(("dtype", "shape", "data_offsets", "packed")), numbers),
)
steps = st.lists(st.integers(0, 9), min_size=1, max_size=5)
changes = st.lists(
    st.tuples(st.sampled_from(("set", "set", "set", "drop", "twin", "rename")), steps, values),
    min_size=1,
    max_size=3,
)


def changed(root, change, steps, value):
    """Follows `steps` into a JSON tree and sets, drops, repeats or renames the node it reaches."""
    node, above, key = root, None, None
    for step in steps:
        if not isinstance(node, (dict, list)) or not node:
            break
        keys = list(node) if isinstance(node, dict) else range(len(node))
        above, key = node, keys[step % len(keys)]
        node = node[key]
    if above is None:
        return
    if change == "set":
        above[key] = copy.deepcopy(value)
    elif change == "drop":
        del above[key]
    elif isinstance(above, list):
        above.append(copy.deepcopy(node))
    else:
        name = str(value) if change == "twin" else f"{key}:bits"
        above[name] = above.pop(key) if change == "rename" else copy.deepcopy(node)


@given(changes=changes, framed=st.booleans(), notes=st.booleans(), extra=st.integers(-9, 9))
def test_headers_rewritten(tmp_path_factory, good, changes, framed, notes, extra):
    path = tmp_path_factory.mktemp("f") / "a"
    data = good[None]
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    ours = json.loads(header["__metadata__"]["jaxprune"])
    for change in changes:
        changed(ours if notes else header, *change)
    if notes:
        header["__metadata__"]["jaxprune"] = json.dumps(ours)
    text = json.dumps(header).encode()
    body = data[start : len(data) + min(extra, 0)] + bytes(max(extra, 0))
    data = len(text).to_bytes(8, "little") + text + body
    frame = zstandard.ZstdCompressor(write_content_size=False)
    path.write_bytes(frame.compress(data) if framed else data)
    outcome(path)


def test_a_header_that_is_a_decompression_bomb(tmp_path):
    n = 5 * 10**7
    data = n.to_bytes(8, "little") + (b"[" + b"[]," * (n // 3)).ljust(n)[:n]
    (tmp_path / "bad").write_bytes(zstandard.compress(data))
    assert (tmp_path / "bad").stat().st_size < 10**5
    tracemalloc.start()
    with pytest.raises(ValueError, match="50000000 bytes"):
        load(tmp_path / "bad")
    assert tracemalloc.get_traced_memory()[1] < OVERHEAD
    tracemalloc.stop()


def test_values_that_are_a_decompression_bomb(tmp_path):
    header = {"w": {"dtype": "F32", "shape": [10**8], "data_offsets": [0, 4 * 10**8]}}
    text = json.dumps(header).encode()
    compressor = zstandard.ZstdCompressor().compressobj()
    parts = [compressor.compress(len(text).to_bytes(8, "little") + text)]
    parts += [compressor.compress(bytes(4 * 10**6)) for _ in range(100)]
    (tmp_path / "bad").write_bytes(b"".join(parts) + compressor.flush())
    assert (tmp_path / "bad").stat().st_size < 10**5
    assert outcome(tmp_path / "bad") is None


def test_running_out_of_memory_is_a_value_error(tmp_path, monkeypatch):
    save(tmp_path / "a", {"w": np.eye(20)})

    def full(*args):
        raise MemoryError

    for name in ("empty", "zeros"):
        with monkeypatch.context() as patch:
            patch.setattr(np, name, full)
            with pytest.raises(ValueError, match=r"a: .*memory"):
                load(tmp_path / "a")


# --- .npz


def read_npz(path):
    """The arrays of an .npz, or None if it is rejected."""
    try:
        with open_source(path) as source:
            return dict(source.arrays())
    except ValueError as error:
        return refused(error, path)


@given(edits=st.lists(spans, min_size=1, max_size=3), packed=st.booleans())
def test_bytes_changed_in_npz(tmp_path_factory, edits, packed):
    path = tmp_path_factory.mktemp("f") / "a.npz"
    arrays = {"w": np.eye(20), "n": np.arange(3, dtype=np.int8)}
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    path.write_bytes(spliced(path.read_bytes(), edits))
    for name, array in (read_npz(path) or {}).items():
        assert array.shape == arrays[name].shape


descriptions = st.sampled_from(
    ("'<f4'", "'>f8'", "'|O'", "'V8'", "'<U4'", "'<c16'", "[('a', '<f4')]", "'<f99'", "1", "'|b1'")
)
shapes = st.sampled_from(
    ("(3,)", "()", "(-1,)", "(2**99,)", "(999999999999,)", "(True,)", "(0, 9999999999, 9999999999)")
    + ("(1e9,)", "'a'", "(" + "1," * 70 + ")", "((1,),)", "[" * 500, "(3,")
)


@given(descriptions, shapes, st.sampled_from(("True", "False", "3")), st.binary(max_size=24))
def test_headers_of_npy_rewritten(tmp_path_factory, description, shape, order, data):
    path = tmp_path_factory.mktemp("f") / "a.npz"
    text = f"{{'descr': {description}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    member = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + data
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", member)
    tracemalloc.start()
    arrays = read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < OVERHEAD
    tracemalloc.stop()
    for array in (arrays or {}).values():
        assert safetensors.dtype_of(array.dtype.name) is not None
        assert array.nbytes == len(data)


def test_an_npz_that_claims_more_than_it_holds(tmp_path):
    path = tmp_path / "a.npz"
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": (10**8,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", file.getvalue())
    n, size = file.tell(), file.tell() + 8 * 10**8
    honest = path.read_bytes()
    path.write_bytes(honest.replace(n.to_bytes(4, "little"), size.to_bytes(4, "little")))
    assert path.read_bytes() != honest
    assert read_npz(path) is None
