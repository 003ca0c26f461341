"""The laws of one update, over generated params, schedules and dtypes."""

import functools
import itertools
import re
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from jax.experimental import checkify

import jaxprune
from helpers import bits, random_params, says, stepper
from jaxprune._recipe.distributions import round_half_up

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
SHAPES = {"conv": (3, 3, 2, 4), "fc": (17, 5), "square": (8, 8)}


def make_params(key, dtype=jnp.float32, kind="normal"):
    """A tree of pruned leaves, unpruned ones (a bias, a scalar, integers) and an empty one."""
    values = {"normal": lambda normal: normal, "ties": np.round, "constant": np.ones_like}[kind]
    shapes = {name: {"kernel": shape, "bias": shape[-1:]} for name, shape in SHAPES.items()}
    shapes |= {"scale": (), "empty": (0, 4)}
    params = random_params(shapes, dtype, key, values=values)
    return params | {"table": jnp.arange(6).reshape(2, 3)}


def make_updates(params, key, scale=0.1):
    rng = np.random.default_rng(key)
    normal = lambda p: np.asarray(scale * rng.normal(size=p.shape)).astype(p.dtype)
    return jax.tree.map(normal, params)


def kernels(tree):
    return [tree[name]["kernel"] for name in SHAPES]


@functools.cache
def runner(begin, end, every, final, dtype):
    """One compiled update of a chain, applied."""
    tx = jaxprune.prune(jaxprune.cubic_schedule(final, begin, end, every))

    @jax.jit
    def step(params, state, updates):
        updates, state = tx.update(updates, state, params)
        return optax.apply_updates(params, updates), state, updates, jaxprune.get_masks(state)

    return tx, step


CASES = ((0, 6, 2, 0.9), (1, 6, 4, 0.5), (2, 2, 1, 0.75), (0, 3, 1, 0.0), (0, 2, 5, 0.3))


def cases():
    """Every schedule in float32, one in each of the other dtypes; the rest is slow."""
    for dtype, case in itertools.product(DTYPES, CASES):
        quick = {jnp.float32: CASES, jnp.bfloat16: CASES[:1], jnp.float16: CASES[-1:]}
        slow = case not in quick[dtype]
        marks = pytest.mark.slow if slow else ()
        yield pytest.param(dtype, case, id=f"{dtype.__name__}-{case}", marks=marks)


@pytest.mark.parametrize("dtype, case", list(cases()))
@given(key=st.integers(0, 999), kind=st.sampled_from(("normal", "ties", "constant")))
def test_every_step_obeys_the_laws(case, dtype, key, kind):
    begin, end, every, final = case
    tx, step = runner(*case, dtype)
    schedule = jaxprune.cubic_schedule(final, begin, end, every)
    params = make_params(key, dtype, kind)
    state = tx.init(params)
    masks = jaxprune.get_masks(state)
    for t in range(end + 2):
        incoming = make_updates(params, key + t)
        before, old_masks = params, masks
        params, state, emitted, masks = step(params, state, incoming)
        target = schedule.targets[schedule.index(t)] if t >= begin else Fraction(0)
        for p0, p1, u, e, m0, m1 in zip(
            *map(kernels, (before, params, incoming, emitted, old_masks, masks)), strict=True
        ):
            m0, m1, size = np.asarray(m0), np.asarray(m1), np.abs(np.asarray(p0).astype(np.float64))
            assert np.sum(~m1) == round_half_up(target * m1.size)  # count
            assert not np.any(m1 & ~m0)  # monotone
            assert np.all(bits(p1)[~m1] == 0)  # zero, and +0.0
            np.testing.assert_array_equal(bits(e)[m1], bits(u)[m1])  # kept updates pass unchanged
            if schedule.fires(t) and not m1.all() and m1.any():
                assert size[m1].min() >= size[m0 & ~m1].max(initial=0)  # order
            if not schedule.fires(t):
                np.testing.assert_array_equal(m0, m1)  # quiet
        chex.assert_trees_all_equal(*(_unpruned(tree) for tree in (emitted, incoming)))
        assert all(np.all(m) for m in jax.tree.leaves(_unpruned(masks)))
    assert state.prune_step == end + 2
    assert state.violations == 0
    jaxprune.check(params, state)


