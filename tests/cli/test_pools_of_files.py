"""`prune` does to a file what `prune_params` does, with every distribution, score and tie rule."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxprune
from helpers import assert_same, assert_says
from jaxprune._cli import pruning
from jaxprune._cli.planned import all_dtypes
from jaxprune._files.interchange import save_safetensors

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("zstandard")

from cli_command import as_json, run
from jaxprune._cli.words import DISTRIBUTIONS, SCORES

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)
# In a file "a-b" comes before "a/b", in a tree behind it. Leaves of one shape share programs.
PATHS = ("a-b/w", "a/w", "c/kernel", "d")


def values(seed, dtype, shape, levels):
    """Random weights; of few levels, so that many are equal, or of many."""
    w = np.random.default_rng(seed).normal(size=shape)
    return (np.round(w * levels) / levels if levels else w).astype(dtype)


F32, BF16 = np.float32, ml_dtypes.bfloat16
PATTERNS = ((F32, F32, F32, F32), (BF16, F32, np.float16, BF16), (F32, np.float64, BF16, F32))


@st.composite
def models(draw):
    """Matrices of equal shape, so that they share programs, with ties; and other leaves."""
    levels = draw(st.sampled_from((1, 4, None)))
    scales = draw(st.lists(st.sampled_from((0.1, 1, 2)), min_size=4, max_size=4))
    tree = {"bias": np.ones(4, np.float32), "steps": np.arange(3)}
    for i, (path, dtype) in enumerate(zip(PATHS, draw(st.sampled_from(PATTERNS)), strict=True)):
        w = values(draw(st.integers(0, 99)) + i, np.float32, (4, 6), levels)
        tree[path] = (w * np.float32(scales[i])).astype(dtype)
    return tree


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *above, last = path.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def expected(tree, sparsity, **rules):
    with all_dtypes():
        params, _ = jaxprune.prune_params(nested(tree), sparsity, **rules)
        return jax.tree.map(np.asarray, params)


@pytest.mark.filterwarnings("ignore:jaxprune.prune_params:UserWarning")  # of emptied leaves
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@given(tree=models(), sparsity=st.sampled_from((0.3, 0.5, 0.85)), override=st.booleans())
def test_a_file_is_pruned_as_its_params_are(tmp_path_factory, name, tree, sparsity, override):
    folder = tmp_path_factory.mktemp("f")
    order = sorted(tree)
    save_safetensors(folder / "a.safetensors", tree, order=order)
    words, rules = (), {"distribution": getattr(jaxprune, DISTRIBUTIONS[name])}
    if override:
        words, rules["overrides"] = ("--override", "a/w=0.25"), {"a/w": 0.25}
    out = folder / "b.safetensors"
    words = ("-o", out, "-s", sparsity, "--distribution", name, *words)
    report = as_json("prune", folder / "a.safetensors", *words)
    params = expected(tree, sparsity, **rules)
    assert_same(jaxprune.load(out), params)
    assert jaxprune.load_metadata(out).order == tuple(order)
    kept = {row["path"]: row["nonzero"] for row in report["leaves"]}
    for path, n_kept in kept.items():
        n_new = int(np.sum(pruned_at(path, tree, params)))
        assert n_new <= tree[path].size - n_kept
        assert n_kept < tree[path].size or not n_new
    assert sum(kept.values()) == report["nonzero"]


def pruned_at(path, tree, params):
    """Where a leaf was not zero, and is now."""
    for key in path.split("/"):
        params = params[key]
    return (np.asarray(params) == 0) & (tree[path] != 0)


@pytest.mark.parametrize(
    "words, rules",
    (
        (("--score", "random"), {"score": jaxprune.random_score}),
        (("--ties", "hashed"), {"ties": "hashed"}),
        (
            ("--distribution", "global", "--structure", "channel:-1"),
            {"distribution": jaxprune.global_pool, "structure": jaxprune.Channel(-1)},
        ),
        (
            ("--distribution", "normalized", "--structure", "block:2x2"),
            {"distribution": jaxprune.normalized_pool, "structure": jaxprune.Block((2, 2))},
        ),
        (
            ("--distribution", "erk", "--structure", "channel:0"),
            {"distribution": jaxprune.erk, "structure": jaxprune.Channel(0)},
        ),
        (
            ("--distribution", "global", "--score", "random"),
            {"distribution": jaxprune.global_pool, "score": jaxprune.random_score},
        ),
    ),
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_options_together(tmp_path, words, rules):
    tree = {path: values(i, np.float32, (4, 6), 4) for i, path in enumerate(PATHS)}
    save_safetensors(tmp_path / "a.safetensors", tree)
    out = tmp_path / "b.safetensors"
    run("prune", tmp_path / "a.safetensors", "-o", out, "-s", 0.5, *words)
    assert_same(jaxprune.load(out), expected(tree, 0.5, **rules))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", (0.01, 2, None), ids=("constant", "ties", "distinct"))
def test_the_share_of_each_leaf_is_that_of_a_stable_sort(tmp_path, dtype, levels, monkeypatch):
    """In pieces, too: an oracle that sorts all magnitudes of the pool."""
    monkeypatch.setattr(pruning, "_CHUNK", 7)
    tree = {f"w{i}": values(i, dtype, (3, 5 + i), levels) for i in range(3)}
    save_safetensors(tmp_path / "a.safetensors", tree)
    sizes = [w.size for w in tree.values()]
    flat = np.concatenate([np.abs(w).reshape(-1).astype(np.float64) for w in tree.values()])
    order = np.argsort(-flat, kind="stable")
    leaf_of = np.repeat(np.arange(3), sizes)
    words = (tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "--force")
    for n_drop in (1, 20, 40, flat.size - 1):
        sparsity = n_drop / flat.size
        report = as_json("prune", *words, "-s", sparsity, "--distribution", "global")
        kept = np.bincount(leaf_of[order[: flat.size - n_drop]], minlength=3)
        assert [row["nonzero"] for row in report["leaves"]] == kept.tolist()


@pytest.mark.parametrize("distribution", ("uniform", "global"))
def test_blocks_at_edges_are_counted_and_not_taken_for_earlier_zeros(tmp_path, distribution):
    """The note told of zeros that the file "had before", where smaller blocks are kept."""
    w = np.ones((5, 5), np.float32)
    w[:4, :4] = 0.5  # the largest of four blocks
    v = np.full((4, 4), 2, np.float32)
    save_safetensors(tmp_path / "a.safetensors", {"bias": v[0], "v": v, "w": w})
    words = ("-s", 0.25, "--distribution", distribution, "--structure", "block:4x4")
    planned = as_json("plan", tmp_path / "a.safetensors", *words)
    assert planned["exact"] is False
    report = as_json("prune", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", *words)
    assert {row["path"]: row["nonzero"] for row in report["leaves"]} == {"bias": 4, "v": 16, "w": 9}
    assert report["exact"] is True
    assert not [note for note in report["notes"] if note.startswith(("zeros", "units", "pool"))]
    assert int(np.sum(jaxprune.load(tmp_path / "b.safetensors")["w"] != 0)) == 9


def test_a_leaf_that_loses_everything_is_named(tmp_path):
    tree = {"large": np.full((4, 4), 9, np.float32), "small": np.full((4, 4), 1, np.float32)}
    save_safetensors(tmp_path / "a.safetensors", tree)
    words = ("-s", 0.5, "--distribution", "global")
    planned = as_json("plan", tmp_path / "a.safetensors", *words)
    assert [row["nonzero"] for row in planned["leaves"]] == [None, None]
    assert [row["note"] for row in planned["leaves"]] == ["in one pool (global)"] * 2
    assert_says(planned["notes"][0], "2 leaves compete in global", "16 of their 32 weights")
    text, _ = run("prune", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", *words)
    assert_says(text, "emptied: small", "--exclude 'small'")
    assert "not known in advance" not in text
    assert not jaxprune.load(tmp_path / "b.safetensors")["small"].any()


def test_the_file_is_read_one_leaf_at_a_time_however_often(tmp_path, monkeypatch):
    tree = {f"w{i}": values(i, np.float32, (4, 6), None) for i in range(3)}
    save_safetensors(tmp_path / "a.safetensors", tree | {"b": np.ones(3)})
    log, scores = [], pruning.order_key
    monkeypatch.setattr(pruning, "order_key", lambda x: log.append(x.size) or scores(x))
    run(
        *("prune", tmp_path / "a.safetensors", "-o", tmp_path / "b.zst"),
        *("-s", 0.5, "--distribution", "global"),
    )
    assert log == [24] * 9  # two digits of 16 bits, and a count


def test_every_name_is_known():
    for names in (DISTRIBUTIONS, SCORES):
        assert all(hasattr(jaxprune, name) for name in names.values())
