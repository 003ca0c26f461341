"""Weights that return: RigL and SET, masks that regrow, AC/DC and straight-through training."""

import itertools
import math
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from combinations import SHAPES, make_params
from helpers import bits, grads_at, stepper
from jaxprune import Block, Unstructured
from jaxprune._recipe.distributions import round_half_up
from jaxprune._transform.recorded import settings_of

# Growing


def drop_fraction(t, end, alpha=0.3):
    return alpha / 2 * (1 + math.cos(math.pi * t / end))


@pytest.mark.parametrize("kind", ("rigl", "set", "rigl block"))
def test_every_swap_conserves_the_count_and_takes_the_best(kind):
    params = make_params()
    make = jaxprune.set_ if kind == "set" else jaxprune.rigl
    structure = Block((2, 2)) if kind == "rigl block" else Unstructured()
    tx = make(0.75, 12, inner=optax.sgd(0.5), every=3, include="(fc|conv)", structure=structure)
    state = tx.init({"fc": params["fc"], "conv": params["conv"], "bias": params["bias"]})
    params = {name: params[name] for name in ("fc", "conv", "bias")}
    params = jaxprune.apply_masks(params, state)
    n_kept = {name: int(jaxprune.get_masks(state)[name].sum()) for name in params}
    for t in range(15):
        grads = grads_at(params, t)
        before, old = params, jaxprune.get_masks(state)
        _, state, params = stepper(tx)(grads, state, params)
        masks = jaxprune.get_masks(state)
        for name in ("fc", "conv"):
            m0, m1 = np.asarray(old[name]), np.asarray(masks[name])
            p0, p1 = (np.asarray(x[name]) for x in (before, params))
            assert m1.sum() == n_kept[name]
            assert np.all(p1[~m1] == 0)
            grown = m1 & ~m0
            assert np.all(bits(p1)[grown] == 0)  # grown weights start at zero
            np.testing.assert_array_equal(
                p1[m1 & m0], (p0 - 0.5 * np.asarray(grads[name]))[m1 & m0]
            )
            if t not in (3, 6, 9):
                np.testing.assert_array_equal(m0, m1)
            elif kind != "rigl block":
                n_swap = round_half_up(Fraction(drop_fraction(t, 12)) * n_kept[name])
                size = np.where(m0, np.abs(p0), -1).ravel()
                stay = np.zeros(m0.size, bool)
                stay[np.argsort(-size, kind="stable")[: n_kept[name] - n_swap]] = True
                assert np.all(m1.ravel()[stay])
                if kind == "rigl":
                    g = np.where(stay, -1, np.abs(np.asarray(grads[name])).ravel())
                    stay[np.argsort(-g, kind="stable")[:n_swap]] = True
                    np.testing.assert_array_equal(m1.ravel(), stay)
    assert state.violations == 0
    jaxprune.check(params, state)


MOMENTS = {
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "lion": lambda: optax.lion(0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    "adafactor unfactored": lambda: optax.adafactor(0.1, factored=False, momentum=0.9),
    "muon": lambda: optax.contrib.muon(0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
}


VARIANTS = ("adamw", "momentum", "adafactor unfactored")  # of others that are compiled anyway


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in VARIANTS)) for n in MOMENTS]
)
def test_grown_weights_start_with_fresh_moments(name):
    params = {name: make_params()[name] for name in ("fc", "conv", "bias")}
    tx = jaxprune.rigl(0.5, 100, inner=MOMENTS[name](), every=2, drop_fraction=0.5)
    state = tx.init(params)
    params = jaxprune.apply_masks(params, state)
    for t in range(3):
        _, state, params = stepper(tx)(grads_at(params, t), state, params)
    seen = 0
    for leaf in jax.tree.leaves(state.inner_state):
        for path in ("fc", "conv"):
            if leaf.shape == params[path].shape:
                grown = np.asarray(state.masks[path]) == 2
                assert grown.any()
                assert np.all(np.abs(np.asarray(leaf)[grown]) < 1e-20)  # adafactor adds 1e-30
                assert np.any(np.asarray(leaf) != 0)
                seen += 1
    assert seen >= (0 if name == "adafactor" else 2)
    assert np.all(np.asarray(params["fc"])[np.asarray(state.masks["fc"]) == 2] == 0)
    _, state, params = stepper(tx)(grads_at(params, 3), state, params)
    moved = np.asarray(params["fc"])
    assert np.all(moved[np.asarray(state.masks["fc"]) == 2] != 0)  # and then they are trained


def test_static_sparse_never_moves_and_erk_is_exact():
    params = make_params()
    del params["table"]
    tx = jaxprune.static_sparse(0.8, inner=optax.adam(0.1), key=jax.random.key(7))
    first = state = tx.init(params)
    for t in range(4):
        _, state, params = stepper(tx)(grads_at(params, t), state, params)
    chex.assert_trees_all_equal(state.masks, first.masks)
    jaxprune.check(params, state)  # the dense params of the first step moved no dropped weight
    total = sum(math.prod(s) for s in SHAPES.values())
    n_zero = sum(int(np.sum(np.asarray(params[n]) == 0)) for n in SHAPES)
    assert n_zero == round_half_up(Fraction(8, 10) * total)
    other = jaxprune.static_sparse(0.8, inner=optax.adam(0.1)).init(params)
    assert np.any(np.asarray(other.masks["fc"]) != np.asarray(state.masks["fc"]))


def test_rigl_of_a_whole_run_needs_one_trace():
    params = {"w": make_params()["fc"], "bias": jnp.ones(3)}
    tx = jaxprune.rigl(0.5, 6, inner=optax.adam(0.1), every=2)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(1)(tx.update))
    state = tx.init(params)
    for t in range(8):
        updates, state = step(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)


