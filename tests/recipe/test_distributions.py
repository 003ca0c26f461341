"""Distributions give every pool its exact count; slow oracles find the same densities."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, strategies as st

import jaxprune
from combinations import DISTRIBUTIONS, SHAPES, make_params
from jaxprune._recipe.pools import LeafShape, largest_remainder, round_half_up


def erk_oracle(shapes, sparsity, kernel=True):
    """Densities by repeated removal of the densest leaf, in floating point."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {
        n: (sum(s) if kernel else sum(s[-2:])) / math.prod(s if kernel else s[-2:])
        for n, s in shapes.items()
    }
    dense = set()
    while True:
        keep = (1 - sparsity) * sum(sizes.values()) - sum(sizes[n] for n in dense)
        scale = keep / sum(raw[n] * sizes[n] for n in shapes if n not in dense)
        over = {n for n in shapes if n not in dense and scale * raw[n] > 1}
        if not over:
            return {n: 1.0 if n in dense else scale * raw[n] for n in shapes}
        dense.add(max(over, key=raw.__getitem__))


@given(
    shapes=st.lists(
        st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6
    ),
    percent=st.integers(0, 99),
    kernel=st.booleans(),
)
@example([(3, 4), (40, 40), (30, 40), (20, 40)], 50, True)  # the first leaf stays dense
def test_erk_densities_and_the_exact_total(shapes, percent, kernel):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    target = Fraction(percent, 100)
    leaves = [LeafShape(n, s, math.prod(s), (target,)) for n, s in named.items()]
    pools = (jaxprune.erk if kernel else jaxprune.er).assign(leaves, Fraction(0))
    total = sum(leaf.n_units for leaf in leaves)
    assert pools.n_drop.sum() == round_half_up(target * total)
    want = erk_oracle(named, percent / 100, kernel)
    for leaf, n_drop in zip(leaves, pools.n_drop[0], strict=True):
        assert abs(n_drop - leaf.n_units * (1 - want[leaf.path])) < 1.5
        assert 0 <= n_drop <= leaf.n_units


@given(seed=st.integers(0, 999), floor=st.sampled_from((0, 5, 20)))
@example(seed=821, floor=0)  # rounding each fire by itself would give a leaf back a weight
@example(seed=305, floor=20)
def test_budgets_never_fall_while_the_schedule_rises(seed, floor):
    rng = np.random.default_rng(seed)
    targets = tuple(Fraction(int(t), 1000) for t in sorted(rng.integers(0, 990, 12)))
    shapes = [tuple(rng.integers(1, 12, rng.integers(2, 4)).tolist()) for _ in range(7)]
    leaves = [LeafShape(str(i), s, math.prod(s), targets) for i, s in enumerate(shapes)]
    pools = jaxprune.erk.assign(leaves, Fraction(floor, 100))
    assert np.all(np.diff(pools.n_drop, axis=0) >= 0)
    sizes = np.array([leaf.n_units for leaf in leaves])
    assert np.all(100 * (sizes - pools.n_drop) >= sizes * floor)
    if not floor:
        wanted = [round_half_up(t * int(sizes.sum())) for t in targets]
        assert pools.n_drop.sum(1).tolist() == wanted


