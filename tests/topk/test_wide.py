"""Leaves and pools of 2**31 weights and more, counted in 64 bits with any `jax_enable_x64`.

No array in these tests is large. Masks are computed for small leaves, with the limits patched so
that they are counted in 64 bits and split into slices. Large leaves are only traced and lowered;
the lowered program contains their budgets.
"""

import contextlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import jaxprune
from helpers import make_mesh, place, random_params, stepper
from jaxprune._base import counting, sharding
from jaxprune._state import masks as state_masks
from jaxprune._topk import stacks

HALF = jaxprune.one_shot_schedule(0.5)
CASES = {
    "leaves": {},
    "one pool": {"distribution": jaxprune.min_density(0.25, jaxprune.global_pool)},
    "slices and groups": {
        "distribution": jaxprune.per_slice("stack|deep"),
        "structure": {"w": jaxprune.NM(2, 4), "v": jaxprune.Block((1, 2), balanced=True)},
    },
    "user score": {"score": lambda p, g, key: jnp.abs(p) * jnp.arange(1.0, p.shape[-1] + 1)},
    "swaps": None,
}


# Where the leaves lie: without a mesh, on one device, on eight. "deep" is sharded along its first
# axis, along which long leaves are sliced.
LAYOUTS = {
    "no mesh": None,
    "one": ((1, 1), AxisType.Auto),
    "Auto": ((4, 2), AxisType.Auto),
    "Explicit": ((4, 2), AxisType.Explicit),
}
SPECS = {"w": P("data", "model"), "v": P("model", "data"), "stack": P(None, "data", "model")}
SPECS |= {"deep": P("data", None, "model"), "bias": P()}


def make_params(layout):
    shapes = {"w": (16, 12), "v": (8, 8), "stack": (3, 8, 6), "deep": (8, 4, 6), "bias": (8,)}
    params = random_params(shapes, values=lambda normal: np.round(4 * normal))  # ties
    params |= {"v": params["v"].astype(jnp.bfloat16)}
    return params if layout is None else place(params, make_mesh(*layout), SPECS)


def run(options, layout=None):
    params = make_params(layout)
    tx = jaxprune.prune(HALF, **options) if options is not None else None
    tx = tx or jaxprune.rigl(0.5, 4, every=1, inner=optax.sgd(0.5))
    init = jax.jit(tx.init) if layout is None else tx.init
    _, state, params = stepper(tx)(params, init(params), params)
    jaxprune.check(params, state)
    assert {x.dtype.itemsize for x in jax.tree.leaves(state)} <= {1, 2, 4}
    return jax.device_get((params, state.masks, jax.jit(jaxprune.metrics)(state)))


@contextlib.contextmanager
def low_limits(monkeypatch, **limits):
    """Treats small leaves as large: 64-bit counts, leaves in slices, and on a TPU partial sums."""
    jax.clear_caches()
    monkeypatch.setattr(counting, "WIDE", 20)
    monkeypatch.setattr(stacks, "LONG", limits.get("long", stacks.LONG))
    monkeypatch.setattr(counting, "_MOST", limits.get("most", counting._MOST))
    monkeypatch.setattr(counting, "on_tpu", lambda arrays: "most" in limits)
    try:
        yield
    finally:
        jax.clear_caches()


@pytest.mark.parametrize(
    "case",
    ["leaves", *(pytest.param(c, marks=pytest.mark.slow) for c in CASES if c != "leaves")],
)
def test_masks_are_the_same_when_counted_in_64_bits(case, monkeypatch):
    narrow = run(CASES[case])
    with low_limits(monkeypatch):
        jax.tree.map(np.testing.assert_array_equal, run(CASES[case]), narrow)


FORMS = {"cpu": {"long": 60}, "tpu": {"long": 60, "most": 50}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, layout, form",
    [
        *(("one pool", layout, "tpu") for layout in LAYOUTS),
        ("one pool", "Explicit", "cpu"),
        ("leaves", "Auto", "tpu"),
        ("slices and groups", "Explicit", "cpu"),
        ("user score", "one", "tpu"),
        ("swaps", "no mesh", "cpu"),
    ],
)
def test_masks_are_the_same_when_leaves_are_sliced(case, layout, form, monkeypatch):
    narrow = run(CASES[case])
    with low_limits(monkeypatch, **FORMS[form]):
        jax.tree.map(np.testing.assert_array_equal, run(CASES[case], LAYOUTS[layout]), narrow)


