"""Channels that are pruned, fine-tuned, and then removed: `keep_zeros` keeps all of their zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx

import jaxprune
from helpers import on_device, random_params

X = on_device(np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32))
SHAPES = {"a": {"kernel": (6, 8), "bias": (8,)}, "b": {"kernel": (8, 3), "bias": (3,)}}


def mlp(activation):
    def apply_fn(params, x):
        h = activation(x @ params["a"]["kernel"] + params["a"]["bias"][None])
        return h @ params["b"]["kernel"] + params["b"]["bias"][None]

    return apply_fn


def pruned(apply_fn, params):
    """Params of which half of the channels are zero, and the groups."""
    groups = jaxprune.channel_groups(apply_fn, params, X)
    rules = dict(structure=groups, include=tuple(groups))
    return jaxprune.prune_params(params, 0.5, **rules)[0], groups


def trained(apply_fn, tx, params, n_steps=3):
    def loss(params):
        return jnp.mean((apply_fn(params, X) - 1) ** 2)

    state = tx.init(params)
    step = jax.jit(lambda params, state: tx.update(jax.grad(loss)(params), state, params))
    for _ in range(n_steps):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    jaxprune.check(params, state, done=True)
    return params


def text(report):
    """The printed report, without the line breaks of folding."""
    return " ".join(repr(report).split())


@pytest.mark.parametrize("activation", (jax.nn.gelu, jax.nn.silu, jax.nn.relu))
def test_biases_of_dropped_channels_stay_zero(activation):
    apply_fn = mlp(activation)
    params, _ = pruned(apply_fn, random_params(SHAPES))
    tuned = trained(apply_fn, jaxprune.keep_zeros(optax.adam(0.01)), params)
    small, report = jaxprune.shrink(apply_fn, tuned, X)
    assert small["a"]["bias"].shape == (4,)
    assert report.constant.n_units == 0
    assert np.all(small["b"]["bias"] != params["b"]["bias"])


def with_fresh_biases():
    return jax.tree.map(lambda p: p if p.ndim > 1 else jnp.zeros_like(p), random_params(SHAPES))


def test_a_bias_of_zeros_needs_the_include_of_the_groups():
    """It is zero throughout, like that of a fresh layer, so that it is free; the report says so."""
    apply_fn = mlp(jax.nn.gelu)
    params, groups = pruned(apply_fn, with_fresh_biases())
    tuned = trained(apply_fn, jaxprune.keep_zeros(optax.sgd(0.1)), params)
    _, report = jaxprune.shrink(apply_fn, tuned, X)
    assert report.constant == (4, ("a/bias",))
    assert report.size == report.size_before
    for shown in (text(report), report._repr_html_()):
        assert "4 units have kernels of zeros but stayed" in shown
        assert "because of nonzero values in a/bias." in shown
        assert "keep_zeros(optimizer, include=tuple(groups))" in shown
        assert "Prune whole units first" not in shown

    tx = jaxprune.keep_zeros(optax.sgd(0.1), include=tuple(groups))
    small, report = jaxprune.shrink(apply_fn, trained(apply_fn, tx, params), X)
    assert small["a"]["kernel"].shape == (6, 4)
    assert report.constant.n_units == 0
    assert "units have" not in text(report)


def test_one_unit_that_stays_is_named_beside_others_that_are_removed():
    apply_fn = mlp(jax.nn.gelu)
    params, _ = pruned(apply_fn, with_fresh_biases())
    [first, *_] = np.flatnonzero(~np.any(params["a"]["kernel"], 0))
    params["a"]["bias"] = params["a"]["bias"].at[first].set(0.5)
    small, report = jaxprune.shrink(apply_fn, params, X)
    assert small["a"]["kernel"].shape == (6, 5)
    assert report.constant == (1, ("a/bias",))
    assert "1 unit has kernels of zeros but stayed, because of nonzero values in" in text(report)


def test_dense_units_and_units_of_dead_readers_are_not_named():
    """A bias keeps no unit whose kernel is not zero, whatever the next layer reads of it."""
    params = random_params(SHAPES)
    params["b"]["kernel"] = params["b"]["kernel"].at[:3].set(0.0)
    small, report = jaxprune.shrink(mlp(jax.nn.gelu), params, X)
    assert small["a"]["bias"].shape == (5,)
    assert report.constant.n_units == 0


# Normalisation


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.silu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(2)(x.mean((1, 2)))


IMAGES = on_device(np.random.default_rng(1).normal(size=(4, 5, 5, 3)).astype(np.float32))


def fine_tuned_conv_net(bias):
    """The variables of a pruned network after some steps of `keep_zeros`, statistics included."""
    model = ConvNet()
    variables = model.init(jax.random.key(0), IMAGES)
    params = variables["params"]
    params["BatchNorm_0"]["bias"] = jnp.asarray(bias, jnp.float32)
    groups = jaxprune.channel_groups(model.apply, variables, IMAGES)
    rules = dict(structure=groups, include=tuple(groups))
    params, _ = jaxprune.prune_params(params, 0.5, **rules)
    tx = jaxprune.keep_zeros(optax.sgd(0.1))
    state, stats = tx.init(params), variables["batch_stats"]

    def loss(params, stats):
        variables = {"params": params, "batch_stats": stats}
        y, changed = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.mean((y - 1) ** 2), changed["batch_stats"]

    for _ in range(2):
        grads, stats = jax.grad(loss, has_aux=True)(params, stats)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return model, {"params": params, "batch_stats": stats}


def test_scales_and_biases_of_batch_norm_stay_zero():
    model, variables = fine_tuned_conv_net(np.ones(6))
    small, report = jaxprune.shrink(model.apply, variables, IMAGES)
    assert small["params"]["Conv_0"]["kernel"].shape == (3, 3, 3, 3)
    assert report.constant.n_units == 0


def test_running_statistics_are_not_named():
    model, variables = fine_tuned_conv_net(np.zeros(6))
    _, report = jaxprune.shrink(model.apply, variables, IMAGES)
    assert report.constant == (3, ("params/BatchNorm_0/bias",))


def test_running_statistics_of_nnx_are_not_named():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(6, 4, rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
        nnx.silu,
        nnx.Linear(4, 2, rngs=rngs),
    )
    model.eval()
    model.layers[0].kernel[...] = model.layers[0].kernel[...].at[:, 1].set(0.0)
    model.layers[1].bias[...] = jnp.ones(4)
    report = jaxprune.shrink_nnx(model, X)
    assert report.constant == (1, ("layers/1/bias", "layers/1/scale"))
