"""Gradients through updates, as in meta-learning: those of a run with its masks held fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxprune
from helpers import random_params

N_STEPS, RATE = 4, 0.1
SCHEDULE = jaxprune.cubic_schedule(0.5, 0, 3, 1)
SGD = optax.sgd(RATE)


def of_numpy(params, grads, key):
    """A score that JAX can't differentiate."""
    del grads, key
    spec = jax.ShapeDtypeStruct(params.shape, params.dtype)
    return jax.pure_callback(np.abs, spec, params)


KINDS = {
    "chain": lambda: optax.chain(SGD, jaxprune.prune(SCHEDULE)),
    "inner": lambda: jaxprune.prune(SCHEDULE, inner=SGD),
    "packed": lambda: jaxprune.prune(SCHEDULE, inner=SGD, packed=True),
    "movement": lambda: jaxprune.prune(SCHEDULE, inner=SGD, score=jaxprune.movement),
    "saliency": lambda: jaxprune.prune(SCHEDULE, inner=SGD, score=jaxprune.saliency),
    "global pool": lambda: jaxprune.prune(
        SCHEDULE, inner=SGD, distribution=jaxprune.normalized_pool
    ),
    "no derivative": lambda: jaxprune.prune(SCHEDULE, inner=SGD, score=of_numpy),
    "static": lambda: jaxprune.static_sparse(0.5, inner=SGD),
}


def make_params():
    return random_params({"a": (4, 6), "b": (6, 4), "bias": (4,)}, seed=1)


def loss(params):
    y = jnp.tanh(params["a"]) @ params["b"] + params["bias"]
    return jnp.sum(y**2) / 8


@pytest.mark.parametrize("wrap", (lambda step: step, jax.checkpoint), ids=("plain", "checkpoint"))
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_through_a_scan_is_that_with_the_masks_held_fixed(kind, wrap):
    tx = KINDS[kind]()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jaxprune.get_masks(state, params)

    def trained(params):
        (params, _), masks = lax.scan(wrap(step), (params, tx.init(params)), None, length=N_STEPS)
        return loss(params), masks

    def with_fixed_masks(params, masks):
        for i in range(N_STEPS):
            moved = jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(loss)(params))
            params = jax.tree.map(lambda p, m, i=i: jnp.where(m[i], p, 0), moved, masks)
        return loss(params)

    params = make_params()
    grads, masks = jax.jit(jax.grad(trained, has_aux=True))(params)
    assert sum(int((~m).sum()) for m in jax.tree.leaves(masks)) > 0
    expected = jax.jit(jax.grad(with_fixed_masks))(params, masks)
    for name in params:
        np.testing.assert_allclose(grads[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("create", (jaxprune.rigl, jaxprune.set_, jaxprune.static_sparse))
def test_a_vmap_over_the_key_draws_the_masks_of_each_key(create):
    """The params are the same for all members, so only the masks are mapped."""
    params, keys = make_params(), jax.random.split(jax.random.key(0), 3)
    schedule = {} if create is jaxprune.static_sparse else {"end_step": 4, "every": 2}

    def init(key):
        return create(0.5, **schedule, inner=optax.sgd(RATE), key=key).init(params)

    masks = jax.vmap(init)(keys).masks
    for i, key in enumerate(keys):
        for name, mask in init(key).masks.items():
            np.testing.assert_array_equal(masks[name][i], mask, err_msg=name)
