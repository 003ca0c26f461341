"""Leaves on many devices that share a pool: XLA must not share what they are compared with."""

import re

import jax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from helpers import make_mesh
from jaxprune import topk_masks


@pytest.mark.parametrize("pool, are_own", (("global", True), ("leaf", False)))
def test_each_leaf_is_compared_with_cuts_of_its_own(pool, are_own):
    # If both leaves were compared with the same array of cuts, the compiler for TPUs would shard
    # this like one of them, and gather the other one in every pass.
    mesh = make_mesh((2, 2), AxisType.Auto)
    specs = P("data", "model"), P("model", "data")
    leaves = [
        jax.ShapeDtypeStruct((8, 8), "float32", sharding=NamedSharding(mesh, s)) for s in specs
    ]
    n_keep = 7 if pool == "global" else [3, 4]
    program = jax.jit(lambda leaves: topk_masks(leaves, n_keep, pool)).lower(leaves).as_text()
    in_loops = re.findall(r"optimization_barrier (%[\w#]+), \1\b", program)
    assert bool(in_loops) == are_own
