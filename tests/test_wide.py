"""Leaves and pools of 2**31 weights and more, counted in 64 bits whatever `jax_enable_x64` says.

No array here is large. The masks are those of small leaves that are told to count in 64 bits; large
ones are only traced and lowered, where their budgets stand as they will run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import count

HALF = jaxprune.one_shot_schedule(0.5)
CASES = {
    "leaves": {},
    "one pool": {"distribution": jaxprune.min_density(0.25, jaxprune.global_pool)},
    "slices and groups": {
        "distribution": jaxprune.per_slice("stack"),
        "structure": {"w": jaxprune.NM(2, 4), "v": jaxprune.Block((1, 2), balanced=True)},
    },
    "user score": {"score": lambda p, g, key: jnp.abs(p) * jnp.arange(1.0, p.shape[-1] + 1)},
    "swaps": None,
}


def make_params():
    rng = np.random.default_rng(0)
    shapes = {"w": (16, 12), "v": (8, 8), "stack": (3, 8, 6), "bias": (8,)}
    params = {k: np.round(4 * rng.normal(size=s)) for k, s in shapes.items()}  # ties
    params = {k: jnp.asarray(x, jnp.float32) for k, x in params.items()}
    return params | {"v": params["v"].astype(jnp.bfloat16)}


def run(options):
    params = make_params()
    tx = jaxprune.prune(HALF, **options) if options is not None else None
    tx = tx or jaxprune.rigl(0.5, 4, every=1, inner=optax.sgd(0.5))
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(params, state, params)
    params = optax.apply_updates(params, updates)
    jaxprune.check(params, state)
    assert {x.dtype.itemsize for x in jax.tree.leaves(state)} <= {1, 2, 4}
    return jax.device_get((params, state.masks, jaxprune.metrics(state)))


@pytest.mark.parametrize(
    "case",
    ["leaves", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "leaves")],
)
def test_masks_are_the_same_when_counted_in_64_bits(case, monkeypatch):
    narrow = run(CASES[case])
    jax.clear_caches()
    monkeypatch.setattr(count, "WIDE", 20)
    try:
        jax.tree.map(np.testing.assert_array_equal, run(CASES[case]), narrow)
    finally:
        jax.clear_caches()


def shapes_of(n_leaves, *shape):
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    return {f"layer{i}": leaf for i in range(n_leaves)} | {"bias": jnp.ones(3)}


@pytest.mark.parametrize(
    "params, options, n_keep",
    [
        (shapes_of(1, 3, 2**16, 2**15), {}, 3 * 2**30),
        (shapes_of(5, 2**15, 2**15), {"distribution": jaxprune.global_pool}, 5 * 2**29),
        (shapes_of(1, 2**17, 2**15), {"structure": jaxprune.NM(2, 4)}, 2**31),
    ],
    ids=("leaf", "pool", "groups"),
)
def test_large_ones_are_lowered_with_their_exact_budgets(params, options, n_keep):
    tx = jaxprune.prune(HALF, **options)
    state = jax.eval_shape(tx.init, params)
    text = jax.jit(tx.update).lower(params, state, params).as_text()
    assert f"dense<{n_keep}> : tensor<1x1xi64>" in text
    masks = jax.eval_shape(tx.update, params, state, params)[1].masks
    assert jax.tree.map(jnp.shape, masks) == jax.tree.map(jnp.shape, params)
    planned = jaxprune.plan(params, HALF, **options)
    assert sum(leaf.size - leaf.n_zero for leaf in planned.leaves) == n_keep + 3


def test_violations_saturate_and_do_not_wrap(monkeypatch):
    monkeypatch.setattr(count, "WIDE", 20)
    flags = [jnp.arange(24) < 7, jnp.ones(24, bool)]
    found = count.count_true(flags)
    assert found.tolist() == [7, 24]
    assert found.dtype == jnp.int32
    assert int(count.total(flags[1])) == 24
