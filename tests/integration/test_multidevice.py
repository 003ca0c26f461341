"""Fires on up to eight devices: masks, shardings, number of compilations and traffic.

All 72 combinations of a structure with a distribution on 2, 4 and 8 devices, Auto and Explicit,
take about ten minutes on two cores, so CI runs a selection of them. To run all:

    pytest -m slow -k combination_on_every_number tests/integration/test_multidevice.py
"""

import contextlib
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

import combinations
import jaxprune
from combinations import DISTRIBUTIONS, GROUPED, SHAPES
from helpers import assert_placed_like, make_mesh, place, stepper
from jaxprune import NM, Block, Channel, Unstructured

pytestmark = pytest.mark.slow

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
BY_ROLES = {  # in these, axes of a leaf are flattened across shards
    "3:6 by roles": NM(3, 6),
    "block by roles": Block((2, 3)),
    "channel by roles": Channel(),
    "slices by roles": Unstructured(),
}
ROLES = {
    "conv": ("in", "window", "in", "out"),
    "fc|odd": ("out", "in"),
    "stack": ("stack", "out", "in"),
}
STRUCTURES = combinations.STRUCTURES | BY_ROLES
STRUCTURES |= {"by rule": {"fc": NM(1, 2), ".*v": Block((2, 2)), "stack": Channel(axis=-1)}}
# Every structure with a distribution other than uniform, if it has one, and every distribution.
COVER = [
    ("2:4", "per slice"),
    ("block", "erk"),
    ("block max", "global"),
    ("balanced", "per slice"),
    ("channel", "normalized"),
    ("channel l1 in", "er"),
    ("by rule", "per slice"),
    ("block", "global min density"),
    ("channel", "min density"),
    ("block max", "erk per slice"),
]
SPECS = {
    "conv": P(None, None, "data", "model"),  # blocks and groups lie across shards
    "fc": P("data", "model"),
    "odd": P("data"),
    "stack": P(None, "data", "model"),
    "bias": P("model"),
}
ROWS = {"conv": P(), "fc": P("data", "model"), "odd": P("data"), "stack": P(None, "data", "model")}
ROWS |= {"bias": P("model")}
MESHES = {1: (1, 1), 2: (2, 1), 4: (2, 2), 8: (4, 2)}


def make_params():
    """Small integers, so that there are ties and every sum is exact in any order."""
    rng = np.random.default_rng(0)
    shapes = SHAPES | {"bias": (8,)}
    return {k: rng.integers(-40, 41, size=s).astype(np.float32) for k, s in shapes.items()}


def transform(structure, distribution, **options):
    options |= {"exclude": "odd"} if structure in (*GROUPED, "3:6 by roles") else {}
    options |= {"roles": ROLES} if structure in BY_ROLES else {}
    options |= {"structure": STRUCTURES[structure], "distribution": DISTRIBUTIONS[distribution]}
    return jaxprune.prune(jaxprune.one_shot_schedule(0.5), **options)


@functools.cache
def masks_of(structure, distribution, n, axis_type):
    """The masks of one fire, after a check of their shardings."""
    tx = transform(structure, distribution)
    params = place(make_params(), make_mesh(MESHES[n], axis_type), SPECS)
    state = tx.init(params)
    assert_placed_like(state.masks, params)
    _, state = jax.jit(tx.update)(params, state, params)
    assert_placed_like(state.masks, params)
    return jax.device_get(jaxprune.get_masks(state))


def assert_same_masks(structure, distribution, layouts):
    try:
        transform(structure, distribution).init(make_params())
    except ValueError as error:  # a leaf with few channels, or a structure that needs uniform
        assert re.search(r"would lose all|uniform", str(error))  # noqa: PT017
        return
    single = masks_of(structure, distribution, 1, AUTO)
    for n, axis_type in layouts:
        masks = masks_of(structure, distribution, n, axis_type)
        for name, mask in single.items():
            np.testing.assert_array_equal(masks[name], mask, err_msg=f"{name} {n} {axis_type}")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_has_the_masks_of_one_device(structure):
    assert_same_masks(structure, "uniform", [(8, EXPLICIT)])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_distribution_has_the_masks_of_one_device(distribution):
    assert_same_masks("unstructured", distribution, [(8, AUTO)])


@pytest.mark.parametrize("structure, distribution", COVER)
def test_a_cover_of_the_combinations_has_the_masks_of_one_device(structure, distribution):
    assert_same_masks(structure, distribution, [(2, EXPLICIT), (4, AUTO)])


