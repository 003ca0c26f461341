"""Counts have 64 bits as soon as 32 bits could not hold one more."""

import jax
import jax.numpy as jnp
import pytest

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
