"""A run with bit masks gives the same params, bit for bit, as a run with a byte per mask entry."""

import functools
import math

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxprune
from helpers import grads_at, random_params, says, stepper
from jaxprune._state import bit_masks
from jaxprune._state.bit_masks import bit_mask_shape, from_bits, full_bits, to_bits
from jaxprune._state.masks import keep

SCHEDULE = jaxprune.cubic_schedule(0.8, 1, 5, 2)


def make_params(dtype=jnp.float32, seed=0):
    """Last axes on both sides of a byte, pruned and unpruned leaves, scalars, an empty leaf."""
    shapes = {"conv": (3, 3, 2, 8), "fc": (17, 5), "one": (9, 1), "wide": (4, 19), "bias": (13,)}
    return random_params(shapes, dtype, seed) | {
        "scale": jnp.ones((), dtype),
        "empty": jnp.zeros((4, 0), dtype),
    }


@functools.cache  # tests of the same one share what it compiles
def transform(form, packed):
    sgd = optax.sgd(0.5, momentum=0.5)
    if form == "inner":
        return jaxprune.prune(SCHEDULE, inner=sgd, packed=packed)
    return optax.chain(sgd, jaxprune.prune(SCHEDULE, packed=packed))


def run(tx, params, n_steps=7):
    step, state, seen = stepper(tx), tx.init(params), []
    n_programs = step._cache_size()
    for t in range(n_steps):
        updates, state, params = step(grads_at(params, t), state, params)
        seen.append((updates, params))
    assert step._cache_size() <= n_programs + 1
    return seen, state


@settings(max_examples=12)  # each example is compiled
@given(shape=st.lists(st.integers(0, 20), max_size=3), seed=st.integers(0, 99))
def test_packing_is_undone_by_unpacking(shape, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    bits = to_bits(jnp.asarray(mask))
    assert bits.dtype == jnp.uint8
    assert bits.shape == bit_mask_shape(mask.shape) == full_bits(jnp.asarray(mask)).shape
    for dtype in (bool, np.float16, np.float32):  # float16 is unpacked in a way of its own
        np.testing.assert_array_equal(from_bits(bits, mask.astype(dtype)), mask)
    assert from_bits(full_bits(jnp.asarray(mask)), mask).all()
    if mask.ndim and mask.size:  # the bits that fill up the last byte are set
        fill = np.unpackbits(np.asarray(bits), axis=-1, bitorder="little")[..., mask.shape[-1] :]
        assert fill.all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 8), (2, 19)])
def test_a_gpu_packs_the_same_bits(shape, monkeypatch):
    mask = jnp.asarray(np.random.default_rng(0).random(shape) < 0.5)
    bits = to_bits(mask)
    monkeypatch.setattr(bit_masks, "on_gpu", lambda arrays: True)
    np.testing.assert_array_equal(to_bits(mask), bits)


@pytest.mark.parametrize(
    "form, dtype",
    [
        ("chain", jnp.float32),
        ("inner", jnp.bfloat16),
        ("chain", jnp.float16),
        pytest.param("chain", jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param("inner", jnp.float32, marks=pytest.mark.slow),
    ],
)
def test_a_packed_run_is_the_same_run(form, dtype):
    params = make_params(dtype)
    (seen, state), (same, packed) = (run(transform(form, p), params) for p in (False, True))
    for a, b in zip(seen, same, strict=True):
        chex.assert_trees_all_equal(a, b)
    final = same[-1][1]
    masks = jax.jit(jaxprune.get_masks)
    chex.assert_trees_all_equal(masks(state, final), masks(packed, final))
    assert masks(packed, final)["wide"].dtype == bool
    metrics = jax.jit(functools.partial(jaxprune.metrics, per_leaf=True))
    assert metrics(state) == metrics(packed)
    jaxprune.check(final, packed)
    assert str(jaxprune.summarize(final, packed)) == str(jaxprune.summarize(final, state))
    dense = jax.tree.map(np.ones_like, final)
    apply = jax.jit(jaxprune.apply_masks)
    chex.assert_trees_all_equal(apply(dense, packed), apply(dense, state))


def test_masks_take_a_bit_per_weight():
    params = {"kernel": jnp.ones((64, 256)), "bias": jnp.ones(256)}
    masks = jaxprune.prune(SCHEDULE, packed=True).init(params).masks
    assert {name: m.nbytes for name, m in masks.items()} == {"kernel": 64 * 32, "bias": 32}


@settings(max_examples=4)  # each example is compiled
@given(width=st.integers(1, 18), sparsity=st.sampled_from((0.0, 0.3, 0.5, 0.9)))
def test_every_width_reaches_its_count(width, sparsity):
    params = {"kernel": jnp.asarray(np.random.default_rng(width).normal(size=(6, width)))}
    params["bias"] = jnp.ones(width)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(sparsity), packed=True)
    _, state, params = stepper(tx)(params, tx.init(params), params)
    n_zero = np.sum(np.asarray(params["kernel"]) == 0)
    assert n_zero == math.floor(sparsity * 6 * width + 0.5)
    assert float(jaxprune.metrics(state)["prune/n_zero"]) == n_zero


