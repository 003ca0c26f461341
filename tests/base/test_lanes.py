"""Counts in lanes of one sum, as a GPU makes them, against one comparison for each cut."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base import lanes
from jaxprune._base.counting import per_member

COMPARISONS = {
    "below": (operator.lt, operator.ge),
    "above": (operator.gt, operator.gt),
    "reaching": (operator.ge, operator.ge),
}


@pytest.fixture(params=COMPARISONS)
def case(request):
    """What is counted, numbers and rising cuts of two members, and the lanes of the numbers."""
    counted, reaches = COMPARISONS[request.param]
    below = counted is operator.lt
    rng = np.random.default_rng(0)
    numbers = jnp.asarray(rng.integers(0, 20, (2, 3, lanes.LONGEST_ROW)), jnp.uint32)
    cuts = jnp.asarray(np.sort(rng.integers(0, 20, (2, 7)), axis=1), jnp.uint32)
    cut_arrays = [per_member(cuts[:, i], 3) for i in range(7)]
    entries = lanes.lanes_of(numbers, cut_arrays, reaches=reaches, below=below)
    want = np.stack([counted(numbers, cut) for cut in cut_arrays])  # [7, members, rows, row]
    return below, entries, want


def test_rows_are_counted_at_each_cut(case):
    below, entries, want = case
    rows = lanes.rows_at_cuts(lanes.row_sums(entries, in_parts=False), below)
    np.testing.assert_array_equal(rows, want.sum(3))


def test_members_are_counted_whether_in_parts_or_not(case, monkeypatch):
    monkeypatch.setattr(lanes, "_MANY_ROWS", 1)
    monkeypatch.setattr(lanes, "_N_PARTS", 2)
    below, entries, want = case
    sums = lanes.row_sums(entries, in_parts=False)
    in_parts = sums[:1]
    whole = sums[1:, :1]
    for counts, n in zip(
        lanes.count_members([whole, in_parts, in_parts], jnp.uint32),
        (want[:, 1, 0].sum(1), want[:, 0].sum((1, 2)), want[:, 0].sum((1, 2))),
        strict=True,
    ):
        assert [int(x) for x in lanes.at_cuts(counts[0], below)] == n.tolist()


@pytest.mark.parametrize("shape", ((3, 511), (7, 73), (1533,), (3, 7, 73), ()), ids=str)
def test_many_devices_count_one_member(case, shape):
    below, entries, want = case
    flat, want = entries[0].reshape(-1), want[:, 0].reshape(7, -1)
    size = int(np.prod(shape))
    [counts] = lanes.count_on_devices(flat[:size].reshape(1, *shape), jnp.uint32)
    assert [int(x) for x in lanes.at_cuts(counts, below)] == want[:, :size].sum(1).tolist()


def test_one_shard_counts_in_padded_rows(case):
    below, entries, want = case
    flat = entries[0].reshape(1, -1)[:, : 2 * 509]  # no divisor of it is a row
    [counts] = lanes.count_members([lanes.local_row_sums(flat)], jnp.uint32)
    n = want[:, 0].reshape(7, -1)[:, : 2 * 509].sum(1)
    assert [int(x) for x in lanes.at_cuts(counts[0], below)] == n.tolist()


def test_few_long_rows_are_counted_in_parts(case):
    below, entries, want = case
    sums = lanes.row_sums(entries, in_parts=True)
    assert sums.shape == (2, 3 * 511 // 73)
    [counts] = lanes.count_members([sums], jnp.uint32)
    for member in range(2):
        n = want[:, member].sum((1, 2)).tolist()
        assert [int(x) for x in lanes.at_cuts(counts[member], below)] == n


def test_counts_have_the_dtype_of_the_pool():
    is_x64 = jax.config.jax_enable_x64
    with lanes.enable_x64(True):
        sums = jnp.zeros((1, 4), jnp.uint64)
        [counts] = lanes.count_members([sums], jnp.uint64)
    assert counts.dtype == jnp.uint64
    assert jax.config.jax_enable_x64 == is_x64