@pytest.mark.parametrize(
    "structure, distribution",
    [(s, "uniform") for s in STRUCTURES]
    + [("unstructured", d) for d in ("erk per slice", "global")],
)
def test_a_single_device_takes_params_of_an_explicit_mesh(structure, distribution, monkeypatch):
    """Params of a user with one GPU: merging axes costs nothing there but loses their shardings."""
    single = masks_of(structure, distribution, 1, AUTO)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    masks = masks_of(structure, distribution, 1, EXPLICIT)
    for name, mask in single.items():
        np.testing.assert_array_equal(masks[name], mask, err_msg=name)


SLICED = {
    "per slice": lambda: jaxprune.prune(HALF, distribution=jaxprune.per_slice("experts")),
    "by the last axis": lambda: jaxprune.prune(
        HALF, distribution=jaxprune.per_slice({"experts": 2}), ties="hashed"
    ),
    "by roles": lambda: jaxprune.prune(HALF, roles=EXPERTS, score=jaxprune.random_score),
    "override": lambda: jaxprune.prune(HALF, roles=EXPERTS, overrides={"experts/2": 0.75}),
    "rigl": lambda: jaxprune.rigl(0.5, 4, every=1, roles=EXPERTS, inner=optax.sgd(0.1)),
}
EXPERTS = {"experts": ("stack", "in", "out")}


@pytest.mark.parametrize("axis_type", (AUTO, EXPLICIT))
@pytest.mark.parametrize("kind", SLICED)
def test_slices_on_several_devices_have_the_masks_of_one(kind, axis_type):
    rng = np.random.default_rng(1)
    params = {
        k: rng.integers(-40, 41, s) for k, s in {"experts": (4, 6, 8), "fc": (16, 12)}.items()
    }
    params = {k: p.astype(np.float32) for k, p in params.items()} | {"bias": np.ones(8, np.float32)}
    specs = {"experts": P("data", None, "model"), "fc": P("data"), "bias": P()}
    masks = []
    for placed in (params, place(params, make_mesh((4, 2), axis_type), specs)):
        tx = SLICED[kind]()
        for update in (tx.update, jax.jit(tx.update)):
            state = tx.init(placed)
            for _ in range(3):
                _, state = update(placed, state, placed)
            masks.append(jax.device_get(jaxprune.get_masks(state)))
    for others in masks[1:]:
        for name, mask in masks[0].items():
            np.testing.assert_array_equal(others[name], mask, err_msg=name)


KINDS = {
    "packed": lambda inner: jaxprune.prune(HALF, inner=inner, packed=True),
    "rigl": lambda inner: jaxprune.rigl(0.5, 4, every=1, inner=inner),
    "static": lambda inner: jaxprune.static_sparse(0.5, inner=inner),
    "movement": lambda inner: jaxprune.prune(HALF, inner=inner, score=jaxprune.movement),
    "random": lambda inner: jaxprune.prune(HALF, inner=inner, score=jaxprune.random_score),
}
HALF = jaxprune.cubic_schedule(0.5, 0, 2, 1)


@pytest.mark.parametrize("n", (1, 8))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_state_works_on_explicit_meshes_with_an_axis_of_size_one(
    kind, n, monkeypatch
):
    """Without `set_mesh`, `jit(init)` may lose the sharding type of masks; bit masks always do."""
    if n == 1:
        monkeypatch.setattr(jax, "device_count", lambda: 1)
    mesh = Mesh(np.array(jax.devices()[:n])[:, None], ("data", "model"), axis_types=(EXPLICIT,) * 2)
    params = place(make_params() | {"odd": np.ones((8, 7), np.float32)}, mesh, ROWS)
    tx = KINDS[kind](optax.sgd(0.1))
    with jax.set_mesh(mesh) if kind == "packed" else contextlib.nullcontext():
        state = jax.jit(tx.init)(params)
        for _ in range(3):
            updates, state = jax.jit(tx.update)(params, state, params)
            params = optax.apply_updates(params, updates)
        jaxprune.check(params, state)
        again = jaxprune.apply_masks(params, state)
    for name, p in params.items():
        np.testing.assert_array_equal(again[name], p, err_msg=name)
    kept = jaxprune.get_masks(state, params)["fc"]
    assert 0 < int(kept.sum()) < kept.size


@pytest.mark.slow
@pytest.mark.parametrize(
    "structure, distribution", list(itertools.product(STRUCTURES, DISTRIBUTIONS))
)
def test_every_combination_on_every_number_of_devices(structure, distribution):
    layouts = itertools.product((2, 4, 8), (AUTO, EXPLICIT))
    assert_same_masks(structure, distribution, layouts)


