"""`set_masks` gives each prune state the masks of its leaves, by path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxprune
from helpers import assert_placed_like, make_mesh, ones, place, stepper

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
    other, part = {"a": ones(2, 2) > 0, "c": ones(2) > 0}, {"b": {"kernel": ones(1, 2) > 0}}
    problems = (
        (other, "but they have c, which the params do not"),
        (part, "but the params have a, which the masks do not"),
    )
    for masks, problem in problems:
        with pytest.raises(ValueError, match=f"the leaves of the params, {problem}"):
            jaxprune.set_masks(state, masks)
    with pytest.raises(ValueError, match="If the model has new layers"):
        jaxprune.set_masks(state, part)
    jaxprune.set_masks(FORMS["plain"][0].init(PARAMS), jaxprune.masks_from_params(PARAMS))


def test_a_new_optimizer_keeps_the_zeros_of_a_model_that_got_a_layer():
    """What the error of `set_masks` and that of a mixed state say to type."""
    params = {"enc": {"a": ones(4, 4).at[1:].set(0), "bias": ones(4)}}
    params["enc"]["new"] = ones(4, 4)
    tx = jaxprune.prune(ONCE, inner=optax.adam(0.1))
    state = jaxprune.set_masks(tx.init(params), jaxprune.masks_from_params(params))
    masks = jaxprune.get_masks(state)["enc"]
    np.testing.assert_array_equal(masks["a"], params["enc"]["a"] != 0)
    assert masks["new"].all()
    assert masks["bias"].all()


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


def test_weights_that_new_masks_drop_are_no_violations_at_a_fire_of_the_schedule():
    tx = jaxprune.prune(jaxprune.linear_schedule(0.5, 0, 4, every=2), inner=optax.sgd(0.1))
    params = {"a": jnp.arange(1.0, 21.0).reshape(4, 5), "bias": jnp.ones(5)}
    state = tx.init(params)
    masks = jax.tree.map(jnp.ones_like, params) | {"a": jaxprune.topk_mask(params["a"], 12)}
    for step in range(6):
        if step == 2:
            state = jaxprune.set_masks(state, jax.tree.map(lambda x: x.astype(bool), masks))
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        assert state.violations == 0
        if step == 2:
            assert state.progress.lands == 1
    jaxprune.check(params, state, done=True)
    wrong = params | {"a": params["a"] + 1}
    fires = tx.update(params, state._replace(prune_step=jnp.int32(4)), wrong)[1]
    assert fires.violations == 10  # what something else changed still counts


def test_a_dropped_nan_that_was_repaired_is_no_violation():
    tx = jaxprune.prune(jaxprune.linear_schedule(0.5, 0, 4, every=2))
    params = {"a": jnp.arange(1.0, 5.0).reshape(2, 2), "bias": jnp.ones(2)}
    state = tx.init(params)
    for step in range(6):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        if step == 2:
            params = params | {"a": params["a"].at[0, 0].set(jnp.nan)}
        if step == 4:
            with pytest.raises(ValueError, match="not finite"):
                jaxprune.check(params, state)
            params = jaxprune.apply_masks(params, state)
    jaxprune.check(params, state, done=True)


UNITS = {
    "channel": jaxprune.Channel(),
    "channel 0": jaxprune.Channel(0),
    "block": jaxprune.Block((2, 2)),
    "uneven block": jaxprune.Block((4, 4)),
    "long block": jaxprune.Block((1, 40)),
    "balanced": jaxprune.Block((2, 2), balanced=True),
}


@pytest.mark.parametrize("dropped", [(0, 0), (5, 5)], ids=("first", "last"))
@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("packed", (False, True))
def test_a_weight_that_was_dropped_alone_stays_dropped_with_its_unit_kept(name, dropped, packed):
    shape = (6, 6)
    tx = jaxprune.prune(
        jaxprune.one_shot_schedule(0.5),
        inner=optax.sgd(0.1),
        structure={"a": UNITS[name]},
        packed=packed,
    )
    params = {"a": jnp.ones(shape).at[(..., *dropped)].set(9.0), "bias": jnp.ones(6)}
    params["a"] = params["a"].at[dropped[0], :].add(3).at[:, dropped[1]].add(3)
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    masks["a"] = masks["a"].at[(..., *dropped)].set(False)
    state = jaxprune.set_masks(tx.init(params), masks)
    params = jaxprune.apply_masks(params, state)
    for _ in range(2):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    kept = np.asarray(jaxprune.get_masks(state)["a"])
    assert not kept[(..., *dropped)].any()
    others = kept[..., dropped[0], :].sum() + kept[..., :, dropped[1]].sum()
    assert others > 0, "its unit is kept, and has lost nothing else"
    np.testing.assert_array_equal(np.asarray(params["a"]) == 0, ~kept)


def test_masks_of_a_leaf_that_is_no_longer_pruned_keep_everything():
    params = {"a": jnp.arange(1.0, 9.0).reshape(2, 4), "b": jnp.arange(1.0, 9.0).reshape(2, 4)}
    half = jaxprune.one_shot_schedule(0.5)
    for packed in (False, True):
        tx = jaxprune.prune(half, packed=packed)
        _, state = tx.update(params, tx.init(params), params)
        _, state = jaxprune.prune(half, packed=packed, exclude="b").update(params, state, params)
        assert jaxprune.get_masks(state)["b"].all()
        assert jaxprune.get_masks(state, params)["b"].all()
        assert jnp.sum(jaxprune.get_masks(state)["a"]) == 4
        jaxprune.set_masks(state, jaxprune.get_masks(state))


# Masks of leaves that are not pruned: they were stored, and nothing kept the weights at zero.

WITH_BIAS = {"fc": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "scale": jnp.ones((2, 2))}


def random_masks(key):
    keys = jax.random.split(key, len(jax.tree.leaves(WITH_BIAS)))
    keys = jax.tree.structure(WITH_BIAS).unflatten(list(keys))
    return jax.tree.map(lambda p, key: jax.random.bernoulli(key, 0.6, p.shape), WITH_BIAS, keys)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("include", (".*kernel", ("fc/bias", "scale"), ".*"))
@pytest.mark.parametrize("packed", (False, True), ids=("bytes", "bits"))
def test_masks_are_enforced_or_refused(include, packed, seed):
    """What `set_masks` accepts, the next update keeps at zero; what it refuses, it names."""
    masks = random_masks(jax.random.key(seed))
    tx = prune(include=include, packed=packed)
    rows = jaxprune.plan(WITH_BIAS, tx).leaves
    pruned = {row.path for row in rows if not row.note}
    lost = {
        row.path: (int(np.sum(~mask)), mask.size)
        for row, mask in zip(rows, jax.tree.leaves(masks), strict=True)
        if row.path not in pruned and not np.all(mask)
    }
    if lost:
        with pytest.raises(ValueError, match="set_masks: the masks drop weights of") as error:
            jaxprune.set_masks(tx.init(WITH_BIAS), masks)
        for path, (n, size) in lost.items():
            assert f"{path} ({n} of {size})" in str(error.value)
            assert f"{path!r}" in str(error.value)
        assert not any(f"{path} (" in str(error.value) for path in pruned)
        return
    state = jaxprune.set_masks(tx.init(WITH_BIAS), masks)
    updates, state = tx.update(WITH_BIAS, state, WITH_BIAS)
    trained = optax.apply_updates(WITH_BIAS, updates)
    for leaf, mask in zip(jax.tree.leaves(trained), jax.tree.leaves(masks), strict=True):
        np.testing.assert_array_equal(leaf != 0, mask)


@pytest.mark.parametrize("include", (None, ".*kernel", ("fc/bias", "scale"), ".*"))
def test_masks_of_prune_params_fit_a_prune_with_the_same_rules(include):
    masks = jaxprune.prune_params(WITH_BIAS, 0.5, include=include)[1]
    state = jaxprune.set_masks(prune(include=include).init(WITH_BIAS), masks)
    for got, mask in zip(*map(jax.tree.leaves, (jaxprune.get_masks(state), masks)), strict=True):
        np.testing.assert_array_equal(got, mask)


def test_masks_of_groups_need_the_include_of_the_groups():
    def mlp(p, x):
        return jax.nn.gelu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]

    params = {"a": {"kernel": ones(3, 4), "bias": ones(4)}, "b": {"kernel": ones(4, 2)}}
    groups = jaxprune.channel_groups(mlp, params, ones(1, 3))
    rules = dict(structure=groups, include=tuple(groups))
    sparse, masks = jaxprune.prune_params(params, 0.5, **rules)
    with pytest.raises(ValueError, match=r"a/bias \(2 of 4\).*include=tuple\(groups\)"):
        jaxprune.set_masks(prune().init(sparse), masks)
    tx = prune(**rules)
    state = jaxprune.set_masks(tx.init(sparse), masks)
    updates, state = tx.update(sparse, state, sparse)
    trained = optax.apply_updates(sparse, updates)
    np.testing.assert_array_equal(trained["a"]["bias"] != 0, masks["a"]["bias"])


def test_members_of_a_batch_and_of_nnx_are_checked_too():
    masks = {**jax.tree.map(lambda p: p > 0, WITH_BIAS), "scale": jnp.eye(2) > 0}
    tx = prune(include=".*kernel")
    twice = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x]), tree)
    state = jax.vmap(tx.init)(twice(WITH_BIAS))
    with pytest.raises(ValueError, match=r"scale \(4 of 8\), but"):
        jaxprune.set_masks(state, twice(masks))
    module = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, prune(), wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"bias \(4 of 4\), but"):
        jaxprune.set_masks(optimizer, {"kernel": ones(3, 4) > 0, "bias": ones(4) < 0})


def test_a_state_without_progress_takes_all_masks_and_check_counts_them():
    masks = {**jax.tree.map(lambda p: p > 0, WITH_BIAS), "scale": jnp.eye(2) > 0}
    state = prune(include=".*kernel").init(WITH_BIAS)._replace(progress=None)
    state = jaxprune.set_masks(state, masks)
    with pytest.raises(ValueError, match="scale: 2 of 2 dropped weights are not zero"):
        jaxprune.check(WITH_BIAS, state)


def test_a_tree_of_which_all_leaves_are_hidden_takes_masks():
    tx = optax.masked(prune(), jax.tree.map(lambda _: False, PARAMS))
    jaxprune.set_masks(tx.init(PARAMS), jaxprune.masks_from_params(PARAMS))


STRUCTURES = {
    "n:m": jaxprune.NM(2, 4),
    "blocks": jaxprune.Block((2, 2)),
    "channels": jaxprune.Channel(-1),
    "weights": jaxprune.Unstructured(),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("regrow", (False, "hold", "train"))
def test_masks_that_drop_no_less_stay_after_the_last_fire(structure, regrow):
    params = {"a": jnp.arange(1.0, 65.0).reshape(8, 8)}
    schedule = jaxprune.one_shot_schedule(0.5)
    options = {"structure": STRUCTURES[structure], "regrow": regrow}
    tx = jaxprune.prune(schedule, inner=optax.sgd(0.1), **options)
    _, state = tx.update(params, tx.init(params), params)
    flipped = jax.tree.map(jnp.logical_not, jaxprune.get_masks(state))
    state = jaxprune.set_masks(state, flipped)
    for _ in range(2):
        _, state = tx.update(params, state, params)
    assert jaxprune.get_masks(state)["a"].tolist() == flipped["a"].tolist()


def test_each_state_keeps_the_masks_of_its_own_leaves_only():
    params = {
        "a": jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32),
        "b": jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)), jnp.float32),
        "bias": jnp.ones(5),
    }
    swapping = jaxprune.rigl(0.5, 9, every=2, inner=optax.sgd(0.1), include="a")
    tx = optax.chain(swapping, jaxprune.prune(jaxprune.one_shot_schedule(0.5), include="b"))
    state = tx.init(params)
    state = jaxprune.set_masks(state, jaxprune.get_masks(state))
    params = jaxprune.apply_masks(params, state)
    for i in range(4):
        wave = lambda x, i=i: jnp.sin(jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) * 9 + i)
        updates, state = tx.update(jax.tree.map(wave, params), state, params)
        params = optax.apply_updates(params, updates)
    own = np.asarray(state[0].masks["a"]) != 0
    assert own.sum() == 10
    for masks in (jaxprune.get_masks(state), jaxprune.get_masks(state, params)):
        np.testing.assert_array_equal(masks["a"], own)


@pytest.mark.parametrize("axis_type", (AxisType.Auto, AxisType.Explicit))
@pytest.mark.parametrize("packed", (False, True))
@pytest.mark.parametrize("jit", (False, True))
def test_masks_from_the_host_get_the_sharding_of_the_old_ones(axis_type, packed, jit):
    mesh = make_mesh((4, 2), axis_type)
    w = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    leaves = {"w": w, "rows": w, "bias": np.ones(4, np.float32)}
    masks = {"w": w > 0, "rows": w < 0, "bias": np.ones(4, bool)}
    with jax.set_mesh(mesh):
        params = place(leaves, mesh, {"w": P("data", "model"), "rows": P("data"), "bias": P()})
        tx = prune(packed=packed)
        old = (jax.jit(tx.init) if jit else tx.init)(params)
        state = jaxprune.set_masks(old, masks)
        assert_placed_like(state.masks, old.masks)
        if not packed:
            assert_placed_like(state.masks, params)
        jax.tree.map(np.testing.assert_array_equal, jaxprune.get_masks(state), masks)
        params = jaxprune.apply_masks(params, state)
        _, state, params = stepper(tx)(params, state, params)
        assert_placed_like(state.masks, old.masks)
        jaxprune.check(params, state)


def test_sharded_masks_stay_so_where_the_old_ones_may_lie_anywhere():
    mesh = make_mesh((4, 2), AxisType.Auto)
    params = {"w": ones(8, 2)}
    state = prune().init(params)  # before the params are sharded
    sharded = place(params, mesh, {"w": P("data")})
    state = jaxprune.set_masks(state, jaxprune.masks_from_params(sharded))
    assert state.masks["w"].sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)
    stepper(prune())(sharded, state, sharded)