def test_states_convert_both_ways_in_the_middle_of_a_run():
    params = make_params()
    tx, tx_packed = (transform("chain", packed) for packed in (False, True))
    state, packed = tx.init(params), tx_packed.init(params)
    chex.assert_trees_all_equal(jaxprune.pack_masks(state), packed)
    chex.assert_trees_all_equal(jaxprune.unpack_masks(packed), state)
    for t in range(7):
        grads = grads_at(params, t)
        updates, state, after = stepper(tx)(grads, state, params)
        if t == 3:  # a run goes on in the other kind
            packed = jaxprune.pack_masks(jaxprune.unpack_masks(packed))
        same, packed, params = stepper(tx_packed)(grads, packed, params)
        chex.assert_trees_all_equal(updates, same)
        chex.assert_trees_all_equal(jaxprune.pack_masks(state), packed)
        chex.assert_trees_all_equal(jaxprune.unpack_masks(packed), state)
        assert jaxprune.pack_masks(packed)[-1] is packed[-1]  # nothing to do
        chex.assert_trees_all_equal(params, after)


def test_a_state_of_the_other_kind_is_refused_and_says_what_converts_it():
    params = make_params()
    tx, tx_packed = (jaxprune.prune(SCHEDULE, packed=packed) for packed in (False, True))
    with pytest.raises(ValueError, match=r"one byte .*packed=True.* jaxprune.pack_masks\("):
        tx_packed.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"one bit .*packed=False.* jaxprune.unpack_masks\("):
        tx.update(params, tx_packed.init(params), params)
    state = tx_packed.init(params)
    other = state._replace(masks=state.masks | {"fc": jnp.ones((17, 2), jnp.uint8)})
    misfit = says("fc:", "(17, 2)", "(17, 5)", "bit mask of shape (17, 1)")
    with pytest.raises(ValueError, match=misfit):
        tx_packed.update(params, other, params)
    with pytest.raises(ValueError, match=misfit):
        jaxprune.apply_masks(params, other)
    with pytest.raises(ValueError, match="no prune state"):
        jaxprune.pack_masks(optax.adam(0.1).init(params))
    with pytest.raises(TypeError, match=says("packed", "1", "True", "False")):
        jaxprune.prune(SCHEDULE, packed=1)


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
def test_get_masks_inside_jit_takes_the_params():
    params = make_params()
    (_, state) = run(transform("chain", True), params)
    inside = jax.jit(jaxprune.get_masks)(state, params)
    chex.assert_trees_all_equal(inside, jaxprune.get_masks(state))
    chex.assert_trees_all_equal(jaxprune.get_masks(state, params), inside)
    with pytest.raises(ValueError, match=says("get_masks(opt_state, params)")):
        jax.jit(jaxprune.get_masks)(state)


def test_seeds_under_vmap_have_masks_of_their_own():
    params = jax.vmap(lambda seed: {"kernel": jax.random.normal(jax.random.key(seed), (4, 11))})(
        jnp.arange(3)
    )
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), packed=True)
    state = jax.vmap(tx.init)(params)
    updates, state = jax.jit(jax.vmap(tx.update))(params, state, params)
    masks = jaxprune.get_masks(state)["kernel"]
    assert masks.shape == (3, 4, 11)
    assert np.sum(np.asarray(masks), axis=(1, 2)).tolist() == [22, 22, 22]
    np.testing.assert_array_equal(optax.apply_updates(params, updates)["kernel"] != 0, masks)


HALF = jaxprune.one_shot_schedule(0.5)


@pytest.mark.parametrize("whole_bytes", (True, False))
def test_bit_masks_that_a_map_has_split_are_refused_where_their_length_counts(whole_bytes):
    last = 128 if whole_bytes else 32
    params = random_params({"a": (16, last), "b": (8, 64), "bias": (3,)})
    tx = jaxprune.prune(HALF, packed=True, axis_name="d")
    specs = {"a": P(None, "d"), "b": P(None, "d"), "bias": P()}
    state_specs = jaxprune.PruneState(P(), specs, P(), P(), P(), P(), progress=P())

    def step(p):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
        return optax.apply_updates(p, updates), state

    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(specs,), out_specs=(specs, state_specs), check_vma=False
    )
    params, state = jax.jit(mapped)(params)
    split = says("a:", f"{last // 8} weights", "tx.init(params) outside the map")
    ones = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    for read in (
        jaxprune.get_masks,
        jaxprune.unpack_masks,
        lambda s: jaxprune.set_masks(s, ones),
    ):
        with pytest.raises(ValueError, match=split):
            read(state)
    if whole_bytes:
        with pytest.raises(ValueError, match=split):
            jaxprune.check(params, state, done=True)
        kept = jax.tree.map(lambda p: p != 0, params)
        chex.assert_trees_all_equal(jaxprune.get_masks(state, params), kept)
        upgraded = jaxprune.upgrade_state(tx, params, state)
        chex.assert_trees_all_equal(jaxprune.get_masks(upgraded), kept)
        jaxprune.check(params, upgraded, done=True)
    else:
        with pytest.raises(ValueError, match="a: "):
            jaxprune.get_masks(state, params)
        with pytest.raises(ValueError, match="masks/a: "):
            jaxprune.upgrade_state(tx, params, state)


