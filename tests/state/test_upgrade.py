"""`upgrade_state` fits states of older releases, whatever form a checkpoint gives them."""

import functools
import warnings

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune
from helpers import grads_at, random_params
from jaxprune._state.prune_state import unboxed
from jaxprune._state.recount import _fires_left

SHAPES = {"a": (8, 12), "b": {"kernel": (12, 5), "bias": (5,)}}
SCHEDULE = jaxprune.cubic_schedule(0.75, 1, 9, 4)


def sgd():
    return optax.sgd(0.05, momentum=0.5)


def partitioned():
    labels = {"a": "a", "b": {"kernel": "b", "bias": "b"}}
    tx = optax.chain(sgd(), jaxprune.prune(SCHEDULE, packed=True))
    return optax.partition({"a": tx, "b": jaxprune.prune(SCHEDULE, inner=sgd())}, labels)


FORMS = {
    "chain": optax.chain(optax.clip(1.0), sgd(), jaxprune.prune(SCHEDULE)),
    "inner": jaxprune.prune(SCHEDULE, inner=optax.adamw(0.01), score=jaxprune.movement),
    "bit masks": optax.chain(sgd(), jaxprune.prune(SCHEDULE, packed=True)),
    "partition": partitioned(),
    "rigl": jaxprune.rigl(0.75, 9, every=4, inner=sgd()),
    "multi steps": optax.MultiSteps(jaxprune.prune(SCHEDULE, inner=sgd()), 2),
}
if hasattr(optax.contrib.SAMState, "_fields"):  # Flax saves no dataclass, which it was once
    FORMS["sam"] = optax.contrib.sam(jaxprune.prune(SCHEDULE, inner=sgd()), sgd(), sync_period=3)


def make_params():
    return random_params(SHAPES)


@functools.cache
def trained(form):
    tx = FORMS[form]
    params, state = make_params(), tx.init(make_params())
    for t in range(6):
        updates, state = jax.jit(tx.update)(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def without_progress(state):
    return jax.tree.map(
        lambda x: x._replace(progress=None) if isinstance(x, jaxprune.PruneState) else x,
        state,
        is_leaf=lambda x: isinstance(x, jaxprune.PruneState),
    )


def as_dicts(state):
    return flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))


def as_lists(node):
    """Dicts for NamedTuples and lists for tuples, as orbax restores without a target."""
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return {name: as_lists(getattr(node, name)) for name in node._fields}
    if isinstance(node, (tuple, list)):
        return [as_lists(child) for child in node]
    if isinstance(node, dict):
        return {name: as_lists(child) for name, child in node.items()}
    return None if node is None else np.asarray(node)


def without_the_field(node):
    if isinstance(node, dict):
        return {k: without_the_field(x) for k, x in node.items() if k != "progress"}
    return list(map(without_the_field, node)) if isinstance(node, list) else node


SAVED = {
    "states": without_progress,
    "dicts": lambda state: without_the_field(as_dicts(without_progress(state))),
    "lists": lambda state: without_the_field(as_lists(without_progress(state))),
    "the same release": as_dicts,
    "a train state": lambda state: {"step": 6, "params": {}, "opt_state": as_dicts(state)},
}


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("form", FORMS)
def test_a_saved_state_becomes_the_state_that_was_saved(form, saved):
    tx = FORMS[form]
    params, state = trained(form)
    upgraded = jaxprune.upgrade_state(tx, params, SAVED[saved](state))
    assert jax.tree.structure(upgraded) == jax.tree.structure(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(upgraded, state)
    chex.assert_trees_all_equal(upgraded, state)


def test_an_nnx_optimizer_continues_from_an_upgraded_state():
    model = nnx.Linear(8, 12, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, FORMS["chain"], wrt=nnx.Param)
    ones = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, ones)
    expected = jax.tree.leaves(optimizer.opt_state)
    params = nnx.state(model, nnx.Param)
    upgraded = jaxprune.upgrade_state(FORMS["chain"], params, optimizer)
    chex.assert_trees_all_equal(jax.tree.leaves(upgraded), expected)
    nnx.update(optimizer.opt_state, nnx.state(upgraded))
    optimizer.update(model, ones)
    assert unboxed(jaxprune.get_state(optimizer).prune_step) == 2


