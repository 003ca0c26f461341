"""The commands that work on files: output, files and errors."""

import contextlib
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import zipfile
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import jaxprune
from helpers import assert_same, assert_says, n_calls, says, stepper
from jaxprune._cli import commands, screen
from jaxprune._cli.stored_masks import mask_paths
from jaxprune._files import footprint, interchange, orbax
from jaxprune._files.any_kind import open_source
from jaxprune._files.interchange import save_safetensors
from jaxprune._files.leaf_files import LeafReader
from jaxprune._files.leaves import Leaf
from jaxprune._files.save_load import load, save
from jaxprune._state.bit_masks import to_bits

typer = pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("zstandard")

from cli_command import as_json, run  # noqa: E402
from jaxprune._cli.words import as_option, structure_for, structure_text  # noqa: E402


def tree(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        "fc": {"kernel": rng.normal(size=(20, 30)).astype(dtype), "bias": np.ones(30, dtype)},
        "head": rng.normal(size=(30, 10)).astype(dtype),
        "steps": np.arange(3),
    }


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    save_safetensors(path, tree())
    return path


# --- prune


@pytest.mark.parametrize(
    "suffix, dtype",
    [
        (".safetensors", np.float64),
        (".safetensors.zst", np.float32),
        (".safetensors.zst", ml_dtypes.bfloat16),
        pytest.param(".safetensors", np.float32, marks=pytest.mark.slow),
        pytest.param(".safetensors", ml_dtypes.bfloat16, marks=pytest.mark.slow),
        pytest.param(".safetensors.zst", np.float64, marks=pytest.mark.slow),
    ],
)
def test_prune_does_what_prune_params_does(tmp_path, dtype, suffix, x64):
    save_safetensors(tmp_path / "in.safetensors", tree(dtype))
    out = tmp_path / f"out{suffix}"
    rules = {"exclude": "fc/bias", "overrides": {"head": 0.5, "hea.": 0.3}}
    words = ("--exclude", "fc/bias", "--override", "head=0.5", "--override", "hea.=0.3")
    printed, _ = run("prune", tmp_path / "in.safetensors", "-o", out, "-s", 0.9, *words)
    expected, _ = jaxprune.prune_params(tree(dtype), 0.9, **rules)
    assert_same(load(out), jax.tree.map(np.asarray, expected))
    assert_says(printed, "unused: --override 'hea.'")
    assert f"wrote {out}, {out.stat().st_size:,} bytes" in printed


@pytest.mark.parametrize(
    "words, parts",
    (
        (("--exclude", "fc"), ("--exclude 'fc'", "fc/bias", "--exclude 'fc/.*'")),
        (("--include", "kernel"), ("--include 'kernel'", "--include '.*kernel'")),
        (("--override", "hed=0.5"), ("--override 'hed'", "--override 'head=0.5'")),
        (("--override", "fc/bias=0.5"), ("--override 'fc/bias'", "1-D", "--include 'fc/bias'")),
    ),
)
def test_a_rule_without_effect_ends_with_code_2_and_writes_nothing(model, tmp_path, words, parts):
    before = sorted(tmp_path.iterdir())
    errors = {
        run("plan", model, "-s", 0.5, *words, code=2)[1],
        run("prune", model, "-o", tmp_path / "out.npz", "-s", 0.5, *words, code=2)[1],
    }
    assert len(errors) == 1
    assert_says(errors.pop(), *parts)
    assert sorted(tmp_path.iterdir()) == before


def test_quantised_weights_and_their_scales_are_not_pruned(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "fc.weight": rng.integers(-99, 99, (8, 16)).astype(np.int8),
        "fc.weight_scale": rng.uniform(1, 2, (8, 1)).astype(np.float32),
        "head.weight": rng.normal(size=(8, 4)).astype(np.float32),
        "head.lora_A.default.weight": rng.normal(size=(4, 8)).astype(np.float32),
    }
    save_safetensors(tmp_path / "in.safetensors", arrays)
    out = tmp_path / "out.safetensors"
    report = as_json("prune", tmp_path / "in.safetensors", "-o", out, "-s", 0.5)
    assert {row["path"]: row["note"] for row in report["leaves"]} == {
        "fc.weight": "dtype int8",
        "fc.weight_scale": "quantisation scale",
        "head.weight": "",
        "head.lora_A.default.weight": "LoRA factor",
    }
    pruned = load(out)
    assert int(np.sum(pruned["head.weight"] == 0)) == 16
    for name in arrays.keys() - {"head.weight"}:
        np.testing.assert_array_equal(pruned[name], arrays[name])