def _unpruned(tree):
    return [tree[name]["bias"] for name in SHAPES] + [tree["scale"], tree["empty"], tree["table"]]


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
def test_the_whole_run_needs_one_trace():
    tx = jaxprune.prune(jaxprune.cubic_schedule(0.9, 1, 5, 2), inner=optax.rmsprop(1e-2))

    @jax.jit
    @chex.assert_max_traces(1)
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = make_params(0)
    del params["table"]  # adam accepts no integers
    state = tx.init(params)
    for t in range(8):
        params, state = step(params, state, make_updates(params, t))


@pytest.mark.parametrize("form", ("chain", "inner"))
def test_jit_equals_eager(form):
    schedule = jaxprune.cubic_schedule(0.8, 0, 4, 2)
    sgd = optax.sgd(0.5)  # a power of two: exact, fused or not
    tx = (
        optax.chain(sgd, jaxprune.prune(schedule))
        if form == "chain"
        else jaxprune.prune(schedule, inner=sgd)
    )
    params = make_params(3)
    del params["table"]
    eager, jitted = (params, tx.init(params)), (params, tx.init(params))
    compiled = jax.jit(tx.update)
    for t in range(6):
        grads = make_updates(params, t)
        out = []
        for update, (p, s) in ((tx.update, eager), (compiled, jitted)):
            updates, s = update(grads, s, p)
            out.append((optax.apply_updates(p, updates), s))
        eager, jitted = out
        chex.assert_trees_all_equal(jaxprune.get_masks(eager[1]), jaxprune.get_masks(jitted[1]))
        chex.assert_trees_all_equal(eager[0], jitted[0])


def test_all_ones_masks_are_the_identity():
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5, step=1000))
    params = make_params(0)
    updates, _ = tx.update(grads := make_updates(params, 1), tx.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), updates, grads)


@settings(max_examples=10)  # each example is compiled
@given(begin=st.integers(0, 3), span=st.integers(0, 4), every=st.integers(1, 6))
def test_target_is_reached_for_any_grid(begin, span, every):
    final, end = 0.75, begin + span
    tx = jaxprune.prune(jaxprune.cubic_schedule(final, begin, end, every))
    params = {"kernel": make_params(0)["fc"]["kernel"], "bias": jnp.ones(3)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for t in range(end + 1):
        updates, state = update(make_updates(params, t), state, params)
        params = optax.apply_updates(params, updates)
    n = params["kernel"].size
    assert np.sum(np.asarray(params["kernel"]) == 0) == round_half_up(Fraction(3, 4) * n)


def test_inner_sees_no_gradient_of_dropped_weights():
    seen = []

    def record(updates, state, params=None):
        seen.append(updates)
        return updates, state

    spy = optax.GradientTransformation(lambda params: optax.EmptyState(), record)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=spy)
    params = make_params(0)
    state = tx.init(params)
    for t in range(3):
        updates, state = tx.update(grads := make_updates(params, t), state, params)
        masks = jaxprune.get_masks(state)
        params = optax.apply_updates(params, updates)
        for m, g, s in zip(*map(kernels, (masks, grads, seen[-1])), strict=True):
            np.testing.assert_array_equal(bits(s), np.where(m, bits(g), 0))
        chex.assert_trees_all_equal(_unpruned(seen[-1]), _unpruned(grads))


