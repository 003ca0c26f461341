"""Counts have 64 bits as soon as 32 bits could not hold one more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base.count_arrays import count_arrays
from jaxprune._base.counting import all_of, any_of, as_counts, sum_along, total
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


LENGTHS = (1, 32, 33, 48)


@pytest.mark.parametrize("n", LENGTHS)
def test_one_flag_among_many_is_seen(n):
    any_or_all = jax.jit(lambda flags: (any_of(flags), all_of(flags)))
    for flags in (np.zeros(n, bool), np.ones(n, bool), np.arange(n) == n // 2, np.arange(n) != 0):
        got = any_or_all(jnp.asarray(flags))
        assert tuple(map(bool, got)) == (flags.any(), flags.all())


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", (np.int32, np.uint32))
def test_sums_of_rows_are_those_of_numpy(n, dtype):
    rows = np.random.default_rng(0).integers(0, 2**26, (3, n)).astype(dtype)
    rows[0] = 0
    got = jax.jit(lambda x: sum_along(x, 1))(jnp.asarray(rows))
    np.testing.assert_array_equal(got, rows.sum(1, dtype=dtype))
    assert got.dtype == dtype


def test_no_reduction_of_a_cpu_is_split():
    flags = jax.ShapeDtypeStruct((48,), jnp.bool_)

    def reduced(flags):
        return any_of(flags), all_of(~flags), sum_along(flags.astype(jnp.int32), 0)

    assert "reduce-window" not in jax.jit(reduced).lower(flags).compile().as_text()
