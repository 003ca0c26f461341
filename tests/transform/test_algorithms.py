"""Laws of every combination of structure, distribution and score; what scores need; tuning."""

import itertools
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from combinations import DISTRIBUTIONS, GROUPED, SCORES, SHAPES, STRUCTURES, make_params, unit_flags
from helpers import bits, grads_at, says, stepper
from jaxprune import NM, Channel, Unstructured
from jaxprune._recipe.distributions import round_half_up


def structure_of(structure, name):
    if not isinstance(structure, dict):
        return structure
    return structure.get(name, Unstructured())


def sgd():
    """SGD that skips integer leaves."""
    return optax.masked(optax.sgd(0.25), lambda p: jax.tree.map(lambda x: x.dtype != jnp.int32, p))


def all_channels_go(tx):
    """Whether `init` raises, because a leaf with few channels would lose all of them."""
    try:
        tx.init({name: make_params()[name] for name in FEW})
    except ValueError as error:
        return "would lose all" in str(error)
    return False


def units_of(rule, mask, stacked):
    """The mask of units of a leaf; slice by slice, if each slice is a pool."""
    slices = mask if stacked else [mask]
    return np.concatenate([unit_flags(rule, m).ravel() for m in slices])


# The leaves of the combinations; few, since every leaf is compiled.
FEW = ("fc", "stack", "bias", "table")


def check_step(tx, structure, schedule, steps, form, per_slice):
    params = {name: make_params()[name] for name in FEW}
    state = tx.init(params)
    masks = jaxprune.get_masks(state)
    recipe_masks = []

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, grads=grads)
        params = optax.apply_updates(params, updates)
        return updates, state, params, jaxprune.get_masks(state)

    for t in range(steps):
        grads = grads_at(params, t)
        before, old = params, masks
        updates, state, params, masks = step(grads, state, params)
        for name in FEW[:2]:
            m, p, u = (np.asarray(x[name]) for x in (masks, params, updates))
            units_of(structure_of(structure, name), m, per_slice and name == "stack")
            assert np.all(bits(p)[~m] == 0)  # +0.0
            if form == "chain":
                np.testing.assert_array_equal(u[m], np.asarray(grads[name])[m])
            assert not np.any(m & ~np.asarray(old[name]))  # masks only shrink
            if not schedule.fires(t):
                np.testing.assert_array_equal(m, old[name])
        assert np.all(masks["bias"])
        assert np.all(masks["table"])
        np.testing.assert_array_equal(params["table"], before["table"])
        recipe_masks.append(masks)
    jaxprune.check(params, state)
    return params, recipe_masks


def pairs():
    """Every structure with every distribution, with scores in turn; then every score twice."""
    scores = itertools.cycle(SCORES)
    cases = [(*both, next(scores)) for both in itertools.product(STRUCTURES, DISTRIBUTIONS)]
    cases += [("unstructured", "uniform", score) for score in SCORES]
    cases += [("block", "global", score) for score in SCORES]
    for case in sorted(set(cases)):
        # Variants of distributions that run anyway.
        structure, distribution, _ = case
        slow = distribution in ("er", "normalized", "min density", "erk per slice")
        if structure in ("block max", "channel l1 in"):  # variants of structures
            slow |= distribution not in ("uniform", "global")
        if structure not in ("unstructured", *GROUPED):
            slow |= distribution == "global min density"
        slow |= case in [("block", "global", score) for score in ("gradient", "random", "user")]
        yield pytest.param(*case, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("structure", "distribution", "score"), list(pairs()))