def test_a_clipped_inner_takes_the_norm_of_the_sparse_network():
    params = {"kernel": jnp.array([[4.0, 3.0, 2.0, 1.0]]), "bias": jnp.zeros(1)}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.clip_by_global_norm(1.0))
    grads = {"kernel": jnp.array([[3.0, 4.0, 12.0, 84.0]]), "bias": jnp.zeros(1)}
    updates, state = tx.update(grads, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    updates, state = tx.update(grads, state, params)
    np.testing.assert_allclose(updates["kernel"], [[0.6, 0.8, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("param", "update", "emitted"),
    (
        (jnp.float32, jnp.bfloat16, jnp.float32),
        (jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.float16, jnp.bfloat16, jnp.float32),
        (jnp.float16, jnp.float16, jnp.float16),
    ),
    ids=str,
)
def test_dropped_weights_land_on_zero_in_mixed_dtypes(param, update, emitted):
    params = make_params(5, param)
    del params["table"]  # integer params have integer updates
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.75))
    updates = jax.tree.map(lambda u: u.astype(update), make_updates(params, 1))
    out, state = jax.jit(tx.update)(updates, tx.init(params), params)
    new = optax.apply_updates(params, out)
    for u, e, p, m in zip(
        *map(kernels, (updates, out, new, jaxprune.get_masks(state))), strict=True
    ):
        m = np.asarray(m)
        assert e.dtype == emitted
        assert p.dtype == param
        assert np.all(bits(p)[~m] == 0)
        np.testing.assert_array_equal(np.asarray(e, np.float32)[m], np.asarray(u, np.float32)[m])


def test_float64_params_land_on_zero(x64):
    params = {
        "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(9, 7))),
        "bias": jnp.ones(3),
    }
    tx = jaxprune.prune(jaxprune.cubic_schedule(0.9, 0, 2, 1), inner=optax.rmsprop(0.1))
    state = tx.init(params)
    for t in range(4):
        _, state, params = stepper(tx)(make_updates(params, t), state, params)
    assert params["kernel"].dtype == jnp.float64
    assert np.sum(bits(params["kernel"]) == 0) == round_half_up(Fraction(9, 10) * 63)


def test_complex_weights_are_ranked_by_modulus():
    params = {"kernel": jnp.array([[3 + 4j, 1j, -2, 0.5 + 0.5j]]), "bias": jnp.ones(1)}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(zeros, tx.init(params), params)
    assert optax.apply_updates(params, updates)["kernel"].tolist() == [[3 + 4j, 0, -2, 0]]
    jaxprune.check(optax.apply_updates(params, updates), state)


@pytest.mark.skip_in("disable_jit", reason="checkify of every operation")
@pytest.mark.parametrize("form", ("plain", "pool", "packed"))
def test_an_update_passes_the_checks_of_checkify(form):
    options = {"pool": {"distribution": jaxprune.global_pool}, "packed": {"packed": True}}
    schedule = jaxprune.cubic_schedule(0.5, 0, 3, 1)
    tx = jaxprune.prune(schedule, inner=optax.sgd(0.1), **options.get(form, {}))
    params = {"a": jnp.arange(1.0, 17.0).reshape(4, 4), "bias": jnp.ones(4)}
    checked = checkify.checkify(tx.update, errors=checkify.all_checks)
    error, found = jax.jit(checked)(params, tx.init(params), params)
    error.throw()
    chex.assert_trees_all_equal(found, jax.jit(tx.update)(params, tx.init(params), params))


@pytest.mark.skip_in("debug_nans", reason="the updates are NaN")
@pytest.mark.parametrize("dtype", (jnp.float16, jnp.bfloat16), ids=lambda d: d.__name__)
def test_every_finite_value_lands_on_plus_zero(dtype):
    values = np.arange(2**16).astype(np.uint16).view(dtype)
    values = values[np.isfinite(values.astype(np.float32))]
    from jaxprune._state.masks import land

    update = land(
        jnp.asarray(values), jnp.full(values.shape, jnp.nan, dtype), jnp.zeros(values.shape)
    )
    assert np.all(bits(optax.apply_updates(jnp.asarray(values), update)) == 0)


@pytest.mark.skip_in("debug_nans", reason="NaN is what it is about")
def test_a_nan_update_stops_at_a_dropped_weight():
    params = make_params(0)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
    del params["table"]
    nans = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    _, state, new = stepper(tx)(nans, tx.init(params), params)
    for p, m in zip(kernels(new), kernels(jaxprune.get_masks(state)), strict=True):
        np.testing.assert_array_equal(np.asarray(p) == 0, ~np.asarray(m))


@pytest.mark.skip_in("debug_nans", reason="NaN is what it is about")
def test_nan_weights_rank_highest_and_apply_masks_repairs_dropped_ones():
    params = {"kernel": jnp.array([[jnp.nan, 5.0, 1.0, jnp.inf]]), "bias": jnp.ones(1)}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5))
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert jaxprune.get_masks(state)["kernel"].tolist() == [[True, False, False, True]]
    torn = {"kernel": jnp.full((1, 4), jnp.nan), "bias": jnp.ones(1)}
    with pytest.raises(ValueError, match=says("2 of 2", "finite")):
        jaxprune.check(torn, state)
    assert bits(jaxprune.apply_masks(torn, state)["kernel"])[0, 1:3].tolist() == [0, 0]


