"""What is not changed stays: metadata, order, dtypes, and every bit of every other tensor."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxprune
from bad_input import assert_error, case, params
from helpers import says
from jaxprune._files import dtypes
from safetensors_files import N_BITS, random_tensor, read_file, write_file

pytest.importorskip("zstandard")

metadata = st.none() | st.dictionaries(st.sampled_from(("format", "a b", "é")), st.text(max_size=5))


@st.composite
def files(draw):
    """Tensors of all dtypes, in any order of names, and metadata."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True))
    tensors = {}
    for name in names:
        code = draw(st.sampled_from(list(N_BITS)))
        shape = draw(st.sampled_from(((), (0,), (8,), (4, 6), (3, 5, 4), (1, 8))))
        if code.startswith(("F4", "F6")) and not shape:
            shape = (4,)
        tensors[f"layer.{name}/w"] = random_tensor(draw(st.integers(0, 99)), code, shape)
    return tensors, draw(metadata)


def test_every_code_of_safetensors_is_known():
    assert set(dtypes.CODES) == set(N_BITS)
    assert {code: dtypes.n_bits(code) for code in dtypes.CODES} == N_BITS


@given(files(), st.booleans())
def test_a_file_that_is_loaded_and_saved_is_the_same_file(tmp_path_factory, file, compact):
    tensors, metadata = file
    folder = tmp_path_factory.mktemp("f")
    a, b = folder / "a.safetensors", folder / "b.safetensors"
    write_file(a, tensors, metadata)
    if compact:
        about = jaxprune.load_metadata(a)
        kept = {"metadata": about.metadata, "order": about.order}
        jaxprune.save(folder / "c.zst", jaxprune.load(a), **kept)
        a = folder / "c.zst"
    about = jaxprune.load_metadata(a)
    assert about.metadata == (metadata or {})
    assert about.order == tuple(tensors)
    kept = {"metadata": about.metadata, "order": about.order}
    jaxprune.save_safetensors(b, jaxprune.load(a), **kept)
    assert read_file(b) == (tensors, metadata or None)
    assert list(read_file(b)[0]) == list(tensors)


@pytest.mark.parametrize("code", N_BITS)
def test_the_safetensors_library_reads_what_is_written(tmp_path, code):
    library = pytest.importorskip("safetensors")
    is_new = code.startswith(("F4", "F6", "C64")) or code in (
        "F8_E8M0",
        "F8_E4M3FNUZ",
        "F8_E5M2FNUZ",
    )
    if is_new and library.__version__ < "0.8":
        pytest.skip("the installed safetensors does not know this dtype yet")
    tensors = {"w": random_tensor(0, code, (4, 8)), "b": random_tensor(1, "F32", (3,))}
    write_file(tmp_path / "a", tensors)
    jaxprune.save_safetensors(tmp_path / "b", jaxprune.load(tmp_path / "a"))
    for name, entry in library.deserialize((tmp_path / "b").read_bytes()):
        assert (entry["dtype"], entry["shape"], bytes(entry["data"])) == tensors[name]


def test_small_floats_are_read_as_their_values(tmp_path):
    tensors = {
        # 1 and 2 share the first byte, 1 in its low half.
        "f4": ("F4", [2, 2], bytes([0x42, 0x0E])),
        # 1, -1, 0 and 8 in three bytes, from the lowest bit on.
        "f6": ("F6_E3M2", [4], (0b011000_000000_101100_001100).to_bytes(3, "little")),
        "f8": ("F8_E8M0", [2], bytes([127, 130])),
    }
    write_file(tmp_path / "a", tensors)
    params = jaxprune.load(tmp_path / "a")
    assert params["f4"].dtype == ml_dtypes.float4_e2m1fn
    assert params["f4"].astype(float).tolist() == [[1.0, 2.0], [-4.0, 0.0]]
    assert params["f6"].astype(float).tolist() == [1.0, -1.0, 0.0, 8.0]
    assert params["f8"].astype(float).tolist() == [1.0, 8.0]
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert jaxprune.load(tmp_path / "a", like=like)["f4"].shape == (2, 2)


