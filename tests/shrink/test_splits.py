"""Splits, joins and reshapes: pruned by half, every network shrinks, with equal outputs.

Weights and inputs are integers, so that sums are exact: outputs are equal bit for bit, but for
networks with functions such as softmax, whose rounding depends on how XLA compiles them.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.nn import relu, sigmoid, silu, softmax

import jaxprune
from helpers import on_device

X, PICTURE, SEQUENCE = (4, 6), (2, 4, 4, 3), (2, 5, 6)
HEAD_DIM = 3


def conv(x, kernel, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


# Splits and joins


def halves(p, x):
    left, right = jnp.split(relu(x @ p["a"]), 2, -1)
    return left @ p["u"] + right @ p["v"]


def slices(p, x):
    h = relu(x @ p["a"])
    n = h.shape[-1] // 2
    return h[:, :n] @ p["u"] + h[:, n:] @ p["v"]


def thirds(p, x):
    parts = jnp.split(relu(x @ p["a"]), 3, -1)
    return parts[0] @ p["u"] + parts[1] @ p["v"] + parts[2] @ p["w"]


def c2f(p, x):
    """The block of YOLOv8: both halves of a convolution, and a chain of bottlenecks on one."""
    parts = jnp.split(relu(conv(x, p["first"])), 2, -1)
    for i in "12":
        y = relu(conv(relu(conv(parts[-1], p[f"in{i}"])), p[f"out{i}"]))
        parts.append(parts[-1] + y if i == "2" else y)
    return conv(jnp.concatenate(parts, -1), p["last"])


def swiglu(p, x):
    gate, value = jnp.split(x @ p["wi"], 2, -1)
    return (silu(gate) * value) @ p["wo"]


def unequal(p, x):
    return jnp.concatenate([relu(x @ p["a"]), relu(x @ p["b"])], -1) @ p["o"]


def tied(p, x):
    return relu(x @ p["w"]) @ p["w"].T


# Reshapes


def second_factor(p, x):
    return relu((x @ p["w"]).reshape(len(x), 2, -1)) @ p["v"]


def to_picture(p, x):
    return conv(relu((x @ p["w"] + p["b"][None]).reshape(len(x), 2, 2, -1)), p["k"])


def depth_to_space(p, x):
    y = conv(x, p["k"])
    b, h, w, _ = y.shape
    y = y.reshape(b, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return conv(relu(y.reshape(b, 2 * h, 2 * w, -1)), p["o"])


def depth_to_space_channels_first(p, x):
    y = conv(x, p["k"])
    b, h, w, _ = y.shape
    y = y.reshape(b, h, w, -1, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return conv(relu(y.reshape(b, 2 * h, 2 * w, -1)), p["o"])


def shuffled(y):
    return y.reshape(*y.shape[:3], 2, -1).swapaxes(3, 4).reshape(*y.shape[:3], -1)


def channel_shuffle(p, x):
    return conv(shuffled(relu(conv(x, p["k"]))), p["o"])


def shufflenet(p, x):
    y = relu(conv(relu(conv(x, p["k"])), p["g1"], 2))
    return conv(relu(conv(shuffled(y), p["g2"], 2)), p["o"])


def whole_groups(p, x):
    """A GroupNorm with two channels in each group."""
    y = conv(x, p["k"]).reshape(*x.shape[:3], -1, 2)
    y = y - y.mean((1, 2, 4), keepdims=True)
    y = y * lax.rsqrt((y * y).mean((1, 2, 4), keepdims=True) + 1e-5)
    y = y.reshape(*x.shape[:3], -1) * p["scale"][None, None, None] + p["bias"][None, None, None]
    return conv(relu(y), p["o"])


# Attention


def attention(q, k, v, o):
    """Of queries [b, t, k, g, d] in g groups, and keys and values [b, t, k, d]."""
    weights = softmax(jnp.einsum("btkgd,bskd->bkgts", q, k) / np.sqrt(HEAD_DIM), -1)
    y = jnp.einsum("bkgts,bskd->btkgd", weights, v)
    return y.reshape(*y.shape[:2], -1) @ o


def fused(p, x):
    y = (x @ p["qkv"]).reshape(*x.shape[:2], 3, -1, HEAD_DIM)
    return attention(y[:, :, 0, :, None], y[:, :, 1], y[:, :, 2], p["o"])


def fused_split(p, x):
    q, k, v = (y.reshape(*x.shape[:2], -1, HEAD_DIM) for y in jnp.split(x @ p["qkv"], 3, -1))
    return attention(q[:, :, :, None], k, v, p["o"])


def grouped_queries(p, x):
    k, v = ((x @ p[name]).reshape(*x.shape[:2], -1, HEAD_DIM) for name in "kv")
    q = (x @ p["q"]).reshape(*x.shape[:2], k.shape[2], -1, HEAD_DIM)
    return attention(q, k, v, p["o"])


def multi_query(p, x):
    q = (x @ p["q"]).reshape(*x.shape[:2], 1, -1, HEAD_DIM)
    return attention(q, (x @ p["k"])[:, :, None], (x @ p["v"])[:, :, None], p["o"])


# Recurrent cells with one kernel for all gates


def gru(p, x):
    def step(h, x):
        xr, xz, xn = jnp.split(x @ p["wi"] + p["bi"][None], 3, -1)
        hr, hz, hn = jnp.split(h @ p["wh"] + p["bh"][None], 3, -1)
        z = sigmoid(xz + hz)
        h = (1 - z) * jnp.tanh(xn + sigmoid(xr + hr) * hn) + z * h
        return h, h

    first = jnp.zeros((len(x), p["wh"].shape[0]), x.dtype)
    return lax.scan(step, first, x.swapaxes(0, 1))[1] @ p["o"]


def lstm(order):
    def apply_fn(p, x):
        def step(carry, x):
            c, h = carry
            parts = jnp.split(x @ p["wi"] + h @ p["wh"] + p["b"][None], 4, -1)
            gates = dict(zip(order, parts, strict=True))
            c = sigmoid(gates["f"]) * c + sigmoid(gates["i"]) * jnp.tanh(gates["g"])
            h = sigmoid(gates["o"]) * jnp.tanh(c)
            return (c, h), h

        zeros = jnp.zeros((len(x), p["wh"].shape[0]), x.dtype)
        return lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))[1] @ p["o"]

    return apply_fn


LSTM = {"wi": (6, 32), "b": (32,), "wh": (8, 32), "o": (8, 3)}
LSTM_SMALL = {"wi": (6, 16), "b": (16,), "wh": (4, 16), "o": (4, 3)}
K = (3, 3)
# Function, shape of the input, shapes of the params before and after; whether outputs are exact.
CASES = {
    "halves": (
        halves,
        X,
        {"a": (6, 8), "u": (4, 3), "v": (4, 3)},
        {"a": (6, 4), "u": (2, 3), "v": (2, 3)},
        True,
    ),
    "slices": (
        slices,
        X,
        {"a": (6, 8), "u": (4, 3), "v": (4, 3)},
        {"a": (6, 4), "u": (2, 3), "v": (2, 3)},
        True,
    ),
    "thirds": (
        thirds,
        X,
        {"a": (6, 12), **{n: (4, 3) for n in "uvw"}},
        {"a": (6, 6), **{n: (2, 3) for n in "uvw"}},
        True,
    ),
    "c2f": (
        c2f,
        PICTURE,
        {
            "first": (1, 1, 3, 8),
            "last": (1, 1, 16, 2),
            **{f"{n}{i}": (*K, 4, 4) for n in ("in", "out") for i in "12"},
        },
        {
            "first": (1, 1, 3, 4),
            "last": (1, 1, 8, 2),
            **{f"{n}{i}": (*K, 2, 2) for n in ("in", "out") for i in "12"},
        },
        True,
    ),
    "swiglu": (swiglu, X, {"wi": (6, 16), "wo": (8, 6)}, {"wi": (6, 8), "wo": (4, 6)}, False),
    "unequal": (
        unequal,
        X,
        {"a": (6, 8), "b": (6, 4), "o": (12, 3)},
        {"a": (6, 4), "b": (6, 2), "o": (6, 3)},
        True,
    ),
    "tied": (tied, X, {"w": (6, 8)}, {"w": (6, 4)}, True),
    "second_factor": (
        second_factor,
        X,
        {"w": (6, 8), "v": (4, 3)},
        {"w": (6, 4), "v": (2, 3)},
        True,
    ),
    "to_picture": (
        to_picture,
        X,
        {"w": (6, 32), "b": (32,), "k": (*K, 8, 2)},
        {"w": (6, 16), "b": (16,), "k": (*K, 4, 2)},
        True,
    ),
    "depth_to_space": (
        depth_to_space,
        PICTURE,
        {"k": (*K, 3, 16), "o": (*K, 4, 2)},
        {"k": (*K, 3, 8), "o": (*K, 2, 2)},
        True,
    ),
    "depth_to_space_channels_first": (
        depth_to_space_channels_first,
        PICTURE,
        {"k": (*K, 3, 16), "o": (*K, 4, 2)},
        {"k": (*K, 3, 8), "o": (*K, 2, 2)},
        True,
    ),
    "channel_shuffle": (
        channel_shuffle,
        PICTURE,
        {"k": (*K, 3, 8), "o": (*K, 8, 2)},
        {"k": (*K, 3, 4), "o": (*K, 4, 2)},
        True,
    ),
    "shufflenet": (
        shufflenet,
        PICTURE,
        {"k": (*K, 3, 8), "g1": (*K, 4, 8), "g2": (*K, 4, 8), "o": (1, 1, 8, 2)},
        {"k": (*K, 3, 4), "g1": (*K, 2, 4), "g2": (*K, 2, 4), "o": (1, 1, 4, 2)},
        True,
    ),
    "whole_groups": (
        whole_groups,
        PICTURE,
        {"k": (*K, 3, 8), "scale": (8,), "bias": (8,), "o": (1, 1, 8, 2)},
        {"k": (*K, 3, 4), "scale": (4,), "bias": (4,), "o": (1, 1, 4, 2)},
        False,
    ),
    "fused": (
        fused,
        SEQUENCE,
        {"qkv": (6, 36), "o": (12, 6)},
        {"qkv": (6, 18), "o": (6, 6)},
        False,
    ),
    "fused_split": (
        fused_split,
        SEQUENCE,
        {"qkv": (6, 36), "o": (12, 6)},
        {"qkv": (6, 18), "o": (6, 6)},
        False,
    ),
    "grouped_queries": (
        grouped_queries,
        SEQUENCE,
        {"q": (6, 24), "k": (6, 6), "v": (6, 6), "o": (24, 6)},
        {"q": (6, 6), "k": (6, 3), "v": (6, 3), "o": (6, 6)},
        False,
    ),
    "multi_query": (
        multi_query,
        SEQUENCE,
        {"q": (6, 12), "k": (6, 3), "v": (6, 3), "o": (12, 6)},
        {"q": (6, 6), "k": (6, 3), "v": (6, 1), "o": (2, 6)},
        False,
    ),
    "gru": (
        gru,
        SEQUENCE,
        {"wi": (6, 24), "bi": (24,), "wh": (8, 24), "bh": (24,), "o": (8, 3)},
        {"wi": (6, 12), "bi": (12,), "wh": (4, 12), "bh": (12,), "o": (4, 3)},
        False,
    ),
    **{
        f"lstm_{order}": (lstm(order), SEQUENCE, LSTM, LSTM_SMALL, False)
        for order in ("ifgo", "fiog")
    },
}


def integers(shapes, seed=0):
    """Integer weights, none of which is zero."""
    rng = np.random.default_rng(seed)
    signs = {name: rng.choice([-1, 1], shape) for name, shape in shapes.items()}
    return {
        name: on_device(rng.integers(1, 4, shape) * signs[name]) for name, shape in shapes.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_network_shrinks_to_the_half_that_pruning_leaves(name):
    apply_fn, shape, before, after, exact = CASES[name]
    params = integers(before)
    x = integers({"x": shape}, 1)["x"]
    groups = jaxprune.channel_groups(apply_fn, params, x)
    sparse, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
    small, report = jaxprune.shrink(apply_fn, sparse, x)
    assert {name: leaf.shape for name, leaf in small.items()} == after
    assert (report.difference == 0) if exact else (report.difference < 1e-6)


def test_parts_with_unequal_numbers_of_zeros_lose_equal_numbers():
    for apply_fn in (halves, slices):
        params = integers({"a": (6, 8), "u": (4, 3), "v": (4, 3)})
        params["a"] = (
            params["a"].at[:, jnp.array([0, 2, 3, 5])].set(0.0)
        )  # 3 on the left, 1 on the right
        small, report = jaxprune.shrink(apply_fn, params, integers({"x": X})["x"])
        assert (small["a"].shape, small["u"].shape, small["v"].shape) == ((6, 6), (3, 3), (3, 3))
        assert report.difference == 0
        np.testing.assert_array_equal(small["a"][:, 3:], params["a"][:, jnp.array([4, 6, 7])])


def test_parts_that_the_program_measures_may_lose_unequal_numbers():
    def apply_fn(p, x):
        left, right = jnp.split(relu(x @ p["a"]), [p["u"].shape[0]], -1)
        return left @ p["u"] + right @ p["v"]

    params = integers({"a": (6, 8), "u": (4, 3), "v": (4, 3)})
    params["a"] = params["a"].at[:, jnp.array([0, 2, 3, 5])].set(0.0)
    small, _ = jaxprune.shrink(apply_fn, params, integers({"x": X})["x"])
    assert (small["a"].shape, small["u"].shape, small["v"].shape) == ((6, 4), (1, 3), (3, 3))


@pytest.mark.parametrize("cut", (2, 4))
def test_a_part_behind_a_number_in_the_model_shrinks_alone_at_half_too(cut):
    def apply_fn(p, x):
        left, right = jnp.split(relu(x @ p["a"]), [cut], -1)
        return left @ p["u"] + right @ p["v"]

    params = integers({"a": (6, 8), "u": (cut, 3), "v": (8 - cut, 3)})
    x = integers({"x": X})["x"]
    groups = jaxprune.channel_groups(apply_fn, params, x)
    assert any("hard-coded" in g.reason and ("u", 0) in g.members for g in groups.refused)
    params, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
    small, report = jaxprune.shrink(apply_fn, params, x)
    n_left = (8 - cut) // 2
    assert (small["a"].shape, small["u"].shape) == ((6, cut + n_left), (cut, 3))
    assert small["v"].shape == (n_left, 3)
    assert report.difference == 0


def test_groups_of_a_convolution_lose_equal_numbers_and_read_the_same_indices():
    def apply_fn(p, x):
        return conv(relu(conv(relu(conv(x, p["k"])), p["g"], 2)), p["o"])

    params = integers({"k": (*K, 3, 8), "g": (*K, 4, 8), "o": (1, 1, 8, 2)})
    params["k"] = (
        params["k"].at[..., jnp.array([0, 1, 4])].set(0.0)
    )  # 0 and 4 are read by one index
    params["g"] = (
        params["g"].at[..., jnp.array([1, 2, 7])].set(0.0)
    )  # 2 in one group, 1 in the other
    x = integers({"x": PICTURE})["x"]
    small, report = jaxprune.shrink(apply_fn, params, x)
    assert (small["k"].shape, small["g"].shape) == ((*K, 3, 6), (*K, 3, 6))
    assert report.difference == 0
