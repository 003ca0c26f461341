"""Masks as the programs for a GPU decide them, run on a CPU: those that the CPU decides."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import jaxprune
from helpers import make_mesh, place
from jaxprune._base import sharding

HALF = jaxprune.cubic_schedule(0.5, begin_step=0, end_step=4, every=2)
KINDS = {
    "unstructured": lambda: jaxprune.prune(HALF),
    "bit masks": lambda: jaxprune.prune(HALF, packed=True),
    "bit masks, global": lambda: jaxprune.prune(
        HALF, packed=True, distribution=jaxprune.global_pool
    ),
    # Dropped weights have the best scores.
    "bit masks, small weights": lambda: jaxprune.prune(
        HALF, packed=True, score=lambda params, grads, key: jnp.exp(-jnp.abs(params))
    ),
    "bit masks, some exist": lambda: jaxprune.prune(
        HALF, packed=True, structural={"a": np.arange(60).reshape(12, 5) % 4 > 0}
    ),
    "random": lambda: jaxprune.prune(HALF, score=jaxprune.random_score, packed=True),
    "random, one pool": lambda: jaxprune.prune(
        HALF, score=jaxprune.random_score, distribution=jaxprune.global_pool, ties="hashed"
    ),
    "random growth": lambda: jaxprune.set_(
        0.5, 4, every=2, inner=optax.sgd(0.1), distribution=jaxprune.uniform
    ),
    "rigl": lambda: jaxprune.rigl(
        0.5, 4, every=2, inner=optax.sgd(0.1), distribution=jaxprune.uniform
    ),
    "NM": lambda: jaxprune.prune(HALF, structure=jaxprune.NM(2, 4, axis=0)),
    "NM of 12": lambda: jaxprune.prune(HALF, structure=jaxprune.NM(6, 12, axis=0)),
    "blocks": lambda: jaxprune.prune(HALF, structure=jaxprune.Block((2, 2))),
    "balanced": lambda: jaxprune.prune(HALF, structure=jaxprune.Block((1, 2), balanced=True)),
    "balanced, two rows": lambda: jaxprune.prune(
        HALF, structure=jaxprune.Block((2, 2), balanced=True)
    ),
    "balanced, slices": lambda: jaxprune.prune(
        HALF,
        structure=jaxprune.Block((1, 2), balanced=True),
        distribution=jaxprune.per_slice({"a": 0, "b": 1}),
    ),
}
# "a" and "b" are copied into one array.
SHAPES = {"a": (12, 5), "b": (12, 5), "c": (24, 9), "bias": (5,)}
STACKED = {"a": (2, 12, 5), "b": (12, 2, 5), "bias": (5,)}
# The others take some seconds each.
SHORT = ("bit masks, small weights", "bit masks, some exist", "rigl", "NM", "balanced")


def tree(shapes):
    rng = np.random.default_rng(0)
    return {name: jnp.array(rng.normal(size=shape), "float32") for name, shape in shapes.items()}


SHARDED = {"a": (16, 64), "b": (16, 64), "c": (8, 24), "bias": (8,)}
SPECS = {"a": P("data", "model"), "b": P("model", "data"), "c": P(None, "data"), "bias": P()}


def masks_of(kind, params: Any):
    """The masks after each of some steps."""
    tx, history = KINDS[kind](), []
    state = tx.init(params)
    step = jax.jit(tx.update)
    for i in range(5):
        grads = jax.tree.map(lambda p, i=i: jnp.sin(p + i), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(jax.device_get(jaxprune.get_masks(state)))
    jaxprune.check(params, state)
    return history


def assert_as_on_cpu(kind, params, monkeypatch):
    """Compares the masks of programs for a GPU with those of programs for a CPU."""
    want = masks_of(kind, params)
    monkeypatch.setattr(sharding, "_device_kind", lambda arrays: "NVIDIA H100 80GB HBM3")
    jax.clear_caches()
    try:
        masks = masks_of(kind, params)
    finally:
        jax.clear_caches()
    jax.tree.map(np.testing.assert_array_equal, masks, want)


@pytest.mark.parametrize(
    "kind",
    [kind if kind in SHORT else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_masks_are_those_of_the_cpu(kind, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert_as_on_cpu(kind, tree(STACKED if "slices" in kind else SHAPES), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, axes",
    [
        ("bit masks", "Explicit"),
        ("bit masks, global", "Auto"),
        ("balanced", "Auto"),
        ("balanced", "Explicit"),
        ("balanced, two rows", "Auto"),  # the rows of "c" can't be split over eight devices
        ("NM", "Auto"),
        ("random", "Auto"),
        ("random", "Explicit"),
        ("random, one pool", "Explicit"),
        ("random growth", "Auto"),
    ],
)
def test_masks_on_many_devices_are_those_of_cpus(kind, axes, monkeypatch):
    mesh = make_mesh((4, 2), getattr(AxisType, axes))
    assert_as_on_cpu(kind, place(tree(SHARDED), mesh, SPECS), monkeypatch)
