"""`load`, `load_metadata` and `load_packed` read a model in shards as they read one file."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxprune
from helpers import assert_same, assert_says
from safetensors_files import N_BITS, random_tensor, write_file
from sharded_models import (
    FIRST,
    INDEX,
    SECOND,
    WRONG,
    edited,
    foreign_shard,
    joined,
    new_model,
    two_shards,
    write_model,
)


@pytest.fixture
def model(tmp_path):
    return new_model(tmp_path)


@st.composite
def models(draw):
    """Shards with tensors of all dtypes; a leaf has any of them, in any order."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True))
    tensors = {
        f"layer/{name}": random_tensor(i, draw(st.sampled_from(list(N_BITS))), (4, 2))
        for i, name in enumerate(names)
    }
    file_of = {name: draw(st.sampled_from(("x", "y", "z"))) for name in tensors}
    return {
        f"{file}.safetensors": {name: tensors[name] for name in tensors if file_of[name] == file}
        for file in sorted(set(file_of.values()))
    }


@given(models())
def test_shards_are_read_as_the_file_that_holds_all_of_them(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("f")
    write_model(folder / "model", parts, {"format": "pt"})
    write_file(folder / "one.safetensors", joined(parts), {"format": "pt"})
    expected = jaxprune.load(folder / "one.safetensors")
    for path in (folder / "model", folder / "model" / INDEX, str(folder / "model")):
        assert_same(jaxprune.load(path), expected)
        assert jaxprune.load_metadata(path) == jaxprune.load_metadata(folder / "one.safetensors")
    assert jaxprune.load_metadata(folder / "model").order == tuple(joined(parts))


@pytest.mark.skip_in("debug_nans", reason="random bits hold NaN")
def test_like_gives_its_structure_and_devices(model):
    params = jaxprune.load(model)
    params = {name: x if x.dtype == np.int64 else jnp.asarray(x) for name, x in params.items()}
    again = jaxprune.load(model, like=params)
    assert {name: type(x) for name, x in again.items()} == {n: type(x) for n, x in params.items()}
    assert_same(again, params)
    with pytest.raises(ValueError, match=r"model: does not have new, which `like` has"):
        jaxprune.load(model, like=params | {"new": params["a.bias"]})
    with pytest.raises(ValueError, match=r"model: a\.bias: is float32"):
        jaxprune.load(model, like=params | {"a.bias": params["a.weight"]})


def test_all_shards_together_must_fit_into_the_limit(model):
    needed = sum(x.nbytes for x in jaxprune.load(model).values())
    assert jaxprune.load(model, max_bytes=needed)
    with pytest.raises(ValueError, match=f"{INDEX}: holds {needed} bytes .*max_bytes={needed} "):
        jaxprune.load(model, max_bytes=needed - 1)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_index_or_shard_is_refused(model, name):
    change, said = WRONG[name]
    change(model)
    for read in (jaxprune.load, jaxprune.load_metadata, jaxprune.load_packed):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read(model)
        error = str(caught.value).replace(f"{model}/", "")
        assert_says(error, *said)
        assert len(error.splitlines()) == 1
        assert "\x1b" not in error


def test_a_missing_shard_is_a_missing_file(model):
    (model / SECOND).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 2 shards is missing: {SECOND}\. Download"):
        jaxprune.load(model)


def test_an_index_that_does_not_exist_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{INDEX}: there is no such file"):
        jaxprune.load(tmp_path / INDEX)


def test_a_folder_without_an_index_says_which_file_it_has(model):
    (model / INDEX).unlink()
    for read in (jaxprune.load, jaxprune.load_metadata, jaxprune.load_packed):
        with pytest.raises(IsADirectoryError) as caught:
            read(model)
        error = str(caught.value).replace(f"{model}/", "")
        assert_says(error, "no index of shards", FIRST, "jaxprune export")


def test_a_shard_that_changes_after_its_header_was_read_is_an_error(model, monkeypatch):
    arrays = jaxprune._files.leaf_files.LeafReader.arrays

    def changing(self):
        foreign_shard(model)
        return arrays(self)

    monkeypatch.setattr(jaxprune._files.leaf_files.LeafReader, "arrays", changing)
    with pytest.raises(ValueError, match=f"{SECOND}: has changed while it was read"):
        jaxprune.load(model)


def test_a_tensor_that_is_cut_off_inside_a_compressed_shard_is_an_error(model):
    zstandard = pytest.importorskip("zstandard")
    data = zstandard.ZstdCompressor(write_checksum=True).compress((model / SECOND).read_bytes())
    (model / SECOND).write_bytes(data)
    assert_same(jaxprune.load(model)["c.step"], jaxprune.load(model)["c.step"])
    (model / SECOND).write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"{SECOND}: .*cut off|{SECOND}: .*damaged"):
        jaxprune.load(model)


def test_names_that_begin_with_another_name_need_like(model):
    for file in model.glob("*.safetensors"):
        file.unlink()
    parts = {FIRST: {"a": random_tensor(0, "F32", (2,))}}
    parts[SECOND] = {"a/b": random_tensor(1, "F32", (2,))}
    write_model(model, parts)
    with pytest.raises(ValueError, match=r"a is a leaf, and other paths begin with it.*like="):
        jaxprune.load(model)


def test_packed_kernels_are_read_from_shards(tmp_path):
    kernel = np.zeros((6, 32), np.float32)
    kernel[2, :16] = 1
    tensors = {"fc.kernel": ("F32", [6, 32], kernel.tobytes())}
    rest = {"fc.bias": random_tensor(0, "F32", (32,))}
    write_model(tmp_path / "model", {FIRST: tensors, SECOND: rest})
    others, packed = jaxprune.load_packed(tmp_path / "model")
    assert list(others) == ["fc.bias"]
    np.testing.assert_array_equal(jaxprune.unpack_matrix(packed["fc.kernel"]), kernel)


def test_a_pruned_model_goes_from_shards_to_one_file_in_python(model, tmp_path):
    """The way of a user: load, prune, save with the metadata and the order."""
    about, params = jaxprune.load_metadata(model), jaxprune.load(model)
    pruned, _ = jaxprune.prune_params(params, 0.5, include="c.weight")
    out = tmp_path / "pruned.safetensors"
    jaxprune.save_safetensors(out, pruned, metadata=about.metadata, order=about.order)
    assert jaxprune.load_metadata(out) == about
    assert np.count_nonzero(jaxprune.load(out)["c.weight"]) == 64
    params["c.weight"] = np.asarray(pruned["c.weight"])
    assert_same(jaxprune.load(out), params)


def test_the_first_shard_wins_where_metadata_differ(model):
    shutil.copy(model / FIRST, model / "x")
    write_file(model / FIRST, two_shards()[FIRST], {"format": "pt", "by": "first"})
    write_file(model / SECOND, two_shards()[SECOND], {"format": "pt", "by": "second", "c": "d"})
    expected = {"format": "pt", "by": "first", "c": "d"}
    assert jaxprune.load_metadata(model).metadata == expected


def test_an_index_without_metadata_is_read(model):
    edited(lambda index: index.pop("metadata"))(model)
    assert "metadata" not in json.loads((model / INDEX).read_text())
    assert set(jaxprune.load(model)) == set(joined(two_shards()))