def test_64_bit_weights_stay_64_bit_and_the_setting_is_unchanged(tmp_path):
    setting = jax.config.jax_enable_x64
    save_safetensors(tmp_path / "in.safetensors", tree(np.float64))
    run("prune", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors", "-s", 0.5)
    pruned, before = load(tmp_path / "out.safetensors")["head"], tree(np.float64)["head"]
    assert jax.config.jax_enable_x64 == setting
    np.testing.assert_array_equal(pruned[pruned != 0], before[pruned != 0])
    assert int(np.sum(pruned == 0)) == 150


def test_prune_as_json(model, tmp_path):
    report = as_json(
        "prune", model, "-o", tmp_path / "out.npz", "-s", 0.9, "--include", "fc/kernel"
    )
    assert report["out"] == str(tmp_path / "out.npz")
    assert report["bytes"] == (tmp_path / "out.npz").stat().st_size
    counts = {row["path"]: row["nonzero"] for row in report["leaves"]}
    assert counts == {"fc/kernel": 60, "fc/bias": 30, "head": 300, "steps": 3}
    with np.load(tmp_path / "out.npz") as arrays:
        assert {name: np.count_nonzero(arrays[name]) for name in counts} == counts | {"steps": 2}


def test_prune_says_which_leaves_had_more_zeros_than_were_asked_for(tmp_path):
    weights = {"sparse": np.eye(8, dtype=np.float32), "dense": np.ones((8, 8), np.float32)}
    save_safetensors(tmp_path / "a.safetensors", weights)
    words = ("prune", tmp_path / "a.safetensors", "-s", 0.5, "-o")
    [note] = as_json(*words, tmp_path / "b.safetensors")["notes"]
    assert_says(note, "zeros: sparse: ", "56 of 64 weights are zero", "32 planned")
    assert np.count_nonzero(load(tmp_path / "b.safetensors")["sparse"]) == 8
    weights["sparse"] = weights["dense"]
    save_safetensors(tmp_path / "a.safetensors", weights)
    assert as_json(*words, tmp_path / "c.safetensors")["notes"] == []


def test_plan_says_what_prune_does_and_writes_nothing(model, tmp_path):
    before = sorted(tmp_path.iterdir())
    planned = as_json("plan", model, "-s", 0.9, "--exclude", "head")
    assert sorted(tmp_path.iterdir()) == before
    pruned = as_json("prune", model, "-o", tmp_path / "a.npz", "-s", 0.9, "--exclude", "head")
    assert planned["leaves"] == pruned["leaves"]
    assert planned["title"] == pruned["title"] == "plan: sparsity 0.9"  # a file has no steps
    text, _ = run("plan", model, "-s", 0.9, "--exclude", "head")
    assert "excluded by 'head'" in text


def test_one_leaf_is_in_memory_at_a_time(tmp_path, monkeypatch):
    save_safetensors(tmp_path / "in.safetensors", {f"w{i}": np.ones((8, 8)) for i in range(5)})
    log, arrays, pruned = [], LeafReader.arrays, commands._pruned

    def logged(self):
        for name, array in arrays(self):
            log.append(f"read {name}")
            yield name, array

    def logged_prune(name, *args):
        log.append(f"prune {name}")
        return pruned(name, *args)

    monkeypatch.setattr(LeafReader, "arrays", logged)
    monkeypatch.setattr(commands, "_pruned", logged_prune)
    run("prune", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors.zst", "-s", 0.5)
    names = [f"w{i}" for i in range(5)]
    assert log == [f"{verb} {name}" for name in names for verb in ("read", "prune")]


# --- export


@pytest.mark.parametrize("suffix", (".safetensors", ".safetensors.zst", ".npz"))
def test_export_keeps_every_bit(tmp_path, suffix):
    params, _ = jaxprune.prune_params(tree(), 0.9)
    params = jax.tree.map(np.asarray, params)
    params["fc"]["kernel"] = params["fc"]["kernel"] * np.float32(-1)  # -0.0
    save(tmp_path / "a.zst", params)
    run("export", tmp_path / "a.zst", "-o", tmp_path / f"b{suffix}")
    run("export", tmp_path / f"b{suffix}", "-o", tmp_path / "c.zst")
    assert_same(load(tmp_path / "c.zst"), params)


def test_export_as_csr_leaves_out_what_is_no_matrix(model, tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    text, _ = run("export", model, "-o", tmp_path / "out", "--format", "csr")
    assert_says(text, "left out", "fc/bias")
    csr = sparse.load_npz(tmp_path / "out" / "fc" / "kernel.npz")
    np.testing.assert_array_equal(csr.toarray(), tree()["fc"]["kernel"])
    assert "exists" in run("export", model, "-o", tmp_path / "out", "--format", "csr", code=1)[1]


# --- inspect


def test_inspect_counts_and_warns(tmp_path):
    w = np.ones((16, 8), np.float32)
    w[::2] = -0.0
    w[1, 0] = np.nan
    save(tmp_path / "a.zst", {"w": w, "n": np.arange(4)})
    report = as_json("inspect", tmp_path / "a.zst")
    assert report["kind"] == "jaxprune"
    assert report["file_bytes"] == (tmp_path / "a.zst").stat().st_size
    rows = {row["path"]: row for row in report["leaves"]}
    assert (rows["w"]["nonzero"], rows["w"]["sparsity"], rows["w"]["minus_zero"]) == (64, 0.5, 64)
    assert rows["w"]["structure"] == "channels, axis 0"
    assert rows["n"]["structure"] == "unstructured"
    assert report["bytes"]["dense"] == w.nbytes + 32
    assert set(report["bytes"]) == set(footprint.QUICK + footprint.SLOW)
    assert any(re.search(says("w:", "64", "-0.0"), line) for line in report["warnings"])
    assert any(re.search(says("w:", "1", "NaN"), line) for line in report["warnings"])
    text, _ = run("inspect", tmp_path / "a.zst", "--quick")
    assert "Bytes by format" in text
    assert "gzip" not in text


def test_inspect_warns_of_one_weight_in_the_singular(tmp_path):
    save(tmp_path / "a.zst", {"w": np.array([[1.0, -0.0], [np.nan, 2.0]], np.float32)})
    zero, nan = as_json("inspect", tmp_path / "a.zst")["warnings"]
    assert zero.startswith("w: 1 zero is -0.0, which compresses badly. ")
    assert zero.endswith(" makes it +0.0.")
    assert nan == "w: 1 entry is NaN or infinite."


@pytest.mark.parametrize("packed", (False, True))
@pytest.mark.parametrize("managed", (False, True))
def test_a_checkpoint_is_read_and_its_leaks_are_found(tmp_path, packed, managed):
    ocp = pytest.importorskip("orbax.checkpoint")
    params = {"fc": {"kernel": jnp.arange(1.0, 41).reshape(4, 10), "bias": jnp.ones(4)}}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.adam(0.1), packed=packed)
    _, state, sparse = stepper(tx)(params, tx.init(params), params)
    for name, kept in (("good", sparse), ("leaky", params)):
        item = {"params": kept, "opt_state": state}
        if managed:
            with ocp.CheckpointManager(tmp_path / name) as manager:
                manager.save(3, args=ocp.args.StandardSave(item))
                manager.wait_until_finished()
        else:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / name, item)
    assert as_json("inspect", tmp_path / "good")["warnings"] == []
    [leak] = as_json("inspect", tmp_path / "leaky")["warnings"]
    assert leak.startswith("params/fc/kernel: 20 of 20 weights ")
    run("export", tmp_path / "good", "-o", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays) == {"params/fc/kernel", "params/fc/bias"}
        np.testing.assert_array_equal(arrays["params/fc/kernel"], sparse["fc"]["kernel"])


def test_a_checkpoint_is_read_a_group_of_leaves_at_a_time(tmp_path, monkeypatch):
    ocp = pytest.importorskip("orbax.checkpoint")
    weights = {f"w{i}": np.full((4, 4), i + 1, np.float32) for i in range(4)}
    half = {"h": np.ones(3, ml_dtypes.bfloat16), "text": "words", "scalar": np.int32(3), "none": {}}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", {"params": weights, "rest": [half, 4.5]})
    monkeypatch.setattr(orbax, "_GROUP_BYTES", 2 * 64)
    read, restored = [], orbax.Tree._restore

    def logged(self, positions):
        leaves = restored(self, positions)
        read.append([name for name, place in self._position_of.items() if place in positions])
        return leaves

    monkeypatch.setattr(orbax.Tree, "_restore", logged)
    with open_source(tmp_path / "a") as source:
        arrays = dict(source.arrays())
    pairs = [["params/w0", "params/w1"], ["params/w2", "params/w3"]]
    assert read == [*pairs, ["rest/0/h", "rest/0/scalar", "rest/1"]]  # text is not read
    assert [leaf.path for leaf in source.leaves] == list(arrays) == [*read[0], *read[1], *read[2]]
    for leaf in source.leaves:
        assert (arrays[leaf.path].shape, arrays[leaf.path].dtype) == (leaf.shape, leaf.dtype)
    assert_same(arrays["params/w3"], weights["w3"])
    assert_same(arrays["rest/0/h"], half["h"])
    read.clear()
    run("export", tmp_path / "a", "-o", tmp_path / "a.zst")
    assert read == [*pairs, ["rest/0/h", "rest/0/scalar", "rest/1"]]
    assert_same(load(tmp_path / "a.zst")["params"], weights)


def test_damaged_checkpoints_are_refused(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.PyTreeCheckpointer() as checkpointer:
        for name in "ab":
            checkpointer.save(tmp_path / "many" / name, {"w": np.ones((8, 8))})
    one = tmp_path / "many" / "a"
    run("inspect", one)
    assert_says(run("inspect", tmp_path / "many", code=1)[1], f"{tmp_path / 'many'}:", "a, b")
    for data in one.glob("**/d/*"):
        data.write_bytes(data.read_bytes()[:9])
    _, error = run("inspect", one, code=1)
    assert_says(error, f"{one}:", "orbax checkpoint")
    (one / "_METADATA").write_text("{")
    _, error = run("inspect", one, code=1)
    assert_says(error, f"{one}:", "orbax checkpoint")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("packed", (False, True))
@pytest.mark.parametrize(
    "param, others, mask",
    (
        ("params/w", ("opt_state/0/mu/w", "ema/w"), "opt_state/1/masks/w"),
        ("w", ("x/w",), "masks/w"),
        ("state/params/w", ("state/opt_state/inner_state/0/nu/w",), "state/opt_state/masks/w"),
        ("model/w/value", ("opt/mu/w/value",), "opt/masks/w"),
        ("params/params/w", (), "opt_state/masks/params/w"),
    ),
)
def test_masks_are_found_wherever_they_are(tmp_path, packed, param, others, mask):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 20)).astype(np.float32)
    keeps = rng.random(w.shape) < 0.5
    held = np.asarray(to_bits(jnp.asarray(keeps))) if packed else keeps.astype(np.uint8)
    shown = {param: w, mask: held} | dict.fromkeys(others, w)
    np.savez(tmp_path / "a.npz", **shown)
    [leak] = as_json("inspect", tmp_path / "a.npz", "--quick")["warnings"]
    n = int(np.sum(~keeps))
    assert leak.startswith(f"{param}: {n} of {n} weights ")
    np.savez(tmp_path / "b.npz", **shown | {param: np.where(keeps, w, np.float32(0))})
    assert as_json("inspect", tmp_path / "b.npz", "--quick")["warnings"] == []


