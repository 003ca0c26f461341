"""The sentence encoder of the benchmark `minilm`, with random weights, and its texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("benchmarks", reason="an installed copy has no benchmarks")

from benchmarks.minilm import encoder, reference, texts

CONFIG = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)
CONFIG |= dict(vocab_size=50, max_position_embeddings=12, type_vocab_size=2, layer_norm_eps=1e-12)


def random_weights():
    """Weights as in a file of PyTorch: linear layers are (out, in)."""
    rng = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: encoder.Encoder(CONFIG, nnx.Rngs(0)))
    names = dict(encoder.names_in_file(CONFIG["num_hidden_layers"]))
    weights = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        x = rng.standard_normal(variable.shape).astype(np.float32) / 4
        weights[names["/".join(map(str, path))]] = x.T if path[-1] == "kernel" else x
    return weights


def test_the_encoder_is_the_reference_and_padding_changes_nothing():
    weights = random_weights()
    model = encoder.load(CONFIG, weights)
    rows = [[1, 7, 3, 2], [1, 4, 4, 9, 30, 49, 2]]
    ids = np.zeros((2, 9), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    is_token = np.arange(9) < np.array([[len(row)] for row in rows])
    vectors = jax.jit(model.__call__)(jnp.asarray(ids), jnp.asarray(is_token))
    for vector, row in zip(np.asarray(vectors), rows, strict=True):
        np.testing.assert_allclose(vector, reference.embedding(CONFIG, weights, row), atol=1e-5)


def test_weights_of_another_shape_are_refused():
    weights = random_weights()
    weights["encoder.layer.1.output.dense.weight"] = np.zeros((16, 31), np.float32)
    with pytest.raises(ValueError, match=r"encoder.layer.1.output.dense.weight: shape \(31, 16\)"):
        encoder.load(CONFIG, weights)


def test_sentences_are_prose_each_once_and_drawn_by_seed():
    pytest.importorskip("sklearn")
    sentences = texts.dataset_descriptions()
    assert len(sentences) > 50
    assert len(set(sentences)) == len(sentences)
    assert all(s[0].isupper() and s[-1] in ".!?" and "`" not in s for s in sentences)
    assert texts.drawn(sentences, 5, 0) == texts.drawn(sentences, 5, 0)
    assert texts.drawn(sentences, 5, 0) != texts.drawn(sentences, 5, 1)
    assert sorted(texts.drawn(sentences, 10**6, 3)) == sorted(sentences)
