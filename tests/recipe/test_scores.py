"""A user's score is fused into the selection's reads where that is exact, and stored elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import random_params
from jaxprune._base import sharding
from jaxprune._recipe.scores import (
    accumulates,
    is_elementwise,
    leaf_arguments,
    needs_key,
    reads_grads,
)

TABLE = np.arange(6, dtype=np.float32).reshape(2, 3)


def spec(dtype=jnp.float32, shape=(2, 3)):
    return jax.ShapeDtypeStruct(shape, dtype)


def branch_on_rank(p, g, key):
    return jnp.abs(p) if p.ndim == 2 else p * p


ELEMENTWISE = {
    "magnitude by hand": lambda p, g, key: jnp.abs(p),
    "saliency by hand": lambda p, g, key: jnp.abs(p * g),
    "power": lambda p, g, key: p**2 / jnp.sqrt(jnp.abs(g)),
    "choice": lambda p, g, key: jnp.where(p > 0, p, -2 * p),
    "limits": lambda p, g, key: jnp.clip(jnp.abs(p), 0.1, 3),
    "sum without a product": lambda p, g, key: jnp.abs(p) - jnp.abs(g) + 0.5,
    "calls": lambda p, g, key: jax.jit(jax.nn.relu)(p),
    "constant": lambda p, g, key: jnp.abs(p) * np.float32(3),
    "no gradient": lambda p, g, key: jax.lax.stop_gradient(jnp.abs(p)),
}


def for_one_shape(p, g, key):
    if p.shape != TABLE.shape:
        raise RuntimeError("another shape")
    return jnp.abs(p)


REFUSED = {
    "fails on other shapes": for_one_shape,
    "product and sum": lambda p, g, key: p * p + g * g,
    "quotient and sum": lambda p, g, key: jnp.abs(p) / 3 + jnp.abs(g),
    "transcendental": lambda p, g, key: jnp.exp(p),
    "key": lambda p, g, key: jax.random.uniform(key, p.shape),
    "other weights": lambda p, g, key: jnp.abs(p) / jnp.max(jnp.abs(p)),
    "neighbours": lambda p, g, key: jnp.abs(jnp.roll(p, 1, 0)),
    "position": lambda p, g, key: jnp.abs(p) * jax.lax.broadcasted_iota(jnp.float32, p.shape, 1),
    "size": lambda p, g, key: jnp.abs(p) / p.size,
    "rank": branch_on_rank,
    "shape that it was written for": lambda p, g, key: jnp.abs(p) * jnp.ones((2, 3)),
    "table": lambda p, g, key: jnp.abs(p) * TABLE,
    "rounded to fewer bits": lambda p, g, key: jnp.abs(p).astype(jnp.bfloat16),
    "many operations": lambda p, g, key: functools.reduce(jnp.maximum, [p, g] * 20),
}


CASTS = pytest.mark.skip_in("x64", reason="clip casts its limits, so its scores are stored")


@pytest.mark.parametrize(
    "score",
    [pytest.param(ELEMENTWISE[name], marks=[CASTS] * (name == "limits")) for name in ELEMENTWISE],
    ids=ELEMENTWISE,
)
def test_operations_that_round_alike_everywhere_are_fused(score):
    assert is_elementwise(score, spec(), spec())
    assert is_elementwise(score, spec(shape=(4,)), spec(shape=(4,)))


@pytest.mark.parametrize("score", REFUSED.values(), ids=REFUSED)
def test_a_score_in_doubt_is_stored(score):
    assert not is_elementwise(score, spec(), spec())


def test_only_exact_operations_are_fused_on_narrow_and_complex_weights():
    for dtype in (jnp.bfloat16, jnp.float16):
        assert is_elementwise(ELEMENTWISE["magnitude by hand"], spec(dtype), None)
        assert not is_elementwise(ELEMENTWISE["saliency by hand"], spec(dtype), spec(dtype))
    widened = lambda p, g, key: jnp.abs(p.astype(jnp.float32) * g)
    assert is_elementwise(widened, spec(jnp.bfloat16), spec())
    assert not is_elementwise(ELEMENTWISE["magnitude by hand"], spec(jnp.complex64), None)
    assert is_elementwise(lambda p, g, key: jnp.abs(p.real), spec(jnp.complex64), None)


def test_what_a_score_says_of_itself_wins():
    def score(params, grads, key):
        return jnp.exp(params)

    assert needs_key(score)
    assert reads_grads(score)
    score.elementwise, score.reads_grads = True, False
    assert is_elementwise(score, spec(), None)
    assert not needs_key(score)
    assert not reads_grads(score)
    score.elementwise = False
    assert not is_elementwise(score, spec(), None)


def test_built_in_scores_say_what_they_are():
    for score in (jaxprune.magnitude, jaxprune.saliency, jaxprune.gradient_magnitude):
        assert is_elementwise(score, spec(jnp.complex64), None)
        assert reads_grads(score) == (score is not jaxprune.magnitude)
    assert not is_elementwise(jaxprune.random_score, spec(), None)
    assert accumulates(jaxprune.movement)
    assert not is_elementwise(jaxprune.movement, spec(), None)


def step(score, sparsity=0.9, **rules):
    return lambda params, grads: jaxprune.prune_params(
        params, sparsity, grads=grads, score=score, **rules
    )[1]


def declared(score, elementwise):
    """The score, saying of itself whether it is elementwise."""
    copy = lambda p, g, key: score(p, g, key)
    copy.elementwise = elementwise
    return copy


def trees(key, *shapes, dtype=jnp.float32):
    """Weights and gradients with ties, zeros and values that are not finite."""
    leaves = {}
    for i, shape in enumerate(shapes):
        x = jax.random.normal(jax.random.fold_in(key, i), shape)
        x = jnp.where(jnp.abs(x) < 0.3, jnp.round(x, 1), x)
        leaves[f"w{i}"] = x.at[(0,) * len(shape)].set(jnp.inf).astype(dtype)
    return leaves


@pytest.mark.parametrize(
    "name, distribution",
    [
        ("saliency by hand", jaxprune.uniform),
        ("saliency by hand", jaxprune.global_pool),
        ("power", jaxprune.uniform),
        pytest.param("power", jaxprune.global_pool, marks=pytest.mark.slow),
        pytest.param("limits", jaxprune.uniform, marks=pytest.mark.slow),
        ("limits", jaxprune.global_pool),
        ("sum without a product", jaxprune.uniform),
        pytest.param("sum without a product", jaxprune.global_pool, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_fused_score_keeps_what_the_stored_one_keeps(getkey, name, distribution):
    shapes = ((33, 20), (33, 20), (4, 5, 6), (300,))
    params, grads = trees(getkey(), *shapes), trees(getkey(), *shapes)
    rules = dict(include=".*", distribution=distribution)
    score = ELEMENTWISE[name]
    fused, stored = (
        jax.jit(step(score, **rules))(params, grads)
        for score in (score, declared(score, elementwise=False))
    )
    for path, mask in fused.items():
        np.testing.assert_array_equal(mask, stored[path], err_msg=path)
    n_kept = [int(mask.sum()) for mask in fused.values()]
    if distribution is jaxprune.uniform:
        assert n_kept == [66, 66, 12, 30]
    assert sum(n_kept) == 174


@pytest.mark.skip_in("debug_nans", reason="some scores of infinite weights are NaN")
@pytest.mark.parametrize("name", REFUSED)
def test_a_stored_score_keeps_an_exact_number(getkey, name):
    params, grads = trees(getkey(), (2, 3)), trees(getkey(), (2, 3))
    masks = step(REFUSED[name], 0.5)(params, grads)
    assert int(masks["w0"].sum()) == 3


def temp_bytes(score, params, grads):
    """The memory that a compiled selection by this score needs beside its arguments."""
    program = jax.jit(step(score)).lower(params, grads).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_a_fused_score_is_never_stored(getkey):
    shape = (256, 1024)  # on many devices the counts of each row are stored, so few rows
    params, grads = trees(getkey(), shape), trees(getkey(), shape)
    size = params["w0"].nbytes
    assert temp_bytes(ELEMENTWISE["power"], params, grads) < size / 10
    assert temp_bytes(declared(ELEMENTWISE["power"], elementwise=False), params, grads) >= size
    assert temp_bytes(REFUSED["product and sum"], params, grads) >= size


def test_a_fused_score_that_asks_for_a_key_is_given_one(getkey):
    def score(params, grads, key):
        assert key is not None
        return jnp.abs(params)

    params = trees(getkey(), (8, 8))
    assert is_elementwise(score, params["w0"], None)
    masks = step(score, 0.5)(params, None)
    np.testing.assert_array_equal(masks["w0"], jaxprune.prune_params(params, 0.5)[1]["w0"])


def test_the_movement_of_complex_weights_is_the_real_part_of_their_product_with_the_gradient():
    w, g = np.complex64([1 + 2j, -1j, 3]), np.complex64([3 - 1j, 2j, -1j])
    increments = jaxprune.movement.increment(jnp.asarray(w), jnp.asarray(g))
    np.testing.assert_array_equal(increments, -(w.conj() * g).real)
    assert increments.dtype == jnp.float32


def test_each_seed_has_a_stream_of_its_own():
    w = {"w": jnp.ones((8, 8), jnp.float32)}
    masks = [
        jaxprune.prune_params(w, 0.5, score=jaxprune.random_score, seed=seed)[1]["w"]
        for seed in (0, 1, 2**31, 2**32 - 1, np.uint32(7))
    ]
    assert len({np.asarray(mask).tobytes() for mask in masks}) == len(masks)


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16, jnp.float32))
def test_saliency_is_a_product_of_float32(dtype):
    w, g = (jnp.asarray([3.0, -1.0, 1.01171875]) * x for x in (1, 1.00390625))
    w, g = w.astype(dtype), g.astype(dtype)
    scores = jaxprune.saliency(w, g)
    assert scores.dtype == jnp.float32
    expected = np.abs(np.asarray(w, np.float32) * np.asarray(g, np.float32))
    np.testing.assert_array_equal(scores, expected)


# Scores that know their leaf

ROLES = {"a/kernel": ("in", "out", "out")}


def told(seen):
    """A score that records what it is told, and keeps the second half of a leaf named b."""

    def score(params, grads, key, *, path, roles=None):
        seen[path] = roles
        place = jnp.arange(params.size, dtype=jnp.float32).reshape(params.shape)
        return 100 + place if path.startswith("b") else jnp.abs(params)

    return score


def told_params():
    shapes = {"a": {"kernel": (8, 2, 3)}, "b": {"kernel": (8, 6)}, "c": (6,)}
    return random_params(shapes)


@pytest.mark.parametrize("distribution", (jaxprune.uniform, jaxprune.global_pool), ids=str)
@pytest.mark.parametrize("roles", (None, ROLES), ids=("without roles", "roles"))
@pytest.mark.filterwarnings("ignore:jaxprune.prune_params")  # outside jit it sees the emptied leaf
def test_a_score_gets_the_path_and_the_roles_that_it_declares(distribution, roles):
    seen, params = {}, told_params()
    options = dict(score=told(seen), distribution=distribution, roles=roles)
    masks = jax.jit(lambda p: jaxprune.prune_params(p, 0.5, **options))(params)[1]
    assert seen == {"a/kernel": None if roles is None else ROLES["a/kernel"], "b/kernel": None}
    if distribution is jaxprune.uniform:
        assert not masks["b"]["kernel"][:4].any()
        by_magnitude = jaxprune.prune_params(params, 0.5)[1]
        np.testing.assert_array_equal(masks["a"]["kernel"], by_magnitude["a"]["kernel"])
    else:  # places are larger than weights
        assert not masks["a"]["kernel"].any()
    assert masks["c"].all()


def test_every_form_tells_the_score_about_its_leaf():
    def by_path(params, grads, key, path, roles):
        sign = 1 if roles == ("out", "in") else -1
        return sign * params + 10 + len(path)

    params, roles = told_params(), {"b/kernel": ("out", "in")}
    masks = jaxprune.prune_params(params, 0.5, score=by_path, roles=roles)[1]
    w = np.asarray(params["b"]["kernel"])
    assert w[np.asarray(masks["b"]["kernel"])].min() > w[~np.asarray(masks["b"]["kernel"])].max()
    schedule = jaxprune.one_shot_schedule(0.5)
    for options in ({}, {"packed": True}, {"inner": optax.sgd(0.1)}):
        tx = jaxprune.prune(schedule, score=by_path, roles=roles, **options)
        _, state = jax.jit(tx.update)(params, tx.init(params), params)
        jax.tree.map(np.testing.assert_array_equal, jaxprune.get_masks(state), masks)
    tx = jaxprune.rigl(0.5, 2, every=1, inner=optax.sgd(0.1), grow=by_path, roles=roles)
    jax.jit(tx.update)(params, tx.init(params), params)


def test_only_arguments_that_are_declared_are_passed():
    assert leaf_arguments(lambda p, g, key: p, "a", None) == {}
    assert leaf_arguments(lambda p, g, key, roles: p, "a", ("in",)) == {"roles": ("in",)}
    assert leaf_arguments(lambda path, roles, key: path, "a", None) == {}
    assert leaf_arguments(lambda p, g, key, **more: p, "a", None) == {}
    partial = functools.partial(told({}), path="mine")
    assert leaf_arguments(partial, "a", None) == {"path": "a", "roles": None}
    assert not any(leaf_arguments(score, "a", None) for score in (jaxprune.magnitude, abs, max))


def test_a_score_that_needs_roles_fails_with_the_path_of_the_leaf():
    def score(params, grads, key, roles):
        return jnp.abs(params) / len(roles)

    with pytest.raises(TypeError, match=r"a/kernel|b/kernel"):
        jaxprune.prune(jaxprune.one_shot_schedule(0.5), score=score).init(told_params())


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16))
def test_magnitudes_of_16_bits_clear_the_sign_on_every_device(dtype, monkeypatch):
    patterns = jnp.arange(2**16, dtype=jnp.uint16)  # all of them
    numbers = jax.lax.bitcast_convert_type(patterns, dtype)
    is_nan = np.isnan(np.asarray(numbers, np.float32))
    for device in ("cpu", "NVIDIA H100 80GB HBM3"):
        monkeypatch.setattr(sharding, "_device_kind", lambda arrays, kind=device: kind)
        scores = jaxprune.magnitude(numbers)
        assert np.isnan(np.asarray(scores, np.float32))[is_nan].all()
        bits = jax.lax.bitcast_convert_type(scores, jnp.uint16)
        np.testing.assert_array_equal(bits[~is_nan], (patterns & 0x7FFF)[~is_nan])


@pytest.mark.parametrize("score", (jaxprune.saliency, jaxprune.movement))
def test_grads_of_the_whole_model_may_be_passed_inside_partition_and_masked(score):
    params = {"k": jnp.arange(1.0, 17.0).reshape(4, 4), "b": jnp.ones(4), "other": jnp.ones((2, 2))}
    grads = jax.tree.map(lambda p: p[::-1], params)
    once = jaxprune.one_shot_schedule(0.5)
    in_chain = optax.chain(optax.adam(0.1), jaxprune.prune(once, score=score))
    around = jaxprune.prune(once, inner=optax.adam(0.1), score=score)
    alone = in_chain.update(grads, in_chain.init(params), params, grads=grads)[1]
    want = jaxprune.get_masks(alone)["k"]
    for tx in (in_chain, around):
        parts = {"x": tx, "y": optax.sgd(0.1)}
        for part in (
            optax.partition(parts, {"k": "x", "b": "x", "other": "y"}),
            optax.masked(tx, {"k": True, "b": False, "other": False}),
        ):
            state = part.update(grads, part.init(params), params, grads=grads)[1]
            assert jnp.array_equal(jaxprune.get_masks(state)["k"], want)
    missing = {name: grads[name] for name in ("b", "other")}
    with pytest.raises(ValueError, match="the params have k, the grads do not"):
        tx.update(grads, tx.init(params), params, grads=missing)
