"""The networks that `bench_inference` times, and their weights.

A network is a function that takes the matrix product as an argument, so that every library runs
the same step. Weights are random and pruned at random: speed does not depend on their values, and
hardly on the positions of the zeros. `python -m benchmarks.paper quality` measures quality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Weights = Mapping[str, np.ndarray]
Product = Callable[[Any, Any], Any]


class Network(NamedTuple):
    """A network to time.

    Attributes:
      name: as the tables show it.
      shapes: from the fraction of units kept (1 for all) to the (in, out) shape of each kernel.
      inputs: from the fraction of units kept to the width of each input.
      step: `(xp, product, weights, inputs) -> output`, where `xp` has NumPy's functions.
      shallow: the same kind of network with half of the layers, if there is one.
    """

    name: str
    shapes: Callable[[float], dict[str, tuple[int, int]]]
    inputs: Callable[[float], list[int]]
    step: Callable[[Any, Product, Any, Any], Any]
    shallow: Network | None = None


def lstm_network(d: int, n_words: int, embed: int | None = None, n_layers: int = 2) -> Network:
    """One step of a language model: LSTM layers of `d` units, then the output layer."""
    e = embed or d

    def shapes(part: float) -> dict[str, tuple[int, int]]:
        x, h = round(part * e), round(part * d)
        cells = {f"cell{i}": (2 * h if i else x + h, 4 * h) for i in range(n_layers)}
        return cells | {"softmax": (h, n_words)}

    def inputs(part: float) -> list[int]:
        return [round(part * e), *[round(part * d)] * (2 * n_layers)]

    shallow = lstm_network(d, n_words, embed, n_layers // 2) if n_layers > 1 else None
    return Network(f"LSTM {n_layers} x {d}", shapes, inputs, lstm, shallow)


def mlp_network(d: int) -> Network:
    """The feed-forward block of a transformer: a hidden layer four times as wide, with ReLU."""

    def shapes(part: float) -> dict[str, tuple[int, int]]:
        hidden = round(4 * d * part)
        return {"up": (d, hidden), "down": (hidden, d)}

    return Network(f"MLP {d}", shapes, lambda part: [d], mlp)


def lstm(xp: Any, product: Product, weights: Any, inputs: Any) -> Any:
    """Logits of the next word; the inputs are a word embedding, then h and c of every layer."""
    x, *state = inputs
    for i in range(len(state) // 2):
        h, c = state[2 * i : 2 * i + 2]
        gates = product(weights[f"cell{i}"], xp.concatenate([x, h], -1))
        i_gate, f_gate, g, o_gate = xp.split(gates, 4, -1)
        c = _sigmoid(xp, f_gate) * c + _sigmoid(xp, i_gate) * xp.tanh(g)
        x = _sigmoid(xp, o_gate) * xp.tanh(c)
    return product(weights["softmax"], x)


def mlp(xp: Any, product: Product, weights: Any, inputs: Any) -> Any:
    """Two dense layers with ReLU between them, without biases."""
    return product(weights["down"], xp.maximum(product(weights["up"], inputs[0]), 0))


def _sigmoid(xp: Any, x: Any) -> Any:
    return 0.5 * xp.tanh(0.5 * x) + 0.5


def inputs_of(network: Network, batch: int, part: float = 1) -> list[np.ndarray]:
    """Random inputs of a network, float32[batch, width] each."""
    rng = np.random.default_rng(1)
    return [rng.standard_normal((batch, n), np.float32) for n in network.inputs(part)]


def weights_of(network: Network, part: float = 1) -> dict[str, np.ndarray]:
    """Random dense kernels of a network, by name."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, np.float32) / np.float32(max(shape[0], 1)) ** 0.5
        for name, shape in network.shapes(part).items()
    }


def pruned(weights: Weights, sparsity: float, width: int) -> dict[str, np.ndarray]:
    """Copies with random (1, width) blocks dropped, equally many in each column of blocks."""
    rng = np.random.default_rng(2)
    pruned_weights = {}
    for name, w in weights.items():
        n_in, n_out = w.shape
        n_drop = min(round(sparsity * n_in), n_in - 1)
        order = rng.random((-(-n_out // width), n_in), np.float32)
        dropped = np.argpartition(order, n_drop, axis=1)[:, :n_drop]
        keep = np.ones(order.shape, bool)
        np.put_along_axis(keep, dropped, False, axis=1)
        pruned_weights[name] = np.where(np.repeat(keep, width, axis=0)[:n_out].T, w, np.float32(0))
    return pruned_weights


def part_left(network: Network, sparsity: float, dense: Network | None = None) -> float:
    """Fraction of units at which `dense` has as many weights as the pruned network keeps.

    `dense` is the same network by default; one with fewer layers can also be wider.
    """
    dense = dense or network
    low, high = 0.0, 4.0
    n_kept = (1 - sparsity) * n_weights(network)
    for _ in range(32):
        middle = (low + high) / 2
        low, high = (middle, high) if n_weights(dense, middle) < n_kept else (low, middle)
    return high


def n_weights(network: Network, part: float = 1) -> int:
    """Number of weights, if this fraction of the units is kept."""
    return sum(n_in * n_out for n_in, n_out in network.shapes(part).values())