def test_finding_masks_is_linear_work():
    work = []
    for n in (200, 400):
        w, m = np.dtype(np.float32), np.dtype(np.uint8)
        leaves = [Leaf(f"{kind}{i}/w", (8, 20), w) for i in range(n) for kind in ("params/", "mu/")]
        leaves += [Leaf(f"opt/{i}/masks/{i}/w", (8, 3), m) for i in range(n)]
        found = {f"params/{i}/w": f"opt/{i}/masks/{i}/w" for i in range(n)}
        assert mask_paths(leaves) == found
        work.append(n_calls(mask_paths, leaves))
        twins = [Leaf(f"{i}/w", (8, 20), w) for i in range(n)]  # all fit all masks
        twins += [Leaf(f"opt/{i}/masks/w", (8, 3), m) for i in range(n)]
        assert mask_paths(twins) == {"0/w": f"opt/{n - 1}/masks/w"}
        work[-1] += n_calls(mask_paths, twins)
    assert work[1] < 2.2 * work[0]


def rows_kept(counts, shape):
    """A mask that keeps `counts` random entries of each row."""
    rng = np.random.default_rng(0)
    order = rng.random(shape).argsort(-1)
    return order < counts


STRUCTURES = {
    "dense": np.ones((8, 8), bool),
    "all zero": np.zeros((8, 8), bool),
    "unstructured": np.random.default_rng(0).random((32, 32)) < 0.3,
    "channels, axis 0": np.repeat(np.arange(16) % 3 == 0, 8).reshape(16, 8),
    "channels, axis 3": np.broadcast_to(np.arange(8) % 3 == 0, (3, 3, 4, 8)),
    "2 of 4, axis 1": rows_kept(2, (64, 4)).reshape(16, 16),
    "2 of 4, axis 0": rows_kept(2, (64, 4)).reshape(16, 16).T,
    # 2:4 whose last run of four has lost one more weight
    "at most 2 of 4, axis 1": rows_kept(np.array([[2]] * 63 + [[1]]), (64, 4)).reshape(16, 16),
    "at most 2 of 4, axis 0": rows_kept(np.array([[2]] * 63 + [[0]]), (64, 4)).reshape(16, 16).T,
    "blocks, 1x16": np.repeat(np.random.default_rng(0).random((32, 4)) < 0.3, 16, axis=1),
    "blocks, 8x8": np.kron(np.random.default_rng(0).random((4, 4)) < 0.4, np.ones((8, 8))) > 0,
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_is_found(name):
    assert footprint.structure_of(STRUCTURES[name]) == name


def test_sizes_are_those_of_the_formats(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    w = np.where(np.random.default_rng(0).random((50, 400)) < 0.01, np.float32(1), np.float32(0))
    w[0, :300] = 0
    w[0, 0] = w[0, 256] = 1  # 255 zeros between them: the most that one byte holds
    sizes = footprint.sizes(w)
    csr = sparse.csr_array(w)
    assert sizes["CSR int32"] == csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes
    save(tmp_path / "a", {"w": w}, level=None)
    with np.load(zipped(tmp_path / "b.npz", w)) as _:
        assert abs(sizes["gzip"] - (tmp_path / "b.npz").stat().st_size) < 400
    assert 0 <= (tmp_path / "a").stat().st_size - sizes["bitmask"] < 400
    places, entries = np.flatnonzero(w), 0
    for gap in np.diff(places, prepend=-1) - 1:  # delta coding, byte by byte
        while gap > 255:
            gap, entries = gap - 256, entries + 1
        entries += 1
    assert sizes["delta uint8"] == 5 * entries
    assert sizes["bound"] < min(sizes["bitmask"], sizes["delta uint8"])


def zipped(path, w):
    np.savez_compressed(path, w=w)
    return path


# --- errors


def test_nothing_is_replaced_without_force(model, tmp_path):
    out = tmp_path / "out.npz"
    out.write_text("old")
    for words in (("prune", model, "-o", out, "-s", 0.5), ("export", model, "-o", out)):
        _, error = run(*words, code=1)
        assert_says(error, f"{out}:", "exists", "--force")
        assert out.read_text() == "old"
    _, error = run("export", model, "-o", model, "--format", "npz", code=1)
    assert_says(error, f"{model}:", "is the file that is read", "--force")
    run("export", model, "-o", out, "--force")
    assert out.read_bytes()[:2] == b"PK"
    run("prune", model, "-o", model, "-s", 0.5, "--force")  # overwrites its own input
    assert np.count_nonzero(load(model)["head"]) == 150


@pytest.mark.parametrize(
    "argument, value, option",
    (
        ("include", ["a", "b/.*"], "--include 'a' --include 'b/.*'"),
        ("exclude", "fc/bias", "--exclude 'fc/bias'"),
        ("exclude", "it's", r"--exclude 'it'\''s'"),
        ("overrides", {"w": Fraction(1, 2)}, "--override 'w=0.5'"),
        ("overrides", {"w": ...}, "--override 'w=...'"),
        ("sparsity", ..., "--sparsity ..."),
        ("final_sparsity", 0.875, "--sparsity 0.875"),
        ("structure", {"w": ...}, "--structure ..."),
        ("ties", "random", "ties='random'"),  # no option: as in Python
    ),
)
def test_suggestions_are_options(argument, value, option):
    assert as_option(argument, value) == option


def test_damaged_npz_files_are_refused(tmp_path):
    good = zipped(tmp_path / "a.npz", np.ones((100, 100))).read_bytes()
    (tmp_path / "b.npz").write_bytes(good[:60] + bytes(20) + good[80:])
    assert "b.npz: " in run("inspect", tmp_path / "b.npz", code=1)[1]
    np.savez(tmp_path / "c.npz", w=np.array([{}], object))
    assert_says(
        run("inspect", tmp_path / "c.npz", code=1)[1], f"{tmp_path / 'c.npz'}: w:", "object"
    )
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        for name in ("w.npy", "v.npy"):
            archive.writestr(name, npy(np.ones(2)))
    twice = (tmp_path / "e.npz").read_bytes().replace(b"v.npy", b"w.npy")
    (tmp_path / "e.npz").write_bytes(twice)
    error = run("inspect", tmp_path / "e.npz", code=1)[1]
    assert_says(error, f"{tmp_path / 'e.npz'}:", "same name")
    np.savez(tmp_path / "d.npz", w=np.ones(2, ml_dtypes.bfloat16))
    assert_says(run("inspect", tmp_path / "d.npz", code=1)[1], f"{tmp_path / 'd.npz'}:", "bfloat16")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_arrays_of_the_other_byte_order_are_read_as_native(tmp_path):
    w = np.where(np.arange(40.0) % 4 == 0, np.arange(40.0) + 1, 0).reshape(4, 10)
    np.savez(
        tmp_path / "a.npz", w=w.astype(">f4"), v=np.asfortranarray(w), n=np.arange(9, dtype=">i2")
    )
    run("export", tmp_path / "a.npz", "-o", tmp_path / "a.zst")
    assert_same(
        load(tmp_path / "a.zst"), {"w": w.astype("f4"), "v": w, "n": np.arange(9, dtype="i2")}
    )
    run("prune", tmp_path / "a.npz", "-o", tmp_path / "b.zst", "-s", 0.9)
    assert load(tmp_path / "b.zst")["w"].max() == 37


@pytest.mark.parametrize("suffix", (".safetensors", ".safetensors.zst", ".npz"))
def test_an_interrupt_leaves_no_half_written_file(model, tmp_path, monkeypatch, suffix):
    out = tmp_path / f"out{suffix}"
    out.write_text("old")
    before = sorted(tmp_path.iterdir())

    def interrupted(path, *args):
        if path == "head":
            raise KeyboardInterrupt
        return args[0]

    monkeypatch.setattr(commands, "_pruned", interrupted)
    _, error = run("prune", model, "-o", out, "-s", 0.5, "--force", code=130)
    assert "Stopped" in error
    assert out.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == before


CHILD = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have turned it off
sys.argv[0] = "jaxprune"
runpy.run_module("jaxprune", run_name="__main__")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ("SIGINT", "SIGTERM", "SIGKILL"))
def test_a_signal_keeps_the_old_file(tmp_path, name):
    big = {f"w{i}": np.ones((64, 64 + i), np.float32) for i in range(20)}  # 20 compilations
    save_safetensors(tmp_path / "in.safetensors", big)
    out = tmp_path / "out.safetensors"
    out.write_text("old")
    words = ["prune", "in.safetensors", "-o", out.name, "-s", "0.5", "--force"]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(jaxprune.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out*.part")):  # until it starts to write
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(getattr(signal, name))
    _, error = child.communicate(timeout=120)
    assert out.read_text() == "old"
    if name != "SIGKILL":
        assert child.returncode == 128 + getattr(signal, name)
        assert error == "Stopped; no file was changed half-way.\n"
        assert sorted(tmp_path.iterdir()) == [tmp_path / "in.safetensors", out]


def test_a_swallowed_ctrl_c_stops_after_the_leaf(model, tmp_path, monkeypatch):
    pruned = []

    def losing(path, array, *args):
        pruned.append(path)
        with contextlib.suppress(
            KeyboardInterrupt
        ):  # like a callback whose exceptions Python ignores
            signal.raise_signal(signal.SIGINT)
        return array

    monkeypatch.setattr(commands, "_pruned", losing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run("prune", model, "-o", tmp_path / "out.safetensors", "-s", 0.5, code=130)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(pruned) == 1
    assert list(tmp_path.iterdir()) == [model]


def test_an_interrupted_folder_of_csr_is_not_there(model, tmp_path, monkeypatch):
    written, before = interchange.write_csr, sorted(tmp_path.iterdir())

    def interrupted(folder, path, matrix, **more):
        if path == "head":
            raise KeyboardInterrupt
        written(folder, path, matrix, **more)

    monkeypatch.setattr(interchange, "write_csr", interrupted)
    run("export", model, "-o", tmp_path / "out", "--format", "csr", code=130)
    assert sorted(tmp_path.iterdir()) == before


# --- output


def test_help_is_printed_without_jax():
    code = (
        "import sys\nfrom jaxprune.__main__ import app\n"
        "for words in (['--help'], ['prune', '--help']):\n"
        "    try: app(words)\n"
        "    except SystemExit: pass\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--sparsity" in done.stdout
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize("width", (50, 80, 100, 140))
def test_tables_fit_the_terminal(model, monkeypatch, width):
    rich = pytest.importorskip("rich.console")
    shown = io.StringIO()
    narrow = rich.Console(file=shown, width=width, highlight=False)
    monkeypatch.setattr(screen, "console", lambda **_: narrow)
    run("inspect", model)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert ("dense bytes" in shown.getvalue()) == (width == 140)
    table = [line for line in lines if line.startswith("│")]
    first = "".join(line.split("│")[1].strip() for line in table)
    assert first.startswith("fc/biasfc/kernelheadsteps")  # not truncated


def test_piped_output_has_no_colours_and_is_not_truncated(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "/".join(["encoder"] * 40)
    save_safetensors(tmp_path / "a.safetensors", {name: np.eye(16)})
    for words in (
        ("inspect",),
        ("plan", "-s", "0.5"),
        ("prune", "-s", "0.5", "-o", tmp_path / "b.zst"),
    ):
        out, error = run(words[0], tmp_path / "a.safetensors", *words[1:])
        assert name in out
        assert "\x1b" not in out + error
        assert error == ""


def test_a_plan_shows_the_structure_as_it_was_typed(model):
    words = ("-s", 0.5, "--exclude", "head", "--structure", "block:1x10:balanced")
    notes = {row["path"]: row["note"] for row in as_json("plan", model, *words)["leaves"]}
    assert notes["fc/kernel"] == "block:1x10:balanced"
    assert notes["head"] == "excluded by 'head'"


def test_2_of_4_needs_no_sparsity(model):
    report = as_json("plan", model, "--structure", "nm:2:4", "--include", "fc/kernel")
    assert {row["path"]: row["sparsity"] for row in report["leaves"]}["fc/kernel"] == 0.5


def test_structures_by_name():
    assert structure_for("unstructured") == jaxprune.Unstructured()
    assert structure_for("nm:2:4") == jaxprune.NM(2, 4)
    assert structure_for("block:1x16") == jaxprune.Block((1, 16))
    assert structure_for("block:1x16:balanced") == jaxprune.Block((1, 16), balanced=True)
    assert structure_for("channel:-1") == jaxprune.Channel(-1)
    assert structure_for("channel") == jaxprune.Channel()
    for text in (
        "unstructured",
        "nm:2:4",
        "nm:2:4:-1",
        "block:1x16",
        "block:4:balanced",
        "channel:0",
    ):
        assert structure_text(structure_for(text)) == text
    for text in ("", "block", "nm:2", "nm:4:2", "unstructured:3", "nm:2:4:balanced", "channel:x"):
        with pytest.raises(typer.BadParameter, match="unstructured, nm:2:4, block:1x16"):
            structure_for(text)


@pytest.mark.parametrize(
    "text, sparsity, name",
    (
        ("nm:2:4", 0.5, "2 of 4, axis 0"),
        ("block:4x1", 0.8, "blocks, 4x1"),
        ("channel:-1", 0.5, "channels, axis 1"),
    ),
)
def test_prune_with_a_structure(model, tmp_path, text, sparsity, name):
    out = tmp_path / "out.zst"
    words = ("-s", sparsity, "--include", "fc/kernel", "--structure", text)
    run("prune", model, "-o", out, *words)
    structure = structure_for(text)
    expected, _ = jaxprune.prune_params(tree(), sparsity, include="fc/kernel", structure=structure)
    assert_same(load(out), jax.tree.map(np.asarray, expected))
    [row] = [r for r in as_json("inspect", out)["leaves"] if r["path"] == "fc/kernel"]
    assert row["structure"] == name
