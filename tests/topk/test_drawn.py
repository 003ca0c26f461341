"""Random scores that a GPU draws in every pass: their bits are those of `jax.random`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base import sharding
from jaxprune._topk.drawn import Drawn, can_be_drawn, drawn
from jaxprune._topk.topk import select


def scores_of(operand):
    return operand.scores() if isinstance(operand, Drawn) else operand


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_scores_are_those_of_jax_random(shape, make_key):
    key = make_key(3)
    want = jax.random.uniform(key, shape, jnp.float32)
    np.testing.assert_array_equal(drawn(jnp.ones(shape), key).scores(), want)


def test_drawn_scores_are_selected_like_stored_ones(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(sharding, "_device_kind", lambda arrays: "NVIDIA H100 80GB HBM3")
    # The first has rows to be filled, as its length is prime. The next two are copied together.
    shapes, n_keep = [(20_011,), (3, 5), (3, 5)], jnp.array([9000, 7, 2])
    keys = jax.random.split(jax.random.key(0), 3)
    params = [jnp.ones(shape) for shape in shapes]
    operands = list(map(drawn, params, keys))
    jax.clear_caches()
    try:
        stored = [jax.random.uniform(k, s, jnp.float32) for k, s in zip(keys, shapes, strict=True)]
        want, _ = select(stored, n_keep, score=scores_of)
        masks, _ = select(operands, n_keep, score=scores_of)
    finally:
        jax.clear_caches()
    assert [int(mask.sum()) for mask in masks] == n_keep.tolist()
    jax.tree.map(np.testing.assert_array_equal, masks, want)


def test_only_keys_whose_numbers_depend_on_the_index_alone_are_drawn():
    w = jnp.ones((2, 3))
    assert can_be_drawn(w, jax.random.key(0))
    assert can_be_drawn(w, jax.random.PRNGKey(0))
    assert not can_be_drawn(w, jax.random.key(0, impl="rbg"))
    assert not can_be_drawn(w, jax.random.key(0, impl="unsafe_rbg"))
    assert not can_be_drawn(jnp.ones(()), jax.random.key(0))
    with jax.threefry_partitionable(False):
        assert not can_be_drawn(w, jax.random.key(0))