def test_bit_masks_of_another_width_are_refused_also_if_they_have_the_same_bytes():
    params = random_params({"a": (4, 14), "bias": (3,)})
    tx = jaxprune.prune(HALF, packed=True)
    state = tx.init(params)
    state = state._replace(widths=jnp.array([7, 3]))  # two parts, each with a bit of padding
    for path, read in (
        ("a", lambda s: jaxprune.get_masks(s, params)),
        ("a", lambda s: jaxprune.apply_masks(params, s)),
        ("masks/a", lambda s: jaxprune.upgrade_state(tx, params, s)),
    ):
        with pytest.raises(ValueError, match=says(f"{path}:", "7 weights", "(4, 2)")):
            read(state)


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
@pytest.mark.parametrize("function", ("unpack_masks", "set_masks"))
def test_a_conversion_inside_jit_is_to_be_called_outside(function):
    _, state = run(transform("chain", True), make_params())
    call = functools.partial(getattr(jaxprune, function))
    masks = (make_params(),) if function == "set_masks" else ()
    with pytest.raises(ValueError, match=says(f"{function}:", f"Call {function} outside jit")):
        jax.jit(lambda s: call(s, *jax.tree.map(lambda p: p != 1, masks)))(state)


def test_state_survives_serialisation():
    params = make_params()
    tx = transform("inner", True)
    _, state = run(tx, params)
    restored = flax.serialization.from_bytes(tx.init(params), flax.serialization.to_bytes(state))
    chex.assert_trees_all_equal(restored, state)
    grads = grads_at(params, 0)
    step = stepper(tx)
    chex.assert_trees_all_equal(step(grads, restored, params), step(grads, state, params))


WHOLE = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
HOST = {"whole": WHOLE, "ragged": WHOLE[:, :40]}  # shards of the second do not hold whole bytes
HOST |= {"bias": np.ones(64, np.float32)}


@functools.cache
def masks_of_one_device():
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.75))
    _, state = jax.jit(tx.update)(HOST, tx.init(HOST), HOST)
    return jax.device_get(jaxprune.get_masks(state))


@pytest.mark.parametrize(
    "spec, axes",
    [
        (P("a", "b"), AxisType.Explicit),
        (P(None, "b"), AxisType.Auto),
        pytest.param(P("a", "b"), AxisType.Auto, marks=pytest.mark.slow),
        pytest.param(P(None, "b"), AxisType.Explicit, marks=pytest.mark.slow),
        *(
            pytest.param(spec, axes, marks=pytest.mark.slow)
            for spec in (P("b", "a"), P("a", None))
            for axes in (AxisType.Auto, AxisType.Explicit)
        ),
    ],
    ids=str,
)
def test_the_other_axes_keep_their_sharding(axes, spec):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(axes, axes))
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else P()))
            for name, x in HOST.items()
        }
        tx = jaxprune.prune(jaxprune.one_shot_schedule(0.75), packed=True)
        state = tx.init(params)
        for _ in range(2):
            _, state = jax.jit(tx.update)(params, state, params)
        masks = jax.device_get(jaxprune.get_masks(state, params))
    chex.assert_trees_all_equal(masks, masks_of_one_device())
    for name in ("whole", "ragged"):
        rows = state.masks[name].sharding.shard_shape(state.masks[name].shape)[0]
        assert rows == params[name].sharding.shard_shape(params[name].shape)[0]


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16, jnp.float32))
def test_the_tangent_of_a_masked_array_is_masked(dtype):
    x, mask = jnp.array([1.0, 2.0, 3.0], dtype), jnp.array([1, 0, 1], jnp.uint8)
    value, tangent = jax.jvp(lambda x: keep(x, mask), (x,), (x + 1,))
    assert value.tolist() == [1, 0, 3]
    assert tangent.tolist() == [2, 0, 4]
    assert jax.grad(lambda x: keep(x, mask).sum())(x).tolist() == [1, 0, 1]