@hypothesis.given(st.data())
def test_a_sum_in_lanes_is_the_sum(data):
    most = data.draw(st.sampled_from([1, 7, 2**16, 2**31, 2**40]) | st.integers(1, 2**40))
    n = data.draw(st.integers(1, 2**12) | st.sampled_from([2**24, 2**31, 2**32 - 1, 2**32]))
    drawn = data.draw(st.lists(st.integers(0, most), min_size=1, max_size=4))
    times = max(n // len(drawn), 1)  # as if each came that often; 32 bits wrap, as on devices
    with counting.counting(True):
        counts = jnp.asarray(drawn, jnp.uint64)
        add = lambda x: jnp.sum(x * x.dtype.type(times % 256**x.dtype.itemsize), dtype=x.dtype)
        total = sharding.in_lanes(add, counts, most, max(n, len(drawn)), jnp.uint64)
    assert int(total) == sum(drawn) * times


def shapes_of(n_leaves, *shape):
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    return {f"layer{i}": leaf for i in range(n_leaves)} | {"bias": jnp.ones(3)}


@pytest.mark.parametrize(
    "params, options, n_keep",
    [
        (shapes_of(1, 3, 2**16, 2**15), {}, 3 * 2**30),
        (shapes_of(5, 2**15, 2**15), {"distribution": jaxprune.global_pool}, 5 * 2**29),
        (shapes_of(1, 2**17, 2**15), {"structure": jaxprune.NM(2, 4)}, 2**31),
        (shapes_of(1, 2**17, 2**15), {"distribution": jaxprune.normalized_pool}, 2**31),
        # Too many slices along the first axis to list each of them.
        (shapes_of(1, 2**26, 64), {}, 2**31),
    ],
    ids=("leaf", "pool", "groups", "normalized", "rows"),
)
def test_large_leaves_are_lowered_with_their_exact_budgets(params, options, n_keep):
    tx = jaxprune.prune(HALF, **options)
    state = jax.eval_shape(tx.init, params)
    with counting.enable_x64(True):  # JAX 0.12 truncates the int64 of shapes that it lowers for
        text = jax.jit(tx.update).lower(params, state, params).as_text()
        masks = jax.eval_shape(tx.update, params, state, params)[1].masks
    assert f"dense<{n_keep}> : tensor<1x1xi64>" in text
    assert jax.tree.map(jnp.shape, masks) == jax.tree.map(jnp.shape, params)
    planned = jaxprune.plan(params, HALF, **options)
    assert sum(leaf.size for leaf in planned.leaves) - planned.n_zero == n_keep + 3


def test_violations_saturate_and_do_not_wrap(monkeypatch):
    for module in (counting, state_masks):
        monkeypatch.setattr(module, "WIDE", 20)
    flags = [jnp.arange(24) < 7, jnp.ones(24, bool)]
    count = state_masks.count_violations([jnp.ones(24)] * 2, flags)
    assert (int(count), count.dtype) == (24 - 7, jnp.int32)
    assert int(counting.total(flags[1])) == 24


def test_violations_of_several_leaves_saturate_together(monkeypatch):
    most = lambda flags, dtype, is_local: jnp.full((2,), 2**31 - 1, dtype)
    monkeypatch.setattr(state_masks, "WIDE", 2)
    monkeypatch.setattr(state_masks, "count_arrays", most)
    params = [jnp.ones(3)] * 2
    assert int(state_masks.count_violations(params, [jnp.zeros(3, bool)] * 2)) == 2**31 - 1


def test_zeros_of_large_trees_are_kept_and_counted_in_64_bits():
    params = shapes_of(5, 2**15, 2**14)  # each leaf is counted in 32 bits
    state = jax.eval_shape(jaxprune.keep_zeros(optax.sgd(0.1)).init, params)
    assert jax.tree.map(jnp.shape, state.masks) == jax.tree.map(jnp.shape, params)
    counts = jnp.array([2**30, 2**30 + 5, 3], jnp.int32)
    with counting.enable_x64(True):
        assert int(counting.sum_of_counts(counts, 2**31 + 9)) == 2**31 + 8
    assert counting.sum_of_counts(counts[2:], 9).dtype == jnp.int32


def test_a_leaf_with_too_many_slices_is_not_sliced(monkeypatch):
    narrow = run(CASES["one pool"])
    monkeypatch.setattr(stacks, "_MOST_SLICES", 8)  # "deep" has 8, "w" has 16
    with low_limits(monkeypatch, **FORMS["cpu"]):
        jax.tree.map(np.testing.assert_array_equal, run(CASES["one pool"]), narrow)
