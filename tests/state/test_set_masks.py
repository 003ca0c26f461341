"""`set_masks` gives each prune state the masks of its leaves, by path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import ones

ONCE = jaxprune.one_shot_schedule(0.0)
PARAMS = {"a": jnp.array([[0.0, 1.0], [2.0, 0.0]]), "b": {"kernel": jnp.array([[0.0, 3.0]])}}


def prune(**options):
    return jaxprune.prune(ONCE, inner=optax.sgd(0.1), **options)


def partition(first, second):
    return optax.partition({"a": first, "b": second}, {"a": "a", "b": "b"})


FORMS = {
    "plain": (prune(), {"a": 2, "b": 1}),
    "bit masks": (prune(packed=True), {"a": 2, "b": 1}),
    "masked": (optax.masked(prune(), {"a": True, "b": False}), {"a": 2}),
    "partition": (partition(prune(), optax.sgd(0.1)), {"a": 2}),
    "several": (partition(prune(), prune(packed=True)), {"a": 2, "b": 1}),
    "chain": (optax.chain(jaxprune.prune(ONCE, exclude="a"), prune()), {"a": 2, "b": 1}),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_state_takes_the_masks_of_its_leaves(form):
    tx, n_dropped = FORMS[form]
    masks = jaxprune.masks_from_params(PARAMS)
    state = jaxprune.set_masks(tx.init(PARAMS), masks)
    applied = jaxprune.apply_masks(jax.tree.map(jnp.ones_like, PARAMS), state)
    for name, leaf in (("a", applied["a"]), ("b", applied["b"]["kernel"])):
        assert int(np.sum(leaf == 0)) == n_dropped.get(name, 0)
    assert form == "chain" or jaxprune.metrics(state)["prune/n_zero"] == sum(n_dropped.values())
    updates, state = tx.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    jaxprune.check(optax.apply_updates(PARAMS, updates), state, done=True)


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_another_tree_raise(form):
    state = FORMS[form][0].init(PARAMS)
    for masks in ({"a": ones(2, 2) > 0, "c": ones(2) > 0}, {"b": {"kernel": ones(1, 2) > 0}}):
        with pytest.raises(ValueError, match=r"masks must have the leaves of the params, a"):
            jaxprune.set_masks(state, masks)


@pytest.mark.parametrize("packed", (False, True))
def test_any_nonzero_integer_keeps_a_weight_and_fractions_are_refused(packed):
    state = prune(packed=packed).init(PARAMS)
    masks = {"a": jnp.array([[0, 256], [-1, 2]]), "b": {"kernel": jnp.array([[0, 512]])}}
    kept = jaxprune.get_masks(jaxprune.set_masks(state, masks))
    assert kept["a"].tolist() == [[False, True], [True, True]]
    assert kept["b"]["kernel"].tolist() == [[False, True]]
    with pytest.raises(TypeError, match=r"a: a mask must be bool or integer"):
        jaxprune.set_masks(state, masks | {"a": jnp.array([[0.0, 0.5], [1.0, 1.0]])})


def test_what_masks_of_larger_units_reach_is_found_out_by_the_next_update():
    params = {"a": jnp.arange(1.0, 9.0).reshape(2, 4)}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), structure=jaxprune.Channel(-1))
    _, state = tx.update(params, tx.init(params), params)
    state = jaxprune.set_masks(state, {"a": jnp.ones((2, 4), bool).at[:, 3].set(False)})
    assert state.progress.reached.tolist() == [-1]
    _, state = tx.update(params, state, params)
    assert state.masks["a"].tolist() == [[0, 1, 1, 0]] * 2
    assert state.progress.reached.tolist() == [2]


def test_weights_that_new_masks_drop_are_no_violations_at_the_first_update():
    dense = jax.tree.map(lambda x: x + 1, PARAMS)
    state = jaxprune.set_masks(prune().init(dense), jaxprune.masks_from_params(PARAMS))
    updates, state = prune().update(jax.tree.map(jnp.ones_like, dense), state, dense)
    jaxprune.check(optax.apply_updates(dense, updates), state)
    assert state.violations == 0