def resnet50():
    """(weights, positions they are applied at) of every convolution and the output layer."""
    layers = [((7, 7, 3, 64), 112**2)]
    n_in, side = 64, 56
    for stage, (width, n_blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(n_blocks):
            if block == 0:
                before, side = side, side if stage == 0 else side // 2
                layers.append(((1, 1, n_in, 4 * width), side**2))
            layers.append(((1, 1, n_in, width), (before if block == 0 else side) ** 2))
            layers.append(((3, 3, width, width), side**2))
            layers.append(((1, 1, width, 4 * width), side**2))
            n_in = 4 * width
    return [*layers, ((2048, 1000), 1)]


def test_erk_of_resnet50_costs_what_the_paper_says():
    # Evci et al. 2020, table of ImageNet results: the inference cost of ResNet-50 with ERK is 0.42
    # and 0.24 of the dense network's at 80 and 90%.
    layers = resnet50()
    assert sum(math.prod(shape) for shape, _ in layers) == 25_502_912
    for target, figure in ((Fraction(8, 10), 0.42), (Fraction(9, 10), 0.24)):
        leaves = [
            LeafShape(str(i), shape, math.prod(shape), (target,))
            for i, (shape, _) in enumerate(layers)
        ]
        n_drop = jaxprune.erk.assign(leaves, Fraction(0)).n_drop[0]
        places = np.array([n for _, n in layers])
        sizes = np.array([leaf.n_units for leaf in leaves])
        cost = ((sizes - n_drop) * places).sum() / (sizes * places).sum()
        assert abs(cost - figure) < 0.01


def pruned(params, *args, **options):
    """Params and masks, from one program."""
    return jax.jit(lambda params: jaxprune.prune_params(params, *args, **options))(params)


def test_a_global_pool_is_one_ranking():
    params = make_params()
    _, masks = pruned(params, 0.7, distribution=jaxprune.global_pool)
    flat = np.concatenate([np.abs(np.asarray(params[n])).ravel() for n in sorted(SHAPES)])
    kept = np.concatenate([np.asarray(masks[n]).ravel() for n in sorted(SHAPES)])
    n_drop = round_half_up(Fraction(7, 10) * flat.size)
    assert set(np.argsort(flat)[:n_drop]) == set(np.flatnonzero(~kept))


@pytest.mark.filterwarnings("ignore:.*all weights are dropped")  # where nothing is compiled
def test_a_normalized_pool_ranks_by_scores_over_their_root_mean_square():
    params = make_params()
    params["fc"] = params["fc"] * 1000  # a scale that must not matter
    _, masks = pruned(params, 0.7, distribution=jaxprune.normalized_pool)
    _, same = pruned(make_params(), 0.7, distribution=jaxprune.normalized_pool)
    differ = sum(np.sum(np.asarray(masks[n]) != np.asarray(same[n])) for n in SHAPES)
    assert differ <= 2  # a division may round the other way
    _, raw = pruned(params, 0.7, distribution=jaxprune.global_pool)
    assert np.all(raw["fc"]) or np.sum(~np.asarray(raw["fc"])) < np.sum(~np.asarray(masks["fc"]))


def largest_remainder_oracle(parts, total, least):
    counts = [max(math.floor(part), low) for part, low in zip(parts, least, strict=True)]
    by_remainder = sorted(range(len(parts)), key=lambda i: counts[i] - parts[i])
    missing = min(total, sum(map(math.ceil, parts))) - sum(counts)
    for i in by_remainder:
        if missing > 0 and counts[i] < math.ceil(parts[i]):
            counts[i], missing = counts[i] + 1, missing - 1
    for i in reversed(by_remainder):
        while missing < 0 and counts[i] > least[i]:
            counts[i], missing = counts[i] - 1, missing + 1
    return counts


@given(st.data())
def test_parts_are_rounded_as_one_by_one(data):
    parts = data.draw(st.lists(st.fractions(0, 9, max_denominator=6), min_size=1, max_size=4))
    part_of = data.draw(st.lists(st.integers(0, len(parts) - 1), min_size=1, max_size=9))
    least = [data.draw(st.integers(0, math.ceil(parts[i]) + 1)) for i in part_of]
    total = data.draw(st.integers(0, 80))
    expected = largest_remainder_oracle([parts[i] for i in part_of], total, least)
    assert largest_remainder(parts, total, least, part_of).tolist() == expected
    every = [parts[i] for i in part_of]
    assert largest_remainder(every, total, least).tolist() == expected


@pytest.mark.parametrize("reduced", (np.sum, np.mean), ids=("norm", "root mean square"))
def test_a_scaled_pool_ranks_by_scores_over_the_scale_of_their_leaf(reduced):
    # The leaves have unlike sizes, so that the two rankings differ.
    distribution = jaxprune.l2_pool if reduced is np.sum else jaxprune.normalized_pool
    params = make_params()
    params["fc"] = params["fc"] * 1000  # a scale that must not matter
    _, masks = pruned(params, 0.7, distribution=distribution)
    divided = []
    for name in sorted(SHAPES):
        w = np.asarray(params[name], np.float64).ravel()
        divided.append(np.abs(w) / np.sqrt(reduced(w**2)))
    flat = np.concatenate(divided)
    kept = np.concatenate([np.asarray(masks[n]).ravel() for n in sorted(SHAPES)])
    expected = np.ones(flat.size, bool)
    expected[np.argsort(flat)[: round_half_up(Fraction(7, 10) * flat.size)]] = False
    assert np.sum(~kept) == np.sum(~expected)
    assert np.sum(kept != expected) <= 2  # a division may round the other way


@pytest.mark.filterwarnings("ignore:.*all weights are dropped")  # where nothing is compiled
def test_a_leaf_of_zeros_loses_its_weights_first_whatever_the_norm():
    params = {"a": jnp.zeros((4, 4)), "b": jnp.ones((4, 4)), "c": jnp.ones((4,))}
    for distribution in (jaxprune.l2_pool, jaxprune.normalized_pool):
        _, masks = pruned(params, 0.5, distribution=distribution)
        assert not masks["a"].any()
        assert masks["b"].all()


SCALED = pytest.mark.parametrize("distribution", (jaxprune.l2_pool, jaxprune.normalized_pool))


@SCALED
@pytest.mark.parametrize("exponent", (-80, -64, 64, 80, 120))
def test_the_scale_of_a_leaf_does_not_matter_however_small_or_large_it_is(distribution, exponent):
    params = make_params()
    _, expected = pruned(params, 0.7, distribution=distribution)
    params["fc"] = params["fc"] * jnp.float32(2.0**exponent)  # rounds nothing
    _, masks = pruned(params, 0.7, distribution=distribution)
    for name in SHAPES:
        np.testing.assert_array_equal(masks[name], expected[name])


@pytest.mark.skip_in("debug_nans", reason="some params are NaN")
@SCALED
@pytest.mark.parametrize("value", (jnp.nan, jnp.inf, -jnp.inf))
def test_a_weight_that_is_not_finite_ranks_first_and_changes_no_scale(distribution, value):
    params = make_params()
    params["fc"] = params["fc"].at[0, 0].set(0)
    _, expected = pruned(params, 0.7, distribution=distribution)
    params["fc"] = params["fc"].at[0, 0].set(value)
    _, masks = pruned(params, 0.7, distribution=distribution)
    assert masks["fc"][0, 0]
    differ = sum(int(np.sum(masks[name] != expected[name])) for name in SHAPES)
    assert differ == 2  # it takes the place of the smallest weight that was kept


def test_a_leaf_is_never_below_its_least_density():
    params = make_params()
    params["fc"] = params["fc"] / 1000  # would lose everything
    distribution = jaxprune.min_density(0.25, jaxprune.global_pool)
    _, masks = pruned(params, 0.7, distribution=distribution)
    kept = np.asarray(masks["fc"])
    assert kept.sum() == 48
    best = np.argsort(-np.abs(np.asarray(params["fc"])).ravel())[:48]
    assert set(np.flatnonzero(kept)) == set(best)
    total = sum(math.prod(s) for s in SHAPES.values())
    n_zero = sum(np.sum(~np.asarray(masks[n])) for n in SHAPES)
    assert n_zero == round_half_up(Fraction(7, 10) * total)


@pytest.mark.parametrize(
    "distribution", (jaxprune.uniform, jaxprune.erk, jaxprune.global_pool), ids=str
)
def test_a_least_density_that_is_no_whole_number_is_rounded_up(distribution):
    params = {"a": jnp.arange(1.0, 8.0)[:, None], "b": jnp.arange(8.0, 19.0)[:, None]}
    distribution = jaxprune.min_density(0.3, distribution)
    _, masks = pruned(params, 0.9, distribution=distribution)
    assert [int(masks[name].sum()) for name in "ab"] == [3, 4]  # of 2.1 and 3.3
    leaves = [LeafShape(n, w.shape, w.size, (Fraction(9, 10),)) for n, w in params.items()]
    assert distribution.assign(leaves, distribution.floor).n_drop.sum() == 18 - 7
    _, masks = pruned(params, 0.5, distribution=distribution)
    if distribution.pooled:  # the floor of "a" is met, and "b" loses the rest
        assert [int(masks[name].sum()) for name in "ab"] == [3, 6]


@pytest.mark.parametrize("axis", (0, 1, -1))
def test_every_slice_of_a_stacked_axis_is_a_pool(axis):
    params = {"stack": make_params()["stack"], "fc": make_params()["fc"], "bias": jnp.ones(3)}
    params["stack"] = params["stack"] * jnp.arange(1.0, 4.0)[:, None, None]
    for distribution in (
        jaxprune.per_slice({"stack": axis}),
        jaxprune.per_slice({"stack": axis}, jaxprune.erk),
    ):
        _, masks = pruned(params, 0.5, distribution=distribution)
        slices = np.moveaxis(np.asarray(masks["stack"]), axis, 0)
        weights = np.moveaxis(np.abs(np.asarray(params["stack"])), axis, 0)
        counts = [int(np.sum(~m)) for m in slices]
        assert max(counts) - min(counts) <= 1
        for m, w in zip(slices, weights, strict=True):
            assert w[~m].max() <= w[m].min()


def test_overrides_work_with_every_distribution():
    params = make_params()
    for name in ("uniform", "erk", "global", "normalized", "min density"):
        _, masks = pruned(params, 0.6, overrides={"fc": 0.25}, distribution=DISTRIBUTIONS[name])
        assert np.sum(~np.asarray(masks["fc"])) == 48
        if name != "uniform":
            total = sum(math.prod(s) for n, s in SHAPES.items() if n != "fc")
            others = sum(np.sum(~np.asarray(masks[n])) for n in SHAPES if n != "fc")
            assert others == round_half_up(Fraction(6, 10) * total)
