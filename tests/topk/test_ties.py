"""`ties="hashed"` chooses among equal scores without a preference for any place."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

import jaxprune
from jaxprune._topk.ranks import Members, _shuffled, cuts_in_members


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16), ids=lambda d: d.__name__)
@given(
    size=st.sampled_from((0, 1, 7, 1000, 2500)),  # each example is compiled
    seed=st.integers(0, 99),
    levels=st.sampled_from((1, 2, 50)),
)
def test_hashed_ties_are_exact_and_only_ties_differ(dtype, size, seed, levels):
    scores = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    n_keep = size * 2 // 5
    mask = np.asarray(jaxprune.topk_mask(jnp.asarray(scores, dtype), n_keep, ties="hashed"))
    assert mask.sum() == n_keep
    assert n_keep in (0, size) or scores[mask].min() >= scores[~mask].max()


def test_hashed_ties_favour_no_end_of_the_array():
    ones = jnp.ones((512, 512))
    by_index = np.asarray(jaxprune.topk_mask(ones, ones.size // 2))
    hashed = np.asarray(jaxprune.topk_mask(ones, ones.size // 2, ties="hashed"))
    assert by_index[:256].all()
    assert not by_index[256:].any()
    for part in (hashed[:256], hashed[:, :256], hashed[::2], hashed[:, ::2]):
        assert abs(part.mean() - 0.5) < 0.005  # 4 standard deviations of a fair coin
    again = jaxprune.topk_masks([ones, ones], ones.size, pool="global", ties="hashed")
    assert abs(np.asarray(again[0]).mean() - 0.5) < 0.005
    params = {"w": ones.astype(jnp.bfloat16), "bias": jnp.ones(3)}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), ties="hashed")
    _, state = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(jaxprune.get_masks(state)["w"], hashed)


def test_no_two_ranks_are_shuffled_to_one_number():
    # Of so many random ranks, some would meet if a step of the shuffle were not invertible.
    drawn = np.random.default_rng(0).integers(0, 2**31, 2**18, dtype=np.uint32)
    ranks = np.unique(np.append(drawn, np.uint32(0)))
    numbers = np.asarray(_shuffled(jnp.asarray(ranks)))
    assert np.unique(numbers).size == ranks.size
    assert numbers[0] == 0


def test_a_cut_above_or_below_a_member_is_at_its_end():
    # Two members of 5 and 3 entries in a pool of many: their ranks in the pool are 11 to 15 and 1
    # to 3. An entry is kept if its rank in its member is higher than the number.
    members = Members(jnp.uint32([10, 0]), jnp.int32([5, 3]))
    for cut, numbers in (
        (1, (0, 0)),
        (3, (0, 2)),
        (11, (0, 3)),
        (13, (2, 3)),
        (2**31 + 20, (5, 3)),
    ):
        assert cuts_in_members(jnp.uint32([cut, cut]), members, "index").tolist() == list(numbers)
