"""Randomly damaged files: each is read correctly or rejected with its path, in bounded memory."""

import contextlib
import copy
import io
import json
import re
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from helpers import assert_same, n_calls, says
from jaxprune._files import dtypes
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


@contextlib.contextmanager
def within(n_bytes):
    """Checks that a block needs no more memory than that at any time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n_bytes


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


def plain_bytes(entries, data=b""):
    """A safetensors file, from the entries of its header."""
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def empty(shape=(0,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]}


@pytest.mark.parametrize("name", ("/".join("a" * 60_000), "a" * 120_000, "/" * 257))
def test_a_name_without_end_is_refused_at_once(tmp_path, name):
    (tmp_path / "bad").write_bytes(plain_bytes({name: empty()}))
    said = says("/bad:", "keys", "256", "4096", "Rename")
    with within(60 * len(name) + OVERHEAD), pytest.raises(ValueError, match=said) as error:
        load(tmp_path / "bad")
    assert len(str(error.value)) < 500
    assert read_npz_named(tmp_path / "bad.npz", name) is None
    with pytest.raises(ValueError, match=says("keys", "Rename")):
        save(tmp_path / "b", {name: np.ones(2)})
    assert not (tmp_path / "b").exists()


def read_npz_named(path, name):
    if len(name) < 2**16:  # the limit of zip files
        np.savez(path, **{name: np.ones(2)})
        return read_npz(path)
    return None


def names_of(shape, n):
    """Names for `n` tensors: deep ones, or many in one folder, or many folders."""
    return {
        "deep": ["/".join(["a"] * 200 + [str(i)]) for i in range(n)],
        "wide": [f"a/{i}" for i in range(n)],
        "apart": [f"{i}/a" for i in range(n)],
        "prefixes": ["a" * (i % 50 + 1) + f"/{i}" for i in range(n)],
    }[shape]


@pytest.mark.parametrize("shape", ("deep", "wide", "apart", "prefixes"))
def test_twice_the_names_are_twice_the_work(tmp_path, shape):
    work = []
    for n in (200, 400):
        path = tmp_path / str(n)
        path.write_bytes(plain_bytes({name: empty() for name in names_of(shape, n)}))
        load(path)
        work.append(n_calls(load, path))
    assert work[1] < 2.2 * work[0]


def test_paths_that_begin_with_another_are_found_among_many(tmp_path):
    for paths in (["b", "a/c", "a", "a.b"], ["a", "a/b/c"], ["a-b", "a", "a/"], ["", "a"]):
        (tmp_path / "bad").write_bytes(plain_bytes({path: empty() for path in paths}))
        with pytest.raises(ValueError, match=says("/bad:", "like=")):
            load(tmp_path / "bad")
    (tmp_path / "good").write_bytes(plain_bytes({path: empty() for path in ("a.b", "a/b", "aa")}))
    assert set(load(tmp_path / "good")) == {"a.b", "a", "aa"}


# Frames and parts of frames that zstd itself reads past.
EMPTY_FRAME = zstandard.compress(b"")
SKIPPABLE = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"


@pytest.mark.parametrize("sized", (True, False))
@pytest.mark.parametrize("checksum", (True, False))
@pytest.mark.parametrize("n", (10, 3 * 10**5))
def test_bytes_behind_the_frame_are_refused(tmp_path, n, checksum, sized):
    rng = np.random.default_rng(0)
    w = np.concatenate([rng.integers(0, 9, n), np.zeros(n)]).astype(np.float32)
    save(tmp_path / "plain", {"w": w}, level=None)
    data = (tmp_path / "plain").read_bytes()
    make = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=sized)
    path = tmp_path / "a"
    path.write_bytes(make.compress(data))
    assert_same(load(path), {"w": w})
    for more in (b"\0", EMPTY_FRAME, SKIPPABLE, SKIPPABLE + EMPTY_FRAME, EMPTY_FRAME * 2, b"x" * 9):
        path.write_bytes(make.compress(data) + more)
        with pytest.raises(ValueError, match="^" + re.escape(f"{path}: ")):
            load(path)
    path.write_bytes(make.compress(data[:100]) + make.compress(data[100:]))  # in two frames
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}: ")):
        load(path)


def test_blocks_of_nothing_are_not_counted_without_end(tmp_path):
    save(tmp_path / "plain", {"w": np.ones(3)}, level=None)
    data = (tmp_path / "plain").read_bytes()
    frame = zstandard.ZstdCompressor(write_content_size=False, write_checksum=False).compress(data)
    start = zstandard.frame_header_size(frame)
    blocks = bytes(3) * 10**5  # raw blocks of no bytes
    (tmp_path / "bad").write_bytes(frame[:start] + blocks + frame[start:])
    with pytest.raises(ValueError, match=says("/bad:", "blocks")):
        load(tmp_path / "bad")


@pytest.mark.parametrize("sized", (True, False))
def test_more_than_a_file_of_its_size_can_hold_is_refused_before_memory_is_taken(tmp_path, sized):
    n = 10**8
    data = plain_bytes({"w": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}, bytes(9))
    frame = bytearray(zstandard.ZstdCompressor(write_content_size=False).compress(data))
    said = ("/bad:", "header", str(len(data) - 9 + 4 * n))
    if sized:  # a size of 8 bytes in the header of the frame, which is not true
        size = (len(data) - 9 + 4 * n).to_bytes(8, "little")
        frame = frame[:4] + bytes([frame[4] | 0xC0]) + frame[5:6] + size + frame[6:]
        assert zstandard.get_frame_parameters(bytes(frame)).content_size == len(data) - 9 + 4 * n
        said = ("/bad:",)  # zstd itself sees that the frame ends too early
    (tmp_path / "bad").write_bytes(frame)
    with within(2 * OVERHEAD), pytest.raises(ValueError, match=says(*said)):
        load(tmp_path / "bad")


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
        assert dtypes.dtype_of(array.dtype.name) is not None
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


def test_a_header_of_npy_that_is_a_bomb(tmp_path):
    path, n = tmp_path / "a.npz", 10**7
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", b"\x93NUMPY\2\0" + n.to_bytes(4, "little") + b" " * n)
    with within(OVERHEAD):
        assert read_npz(path) is None


def test_arrays_that_share_their_data_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, w=np.ones(1000), v=np.ones(1000))
    with zipfile.ZipFile(path) as archive:
        first, second = archive.infolist()
    # The second entry of the list of contents points to the data of the first.
    offset = second.header_offset.to_bytes(4, "little")
    data = path.read_bytes()
    at = data.rindex(b"PK\1\2") + 42
    assert data[at : at + 4] == offset
    # The archive is the first array and the list, so that both arrays are claimed by half of it.
    end = data.rindex(b"PK\5\6")
    start = int.from_bytes(data[end + 16 : end + 20], "little")
    cut = start - second.header_offset
    entries = data[start:at] + bytes(4) + data[at + 4 : end]
    tail = data[end : end + 16] + (start - cut).to_bytes(4, "little") + data[end + 20 :]
    path.write_bytes(data[: second.header_offset] + entries + tail)
    assert first.header_offset == 0
    assert read_npz(path) is None
