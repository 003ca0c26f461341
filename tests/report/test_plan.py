"""`plan` of a transformation, and of every argument of `prune`, foretells what it does."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import by_path, on_device
from jaxprune import NM, Block, Channel

SGD = optax.sgd(0.125)
STEPS = dict(begin_step=1, end_step=4, every=3)
SCHEDULE = jaxprune.cubic_schedule(0.75, **STEPS, initial_sparsity=0.25)  # fires at 1 and 4
FALLING = jaxprune.acdc_schedule(0.5, 0, 4, every=2)
HALF = jaxprune.one_shot_schedule(0.5, 1)


def make_params():
    rng = np.random.default_rng(0)
    leaf = lambda *shape: on_device(rng.integers(1, 999, shape) / 1024)
    return {"conv": leaf(3, 3, 4, 8), "fc": {"kernel": leaf(12, 16), "bias": leaf(16)}}


def train(tx, params, n_steps):
    """The params and the state after some updates, from masked params."""
    state = tx.init(params)
    params = jaxprune.apply_masks(params, state)

    @jax.jit
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(3 * p + t) + 0.01, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for t in range(n_steps):
        params, state = step(params, state, jnp.float32(t))
    return params, state


TRANSFORMATIONS = {
    "prune": lambda: jaxprune.prune(SCHEDULE, inner=SGD),
    "prune erk": lambda: jaxprune.prune(SCHEDULE, inner=SGD, distribution=jaxprune.erk),
    "prune global": lambda: jaxprune.prune(HALF, inner=SGD, overrides={"fc/.*": 0.25}),
    "prune NM packed": lambda: jaxprune.prune(
        HALF, inner=SGD, structure=NM(2, 4, axis=-2), packed=True
    ),
    "prune movement": lambda: jaxprune.prune(SCHEDULE, inner=SGD, score=jaxprune.movement),
    "prune falling": lambda: jaxprune.prune(FALLING, inner=SGD, regrow="zero", ties="hashed"),
    "rigl": lambda: jaxprune.rigl(0.75, 5, inner=SGD, every=2),
    "rigl blocks": lambda: jaxprune.rigl(0.5, 5, inner=SGD, every=2, structure=Block((2, 2))),
    "rigl rules": lambda: jaxprune.rigl(
        0.75, 5, inner=SGD, exclude="conv", overrides={"fc/kernel": 0.5}
    ),
    "set_": lambda: jaxprune.set_(0.8, 5, inner=SGD, every=1, distribution=jaxprune.uniform),
    "static_sparse": lambda: jaxprune.static_sparse(0.5, inner=SGD, structure=Channel(axis=-1)),
}


VARIANTS = ("prune erk", "rigl rules", "set_")  # of others that are compiled anyway


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in VARIANTS)) for n in TRANSFORMATIONS]
)
def test_the_plan_of_a_transformation_counts_the_zeros_that_it_makes(name):
    tx, params = TRANSFORMATIONS[name](), make_params()
    planned = {leaf.path: leaf.n_zero for leaf in jaxprune.plan(params, tx).leaves}
    trained, state = train(tx, params, 6)
    masks = by_path(jaxprune.get_masks(state, params))
    assert planned == {path: int(np.sum(~mask)) for path, mask in masks.items()}
    assert planned == {path: int(np.sum(leaf == 0)) for path, leaf in by_path(trained).items()}
    assert sum(planned.values()) > 0


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_plan_of_a_transformation_needs_no_arrays(name):
    tx, params = TRANSFORMATIONS[name](), make_params()
    shapes = jax.eval_shape(lambda: params)
    assert jaxprune.plan(shapes, tx) == jaxprune.plan(params, tx)


# Any value of each argument of `prune`, and of the argument that it needs beside it.
ARGUMENTS = {
    "inner": dict(inner=SGD),
    "include": dict(include="fc/.*"),
    "exclude": dict(exclude="conv"),
    "overrides": dict(overrides={"conv": 0.5}),
    "distribution": dict(distribution=jaxprune.global_pool),
    "structure": dict(structure=Block((2, 4))),
    "roles": dict(roles={"fc/kernel": ("in", "out")}, distribution=jaxprune.erk),
    "structural": dict(structural={"fc/kernel": np.tri(12, 16, dtype=bool)}),
    "score": dict(score=jaxprune.random_score),
    "packed": dict(packed=True),
    "regrow": dict(regrow="hold"),
    "ties": dict(ties="hashed"),
    "seed": dict(seed=3),
    "axis_name": dict(axis_name="data"),
}


@pytest.mark.parametrize("argument", [p for p in inspect.signature(jaxprune.prune).parameters][1:])
def test_the_plan_of_arguments_is_that_of_what_prune_makes_of_them(argument):
    given, params = ARGUMENTS[argument], make_params()
    planned = jaxprune.plan(params, SCHEDULE, **given)
    assert planned == jaxprune.plan(params, jaxprune.prune(SCHEDULE, **given))


INVALID = {
    "inner": (SCHEDULE, dict(inner=0.1)),
    "include": (SCHEDULE, dict(include="nope")),
    "exclude": (SCHEDULE, dict(exclude="*")),
    "overrides": (SCHEDULE, dict(overrides={"conv": 1.0})),
    "distribution": (SCHEDULE, dict(distribution="erk")),
    "structure": (SCHEDULE, dict(structure=NM(2, 4))),  # ends at 0.75, not at 0.5
    "shape": (HALF, dict(structure=NM(2, 5))),
    "roles": (SCHEDULE, dict(roles={"fc/kernel": ("in", "outs")})),
    "structural": (SCHEDULE, dict(structural={"fc/kernel": np.tri(16, 12, dtype=bool)})),
    "roles of no leaf": (SCHEDULE, dict(roles=jaxprune.torch_roles)),
    "score": (SCHEDULE, dict(score=lambda params: params)),
    "packed": (SCHEDULE, dict(packed=1)),
    "regrow": (SCHEDULE, dict(regrow="maybe")),
    "falling schedule": (FALLING, {}),
    "ties": (SCHEDULE, dict(ties="random")),
    "seed": (SCHEDULE, dict(seed=0.5)),
    "axis_name": (SCHEDULE, dict(axis_name="data", distribution=jaxprune.erk)),
    "axis_name and roles": (SCHEDULE, dict(axis_name="data", roles={".*": ("stack", "in", "out")})),
    "axis_name and structure": (SCHEDULE, dict(axis_name="data", structure=Channel())),
}


@pytest.mark.parametrize(("schedule", "given"), INVALID.values(), ids=INVALID)
def test_plan_rejects_what_prune_rejects(schedule, given):
    params = make_params()
    with pytest.raises((TypeError, ValueError)) as by_prune:
        jaxprune.prune(schedule, **given).init(params)
    with pytest.raises(type(by_prune.value)) as by_plan:
        jaxprune.plan(params, schedule, **given)
    assert str(by_plan.value) == str(by_prune.value)


def test_plan_rejects_hashed_ties_in_too_large_a_pool():
    shapes = {"w": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}
    with pytest.raises(ValueError, match=r'w: .* Use ties="index"'):
        jaxprune.plan(shapes, SCHEDULE, ties="hashed")
    with pytest.raises(ValueError, match=r'w: .* Use ties="index"'):
        jaxprune.plan(shapes, jaxprune.prune(SCHEDULE, ties="hashed"))


@pytest.mark.parametrize("include", ("nope", lambda path, leaf: False), ids=("regex", "function"))
def test_plan_rejects_the_params_that_rigl_would_reject(include):
    tx, params = jaxprune.rigl(0.75, 5, inner=SGD, include=include), make_params()
    with pytest.raises(ValueError, match=r"matches no leaf|nothing to prune") as by_init:
        tx.init(params)
    with pytest.raises(ValueError, match=r"matches no leaf|nothing to prune") as by_plan:
        jaxprune.plan(params, tx)
    assert str(by_plan.value) == str(by_init.value)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_arguments_beside_a_transformation_are_an_error(argument):
    tx = jaxprune.rigl(0.75, 5, inner=SGD)
    with pytest.raises(TypeError, match=rf"{argument}\b.* plan\(params, tx\)"):
        jaxprune.plan(make_params(), tx, **ARGUMENTS[argument])


def test_an_optimizer_that_does_not_prune_is_an_error_that_says_what_to_pass():
    for tx in (SGD, optax.chain(SGD, optax.clip(1.0))):
        with pytest.raises(TypeError, match=r"no transformation of jaxprune.* optax\.chain\("):
            jaxprune.plan(make_params(), tx)


def test_a_note_shows_the_structure_beside_an_override_and_a_pool():
    rules = dict(structure={"conv": Channel(axis=-1)}, overrides={"conv": 0.25})
    assert jaxprune.plan(make_params(), 0.5, **rules).leaves[0].note == (
        "override 'conv'; Channel(axis=-1, norm=2)"
    )


TITLES = {
    "prune": (jaxprune.prune(SCHEDULE), "0.75 at steps 1 to 4, 2 fires"),
    "rigl": (jaxprune.rigl(0.5, 1_000, inner=SGD), "0.5 from the start, swaps at steps 100 to 900"),
    "off the grid": (
        jaxprune.set_(0.5, 25, inner=SGD, every=10, drop_fraction=1.0),
        "0.5 from the start, swaps at steps 10 to 20",
    ),
    "one swap": (
        jaxprune.rigl(0.5, 20, inner=SGD, every=10),
        "0.5 from the start, swap at step 10",
    ),
    "too few to swap at 20": (
        jaxprune.rigl(0.96875, 24, inner=SGD, every=10, include="conv"),
        "0.9688 from the start, swap at step 10",
    ),
    "no swap": (
        jaxprune.rigl(0.5, 20, inner=SGD, every=10, drop_fraction=0.0),
        "0.5 from the start, the masks never change",
    ),
    "static_sparse": (
        jaxprune.static_sparse(0.5, inner=SGD),
        "0.5 from the start, the masks never change",
    ),
}


@pytest.mark.parametrize("name", TITLES)
def test_the_title_says_when_masks_change(name):
    tx, title = TITLES[name]
    assert jaxprune.plan(make_params(), tx).title == f"plan: {title}"


def test_masks_change_only_at_the_steps_in_the_title():
    tx, params = TITLES["off the grid"][0], make_params()
    state = tx.init(params)
    params, changed = jaxprune.apply_masks(params, state), []
    update = jax.jit(tx.update)
    for t in range(28):
        before = by_path(jaxprune.get_masks(state))
        grads = jax.tree.map(lambda p, t=t: jnp.cos(5 * p + t), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        masks = by_path(jaxprune.get_masks(state))
        if any(np.any(before[path] != masks[path]) for path in masks):
            changed.append(t)
    assert changed == [10, 20]
