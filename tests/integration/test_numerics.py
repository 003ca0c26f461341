"""Unusual numbers and mixed types: NaN, infinity, steps that loss scaling skips, narrow floats.

docs/concepts/numerics.md says what happens; here each row of a table is one such case. Programs are
shared: a tree holds a leaf for each pair of dtypes, and a value is put into one place of it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import assert_same, bits, half_up, on_device, stepper

SCHEDULE = jaxprune.linear_schedule(0.5, 0, 4, every=1)
SHAPE = (6, 8)
N_STEPS = 6
FORMS = ("chain", "inner")


def make(form, optimizer, schedule=SCHEDULE, **options):
    """The optimizer with pruning after it or around it."""
    if form == "inner":
        return jaxprune.prune(schedule, inner=optimizer, **options)
    return optax.chain(optimizer, jaxprune.prune(schedule, **options))


def n_dropped_after(step):
    """How many weights of a leaf are dropped after the update of a step."""
    return half_up(np.prod(SHAPE) * min(step, 4) / 8)


def best(scores, kept_before, n_keep):
    """The mask that a fire must make: scores that are NaN rank highest, of equal ones the first."""
    rank = np.where(np.isnan(scores), np.inf, scores.astype(np.float64)).ravel()
    order = sorted(range(rank.size), key=lambda i: (not kept_before.flat[i], -rank[i], i))
    kept = np.zeros(rank.size, bool)
    kept[order[:n_keep]] = True
    return kept.reshape(scores.shape)


# --- mixed dtypes

NARROW = [
    "float4_e2m1fn",
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz"),
]
NARROW = [name for name in NARROW if hasattr(jnp, name)]
# Dtype of the params, dtype of the gradients, dtype of the update.
FEW = [
    ("float4_e2m1fn", "float32", "float32"),
    ("float8_e4m3fn", "float32", "float32"),
    ("float32", "float8_e5m2", "float32"),
    ("float8_e4m3fn", "float8_e5m2", "float32"),
    ("float8_e5m2", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float32"),
]
MORE = [
    *((name, "float32", "float32") for name in NARROW),
    *(("float32", name, "float32") for name in NARROW),
    *((name, name, name) for name in NARROW),
    ("float16", "float8_e5m2", "float16"),
    ("float32", "bfloat16", "float32"),
    ("float16", "float32", "float32"),
    ("float32", "float16", "float32"),
    ("float16", "bfloat16", "float32"),
    ("bfloat16", "float16", "float32"),
    ("complex64", "float32", "complex64"),
]
SLOW = pytest.mark.slow
PAIRS = {"few": FEW, "more": MORE}
RUNS = [
    pytest.param(
        pair,
        table,
        form,
        id="-".join([*pair[:2], table, form]),
        marks=() if (table, form) == ("few", "chain") else SLOW,
    )
    for table, pairs in PAIRS.items()
    for form in FORMS
    for pair in pairs
]


def eighths(rng, dtype):
    """Multiples of 1/8 from -1.5 to 1.5: most are exact in every dtype, and many are equal."""
    return on_device(rng.integers(-12, 13, SHAPE) / 8, jnp.dtype(dtype))


@functools.cache
def run_of_pairs(table, form):
    """What each update of one tree, with a leaf for each pair of a table, got and returned."""
    tx = make(form, optax.sgd(1.0), exclude="bias")
    rng = np.random.default_rng(0)
    bias = {"bias": on_device(np.ones(3))}
    params = {pair: eighths(rng, pair[0]) for pair in PAIRS[table]}
    params = {"-".join(pair): leaf for pair, leaf in params.items()} | bias

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        # optax.apply_updates, for dtypes that JAX does not promote
        applied = jax.tree.map(
            lambda p, u: (p.astype(u.dtype) + u).astype(p.dtype), params, updates
        )
        return updates, state, applied

    state, history = tx.init(params), []
    for _ in range(N_STEPS):
        grads = {"-".join(pair): eighths(rng, pair[1]) for pair in PAIRS[table]} | bias
        updates, state, after = step(grads, state, params)
        history.append((params, grads, updates, jaxprune.get_masks(state), after))
        params = after
    jaxprune.check(params, state)
    return jax.tree.map(np.asarray, history)


@pytest.mark.parametrize("pair, table, form", RUNS)
def test_masks_and_updates_are_exact_in_mixed_dtypes(pair, table, form):
    of_params, _, emitted = pair
    before = np.ones(SHAPE, bool)
    for t, record in enumerate(run_of_pairs(table, form)):
        param, grad, update, mask, after = (tree["-".join(pair)] for tree in record)
        assert np.sum(~mask) == n_dropped_after(t)
        scores = np.abs(param.astype(np.complex128 if of_params == "complex64" else np.float64))
        np.testing.assert_array_equal(mask, best(scores, before, mask.sum()))
        assert update.dtype == jnp.dtype(emitted)
        assert after.dtype == param.dtype == jnp.dtype(of_params)
        np.testing.assert_array_equal(update[mask], -grad[mask].astype(emitted))
        assert not after[~mask].tobytes().strip(b"\0")
        before = mask


# --- NaN and infinity

VALUES = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
PLACES = ("gradient of a dropped weight", "gradient of a kept weight", "kept weight")
BIAS = ("gradient of the bias", "bias")


@functools.cache
def trained(form):
    """A transformation, and its params and state after three updates."""
    tx = make(form, optax.sgd(0.125), include="w")
    rng = np.random.default_rng(1)
    params = {"w": eighths(rng, "float32"), "bias": on_device(np.ones(8))}
    state = tx.init(params)
    for _ in range(3):
        _, state, params = stepper(tx)(params, state, params)
    return tx, params, state


@pytest.mark.skip_in("debug_nans", reason="NaN is what it is about")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", (*PLACES, *BIAS))
def test_numbers_that_are_not_finite_stay_where_they_are(place, value, form):
    tx, params, state = trained(form)
    grads = jax.tree.map(lambda p: p * 0.5, params)
    mask = np.asarray(jaxprune.get_masks(state)["w"])
    name = "bias" if "bias" in place else "w"
    number = 0 if name == "bias" else np.flatnonzero(mask == ("dropped" not in place))[5]
    tree = grads if "gradient" in place else params
    broken = np.array(tree[name])
    broken.flat[number] = VALUES[value]
    broken = tree | {name: jnp.asarray(broken)}
    args = (broken, state, params) if tree is grads else (grads, state, broken)
    _, state, after = stepper(tx)(*args)

    new_mask = np.asarray(jaxprune.get_masks(state)["w"])
    assert np.sum(~new_mask) == n_dropped_after(3)
    np.testing.assert_array_equal(new_mask, best(abs(np.asarray(args[2]["w"])), mask, 30))
    assert np.all(bits(after["w"])[~new_mask] == 0)
    jaxprune.check(after, state)
    expected = {k: np.array(p) - 0.125 * np.array(grads[k]) for k, p in params.items()}
    expected["w"][~new_mask] = 0
    if place == "kept weight":
        assert new_mask.flat[number]
    if place != "gradient of a dropped weight" and (name == "bias" or new_mask.flat[number]):
        sign = -1 if tree is grads else 1
        expected[name].flat[number] = sign * VALUES[value]
    for k in expected:
        np.testing.assert_array_equal(after[k], expected[k])


@pytest.mark.skip_in("debug_nans", reason="NaN is what it is about")
@pytest.mark.parametrize("gradient", VALUES)
@pytest.mark.parametrize("weight", (0.0, 0.125))
def test_a_saliency_that_is_not_finite_ranks_highest(weight, gradient):
    """inf * 0 is NaN: the weight stays, and no other count changes."""
    rng = np.random.default_rng(2)
    params = {"w": eighths(rng, "float32").at[2, 3].set(weight), "bias": on_device(np.ones(8))}
    grads = {"w": eighths(rng, "float32"), "bias": on_device(np.ones(8))}
    broken = grads | {"w": grads["w"].at[2, 3].set(VALUES[gradient])}
    _, masks = jaxprune.prune_params(params, 0.5, score=jaxprune.saliency, grads=broken)
    scores = np.abs(np.asarray(params["w"]) * np.asarray(grads["w"]))
    scores[2, 3] = np.inf
    np.testing.assert_array_equal(masks["w"], best(scores, np.ones(SHAPE, bool), 24))
    assert np.asarray(masks["bias"]).all()


# --- loss scaling

SKIPPED = {
    "the first": (0,),
    "a fire": (2,),
    "the last fire": (4,),
    "several in a row": (1, 2, 3, 4),
    "every second": (0, 2, 4, 6, 8),
}


def skipping(tx):
    """A step that leaves params and state alone if a gradient is not finite."""

    @jax.jit
    def step(grads, state, params):
        finite = jnp.all(jnp.array([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]))
        updates, new_state = tx.update(grads, state, params)
        new = optax.apply_updates(params, updates), new_state
        return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, (params, state))

    return step


@functools.cache
def skipper(kind, form):
    """A step for gradients that may be infinite, and its first state."""
    tx = make(form, optax.adam(0.1), include="w")
    if kind == "select":
        return skipping(tx), tx.init
    outside = optax.apply_if_finite(tx, 9)

    def step(grads, state, params):
        _, state, params = stepper(outside)(grads, state, params)
        return params, state

    return step, outside.init


@functools.cache
def real_steps(form):
    """Params and masks after each of the updates that are not skipped."""
    tx = make(form, optax.adam(0.1), include="w")
    params, history = first_params(), []
    state = tx.init(params)
    for t in range(N_STEPS):
        _, state, params = stepper(tx)(grads_of(t), state, params)
        history.append((params, jaxprune.get_masks(state)))
    return history


def first_params():
    return {"w": eighths(np.random.default_rng(3), "float32"), "bias": on_device(np.ones(8))}


def grads_of(t):
    rng = np.random.default_rng(4 + t)
    return {"w": on_device(rng.normal(size=SHAPE)), "bias": on_device(rng.normal(size=8))}


@pytest.mark.skip_in("debug_nans", reason="gradients are infinite on purpose")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ("select", "apply_if_finite"))
@pytest.mark.parametrize("skipped", SKIPPED)
def test_a_run_with_skipped_steps_is_the_run_without_them(skipped, kind, form):
    step, init = skipper(kind, form)
    params, n_real = first_params(), 0
    state = init(params)
    for t in range(N_STEPS + len(SKIPPED[skipped])):
        grads = grads_of(n_real)
        if t in SKIPPED[skipped]:
            grads = grads | {"bias": grads["bias"].at[1].set(jnp.inf)}
        else:
            n_real += 1
        params, state = step(grads, state, params)
        if n_real:
            assert_same((params, jaxprune.get_masks(state)), real_steps(form)[n_real - 1])
    assert n_real == N_STEPS
    jaxprune.check(params, state, done=True)


@pytest.mark.skip_in("debug_nans", reason="gradients overflow on purpose")
@pytest.mark.skip_in("strict", reason="flax multiplies a float16 loss by a float32 scale")
@pytest.mark.skip_in("disable_jit", reason="NumPy warns that float16 overflows")
def test_dynamic_loss_scaling_in_float16_reaches_the_target():
    """Flax's scale starts too large, so that gradients overflow and steps are skipped."""
    dynamic_scale = pytest.importorskip("flax.training.dynamic_scale")
    scale = dynamic_scale.DynamicScale(scale=2.0**19, growth_interval=4)
    tx = make("chain", optax.sgd(0.01), include="w")
    params = first_params()
    state = tx.init(params)

    def loss(params):
        x = jnp.linspace(-1, 1, 6).astype(jnp.float16)
        y = x @ params["w"].astype(jnp.float16) + params["bias"].astype(jnp.float16)
        return jnp.sum(y**2)

    @jax.jit
    def step(scale, state, params):
        scale, finite, _, grads = scale.value_and_grad(loss)(params)
        updates, new_state = tx.update(grads, state, params)
        new = optax.apply_updates(params, updates), new_state
        new = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, (params, state))
        return scale, finite, *new

    n_real, n_attempts = 0, 20
    for _ in range(n_attempts):
        scale, finite, params, state = step(scale, state, params)
        n_real += int(finite)
        mask = np.asarray(jaxprune.get_masks(state)["w"])
        assert np.sum(~mask) == (n_dropped_after(n_real - 1) if n_real else 0)
        assert np.all(bits(params["w"])[~mask] == 0)
    assert N_STEPS < n_real < n_attempts
    assert int(jaxprune.get_state(state).prune_step) == n_real
    jaxprune.check(params, state, done=True)
