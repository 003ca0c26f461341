"""`plan` of an optimizer says when a later link of a chain changes what pruning has returned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import assert_says, on_device
from promises import placement

SGD = optax.sgd(0.1)
HALF = jaxprune.one_shot_schedule(0.5)
PRUNE = jaxprune.prune(HALF)
WRAPPED = jaxprune.prune(HALF, inner=SGD)
PATHS = ["conv", "fc/kernel"]
LABELS = {"conv": "a", "fc": {"kernel": "b", "bias": "b"}}
DECAY = optax.add_decayed_weights(0.1)


def only(tx, conv=False, kernel=False, bias=False):
    return optax.masked(tx, {"conv": conv, "fc": {"kernel": kernel, "bias": bias}})


def every(k, tx):
    return optax.MultiSteps(tx, k).gradient_transformation()


# How an optimizer is made, and the leaves whose dropped weights it moves.
OPTIMIZERS = {
    "last": (lambda: optax.chain(SGD, PRUNE), []),
    "around": (lambda: WRAPPED, []),
    "around a chain": (lambda: jaxprune.prune(HALF, inner=optax.chain(PRUNE, SGD)), []),
    "first": (lambda: optax.chain(PRUNE, SGD), PATHS),
    "in the middle": (lambda: optax.chain(SGD, PRUNE, optax.scale(0.5)), PATHS),
    "around, in the middle": (lambda: optax.chain(WRAPPED, DECAY, optax.scale(0.5)), PATHS),
    "before nothing": (lambda: optax.chain(SGD, PRUNE, optax.identity()), []),
    "twice": (lambda: optax.chain(SGD, PRUNE, jaxprune.prune(HALF, include="conv")), []),
    "before biases": (lambda: optax.chain(WRAPPED, only(optax.scale(0.5), bias=True)), []),
    "before a kernel": (
        lambda: optax.chain(WRAPPED, only(optax.scale(0.5), kernel=True)),
        PATHS[1:],
    ),
    "average": (lambda: optax.chain(SGD, PRUNE, optax.ema(0.9)), PATHS),
    "nested": (lambda: optax.chain(optax.chain(SGD, PRUNE), optax.scale(0.5)), PATHS),
    "named": (lambda: optax.named_chain(("sgd", SGD), ("prune", PRUNE)), []),
    "named first": (lambda: optax.named_chain(("prune", PRUNE), ("a", SGD)), PATHS),
    "micro-steps": (lambda: every(2, optax.chain(SGD, PRUNE)), []),
    "micro-steps first": (lambda: every(2, optax.chain(PRUNE, SGD)), PATHS),
    "if finite": (lambda: optax.apply_if_finite(optax.chain(SGD, PRUNE), 3), []),
    "before if finite": (lambda: optax.chain(PRUNE, optax.apply_if_finite(SGD, 3)), PATHS),
    "in a part": (lambda: optax.partition({"a": optax.chain(SGD, PRUNE), "b": SGD}, LABELS), []),
    "first in a part": (
        lambda: optax.partition({"a": optax.chain(PRUNE, SGD), "b": SGD}, LABELS),
        PATHS[:1],
    ),
    "hyperparameters": (
        lambda: optax.inject_hyperparams(lambda lr: optax.chain(PRUNE, optax.scale(-lr)))(lr=0.1),
        PATHS,
    ),
    "polyak": (lambda: optax.chain(PRUNE, optax.scale_by_polyak()), PATHS),
    "rigl": (
        lambda: optax.chain(jaxprune.rigl(0.5, end_step=9, inner=SGD), optax.scale(0.5)),
        PATHS,
    ),
    "keep_zeros": (
        lambda: optax.chain(jaxprune.keep_zeros(SGD), optax.scale(0.5)),
        ["conv", "fc/bias", "fc/kernel"],
    ),
}
ONLY_CONV, ONLY_KERNEL = {"include": "conv"}, {"include": "fc/kernel"}
ADAM = optax.adam(0.1)
OPTIMIZERS |= {
    "first, another last": (
        lambda: optax.chain(
            jaxprune.prune(HALF, **ONLY_CONV), ADAM, jaxprune.prune(HALF, **ONLY_KERNEL)
        ),
        PATHS[:1],
    ),
    "before one around": (
        lambda: optax.chain(
            jaxprune.prune(HALF, **ONLY_CONV), jaxprune.prune(HALF, **ONLY_KERNEL, inner=ADAM)
        ),
        PATHS[:1],
    ),
    "before keep_zeros around": (lambda: optax.chain(PRUNE, jaxprune.keep_zeros(ADAM)), PATHS),
    "first inside one around": (
        lambda: jaxprune.prune(
            HALF, **ONLY_KERNEL, inner=optax.chain(jaxprune.prune(HALF, **ONLY_CONV), ADAM)
        ),
        PATHS[:1],
    ),
    "less behind more": (
        lambda: optax.chain(
            jaxprune.prune(jaxprune.one_shot_schedule(0.75)), jaxprune.prune(HALF, inner=ADAM)
        ),
        PATHS,
    ),
    "one for each": (
        lambda: optax.chain(
            SGD, jaxprune.prune(HALF, **ONLY_CONV), jaxprune.prune(HALF, **ONLY_KERNEL)
        ),
        [],
    ),
    "one for each, in micro-steps": (lambda: every(2, OPTIMIZERS["one for each"][0]()), []),
    "last inside one around": (
        lambda: jaxprune.prune(
            HALF, **ONLY_KERNEL, inner=optax.chain(ADAM, jaxprune.prune(HALF, **ONLY_CONV))
        ),
        [],
    ),
    "one around for each": (
        lambda: optax.chain(only(WRAPPED, conv=True), only(WRAPPED, kernel=True)),
        [],
    ),
}
# Later links that compute updates, and return the same numbers.
HARMLESS = {
    "zero_nans": optax.zero_nans,
    "keep_params_nonnegative": optax.keep_params_nonnegative,
    "apply_every": lambda: optax.apply_every(1),
    "scale": lambda: optax.scale(1.0),
}


def make_params():
    rng = np.random.default_rng(0)
    leaf = lambda *shape: on_device(rng.integers(1, 999, shape) / 1024)
    params = {"conv": leaf(3, 3, 4, 8), "fc": {"kernel": leaf(12, 16), "bias": leaf(16)}}
    return jax.tree.map(lambda x: jnp.where(x < 0.2, 0, x), params)  # for `keep_zeros`


def order_note(params, tx):
    notes = [note for note in jaxprune.plan(params, tx).notes if note.startswith("order: ")]
    assert len(notes) < 2
    return notes[0] if notes else ""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_note_names_the_leaves_whose_dropped_weights_are_moved(name):
    make, moved = OPTIMIZERS[name]
    tx, params = make(), make_params()
    note = order_note(params, tx)
    if "keep_zeros" not in name:  # needs values
        assert order_note(jax.eval_shape(lambda: params), tx) == note
    assert bool(note) == bool(moved)
    if moved:
        assert f"changes the updates of {', '.join(moved)}, so" in note
        assert "make jaxprune.prune the last link" in note


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "keep_zeros"])
def test_check_raises_for_the_leaves_that_the_note_names(name):
    make, moved = OPTIMIZERS[name]
    tx, params = optax.with_extra_args_support(make()), make_params()
    state = tx.init(params)
    for step in (1, 2):
        grads = jax.tree.map(lambda p, step=step: jnp.full_like(p, step), params)
        updates, state = tx.update(grads, state, params, value=jnp.ones(()))
        params = optax.apply_updates(params, updates)
    if not moved:
        return jaxprune.check(params, state)
    with pytest.raises(ValueError, match="dropped weights are not zero") as error:
        jaxprune.check(params, state)
    assert all(f"{path}: " in str(error.value) for path in moved)


@pytest.mark.parametrize("name", HARMLESS)
def test_the_note_on_a_later_link_that_moves_nothing_claims_nothing_else(name):
    note = order_note(make_params(), optax.chain(WRAPPED, HARMLESS[name]()))
    assert "so that dropped weights may not stay zero" in note


@pytest.mark.parametrize("is_right, name", placement.CASES)
def test_the_compositions_of_the_promise_are_told_apart(is_right, name):
    tx = (placement.RIGHT if is_right else placement.WRONG)[name]()
    assert bool(order_note(placement.make_params(), tx)) == (not is_right)


@pytest.mark.parametrize("regrow", ("hold", "train"))
def test_params_that_stay_dense_may_have_a_later_link(regrow):
    tx = optax.chain(jaxprune.prune(HALF, regrow=regrow), SGD)
    assert not order_note(make_params(), tx)


def test_an_update_that_can_not_be_traced_gives_no_note():
    def update(updates, state, params=None):
        raise RuntimeError("not today")

    stubborn = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    params = make_params()
    assert not order_note(params, optax.chain(PRUNE, stubborn))
    assert not order_note({**params, "name": None}, optax.chain(SGD, PRUNE))


def test_asking_changes_no_later_update_and_no_update_changes_the_answer():
    """`jit` keeps what was traced, of the link of a chain, too."""
    link = jaxprune.prune(HALF)
    link = optax.GradientTransformation(jax.jit(link.init), jax.jit(link.update))
    tx, params = optax.chain(link, SGD), make_params()
    grads = jax.tree.map(jnp.ones_like, params)
    expected = optax.chain(PRUNE, SGD).update(grads, tx.init(params), params)
    for _ in range(2):
        assert order_note(params, tx)
        updated = tx.update(grads, tx.init(params), params)
        assert all(map(np.array_equal, *map(jax.tree.leaves, (updated, expected))))


def test_a_train_state_that_only_prunes_is_told_that_it_adds_gradients():
    """The loss grows from the first step, and nothing said why."""
    params = {"fc": {"kernel": on_device(np.ones((4, 4))), "bias": on_device(np.ones(4))}}
    train_state = pytest.importorskip("flax.training.train_state").TrainState
    notes_of = lambda tx: (
        jaxprune.plan(params, train_state.create(apply_fn=None, params=params, tx=tx)).notes
    )
    [note] = notes_of(PRUNE)
    assert_says(
        note, "order:", "adds them to the params", "optax.chain(optimizer, prune(schedule))"
    )
    assert notes_of(WRAPPED) == notes_of(optax.chain(SGD, PRUNE)) == ()
    assert jaxprune.plan(params, PRUNE).notes == ()  # it may be put into a chain later
