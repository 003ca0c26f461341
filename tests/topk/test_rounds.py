"""Many leaves on a CPU are copied in rounds; masks and thresholds are those of one search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._topk import rounds
from jaxprune._topk.topk import select
from topk_oracle import first, ranking, values

# Classes of equal leaves, one of which has too few for rounds; a leaf of its own, an empty one.
SHAPES = [(7, 5)] * 5 + [(1031,)] * 4 + [(3, 4)] * 3 + [(9, 9), (0, 3)] + [()] * 2 + [(7, 5)] * 2
DTYPES = [jnp.bfloat16 if shape == (3, 4) else jnp.float32 for shape in SHAPES]


@pytest.fixture
def in_rounds(monkeypatch):
    """A function that selects in rounds of so many bytes, or at once if that is None."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    plan, plans = rounds._planned, []
    monkeypatch.setattr(rounds, "_planned", lambda leaves: plans.append(plan(leaves)) or plans[-1])
    monkeypatch.setattr(rounds, "_SLOT_BYTES", 300)  # two leaves of (7, 5), six of (3, 4)

    def selected(n_bytes, operands, n_keep, **options):
        monkeypatch.setattr(rounds, "_ROUND_BYTES", 2**30 if n_bytes is None else n_bytes)
        score = lambda x: jnp.abs(x)  # a new one, so that nothing compiled is used again
        result = jax.jit(lambda *args: select(*args, score=score, **options))(operands, n_keep)
        assert (plans.pop() is None) == (n_bytes is None)
        return result

    return selected


def leaves(kind):
    return [values(kind, *spec, key=i) for i, spec in enumerate(zip(SHAPES, DTYPES, strict=True))]


@pytest.mark.parametrize("ties", ("index", "hashed"))
@pytest.mark.parametrize("kind", ("ties", "wild"))
def test_masks_and_thresholds_are_those_of_one_search(kind, ties, in_rounds):
    operands = leaves(kind)
    order = np.random.default_rng(0).permutation(len(SHAPES))
    sizes = np.array([x.size for x in operands])
    n_keep = np.empty_like(sizes)
    n_keep[order] = sizes * (np.arange(len(SHAPES)) % 5) // 4
    among = [np.arange(x.size).reshape(x.shape) % 5 != 0 for x in operands]
    start = np.linspace(0, 2, len(SHAPES), dtype=np.float32)
    options = {"ties": ties, "pool_of": tuple(order.tolist()), "among": among, "start": start}
    masks, thresholds = in_rounds(5000, operands, jnp.asarray(n_keep), **options)
    want_masks, want_thresholds = in_rounds(None, operands, jnp.asarray(n_keep), **options)
    for mask, want in zip(masks, want_masks, strict=True):
        np.testing.assert_array_equal(mask, want)
    np.testing.assert_array_equal(thresholds, want_thresholds)


def test_each_leaf_keeps_its_largest(in_rounds):
    operands = leaves("ties")
    n_keep = jnp.array([min(i, x.size) for i, x in enumerate(operands)])
    masks, _ = in_rounds(5000, operands, n_keep)
    for mask, x, n in zip(masks, operands, n_keep.tolist(), strict=True):
        np.testing.assert_array_equal(mask, first(n, ranking(np.abs(x)), x.shape))


def test_rounds_under_vmap(in_rounds):
    operands = [jnp.stack([x, -2 * x[::-1] if x.ndim else x]) for x in leaves("normal")]
    n_keep = jnp.array([x[0].size // 2 for x in operands])
    n_keep = jnp.stack([n_keep, n_keep // 2])
    mapped = lambda n_bytes: jax.vmap(lambda x, n: in_rounds(n_bytes, x, n)[0], (0, 0))(
        operands, n_keep
    )
    for mask, want in zip(mapped(5000), mapped(None), strict=True):
        np.testing.assert_array_equal(mask, want)


@pytest.mark.parametrize("kind", ("ties", "wild"))
def test_masks_are_the_same_if_finished_stacks_are_not_read(kind, in_rounds, monkeypatch):
    operands = leaves(kind)
    n_keep = jnp.array([i * x.size // len(SHAPES) for i, x in enumerate(operands)])
    want = in_rounds(None, operands, n_keep)
    skips, may_skip = [], rounds._may_skip
    monkeypatch.setattr(rounds, "_LONG_SEARCH", 1)
    monkeypatch.setattr(
        rounds, "_may_skip", lambda *args: skips.append(may_skip(*args)) or skips[0]
    )
    got = in_rounds(None, operands, n_keep)
    assert skips == [True]
    jax.tree.map(np.testing.assert_array_equal, got, want)


def planned(n_leaves, monkeypatch, slot_bytes=2**14, n_pools=None, **options):
    """The rounds of equal leaves of 16 KiB, planned as in `select`."""
    plan, plans = rounds._planned, []
    operands = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * n_leaves
    n_keep = jax.ShapeDtypeStruct((n_pools or n_leaves,), jnp.int32)
    score = lambda x: jnp.abs(x)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_ROUND_BYTES", 2**16)  # four leaves
        patch.setattr(rounds, "_SLOT_BYTES", slot_bytes)
        patch.setattr(rounds, "_planned", lambda leaves: plans.append(plan(leaves)) or plans[-1])
        jax.eval_shape(lambda *args: select(*args, score=score, **options), operands, n_keep)
    return plans[0]


@pytest.mark.parametrize("n_leaves", (2, 6, 16, 31, 100))
@pytest.mark.parametrize("in_slot", (1, 2))
def test_rounds_copy_every_leaf_and_few_of_them_twice(n_leaves, in_slot, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    plan = planned(n_leaves, monkeypatch, in_slot * 2**14)
    if n_leaves < 8:
        assert plan is None
        return
    in_rounds = plan.leaves()
    assert set(in_rounds.ravel().tolist()) == set(range(n_leaves))
    assert in_rounds.size <= 1.1 * n_leaves + 2 * in_slot
    assert in_rounds.shape == (plan.n, len(plan.slots) * in_slot)
    assert in_rounds.shape[1] <= 4
    assert all(slot.shape == (plan.n, in_slot) for slot in plan.slots)


def test_more_rounds_keep_the_number_of_slots_small(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert len(planned(100, monkeypatch).slots) == 4
    monkeypatch.setattr(rounds, "_MOST_SLOTS", 2)
    plan = planned(100, monkeypatch)
    assert len(plan.slots) == 2
    assert set(plan.leaves().ravel().tolist()) == set(range(100))


def test_rounds_are_for_leaves_that_are_a_pool_each_on_one_cpu(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert planned(32, monkeypatch) is None
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert planned(32, monkeypatch) is not None
    assert planned(32, monkeypatch, pool_of=(0,) * 32, n_pools=1) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert planned(32, monkeypatch) is None


@pytest.mark.skip_in("disable_jit", reason="the rounds are not a loop")
def test_rounds_need_the_memory_of_one_copy(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(rounds, "_SLOT_BYTES", 2**14)
    operands = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 32
    n_keep = jax.ShapeDtypeStruct((32,), jnp.int32)

    def temp_bytes(n_bytes):
        monkeypatch.setattr(rounds, "_ROUND_BYTES", n_bytes)
        score = lambda x: jnp.abs(x)
        program = jax.jit(lambda *args: select(*args, score=score)[0]).lower(operands, n_keep)
        return program.compile().memory_analysis().temp_size_in_bytes

    n_bytes = 4 * 32 * 64 * 64
    n_mask_bytes = n_bytes // 4
    assert temp_bytes(2**30) >= n_bytes
    assert temp_bytes(2**16) < n_mask_bytes + 2 * 2**16
