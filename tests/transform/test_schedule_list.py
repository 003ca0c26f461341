"""`prune([schedule, ...])`: each member of a batch does what its schedule alone would do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import jaxprune
from bad_input import assert_error, case
from helpers import assert_says, on_device
from jaxprune import NM, Block, choose_schedule

pytestmark = pytest.mark.usefixtures("counted_programs")

SGD = optax.sgd(0.125)
N_STEPS = 9
SCHEDULES = (
    jaxprune.cubic_schedule(0.75, 0, 6, every=2),
    jaxprune.linear_schedule(0.5, 3, 8, every=2),
    jaxprune.one_shot_schedule(0.0),
    jaxprune.one_shot_schedule(0.625, 7),
)
HALVES = (
    jaxprune.one_shot_schedule(0.5, 2),
    jaxprune.cubic_schedule(0.5, 0, 6, every=3),
    jaxprune.linear_schedule(0.5, 1, 7, every=1),
)


def make_params():
    """Two pruned leaves and one that is not."""
    rng = np.random.default_rng(0)
    leaf = lambda *shape: on_device(rng.standard_normal(shape))
    return {"a": leaf(8, 16), "b": leaf(16), "c": leaf(16, 4)}


def step_of(tx):
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(3 * p + t), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def alone(form, schedule):
    """The masks and the progress after each update, under one schedule."""
    tx = FORMS[form](schedule)
    params, state = make_params(), tx.init(make_params())
    step, history = jax.jit(step_of(tx)), []
    for t in range(N_STEPS):
        params, state = step(params, state, jnp.float32(t))
        history.append(host((jaxprune.get_masks(state), jaxprune.get_state(state).progress)))
    return history


def host(tree):
    return jax.tree.map(np.asarray, tree)


FORMS = {
    "chain": lambda s: optax.chain(SGD, jaxprune.prune(s)),
    "inner": lambda s: jaxprune.prune(s, inner=SGD, distribution=jaxprune.erk),
    "packed": lambda s: jaxprune.prune(s, inner=SGD, packed=True, ties="hashed"),
    "pool": lambda s: jaxprune.prune(s, inner=SGD, distribution=jaxprune.global_pool),
    "blocks": lambda s: jaxprune.prune(s, inner=SGD, structure=Block((2, 2))),
    "slices": lambda s: jaxprune.prune(
        s, inner=SGD, distribution=jaxprune.per_slice("a"), overrides={"c": 0.25}
    ),
    "nm": lambda s: jaxprune.prune(s, inner=SGD, structure=NM(2, 4, axis=-2)),
}


def assert_same(batched, number, history, t):
    """Checks that one member of a batch is as the run of its schedule alone was."""
    masks, progress = host(
        jax.tree.map(
            lambda x: x[number],
            (jaxprune.get_masks(batched), jaxprune.get_state(batched).progress),
        )
    )
    own_masks, own_progress = history[t]
    for path, mask in own_masks.items():
        assert np.array_equal(masks[path], mask), (number, t, path)
    for name in set(own_progress._fields) - {"choices"}:
        assert np.array_equal(getattr(progress, name), getattr(own_progress, name)), (number, name)


@pytest.mark.parametrize("form", FORMS)
def test_members_of_a_batch_follow_their_schedules(form):
    schedules = HALVES if form == "nm" else SCHEDULES
    if form == "slices":  # an override needs a schedule to scale
        schedules = tuple(s for s in SCHEDULES if s.final_sparsity)
    tx = FORMS[form](list(schedules))
    numbers = jnp.arange(len(schedules))
    states = jax.vmap(lambda i: choose_schedule(tx.init(make_params()), i))(numbers)
    params = jax.tree.map(lambda p: jnp.stack([p] * len(schedules)), make_params())
    step = jax.jit(jax.vmap(step_of(tx), (0, 0, None)))
    for t in range(N_STEPS):
        params, states = step(params, states, jnp.float32(t))
        for number, schedule in enumerate(schedules):
            assert_same(states, number, alone(form, schedule), t)
    assert jax.config.jax_disable_jit or step._cache_size() == 1
    jaxprune.check(params, states, done=True)
    for number, target in enumerate(jaxprune.metrics(states)["prune/target"].tolist()):
        assert target == alone(form, schedules[number])[-1][1].target


@settings(max_examples=30)
@given(st.data())
def test_budgets_are_those_of_each_schedule(data):
    """Any schedules, compared row by row with the tables that an update reads."""
    steps = st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(1, 7))
    sparsities = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.9])
    schedules = [
        jaxprune.cubic_schedule(data.draw(sparsities), begin, begin + more, every)
        for begin, more, every in data.draw(st.lists(steps, min_size=1, max_size=4))
    ]
    distribution = data.draw(st.sampled_from([jaxprune.uniform, jaxprune.erk]))
    options = dict(distribution=distribution, exclude="b")
    state = jaxprune.prune(schedules, **options).init(make_params())
    for i, schedule in enumerate(schedules):
        own = jaxprune.prune(schedule, **options).init(make_params()).progress
        chosen = choose_schedule(state, i).progress
        for name in set(own._fields) - {"choices"}:
            assert np.array_equal(getattr(chosen, name), getattr(own, name)), (i, name)
        assert int(chosen.choices.number) == i


def test_the_schedule_can_change_between_updates():
    tx = jaxprune.prune([SCHEDULES[2], SCHEDULES[0]], inner=SGD)
    params, state = make_params(), tx.init(make_params())
    step = jax.jit(step_of(tx))
    for t in range(4):
        params, state = step(params, state, jnp.float32(t))
    assert jaxprune.metrics(state)["prune/sparsity"] == 0
    state = choose_schedule(state, 1)
    assert int(jaxprune.metrics(state)["prune/fires_left"]) == 2  # at steps 4 and 6
    params, state = step(params, state, jnp.float32(4))
    assert int(jaxprune.metrics(state)["prune/fires_left"]) == 1
    assert jaxprune.metrics(state)["prune/sparsity"] == alone("chain", SCHEDULES[0])[4][
        1
    ].zeros.sum() / (8 * 16 + 16 * 4)
    back = choose_schedule(state, 0)
    params, after = step(params, back, jnp.float32(5))
    assert jaxprune.metrics(after)["prune/sparsity"] == jaxprune.metrics(state)["prune/sparsity"]
    assert jax.config.jax_disable_jit or step._cache_size() == 1


def test_one_number_serves_all_members_and_parts():
    tx = optax.chain(SGD, jaxprune.prune(SCHEDULES), jaxprune.prune(SCHEDULES[3]))
    state = choose_schedule(tx.init(make_params()), 3)
    assert int(state[1].progress.choices.number) == 3
    assert state[2].progress.choices is None
    states = jax.vmap(lambda i: tx.init(make_params()))(jnp.arange(2))
    assert choose_schedule(states, 1)[1].progress.choices.number.tolist() == [1, 1]
    assert choose_schedule(states, jnp.array([1, 3]))[1].progress.fires_left.tolist() == [4, 1]


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
def test_a_traced_number_out_of_range_means_the_nearest():
    state = jaxprune.prune(SCHEDULES).init(make_params())
    for number, nearest in ((-1, 0), (99, 3)):
        chosen = jax.jit(choose_schedule)(state, number)
        assert int(chosen.progress.choices.number) == nearest


def test_a_scan_and_a_checkpoint_keep_the_choice():
    tx = jaxprune.prune(SCHEDULES, inner=SGD)
    carry = make_params(), choose_schedule(tx.init(make_params()), 1)
    step = step_of(tx)
    (params, state), _ = jax.lax.scan(
        lambda carry, t: (step(*carry, t), None), carry, jnp.arange(N_STEPS, dtype=jnp.float32)
    )
    masks, _ = alone("chain", SCHEDULES[1])[-1]
    assert all(np.array_equal(jaxprune.get_masks(state)[k], m) for k, m in masks.items())
    jaxprune.check(params, state, done=True)


def test_plan_has_the_total_of_every_schedule():
    report = jaxprune.plan(make_params(), SCHEDULES)
    single = [jaxprune.plan(make_params(), schedule) for schedule in SCHEDULES]
    assert report.leaves == single[0].leaves
    assert report.title.startswith("plan: schedule 0 of 4: 0.75 at steps 0 to 6")
    for i, (note, own) in enumerate(zip(report.notes, single[1:], strict=True), 1):
        assert_says(note, f"schedule {i}:", f"{own.n_zero:,} of {own.size:,} weights")
    assert jaxprune.plan(make_params(), jaxprune.prune(SCHEDULES)).notes == report.notes


def test_rigl_takes_no_list():
    with pytest.raises(TypeError):
        jaxprune.rigl(SCHEDULES, 10, inner=SGD)


def updated(new, old):
    """One update of a transformation with the state of another."""
    new, old = jaxprune.prune(new), jaxprune.prune(old)
    return new.update(make_params(), old.init(make_params()), make_params())


STATE = jaxprune.prune(SCHEDULES).init(make_params())
BAD = [
    case(
        "an_empty_list",
        lambda: jaxprune.prune([]),
        ValueError,
        ("schedule must", "an empty list", "[jaxprune.cubic_schedule("),
    ),
    case(
        "sparsities_for_schedules",
        lambda: jaxprune.prune([0.5, 0.9]),
        TypeError,
        ("schedule must", "0.5", "jaxprune.one_shot_schedule"),
    ),
    case(
        "overrides_of_a_list_that_ends_dense",
        lambda: jaxprune.prune(SCHEDULES, overrides={"a": 0.5}),
        ValueError,
        ("overrides", "schedules[2] ends at 0", "positive final_sparsity"),
    ),
    case(
        "an_index_out_of_range",
        lambda: choose_schedule(STATE, 4),
        ValueError,
        ("choose_schedule: index", ("[0, 4)", "got 4"), None),
    ),
    case(
        "a_negative_index",
        lambda: choose_schedule(STATE, -1),
        ValueError,
        ("choose_schedule: index", "-1", None),
    ),
    case(
        "a_float_for_an_index",
        lambda: choose_schedule(STATE, 1.0),
        TypeError,
        ("choose_schedule: index", "1.0", "counted from 0"),
    ),
    case(
        "indices_for_one_state",
        lambda: choose_schedule(STATE, np.array([0, 1])),
        ValueError,
        ("choose_schedule: index", "(2,)", "one number for each member"),
    ),
    case(
        "a_state_of_one_schedule",
        lambda: choose_schedule(jaxprune.prune(SCHEDULES[0]).init(make_params()), 0),
        ValueError,
        ("choose_schedule: ", None, "jaxprune.prune([schedule, ...])"),
    ),
    case(
        "a_state_of_a_shorter_list",
        lambda: updated(SCHEDULES, SCHEDULES[:2]),
        ValueError,
        ("state", ("a list of 2", "a list of 4"), "jaxprune.upgrade_state"),
    ),
    case(
        "a_state_of_a_single_schedule",
        lambda: updated(SCHEDULES, SCHEDULES[0]),
        ValueError,
        ("state", ("a single schedule", "a list of 4"), "jaxprune.upgrade_state"),
    ),
    case(
        "a_list_of_one",
        lambda: updated(SCHEDULES, SCHEDULES[:1]),
        ValueError,
        ("state", ("a list of 1 schedule,", "a list of 4 schedules"), "jaxprune.upgrade_state"),
    ),
    case(
        "a_list_for_a_single_schedule",
        lambda: updated(SCHEDULES[0], SCHEDULES),
        ValueError,
        ("state", ("a list of 4", "a single schedule"), "jaxprune.upgrade_state"),
    ),
    case(
        "different_sparsities_with_nm",
        lambda: jaxprune.prune(
            [HALVES[0], SCHEDULES[0]], structure=NM(2, 4, axis=-2), exclude="b"
        ).init(make_params()),
        ValueError,
        ("all 2 leaves that are pruned:", ("0.5", "0.75"), "final sparsity of 0.5"),
    ),
    case(
        "a_falling_schedule_in_a_list",
        lambda: jaxprune.prune([SCHEDULES[0], jaxprune.acdc_schedule(0.5, 0, 4, every=2)]),
        ValueError,
        ("regrow", None, 'regrow="zero"'),
    ),
]


@pytest.mark.parametrize("call, kind, parts", BAD)
def test_bad_input(call, kind, parts):
    assert_error(call, kind, parts)


def test_a_state_of_another_list_can_be_upgraded():
    old = jaxprune.prune(SCHEDULES[0]).init(make_params())
    tx = jaxprune.prune(SCHEDULES)
    state = jaxprune.upgrade_state(tx, make_params(), old)
    _, state = tx.update(make_params(), choose_schedule(state, 1), make_params())
    assert int(state.progress.choices.number) == 1