def test_every_combination_obeys_the_laws_or_says_why_not(structure, distribution, score):
    index = sum(map(len, (structure, distribution, score)))
    form = ("chain", "inner")[index % 2]
    schedule = jaxprune.cubic_schedule(0.5, 0, 2, 1)
    options = {"structure": STRUCTURES[structure], "distribution": DISTRIBUTIONS[distribution]}
    options["score"] = SCORES[score]
    inner = {"inner": sgd()} if form == "inner" else {}
    if score == "movement" and structure in ("channel", "by rule"):
        with pytest.raises(ValueError, match=says("movement", "jaxprune.Channel(norm=1)")):
            jaxprune.prune(schedule, **options, **inner)
        return
    tx = jaxprune.prune(schedule, **options, **inner)
    if structure in GROUPED and distribution not in ("uniform", "per slice"):
        with pytest.raises(ValueError, match=r"(fc|stack): .*(NM, balanced).*uniform"):
            tx.init({name: make_params()[name] for name in FEW})
        return
    may_refuse = structure.startswith("channel") and "er" in repr(options["distribution"])
    if may_refuse and all_channels_go(tx):
        return
    per_slice = "per slice" in distribution
    _, masks = check_step(tx, options["structure"], schedule, 4, form, per_slice)
    total = [0, 0]
    for name in FEW[:2]:
        rule = structure_of(options["structure"], name)
        units = units_of(rule, masks[-1][name], per_slice and name == "stack")
        total = [total[0] + units.size, total[1] + np.sum(~units)]
        if distribution in ("uniform", "per slice") and not (
            name == "stack" and distribution == "per slice"
        ):
            n_groups = rule.n_groups(SHAPES[name])
            n = round_half_up(Fraction(1, 2) * (units.size // n_groups)) * n_groups
            assert np.sum(~units) == n
    if distribution in ("erk", "er", "global", "normalized"):
        assert total[1] == round_half_up(Fraction(1, 2) * total[0])


# Scores


@pytest.mark.parametrize("form", ("inner", "grads="))
@pytest.mark.parametrize("name", ("saliency", "gradient"))
def test_gradients_reach_the_score(form, name):
    params = make_params()
    grads = grads_at(params, 0)
    options = {"score": SCORES[name], "include": "fc"}
    schedule = jaxprune.one_shot_schedule(0.5)
    if form == "inner":
        tx = jaxprune.prune(schedule, inner=sgd(), **options)
        _, state = tx.update(grads, tx.init(params), params)
    else:
        tx = optax.chain(sgd(), jaxprune.prune(schedule, **options))
        _, state = tx.update(grads, tx.init(params), params, grads=grads)
    g, w = (np.asarray(t["fc"], np.float64) for t in (grads, params))
    scores = np.abs(g * w) if name == "saliency" else np.abs(g)
    dropped = np.flatnonzero(~np.asarray(jaxprune.get_masks(state)["fc"]))
    assert set(dropped) == set(np.argsort(scores.ravel())[:96])


def test_a_score_without_the_gradients_it_needs_says_how_to_pass_them():
    params = make_params()
    for score in (jaxprune.saliency, jaxprune.movement, jaxprune.gradient_magnitude):
        tx = optax.chain(sgd(), jaxprune.prune(jaxprune.one_shot_schedule(0.5), score=score))
        with pytest.raises(ValueError, match=r"inner=optimizer.*grads=grads"):
            tx.update(grads_at(params, 0), tx.init(params), params)
    with pytest.raises(ValueError, match=says("saliency", "gradients")):
        jaxprune.prune_params(params, 0.5, score=jaxprune.saliency)
    with pytest.raises(ValueError, match=says("movement", "training")):
        jaxprune.prune_params(params, 0.5, score=jaxprune.movement)


def own_magnitude(params, grads, key):
    return jnp.abs(params)


def over_the_largest(params, grads, key):
    return jnp.abs(params) / jnp.max(jnp.abs(params))


@pytest.mark.skip_in("disable_jit", reason="nothing is compiled")
def test_an_own_elementwise_score_is_not_stored():
    params = {"w": jax.random.normal(jax.random.key(3), (512, 256), jnp.float32)}
    n_bytes, masks = {}, {}
    for score in (jaxprune.magnitude, own_magnitude, over_the_largest):
        tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), score=score)
        update = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
        n_bytes[score] = update.memory_analysis().temp_size_in_bytes
        masks[score] = update(params, tx.init(params), params)[1].masks["w"]
        np.testing.assert_array_equal(masks[score], masks[jaxprune.magnitude])
    assert n_bytes[own_magnitude] < 2 * n_bytes[jaxprune.magnitude]
    assert n_bytes[own_magnitude] < n_bytes[over_the_largest] / 2  # which stores its scores


def test_the_movement_of_channels_is_the_sum_of_their_scores():
    """A norm would square them, and keep what moves towards zero."""
    params = {"w": jnp.ones((2, 4)), "bias": jnp.ones(4)}
    grads = {"w": jnp.array([[-1.0, -2.0, 10.0, 20.0]] * 2), "bias": jnp.ones(4)}
    options = {"inner": optax.sgd(0.1), "score": jaxprune.movement}
    tx = jaxprune.prune(
        jaxprune.one_shot_schedule(0.5), structure=jaxprune.Channel(norm=1), **options
    )
    _, state = tx.update(grads, tx.init(params), params)
    assert jaxprune.get_masks(state)["w"].tolist() == [[True, True, False, False]] * 2
    kernel, bias = jnp.ones((3, 4)), jnp.ones(4)
    groups = jaxprune.channel_groups(
        lambda p, x: jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"],
        {"a": kernel, "b": bias, "c": kernel.T},
        jnp.ones((2, 3)),
    )
    for structure in (jaxprune.Channel(), {"w": jaxprune.Channel(axis=0)}, groups):
        with pytest.raises(ValueError, match=says("movement", "jaxprune.Channel(norm=1)")):
            jaxprune.prune(jaxprune.one_shot_schedule(0.5), structure=structure, **options)


