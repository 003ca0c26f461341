"""The training tasks that `bench_step` times: an update alone, an MLP, a transformer, an LSTM."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Task(NamedTuple):
    """A training task: initial params, the function of their gradients, and one batch."""

    params: Any
    grads: Callable[[Any, Any], Any]
    batch: Any


def update_only(n: int, dtype: Any) -> Task:
    """Ten square leaves with `n` params in total; the batch is the gradients themselves."""
    side = math.isqrt(n // 10)
    keys = jax.random.split(jax.random.key(0), 20)
    leaves = [jax.random.normal(key, (side, side), dtype) for key in keys]
    names = [f"w{i}" for i in range(10)]
    params, grads = (
        dict(zip(names, leaves[:10], strict=True)),
        dict(zip(names, leaves[10:], strict=True)),
    )
    return Task(params, lambda params, batch: batch, grads)


def _normal(key: jax.Array, *shape: int, dtype: Any) -> jax.Array:
    return jax.random.normal(key, shape, dtype) / math.sqrt(shape[0])


def _keys() -> Callable[[], jax.Array]:
    count = iter(range(2**31))
    return lambda: jax.random.fold_in(jax.random.key(0), next(count))


def mlp(quick: bool, dtype: Any) -> Task:
    """784 pixels, three hidden layers of 1,024, batch 128; 2.9 million params."""
    widths, n_batch = ((16, 32, 10), 8) if quick else ((784, 1024, 1024, 1024, 10), 128)
    key = _keys()
    params = [
        {"kernel": _normal(key(), a, b, dtype=dtype), "bias": jnp.zeros(b, dtype)}
        for a, b in itertools.pairwise(widths)
    ]
    x = jax.random.normal(key(), (n_batch, widths[0]), dtype)
    labels = jax.random.randint(key(), (n_batch,), 0, 10)

    def loss(params: Any, batch: Any) -> jax.Array:
        x, labels = batch
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        logits = x @ params[-1]["kernel"] + params[-1]["bias"]
        return _cross_entropy(logits, labels)

    return Task(params, jax.grad(loss), (x, labels))


def transformer(quick: bool, dtype: Any) -> Task:
    """Four blocks of width 256 on 8 x 128 tokens of a vocabulary of 1,024; 3.4 million params."""
    names = ("d", "n_blocks", "n_vocab", "n_batch", "n_seq")
    sizes = (16, 1, 32, 2, 8) if quick else (256, 4, 1024, 8, 128)
    return transformer_of(**dict(zip(names, sizes, strict=True)), n_heads=4, dtype=dtype)


def transformer_of(
    *, d: int, n_heads: int, n_blocks: int, n_vocab: int, n_batch: int, n_seq: int, dtype: Any
) -> Task:
    """Blocks of width `d` on `n_batch` x `n_seq` tokens: 12 d^2 weights each, and the embedding."""
    key = _keys()
    blocks = [
        {
            "qkv": _normal(key(), d, 3 * d, dtype=dtype),
            "out": _normal(key(), d, d, dtype=dtype),
            "up": _normal(key(), d, 4 * d, dtype=dtype),
            "down": _normal(key(), 4 * d, d, dtype=dtype),
        }
        for _ in range(n_blocks)
    ]
    params = {"embed": _normal(key(), n_vocab, d, dtype=dtype), "blocks": blocks}
    tokens = jax.random.randint(key(), (n_batch, n_seq + 1), 0, n_vocab)

    def attend(x: jax.Array, block: Any) -> jax.Array:
        heads = (x @ block["qkv"]).reshape(*x.shape[:2], 3, n_heads, d // n_heads)
        q, k, v = (heads[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return mixed.reshape(x.shape) @ block["out"]

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens[:, :-1]]
        for block in params["blocks"]:
            x = x + attend(_standardized(x), block)
            x = x + jax.nn.gelu(_standardized(x) @ block["up"]) @ block["down"]
        return _cross_entropy(_standardized(x) @ params["embed"].T, tokens[:, 1:])

    return Task(params, jax.grad(loss), tokens)


def lstm(quick: bool, dtype: Any) -> Task:
    """Two layers of 512 units on 32 x 64 tokens of a vocabulary of 1,024; 4.7 million params."""
    d, n_vocab, n_batch, n_seq = (16, 32, 2, 8) if quick else (512, 1024, 32, 64)
    key = _keys()
    cells = [
        {"kernel": _normal(key(), 2 * d, 4 * d, dtype=dtype), "bias": jnp.zeros(4 * d, dtype)}
        for _ in range(2)
    ]
    params = {"embed": _normal(key(), n_vocab, d, dtype=dtype), "cells": cells}
    tokens = jax.random.randint(key(), (n_seq + 1, n_batch), 0, n_vocab)

    def step(cell: Any, carry: Any, x: jax.Array) -> Any:
        h, c = carry
        gates = jnp.concatenate([x, h], -1) @ cell["kernel"] + cell["bias"]
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"][tokens[:-1]]
        for cell in params["cells"]:
            zero = jnp.zeros(x.shape[1:], x.dtype)
            x = jax.lax.scan(functools.partial(step, cell), (zero, zero), x)[1]
        return _cross_entropy(x @ params["embed"].T, tokens[1:])

    return Task(params, jax.grad(loss), tokens)


def _standardized(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-5)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    per_item = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    return per_item.mean()