# Regrowing


def test_held_weights_may_return_and_the_forward_pass_masks_them():
    params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]]), "bias": jnp.ones(1)}
    tx = jaxprune.prune(jaxprune.cubic_schedule(0.5, 0, 2, 1, initial_sparsity=0.5), regrow=True)
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(lambda p: -p / 2, params), state, params)
    assert updates["w"].tolist() == [[-2.0, -1.5, 0.0, 0.0]]  # dropped weights keep their values
    params = optax.apply_updates(params, updates)
    assert params["w"].tolist() == [[2.0, 1.5, 2.0, 1.0]]
    assert jaxprune.apply_masks(params, state)["w"].tolist() == [[2.0, 1.5, 0.0, 0.0]]
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert jaxprune.get_masks(state)["w"].tolist() == [
        [True, False, True, False]
    ]  # one weight returned
    assert state.violations == 0


def test_straight_through_training_goes_on_with_all_weights():
    params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]]), "bias": jnp.ones(1)}
    schedule = jaxprune.cubic_schedule(0.5, 0, 2, 1, initial_sparsity=0.5)
    tx = jaxprune.prune(schedule, inner=optax.sgd(1.0), regrow="train")
    state = tx.init(params)

    def loss(params, masks):
        w = jaxprune.straight_through(params, masks)["w"]
        return jnp.sum((w - jnp.array([[0.0, 0.0, 5.0, 5.0]])) ** 2) / 4

    for _ in range(3):
        grads = jax.grad(loss)(params, jaxprune.get_masks(state))
        _, state, params = stepper(tx)(grads, state, params)
    assert jaxprune.get_masks(state)["w"].tolist() == [[False, False, True, True]]
    assert np.all(np.asarray(params["w"]) != 0)


def test_straight_through_random_draws_anew_at_every_fire():
    params = {"w": make_params()["fc"], "bias": jnp.ones(3)}
    schedule = jaxprune.cubic_schedule(0.5, 0, 4, 2, initial_sparsity=0.5)
    tx = jaxprune.prune(schedule, inner=optax.sgd(0.5), regrow="train", score=jaxprune.random_score)
    state, seen = tx.init(params), []
    for t in range(5):
        grads = grads_at(params, t)
        updates, state = jax.jit(tx.update)(grads, state, params)
        np.testing.assert_array_equal(updates["w"], -0.5 * grads["w"])  # all weights are trained
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(jaxprune.get_masks(state)["w"]))
        assert np.sum(~seen[-1]) == 96
    same = [bool(np.all(a == b)) for a, b in itertools.pairwise(seen)]
    assert same == [True, False, True, False]


def test_acdc_phases_alternate_and_end_sparse():
    params = {"w": make_params()["fc"], "bias": jnp.ones(3)}
    schedule = jaxprune.acdc_schedule(0.75, 1, 9, every=2)
    with pytest.raises(ValueError, match='regrow="zero"'):
        jaxprune.prune(schedule)
    tx = jaxprune.prune(schedule, inner=optax.sgd(0.1), regrow="zero")
    state, sparsity = tx.init(params), []
    for t in range(11):
        _, state, params = stepper(tx)(grads_at(params, t), state, params)
        sparsity.append(float(np.mean(~np.asarray(jaxprune.get_masks(state)["w"]))))
        jaxprune.check(params, state)
    assert sparsity == [0.0, 0.75, 0.75, 0.0, 0.0, 0.75, 0.75, 0.0, 0.0, 0.75, 0.75]
    ends_in_a_dense_phase = jaxprune.acdc_schedule(0.75, 1, 7, every=2)
    assert list(map(float, ends_in_a_dense_phase.targets)) == [0.75, 0.0, 0.75, 0.75]


def test_bools_of_numpy_are_bools():
    def regrow(flag):
        return settings_of(jaxprune.prune(jaxprune.one_shot_schedule(0.5), regrow=flag)).regrow

    assert regrow(np.False_) == regrow(False) == "never"
    assert regrow(np.True_) == regrow(True) == "hold"


def test_rigl_from_masks_of_ones_own_keeps_the_count_of_every_leaf():
    """With the sparsities of these masks; without them each leaf goes to that of `erk`."""
    params = {name: jax.random.normal(jax.random.key(i), (16, 8)) for i, name in enumerate("ab")}
    params["b"] = params["b"] / 4
    params["bias"] = jnp.ones(8)
    start, masks = jaxprune.prune_params(params, 0.75, distribution=jaxprune.global_pool)
    n_zero = {leaf.path: leaf.n_zero for leaf in jaxprune.summarize(start).leaves}
    assert n_zero["a"] < n_zero["b"]
    own = {leaf.path: leaf.sparsity for leaf in jaxprune.summarize(start).leaves if leaf.n_zero}
    for rules, is_kept in (({"overrides": own}, True), ({}, False)):
        tx = jaxprune.rigl(0.75, 20, inner=optax.sgd(0.1), every=2, **rules)
        state, new = jaxprune.set_masks(tx.init(start), masks), start
        for t in range(30):
            grads = jax.tree.map(lambda x, t=t: jax.random.normal(jax.random.key(t), x.shape), new)
            updates, state = tx.update(grads, state, new)
            new = optax.apply_updates(new, updates)
            counts = {k: int(jnp.sum(~m)) for k, m in jaxprune.get_masks(state).items()}
            assert not is_kept or counts == n_zero
        assert is_kept == (counts == n_zero)
        jaxprune.check(new, state, done=True)
