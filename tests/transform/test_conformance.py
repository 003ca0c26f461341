"""`prune` passes the tests that optax runs on contributed optimizers (`contrib/_common_test.py`).

They test unknown arguments, no compilation on a second call, `tree.map_params`,
convergence, `inject_hyperparams`, dtypes of updates, accumulation, and a state whose shapes, dtypes
and shardings a `cond` can take either way. Learning rate schedules are left to the optimizer.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import on_device

pytestmark = pytest.mark.usefixtures("counted_programs")

SCHEDULE = jaxprune.cubic_schedule(0.5, 1, 5, 2)
N_ZERO = 12  # of the 24 weights of every kernel
DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


def sgd(learning_rate=0.25):
    return optax.sgd(learning_rate, momentum=0.5)


KINDS = {
    "chain": lambda opt: optax.chain(opt, jaxprune.prune(SCHEDULE)),
    "inner": lambda opt: jaxprune.prune(SCHEDULE, inner=opt),
    "packed": lambda opt: jaxprune.prune(SCHEDULE, inner=opt, packed=True),
    "regrow": lambda opt: jaxprune.prune(SCHEDULE, inner=opt, regrow="zero"),
    "movement": lambda opt: jaxprune.prune(SCHEDULE, inner=opt, score=jaxprune.movement),
    "rigl": lambda opt: jaxprune.rigl(0.5, 5, every=2, inner=opt),
    "static": lambda opt: jaxprune.static_sparse(0.5, inner=opt),
}
every_kind = pytest.mark.parametrize("create", KINDS.values(), ids=KINDS)
# Where one kind is like another and takes as long to compile.
FEW = ("chain", "inner", "packed", "rigl")
few_kinds = pytest.mark.parametrize(
    "create",
    [
        pytest.param(create, id=name, marks=[pytest.mark.slow] * (name not in FEW))
        for name, create in KINDS.items()
    ],
)


def make_params(dtypes=(jnp.float32,), seed=0):
    """A kernel and a bias of each dtype; multiples of 1/8, so that narrow ones hold them too."""
    rng = np.random.default_rng(seed)
    leaf = lambda shape, dtype: on_device(rng.integers(1, 16, shape) / 8, dtype)
    return {np.dtype(d).name: {"kernel": leaf((4, 6), d), "bias": leaf(6, d)} for d in dtypes}


TARGET = make_params(seed=1)


def loss(params):
    squares = jax.tree.map(lambda p, target: jnp.sum((p - target) ** 2), params, TARGET)
    return sum(jax.tree.leaves(squares)) / 2


@functools.cache
def compiled(create):
    """A transformation of the kind, and one jitted update of it that gets an unknown argument."""
    tx = create(sgd())

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, nobody_expects_this=1)
        return updates, state, optax.apply_updates(params, updates)

    return tx, step


@pytest.mark.skip_in("disable_jit", reason="nothing is compiled")
@every_kind
def test_unknown_extra_args_are_ignored_and_a_second_call_compiles_nothing(create):
    tx, step = compiled(create)
    params, state = make_params(), tx.init(make_params())
    for _ in range(3):
        _, new, params = step(params, state, params)
        chex.assert_trees_all_equal_structs(new, state)
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)  # weak types too
        state = new
    assert step._cache_size() == 1


@every_kind
def test_it_converges_where_weights_are_kept(create):
    tx = create(sgd())
    state = tx.init(make_params())
    params = jaxprune.apply_masks(make_params(), state)  # for those that are sparse from the start
    chex.assert_trees_all_equal(optax.tree.map_params(tx, lambda x: x, state), state)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), length=60)
    masks = jaxprune.get_masks(state)
    best = jax.tree.map(lambda target, mask: np.where(mask, target, 0), TARGET, masks)
    chex.assert_trees_all_close(params, best, atol=1e-4)  # the error halves at every step or so
    assert int(jnp.sum(params["float32"]["kernel"] == 0)) == N_ZERO
    jaxprune.check(params, state)


@few_kinds
def test_dtypes_are_those_of_the_params_and_a_cond_takes_both_states(create, x64):
    tx = create(sgd())
    params = make_params(DTYPES)
    state = tx.init(params)

    @jax.jit
    def step(keep, params, state):
        updates, new = jax.lax.cond(
            keep, lambda: (params, state), lambda: tx.update(params, state, params)
        )
        return updates, optax.apply_updates(params, updates), new

    for keep in (False, True, False):
        updates, params, new = step(keep, params, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, make_params(DTYPES))
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        assert [x.sharding for x in jax.tree.leaves(new)] == [
            x.sharding for x in jax.tree.leaves(state)
        ]
        state = new


@few_kinds
def test_the_first_of_four_accumulated_steps_changes_nothing(create):
    tx = optax.MultiSteps(create(sgd()), every_k_schedule=4)
    params = make_params((jnp.bfloat16, jnp.float32))
    updates, _ = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))


@few_kinds
def test_a_hyperparameter_can_be_injected(create):
    plain, step = compiled(create)
    injected = optax.inject_hyperparams(lambda rate: create(sgd(rate)))(rate=0.25)
    params = make_params()
    expected = step(params, plain.init(params), params)[:2]
    with jax.checking_leaks():  # `injected` makes an optimizer of traced values in every trace
        updates, state = jax.jit(injected.update)(params, jax.jit(injected.init)(params), params)
    chex.assert_trees_all_equal((updates, state.inner_state), expected)


SCORED = {  # optimizers whose score a hyperparameter scales; a power of 2 changes no mask
    "elementwise": lambda score: jaxprune.prune(SCHEDULE, score=score, inner=sgd()),
    "stored": lambda score: jaxprune.prune(SCHEDULE, score=lambda *x: score(*x) / x[0].size),
    "accumulated": lambda score: jaxprune.prune(
        SCHEDULE,
        score=jaxprune.Accumulated("scaled", lambda p, g: score(p, g, None)),
        inner=sgd(),
    ),
    "blocks": lambda score: jaxprune.prune(
        SCHEDULE, score=score, structure=jaxprune.Block((2, 3)), packed=True
    ),
    "global": lambda score: jaxprune.prune(
        SCHEDULE, score=functools.partial(score), distribution=jaxprune.global_pool
    ),
    "rigl": lambda score: jaxprune.rigl(0.5, 5, every=2, inner=sgd(), grow=score),
}


@pytest.mark.parametrize("create", SCORED.values(), ids=SCORED)
def test_a_score_can_use_an_injected_hyperparameter(create):
    def scaled(scale):
        return create(lambda params, grads, key: abs(params) * scale)

    params = make_params()
    injected = optax.inject_hyperparams(scaled)(scale=4.0)
    with jax.checking_leaks():
        updates, state = jax.jit(injected.update)(params, jax.jit(injected.init)(params), params)
    expected = scaled(4.0)
    expected = jax.jit(expected.update)(params, jax.jit(expected.init)(params), params)
    chex.assert_trees_all_equal((updates, state.inner_state), expected)


@pytest.mark.parametrize("argument", ("include", "exclude"))
def test_a_rule_can_close_over_an_injected_hyperparameter(argument):
    def create(rate):
        rule = lambda path, leaf: (rate is not None) and (leaf.ndim >= 2) == (argument == "include")
        return jaxprune.prune(SCHEDULE, inner=sgd(rate), **{argument: rule})

    params = make_params()
    injected = optax.inject_hyperparams(create)(rate=0.25)
    with jax.checking_leaks():
        state = jax.jit(injected.init)(params)
    expected = create(0.25).init(params)
    chex.assert_trees_all_equal(state.inner_state, expected)
