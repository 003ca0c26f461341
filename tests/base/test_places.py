"""Numbers of a small array at some places, evenly spaced or not, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base import sharding
from jaxprune._base.places import picked, picked_in_rows, placed

PLACES = ((), (3,), (0, 1, 2), (1, 3, 5), (0, 3, 6), (6, 4, 2), (0, 1, 3), (5, 0), (2, 6))


@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("dtype", (np.int32, np.float32))
def test_numbers_are_read_and_replaced_at_their_places(places, dtype):
    x = np.arange(10, 17, dtype=dtype)
    new = -np.arange(1, len(places) + 1, dtype=dtype)
    want = x.copy()
    want[list(places)] = new
    index = np.array(places, int)
    got = jax.jit(lambda x, new: (picked(x, index), placed(x, index, new)))(
        jnp.asarray(x), jnp.asarray(new)
    )
    np.testing.assert_array_equal(got[0], x[list(places)])
    np.testing.assert_array_equal(got[1], want)
    assert got[0].dtype == got[1].dtype == dtype


@pytest.mark.parametrize("device", ("cpu", "NVIDIA H100 80GB HBM3"))
def test_evenly_spaced_places_need_no_gather_and_no_scatter(device, monkeypatch):
    monkeypatch.setattr(sharding, "_device_kind", lambda arrays: device)
    x, new = jnp.zeros(7), jnp.ones(3)
    program = str(
        jax.make_jaxpr(lambda x, new: (picked(x, [1, 3, 5]), placed(x, [1, 3, 5], new)))(x, new)
    )
    assert "gather" not in program
    assert "scatter" not in program


def test_each_row_has_places_of_its_own():
    x = np.arange(12).reshape(3, 4)
    places = np.array([[0, 3], [1, 1], [3, 2]], np.int32)
    got = jax.jit(picked_in_rows)(jnp.asarray(x), jnp.asarray(places))
    np.testing.assert_array_equal(got, np.take_along_axis(x, places, axis=1))
