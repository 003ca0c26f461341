"""`check(..., done=True)` raises unless the params hold what the schedule promises at its end."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings, strategies as st

import jaxprune
from helpers import assert_says, grads_at, random_params

SHAPES = {"a": (8, 12), "b": {"kernel": (12, 5), "bias": (5,)}}
# Of test_catch_up.py: programs that are the same are compiled once.
SCHEDULE = jaxprune.cubic_schedule(0.75, 1, 8, 4, initial_sparsity=0.5)
N_STEPS = SCHEDULE.end_step + 1


def sgd():
    return optax.sgd(0.05, momentum=0.5)


def chain(**options):
    return optax.chain(sgd(), jaxprune.prune(SCHEDULE, **options))


def partitioned():
    labels = {"a": "a", "b": {"kernel": "b", "bias": "b"}}
    return optax.partition({"a": chain(), "b": chain(packed=True)}, labels)


def masked():
    return optax.chain(
        sgd(),
        optax.masked(jaxprune.prune(SCHEDULE), {"a": True, "b": {"kernel": True, "bias": False}}),
    )


FORMS = {
    "chain": chain(),
    "inner": jaxprune.prune(SCHEDULE, inner=sgd()),
    "bit masks": chain(packed=True),
    "partition": partitioned(),
    "masked": masked(),
    "two states": optax.chain(
        sgd(), jaxprune.prune(SCHEDULE, exclude="a"), jaxprune.prune(SCHEDULE)
    ),
    "N:M": chain(structure={".*": jaxprune.NM(1, 4)}),
    "blocks": chain(structure=jaxprune.Block((3, 2))),
    "balanced": chain(structure={"a": jaxprune.Block((2, 4), balanced=True)}),
    "channels": chain(structure=jaxprune.Channel()),
    "global pool": chain(distribution=jaxprune.global_pool),
    "slices": chain(distribution=jaxprune.per_slice("a")),
    "hold": jaxprune.prune(SCHEDULE, inner=sgd(), regrow="hold"),
    "train": jaxprune.prune(SCHEDULE, inner=sgd(), regrow="train"),
    "rigl": jaxprune.rigl(0.75, N_STEPS - 1, every=2, inner=sgd(), distribution=jaxprune.uniform),
}
DENSE = ("hold", "train")
every_form = pytest.mark.parametrize("form", FORMS)


def make_params():
    return random_params(SHAPES)


@functools.cache
def trace(form):
    """The params and the state before the first update and after each."""
    step = jax.jit(FORMS[form].update)
    params, state = make_params(), FORMS[form].init(make_params())
    if form == "rigl":
        params = jaxprune.apply_masks(params, state)
    results = [(params, state)]
    for t in range(N_STEPS + 1):
        updates, state = step(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
        results.append((params, state))
    return results


@every_form
def test_it_raises_at_every_step_before_the_end_and_never_after(form):
    for t, (params, state) in enumerate(trace(form)):
        left = sum(step >= t for step in SCHEDULE.fire_steps if form != "rigl")
        left = left if form != "rigl" else sum(step >= t for step in (2, 4, 6, 8))
        if not left:
            jaxprune.check(params, state, done=True)
            continue
        verb = "fire is" if left == 1 else "fires are"
        with pytest.raises(ValueError, match=f"not finished: {left} {verb} left"):
            jaxprune.check(params, state, done=True)


@pytest.mark.parametrize("form", DENSE)
def test_params_that_stay_dense_are_told_what_to_check(form):
    params, state = trace(form)[-1]
    with pytest.raises(ValueError, match=r"not zero\. With regrow=.* stay dense") as raised:
        jaxprune.check(params, state)
    for call in (
        "jaxprune.check(jaxprune.apply_masks(params, opt_state), opt_state)",
        "jaxprune.check(params, opt_state, done=True)",
    ):
        assert call in str(raised.value)
        eval(call, {"jaxprune": jaxprune, "params": params, "opt_state": state})


@every_form
def test_masks_that_were_lost_are_named_with_counts(form):
    params, state = trace(form)[-1]
    is_state = lambda x: isinstance(x, jaxprune.PruneState)
    lost = jax.tree.map(_without_drops, state, is_leaf=is_state)
    with pytest.raises(ValueError, match=r"a.*the masks drop 0 ") as raised:
        jaxprune.check(params, lost, done=True)
    assert "b/kernel" in str(raised.value)
    assert "tx.update" in str(raised.value)


def _without_drops(node):
    if not isinstance(node, jaxprune.PruneState):
        return node
    full = jnp.uint8(1 if node.widths is None else 255)
    return node._replace(masks=jax.tree.map(lambda m: jnp.full_like(m, full), node.masks))


@pytest.mark.parametrize("form", [form for form in FORMS if form not in DENSE])
def test_params_of_an_earlier_step_are_named_with_counts(form):
    results = trace(form)
    early, state = (make_params() if form == "rigl" else results[3][0]), results[-1][1]
    with pytest.raises(ValueError, match=r"weights are zero, but [\d,]+ are due") as raised:
        jaxprune.check(early, state, done=True)
    assert "apply_masks" in str(raised.value)
    jaxprune.check(jaxprune.apply_masks(early, state), state, done=True)


@pytest.mark.parametrize("form", DENSE)
def test_dense_params_are_not_judged(form):
    _, state = trace(form)[-1]
    jaxprune.check(make_params(), state, done=True)


@settings(max_examples=5)  # each compiles a program
@given(
    steps=st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(1, 4)),
    target=st.sampled_from((0.0, 0.3, 0.75)),
    interrupted=st.integers(0, 12),
)
def test_done_means_that_no_fire_is_left_that_drops_weights(steps, target, interrupted):
    begin, length, every = steps
    schedule = jaxprune.linear_schedule(target, begin, begin + length, every)
    tx = optax.chain(sgd(), jaxprune.prune(schedule, distribution=jaxprune.erk))
    params, state = make_params(), tx.init(make_params())
    step = jax.jit(tx.update)
    for t in range(interrupted):
        updates, state = step(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
    left = sum(step >= interrupted for step in schedule.fire_steps)
    assert jaxprune.metrics(state)["prune/fires_left"] == left
    if not left or (not target and len(schedule.fire_steps) == 1):  # it promises nothing
        jaxprune.check(params, state, done=True)
        return
    with pytest.raises(ValueError, match=f"{left} fires? (is|are) left"):
        jaxprune.check(params, state, done=True)


def test_counts_name_what_is_due():
    results = trace("chain")
    with pytest.raises(ValueError, match="a: 0 weights are zero, but 72 are due; b/kernel: 0"):
        jaxprune.check(make_params(), results[-1][1], done=True)


def test_a_state_that_goes_on_under_another_schedule_is_not_finished():
    params, state = trace("chain")[-1]
    longer = optax.chain(sgd(), jaxprune.prune(jaxprune.cubic_schedule(0.9, 4, 20, 8)))
    updates, state = longer.update(grads_at(params, 0), state, params)
    params = optax.apply_updates(params, updates)
    jaxprune.check(params, state)
    with pytest.raises(ValueError, match="not finished: 2 fires are left"):
        jaxprune.check(params, state, done=True)


def test_rigl_must_drop_exactly_its_budget():
    params, state = trace("rigl")[-1]
    masks = jaxprune.get_masks(state)
    masks["a"] = masks["a"].at[:, 0].set(False)
    state = jaxprune.set_masks(state, masks)
    params = jaxprune.apply_masks(params, state)
    jaxprune.check(params, state)
    with pytest.raises(
        ValueError, match=r"a: the masks drop \d+ weights, but 72 are due"
    ) as caught:
        jaxprune.check(params, state, done=True)
    assert_says(str(caught.value), "none brings weights back", "Pass set_masks masks")


def test_a_state_without_progress_names_upgrade_state():
    params, state = trace("chain")[-1]
    old = optax.tree.set(state, progress=None)
    jaxprune.check(params, old)
    with pytest.raises(ValueError, match=r"jaxprune.upgrade_state\(tx, params, opt_state\)"):
        jaxprune.check(params, old, done=True)
    jaxprune.check(params, jaxprune.upgrade_state(FORMS["chain"], params, old), done=True)


def test_members_of_a_batched_state_are_judged_one_by_one():
    results = trace("chain")
    both = jax.tree.map(lambda *x: jnp.stack(x), results[-1], results[-1])
    jaxprune.check(*both, done=True)
    mixed = jax.tree.map(lambda *x: jnp.stack(x), results[-1], results[3])
    with pytest.raises(ValueError, match=r"not finished.* the state is at step 3;"):
        jaxprune.check(*mixed, done=True)


def test_a_schedule_of_which_little_has_run_is_not_done():  # the case of many users
    tx = optax.chain(sgd(), jaxprune.prune(jaxprune.cubic_schedule(0.9, 1000, 9000, 100)))
    params, state = make_params(), tx.init(make_params())
    for t in range(5):
        updates, state = tx.update(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
    jaxprune.check(params, state)
    with pytest.raises(ValueError, match="81 fires are left") as raised:
        jaxprune.check(params, state, done=True)
    assert_says(
        str(raised.value),
        "81 fires are left, the last at step 9,000, and the state is at step 5; a: the masks drop",
        "0 weights, but 86",
        "optax.MultiSteps",
    )
    assert jaxprune.metrics(state)["prune/fires_left"] == 81


def test_a_state_that_the_training_step_did_not_return_is_explained():
    params = make_params()
    tx = jaxprune.prune(SCHEDULE, inner=sgd())
    state = tx.init(params)
    for t in range(3):
        updates, _ = tx.update(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
    with pytest.raises(ValueError, match=r"at step 0.*the last tx\.update returned"):
        jaxprune.check(params, state, done=True)


def test_masks_of_leaves_that_are_not_pruned_do_not_count():
    """`set_masks` refuses them, but older releases did not, and a state may hold any masks."""
    params = {"w": jnp.array([[0.0, 2.0], [3.0, 0.0]]), "lora_b": jnp.zeros((2, 4))}
    tx = optax.chain(sgd(), jaxprune.prune(jaxprune.one_shot_schedule(0.0), exclude="lora_.*"))
    state = jaxprune.set_masks(tx.init(params), jaxprune.masks_from_params(params, include="w"))
    dropped = jnp.zeros((2, 4), jnp.uint8)
    state = (state[0], state[1]._replace(masks=state[1].masks | {"lora_b": dropped}))
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
    assert jnp.all(params["lora_b"] != 0)
    jaxprune.check(params, state, done=True)
    for apply in (jaxprune.apply_masks, jax.jit(jaxprune.apply_masks)):
        applied = apply(params, state)
        assert jnp.all(applied["lora_b"] == params["lora_b"])
        assert applied["w"].tolist()[0][0] == 0
    assert jaxprune.metrics(state)["prune/n_zero"] == 2
    assert "prune/sparsity/lora_b" not in jaxprune.metrics(state, per_leaf=True)


@pytest.mark.parametrize("targets", ((0.5, 0.5, 0.0), (0.0, 0.5, 0.0)))
def test_a_schedule_that_ends_dense_is_not_done_before_its_end(targets):
    schedule = jaxprune.SparsitySchedule(0, 4, 2, targets, may_fall=True)
    tx = optax.chain(sgd(), jaxprune.prune(schedule, regrow="zero"))
    params, state = make_params(), tx.init(make_params())
    for t in range(5):
        updates, state = tx.update(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
        left = (2, 2, 1, 1, 0)[t]
        if left:
            with pytest.raises(ValueError, match=f"not finished: {left} fires? (is|are) left"):
                jaxprune.check(params, state, done=True)
    jaxprune.check(params, state, done=True)
    assert jaxprune.metrics(state)["prune/n_zero"] == 0


def test_a_schedule_that_asks_for_nothing_is_done_with_the_masks_that_were_set():
    params = {"kernel": jnp.array([[0.0, 2.0], [3.0, 0.0]]), "bias": jnp.ones(2)}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.0, 5))
    state = jaxprune.set_masks(tx.init(params), jaxprune.masks_from_params(params))
    jaxprune.check(params, state, done=True)
    params["kernel"] = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="kernel: 2 of 2 dropped weights are not zero"):
        jaxprune.check(params, state, done=True)