def test_dense_params_restored_with_sparse_masks_are_zeroed_in_one_step():
    tx, step = runner(0, 6, 2, 0.9, jnp.float32)
    params = make_params(1)
    state = tx.init(params)
    for t in range(8):
        params, state, *_ = step(params, state, make_updates(params, t))
    dense = make_params(1)
    healed, state, *_ = step(dense, state, make_updates(params, 9))
    jaxprune.check(healed, state)


def test_violations_detect_a_chain_in_the_wrong_order():
    schedule = jaxprune.cubic_schedule(0.5, 0, 4, 1)
    wrong = optax.chain(jaxprune.prune(schedule), optax.scale(-0.1))
    params = make_params(2)
    del params["table"]
    state = wrong.init(params)
    for t in range(3):
        updates, state = wrong.update(make_updates(params, t), state, params)
        params = optax.apply_updates(params, updates)
    assert jaxprune.get_state(state).violations > 0


def test_violations_stay_after_the_damage_is_repaired():
    tx, step = runner(0, 6, 2, 0.9, jnp.float32)
    params = make_params(1)
    state = tx.init(params)
    for t in range(8):
        if t == 4:  # a fire step: only these count violations, and every step repairs them
            params = jax.tree.map(lambda p: p + 1, params)
        params, state, *_ = step(params, state, make_updates(params, t))
    with pytest.raises(ValueError, match=says("zero now", "inner=optimizer")):
        jaxprune.check(params, state)


def test_sparser_masks_than_the_schedule_asks_for_are_kept():
    params = make_params(4)
    pruned, masks = jaxprune.prune_params(params, 0.9)
    tx = jaxprune.prune(jaxprune.cubic_schedule(0.5, 0, 4, 1))
    from_zeros = jaxprune.masks_from_params(pruned)
    chex.assert_trees_all_equal(kernels(from_zeros), kernels(masks))
    state = optax.tree.set(tx.init(pruned), masks=from_zeros)
    for t in range(6):
        _, state, pruned = stepper(tx)(make_updates(params, t), state, pruned)
        chex.assert_trees_all_equal(kernels(jaxprune.get_masks(state)), kernels(masks))
    jaxprune.check(pruned, state)


def test_dropped_zeros_rank_below_kept_zeros():
    params = {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(2)}
    tx = jaxprune.prune(jaxprune.linear_schedule(0.75, 0, 3, 1))
    state = tx.init(params)
    kept = []
    for _ in range(4):
        _, state, params = stepper(tx)(jax.tree.map(jnp.zeros_like, params), state, params)
        kept.append(np.asarray(jaxprune.get_masks(state)["kernel"]).reshape(-1).tolist())
    assert [sum(k) for k in kept] == [8, 6, 4, 2]
    assert kept[-1] == [True, True] + [False] * 6  # of equal weights the lower index is kept


