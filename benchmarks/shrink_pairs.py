"""The small networks on which `bench_shrink` compares jaxprune with Torch-Pruning.

Each is written once. `net` provides its layers and the functions that JAX and PyTorch name
differently, so the same lines run in both, on the same weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.shrink_layers import (
    BatchNorm,
    Conv,
    Dense,
    Embedding,
    GroupNorm,
    LayerNorm,
    Lstm,
)

WIDTH = 32
HEADS, HEAD_SIZE = 4, 8
N_WORDS = 50
IMAGE, SEQUENCE, WORDS = (2, 3, 8, 8), (2, 6, WIDTH), (2, 6)
LAYER_NORM = ("layer_norm",)
_FIRST, _HEAD = {"first": Dense(WIDTH, WIDTH)}, {"head": Dense(WIDTH, 10)}
_FEED_FORWARD = {"up": Dense(WIDTH, 4 * WIDTH), "down": Dense(4 * WIDTH, WIDTH)}


class Pair(NamedTuple):
    """A network for both libraries.

    Attributes:
      forward: computes the outputs from `net` and the inputs.
      layers: by name; `head` is the last.
      inputs: the shape of the inputs. Two axes are words, more are normal numbers.
      heads: names of the layers whose outputs are divided into `HEADS` heads.
      allow: what `shrink` is allowed in a second row.
    """

    forward: Callable[[Any, Any], Any]
    layers: Mapping[str, Any]
    inputs: tuple[int, ...] = IMAGE
    heads: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()


def _mlp(net: Any, x: Any) -> Any:
    return net.head(net.relu(net.second(net.relu(net.first(x)))))


def _cnn(net: Any, x: Any) -> Any:
    x = net.relu(net.norm1(net.conv1(x)))
    x = net.relu(net.norm2(net.conv2(x)))
    return net.head(x.reshape(len(x), -1))


def _residual(net: Any, x: Any) -> Any:
    x = net.relu(net.norm0(net.conv0(x)))
    x = net.relu(x + net.norm2(net.conv2(net.relu(net.norm1(net.conv1(x))))))
    return net.head(x.mean((2, 3)))


def _bottleneck(net: Any, x: Any) -> Any:
    x = net.relu(net.norm0(net.conv0(x)))
    y = net.relu(net.norm1(net.conv1(x)))
    y = net.relu(net.norm2(net.conv2(y)))
    return net.head(net.relu(x + net.norm3(net.conv3(y))).mean((2, 3)))


def _concat(net: Any, x: Any) -> Any:
    x = net.relu(net.norm0(net.conv0(x)))
    x = net.concat([x, net.relu(net.norm1(net.conv1(x)))], 1)
    x = net.concat([x, net.relu(net.norm2(net.conv2(x)))], 1)
    return net.head(x.mean((2, 3)))


def _squeeze_excite(net: Any, x: Any) -> Any:
    x = net.relu(net.norm0(net.conv0(x)))
    gates = net.sigmoid(net.excite(net.relu(net.squeeze(x.mean((2, 3))))))
    x = net.relu(net.norm1(net.conv1(x * gates[:, :, None, None])))
    return net.head(x.mean((2, 3)))


def _split(net: Any, x: Any) -> Any:
    x = net.relu(net.norm0(net.conv0(x)))
    first, second = net.halves(x, 1)
    third = second + net.relu(net.norm1(net.conv1(second)))
    x = net.relu(net.norm2(net.conv2(net.concat([first, second, third], 1))))
    return net.head(x.mean((2, 3)))


def _pixel_shuffle(net: Any, x: Any) -> Any:
    x = net.relu(net.norm0(net.conv0(x)))
    x = net.relu(net.pixel_shuffle(net.conv1(x)))
    return net.head(net.relu(net.conv2(x)).mean((2, 3)))


def _convnext(net: Any, x: Any) -> Any:
    x = net.conv0(x)
    y = net.norm(net.depthwise(x).swapaxes(1, 3))
    y = net.down(net.gelu(net.up(y))).swapaxes(1, 3)
    return net.head((x + y).mean((2, 3)))


def _glu(net: Any, x: Any) -> Any:
    x = net.first(x)
    gates, values = net.halves(net.up(net.norm(x)), -1)
    return net.head(x + net.down(net.silu(gates) * values))


def _attention(net: Any, x: Any) -> Any:
    return net.head(_heads(net, x))


def _transformer(net: Any, x: Any) -> Any:
    x = net.first(x)
    x = x + _heads(net, net.norm1(x))
    x = x + net.down(net.gelu(net.up(net.norm2(x))))
    return net.head(net.norm3(x))


def _heads(net: Any, x: Any) -> Any:
    batch, steps, _ = x.shape
    q, k, v = (
        layer(x).reshape(batch, steps, -1, HEAD_SIZE).swapaxes(1, 2)
        for layer in (net.query, net.key, net.value)
    )
    weights = net.softmax(q @ k.swapaxes(-1, -2) * HEAD_SIZE**-0.5)
    return net.out((weights @ v).swapaxes(1, 2).reshape(batch, steps, -1))


def _lstm(net: Any, x: Any) -> Any:
    return net.head(net.outputs(net.lstm(net.embedding(x))))


def _embedding(net: Any, x: Any) -> Any:
    return net.head(net.relu(net.first(net.embedding(x))))


def _convs(*sizes: Conv, norm: Callable[[int], Any] = BatchNorm) -> dict[str, Any]:
    layers: dict[str, Any] = {}
    for i, conv in enumerate(sizes):
        layers |= {f"conv{i}": conv, f"norm{i}": norm(conv.n_out)}
    return layers


def _plain_pairs() -> dict[str, Pair]:
    n = WIDTH
    cnn = {"conv1": Conv(3, n), "norm1": BatchNorm(n), "conv2": Conv(n, n), "norm2": BatchNorm(n)}
    return {
        "MLP": Pair(_mlp, _FIRST | {"second": Dense(n, n)} | _HEAD, SEQUENCE),
        "CNN": Pair(_cnn, cnn | {"head": Dense(IMAGE[2] * IMAGE[3] * n, 10)}),
    }


def _residual_pairs() -> dict[str, Pair]:
    n = WIDTH
    norm_in_groups = functools.partial(GroupNorm, HEADS)
    three = (Conv(3, n), Conv(n, n), Conv(n, n))
    wide = (Conv(3, n), Conv(n, 2 * n, 1), Conv(2 * n, 2 * n), Conv(2 * n, n, 1))
    depthwise, grouped = (
        (*wide[:2], wide[2]._replace(groups=groups), wide[3]) for groups in (2 * n, HEADS)
    )
    return {
        "residual block": Pair(_residual, _convs(*three) | _HEAD),
        "bottleneck block": Pair(_bottleneck, _convs(*wide) | _HEAD),
        "depthwise (MobileNet)": Pair(_bottleneck, _convs(*depthwise) | _HEAD),
        "grouped (ResNeXt)": Pair(_bottleneck, _convs(*grouped) | _HEAD),
        "group norm": Pair(_residual, _convs(*three, norm=norm_in_groups) | _HEAD),
        "ConvNeXt block": Pair(
            _convnext,
            {"conv0": Conv(3, n), "depthwise": Conv(n, n, 7, n), "norm": LayerNorm(n)}
            | _FEED_FORWARD
            | _HEAD,
            allow=LAYER_NORM,
        ),
    }


def _joining_pairs() -> dict[str, Pair]:
    n, stem = WIDTH, Conv(3, WIDTH)
    gates = {"squeeze": Dense(n, n // 4), "excite": Dense(n // 4, n)}
    shuffle = {"conv1": Conv(n, 4 * n), "conv2": Conv(n, n)}
    grow = _convs(stem, Conv(n, n), Conv(2 * n, n))
    split = _convs(stem, Conv(n // 2, n // 2), Conv(3 * n // 2, n))
    return {
        "squeeze-excite": Pair(_squeeze_excite, _convs(stem, Conv(n, n)) | gates | _HEAD),
        "concat (DenseNet)": Pair(_concat, grow | {"head": Dense(3 * n, 10)}),
        "split (C2f)": Pair(_split, split | _HEAD),
        "pixel shuffle": Pair(_pixel_shuffle, _convs(stem) | shuffle | _HEAD),
    }


def _sequence_pairs() -> dict[str, Pair]:
    n, qkv = WIDTH, ("query", "key", "value")
    embedding = {"embedding": Embedding(N_WORDS, n)}
    attention = {name: Dense(n, n) for name in (*qkv, "out")}
    gated = {"norm": LayerNorm(n), "up": Dense(n, 4 * n), "down": Dense(2 * n, n)}
    norms = {f"norm{i}": LayerNorm(n) for i in (1, 2, 3)}
    block = _FIRST | norms | attention | _FEED_FORWARD | _HEAD
    return {
        "embedding": Pair(_embedding, embedding | _FIRST | _HEAD, WORDS),
        "LSTM": Pair(_lstm, embedding | {"lstm": Lstm(n, n)} | _HEAD, WORDS),
        "attention": Pair(_attention, attention | _HEAD, SEQUENCE, qkv),
        "gated linear unit": Pair(_glu, _FIRST | gated | _HEAD, SEQUENCE, allow=LAYER_NORM),
        "transformer block": Pair(_transformer, block, SEQUENCE, qkv, LAYER_NORM),
    }


def pairs() -> dict[str, Pair]:
    """The networks, by name."""
    return _plain_pairs() | _residual_pairs() | _joining_pairs() | _sequence_pairs()
