"""A sentence encoder of BERT's kind in Flax NNX, such as all-MiniLM-L6-v2.

Token ids go in, one vector of unit length per sentence comes out: the mean over the tokens of the
last layer. Kernels have shape (in, out), so the weights in the file are transposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Attention(nnx.Module):
    """Self-attention: every token reads all tokens of its sentence."""

    def __init__(self, width: int, n_heads: int, rngs: nnx.Rngs):
        self.n_heads = n_heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, is_token: jax.Array) -> jax.Array:
        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.n_heads, -1)

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        scores = jnp.where(is_token[:, None, None], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return self.out(mixed.reshape(x.shape))


class Layer(nnx.Module):
    """Attention and an MLP, each added to its input and then normalised."""

    def __init__(self, config: Mapping[str, Any], rngs: nnx.Rngs):
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.attention = Attention(width, config["num_attention_heads"], rngs)
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.up = nnx.Linear(width, config["intermediate_size"], rngs=rngs)
        self.down = nnx.Linear(config["intermediate_size"], width, rngs=rngs)
        self.last_norm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: jax.Array, is_token: jax.Array) -> jax.Array:
        x = self.norm(x + self.attention(x, is_token))
        return self.last_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Encoder(nnx.Module):
    """From token ids to sentence embeddings.

    Args:
      config: the entries of `config.json`.
      rngs: for random weights, until `load` replaces them.
    """

    def __init__(self, config: Mapping[str, Any], rngs: nnx.Rngs):
        width = config["hidden_size"]
        self.words = nnx.Embed(config["vocab_size"], width, rngs=rngs)
        self.positions = nnx.Embed(config["max_position_embeddings"], width, rngs=rngs)
        self.types = nnx.Embed(config["type_vocab_size"], width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=config["layer_norm_eps"], rngs=rngs)
        self.n_layers = config["num_hidden_layers"]
        for i in range(self.n_layers):
            setattr(self, f"layer_{i}", Layer(config, rngs))

    def __call__(self, ids: jax.Array, is_token: jax.Array) -> jax.Array:
        """The embeddings of sentences, float32[sentences, width], each of unit length.

        Args:
          ids: int32[sentences, tokens].
          is_token: bool[sentences, tokens], False for padding.
        """
        positions = jnp.arange(ids.shape[1])
        x = self.words(ids) + self.positions(positions) + self.types(jnp.zeros_like(ids))
        x = self.norm(x)
        for i in range(self.n_layers):
            x = getattr(self, f"layer_{i}")(x, is_token)
        weight = is_token[..., None].astype(x.dtype)
        mean = jnp.sum(x * weight, 1) / jnp.sum(weight, 1)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def load(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Encoder:
    """The encoder with the weights of a file.

    Raises:
      KeyError, ValueError: a tensor is missing, or has another shape.
    """
    model = nnx.eval_shape(lambda: Encoder(config, nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    tensors = dict(names_in_file(config["num_hidden_layers"]))
    leaves = []
    for path, variable in flat:
        name = tensors["/".join(map(str, path))]
        x = weights[name].T if path[-1] == "kernel" else weights[name]
        if x.shape != variable.shape:
            raise ValueError(f"{name}: shape {x.shape}, but the config needs {variable.shape}.")
        leaves.append((path, variable.replace(jnp.asarray(x))))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def names_in_file(n_layers: int) -> Iterator[tuple[str, str]]:
    """The path of every param, and its name in the file."""
    embeddings = {"words": "word", "positions": "position", "types": "token_type"}
    for own, theirs in embeddings.items():
        yield f"{own}/embedding", f"embeddings.{theirs}_embeddings.weight"
    layers: dict[str, str] = {"norm": "embeddings.LayerNorm"}
    for i in range(n_layers):
        prefix = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            layers[f"layer_{i}/attention/{name}"] = f"{prefix}.attention.self.{name}"
        layers[f"layer_{i}/attention/out"] = f"{prefix}.attention.output.dense"
        layers[f"layer_{i}/norm"] = f"{prefix}.attention.output.LayerNorm"
        layers[f"layer_{i}/up"] = f"{prefix}.intermediate.dense"
        layers[f"layer_{i}/down"] = f"{prefix}.output.dense"
        layers[f"layer_{i}/last_norm"] = f"{prefix}.output.LayerNorm"
    for own, theirs in layers.items():
        yield f"{own}/bias", f"{theirs}.bias"
        yield f"{own}/{'scale' if 'norm' in own else 'kernel'}", f"{theirs}.weight"