def test_prune_params_equals_one_fire_of_the_transform():
    params = make_params(7)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.6))
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    pruned, masks = jax.jit(lambda p: jaxprune.prune_params(p, 0.6))(params)
    chex.assert_trees_all_equal(masks, jaxprune.get_masks(state))
    chex.assert_trees_all_equal(kernels(pruned), kernels(optax.apply_updates(params, updates)))


def test_straight_through_leaves_what_has_no_mask():
    """`get_masks` of a `prune` behind `optax.partition` has no masks of the other leaves."""
    params = {"sparse": jnp.arange(1.0, 5.0).reshape(2, 2), "dense": jnp.ones((2, 2))}
    labels = {"sparse": "sparse", "dense": "dense"}
    pruning = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.sgd(0.1), regrow="train")
    tx = optax.partition({"sparse": pruning, "dense": optax.sgd(0.1)}, labels)
    _, state = tx.update(params, tx.init(params), params)
    masked = jaxprune.straight_through(params, jaxprune.get_masks(state))
    chex.assert_trees_all_equal(masked, jaxprune.apply_masks(params, state))
    assert int((masked["sparse"] == 0).sum()) == 2
    for wrong in ({}, {"other": jnp.ones((2, 2), bool)}):
        with pytest.raises(ValueError, match=r"get_masks\(opt_state, params\)"):
            jaxprune.straight_through(params, wrong)


def test_straight_through_masks_values_and_passes_gradients():
    params = make_params(8)
    del params["table"]
    _, masks = jaxprune.prune_params(params, 0.6)
    seen = jaxprune.straight_through(params, masks)
    chex.assert_trees_all_equal(seen, jaxprune.apply_masks(params, masks))
    tangents = make_updates(params, 1)
    _, out = jax.jvp(lambda p: jaxprune.straight_through(p, masks), (params,), (tangents,))
    chex.assert_trees_all_equal(out, tangents)


@pytest.mark.skip_in("disable_jit", reason="nothing is compiled")
@pytest.mark.skip_in("debug_nans", reason="nothing is donated")
@pytest.mark.parametrize("form", ("chain", "inner"))
def test_a_step_copies_no_params_and_no_masks(form):
    schedule = jaxprune.cubic_schedule(0.9, 0, 4, 2)
    adam = optax.adamw(0.1)
    tx = optax.chain(adam, jaxprune.prune(schedule)) if form == "chain" else None
    tx = tx or jaxprune.prune(schedule, inner=adam)
    params = {"a": jnp.ones((640, 320)), "b": jnp.ones((320, 64)), "bias": jnp.ones(64)}

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile()
    entry = compiled.as_text().split("\nENTRY ")[1]
    copies = [
        line for line in entry.splitlines() if re.search(r"\[(640,320|320,64)\].* copy\(", line)
    ]
    assert not copies


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
def test_quiet_steps_run_no_selection_under_vmap():
    tx = jaxprune.prune(jaxprune.cubic_schedule(0.9, 0, 4, 2))
    stacked = jax.tree.map(lambda *p: jnp.stack(p), *(make_params(k) for k in range(3)))
    states = jax.vmap(tx.init)(stacked)
    text = jax.jit(jax.vmap(tx.update)).lower(stacked, states, stacked).as_text()
    # The trip, in it that of the masks, and in that the two loops of the search.
    assert text.count("stablehlo.while") == 4
    assert "stablehlo.case" not in text


def test_state_is_stable_in_shape_dtype_and_structure():
    tx = jaxprune.prune(
        jaxprune.cubic_schedule(0.9, 0, 4, 2), inner=optax.rmsprop(0.1, momentum=0.5)
    )
    params = make_params(0)
    del params["table"]
    state = tx.init(params)
    _, after = jax.jit(tx.update)(make_updates(params, 0), state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, params), state)
    assert {m.dtype for m in jax.tree.leaves(state.masks)} == {jnp.dtype("uint8")}
