"""The sentence encoder in NumPy, one sentence at a time, in float64: slow and obvious."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def embedding(
    config: Mapping[str, Any], weights: Mapping[str, np.ndarray], ids: Sequence[int]
) -> np.ndarray:
    """The embedding of one sentence without padding: float64[width], of unit length."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].astype(np.float64).T + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(prefix: str, x: np.ndarray) -> np.ndarray:
        q, k, v = (linear(f"{prefix}.self.{name}", x) for name in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for columns in np.split(np.arange(x.shape[1]), config["num_attention_heads"]):
            scores = q[:, columns] @ k[:, columns].T / math.sqrt(len(columns))
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            mixed[:, columns] = shares @ v[:, columns]
        return linear(f"{prefix}.output.dense", mixed)

    tables = {n: weights[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position")}
    first_type = weights["embeddings.token_type_embeddings.weight"][0]
    x = tables["word"][list(ids)].astype(np.float64) + tables["position"][: len(ids)] + first_type
    x = norm("embeddings.LayerNorm", x)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        x = x + attention(f"{layer}.attention", x)
        x = norm(f"{layer}.attention.output.LayerNorm", x)
        hidden = linear(f"{layer}.intermediate.dense", x)
        hidden = hidden / 2 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))  # GELU
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", hidden))
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)
