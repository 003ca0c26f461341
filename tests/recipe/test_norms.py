"""Norms of units: exact for scores of every size that float32 holds, and one for all parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxprune
from jaxprune import Channel
from jaxprune._base.float_bits import power_of_two
from jaxprune._recipe.coupled import Coupled
from jaxprune._recipe.matrix_view import Outputs
from jaxprune._recipe.norms import norm_of_norms

STRUCTURES = {
    "channel": Channel(axis=-1),
    "sums": Channel(axis=0, norm=1),
    "outputs": Outputs((0, 2), norm=2),
    "coupled": Coupled("fc", axis=1, unit_of=(0, 1, 0, -1, 2), n=3),
}


def scores(seed):
    return np.random.default_rng(seed).uniform(0.5, 2.0, (4, 5, 3)).astype(np.float32)


@pytest.mark.parametrize("name", STRUCTURES)
@given(exponent=st.integers(-120, 115), seed=st.integers(0, 99))
def test_a_power_of_two_scales_norms_exactly(name, exponent, seed):
    unit_scores = jax.jit(STRUCTURES[name].unit_scores)
    x = scores(seed)
    scaled = unit_scores(np.ldexp(x, exponent))
    np.testing.assert_array_equal(scaled, np.ldexp(unit_scores(x), exponent))


@pytest.mark.parametrize("name", STRUCTURES)
def test_norms_are_those_of_numpy(name):
    x = scores(0).astype(np.float64)
    wide = {
        "channel": np.sqrt((x**2).sum((0, 1))),
        "sums": x.sum((1, 2)),
        "outputs": np.sqrt((x**2).sum(1)),
        "coupled": np.sqrt([(x[:, units] ** 2).sum() for units in ([0, 2], [1], [4])]),
    }[name]
    np.testing.assert_allclose(STRUCTURES[name].unit_scores(jnp.asarray(x)), wide, rtol=1e-6)


@pytest.mark.parametrize("name", ["channel", "coupled"])
def test_scores_that_are_not_finite_stay_in_their_own_channel(name):
    x = scores(1)
    x[0, 0, 0], x[1, 1, 1] = np.inf, np.nan
    norms = np.asarray(STRUCTURES[name].unit_scores(x))
    assert (norms[0], np.isnan(norms[1])) == (np.inf, True)
    assert np.isfinite(norms[2])
    assert STRUCTURES[name].unit_scores(np.zeros((4, 5, 3), np.float32)).tolist() == [0] * 3


@given(exponent=st.integers(-120, 115), seed=st.integers(0, 99), n=st.integers(1, 4))
def test_norms_of_several_parts_are_scaled_exactly(exponent, seed, n):
    parts = list(scores(seed)[:n, :, 0])
    norms = norm_of_norms([jnp.asarray(part) for part in parts])
    np.testing.assert_allclose(norms, np.linalg.norm(parts, axis=0), rtol=1e-6)
    scaled = norm_of_norms([jnp.asarray(np.ldexp(part, exponent)) for part in parts])
    np.testing.assert_array_equal(scaled, np.ldexp(norms, exponent))


@given(exponent=st.integers(-149, 127), fraction=st.floats(1, 2, exclude_max=True))
def test_the_power_of_two_below_a_number(exponent, fraction):
    x = np.ldexp(np.float32(fraction), exponent)
    assert float(power_of_two(jnp.asarray(x))) == 2.0 ** np.clip(np.frexp(x)[1] - 1, -126, 126)


@pytest.mark.parametrize("exponent", [-90, 0, 80])
def test_the_weakest_channels_go_whatever_the_size_of_the_weights(exponent):
    w = np.ldexp(np.linspace(2, 0.5, 8) * np.ones((6, 8)), exponent).astype(np.float32)
    params = {"w": jnp.asarray(w), "bias": jnp.ones(8)}
    _, masks = jaxprune.prune_params(params, 0.5, structure=Channel())
    assert masks["w"].any(0).tolist() == [True] * 4 + [False] * 4
    taylor = jaxprune.Accumulated("taylor", lambda params, grads: (params * grads) ** 2)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), structure=Channel(), score=taylor)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 2.0 ** (-exponent - 40)), params)
    _, state = tx.update(grads, tx.init(params), params, grads=grads)
    assert jaxprune.get_masks(state)["w"].any(0).tolist() == [True] * 4 + [False] * 4
