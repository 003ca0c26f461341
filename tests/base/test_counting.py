"""Counts have 64 bits as soon as 32 bits could not hold one more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base.count_arrays import count_arrays
from jaxprune._base.counting import as_counts, total
from jaxprune._state.progress import count_dtype


@pytest.mark.parametrize("n, dtype", ((2**31 - 2, jnp.int32), (2**31 - 1, jnp.int64)))
def test_counts_of_so_many_have_this_dtype(n, dtype):
    assert as_counts([1, n]).dtype == dtype
    assert count_dtype(n) == dtype
    flags = jax.ShapeDtypeStruct((n,), jnp.bool_)
    assert jax.eval_shape(total, flags).dtype == dtype


def test_a_byte_counts_up_to_eight():
    counts = jax.ShapeDtypeStruct((2**28,), jnp.uint8)
    assert jax.eval_shape(total, counts).dtype == jnp.int64
    assert total(jnp.full((3,), 8, jnp.uint8)) == 24


@pytest.mark.parametrize("n_devices", (1, 8))
def test_every_array_has_its_count_whatever_the_others_are(n_devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: n_devices)
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (0, 4), (2, 2), (3, 5), (), (3, 5), (2, 2), (0, 4), *[(3, 5)] * 6]
    flags = [rng.random(shape) < 0.3 for shape in shapes]
    counts = count_arrays(list(map(jnp.asarray, flags)), jnp.int32)
    assert counts.tolist() == [int(np.sum(flag)) for flag in flags]
