"""Files of PyTorch hold (out, in), those of JAX (in, out): what is pruned must not depend on it."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import jaxprune
from helpers import assert_says
from jaxprune._cli.planned import all_dtypes
from jaxprune._cli.words import structure_for
from jaxprune._files.interchange import save_safetensors

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("zstandard")

from cli_command import as_json, run

PT = {"format": "pt"}


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def jax_model(seed):
    """Dense and convolution kernels as Flax has them, and leaves that are not pruned."""
    return {
        "fc/kernel": random(seed, 8, 12),
        "fc/bias": random(seed + 1, 12),
        "Conv_0/kernel": random(seed + 2, 3, 3, 4, 8),
        "Conv_0/bias": random(seed + 3, 8),
        "head/kernel": random(seed + 4, 12, 8),  # of shapes that fc has in the other layout
    }


def to_torch(path, array):
    """The name and the array that PyTorch has for a leaf of Flax."""
    name = path.replace("/", ".").replace("kernel", "weight")
    if array.ndim == 4:
        return name, array.transpose(3, 2, 0, 1)
    return name, array.T


def same_in_both(pruned_jax, pruned_torch):
    for path, array in pruned_jax.items():
        name, expected = to_torch(path, array)
        np.testing.assert_array_equal(pruned_torch[name], expected, err_msg=path)


def pruned(folder, name, tree, *words, metadata=None):
    save_safetensors(folder / f"{name}.safetensors", tree, metadata=metadata)
    out = folder / f"{name}-out.safetensors"
    report = as_json("prune", folder / f"{name}.safetensors", "-o", out, *words)
    flat = {}
    params = jaxprune.load(out, like=tree)
    flat.update({path: np.asarray(x) for path, x in params.items()})
    return flat, report


N_MODELS = 3  # in a file, so that a run of the command tries as many
WORDS = {
    "nm:2:4": ("--structure", "nm:2:4"),
    "nm:1:4": ("--structure", "nm:1:4"),
    "channel": ("-s", 0.5, "--structure", "channel"),
    "block": ("-s", 0.5, "--structure", "block:4x1", "--exclude", ".*Conv_0.*"),
    "erk": ("-s", 0.6, "--distribution", "erk"),
    "er": ("-s", 0.6, "--distribution", "er"),
    "uniform": ("-s", 0.6),
    "global": ("-s", 0.6, "--distribution", "global"),
}


@pytest.mark.parametrize("name", WORDS)
@given(seeds=st.lists(st.integers(0, 1000), min_size=N_MODELS, max_size=N_MODELS))
@settings(max_examples=settings().max_examples // N_MODELS + 1)
def test_models_are_pruned_alike_in_both_layouts(tmp_path_factory, name, seeds):
    """C1."""
    folder, model = tmp_path_factory.mktemp("f"), {}
    for i, seed in enumerate(seeds):
        model |= {f"{i}/{path}": array for path, array in jax_model(seed).items()}
    torch = dict(to_torch(path, array) for path, array in model.items())
    in_jax, _ = pruned(folder, "jax", model, *WORDS[name])
    in_torch, _ = pruned(folder, "torch", torch, *WORDS[name], metadata=PT)
    same_in_both(in_jax, in_torch)


def test_groups_of_a_torch_file_lie_along_the_inputs(tmp_path):
    """C1: by hand. Of each four weights that follow each other in a row, two are kept."""
    w = np.array([[1, 2, 3, 4], [8, 7, 6, 5], [1, 1, 9, 9], [9, 1, 1, 9]], np.float32)
    kept, report = pruned(tmp_path, "a", {"q.weight": w}, "--structure", "nm:2:4", metadata=PT)
    expected = [[0, 0, 3, 4], [8, 7, 0, 0], [0, 0, 9, 9], [9, 0, 0, 9]]
    np.testing.assert_array_equal(kept["q.weight"], expected)
    assert report["leaves"][0]["roles"] == ["out", "in"]
    [line] = [note for note in report["notes"] if note.startswith("layout: ")]
    assert_says(line, "torch, (out, in)", "format: pt", "q.weight is named as in PyTorch")
    text, _ = run("plan", tmp_path / "a.safetensors", "--structure", "nm:2:4")
    assert_says(text, "layout: torch", "out, in")


LLAMA = {
    "model.embed_tokens.weight": random(0, 12, 8),
    "model.layers.0.self_attn.q_proj.weight": random(1, 8, 8),
    "model.layers.0.mlp.up_proj.weight": random(2, 16, 8),
    "model.layers.0.input_layernorm.weight": random(3, 8),
    "lm_head.weight": random(4, 12, 8),
}
GPT2 = {
    "wte.weight": random(0, 12, 8),
    "h.0.attn.c_attn.weight": random(1, 8, 24),
    "h.0.attn.c_attn.bias": random(2, 24),
    "h.0.mlp.c_fc.weight": random(3, 8, 32),
    "h.0.mlp.c_fc.bias": random(4, 32),
}
TRANSPOSED = {"up.weight": random(0, 4, 8, 2, 2), "up.bias": random(1, 8)}
EQUINOX = {"layers/0/weight": random(0, 16, 8), "layers/0/bias": random(1, 16)}
MIXED = {"encoder.weight": random(0, 8, 8), "decoder/kernel": random(1, 8, 8)}
PLAIN = {"w1": random(0, 8, 8), "w2": random(1, 8, 4)}
HAIKU = {"mlp/~/linear_0/w": random(0, 8, 4), "mlp/~/linear_0/b": random(1, 4)}
FLAX = {"params/fc/kernel": random(0, 8, 4), "params/fc/bias": random(1, 4)}

SHOWN = {
    "a language model": (LLAMA, PT, "torch", ("format: pt",)),
    "names of torch alone": (LLAMA, None, "torch", ("lm_head.weight is named as in PyTorch",)),
    "Equinox": (EQUINOX, None, "torch", ("layers/0/weight",)),
    "Flax": (FLAX, None, "jax", ("params/fc/kernel is named as in Flax",)),
    "metadata of Flax": (PLAIN, {"format": "flax"}, "jax", ("format: flax",)),
    "Haiku": (HAIKU, None, "jax", ("mlp/~/linear_0/w",)),
}
UNCLEAR = {
    "GPT-2": (GPT2, PT, ("format: pt", "h.0.attn.c_attn.weight", "(8, 24)", "a bias of 24")),
    "a transposed convolution": (TRANSPOSED, PT, ("up.weight", "(4, 8, 2, 2)", "a bias of 8")),
    "mixed names": (MIXED, None, ("encoder.weight", "decoder/kernel")),
    "metadata that do not fit": (FLAX, PT, ("format: pt", "params/fc/kernel")),
    "plain names": (PLAIN, None, ("neither the metadata nor the names",)),
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_layout_is_told_with_its_reason(tmp_path, name):
    tree, metadata, layout, said = SHOWN[name]
    save_safetensors(tmp_path / "a.safetensors", tree, metadata=metadata)
    report = as_json("plan", tmp_path / "a.safetensors", "--structure", "nm:2:4")
    [line] = [note for note in report["notes"] if note.startswith("layout: ")]
    assert_says(line, f"layout: {layout}", "because")
    assert all(part in line for part in said)
    roles = {"torch": ["out", "in"], "jax": ["in", "out"]}[layout]
    assert all(
        row["roles"] == roles for row in report["leaves"] if row["nonzero"] != row["weights"]
    )


@pytest.mark.parametrize("name", UNCLEAR)
@pytest.mark.parametrize("structure", ("nm:2:4", "channel"))
def test_an_unclear_layout_has_to_be_given(tmp_path, name, structure):
    tree, metadata, said = UNCLEAR[name]
    words = ("-s", 0.5, "--structure", structure)
    file, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_safetensors(file, tree, metadata=metadata)
    _, error = run("prune", file, "-o", out, *words, code=2)
    assert_says(error, f"--structure {structure}", "unclear", "--layout jax", "--layout torch")
    assert all(part in error for part in said)
    assert not out.exists()
    run("prune", file, "-o", out, "-s", 0.5)  # magnitude depends on no layout
    expected, _ = jaxprune.prune_params(tree, 0.5)
    for path, array in jaxprune.load(out, like=tree).items():
        np.testing.assert_array_equal(array, np.asarray(expected[path]))
    if name != "a transposed convolution":
        for layout, roles in (("jax", ["in", "out"]), ("torch", ["out", "in"])):
            report = as_json("plan", file, *words, "--layout", layout)
            shown = [row["roles"] for row in report["leaves"] if row["roles"]]
            assert shown == [roles] * sum(x.ndim == 2 for x in tree.values())
            assert report["notes"][0].startswith(f"layout: {layout}, ")


def test_a_layout_that_the_biases_contradict_is_used_with_a_word(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", GPT2, metadata=PT)
    words = ("plan", tmp_path / "a.safetensors", "--structure", "nm:2:4", "--layout")
    assert_says(as_json(*words, "torch")["notes"][0], "as asked", "c_attn.weight", "bias of 24")
    assert as_json(*words, "jax")["notes"] == ["layout: jax, (in, out)"]


@pytest.mark.parametrize("structure", ("nm:2:4", "channel"))
def test_the_notes_of_a_plan_use_the_words_of_the_options(tmp_path, structure):
    save_safetensors(tmp_path / "a.safetensors", {"fc.kernel": random(0, 8, 8)})
    words = ("-s", 0.5, "--structure", structure, "--layout")
    notes = []
    for layout in ("jax", "torch"):
        [leaf] = as_json("plan", tmp_path / "a.safetensors", *words, layout)["leaves"]
        structure_for(leaf["note"])  # can be typed as --structure
        notes.append(leaf["note"])
    axes = {"nm:2:4": (":-2", ":-1"), "channel": (":-1", ":-2")}
    assert notes == [structure + axis for axis in axes[structure]]


def test_only_leaves_that_are_pruned_decide(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", MIXED)
    words = ("plan", tmp_path / "a.safetensors", "--structure", "nm:2:4")
    assert_says(as_json(*words, "--exclude", "decoder.*")["notes"][0], "layout: torch")
    assert_says(as_json(*words, "--include", "decoder.*")["notes"][0], "layout: jax")


def test_an_explicit_axis_needs_no_layout(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", PLAIN)
    for structure in ("nm:2:4:-1", "nm:2:4:0", "channel:-1"):
        words = ("-s", 0.5, "--structure", structure, "--include", "w1")
        assert as_json("plan", tmp_path / "a.safetensors", *words)["notes"] == []


def test_leaves_that_the_layout_does_not_cover_are_named(tmp_path):
    tree = {"a.weight": random(0, 8, 8), "experts.gate_up": random(1, 2, 8, 8)}
    save_safetensors(tmp_path / "a.safetensors", tree, metadata=PT)
    words = ("plan", tmp_path / "a.safetensors", "--structure", "nm:2:4")
    _, error = run(*words, code=2)
    assert_says(error, "experts.gate_up:", "layout torch does not show", "nm:2:4:-2", "--exclude")
    assert "roles=" not in error
    assert "..., or" not in error
    assert not re.search(r"axis=|\*\*roles|\.\.\.\.", error)
    for option in ("--exclude", "--override"):
        rule = "experts.gate_up/1" + ("=0.5" if option == "--override" else "")
        _, error = run("plan", words[1], "-s", 0.5, option, rule, code=2)
        assert_says(error, "'experts.gate_up/1' matches no leaf", "one leaf")
        assert not re.search("roles|per_slice|overrides", error)
    assert as_json(*words, "--exclude", "experts.*")["nonzero"] == 32 + 128


def test_a_checkpoint_of_jax_is_in_out(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = {"w1": random(0, 8, 4), "w2": random(1, 4, 4)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "a", tree)
    report = as_json("plan", tmp_path / "a", "--structure", "nm:2:4")
    assert_says(report["notes"][0], "layout: jax", "checkpoint of JAX")
    out = tmp_path / "b.safetensors"
    run("prune", tmp_path / "a", "-o", out, "--structure", "nm:2:4")
    with all_dtypes():
        expected, _ = jaxprune.prune_params(tree, 0.5, structure=jaxprune.NM(2, 4, axis=-2))
    for path, array in jaxprune.load(out).items():
        np.testing.assert_array_equal(array, np.asarray(jax.tree.map(np.asarray, expected)[path]))


def test_an_unknown_layout_says_which_are_known(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", PLAIN)
    words = ("plan", tmp_path / "a.safetensors", "-s", 0.5, "--layout", "troch")
    _, error = run(*words, code=2)
    assert_says(" ".join(error.split()), "--layout 'troch'", "Did you mean torch?")


def test_transposed_convolutions_of_torch_are_in_out(tmp_path):
    tree = {
        "conv.weight": np.ones(
            (
                8,
                4,
                3,
                3,
            ),
            np.float32,
        ),
        "conv.bias": np.ones((8,), np.float32),
        "deconv.weight": np.ones(
            (
                8,
                4,
                2,
                2,
            ),
            np.float32,
        ),
        "deconv.bias": np.ones((4,), np.float32),
    }
    save_safetensors(tmp_path / "a.safetensors", tree, metadata=PT)
    rows = as_json("plan", tmp_path / "a.safetensors", "--structure", "nm:2:4")["leaves"]
    roles = {row["path"]: row["roles"] for row in rows if row["roles"]}
    assert roles["deconv.weight"] == ["in", "out", "window", "window"]
    assert roles["conv.weight"] == ["out", "in", "window", "window"]
