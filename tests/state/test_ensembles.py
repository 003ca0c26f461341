"""States made under `vmap` or `pmap`, with one row per member: bit masks, and upgrades."""

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import random_params, says

SCHEDULE = jaxprune.cubic_schedule(0.75, 1, 9, 4)


def sgd():
    return optax.sgd(0.05, momentum=0.5)


def make_params():
    return random_params({"a": (8, 12), "b": {"kernel": (12, 5), "bias": (5,)}})


def as_dicts(state):
    return flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))


def without_progress(state):
    return jax.tree.map(
        lambda x: x._replace(progress=None) if isinstance(x, jaxprune.PruneState) else x,
        state,
        is_leaf=lambda x: isinstance(x, jaxprune.PruneState),
    )


N_MEMBERS = 3
HALF = jaxprune.one_shot_schedule(0.5)


def members_after_a_step(tx):
    """Params and states of an ensemble with a scalar leaf, and fewer members than leaves."""
    shapes = {"a": (N_MEMBERS, 4, 5), "wide": (N_MEMBERS, 2, 9), "bias": (N_MEMBERS, 5)}
    params = random_params(shapes) | {"temp": jnp.ones(N_MEMBERS)}
    step = jax.vmap(lambda p: tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p))
    updates, state = step(params)
    return optax.apply_updates(params, updates), state


def test_scalars_of_the_members_of_an_ensemble_have_masks_of_their_own():
    params, packed = members_after_a_step(jaxprune.prune(HALF, packed=True))
    same, state = members_after_a_step(jaxprune.prune(HALF))
    chex.assert_trees_all_equal(params, same)
    masks = jax.tree.map(lambda mask: mask.astype(bool), jaxprune.get_masks(state))
    chex.assert_trees_all_equal(jaxprune.get_masks(packed), masks)
    chex.assert_trees_all_equal(jaxprune.get_masks(packed, params), masks)
    chex.assert_trees_all_equal(jaxprune.apply_masks(params, packed), params)
    assert str(jaxprune.summarize(params, packed)) == str(jaxprune.summarize(params, state))
    jaxprune.check(params, packed, done=True)
    chex.assert_trees_all_equal(jaxprune.set_masks(packed, masks), packed)
    other = packed._replace(masks=packed.masks | {"temp": jnp.ones(2, jnp.uint8)})
    with pytest.raises(ValueError, match=says("temp", "(2,)", "(3,)", "bit mask of shape (3,)")):
        jaxprune.apply_masks(params, other)


def test_states_of_an_ensemble_convert_both_ways_and_go_on():
    tx, tx_packed = jaxprune.prune(HALF), jaxprune.prune(HALF, packed=True)
    params, packed = members_after_a_step(tx_packed)
    _, state = members_after_a_step(tx)
    assert jaxprune.pack_masks(state).widths.shape == (N_MEMBERS, len(params))
    chex.assert_trees_all_equal(jaxprune.pack_masks(state), packed)
    chex.assert_trees_all_equal(jaxprune.unpack_masks(packed), state)
    _, after = jax.vmap(tx_packed.update)(params, jaxprune.pack_masks(state), params)
    _, same = jax.vmap(tx.update)(params, jaxprune.unpack_masks(packed), params)
    chex.assert_trees_all_equal(jaxprune.unpack_masks(after), same)


ENSEMBLES = {
    "inner": jaxprune.prune(SCHEDULE, inner=optax.adam(0.01)),
    "bit masks": optax.chain(sgd(), jaxprune.prune(SCHEDULE, packed=True)),
    "rigl": jaxprune.rigl(0.75, 9, every=4, inner=sgd()),
    "keep_zeros": jaxprune.keep_zeros(sgd()),
}


@pytest.mark.parametrize("wrap", (jax.vmap, jax.pmap))
@pytest.mark.parametrize("form", ENSEMBLES)
def test_a_saved_ensemble_becomes_the_ensemble_that_was_saved(form, wrap):
    tx = ENSEMBLES[form]
    shapes = {"a": (3, 8, 12), "b": {"kernel": (3, 12, 5), "bias": (3, 5)}}
    params = random_params(shapes, values=lambda normal: normal * (normal < 1)) | {"t": np.ones(3)}
    state, update = wrap(tx.init)(params), wrap(tx.update)
    update = jax.jit(update) if wrap is jax.vmap else update
    for _ in range(3):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    for save in (without_progress, lambda s: as_dicts(without_progress(s)), as_dicts):
        upgraded = jaxprune.upgrade_state(tx, params, save(state))
        chex.assert_trees_all_equal_shapes_and_dtypes(upgraded, state)
        chex.assert_trees_all_equal(upgraded, state)
    if form in ("inner", "bit masks"):  # the others need values
        specs = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
        chex.assert_trees_all_equal(jaxprune.upgrade_state(tx, specs, state), state)
    member = jax.tree.map(lambda p: p[0], params)
    with pytest.raises(ValueError, match=r"a: .*\(8, 12\).*\(3,\).*params of all members"):
        jaxprune.upgrade_state(tx, member, state)


def test_the_members_of_an_ensemble_keep_their_schedules():
    tx = jaxprune.prune([jaxprune.one_shot_schedule(s) for s in (0.5, 0.75)], inner=sgd())
    params = jax.tree.map(lambda p: jnp.stack([p, -p, p]), make_params())
    state = jaxprune.choose_schedule(jax.vmap(tx.init)(params), jnp.array([1, 0, 1]))
    _, state = jax.vmap(tx.update)(params, state, params)
    chex.assert_trees_all_equal(jaxprune.upgrade_state(tx, params, as_dicts(state)), state)


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
@pytest.mark.parametrize("wrap", (jax.vmap, jax.jit))
def test_an_upgrade_of_traced_values_is_refused(wrap):
    tx = ENSEMBLES["inner"]
    params = jax.tree.map(lambda p: jnp.stack([p, -p]), make_params())
    state = jax.vmap(tx.init)(params)
    upgrade = wrap(lambda p, s: jaxprune.upgrade_state(tx, p, s))
    with pytest.raises(ValueError, match=r"upgrade_state: .*traced.*outside the compiled function"):
        upgrade(params, state)


@pytest.mark.parametrize("packed", (False, True))
def test_a_forgotten_vmap_is_named(packed):
    tx = jaxprune.prune(HALF, inner=sgd(), packed=packed)
    params = {"kernel": jnp.ones((N_MEMBERS, 8, 9)), "bias": jnp.ones((N_MEMBERS, 9))}
    states = jax.vmap(tx.init)(params)
    fragments = "was made under vmap", "(3,)", "jax.vmap(tx.update)"
    with pytest.raises(ValueError, match=says(*fragments)):
        tx.update(params, states, params)
    one = jax.tree.map(lambda x: x[0], params)
    with pytest.raises(ValueError, match=says("Was the state made under vmap? Pass one member")):
        jaxprune.check(one, states)
    jaxprune.check(one, jax.tree.map(lambda x: x[0], states))


def test_masks_of_all_members_given_for_one_are_named():
    params = {"kernel": jnp.ones((8, 9)), "bias": jnp.ones(9)}
    state = jaxprune.prune(HALF).init(params)
    masks = jax.tree.map(lambda p: jnp.ones((N_MEMBERS, *p.shape), bool), params)
    fragments = "bias: ", "(3, 9)", "jax.tree.map(lambda x: x[0], masks)"
    for call in (lambda m: jaxprune.set_masks(state, m), lambda m: jaxprune.apply_masks(params, m)):
        with pytest.raises(ValueError, match=says(*fragments)):
            call(masks)
        call(jax.tree.map(lambda x: x[0], masks))
