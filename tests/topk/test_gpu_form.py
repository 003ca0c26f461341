"""Masks as a GPU selects them, in lanes and with unsigned keys, against a stable sort."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxprune
from helpers import make_mesh
from jaxprune._base import lanes
from jaxprune._topk import candidates, copies, search, topk
from jaxprune._topk.topk import topk_masks
from jaxprune._transform import operand as operands
from topk_oracle import KINDS, first, ranking, values

# Short and long rows, with and without padding; the first two are one stack.
SHAPES = ((31, 7), (31, 7), (), (16, 130), (33_037,))


@pytest.fixture
def gpu(monkeypatch):
    """Selection for GPUs, with a `jit` of its own: the one of `topk` may hold other programs."""
    monkeypatch.setattr(topk, "on_gpu", lambda arrays: True)
    static = ("score", "pool_of", "ties", "one_device", "axis_name")
    fresh = jax.jit(topk._select.__wrapped__, static_argnames=static)
    monkeypatch.setattr(topk, "_select", fresh)


def leaves_of(kind, shapes, dtype=jnp.float32):
    return [values(kind, shape, dtype, key) for key, shape in enumerate(shapes)]


@pytest.mark.parametrize("n_devices", (1, 8))
@pytest.mark.parametrize("score", (None, jnp.abs), ids=("signed", "magnitude"))
def test_leaves_are_exact(n_devices, score, gpu, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: n_devices)
    monkeypatch.setattr(lanes, "_MANY_ROWS", 4)
    shapes = SHAPES if score is None else SHAPES[1:]  # many pools, or few
    fn = jax.jit(lambda leaves, n: topk_masks(leaves, n, score=score))
    for kind in KINDS:
        leaves = leaves_of(kind, shapes)
        scores = [x if score is None else np.abs(x) for x in leaves]
        orders = list(map(ranking, scores))
        for part in (0, 0.3, 0.999, 1):
            counts = [int(part * x.size) for x in leaves]
            for mask, n, order, x in zip(fn(leaves, counts), counts, orders, leaves, strict=True):
                np.testing.assert_array_equal(mask, first(n, order, x.shape), err_msg=kind)


@pytest.mark.parametrize("ties", ("index", "hashed"))
@pytest.mark.parametrize("n_devices", (1, 8))
def test_global_pools_are_those_of_the_cpu(n_devices, ties, gpu, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: n_devices)
    on_gpu = jax.jit(lambda leaves, n: topk_masks(leaves, n, "global", ties=ties))
    on_gpu(leaves_of(KINDS[0], SHAPES), 1)
    monkeypatch.setattr(topk, "on_gpu", lambda arrays: False)
    topk._select.clear_cache()
    on_cpu = jax.jit(lambda leaves, n: topk_masks(leaves, n, "global", ties=ties))
    for kind in KINDS:
        leaves = leaves_of(kind, SHAPES)
        for n in (0, 5000, 35_000):
            want = on_cpu(leaves, n)
            jax.tree.map(np.testing.assert_array_equal, on_gpu(leaves, n), want)


@pytest.mark.parametrize(
    "n_leaves, dtype, density",
    (
        (4, jnp.float32, 0.6),
        (5, jnp.float32, 0.6),
        (4, jnp.bfloat16, 0.6),
        (5, jnp.bfloat16, 0.6),
        (4, jnp.float32, 1),  # without flags, scores below zero have lower keys than padding
    ),
)
def test_leaves_copied_in_parts_are_exact(n_leaves, dtype, density, gpu, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(copies, "_AT_ONCE", 2)
    shapes = [(523, 3)] * n_leaves + [(7, 2)]  # rows of 511, with padding
    rng = np.random.default_rng(0)
    among = [rng.random(shape) < density for shape in shapes]
    flags = among if density < 1 else None
    fn = jax.jit(lambda leaves, n: topk.select(leaves, n, among=flags)[0])
    for kind in KINDS:
        leaves = leaves_of(kind, shapes, dtype)
        orders = [
            order[np.argsort(~a.flat[order], kind="stable")]
            for order, a in zip(map(ranking, leaves), among, strict=True)
        ]
        for part in (0, 0.3, 0.9):
            counts = [int(part * x.size) for x in leaves]
            kept = fn(leaves, counts)
            for mask, n, a, order in zip(kept, counts, among, orders, strict=True):
                want = first(min(n, a.sum()), order, a.shape)
                np.testing.assert_array_equal(mask, want, err_msg=kind)


def test_a_search_that_ends_in_gathered_rows_is_exact(gpu, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(candidates, "_MANY_ROWS", 16)
    gather, gathered = search.gather, []
    monkeypatch.setattr(search, "gather", lambda *x: gathered.append(x) or gather(*x))
    fn = jax.jit(lambda x, n: topk_masks([x], [n]))
    for kind in KINDS:
        x = values(kind, (33_037,), jnp.float32)
        order = ranking(x)
        for n in (0, 1, x.size // 10, x.size - 1, x.size):
            np.testing.assert_array_equal(fn(x, n)[0], first(n, order, x.shape), err_msg=kind)
    assert gathered


@pytest.mark.skip_in("disable_jit", reason="jnp.where of arrays on an Explicit mesh needs jit")
def test_scores_on_all_devices_and_sharded_masks(gpu):
    mesh = make_mesh((4, 2), AxisType.Explicit)
    scores = values("ties", (16, 32), jnp.float32)
    among = np.random.default_rng(0).random(scores.shape) < 0.5
    order = ranking(np.where(among, scores, -np.inf))
    everywhere = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec("data", "model"))
    operand = jax.device_put(scores, everywhere)
    [mask], _ = topk.select([operand], [100], among=[jax.device_put(among, sharded)])
    np.testing.assert_array_equal(mask, first(100, order, scores.shape))


def test_scores_divided_in_a_pass_give_the_same_masks(gpu, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    keys = enumerate(((33_037,), (31, 7), (31, 7), (40, 50)))
    params = {str(i): values("normal", shape, jnp.float32, i) * (i + 1) for i, shape in keys}
    prune = functools.partial(
        jaxprune.prune_params, include=".*", distribution=jaxprune.normalized_pool
    )
    monkeypatch.setattr(operands, "on_gpu", lambda arrays: False)
    _, want = prune(params, 0.7)
    monkeypatch.setattr(operands, "on_gpu", lambda arrays: True)
    _, masks = prune(params, 0.7)
    jax.tree.map(np.testing.assert_array_equal, masks, want)
