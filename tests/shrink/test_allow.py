"""Cuts that change the function: only when asked for, and reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from helpers import on_device

ALLOW = ("layer_norm",)
X = jax.random.normal(jax.random.key(0), (2, 3, 5))


def layer_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"][None, None]


def variance_norm(p, x):
    """As Haiku's LayerNorm: `jnp.var` computes n - ddof in the program."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-6) * p["scale"][None, None]


def deviation_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / (jnp.std(x, -1, keepdims=True, ddof=1) + 1e-6) * p["scale"][None, None]


def rms_norm(p, x):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"][None, None]


def unit_norm(p, x):
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6) * p["scale"][None, None]


def stream(norm):
    """Two layers that add to a stream of eight channels, each behind a norm."""

    def apply_fn(p, x):
        x = x @ p["first"]
        for layer in p["layers"]:
            x = x + jax.nn.relu(norm(layer, x) @ layer["up"]) @ layer["down"]
        return norm(p["layers"][0], x) @ p["last"]

    rng = np.random.default_rng(0)

    def weights(*shape):
        return on_device(rng.uniform(0.5, 1.5, shape))

    layers = [{"scale": weights(8), "up": weights(8, 6), "down": weights(6, 8)} for _ in range(2)]
    return apply_fn, {"first": weights(5, 8), "layers": layers, "last": weights(8, 2)}


def pruned(apply_fn, params):
    groups = jaxprune.channel_groups(apply_fn, params, X, allow=ALLOW)
    sparse, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
    return groups, sparse


@pytest.mark.parametrize("norm", (layer_norm, variance_norm, deviation_norm, rms_norm, unit_norm))
def test_a_normalised_stream_shrinks_only_if_that_is_allowed(norm):
    apply_fn, params = stream(norm)
    groups, sparse = pruned(apply_fn, params)
    assert "(params/)?first" in groups
    assert "(params/)?first" not in jaxprune.channel_groups(apply_fn, params, X)
    small, report = jaxprune.shrink(apply_fn, sparse, X)
    assert (small["first"].shape, small["layers"][0]["up"].shape) == ((5, 8), (8, 3))
    assert report.difference < 1e-5
    small, report = jaxprune.shrink(apply_fn, sparse, X, allow=ALLOW)
    assert (small["first"].shape, small["layers"][0]["up"].shape) == ((5, 4), (4, 3))
    assert (small["last"].shape, small["layers"][1]["down"].shape) == ((4, 2), (3, 4))
    before, now = apply_fn(sparse, X), apply_fn(small, X)
    difference = np.abs(before - now).max() / np.abs(before).max()
    assert report.difference == pytest.approx(float(difference), abs=1e-6)
    (group,) = [g for g in report.groups if ("first", 1) in g.members]
    changed = [g for g in report.groups if g.changes]
    if norm is unit_norm:  # a sum over zeros is the same without them
        assert changed == []
        assert report.difference < 1e-6
    else:
        assert changed == [group]
        name = "sub" if norm in (variance_norm, deviation_norm) else "div"
        place = f"({name}, test_allow.py:"  # also inside `jnp.var`, whose equations have no line
        assert f"a mean runs over it, as in LayerNorm and RMSNorm {place}" in str(group)
        assert report.difference > 0.01
    if norm is rms_norm:  # the mean of squares grows with what is left, by 8 / 4
        factor = (group.size / group.kept) ** 0.5
        scaled = [layer | {"scale": layer["scale"] * factor} for layer in small["layers"]]
        after = apply_fn({**small, "layers": scaled}, X)
        # Epsilon is added to another mean, and sums have fewer terms.
        np.testing.assert_allclose(after, before, rtol=1e-5)


def test_a_limit_of_the_difference_holds_for_allowed_cuts_too():
    apply_fn, params = stream(rms_norm)
    _, sparse = pruned(apply_fn, params)
    with pytest.raises(ValueError, match="outputs of the two models differ"):
        jaxprune.shrink(apply_fn, sparse, X, allow=ALLOW, rtol=1e-3)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x))


def test_the_residual_stream_of_a_linen_transformer_shrinks():
    model = Transformer()
    variables = model.init(jax.random.key(0), X)
    groups = jaxprune.channel_groups(model.apply, variables, X, allow=ALLOW)
    params, _ = jaxprune.prune_params(
        variables["params"], 0.5, structure=groups, include=tuple(groups)
    )
    small, report = jaxprune.shrink(model.apply, {"params": params}, X, allow=ALLOW)
    shapes = jax.tree.map(jnp.shape, small["params"])
    assert shapes["MultiHeadDotProductAttention_0"]["query"]["kernel"] == (4, 1, 4)
    assert shapes["MultiHeadDotProductAttention_0"]["out"]["kernel"] == (1, 4, 4)
    assert (shapes["Dense_1"]["kernel"], shapes["Dense_2"]["kernel"]) == ((6, 4), (4, 6))
    assert shapes["LayerNorm_0"]["scale"] == (4,)
    assert [group.size for group in report.groups if group.changes] == [8]
