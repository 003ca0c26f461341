"""Sharded params: the masks of one device, on every mesh, with the shardings of the params."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxprune
from helpers import assert_placed_like, make_mesh, place, stepper

SPECS = {
    "rows": {"w": P("data"), "v": P("data"), "bias": P()},
    "columns": {"w": P(None, "model"), "v": P(None, "model"), "bias": P("model")},
    "both": {"w": P("data", "model"), "v": P(("data", "model")), "bias": P()},
}


def make_params():
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(64, 32)).astype(np.float32),
        "v": np.round(rng.normal(size=(16, 8)) * 2).astype(np.float32),  # ties
        "bias": rng.normal(size=(32,)).astype(np.float32),
    }


def run(params, place):
    tx = jaxprune.prune(jaxprune.cubic_schedule(0.8, 0, 4, 2))
    params = place(params)
    state = tx.init(params)
    step = stepper(tx)
    history = []
    for t in range(6):
        rng = np.random.default_rng(t)
        updates = place(
            {k: (0.1 * rng.normal(size=p.shape)).astype(p.dtype) for k, p in sorted(params.items())}
        )
        _, state, params = step(updates, state, params)
        history.append((params, jaxprune.get_masks(state)))
    return history, state, step


@functools.cache
def history_of_one_device():
    history, *_ = run(make_params(), lambda tree: jax.device_put(tree, jax.devices()[0]))
    return jax.device_get(history)


# jnp.where of arrays on an Explicit mesh needs jit before jax 0.12.
NEEDS_JIT = pytest.mark.skip_in("disable_jit", reason="jnp.where on an Explicit mesh needs jit")


@pytest.mark.parametrize(
    "axis_type",
    (AxisType.Auto, pytest.param(AxisType.Explicit, marks=NEEDS_JIT)),
    ids=lambda t: t.name,
)
@pytest.mark.parametrize(
    "layout", ["both", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rows", "columns"))]
)
def test_sharded_masks_equal_those_of_one_device(axis_type, layout):
    mesh = make_mesh((4, 2), axis_type)

    def place(tree):
        return {
            k: jax.device_put(x, NamedSharding(mesh, SPECS[layout][k])) for k, x in tree.items()
        }

    sharded, state, step = run(make_params(), place)
    chex.assert_trees_all_equal(history_of_one_device(), jax.device_get(sharded))
    for name, mask in state.masks.items():
        spec = NamedSharding(mesh, SPECS[layout][name])
        assert mask.sharding.is_equivalent_to(spec, mask.ndim), (name, mask.sharding)
    assert step._cache_size() <= 3


@pytest.mark.parametrize(
    "layout, axis_type",
    [
        ("rows", AxisType.Explicit),
        ("columns", AxisType.Auto),
        ("both", AxisType.Explicit),
        pytest.param("rows", AxisType.Auto, marks=pytest.mark.slow),
        pytest.param("columns", AxisType.Explicit, marks=pytest.mark.slow),
        pytest.param("both", AxisType.Auto, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_only_counts_cross_devices(axis_type, layout):
    mesh = make_mesh((4, 2), axis_type)
    specs = {k: NamedSharding(mesh, spec) for k, spec in SPECS[layout].items()}
    params = jax.tree.map(jax.device_put, make_params(), specs)
    tx = jaxprune.prune(jaxprune.cubic_schedule(0.8, 0, 4, 2))
    compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
    gathers = ("all-gather", "all-to-all", "collective-permute")
    text = compiled.as_text()
    assert [line for line in text.splitlines() if any(f" {op}(" in line for op in gathers)] == []
    assert " all-reduce(" in text


SCORES = {
    "magnitude": jaxprune.magnitude,
    "saliency": jaxprune.saliency,
    "random": jaxprune.random_score,
    "movement": jaxprune.movement,
}
POOLS = {"leaf": jaxprune.uniform, "global": jaxprune.global_pool}
# Each score once; the others are slow.
COVER = [
    ("magnitude", "index", "leaf"),
    ("saliency", "hashed", "global"),
    ("random", "index", "global"),
    ("movement", "hashed", "leaf"),
]


def temporary_bytes(tx, n_devices, n):
    """What a fire on a mesh of Explicit axes needs beside its inputs and results, on a device."""
    mesh = make_mesh((n_devices,), AxisType.Explicit, ("data",))
    with jax.set_mesh(mesh):
        specs = {"rows": P("data"), "columns": P(None, "data")}
        params = place({k: np.ones((n, n), np.float32) for k in specs}, mesh, specs)
        compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@NEEDS_JIT
@pytest.mark.parametrize(
    "score, ties, pool",
    [
        pytest.param(*case, marks=[] if case in COVER else pytest.mark.slow)
        for case in itertools.product(SCORES, ("index", "hashed"), POOLS)
    ],
)
def test_on_explicit_axes_no_device_holds_an_array_of_the_whole_leaf(score, ties, pool):
    """Every device made the ranks of all weights, and all random scores."""
    n = 512
    options = {"score": SCORES[score], "distribution": POOLS[pool], "ties": ties}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.9), inner=optax.sgd(0.1), **options)
    of_leaf = 4 * n * n
    # Random scores, and what they are drawn from, are stored for the weights of the device.
    n_parts = 1 if score == "random" else 8
    assert temporary_bytes(tx, 8, n) < of_leaf // n_parts


@NEEDS_JIT
@pytest.mark.parametrize("spec", [P("data"), P(None, "model"), P("data", "model"), P()])
def test_random_scores_lie_where_their_leaf_does_and_are_those_of_one_device(spec):
    mesh, key = make_mesh((4, 2), AxisType.Explicit), jax.random.key(3)
    w = jax.device_put(np.ones((16, 8), np.float32), NamedSharding(mesh, spec))
    want = jaxprune.random_score(jnp.ones((16, 8)), None, key)
    with jax.set_mesh(mesh):
        for function in (jaxprune.random_score, jax.jit(jaxprune.random_score)):
            scores = function(w, None, key)
            np.testing.assert_array_equal(scores, want)
            assert scores.sharding.is_equivalent_to(w.sharding, 2)
    np.testing.assert_array_equal(jaxprune.random_score(w, None, key), want)  # JAX makes no others


@pytest.mark.parametrize("axis_type", (AxisType.Auto, AxisType.Explicit), ids=lambda t: t.name)
def test_init_under_jit_and_set_mesh_works(axis_type):
    mesh = make_mesh((4, 2), axis_type)
    specs = {k: NamedSharding(mesh, spec) for k, spec in SPECS["both"].items()}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.adam(0.1))
    with jax.set_mesh(mesh):
        params = jax.tree.map(jax.device_put, make_params(), specs)
        state = jax.jit(tx.init)(params)
        _, state, params = stepper(tx)(params, state, params)
    assert np.sum(np.asarray(params["w"]) == 0) == 64 * 32 // 2


@pytest.mark.parametrize("axis_type", (AxisType.Auto, AxisType.Explicit), ids=lambda t: t.name)
@pytest.mark.parametrize("layout", SPECS)
def test_bit_masks_of_init_under_jit_lie_where_those_of_init_lie(layout, axis_type):
    """They were constants, which XLA puts on one device."""
    mesh = make_mesh((4, 2), axis_type)
    specs = {k: NamedSharding(mesh, spec) for k, spec in SPECS[layout].items()}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), packed=True)
    with jax.set_mesh(mesh):
        params = jax.tree.map(jax.device_put, make_params(), specs)
        eager, jitted = tx.init(params), jax.jit(tx.init)(params)
        text = jax.jit(tx.init).lower(params).compile().as_text()
    for one, other in zip(*map(jax.tree.leaves, (eager.masks, jitted.masks)), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


def test_global_pool_selects_across_shardings():
    mesh = make_mesh((4, 2), AxisType.Auto)
    rng = np.random.default_rng(0)
    leaves = [rng.normal(size=s).astype(np.float32) for s in ((64, 32), (16, 8))]
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(leaves, (P("data"), P(None, "model")), strict=True)
    ]
    masks = jax.jit(lambda xs: jaxprune.topk_masks(xs, 300, pool="global"))(placed)
    chex.assert_trees_all_equal(
        jax.device_get(masks),
        jax.device_get(jaxprune.topk_masks([jnp.asarray(x) for x in leaves], 300, pool="global")),
    )


def spread(initializer, nn, *axes):
    return nn.with_partitioning(initializer, axes)


def test_linen_partitioned_params_place_their_masks():
    nn = pytest.importorskip("flax.linen")
    mesh = make_mesh((4, 2), AxisType.Auto)
    normal = nn.initializers.lecun_normal()
    model = nn.Sequential(
        [
            nn.Dense(16, kernel_init=spread(normal, nn, "data", "model")),
            nn.Dense(8, kernel_init=spread(normal, nn, None, "model")),
        ]
    )
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.adam(0.1))

    def start(key):
        params = model.init(key, jnp.ones((1, 8)))["params"]
        return params, tx.init(params)

    key = jax.random.key(0)
    placed = nn.get_sharding(jax.eval_shape(start, key), mesh)
    params, state = jax.jit(start, out_shardings=placed)(key)
    assert P("data", "model") in [p.sharding.spec for p in jax.tree.leaves(params)]
    assert_placed_like(state.masks, params)
    for _ in range(2):
        _, state, params = stepper(tx)(params, state, params)
        assert_placed_like(state.masks, params)


def test_nnx_partition_specs_place_the_masks():
    nnx = pytest.importorskip("flax.nnx")
    mesh = make_mesh((4, 2), AxisType.Auto)
    normal = nnx.initializers.lecun_normal()
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.adam(0.1))

    @nnx.jit
    def create():
        kernel_init = spread(normal, nnx, "data", "model")
        model = nnx.Linear(8, 16, kernel_init=kernel_init, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for part in (model, optimizer):
            state = nnx.state(part)
            specs = nnx.get_partition_spec(state)
            nnx.update(part, jax.lax.with_sharding_constraint(state, specs))
        return model, optimizer

    with jax.set_mesh(mesh):
        model, optimizer = create()
        params = nnx.state(model, nnx.Param)
        assert P("data", "model") in [p.sharding.spec for p in jax.tree.leaves(params)]
        assert_placed_like(jaxprune.get_state(optimizer).masks, params)
        optimizer.update(model, params)
        params = nnx.state(model, nnx.Param)
        assert_placed_like(jaxprune.get_state(optimizer).masks, params)


def test_a_checkpoint_resumes_bit_for_bit_on_another_mesh(tmp_path):
    """Saved on 4 x 2 devices, restored by rows on 8: in mid-schedule, moments and all."""
    before = make_mesh((4, 2), AxisType.Auto)
    after = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    schedule = jaxprune.cubic_schedule(0.75, 1, 7, 3)
    tx = optax.chain(optax.sgd(0.125, momentum=0.5), jaxprune.prune(schedule))  # exact products

    def place(tree, mesh, specs):
        spec = lambda x: NamedSharding(mesh, specs if x.ndim == 2 else P())
        return jax.tree.map(lambda x: jax.device_put(x, spec(x)), tree)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    def steps(carry, n):
        for _ in range(n):
            carry = step(*carry)
        return carry

    params = place(make_params(), before, P("data", "model"))
    middle = steps((params, tx.init(params)), 5)
    blank = place(jax.tree.map(jnp.zeros_like, make_params()), after, P("data"))
    target = place((blank, tx.init(blank)), after, P("data"))
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.StandardSave(middle))
        manager.wait_until_finished()
        specs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target
        )
        restored = manager.restore(5, args=ocp.args.StandardRestore(specs))
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(middle))
    resumed, uninterrupted = steps(restored, 5), steps(middle, 5)
    chex.assert_trees_all_equal(jax.device_get(resumed), jax.device_get(uninterrupted))
    params, state = resumed
    jaxprune.check(params, state)
    assert int(np.sum(np.asarray(params["w"]) == 0)) == 64 * 32 * 3 // 4
    for name, mask in jaxprune.get_state(state).masks.items():
        assert mask.sharding.is_equivalent_to(target[0][name].sharding, mask.ndim), name


@pytest.mark.parametrize("axis_type", (AxisType.Auto, AxisType.Explicit), ids=lambda t: t.name)
@pytest.mark.parametrize("packed", (False, True))
def test_a_state_and_params_in_host_memory_give_what_those_on_the_device_do(packed, axis_type):
    mesh = make_mesh((4, 2), axis_type)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.adam(0.1), packed=packed)
    repack = jaxprune.unpack_masks if packed else jaxprune.pack_masks
    with jax.set_mesh(mesh):
        params = place(make_params(), mesh, SPECS["both"])
        _, state, params = stepper(tx)(params, jax.jit(tx.init)(params), params)
        host_state, host_params = map(in_host_memory, (state, params))
        jaxprune.check(host_params, host_state, done=True)
        masks = jaxprune.get_masks(state)
        for function in (
            lambda state, params, masks: jaxprune.get_masks(state),
            lambda state, params, masks: jaxprune.get_masks(state, params),
            lambda state, params, masks: jaxprune.metrics(state),
            lambda state, params, masks: jaxprune.apply_masks(params, state),
            lambda state, params, masks: jaxprune.apply_masks(params, masks),
            lambda state, params, masks: jaxprune.set_masks(state, masks),
            lambda state, params, masks: repack(state),
            lambda state, params, masks: jaxprune.prune_params(params, 0.9),
        ):
            want = jax.device_get(function(state, params, masks))
            got = jax.device_get(function(host_state, host_params, in_host_memory(masks)))
            chex.assert_trees_all_equal(got, want)
        summaries = [str(jaxprune.summarize(params, s)) for s in (state, host_state)]
    assert summaries[0] == summaries[1]


def in_host_memory(tree):
    kind = "pinned_host"
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind)), tree)