# Shardings and compiles


@pytest.mark.parametrize(
    "how, axis_type",
    [("eager", AUTO), ("eager", EXPLICIT), ("jit", AUTO), ("jit", EXPLICIT)]
    + [("out_shardings", AUTO)],
)
def test_init_puts_masks_where_the_params_are(how, axis_type):
    params = place(make_params(), make_mesh((4, 2), axis_type), SPECS)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.adam(0.1))
    if how == "out_shardings":
        out = optax.tree.map_params(
            tx,
            lambda _, p: p.sharding,
            jax.eval_shape(tx.init, params),
            params,
            transform_non_params=lambda _: NamedSharding(params["fc"].sharding.mesh, P()),
        )
        state = jax.jit(tx.init, out_shardings=out)(params)
    else:
        with jax.set_mesh(params["fc"].sharding.mesh):
            state = (jax.jit(tx.init) if how == "jit" else tx.init)(params)
    assert_placed_like(state.masks, params)
    _, state = jax.jit(tx.update)(params, state, params)
    assert_placed_like(state.masks, params)


@pytest.mark.parametrize("axis_type", (AUTO, EXPLICIT), ids=lambda t: t.name)
@pytest.mark.parametrize("how", ("eager", "jit"))
def test_a_run_compiles_as_often_as_adam_alone(how, axis_type):
    def n_compiles(tx):
        params = place(make_params(), make_mesh((4, 2), axis_type), SPECS)
        state = (tx.init if how == "eager" else jax.jit(tx.init))(params)

        @jax.jit
        def step(params, state):
            updates, state = tx.update(params, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(6):
            params, state = step(params, state)
        return step._cache_size()

    schedule = jaxprune.cubic_schedule(0.8, 0, 4, 2)
    if how == "eager":  # without `set_mesh` the scalars of a state start on one device
        assert_no_more_than_adam(n_compiles, schedule)
        return
    with jax.set_mesh(make_mesh((4, 2), axis_type)):
        assert_no_more_than_adam(n_compiles, schedule)


def assert_no_more_than_adam(n_compiles, schedule):
    alone = n_compiles(optax.adam(0.1))
    assert n_compiles(jaxprune.prune(schedule, inner=optax.adam(0.1))) <= max(alone, 2)
    assert n_compiles(optax.chain(optax.adam(0.1), jaxprune.prune(schedule))) <= max(alone, 2)


@pytest.mark.parametrize("axis_type", (AUTO, EXPLICIT), ids=lambda t: t.name)
def test_swapped_masks_are_those_of_one_device(axis_type):
    def run(n):
        tx = jaxprune.rigl(
            0.5, 4, every=1, inner=optax.sgd(0.5), structure=Block((2, 2)), include="fc"
        )
        params = place(make_params(), make_mesh(MESHES[n], axis_type), SPECS)
        state = tx.init(params)
        for _ in range(2):
            _, state, params = stepper(tx)(params, state, params)
        assert_placed_like(state.masks, params)
        return np.asarray(state.masks["fc"])

    np.testing.assert_array_equal(run(1), run(8))


# Traffic

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
BITS = {"pred": 8, "u8": 8, "s32": 32, "u32": 32, "f32": 32}


def crossings(hlo):
    """Kind and bytes of the result of each collective in the text of a compiled module."""
    sent = []
    for line in hlo.splitlines():
        if match := COLLECTIVE.search(line):
            arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", match[1])
            sizes = [BITS[t] // 8 * math.prod(int(n) for n in s.split(",") if n) for t, s in arrays]
            sent.append((match[2], sum(sizes)))
    return sent


TRAFFIC = {  # no unit crosses shards
    "unstructured": (Unstructured(), P("data", "model")),
    "one axis": (Unstructured(), P(("data", "model"))),
    "last axis": (Unstructured(), P(None, "model")),
    "2:4": (NM(2, 4, axis=-2), P("data", "model")),
    "block": (Block((2, 4)), P("data", "model")),
    "block one axis": (Block((2, 4)), P(("data", "model"))),
    "channel": (Channel(), P(None, ("data", "model"))),
}
PASSES = 13  # the most passes that a first fire of normal weights took


@pytest.mark.parametrize("axis_type", (AUTO, EXPLICIT), ids=lambda t: t.name)
@pytest.mark.parametrize("case", TRAFFIC)
def test_only_counts_cross_devices_in_a_fire(case, axis_type):
    structure, spec = TRAFFIC[case]
    names = ("a", "b", "c")
    w = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)
    params = place(
        dict.fromkeys(names, w), make_mesh((4, 2), axis_type), dict.fromkeys(names, spec)
    )
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), structure=structure)
    compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
    sent = crossings(compiled.as_text())
    assert {kind for kind, _ in sent} <= {"all-reduce"}, sent
    assert sum(n_bytes for _, n_bytes in sent) * PASSES <= 4096 * len(names), sent