@pytest.mark.parametrize("form", ("chain", "inner", "bit masks", "rigl"))
def test_an_nnx_state_without_its_structure_becomes_the_state_that_was_saved(form):
    """`nnx.state` leaves out the fields that are None, such as `widths`."""
    model = nnx.Linear(8, 12, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    optimizer = nnx.Optimizer(model, FORMS[form], wrt=nnx.Param)
    for _ in range(3):
        optimizer.update(model, jax.tree.map(jnp.ones_like, params))
    expected = jax.tree.leaves(optimizer.opt_state)
    state = nnx.state(optimizer)
    for saved in (state, state["opt_state"], nnx.to_pure_dict(state), nnx.split(optimizer)[1]):
        upgraded = jaxprune.upgrade_state(FORMS[form], params, saved)
        chex.assert_trees_all_equal(jax.tree.leaves(upgraded), expected)


@pytest.mark.parametrize(
    "change",
    (
        lambda state: state[1:],
        lambda state: {**as_dicts(state), "2": {}},
        lambda state: optax.tree.set(state, thresholds=jnp.zeros(7)),
        lambda state: optax.adam(0.1).init(make_params()),
        lambda state: "state.msgpack",
        lambda state: None,
    ),
)
def test_a_state_of_another_optimizer_raises_where_they_differ(change):
    tx = FORMS["chain"]
    with pytest.raises(ValueError, match=r"does not fit this transformation.*Build tx as"):
        jaxprune.upgrade_state(tx, make_params(), change(tx.init(make_params())))


OTHERS = {
    "adam to sgd": (optax.adam(0.1), optax.sgd(0.1)),
    "adam to rmsprop": (optax.adam(0.1), optax.rmsprop(0.1)),
    "adam to lion": (optax.adam(0.1), optax.lion(0.1)),
    "momentum to none": (optax.sgd(0.1, momentum=0.5), optax.sgd(0.1)),
    "amsgrad to adam": (optax.amsgrad(0.1), optax.adam(0.1)),
    "a link more": (optax.chain(optax.adam(0.1), optax.trace(0.5)), optax.chain(optax.adam(0.1))),
    "a wrapper more": (optax.apply_if_finite(optax.adam(0.1), 3), optax.adam(0.1)),
    "a wrapper less": (optax.adam(0.1), optax.apply_if_finite(optax.adam(0.1), 3)),
    "sgd to adam": (optax.sgd(0.1), optax.adam(0.1)),
}


@pytest.mark.parametrize("saved", (lambda state: state, as_dicts, as_lists))
@pytest.mark.parametrize("pair", OTHERS)
def test_no_array_of_another_optimizer_is_lost_without_a_word(pair, saved):
    """Moments that found no place were dropped, and those of Adam became those of RMSProp."""
    before, after = (jaxprune.prune(SCHEDULE, inner=inner) for inner in OTHERS[pair])
    params = make_params()
    state = saved(before.init(params))
    with pytest.raises(ValueError, match=r"inner_state.*does not fit this transformation"):
        jaxprune.upgrade_state(after, params, state)
    chex.assert_trees_all_equal(jaxprune.upgrade_state(before, params, state), before.init(params))


@pytest.mark.parametrize("packed", (False, True))
@pytest.mark.parametrize("saved", ("state", "dicts"))
def test_masks_in_the_other_form_are_named_with_what_converts_them(packed, saved):
    """The error only said that uint8[8, 8] is not uint8[8, 1]."""
    params = make_params()
    tx, other = (jaxprune.prune(SCHEDULE, packed=x) for x in (packed, not packed))
    state = other.init(params)
    convert = "pack_masks" if packed else "unpack_masks"
    with pytest.raises(ValueError, match=rf"^masks: .*packed={packed}.*jaxprune\.{convert}"):
        jaxprune.upgrade_state(tx, params, as_dicts(state) if saved == "dicts" else state)
    upgraded = getattr(jaxprune, convert)(jaxprune.upgrade_state(other, params, state))
    chex.assert_trees_all_equal(upgraded, tx.init(params))


def test_sums_of_a_score_begin_at_zero_in_the_state_of_another_score():
    params = make_params()
    old = jaxprune.prune(SCHEDULE, inner=optax.adamw(0.01))
    _, state = jax.jit(old.update)(grads_at(params, 0), old.init(params), params)
    tx = FORMS["inner"]
    upgraded = jaxprune.upgrade_state(tx, params, state)
    chex.assert_trees_all_equal(upgraded.score_state, tx.init(params).score_state)
    chex.assert_trees_all_equal(upgraded._replace(score_state=None), state)
    jax.eval_shape(tx.update, grads_at(params, 1), upgraded, params)


def test_a_transformation_that_does_not_prune_raises():
    with pytest.raises(ValueError, match=r"no prune state.*jaxprune.prune\(schedule\)"):
        jaxprune.upgrade_state(sgd(), make_params(), sgd().init(make_params()))


@pytest.mark.parametrize("begin, end, every", ((0, 0, 1), (10, 25, 10), (10, 30, 10), (2, 9, 50)))
def test_fires_that_are_left_are_those_at_or_after_a_step(begin, end, every):
    steps = jaxprune.linear_schedule(0.5, begin, end, every).fire_steps
    for step in range(end + 3):
        left = _fires_left(np.array([begin, end, every]), np.array(step))
        assert left == sum(fire >= step for fire in steps)


def test_keys_of_the_inner_optimizer_fit_as_keys_and_as_their_numbers():
    key, count = jax.random.key(3), 7  # a Python number is no array of the state
    inner = optax.GradientTransformation(
        lambda params: {"key": key, "count": count}, lambda updates, state, _=None: (updates, state)
    )
    tx = jaxprune.prune(SCHEDULE, inner=inner)
    state = tx.init(make_params())
    for saved in (key, np.asarray(jax.random.key_data(key))):
        old = state._replace(inner_state={"key": saved, "count": 8})
        fitted = jaxprune.upgrade_state(tx, make_params(), old).inner_state
        assert fitted["count"] == 8
        assert fitted["key"].dtype == key.dtype
        np.testing.assert_array_equal(jax.random.key_data(fitted["key"]), jax.random.key_data(key))


def large_units(**options):
    return jaxprune.prune(jaxprune.cubic_schedule(0.5, 0, 12, 4), inner=sgd(), **options)


LARGE_UNITS = {
    "n:m": large_units(structure=jaxprune.NM(2, 4), regrow="train", include="a"),
    "blocks": large_units(structure=jaxprune.Block((2, 3)), regrow="hold"),
    "channels": large_units(structure=jaxprune.Channel(-1), regrow="zero"),
    "slices": large_units(distribution=jaxprune.per_slice("a"), packed=True, regrow="train"),
}


@pytest.mark.parametrize("saved", ("the same release", "a train state", "lists"))
@pytest.mark.parametrize("form", LARGE_UNITS)
def test_a_saved_count_of_units_is_kept_so_that_no_fire_is_added(form, saved):
    tx = LARGE_UNITS[form]
    params, state = make_params(), tx.init(make_params())
    step = jax.jit(tx.update)
    for t in range(6):
        updates, state = step(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
    old = as_lists(state) if saved == "lists" else SAVED[saved](state)
    upgraded = jaxprune.upgrade_state(tx, params, old)
    chex.assert_trees_all_equal(upgraded, state)
    assert state.progress.reached.min() >= 0
    both = (step(grads_at(params, 6), s, params) for s in (state, upgraded))
    chex.assert_trees_all_equal(*both)


def test_a_saved_count_of_units_does_not_outlive_the_masks_that_it_counts():
    tx = LARGE_UNITS["channels"]
    _, state = tx.update(make_params(), tx.init(make_params()), make_params())
    dense = optax.tree.set(state, masks=tx.init(make_params()).masks)
    assert jaxprune.upgrade_state(tx, make_params(), dense).progress.reached.max() <= 0


def test_the_chosen_schedule_is_kept():
    tx = jaxprune.prune([jaxprune.one_shot_schedule(s) for s in (0.5, 0.75)], inner=sgd())
    state = jaxprune.choose_schedule(tx.init(make_params()), 1)
    for save in (as_dicts, as_lists):
        upgraded = jaxprune.upgrade_state(tx, make_params(), save(state))
        chex.assert_trees_all_equal(upgraded, state)


def test_a_list_of_schedules_is_refused_where_the_choice_is_not_known():
    half, most, all_but_few = (jaxprune.one_shot_schedule(s) for s in (0.25, 0.5, 0.75))
    tx, params = jaxprune.prune([all_but_few, half]), make_params()
    _, state = tx.update(params, jaxprune.choose_schedule(tx.init(params), 1), params)
    for save in (without_progress, SAVED["dicts"], SAVED["lists"]):
        with pytest.raises(ValueError, match=r"no `progress`.*2 schedules.*prune\(schedules"):
            jaxprune.upgrade_state(tx, params, save(state))
    longer = jaxprune.prune([all_but_few, half, most])
    with pytest.raises(ValueError, match=r"another list.*3 schedules.*prune\(schedules"):
        jaxprune.upgrade_state(longer, params, state)
    alone = jaxprune.prune(half)  # the remedy
    upgraded = jaxprune.upgrade_state(alone, params, without_progress(state))
    _, after = alone.update(params, upgraded, params)
    chex.assert_trees_all_equal(after.masks, state.masks)
    followed = jaxprune.upgrade_state(longer, params, upgraded)
    assert int(followed.progress.choices.number) == 0
    only = jaxprune.prune([half])
    upgraded = jaxprune.upgrade_state(only, params, without_progress(state))
    chex.assert_trees_all_equal(only.update(params, upgraded, params)[1].masks, state.masks)


def test_the_zeros_that_keep_zeros_found_stay_due_whatever_params_are_passed():
    tx = jaxprune.keep_zeros(sgd())
    state = tx.init(jax.tree.map(lambda p: p * (p > 0), make_params()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the masks come from the state, not from these params
        upgraded = jaxprune.upgrade_state(tx, make_params(), as_dicts(state))
    chex.assert_trees_all_equal(upgraded, state)


@jax.tree_util.register_pytree_node_class
class Net:
    """A model whose class is registered without keys."""

    def __init__(self, kernel, bias, scale=None):
        self.weights = kernel, bias, scale

    def tree_flatten(self):
        return self.weights, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_nodes_without_keys_fit_by_the_order_of_their_children():
    params = {"net": Net(jnp.arange(1.0, 17.0).reshape(4, 4), jnp.ones(4))}
    tx = optax.chain(optax.adam(0.1), jaxprune.prune(SCHEDULE, include=".*"))
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    chex.assert_trees_all_equal(jaxprune.upgrade_state(tx, params, state), state)
    other = tx.init({"net": Net(jnp.ones((4, 4)), None)})
    with pytest.raises(ValueError, match=r"net/1: the saved state does not fit.*float32\[4\]"):
        jaxprune.upgrade_state(tx, params, other)


def in_dtype(state, dtype):
    return state._replace(masks=jax.tree.map(lambda m: m.astype(dtype), state.masks))


def after_a_fire(tx):
    params = make_params()
    _, state = tx.update(params, tx.init(params), params)
    updates, state = tx.update(params, state, params)
    return optax.apply_updates(params, updates), state


PACKED = jaxprune.prune(SCHEDULE, inner=sgd(), packed=True)
GROWS = jaxprune.rigl(0.75, 9, inner=sgd())
IN_UINT8 = r"a: the mask in the state has dtype {}, but it needs uint8.*upgrade_state\(tx, params"


@pytest.mark.parametrize("dtype", ("int32", "int8", "float32"))
def test_bit_masks_of_another_dtype_raise_until_they_are_upgraded(dtype):
    params, state = after_a_fire(PACKED)
    other = in_dtype(state, dtype)
    with pytest.raises(ValueError, match=IN_UINT8.format(dtype)):
        PACKED.update(params, other, params)
    with pytest.raises(ValueError, match=rf"must have dtype uint8, got {dtype}.*upgrade_state"):
        jaxprune.get_masks(other)
    chex.assert_trees_all_equal(jaxprune.upgrade_state(PACKED, params, other), state)


def test_bit_masks_of_bools_can_not_be_upgraded():
    params, state = after_a_fire(PACKED)
    with pytest.raises(ValueError, match=IN_UINT8.format("bool")):
        PACKED.update(params, in_dtype(state, bool), params)
    with pytest.raises(ValueError, match=r"masks/a: the saved bit mask has dtype bool.*uint8"):
        jaxprune.upgrade_state(PACKED, params, in_dtype(state, bool))


def test_bool_masks_of_sparse_training_raise_because_they_lose_the_mark_of_grown_weights():
    params, state = after_a_fire(GROWS)
    with pytest.raises(ValueError, match=IN_UINT8.format("bool")):
        GROWS.update(params, in_dtype(state, bool), params)
    upgraded = jaxprune.upgrade_state(GROWS, params, in_dtype(state, bool))
    GROWS.update(params, upgraded, params)
    GROWS.update(params, in_dtype(state, "int32"), params)  # holds the mark


@pytest.mark.parametrize("dtype", ("int32", "int8", "float32", "bool"))
def test_masks_of_bytes_may_have_another_dtype(dtype):
    tx = FORMS["inner"]
    params, state = trained("inner")
    expected, _ = tx.update(params, state, params)
    updates, _ = tx.update(params, in_dtype(state, dtype), params)
    chex.assert_trees_all_equal(updates, expected)


@pytest.mark.parametrize("structure", (jaxprune.Channel(), jaxprune.Block((2, 2))))
def test_masks_that_are_sparse_from_the_start_need_no_saved_progress(structure):
    params = {"a": jnp.arange(1.0, 33.0).reshape(4, 8), "bias": jnp.ones(8)}
    tx = jaxprune.static_sparse(0.5, inner=optax.sgd(0.1), structure=structure)
    state = tx.init(params)
    params = jaxprune.apply_masks(params, state)
    upgraded = jaxprune.upgrade_state(tx, params, state._replace(progress=None))
    chex.assert_trees_all_equal(upgraded.progress.reached, state.progress.reached)
    updates, upgraded = tx.update(jax.tree.map(jnp.ones_like, params), upgraded, params)
    jaxprune.check(optax.apply_updates(params, updates), upgraded, done=True)


def test_dropped_weights_of_a_run_that_kept_them_are_no_violations():
    schedule = jaxprune.linear_schedule(0.5, 0, 4, every=2)
    held, landing = (jaxprune.prune(schedule, regrow=regrow) for regrow in ("hold", False))
    params = {"a": jnp.arange(1.0, 21.0).reshape(4, 5), "bias": jnp.ones(5)}
    state = held.init(params)
    for _ in range(4):
        _, state = held.update(params, state, params)
    state = jaxprune.upgrade_state(landing, params, state)
    for _ in range(4):
        updates, state = landing.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert state.violations == 0
    jaxprune.check(params, state, done=True)


def test_the_state_of_a_tree_without_leaves_is_upgraded():
    """As one whose params `optax.partition` gives to another optimizer."""
    for options in ({}, {"packed": True}):
        tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), **options)
        state = tx.init({})
        upgraded = jaxprune.upgrade_state(tx, {}, state)
        chex.assert_trees_all_equal(upgraded, state)