@pytest.mark.parametrize("n_bits", (2, 4, 6))
def test_long_arrays_of_small_entries_come_back(n_bits, monkeypatch):
    monkeypatch.setattr(dtypes, "_CHUNK", 16)
    for n in (0, 4, 16, 20, 64, 100):
        entries = np.random.default_rng(n).integers(0, 2**n_bits, n, np.uint8)
        raw = dtypes.join_entries(entries, n_bits)
        bits = "".join(f"{entry:0{n_bits}b}"[::-1] for entry in entries)
        expected = [int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8)]
        assert raw.tolist() == expected
        assert dtypes.separate_entries(raw, n_bits).tolist() == entries.tolist()


def test_entries_that_do_not_fill_bytes_are_refused(tmp_path):
    write_file(tmp_path / "a", {"w": ("F4", [3], b"xx")})
    with pytest.raises(ValueError, match=says(f"{tmp_path / 'a'}: w:", "F4", "(3,)", "whole")):
        jaxprune.load(tmp_path / "a")
    w = np.ones(3, ml_dtypes.float4_e2m1fn)
    with pytest.raises(ValueError, match=says("w:", "4 bits", "(3,)", "jaxprune.save")):
        jaxprune.save_safetensors(tmp_path / "b", {"w": w})
    jaxprune.save(tmp_path / "c", {"w": w})
    assert jaxprune.load(tmp_path / "c")["w"].tolist() == w.tolist()


def test_metadata_needs_no_values(tmp_path):
    """Only the header is read: a file cut off behind it has metadata, but can't be loaded."""
    jaxprune.save(tmp_path / "a", {"w": np.ones(9)}, metadata={"by": "me"}, level=None)
    assert jaxprune.load_metadata(tmp_path / "a").metadata == {"by": "me"}
    assert jaxprune.load_metadata(tmp_path / "a").order == ("w",)


ABC = {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}
WRONG = [
    case(
        "metadata_none",
        lambda: jaxprune.load_metadata(None),
        TypeError,
        ("load_metadata: path", "None", "string"),
    ),
    case(
        "metadata_folder",
        lambda: jaxprune.load_metadata("."),
        IsADirectoryError,
        (None, "folder", "jaxprune export"),
    ),
    case(
        "order_string",
        lambda: jaxprune.save("a.zst", ABC, order="abc"),
        TypeError,
        ("save: order", "'abc'", "jaxprune.load_metadata"),
    ),
    case(
        "order_of_too_few",
        lambda: jaxprune.save_safetensors("a", ABC, order=["a", "b"]),
        ValueError,
        ("save_safetensors: order", ("does not have c",), "all leaves"),
    ),
    case(
        "order_of_too_many",
        lambda: jaxprune.save_safetensors("a", ABC, order=["a", "b", "c", "d"]),
        ValueError,
        ("save_safetensors: order", "has d, which the params do not have", "once"),
    ),
    case(
        "order_twice",
        lambda: jaxprune.save("a", ABC, order=["a", "b", "a", "c"]),
        ValueError,
        ("save: order", "has a, more than once", "once"),
    ),
    case(
        "metadata_numbers",
        lambda: jaxprune.save_safetensors("a", params(), metadata={"step": 3}),
        TypeError,
        ("metadata", "'step': 3", "'step': '3'"),
    ),
    case(
        "metadata_reserved",
        lambda: jaxprune.save_safetensors("a", params(), metadata={"jaxprune": "x"}),
        ValueError,
        ("metadata", "'jaxprune'", "another name"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", WRONG)
def test_wrong_metadata_or_order(tmp_path, monkeypatch, call, kind, parts):
    monkeypatch.chdir(tmp_path)
    assert_error(call, kind, parts)
    assert not list(tmp_path.iterdir())