@pytest.mark.parametrize("axis_type", (AUTO, EXPLICIT), ids=lambda t: t.name)
@pytest.mark.parametrize("block", ((32, 1), (5, 3)), ids=str)
def test_blocks_across_shards_have_the_scores_of_one_device(block, axis_type):
    """To the last bit, on a CPU: a sum of parts of blocks would be rounded differently."""
    w = np.random.default_rng(0).normal(size=(64, 24)).astype(np.float32)
    mesh = make_mesh((4, 2), axis_type)
    sharded = place({"w": w}, mesh, {"w": P("data", "model")})["w"]
    of_shards = of_array = Block(block).unit_scores
    if axis_type == EXPLICIT:  # as in a fire, where the compiler chooses how units lie
        of_shards = jax.sharding.auto_axes(of_array, out_sharding=NamedSharding(mesh, P()))
    np.testing.assert_array_equal(jax.jit(of_shards)(sharded), jax.jit(of_array)(jnp.asarray(w)))


@pytest.mark.parametrize("on_tpu", (False, True))
def test_only_counts_cross_devices_in_a_program_compiled_ahead_of_time(on_tpu, monkeypatch):
    """Compiled ahead of time on a host of one device, from shapes on a mesh of eight."""
    mesh = make_mesh((4, 2), AUTO)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), distribution=jaxprune.global_pool)
    shapes = {"a": ((512, 256), P("data", "model")), "b": ((512, 256), P("model", "data"))}

    def abstract(dtype):
        return {
            k: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
            for k, (shape, spec) in shapes.items()
        }

    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr("jaxprune._base.counting.on_tpu", lambda arrays: on_tpu)
    params = abstract(jnp.float32)
    state = jax.eval_shape(tx.init, params)._replace(masks=abstract(jnp.uint8))
    sent = crossings(jax.jit(tx.update).lower(params, state, params).compile().as_text())
    assert {kind for kind, _ in sent} == {"all-reduce"}, sent
    assert sum(n_bytes for _, n_bytes in sent) * PASSES <= 4096, sent


@pytest.mark.parametrize("spec", (P("data", "model"), P(("data", "model")), P("data"), P()))
def test_on_explicit_meshes_a_pool_sends_only_one_count_more_for_each_leaf(spec):
    """The search sends as much for many leaves as for one. At its end, the zeros of each leaf."""
    w = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)

    def sent(n_leaves):
        names = [f"{i:02d}" for i in range(n_leaves)]
        params = place(
            dict.fromkeys(names, w), make_mesh((4, 2), EXPLICIT), dict.fromkeys(names, spec)
        )
        schedule = jaxprune.one_shot_schedule(0.5)
        tx = jaxprune.prune(schedule, distribution=jaxprune.global_pool)
        compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
        return crossings(compiled.as_text())

    of_one, of_many = sent(1), sent(12)
    assert sum(n_bytes for _, n_bytes in of_many) * PASSES <= 4096
    # Passes over scores and over ties come first; copies on every device send nothing.
    at_the_end = 4 * (12 - 1)  # one int32 for each of the other leaves
    assert of_many[:-1] == of_one[:-1]
    assert of_many[-1:] == [(kind, n + at_the_end) for kind, n in of_one[-1:]]


def test_leaves_that_do_not_divide_evenly_over_devices_are_pruned():
    """No axis of (7, 13) divides by a mesh of (4, 2): the compiler shards it unevenly inside."""
    mesh = make_mesh((4, 2), AUTO)
    w = jnp.asarray(np.random.default_rng(0).normal(size=(7, 13)), jnp.float32)
    spread = NamedSharding(mesh, P("data", "model"))

    def mask(w, sharded):
        w = jax.lax.with_sharding_constraint(w, spread) if sharded else w
        return jaxprune.topk_mask(jnp.abs(w), 40)

    single = jax.jit(mask, static_argnums=1)(w, False)
    sharded = jax.jit(mask, static_argnums=1)(w, True)
    np.testing.assert_array_equal(single, sharded)
    assert int(single.sum()) == 40