def test_movement_sums_minus_weight_times_gradient():
    params = {"w": make_params()["fc"], "bias": jnp.ones(2)}
    tx = jaxprune.prune(
        jaxprune.one_shot_schedule(0.5, step=3), inner=optax.sgd(0.1), score=jaxprune.movement
    )
    state, sums = tx.init(params), np.zeros((16, 12))
    for t in range(4):
        grads = grads_at(params, t)
        sums -= np.asarray(params["w"], np.float64) * np.asarray(grads["w"], np.float64)
        _, state, params = stepper(tx)(grads, state, params)
    np.testing.assert_allclose(state.score_state["w"], sums, rtol=1e-5, atol=1e-6)
    dropped = np.flatnonzero(~np.asarray(jaxprune.get_masks(state)["w"]))
    assert set(dropped) == set(np.argsort(sums.ravel())[:96])


def test_random_scores_differ_by_leaf_step_and_seed():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8)), "bias": jnp.ones(8)}
    seen = set()
    for seed, step in itertools.product((None, 1), (0, 1)):
        tx = jaxprune.prune(
            jaxprune.one_shot_schedule(0.5, step=step), score=jaxprune.random_score, seed=seed
        )
        state = tx.init(params)
        for _ in range(step + 1):
            _, state = tx.update(params, state, params)
        seen |= {np.asarray(state.masks[name]).tobytes() for name in "ab"}
    assert len(seen) == 8


# Recipes


def test_a_sparse_model_is_tuned_with_constant_masks():
    params, masks = jaxprune.prune_params(make_params(), 0.75, include="fc")
    del params["table"], masks["table"]
    for packed in (False, True):
        tx = jaxprune.prune(
            jaxprune.one_shot_schedule(0.0), inner=optax.adam(0.1), include="fc", packed=packed
        )
        state = jaxprune.set_masks(tx.init(params), masks)
        tuned = params
        for t in range(3):
            _, state, tuned = stepper(tx)(grads_at(tuned, t), state, tuned)
        np.testing.assert_array_equal(np.asarray(tuned["fc"]) != 0, masks["fc"])
        chex.assert_trees_all_equal(jaxprune.get_masks(state), masks)
    with pytest.raises(ValueError, match=r"fc: the mask has shape \(2,\)"):
        jaxprune.set_masks(state, masks | {"fc": jnp.ones(2)})
    with pytest.raises(ValueError, match=says("masks", "leaves of the params")):
        jaxprune.set_masks(state, {"fc": masks["fc"]})


def test_a_lottery_ticket_is_rewound():
    first = {"w": make_params()["fc"], "bias": jnp.ones(12)}
    trained = jax.tree.map(lambda p, g: p - 0.3 * g, first, grads_at(first, 0))
    _, masks = jaxprune.prune_params(trained, 0.8)
    ticket = jaxprune.apply_masks(first, masks)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.0), inner=optax.sgd(0.1))
    state = jaxprune.set_masks(tx.init(ticket), masks)
    _, state, after = stepper(tx)(grads_at(ticket, 1), state, ticket)
    np.testing.assert_array_equal(np.asarray(after["w"]) != 0, masks["w"])
    np.testing.assert_array_equal(ticket["w"], np.where(masks["w"], first["w"], 0))


def test_plan_shows_structures_pools_and_rules_that_have_no_effect():
    params = make_params()
    structure = {"fc": NM(2, 4), "fc|fc": Channel()}
    plan = jaxprune.plan(params, 0.5, structure=structure, exclude="odd")
    notes = {leaf.path: leaf.note for leaf in plan.leaves}
    assert notes["fc"] == "NM(n=2, m=4, axis=-2)"
    assert any("structure: 'fc|fc'" in note for note in plan.notes)
    plan = jaxprune.plan(params, 0.5, distribution=jaxprune.global_pool)
    assert plan.n_zero == sum(leaf.n_zero or 0 for leaf in plan.leaves) + plan.pools[0].n_zero
    assert "one pool" in {leaf.path: leaf.note for leaf in plan.leaves}["fc"]
