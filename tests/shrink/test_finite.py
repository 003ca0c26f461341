"""Laws over generated networks: outputs stay finite when pruned, and equal when shrunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx
from hypothesis import given, settings, strategies as st

import jaxprune
from helpers import on_device
from jaxprune._shrink.flax_sizes import function_model
from jaxprune._shrink.outputs import largest_difference

X = on_device(np.random.default_rng(9).integers(-2, 3, (3, 6)))


def dense(p, x):
    return jax.nn.relu(x @ p["w"] + p["b"][None])


def residual(p, x):
    return x + jax.nn.relu(x @ p["w"]) @ p["v"]


def gated(p, x):
    left, right = jnp.split(x @ p["w2"], 2, -1)
    return jax.nn.relu(left) * right


def chunks(p, x):
    parts = jnp.split(jax.nn.relu(x @ p["w3"]), 3, -1)
    return jnp.concatenate([parts[0] + parts[1], parts[2]], -1)


def maxout(p, x):
    return (x @ p["w3"]).reshape(len(x), 3, -1).max(1)


def interleaved(p, x):
    h = jax.nn.relu(x @ p["w2"]).reshape(len(x), 2, -1)
    return h.swapaxes(1, 2).reshape(len(x), -1)


def steps(p, x):
    return jnp.where(x @ p["w"] > 0, 1.0, 0.0)


def shifted(p, x):
    return jax.nn.relu(x @ p["w"] + 1.0)


def weight_norm(p, x):
    return x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0, keepdims=True) * p["b"][None])


def safe_weight_norm(p, x):
    norm = jnp.linalg.norm(p["w"], axis=0, keepdims=True)
    return x @ (p["w"] / jnp.where(norm == 0, 1.0, norm) * p["b"][None])


def ratio(p, x):
    return (x @ p["w"]) / (x @ p["w"])


def log(p, x):
    return jnp.log(jnp.abs(x @ p["w"]))


def power(p, x):
    return jnp.abs(x @ p["w"]) ** -0.5


def sigmoid(p, x):
    return jax.nn.sigmoid(x @ p["w"] + p["b"][None])


# Each block, its number of outputs for a width, and whether it maps integers to integers.
BLOCKS = {
    dense: (1, True),
    residual: (0, True),
    gated: (1, True),
    chunks: (2, True),
    maxout: (1, True),
    interleaved: (2, True),
    steps: (1, True),
    shifted: (1, True),
    weight_norm: (1, False),
    safe_weight_norm: (1, False),
    ratio: (1, False),
    log: (1, False),
    power: (1, False),
    sigmoid: (1, False),
}


def network(blocks, width, seed):
    """A chain of blocks and a last layer, with integer weights."""
    rng = np.random.default_rng(seed)
    n_in, layers = 6, []

    def weights(*shape):
        return on_device(rng.choice([-2, -1, 1, 2], shape))

    for block in blocks:
        layer = {"w": (n_in, width), "b": (width,), "v": (width, n_in)}
        layer |= {"w2": (n_in, 2 * width), "w3": (n_in, 3 * width)}
        used = set(block.__code__.co_consts)
        layers.append({name: weights(*shape) for name, shape in layer.items() if name in used})
        n_in = BLOCKS[block][0] * width or n_in
    params = {"layers": layers, "last": weights(n_in, 2)}

    def apply_fn(params, x):
        for block, layer in zip(blocks, params["layers"], strict=True):
            x = block(layer, x)
        return x @ params["last"]

    return apply_fn, params


def check_laws(blocks, width, seed):
    apply_fn, params = network([*blocks, dense], width, seed)
    run = jax.jit(apply_fn)
    exact = all(BLOCKS[block][1] for block in blocks)
    x = X if exact else X + np.sqrt(np.array([[2, 3, 5, 7, 11, 13]], "f"))  # no sum of them is zero
    assert np.isfinite(run(params, x)).all()
    groups = jaxprune.channel_groups(apply_fn, params, x)
    sparse, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
    outputs = run(sparse, x)
    assert np.isfinite(outputs).all(), groups
    small, report = jaxprune.shrink(apply_fn, sparse, x)
    assert report.size < report.size_before
    if exact:
        np.testing.assert_array_equal(jax.jit(apply_fn)(small, x), outputs)


# Before other blocks than the first, even data that is not pruned can make these infinite.
NOT_INSIDE = {ratio, log, power}
INSIDE = [block for block in BLOCKS if block not in NOT_INSIDE]


@settings(max_examples=12)  # each example is compiled
@given(
    first=st.sampled_from(list(BLOCKS)),
    others=st.lists(st.sampled_from(INSIDE), max_size=2),
    width=st.sampled_from((4, 6)),
    seed=st.integers(0, 99),
)
def test_pruning_keeps_outputs_finite_and_shrinking_keeps_them_equal(first, others, width, seed):
    check_laws([first, *others], width, seed)


@pytest.mark.parametrize("block", BLOCKS)
def test_pruning_after_each_block_keeps_outputs_finite(block):
    check_laws([block], 4, 1)


# What the trace knows of loops, branches and sums


def unit_stays(apply_fn, n=4):
    """Whether a unit whose column is zero stays, because its value is not zero."""
    params = {"w": jnp.ones((6, n)).at[:, 1].set(0.0), "v": jnp.ones((n, 2))}
    small, _ = jaxprune.shrink(lambda p, x: apply_fn(x @ p["w"]) @ p["v"], params, X)
    return small["w"].shape == (6, n)


def test_a_carry_that_is_zero_only_at_first_is_not_zero():
    def loop(h):
        return jax.lax.while_loop(
            lambda carry: carry[0] < 3,
            lambda carry: (carry[0] + 1, carry[1] + jnp.cos(h)),
            (0, jnp.zeros_like(h)),
        )[1]

    def scan(h):
        return jax.lax.scan(lambda c, _: (c + jnp.cos(h), None), jnp.zeros_like(h), None, 3)[0]

    def zero_loop(h):
        return jax.lax.fori_loop(0, 3, lambda i, c: c + jnp.sin(h), jnp.zeros_like(h))

    assert unit_stays(loop)
    assert unit_stays(scan)
    assert not unit_stays(zero_loop)


def test_a_branch_that_is_zero_says_nothing_about_the_others():
    def branch(*functions):
        return lambda h: jax.lax.switch(h[0, 0].astype(int) % len(functions), functions, h)

    assert unit_stays(branch(jnp.sin, jnp.cos))
    assert unit_stays(branch(jnp.cos, jnp.sin))
    assert not unit_stays(branch(jnp.sin, jnp.tanh))


def test_a_sum_of_equal_values_is_not_that_value():
    params = {"w": jnp.ones((6, 4)).at[:, 1].set(0.0), "v": jnp.ones((4, 2))}

    def apply_fn(params, x):
        h = jax.nn.sigmoid(jnp.stack([x, x, x], 1) @ params["w"])  # 0.5 in unit 1
        return (h.sum(1) - 0.5) @ params["v"]

    small, _ = jaxprune.shrink(apply_fn, params, X)
    assert small["w"].shape == (6, 4)


def test_batch_groups_of_a_convolution_are_refused():
    def apply_fn(params, x):
        x = jax.nn.relu(x @ params["w"])
        y = jax.lax.conv_general_dilated(
            x,
            params["k"],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            batch_group_count=2,
        )
        return jax.nn.relu(y) @ params["v"]

    params = {"w": jnp.ones((3, 4)).at[:, :2].set(0.0)}
    params |= {"k": jnp.ones((1, 4, 6)).at[..., 3:].set(0.0), "v": jnp.ones((6, 2))}
    with pytest.raises(
        ValueError, match=r"w\[1\]: it has the channels of a convolution with batch"
    ):
        jaxprune.shrink(apply_fn, params, jnp.ones((2, 5, 3)))


def test_transposed_kernels_of_transposed_convolutions_shrink():
    model = nn.Sequential([nn.ConvTranspose(6, (3,), transpose_kernel=True), nn.relu, nn.Dense(2)])
    x = jnp.ones((2, 5, 3))
    variables = model.init(jax.random.key(0), x)
    kernel = variables["params"]["layers_0"]["kernel"]
    assert kernel.shape == (3, 6, 3)
    variables["params"]["layers_0"]["kernel"] = kernel.at[:, :2].set(0.0)
    small, _ = jaxprune.shrink(model.apply, variables, x)
    assert small["params"]["layers_0"]["kernel"].shape == (3, 4, 3)

    rngs = nnx.Rngs(0)
    net = nnx.Sequential(
        nnx.ConvTranspose(3, 6, (3,), transpose_kernel=True, rngs=rngs),
        nnx.relu,
        nnx.Linear(6, 2, rngs=rngs),
    )
    net.layers[0].kernel[...] = net.layers[0].kernel[...].at[:, :2].set(0.0)
    jaxprune.shrink_nnx(net, x)
    assert (net.layers[0].in_features, net.layers[0].out_features) == (3, 4)


@pytest.mark.skip_in("debug_nans", reason="the test needs NaN outputs")
def test_nan_in_the_outputs_of_the_smaller_model_only_is_an_error():
    model = function_model("shrink", lambda w, x: x / w.sum(), jnp.ones(2), (jnp.zeros(2),))
    with pytest.raises(ValueError, match="outputs of the two models differ by nan"):
        largest_difference(model, jnp.zeros(2), None)
