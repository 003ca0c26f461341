"""Structures drop whole units; slow oracles find the same ones."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import jaxprune
from combinations import STRUCTURES, make_params, unit_flags
from helpers import assert_says, grads_at, stepper
from jaxprune import NM, Block, Channel
from jaxprune._recipe.distributions import round_half_up
from jaxprune._recipe.pooling import pooled


def pruned(params, sparsity, **options):
    """Params and masks, from one program."""
    return jax.jit(lambda params: jaxprune.prune_params(params, sparsity, **options))(params)


def nm_oracle(scores, n, m, axis):
    moved = np.moveaxis(np.asarray(scores, np.float64), axis, -1)
    mask = np.zeros(moved.shape, bool)
    for row, out in zip(moved.reshape(-1, m), mask.reshape(-1, m), strict=True):
        out[np.argsort(-row, kind="stable")[:n]] = True
    return np.moveaxis(mask, -1, axis)


@given(
    n=st.integers(1, 7),
    m=st.integers(2, 8),
    axis=st.integers(-3, 2),
    seed=st.integers(0, 99),
    ties=st.booleans(),
)
@settings(max_examples=6)  # each example is compiled
def test_nm_keeps_the_best_n_of_every_m(n, m, axis, seed, ties):
    n = min(n, m - 1)
    shape = [2, 3, 2]
    shape[axis] = 2 * m
    w = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    w = np.round(w) if ties else w
    params, masks = pruned({"w": w}, Fraction(m - n, m), structure=NM(n, m, axis))
    np.testing.assert_array_equal(masks["w"], nm_oracle(np.abs(w), n, m, axis))
    np.testing.assert_array_equal(params["w"], np.where(masks["w"], w, 0))


@pytest.mark.parametrize("m", (4, 16))  # compared one by one, or with an array
def test_the_first_of_equal_neighbours_are_kept(m):
    structure, n_keep = NM(m // 2, m, -1), jnp.int32(m // 2)
    scores = np.random.default_rng(m).integers(0, 3, (8, 4 * m)).astype(np.float32)
    mask = structure.keep_best(jnp.asarray(scores), jnp.ones(scores.shape, bool), n_keep)
    np.testing.assert_array_equal(mask, nm_oracle(scores, m // 2, m, -1))
    allowed = jnp.zeros(scores.shape, bool).at[:, 1].set(True)
    assert structure.keep_best(jnp.asarray(scores), allowed, n_keep).sum() == 8


def test_nm_goes_from_m_of_m_to_n_of_m_with_the_schedule():
    params = {"w": make_params()["fc"], "bias": jnp.ones(3)}
    tx = jaxprune.prune(jaxprune.linear_schedule(0.5, 0, 4, 1), structure=NM(2, 4))
    state = tx.init(params)
    kept = []
    for t in range(5):
        _, state, params = stepper(tx)(grads_at(params, t), state, params)
        groups = np.asarray(state.masks["w"]).reshape(4, 4, 12).sum(1)
        assert len(set(groups.ravel().tolist())) == 1
        kept.append(int(groups[0, 0]))
    assert kept == [4, 3, 3, 2, 2]  # half a weight is rounded up to one dropped


def block_oracle(scores, shape, pooling):
    scores = np.asarray(scores, np.float64)
    n_rows, n_cols = (-(-a // b) for a, b in zip(scores.shape, shape, strict=True))
    pool = {"mean": np.mean, "max": np.max}[pooling]
    return np.array(
        [
            [
                pool(
                    scores[
                        i * shape[0] : (i + 1) * shape[0],
                        j * shape[1] : (j + 1) * shape[1],
                    ]
                )
                for j in range(n_cols)
            ]
            for i in range(n_rows)
        ]
    )


@pytest.mark.parametrize("pooling", ("mean", "max"))
@pytest.mark.parametrize("block", ((1, 4), (3, 2), (5, 5), (16, 16)), ids=str)
@pytest.mark.parametrize("size", ((12, 8), (7, 13)), ids=str)
def test_blocks_are_scored_by_the_weights_they_have(size, block, pooling):
    w = np.random.default_rng(0).integers(-8, 9, size=size).astype(np.float32)
    units = Block(block, pooling).unit_scores(jnp.abs(jnp.asarray(w)))
    np.testing.assert_allclose(units, block_oracle(np.abs(w), block, pooling), rtol=1e-6)
    assert Block(block).n_units(size) == units.size


def sum_in_halves(values):
    """Each half of the values from its first one on, then both, then the last of an odd number."""
    half = len(values) // 2
    sums = [np.float32(0), np.float32(0)]
    for i in range(half):
        sums = [sums[0] + values[i], sums[1] + values[half + i]]
    return sums[0] + sums[1] + values[-1] if len(values) % 2 else sums[0] + sums[1]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the order is that of CPUs")
@pytest.mark.parametrize("length", (2, 3, 7, 16, 37))
@pytest.mark.parametrize("axis", (0, 1))
def test_the_weights_of_a_block_are_added_in_a_fixed_order(axis, length):
    w = np.random.default_rng(length).normal(size=(111, 37)).astype(np.float32)
    sums = jax.jit(lambda w: pooled(w, axis, length, "mean"))(jnp.asarray(w))
    of_first, first = np.moveaxis(np.asarray(sums), axis, -1)[0], np.moveaxis(w, axis, -1)[0]
    first = np.pad(first, (0, -len(first) % length))
    assert of_first.tolist() == [sum_in_halves(block) for block in first.reshape(-1, length)]


@pytest.mark.parametrize(
    "size, sparsity",
    [
        ((20, 48), 0.25),
        pytest.param((20, 48), 0.5, marks=pytest.mark.slow),
        pytest.param((20, 48), 0.9, marks=pytest.mark.slow),
        pytest.param((16, 40), 0.25, marks=pytest.mark.slow),
        ((16, 40), 0.5),
        ((16, 40), 0.9),
    ],
    ids=str,
)
def test_balanced_blocks_keep_as_many_in_every_column(size, sparsity):
    w = np.random.default_rng(1).normal(size=size).astype(np.float32)
    structure = Block((1, 16), balanced=True)
    _, masks = pruned({"w": w}, sparsity, structure=structure)
    units = unit_flags(structure, masks["w"])
    scores = block_oracle(np.abs(w), (1, 16), "mean")
    n_drop = round_half_up(Fraction(str(sparsity)) * size[0])
    for j in range(units.shape[1]):
        assert np.sum(~units[:, j]) == n_drop
        assert set(np.argsort(scores[:, j])[:n_drop]) == set(np.flatnonzero(~units[:, j]))


@pytest.mark.parametrize("norm", (1, 2))
@pytest.mark.parametrize("axis", (-1, 0, 1))
def test_channels_of_the_smallest_norm_are_dropped(axis, norm):
    w = np.random.default_rng(2).normal(size=(6, 5, 8)).astype(np.float32)
    _, masks = pruned({"w": w}, 0.4, structure=Channel(axis, norm))
    others = tuple(i for i in range(3) if i != axis % 3)
    norms = (np.abs(w.astype(np.float64)) ** norm).sum(others)
    n_drop = round_half_up(Fraction(2, 5) * w.shape[axis])
    dropped = set(np.argsort(norms)[:n_drop].tolist())
    for i in range(w.shape[axis]):
        assert np.all(np.take(np.asarray(masks["w"]), i, axis) == (i not in dropped))


@pytest.mark.parametrize(
    "dtype", (jnp.bfloat16, jnp.float16, jnp.float32), ids=lambda d: d.__name__
)
@pytest.mark.parametrize("structure", ("block", "channel", "2:4", "balanced"))
def test_structures_work_with_every_float_dtype(structure, dtype):
    params = {"w": make_params(dtype=dtype)["fc"], "bias": jnp.ones(3, dtype)}
    params, masks = pruned(params, 0.5, structure=STRUCTURES[structure])
    assert params["w"].dtype == dtype
    assert np.sum(~np.asarray(masks["w"])) == 96
    np.testing.assert_array_equal(np.asarray(params["w"]) != 0, masks["w"])


# --- one error about many leaves


def many(n, *shape):
    return {f"layer{i}": {"kernel": jnp.ones(shape), "bias": jnp.ones(4)} for i in range(n)}


def test_a_sparsity_that_no_group_can_have_is_said_once():
    with pytest.raises(ValueError, match="layer") as error:
        jaxprune.plan(many(1, 4, 4), 0.75, structure=NM(2, 4))
    assert_says(str(error.value), "layer0/kernel: ", "a final sparsity of 0.5", "overrides={")
    for n in (2, 20):
        with pytest.raises(ValueError, match="leaves") as error:
            jaxprune.plan(many(n, 4, 4), 0.75, structure=NM(2, 4))
        text = str(error.value)
        assert_says(text, f"all {n} leaves that are pruned: ", "NM(n=2, m=4, axis=-2) drops 0.5")
        assert_says(text, "the final sparsity is 0.75", "Use a final sparsity of 0.5.")
        assert "layer" not in text


def test_it_names_the_leaves_where_others_have_no_problem():
    tree = many(3, 4, 4) | {"head": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="layer0/kernel, layer1/kernel, layer2/kernel: ") as error:
        jaxprune.plan(tree, 0.75, structure={"layer.*": NM(2, 4)})
    assert_says(str(error.value), "overrides={'layer0/kernel': 0.5, 'layer1/kernel': 0.5, ")


def test_at_most_eight_rules_are_suggested():
    with pytest.raises(ValueError, match="multiple of 3") as error:
        jaxprune.plan(many(12, 4, 4), 1 / 3, structure=NM(2, 3))
    text = str(error.value)
    assert_says(text, "and 4 more: ", "So for the other 4 leaves; one regex may match them all.")
    assert len(error.value.arguments["exclude"]) == len(error.value.arguments["structure"]) == 8


def test_blocks_at_the_edge_have_the_largest_of_their_own_scores_below_zero():
    scores = -np.arange(1.0, 16.0, dtype=np.float32).reshape(3, 5)
    units = Block((2, 2), "max").unit_scores(jnp.asarray(scores))
    np.testing.assert_array_equal(units, block_oracle(scores, (2, 2), "max"))


@pytest.mark.parametrize("shape", ((0, 4), (4, 0)))
@pytest.mark.parametrize("structure", (Channel(), Channel(0), Block((2, 2))))
def test_a_leaf_without_weights_is_updated_beside_others(structure, shape):
    params = {"w": jnp.arange(24.0).reshape(4, 6), "empty": jnp.ones(shape), "bias": jnp.ones(6)}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), structure=structure)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    assert jnp.sum(params["w"] == 0) == 12
    assert params["empty"].shape == shape
    jaxprune.check(params, state, done=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "structure, units",
    [
        (Channel(-1), lambda m: m.any((0, 1))),
        (Channel(1), lambda m: m.any((0, 2))),
        (
            Block((2, 3)),
            lambda m: np.array([[[x.any() for x in row] for row in cut(k)] for k in m]),
        ),
        (Block((1, 20)), lambda m: m.any(2, keepdims=True)),
    ],
)
def test_a_unit_may_be_kept_if_any_of_its_weights_is(structure, units, seed):
    mask = np.random.default_rng(seed).random((2, 5, 7)) < 0.06
    want = units(mask)
    for dtype in (bool, np.uint8):
        got = np.asarray(structure.unit_mask(jnp.asarray((3 * mask).astype(dtype))))
        np.testing.assert_array_equal(got, want)


def cut(matrix):
    """The blocks of 2 x 3 of a matrix, smaller ones at its edges."""
    return [[matrix[i : i + 2, j : j + 3] for j in range(0, 7, 3)] for i in range(0, 5, 2)]
