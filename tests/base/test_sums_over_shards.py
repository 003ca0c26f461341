"""Sums over shards."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from jaxprune._base.sharding import summed_in_shards


def test_every_process_traces_the_same_sum_over_shards():
    """The axes were once visited in the order of a set of strings, which differs by process."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    axes = ("a", "b", "c")
    devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
    mesh = Mesh(devices, axes, axis_types=(AxisType.Explicit,) * 3)
    arrays = [
        jax.ShapeDtypeStruct((8, 8), jnp.uint32, sharding=NamedSharding(mesh, spec))
        for spec in (P(axes), P())
    ]

    def add_up(arrays, once):
        return sum(once(i, jnp.sum(x)) for i, x in enumerate(arrays))

    text = str(jax.make_jaxpr(lambda *xs: summed_in_shards(add_up, xs))(*arrays))
    assert re.findall(r"axis_index\[axis_name=(\w+)\]", text) == list(axes)
