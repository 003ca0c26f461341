"""Counts of several arrays at once: as those of each array alone, on one device or many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jaxprune._base import count_arrays as module
from jaxprune._base.count_arrays import count_arrays

SHAPES = [(3, 5)] * 9 + [(), (0, 4), (2, 1031), (3, 5), (5, 3), (2, 1031), ()]


def arrays(shapes):
    rng = np.random.default_rng(0)
    return [np.array(rng.random(shape) < rng.random()) for shape in shapes]


@pytest.mark.parametrize("n", (0, 1, 2, len(SHAPES)))
def test_each_array_has_its_own_count(n):
    flags = arrays(SHAPES[:n])
    counts = count_arrays([jnp.asarray(flag) for flag in flags], jnp.int32)
    assert counts.tolist() == [flag.sum() for flag in flags]
    assert counts.dtype == jnp.int32


def _zeros_of_floats(x):
    return (x == 0) & (x.dtype == np.float32)


def test_small_arrays_of_a_gpu_are_joined(monkeypatch):
    monkeypatch.setattr(module, "on_gpu", lambda arrays: True)
    monkeypatch.setattr(module, "_MOST_JOINED", 2000)
    monkeypatch.setattr(module, "_JOINED_AT_ONCE", 2)
    flags = arrays([*SHAPES, (3, 5), (3, 5)])
    kinds = [np.float32, np.int8] * 10
    numbers = [jnp.asarray(f, kind) for f, kind in zip(flags, kinds, strict=False)]
    padded = [jnp.asarray(f, np.float32) for f in arrays([(1, 1031)] * 3)]  # a prime number
    for operands in (numbers, numbers[:9:2], padded):
        counts = count_arrays(operands, jnp.int32, True, _zeros_of_floats)
        assert counts.tolist() == [int(_zeros_of_floats(x).sum()) for x in operands]


@functools.cache
def mesh():
    return jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.skip_in("disable_jit", reason="nothing is compiled")
def test_arrays_of_one_shape_may_be_sharded_in_different_ways():
    specs = P("d", "m"), P("m", "d"), P(), P(None, ("d", "m"))
    flags = arrays([(16, 64)] * len(specs))
    placed = [
        jax.device_put(flag, NamedSharding(mesh(), spec))
        for flag, spec in zip(flags, specs, strict=True)
    ]
    count = jax.jit(lambda flags: count_arrays(flags, jnp.int32))
    assert count(placed).tolist() == [flag.sum() for flag in flags]
    text = count.lower(placed).compile().as_text()
    assert "all-reduce" in text
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {kind}(" not in text
