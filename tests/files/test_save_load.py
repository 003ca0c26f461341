"""Saved trees load bit for bit, files are small, and damaged or hostile files are rejected."""

import json
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import jaxprune
from helpers import assert_same, says, stepper
from jaxprune._files import dtypes, leaves
from jaxprune._files.atomic import atomic_file
from jaxprune._files.interchange import save_csr, save_safetensors, to_bcoo, to_bcsr, to_csr
from jaxprune._files.leaf_files import open_leaves
from jaxprune._files.save_load import load, save

pytest.importorskip("zstandard")

NAMES = [name for name in dtypes.DTYPE_NAMES if dtypes.dtype_of(name) is not None]
FORMAT = pathlib.Path(__file__).parents[2] / "docs" / "format.md"


def documented_reader():
    """The reader that docs/format.md shows."""
    [code] = re.findall(r"```python\n(.*?)```", FORMAT.read_text(), re.S)
    scope = {}
    exec(code, scope)
    return scope["read"], code


def bytes_of(array):
    array = np.ascontiguousarray(array)
    return array.reshape(-1).view(np.uint8)


def random_array(seed, dtype, shape, sparsity):
    """Random bits, with a share of zeros."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtypes.dtype_of(dtype))
    n = math.prod(shape)
    top = {"bool": 2, "int2": 4, "uint2": 4, "int4": 16, "uint4": 16, "float4_e2m1fn": 16}
    raw = rng.integers(0, top.get(dtype.name, 256), (n, dtype.itemsize), np.uint8)
    raw[rng.random(n) < sparsity] = 0
    return raw.reshape(-1).view(dtype).reshape(shape)


arrays = st.builds(
    random_array,
    st.integers(0, 2**32),
    st.sampled_from(NAMES),
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    st.sampled_from((0.0, 0.03, 0.5, 0.9, 1.0)),
)
keys = st.text("ab/é:.", min_size=1, max_size=4).map(
    lambda s: s.strip("/").replace("//", "") or "x"
)


def clear(flat):
    """Whether no path is a prefix of another, and none uses a name that the format reserves."""
    return not any(a != b and (b + "/").startswith(a + "/") for a in flat for b in flat)


trees = st.dictionaries(keys, arrays, min_size=1, max_size=4).filter(clear)


def flat_of(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = {}
    for key, value in tree.items():
        flat |= flat_of(value, f"{prefix}/{key}" if prefix else key)
    return flat


@given(trees, st.sampled_from((None, 1, 3)))
def test_every_bit_comes_back(tmp_path_factory, tree, level):
    path = tmp_path_factory.mktemp("f") / "a"
    save(path, tree, level=level)
    assert_same(flat_of(load(path)), tree)
    assert_same(load(path, like=tree), tree)
    assert_same(documented_reader()[0](path), tree)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sparsity", (0.0, 0.9))
def test_every_dtype_comes_back(tmp_path, name, sparsity):
    tree = {"w": random_array(0, name, (13, 57), sparsity), "scalar": random_array(1, name, (), 0)}
    save(tmp_path / "a", tree)
    assert_same(load(tmp_path / "a"), tree)


def test_the_documented_reader_is_short():
    code = documented_reader()[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("name", ("float32", "bfloat16"))
def test_the_safetensors_library_reads_the_container(tmp_path, name):
    library = pytest.importorskip("safetensors.numpy")
    tree = {"w": random_array(0, name, (40, 50), 0.9), "b": np.ones(3, np.float32)}
    save(tmp_path / "a", tree, level=None, metadata={"who": "me"})
    tensors = library.load_file(tmp_path / "a")
    assert set(tensors) == {"w:bits", "w:values", "b"}
    stored = bytes_of(tree["w"]).reshape(2000, -1).any(-1)
    np.testing.assert_array_equal(np.unpackbits(tensors["w:bits"], bitorder="little"), stored)
    assert_same(tensors["w:values"], tree["w"].reshape(-1)[stored])
    save_safetensors(tmp_path / "b", tree)
    assert_same(library.load_file(tmp_path / "b"), tree)


def test_files_of_the_safetensors_library_are_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    tree = {"w": np.arange(6.0).reshape(2, 3), "n": np.arange(3, dtype=np.uint8)}
    library.save_file(tree, tmp_path / "a", metadata={"format": "np"})
    assert_same(load(tmp_path / "a"), tree)
    with open_leaves(tmp_path / "a") as file:
        assert file.metadata == {"format": "np"}
        assert file.about == {}


def test_an_all_zero_leaf_and_an_empty_tree(tmp_path):
    tree = {"w": np.zeros((100, 100), np.float32)}
    save(tmp_path / "a", tree)
    assert_same(load(tmp_path / "a"), tree)
    assert (tmp_path / "a").stat().st_size < 500
    save(tmp_path / "b", {})
    assert load(tmp_path / "b") == {}


def test_an_array_alone_comes_back_alone(tmp_path):
    save(tmp_path / "a", np.arange(3.0))
    assert_same(load(tmp_path / "a"), np.arange(3.0))


def test_a_leaf_is_packed_where_that_pays(tmp_path):
    def packed(sparsity, dtype=np.float32):
        w = np.ones(1000, dtype)
        w[: round(1000 * sparsity)] = 0
        save(tmp_path / "a", {"w": w})
        with open_leaves(tmp_path / "a") as file:
            return file.leaves[0].n_stored is not None

    assert not packed(0.04)
    assert packed(0.05)
    assert not packed(0.1, np.int8)
    assert packed(0.13, np.int8)


def test_sizes_at_90_percent(tmp_path):
    w = np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32)
    w, _ = jaxprune.prune_params({"w": w}, 0.9)
    save(tmp_path / "a", w)
    assert 300_000 * 4 / (tmp_path / "a").stat().st_size >= 9


def test_minus_zero_is_kept_without_masks_and_plus_zero_with_them(tmp_path):
    w = np.array([[-1.0, 2.0] * 50] * 10, np.float32)
    mask = np.zeros(w.shape, bool)
    mask[0] = True
    float_masked = w * mask.astype(np.float32)
    assert np.signbit(float_masked[1:]).any()
    save(tmp_path / "a", {"w": float_masked})
    assert_same(load(tmp_path / "a"), {"w": float_masked})
    save(tmp_path / "b", {"w": float_masked}, {"w": mask})
    assert_same(load(tmp_path / "b"), {"w": np.where(mask, w, np.float32(0))})


@given(st.integers(0, 2**32), st.sampled_from(("float32", "bfloat16", "float16")))
def test_pruned_weights_are_plus_zero_in_the_file(tmp_path_factory, seed, dtype):
    path = tmp_path_factory.mktemp("f") / "a"
    w = jnp.asarray(np.random.default_rng(seed).normal(size=(9, 11)), dtype)
    pruned, masks = jaxprune.prune_params({"w": w}, 0.5)
    save(path, pruned, masks)
    with open_leaves(path) as file:
        assert file.leaves[0].n_stored == int(masks["w"].sum())
    weights = load(path)["w"]
    dropped = ~np.asarray(masks["w"])
    assert not bytes_of(weights).reshape(*weights.shape, -1)[dropped].any()


@pytest.mark.parametrize("packed", (False, True))
def test_masks_may_be_an_optimizer_state(tmp_path, packed):
    tx = optax.chain(optax.sgd(0.1), jaxprune.prune(jaxprune.one_shot_schedule(0.5), packed=packed))
    params = {"fc": {"kernel": jnp.arange(1.0, 41).reshape(4, 10)}, "bias": jnp.ones(4)}
    _, state, sparse = stepper(tx)(params, tx.init(params), params)
    save(tmp_path / "a", sparse, state)
    assert_same(load(tmp_path / "a"), jax.tree.map(np.asarray, sparse))
    with pytest.raises(
        ValueError, match=says("fc/kernel: 20 of 20", "jaxprune.apply_masks(params,")
    ):
        save(tmp_path / "b", params, state)
    assert not (tmp_path / "b").exists()


def test_like_fills_lists_and_places_jax_arrays(tmp_path):
    tree = [np.arange(3, dtype=np.float32), {"w": np.ones((2, 2), ml_dtypes.bfloat16)}]
    save(tmp_path / "a", tree)
    assert set(load(tmp_path / "a")) == {"0", "1"}
    like = jax.tree.map(jnp.asarray, tree)
    filled = load(tmp_path / "a", like=like)
    assert_same(filled, tree)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(filled))
    shapes = jax.eval_shape(lambda: like)
    assert isinstance(load(tmp_path / "a", like=shapes)[0], np.ndarray)


def test_like_may_be_an_nnx_state(tmp_path):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    save(tmp_path / "a", state)
    assert set(load(tmp_path / "a")) == {"kernel", "bias"}
    filled = load(tmp_path / "a", like=state)
    assert type(filled) is type(state)
    assert_same(filled, state)


def test_metadata_is_kept(tmp_path):
    w = np.eye(10, dtype=np.float32)
    save(tmp_path / "a", {"w": w}, structure=jaxprune.Unstructured(), metadata={"step": "3"})
    with open_leaves(tmp_path / "a") as file:
        assert file.about == {"version": 1, "sparsity": 0.9, "structure": "Unstructured()"}
        assert file.metadata == {"step": "3"}


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_packed_kernels_come_straight_from_the_file(tmp_path, dtype):
    kernel = np.zeros((20, 48), dtype)
    for i, j in ((0, 0), (3, 16), (7, 16), (19, 32)):
        kernel[i, j : j + 16] = i + 1
    tree = {"fc": {"kernel": kernel, "bias": np.ones(48, np.float32)}}
    tree |= {"conv": {"kernel": np.ones((2, 2, 3), np.float32)}, "out": np.eye(4, dtype=dtype)}
    for level in (None, 3):
        save(tmp_path / "a", tree, level=level)
        for more in ({}, {"block": (2, 8), "batch": 8}):
            rest, packed = jaxprune.load_packed(tmp_path / "a", **more)
            expected = jaxprune.pack_kernels({"fc": {"kernel": kernel}}, **more)
            assert jax.tree.structure(packed) == jax.tree.structure(expected)
            assert_same(packed, expected)
            assert_same(rest | {"fc": rest["fc"] | {"kernel": kernel}}, tree)
    with pytest.raises(ValueError, match=says("/a:", "include='x'", "conv/kernel")):
        jaxprune.load_packed(tmp_path / "a", "x")


# --- damaged and hostile files


def some_file(tmp_path, level=3):
    rng = np.random.default_rng(0)
    w = np.where(rng.random((7, 33)) < 0.1, rng.normal(size=(7, 33)), 0).astype(np.float32)
    tree = {"fc": {"kernel": w}, "bias": np.ones(3, np.float32)}
    save(tmp_path / "good", tree, level=level)
    return tree, (tmp_path / "good").read_bytes()


@pytest.mark.parametrize("level", (None, 3))
def test_every_truncation_is_seen(tmp_path, level):
    _, good = some_file(tmp_path, level)
    for n in range(len(good)):
        (tmp_path / "bad").write_bytes(good[:n])
        with pytest.raises(ValueError, match="bad: "):
            load(tmp_path / "bad")
    (tmp_path / "bad").write_bytes(good + b"\0")
    with pytest.raises(ValueError, match="bad: "):
        load(tmp_path / "bad")


def loaded(path):
    """The tree in a file, or the error message."""
    try:
        return load(path), None
    except ValueError as error:
        return None, str(error)


def test_every_flipped_bit_is_seen_or_harmless(tmp_path):
    tree, good = some_file(tmp_path)
    for i in range(8 * len(good)):
        bad = bytearray(good)
        bad[i // 8] ^= 1 << i % 8
        (tmp_path / "bad").write_bytes(bad)
        params, text = loaded(tmp_path / "bad")
        if text is None:
            assert_same(params, tree)
        else:
            assert text.startswith(f"{tmp_path / 'bad'}: ")


def raw_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def ours(leaves, **more):
    return {"jaxprune": json.dumps({"version": 1, "sparsity": 0.5, "leaves": leaves} | more)}


def leaf(shape, packed, dtype="float32"):
    return {"shape": shape, "dtype": dtype, "packed": packed}


def packed_header(about, n_bits=1, n_values=4):
    return {
        "__metadata__": about,
        "w:bits": entry([n_bits], 0, n_bits, "U8"),
        "w:values": entry([n_values // 4], n_bits, n_bits + n_values),
    }


TWICE = b'{"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}, "a": 3}'
HOSTILE = {
    "empty": (None, b"", ("0 bytes",)),
    "header longer than the file": (({}, b"", 10**9), None, ("header", "1000000000 bytes")),
    "not JSON": ((b"hello!!!",), None, ("header", "JSON")),
    "not UTF-8": ((b"\xff\xfe",), None, ("header", "JSON")),
    "not an object": ((b"[]",), None, ("header", "object")),
    "nested without end": ((b"[" * 10**5,), None, ("header", "JSON")),
    "a name twice": ((TWICE, b"1"), None, ("header", "twice")),
    "metadata of numbers": (({"__metadata__": {"a": 1}},), None, ("metadata", "strings")),
    "metadata a list": (({"__metadata__": [1]},), None, ("metadata", "strings")),
    "an entry of nothing": (({"w": {}},), None, ("w:", "entry in the header")),
    "an entry a list": (({"w": [1, 2]},), None, ("w:", "entry in the header")),
    "negative lengths": (
        ({"w": entry([-2, -2], 0, 16)}, b"0" * 16),
        None,
        ("w:", "entry in the header"),
    ),
    "floats for lengths": (
        ({"w": entry([2.0], 0, 8)}, b"0" * 8),
        None,
        ("w:", "entry in the header"),
    ),
    "bools for lengths": (
        ({"w": entry([True], 0, 4)}, b"0" * 4),
        None,
        ("w:", "entry in the header"),
    ),
    "many axes": (({"w": entry([1] * 65, 0, 4)}, b"0" * 4), None, ("w:", "entry in the header")),
    "an unknown dtype": (
        ({"w": entry([2], 0, 8, "F128")}, b"0" * 8),
        None,
        ("w:", "dtype 'F128'"),
    ),
    "a dtype of objects": (({"w": entry([1], 0, 8, "O")}, b"0" * 8), None, ("w:", "dtype 'O'")),
    "a shape too large": (
        ({"w": entry([2**61], 0, 8)}, b"0" * 8),
        None,
        ("w:", "entry in the header"),
    ),
    "a large shape": (({"w": entry([2**58], 0, 8)}, b"0" * 8), None, ("w:", "8 bytes", "F32")),
    "a product that wraps": (
        ({"w": entry([2**32, 2**32], 0, 0)},),
        None,
        ("w:", "entry in the header"),
    ),
    "an empty one that wraps": (
        ({"w": entry([0, 2**40, 2**40], 0, 0)},),
        None,
        ("w:", "entry in the header"),
    ),
    "bools of seven": (
        ({"w": entry([2], 0, 2, "BOOL")}, b"\1\7"),
        None,
        ("w:", "bools", "0", "1"),
    ),
    "escape codes in a name": (
        ({"\x1b[2J": entry([1], 0, 4)}, b"0000"),
        None,
        ("'\\x1b[2J':", "printable"),
    ),
    "half a character in a name": (
        ({"\ud800": entry([1], 0, 4)}, b"0000"),
        None,
        ("'\\ud800':", "printable"),
    ),
    "many axes, packed": (
        (packed_header(ours({"w": leaf([1] * 65, True)})), b"\1" + b"0000"),
        None,
        ("w:", "damaged"),
    ),
    "a version that is true": (
        ({"__metadata__": ours({}, version=True)},),
        None,
        ("version True",),
    ),
    "notes twice": (
        ({"__metadata__": {"jaxprune": '{"version":1,"version":1,"leaves":{}}'}},),
        None,
        ("leaves", "damaged"),
    ),
    "a gap": (({"w": entry([1], 4, 8)}, b"0" * 8), None, ("w:", "4", "0")),
    "an overlap": (
        ({"a": entry([1], 0, 4), "w": entry([1], 2, 6)}, b"0" * 6),
        None,
        ("w:", "2", "4"),
    ),
    "data cut off": (({"w": entry([2], 0, 8)}, b"0" * 7), None, ("bytes", "header")),
    "data too long": (({"w": entry([2], 0, 8)}, b"0" * 9), None, ("bytes", "header")),
    "more than memory": (
        (packed_header(ours({"w": leaf([2**50], True)}), 2**47, 0),),
        None,
        ("bytes", "header"),
    ),
    "notes not JSON": (({"__metadata__": {"jaxprune": "{"}},), None, ("leaves", "damaged")),
    "notes without leaves": (({"__metadata__": {"jaxprune": "{}"}},), None, ("leaves", "damaged")),
    "leaves a list": (({"__metadata__": ours([])},), None, ("leaves", "damaged")),
    "a newer version": (
        ({"__metadata__": ours({}, version=2)},),
        None,
        ("version 2",),
    ),
    "no data": (({"__metadata__": ours({"w": leaf([2], False)})},), None, ("data", "w")),
    "a leaf unheard of": (
        ({"__metadata__": ours({}), "w": entry([1], 0, 4)}, b"0000"),
        None,
        ("w:", "damaged"),
    ),
    "another shape": (
        ({"__metadata__": ours({"w": leaf([2], False)}), "w": entry([1], 0, 4)}, b"0000"),
        None,
        ("w:", "float32", "(2,)"),
    ),
    "a leaf of objects": (
        ({"__metadata__": ours({"w": leaf([1], False, "object")}), "w": entry([1], 0, 4)}, b"0000"),
        None,
        ("w:", "dtype 'object'"),
    ),
    "values but no bits": (
        ({"__metadata__": ours({"w": leaf([1], True)}), "w:values": entry([1], 0, 4)}, b"0000"),
        None,
        ("w:", "damaged"),
    ),
    "too few bytes of bits": (
        (packed_header(ours({"w": leaf([9], True)})), b"\1" + b"0000"),
        None,
        ("w:", "float32", "(9,)"),
    ),
    "more values than entries": (
        (packed_header(ours({"w": leaf([1], True)}), 1, 8), b"\1" + b"0" * 8),
        None,
        ("w:", "float32", "(1,)"),
    ),
    "too many bits": (
        (packed_header(ours({"w": leaf([8], True)})), b"\3" + b"0000"),
        None,
        ("w:", "2 bits", "1 value"),
    ),
    "bits behind the end": (
        (packed_header(ours({"w": leaf([3], True)})), b"\x08" + b"0000"),
        None,
        ("w:", "1 bit", "1 value"),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path, name):
    parts, raw, said = HOSTILE[name]
    path = tmp_path / "bad"
    path.write_bytes(raw) if parts is None else raw_file(path, *parts)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {says(*said)}"):
        load(path)


def test_a_decompression_bomb_is_refused_before_memory_is_allocated(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    n = 2**50
    header = json.dumps(packed_header(ours({"w": leaf([n], True)}), n // 8, 0)).encode()
    body = len(header).to_bytes(8, "little") + header + bytes(10**6)
    (tmp_path / "bad").write_bytes(
        zstandard.ZstdCompressor(write_content_size=False).compress(body)
    )
    with pytest.raises(ValueError, match=says("/bad:", "8421376 bytes", "140737488355690")):
        load(tmp_path / "bad")


def test_the_limit_of_memory_can_be_set(tmp_path):
    save(tmp_path / "a", {"w": np.zeros(1000, np.float32)})
    with pytest.raises(ValueError, match=says("4,000 bytes", "3,999", "max_bytes=4000")):
        load(tmp_path / "a", max_bytes=3999)
    assert load(tmp_path / "a", max_bytes=4000)["w"].size == 1000


# --- invalid arguments


def like_cases():
    w = np.zeros((2, 3), np.float32)
    yield {"v": w}, ValueError, ("/a:", "v", "w")
    yield {}, ValueError, ("/a:", "w", "`like`")
    yield {"w": w.T}, ValueError, ("/a: w:", "float32 of shape (2, 3)", "`like`", "(3, 2)")
    yield {"w": w.astype("f8")}, ValueError, ("/a: w:", "`like`", "float64 of shape (2, 3)")
    yield {"w": 1.0}, TypeError, ("like: w:", "float", "array")
    yield {"w": np.zeros((4, 3), np.float32)}, ValueError, ("/a: w:", "shrunk", "resize_nnx")


@pytest.mark.parametrize("like, kind, said", tuple(like_cases()))
def test_like_must_fit(tmp_path, like, kind, said):
    save(tmp_path / "a", {"w": np.zeros((2, 3), np.float32)})
    with pytest.raises(kind, match=says(*said)):
        load(tmp_path / "a", like=like)


UNFIT = {
    "float": ({"w": 1.0}, {}, TypeError, ("w:", "1.0", "array")),
    "object": ({"w": np.array([None])}, {}, TypeError, ("w:", "dtype object")),
    "text": ({"w": np.array(["a"])}, {}, TypeError, ("w:", "dtype <U1")),
    "key": (
        {"k": jax.random.key(0)},
        {},
        TypeError,
        ("k:", "key<fry>", "jax.random.key_data(key)"),
    ),
    "level": ({}, {"level": 23}, ValueError, ("level", "1 to 22", "None", "23")),
    "bool level": ({}, {"level": True}, ValueError, ("level", "1 to 22", "True")),
    "metadata": (
        {},
        {"metadata": {"a": 1}},
        TypeError,
        ("metadata", "'a': 1", "'a': '1'"),
    ),
    "our name": ({}, {"metadata": {"jaxprune": ""}}, ValueError, ("metadata", "'jaxprune'")),
    "masks": (
        {"w": np.ones(2)},
        {"masks": {"v": np.ones(2)}},
        ValueError,
        ("v:", "mask"),
    ),
    "twice": ({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, {}, ValueError, ("a/b:", "two leaves")),
    "taken": (
        {"a": np.zeros(99), "a:bits": np.ones(1)},
        {},
        ValueError,
        ("a:bits:", "name"),
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_leaf_that_cannot_be_saved_is_an_error_that_says_why(tmp_path, name):
    tree, arguments, kind, said = UNFIT[name]
    with pytest.raises(kind, match=says(*said)):
        save(tmp_path / "a", tree, **arguments)
    assert not list(tmp_path.iterdir())


def test_paths_that_dicts_can_not_hold_need_like(tmp_path):
    tree = {"a": np.ones(1), "a/b": np.ones(2)}
    save(tmp_path / "a", tree)
    with pytest.raises(ValueError, match=says("/a: a", "like=")):
        load(tmp_path / "a")
    assert_same(load(tmp_path / "a", like=tree), tree)


@pytest.mark.parametrize("limit", (-1, 1.0, True))
def test_max_bytes_must_be_a_size(tmp_path, limit):
    with pytest.raises(ValueError, match=says("max_bytes", repr(limit), "integer", "0")):
        load(tmp_path / "a", max_bytes=limit)


# --- atomic writes


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    save(path, {"w": np.ones(2)})

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxprune._files.atomic.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(path, {"w": np.zeros(2)})
    assert load(path)["w"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_whose_writer_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def write():
        with atomic_file(path) as file:
            file.write(b"ne")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_paths_that_cannot_be_written_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=says(str(tmp_path / "no"), "folder")):
        save(tmp_path / "no" / "a", {})
    with pytest.raises(IsADirectoryError, match=says(str(tmp_path), "name of a file")):
        save(tmp_path, {})
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    "package, call",
    (
        ("zstandard", lambda folder: save(folder / "a", {"w": np.ones(2)})),
        ("zstandard", lambda folder: load(folder / "zst")),
        ("scipy", lambda folder: to_csr({"w": np.ones((2, 2))})),
    ),
)
def test_a_missing_extra_says_what_to_type(tmp_path, monkeypatch, package, call):
    save(tmp_path / "zst", {})
    for name in [package, *(n for n in sys.modules if n.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=says(package, "pip install 'jaxprune[files]'")):
        call(tmp_path)
    save(tmp_path / "plain", {"w": np.ones(2)}, level=None)
    assert load(tmp_path / "plain")["w"].tolist() == [1, 1]


# --- other formats


def sparse_tree():
    rng = np.random.default_rng(0)
    w = np.where(rng.random((20, 30)) < 0.2, rng.normal(size=(20, 30)), 0).astype(np.float32)
    return {"fc": {"kernel": w, "bias": np.ones(30, np.float32)}, "conv": np.ones((2, 2, 3))}


@pytest.mark.parametrize("convert", (to_csr, to_bcoo, to_bcsr))
def test_matrices_become_sparse_and_other_leaves_stay(convert):
    pytest.importorskip("scipy")
    tree = sparse_tree()
    converted = convert(tree)
    assert converted["conv"] is tree["conv"]
    assert converted["fc"]["bias"] is tree["fc"]["bias"]
    dense = converted["fc"]["kernel"].todense()
    np.testing.assert_array_equal(np.asarray(dense), tree["fc"]["kernel"])


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16", "int8", "bool"))
def test_every_sparse_array_stores_what_is_not_zero(dtype):
    sparse = pytest.importorskip("scipy.sparse")
    tiny = ml_dtypes.finfo(dtype).smallest_subnormal if "float" in dtype else 1
    w = np.array([[0, tiny, 0], [0, 0, 0], [1, 0, -tiny], [-0.0, 0, 0]]).astype(dtype)
    stored = w[w != 0]
    bcoo, bcsr = to_bcoo({"w": w})["w"], to_bcsr({"w": w})["w"]
    assert bcoo.nse == bcsr.nse == len(stored) == 3
    for x in (bcoo, bcsr):
        assert x.shape == w.shape
        assert np.asarray(x.data).tobytes() == stored.tobytes()
        assert x.indices.dtype == np.int32
    np.testing.assert_array_equal(np.asarray(bcoo.indices), np.argwhere(w != 0))
    rows = sparse.csr_array((w != 0).astype(int))
    np.testing.assert_array_equal(np.asarray(bcsr.indices), rows.indices)
    np.testing.assert_array_equal(np.asarray(bcsr.indptr), rows.indptr)
    if dtype in ("float32", "int8", "bool"):
        assert to_csr({"w": w})["w"].nnz == 3


@pytest.mark.parametrize("shape", ((0, 3), (3, 0), (1, 1)))
def test_a_matrix_of_nothing_is_sparse_too(shape):
    for convert in (to_bcoo, to_bcsr):
        assert convert({"w": np.zeros(shape)})["w"].nse == 0


def test_scipy_reads_the_csr_files(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    tree = sparse_tree()
    assert save_csr(tmp_path / "out", tree) == [tmp_path / "out" / "fc" / "kernel.npz"]
    csr = sparse.load_npz(tmp_path / "out" / "fc" / "kernel.npz")
    np.testing.assert_array_equal(csr.toarray(), tree["fc"]["kernel"])
    assert csr.dtype == np.float32


def test_leaves_that_other_formats_cannot_hold_are_errors(tmp_path):
    pytest.importorskip("scipy")
    half = {"w": np.ones((2, 2), ml_dtypes.bfloat16)}
    with pytest.raises(TypeError, match=says("w:", "SciPy", "bfloat16", "Cast")):
        to_csr(half)
    with pytest.raises(TypeError, match=says("w:", "safetensors", "complex128")):
        save_safetensors(tmp_path / "a", {"w": np.ones(2, complex)})
    with pytest.raises(ValueError, match=says("2-D", "b")):
        save_csr(tmp_path, {"b": np.ones(2)})
    with pytest.raises(ValueError, match=says("../w:", "Rename")):
        save_csr(tmp_path / "out", {"../w": np.ones((2, 2))})


def test_a_leaf_of_several_chunks_comes_back(monkeypatch):
    monkeypatch.setattr(leaves, "_CHUNK", 8)
    array = np.where(np.arange(30) % 3 == 0, np.arange(30), 0).astype(np.float32)
    encoded = leaves.encode_leaf("w", array)
    assert encoded.is_sparse
    leaf = leaves.Leaf("w", array.shape, array.dtype, encoded.n_stored)
    np.testing.assert_array_equal(leaves.decode_leaf(leaf, *encoded.buffers), array)


@pytest.mark.parametrize("n", range(1, 9))
def test_the_data_of_a_file_begin_at_a_multiple_of_eight(tmp_path, n):
    save(tmp_path / "a", {"w" * n: np.ones(3, np.float32)}, level=None)
    assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") % 8 == 0
