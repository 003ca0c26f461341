"""`splice`: a dense run continues with pruning, and keeps its moments, counters and params."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

import jaxprune
from helpers import ones, quadratic, random_params, says
from jaxprune._state.splice import splice

SCHEDULE = jaxprune.one_shot_schedule(0.5, step=2)


def make_params(width=4):
    return {"fc": random_params({"kernel": (6, width)}) | {"bias": ones(width)}}


@functools.cache
def training_step(tx):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(quadratic)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def trained(tx, params, state, n_steps):
    for _ in range(n_steps):
        params, state = training_step(tx)(params, state)
    return params, state


def specs(tree):
    """What orbax restores into: shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@functools.cache  # the dense run of several forms
def adam():
    return optax.adam(0.1)


@functools.cache
def clipped():
    return optax.chain(optax.clip_by_global_norm(1.0), adam())


def last(opt):
    return optax.chain(opt, jaxprune.prune(SCHEDULE))


FORMS = {  # the dense optimizer, and the one that prunes
    "chain": (adam, lambda: last(adam())),
    "flat-chain": (
        clipped,
        lambda: optax.chain(optax.clip_by_global_norm(1.0), adam(), jaxprune.prune(SCHEDULE)),
    ),
    "chain-in-chain": (clipped, lambda: last(clipped())),
    "inner": (adam, lambda: jaxprune.prune(SCHEDULE, inner=adam())),
    "inner-of-a-chain": (clipped, lambda: jaxprune.prune(SCHEDULE, inner=clipped())),
    "inner-in-a-chain": (
        clipped,
        lambda: optax.chain(optax.clip_by_global_norm(1.0), jaxprune.prune(SCHEDULE, inner=adam())),
    ),
    "masked-link": (
        adam,
        lambda: optax.chain(
            adam(), optax.masked(jaxprune.prune(SCHEDULE), {"fc": {"kernel": True, "bias": False}})
        ),
    ),
    "partition": (
        lambda: optax.partition({"a": adam()}, {"fc": "a"}),
        lambda: optax.partition({"a": last(adam())}, {"fc": "a"}),
    ),
    "packed": (adam, lambda: optax.chain(adam(), jaxprune.prune(SCHEDULE, packed=True))),
    "rigl": (adam, lambda: jaxprune.rigl(0.5, 10, inner=adam())),
    "multi-steps": (
        lambda: optax.MultiSteps(adam(), 2).gradient_transformation(),
        lambda: optax.MultiSteps(
            jaxprune.prune(SCHEDULE, inner=adam()), 2
        ).gradient_transformation(),
    ),
    "injected": (
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        lambda: last(optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
    ),
}
WIDENED = pytest.mark.skip_in("x64", reason="inject_hyperparams takes the moments to float64")
VARIANTS = ("chain-in-chain", "inner-of-a-chain", "partition")  # of other nestings
every_form = pytest.mark.parametrize(
    "dense, sparse",
    [
        pytest.param(
            *form,
            id=name,
            marks=[WIDENED] * (name == "injected") + [pytest.mark.slow] * (name in VARIANTS),
        )
        for name, form in FORMS.items()
    ],
)


@every_form
def test_the_run_goes_on_from_the_moments_of_the_dense_one(dense, sparse):
    dense, sparse = dense(), sparse()
    params, dense_state = trained(dense, make_params(), dense.init(make_params()), 3)
    state = splice(sparse, params, dense_state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, sparse.init(params))
    mu, nu = optax.tree.get(state, "mu"), optax.tree.get(state, "nu")
    chex.assert_trees_all_equal(mu, optax.tree.get(dense_state, "mu"))
    chex.assert_trees_all_equal(nu, optax.tree.get(dense_state, "nu"))
    assert jaxprune.get_state(state).prune_step == 0
    params, state = trained(sparse, params, state, 6)
    assert int(jnp.sum(params["fc"]["kernel"] == 0)) == 12
    jaxprune.check(params, state)


@pytest.mark.parametrize("form", ("chain", "inner"))
def test_before_the_first_fire_nothing_differs_from_the_dense_run(form):
    dense, sparse = FORMS[form][0](), FORMS[form][1]()
    params, dense_state = trained(dense, make_params(), dense.init(make_params()), 3)
    state = splice(sparse, params, dense_state)
    for _ in range(2):  # outside jit, where no fusion rounds one of them differently
        updates, state = sparse.update(params, state, params)
        expected, dense_state = dense.update(params, dense_state, params)
        chex.assert_trees_all_equal(updates, expected)


def test_a_dense_checkpoint_on_disk_is_spliced(tmp_path):
    dense, sparse = adam(), last(adam())
    saved = trained(dense, make_params(), dense.init(make_params()), 3)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.StandardSave(saved))
        manager.wait_until_finished()
        params = make_params()
        target = specs((params, dense.init(params)))
        restored = manager.restore(3, args=ocp.args.StandardRestore(target))
    params, dense_state = restored
    state = splice(sparse, params, dense_state)
    chex.assert_trees_all_equal((params, state[0]), saved)


@pytest.mark.parametrize("form", ("chain", "packed", "rigl"))
def test_a_checkpoint_manager_resumes_in_mid_schedule_bit_for_bit(form, tmp_path):
    tx = FORMS[form][1]()
    if form != "rigl":
        schedule = jaxprune.cubic_schedule(0.75, 1, 7, 3)
        tx = optax.chain(adam(), jaxprune.prune(schedule, packed=form == "packed"))
    params = make_params()
    middle = trained(tx, params, tx.init(params), 5)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.StandardSave(middle))
        manager.wait_until_finished()
        target = specs((params, tx.init(params)))
        restored = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(target))
    chex.assert_trees_all_equal(restored, middle)
    resumed = trained(tx, *restored, 6)
    chex.assert_trees_all_equal_shapes_and_dtypes(resumed, middle)
    chex.assert_trees_all_equal(resumed, trained(tx, *middle, 6))


WRONG = {
    "no-prune": (adam(), adam(), ("no prune state", "tx.init")),
    "already": (last(adam()), last(adam()), ("prune state", "already")),
    "other-optimizer": (last(adam()), optax.sgd(0.1, momentum=0.5), ("0:", "dense")),
    "another-link": (last(clipped()), adam(), ("0:", "dense state")),
    "inner": (jaxprune.prune(SCHEDULE, inner=adam()), optax.sgd(0.1), ("inner_state:", "dense")),
}


@pytest.mark.parametrize("tx, dense, said", WRONG.values(), ids=WRONG)
def test_states_that_do_not_fit_raise_and_say_where(tx, dense, said):
    params = make_params()
    with pytest.raises(ValueError, match=says(*said)):
        splice(tx, params, dense.init(params))


def test_a_state_of_other_params_raises_with_their_path():
    with pytest.raises(ValueError, match=says("0/0/mu/fc/bias:", "float32[5]")):
        splice(last(adam()), make_params(), adam().init(make_params(width=5)))


def test_a_state_restored_without_its_structure_raises_and_says_how_to_restore_it():
    params = make_params()
    restored = [{"count": 3, "mu": params, "nu": params}, None]  # what orbax gives without a target
    with pytest.raises(ValueError, match=says("checkpoint", "structure")):
        splice(last(adam()), params, restored)


def test_moments_of_another_dtype_raise_with_their_path():
    dense = optax.adam(0.1, mu_dtype=jnp.bfloat16).init(make_params())
    with pytest.raises(ValueError, match=says("0/0/mu/fc/bias:", "bfloat16[4]", "float32[4]")):
        splice(last(adam()), make_params(), dense)
