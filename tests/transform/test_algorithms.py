"""Structure x distribution x score x regrowth: the laws of every combination, and slow oracles."""

import functools
import itertools
import math
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combinations import DISTRIBUTIONS, GROUPED, SCORES, SHAPES, STRUCTURES
from hypothesis import given, settings, strategies as st

import jaxprune
from helpers import bits, random_params, says
from jaxprune import NM, Block, Channel, Unstructured
from jaxprune._recipe.distributions import LeafShape, round_half_up


def make_params(seed=0, dtype=jnp.float32):
    return random_params(SHAPES, dtype, seed) | {
        "bias": jnp.ones(8, dtype),
        "table": jnp.arange(6).reshape(2, 3),
    }


def grads_at(params, t):
    rng = np.random.default_rng(1000 + t)
    return {
        name: jnp.asarray(rng.normal(size=p.shape) * (name != "table"), p.dtype)
        for name, p in params.items()
    }


def unit_flags(structure, mask):
    """The mask of units as NumPy, after a look that units are whole."""
    mask = np.asarray(mask)
    units = np.asarray(structure.unit_mask(jnp.asarray(mask)))
    np.testing.assert_array_equal(structure.expand(jnp.asarray(units), mask.shape), mask)
    return units


def structure_of(structure, name):
    if not isinstance(structure, dict):
        return structure
    return structure.get(name, Unstructured())


def sgd():
    """Leaves the integers alone."""
    return optax.masked(optax.sgd(0.25), lambda p: jax.tree.map(lambda x: x.dtype != jnp.int32, p))


def all_channels_go(tx):
    """Whether `init` refuses, because a leaf of few channels is asked for all of them."""
    try:
        tx.init({name: make_params()[name] for name in FEW})
    except ValueError as error:
        return "would lose all of its" in str(error)
    return False


def units_of(rule, mask, stacked):
    """The units of a leaf, of one slice after the other where they are pools."""
    slices = mask if stacked else [mask]
    return np.concatenate([unit_flags(rule, m).ravel() for m in slices])


# What the combinations are tried on: each leaf is compiled for itself, and that takes the time.
FEW = ("fc", "stack", "bias", "table")


def check_step(tx, structure, schedule, steps, form, per_slice):
    params = {name: make_params()[name] for name in FEW}
    state = tx.init(params)
    update = jax.jit(tx.update)
    recipe_masks = []
    for t in range(steps):
        grads = grads_at(params, t)
        before, old = params, jaxprune.get_masks(state)
        updates, state = update(grads, state, params, grads=grads)
        params = optax.apply_updates(params, updates)
        masks = jaxprune.get_masks(state)
        for name in FEW[:2]:
            m, p, u = (np.asarray(x[name]) for x in (masks, params, updates))
            units_of(structure_of(structure, name), m, per_slice and name == "stack")
            assert np.all(bits(p)[~m] == 0)  # +0.0
            if form == "chain":
                np.testing.assert_array_equal(u[m], np.asarray(grads[name])[m])
            assert not np.any(m & ~np.asarray(old[name]))  # masks only shrink
            if not schedule.fires(t):
                np.testing.assert_array_equal(m, old[name])
        assert np.all(masks["bias"])
        assert np.all(masks["table"])
        np.testing.assert_array_equal(params["table"], before["table"])
        recipe_masks.append(masks)
    jaxprune.check(params, state)
    return params, recipe_masks


def pairs():
    """Every structure with every distribution, with scores in turn, and every score with both."""
    scores = itertools.cycle(SCORES)
    found = [(*both, next(scores)) for both in itertools.product(STRUCTURES, DISTRIBUTIONS)]
    found += [("unstructured", "uniform", score) for score in SCORES]
    found += [("block", "global", score) for score in SCORES]
    for case in sorted(set(found)):
        # Variants of a distribution that is tried anyway.
        slow = case[1] in ("er", "normalized", "min density", "erk per slice")
        yield pytest.param(*case, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("structure", "distribution", "score"), list(pairs()))
def test_every_combination_obeys_the_laws_or_says_why_not(structure, distribution, score):
    index = sum(map(len, (structure, distribution, score)))
    form = ("chain", "inner")[index % 2]
    schedule = jaxprune.cubic_schedule(0.5, 0, 2, 1)
    options = {"structure": STRUCTURES[structure], "distribution": DISTRIBUTIONS[distribution]}
    options["score"] = SCORES[score]
    if form == "inner":
        tx = jaxprune.prune(schedule, inner=sgd(), **options)
    else:
        tx = jaxprune.prune(schedule, **options)
    if structure in GROUPED and distribution not in ("uniform", "per slice"):
        with pytest.raises(ValueError, match=r"(fc|stack): .*(NM, balanced).*uniform"):
            tx.init({name: make_params()[name] for name in FEW})
        return
    may_refuse = structure.startswith("channel") and "er" in repr(options["distribution"])
    if may_refuse and all_channels_go(tx):
        return
    per_slice = "per slice" in distribution
    _, masks = check_step(tx, options["structure"], schedule, 4, form, per_slice)
    total = [0, 0]
    for name in FEW[:2]:
        rule = structure_of(options["structure"], name)
        units = units_of(rule, masks[-1][name], per_slice and name == "stack")
        total = [total[0] + units.size, total[1] + np.sum(~units)]
        if distribution in ("uniform", "per slice") and not (
            name == "stack" and distribution == "per slice"
        ):
            n_groups = rule.n_groups(SHAPES[name])
            n = round_half_up(Fraction(1, 2) * (units.size // n_groups)) * n_groups
            assert np.sum(~units) == n
    if distribution in ("erk", "er", "global", "normalized"):
        assert total[1] == round_half_up(Fraction(1, 2) * total[0])


# Structures


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
@settings(max_examples=6)  # each compiles anew
def test_nm_keeps_the_best_n_of_every_m(n, m, axis, seed, ties):
    n = min(n, m - 1)
    shape = [2, 3, 2]
    shape[axis] = 2 * m
    w = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    w = np.round(w) if ties else w
    params, masks = jaxprune.prune_params(
        {"w": jnp.asarray(w)}, Fraction(m - n, m), structure=NM(n, m, axis)
    )
    np.testing.assert_array_equal(masks["w"], nm_oracle(np.abs(w), n, m, axis))
    np.testing.assert_array_equal(params["w"], np.where(masks["w"], w, 0))


def test_nm_goes_from_m_of_m_to_n_of_m_with_the_schedule():
    params = {"w": make_params()["fc"], "bias": jnp.ones(3)}
    tx = jaxprune.prune(jaxprune.linear_schedule(0.5, 0, 4, 1), structure=NM(2, 4))
    state = tx.init(params)
    kept = []
    for t in range(5):
        updates, state = jax.jit(tx.update)(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
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


@pytest.mark.parametrize("sparsity", (0.25, 0.5, 0.9))
@pytest.mark.parametrize("size", ((20, 48), (16, 40)), ids=str)
def test_balanced_blocks_keep_as_many_in_every_column(size, sparsity):
    w = np.random.default_rng(1).normal(size=size).astype(np.float32)
    structure = Block((1, 16), balanced=True)
    _, masks = jaxprune.prune_params({"w": jnp.asarray(w)}, sparsity, structure=structure)
    units = unit_flags(structure, masks["w"])
    scores = block_oracle(np.abs(w), (1, 16), "mean")
    n_drop = round_half_up(Fraction(str(sparsity)) * size[0])
    for j in range(units.shape[1]):
        assert np.sum(~units[:, j]) == n_drop
        assert set(np.argsort(scores[:, j])[:n_drop]) == set(np.flatnonzero(~units[:, j]))


@pytest.mark.parametrize("norm", (1, 2))
@pytest.mark.parametrize("axis", (-1, 0, 1))
def test_channels_go_by_their_norm(axis, norm):
    w = np.random.default_rng(2).normal(size=(6, 5, 8)).astype(np.float32)
    _, masks = jaxprune.prune_params({"w": jnp.asarray(w)}, 0.4, structure=Channel(axis, norm))
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
def test_structures_take_every_float(structure, dtype):
    params = {"w": make_params(dtype=dtype)["fc"], "bias": jnp.ones(3, dtype)}
    params, masks = jaxprune.prune_params(params, 0.5, structure=STRUCTURES[structure])
    assert params["w"].dtype == dtype
    assert np.sum(~np.asarray(masks["w"])) == 96
    np.testing.assert_array_equal(np.asarray(params["w"]) != 0, masks["w"])


# Distributions


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
def test_budgets_never_fall_while_the_schedule_rises(seed, floor):
    rng = np.random.default_rng(seed)
    targets = tuple(Fraction(int(t), 1000) for t in sorted(rng.integers(0, 990, 12)))
    shapes = [tuple(rng.integers(1, 12, rng.integers(2, 4)).tolist()) for _ in range(7)]
    leaves = [LeafShape(str(i), s, math.prod(s), targets) for i, s in enumerate(shapes)]
    pools = jaxprune.erk.assign(leaves, Fraction(floor, 100))
    assert np.all(np.diff(pools.n_drop, axis=0) >= 0)
    sizes = np.array([leaf.n_units for leaf in leaves])
    assert np.all(sizes - pools.n_drop >= sizes * floor / 100 - 1)
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


def test_a_global_pool_is_one_ranking():
    params = make_params()
    _, masks = jaxprune.prune_params(params, 0.7, distribution=jaxprune.global_pool)
    flat = np.concatenate([np.abs(np.asarray(params[n])).ravel() for n in sorted(SHAPES)])
    kept = np.concatenate([np.asarray(masks[n]).ravel() for n in sorted(SHAPES)])
    n_drop = round_half_up(Fraction(7, 10) * flat.size)
    assert set(np.argsort(flat)[:n_drop]) == set(np.flatnonzero(~kept))


def test_a_normalized_pool_ranks_by_scores_over_their_root_mean_square():
    params = make_params()
    params["fc"] = params["fc"] * 1000  # a scale that must not matter
    _, masks = jaxprune.prune_params(params, 0.7, distribution=jaxprune.normalized_pool)
    _, same = jaxprune.prune_params(make_params(), 0.7, distribution=jaxprune.normalized_pool)
    differ = sum(np.sum(np.asarray(masks[n]) != np.asarray(same[n])) for n in SHAPES)
    assert differ <= 2  # a division may round the other way
    _, raw = jaxprune.prune_params(params, 0.7, distribution=jaxprune.global_pool)
    assert np.all(raw["fc"]) or np.sum(~np.asarray(raw["fc"])) < np.sum(~np.asarray(masks["fc"]))


def test_a_leaf_is_never_below_its_least_density():
    params = make_params()
    params["fc"] = params["fc"] / 1000  # would lose everything
    distribution = jaxprune.min_density(0.25, jaxprune.global_pool)
    _, masks = jaxprune.prune_params(params, 0.7, distribution=distribution)
    kept = np.asarray(masks["fc"])
    assert kept.sum() == 48
    best = np.argsort(-np.abs(np.asarray(params["fc"])).ravel())[:48]
    assert set(np.flatnonzero(kept)) == set(best)
    total = sum(math.prod(s) for s in SHAPES.values())
    n_zero = sum(np.sum(~np.asarray(masks[n])) for n in SHAPES)
    assert n_zero == round_half_up(Fraction(7, 10) * total)


@pytest.mark.parametrize("axis", (0, 1, -1))
def test_every_slice_of_a_stacked_axis_is_a_pool(axis):
    params = {"stack": make_params()["stack"], "fc": make_params()["fc"], "bias": jnp.ones(3)}
    params["stack"] = params["stack"] * jnp.arange(1.0, 4.0)[:, None, None]
    for distribution in (
        jaxprune.per_slice({"stack": axis}),
        jaxprune.per_slice({"stack": axis}, jaxprune.erk),
    ):
        _, masks = jaxprune.prune_params(params, 0.5, distribution=distribution)
        slices = np.moveaxis(np.asarray(masks["stack"]), axis, 0)
        weights = np.moveaxis(np.abs(np.asarray(params["stack"])), axis, 0)
        counts = [int(np.sum(~m)) for m in slices]
        assert max(counts) - min(counts) <= 1
        for m, w in zip(slices, weights, strict=True):
            assert w[~m].max() <= w[m].min()


def test_overrides_go_with_every_distribution():
    params = make_params()
    for name in ("uniform", "erk", "global", "normalized", "min density"):
        _, masks = jaxprune.prune_params(
            params, 0.6, overrides={"fc": 0.25}, distribution=DISTRIBUTIONS[name]
        )
        assert np.sum(~np.asarray(masks["fc"])) == 48
        if name != "uniform":
            total = sum(math.prod(s) for n, s in SHAPES.items() if n != "fc")
            others = sum(np.sum(~np.asarray(masks[n])) for n in SHAPES if n != "fc")
            assert others == round_half_up(Fraction(6, 10) * total)


# Scores


@pytest.mark.parametrize("form", ("inner", "grads="))
@pytest.mark.parametrize("name", ("saliency", "gradient"))
def test_gradients_reach_the_score(form, name):
    params = make_params()
    grads = grads_at(params, 0)
    options = {"score": SCORES[name], "include": "fc"}
    schedule = jaxprune.one_shot_schedule(0.5)
    if form == "inner":
        tx = jaxprune.prune(schedule, inner=sgd(), **options)
        _, state = tx.update(grads, tx.init(params), params)
    else:
        tx = optax.chain(sgd(), jaxprune.prune(schedule, **options))
        _, state = tx.update(grads, tx.init(params), params, grads=grads)
    g, w = (np.asarray(t["fc"], np.float64) for t in (grads, params))
    scores = np.abs(g * w) if name == "saliency" else np.abs(g)
    dropped = np.flatnonzero(~np.asarray(jaxprune.get_masks(state)["fc"]))
    assert set(dropped) == set(np.argsort(scores.ravel())[:96])


def test_a_score_without_the_gradients_it_needs_says_how_to_pass_them():
    params = make_params()
    for score in (jaxprune.saliency, jaxprune.movement, jaxprune.gradient_magnitude):
        tx = optax.chain(sgd(), jaxprune.prune(jaxprune.one_shot_schedule(0.5), score=score))
        with pytest.raises(ValueError, match=r"inner=optimizer.*grads=grads"):
            tx.update(grads_at(params, 0), tx.init(params), params)
    with pytest.raises(ValueError, match=says("saliency", "gradients")):
        jaxprune.prune_params(params, 0.5, score=jaxprune.saliency)
    with pytest.raises(ValueError, match=says("movement", "training")):
        jaxprune.prune_params(params, 0.5, score=jaxprune.movement)


def own_magnitude(params, grads, key):
    return jnp.abs(params)


def over_the_largest(params, grads, key):
    return jnp.abs(params) / jnp.max(jnp.abs(params))


@pytest.mark.skip_in("disable_jit", reason="nothing is compiled")
def test_an_own_elementwise_score_is_not_stored():
    params = {"w": jax.random.normal(jax.random.key(3), (512, 256))}
    n_bytes, masks = {}, {}
    for score in (jaxprune.magnitude, own_magnitude, over_the_largest):
        tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), score=score)
        update = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
        n_bytes[score] = update.memory_analysis().temp_size_in_bytes
        masks[score] = update(params, tx.init(params), params)[1].masks["w"]
        np.testing.assert_array_equal(masks[score], masks[jaxprune.magnitude])
    assert n_bytes[own_magnitude] < 2 * n_bytes[jaxprune.magnitude]
    assert n_bytes[own_magnitude] < n_bytes[over_the_largest] / 2  # which stores its scores


def test_movement_sums_minus_weight_times_gradient():
    params = {"w": make_params()["fc"], "bias": jnp.ones(2)}
    tx = jaxprune.prune(
        jaxprune.one_shot_schedule(0.5, step=3), inner=optax.sgd(0.1), score=jaxprune.movement
    )
    state, sums = tx.init(params), np.zeros((16, 12))
    for t in range(4):
        grads = grads_at(params, t)
        sums -= np.asarray(params["w"], np.float64) * np.asarray(grads["w"], np.float64)
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.score_state["w"], sums, rtol=1e-5, atol=1e-6)
    dropped = np.flatnonzero(~np.asarray(jaxprune.get_masks(state)["w"]))
    assert set(dropped) == set(np.argsort(sums.ravel())[:96])


def test_random_scores_differ_by_leaf_step_and_seed():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8)), "bias": jnp.ones(8)}
    seen = set()
    for seed, step in itertools.product((None, 1), (0, 1)):
        tx = jaxprune.prune(
            jaxprune.one_shot_schedule(0.5, step=step), score=jaxprune.random_score, seed=seed
        )
        state = tx.init(params)
        for _ in range(step + 1):
            _, state = tx.update(params, state, params)
        seen |= {np.asarray(state.masks[name]).tobytes() for name in "ab"}
    assert len(seen) == 8


# Ties


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16), ids=lambda d: d.__name__)
@given(
    size=st.sampled_from((0, 1, 7, 1000, 2500)),  # each compiles anew
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


# Growing


def drop_fraction(t, end, alpha=0.3):
    return alpha / 2 * (1 + math.cos(math.pi * t / end))


@pytest.mark.parametrize("kind", ("rigl", "set", "rigl block"))
def test_every_swap_conserves_the_count_and_takes_the_best(kind):
    params = make_params()
    make = jaxprune.set_ if kind == "set" else jaxprune.rigl
    structure = Block((2, 2)) if kind == "rigl block" else Unstructured()
    tx = make(0.75, 12, inner=optax.sgd(0.5), every=3, include="(fc|conv)", structure=structure)
    state = tx.init({"fc": params["fc"], "conv": params["conv"], "bias": params["bias"]})
    params = {name: params[name] for name in ("fc", "conv", "bias")}
    params = jaxprune.apply_masks(params, state)
    n_kept = {name: int(jaxprune.get_masks(state)[name].sum()) for name in params}
    for t in range(15):
        grads = grads_at(params, t)
        before, old = params, jaxprune.get_masks(state)
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        masks = jaxprune.get_masks(state)
        for name in ("fc", "conv"):
            m0, m1 = np.asarray(old[name]), np.asarray(masks[name])
            p0, p1 = (np.asarray(x[name]) for x in (before, params))
            assert m1.sum() == n_kept[name]
            assert np.all(p1[~m1] == 0)
            grown = m1 & ~m0
            assert np.all(bits(p1)[grown] == 0)  # starts at zero
            np.testing.assert_array_equal(
                p1[m1 & m0], (p0 - 0.5 * np.asarray(grads[name]))[m1 & m0]
            )
            if t not in (3, 6, 9):
                np.testing.assert_array_equal(m0, m1)
            elif kind != "rigl block":
                n_swap = round_half_up(Fraction(drop_fraction(t, 12)) * n_kept[name])
                size = np.where(m0, np.abs(p0), -1).ravel()
                stay = np.zeros(m0.size, bool)
                stay[np.argsort(-size, kind="stable")[: n_kept[name] - n_swap]] = True
                assert np.all(m1.ravel()[stay])
                if kind == "rigl":
                    g = np.where(stay, -1, np.abs(np.asarray(grads[name])).ravel())
                    stay[np.argsort(-g, kind="stable")[:n_swap]] = True
                    np.testing.assert_array_equal(m1.ravel(), stay)
    assert state.violations == 0
    jaxprune.check(params, state)


MOMENTS = {
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "lion": lambda: optax.lion(0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    "adafactor unfactored": lambda: optax.adafactor(0.1, factored=False, momentum=0.9),
    "muon": lambda: optax.contrib.muon(0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_grown_weights_start_with_fresh_moments(name):
    params = {name: make_params()[name] for name in ("fc", "conv", "bias")}
    tx = jaxprune.rigl(0.5, 100, inner=MOMENTS[name](), every=2, drop_fraction=0.5)
    state = tx.init(params)
    params = jaxprune.apply_masks(params, state)
    for t in range(3):
        updates, state = jax.jit(tx.update)(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
    seen = 0
    for leaf in jax.tree.leaves(state.inner_state):
        for path in ("fc", "conv"):
            if leaf.shape == params[path].shape:
                grown = np.asarray(state.masks[path]) == 2
                assert grown.any()
                assert np.all(np.abs(np.asarray(leaf)[grown]) < 1e-20)  # adafactor adds 1e-30
                assert np.any(np.asarray(leaf) != 0)
                seen += 1
    assert seen >= (0 if name == "adafactor" else 2)
    assert np.all(np.asarray(params["fc"])[np.asarray(state.masks["fc"]) == 2] == 0)
    updates, state = jax.jit(tx.update)(grads_at(params, 3), state, params)
    moved = np.asarray(optax.apply_updates(params, updates)["fc"])
    assert np.all(moved[np.asarray(state.masks["fc"]) == 2] != 0)  # and then it learns


def test_static_sparse_never_moves_and_erk_is_exact():
    params = make_params()
    del params["table"]
    tx = jaxprune.static_sparse(0.8, inner=optax.adam(0.1), key=jax.random.key(7))
    first = state = tx.init(params)
    for t in range(4):
        updates, state = jax.jit(tx.update)(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal(state.masks, first.masks)
    jaxprune.check(params, state)  # the dense params of the first step moved no dropped weight
    total = sum(math.prod(s) for s in SHAPES.values())
    n_zero = sum(int(np.sum(np.asarray(params[n]) == 0)) for n in SHAPES)
    assert n_zero == round_half_up(Fraction(8, 10) * total)
    other = jaxprune.static_sparse(0.8, inner=optax.adam(0.1)).init(params)
    assert np.any(np.asarray(other.masks["fc"]) != np.asarray(state.masks["fc"]))


def test_rigl_of_a_whole_run_needs_one_trace():
    params = {"w": make_params()["fc"], "bias": jnp.ones(3)}
    tx = jaxprune.rigl(0.5, 6, inner=optax.adam(0.1), every=2)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(1)(tx.update))
    state = tx.init(params)
    for t in range(8):
        updates, state = step(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)


# Regrowing


def test_held_weights_may_return_and_the_forward_pass_masks_them():
    params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]]), "bias": jnp.ones(1)}
    tx = jaxprune.prune(jaxprune.cubic_schedule(0.5, 0, 2, 1, initial_sparsity=0.5), regrow=True)
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(lambda p: -p / 2, params), state, params)
    assert updates["w"].tolist() == [[-2.0, -1.5, 0.0, 0.0]]  # what is dropped holds its value
    params = optax.apply_updates(params, updates)
    assert params["w"].tolist() == [[2.0, 1.5, 2.0, 1.0]]
    assert jaxprune.apply_masks(params, state)["w"].tolist() == [[2.0, 1.5, 0.0, 0.0]]
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert jaxprune.get_masks(state)["w"].tolist() == [[True, False, True, False]]  # one returned
    assert state.violations == 0


def test_straight_through_training_goes_on_with_all_weights():
    params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]]), "bias": jnp.ones(1)}
    schedule = jaxprune.cubic_schedule(0.5, 0, 2, 1, initial_sparsity=0.5)
    tx = jaxprune.prune(schedule, inner=optax.sgd(1.0), regrow="train")
    state = tx.init(params)

    def loss(params, masks):
        w = jaxprune.straight_through(params, masks)["w"]
        return jnp.sum((w - jnp.array([[0.0, 0.0, 5.0, 5.0]])) ** 2) / 4

    for _ in range(3):
        grads = jax.grad(loss)(params, jaxprune.get_masks(state))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert jaxprune.get_masks(state)["w"].tolist() == [[False, False, True, True]]
    assert np.all(np.asarray(params["w"]) != 0)


def test_straight_through_random_draws_anew_at_every_fire():
    params = {"w": make_params()["fc"], "bias": jnp.ones(3)}
    schedule = jaxprune.cubic_schedule(0.5, 0, 4, 2, initial_sparsity=0.5)
    tx = jaxprune.prune(schedule, inner=optax.sgd(0.5), regrow="train", score=jaxprune.random_score)
    state, seen = tx.init(params), []
    for t in range(5):
        grads = grads_at(params, t)
        updates, state = jax.jit(tx.update)(grads, state, params)
        np.testing.assert_array_equal(updates["w"], -0.5 * grads["w"])  # all go on learning
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(jaxprune.get_masks(state)["w"]))
        assert np.sum(~seen[-1]) == 96
    same = [bool(np.all(a == b)) for a, b in itertools.pairwise(seen)]
    assert same == [True, False, True, False]


def test_acdc_phases_alternate_and_end_sparse():
    params = {"w": make_params()["fc"], "bias": jnp.ones(3)}
    schedule = jaxprune.acdc_schedule(0.75, 1, 9, every=2)
    with pytest.raises(ValueError, match='regrow="zero"'):
        jaxprune.prune(schedule)
    tx = jaxprune.prune(schedule, inner=optax.sgd(0.1), regrow="zero")
    state, sparsity = tx.init(params), []
    for t in range(11):
        updates, state = jax.jit(tx.update)(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
        sparsity.append(float(np.mean(~np.asarray(jaxprune.get_masks(state)["w"]))))
        jaxprune.check(params, state)
    assert sparsity == [0.0, 0.75, 0.75, 0.0, 0.0, 0.75, 0.75, 0.0, 0.0, 0.75, 0.75]


# Recipes


def test_a_sparse_model_is_tuned_with_constant_masks():
    params, masks = jaxprune.prune_params(make_params(), 0.75, include="fc")
    del params["table"], masks["table"]
    for packed in (False, True):
        tx = jaxprune.prune(
            jaxprune.one_shot_schedule(0.0), inner=optax.adam(0.1), include="fc", packed=packed
        )
        state = jaxprune.set_masks(tx.init(params), masks)
        tuned = params
        for t in range(3):
            updates, state = jax.jit(tx.update)(grads_at(tuned, t), state, tuned)
            tuned = optax.apply_updates(tuned, updates)
        np.testing.assert_array_equal(np.asarray(tuned["fc"]) != 0, masks["fc"])
        chex.assert_trees_all_equal(jaxprune.get_masks(state), masks)
    with pytest.raises(ValueError, match=r"fc: the mask has shape \(2,\)"):
        jaxprune.set_masks(state, masks | {"fc": jnp.ones(2)})
    with pytest.raises(ValueError, match=says("masks", "leaves of the params")):
        jaxprune.set_masks(state, {"fc": masks["fc"]})


def test_a_lottery_ticket_is_rewound():
    first = {"w": make_params()["fc"], "bias": jnp.ones(12)}
    trained = jax.tree.map(lambda p, g: p - 0.3 * g, first, grads_at(first, 0))
    _, masks = jaxprune.prune_params(trained, 0.8)
    ticket = jaxprune.apply_masks(first, masks)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.0), inner=optax.sgd(0.1))
    state = jaxprune.set_masks(tx.init(ticket), masks)
    updates, state = tx.update(grads_at(ticket, 1), state, ticket)
    after = optax.apply_updates(ticket, updates)
    np.testing.assert_array_equal(np.asarray(after["w"]) != 0, masks["w"])
    np.testing.assert_array_equal(ticket["w"], np.where(masks["w"], first["w"], 0))


def test_plan_shows_structures_pools_and_rules_that_match_nothing():
    params = make_params()
    structure = {"fc": NM(2, 4), "nothing": Channel()}
    plan = jaxprune.plan(params, 0.5, structure=structure, exclude="odd")
    notes = {leaf.path: leaf.note for leaf in plan.leaves}
    assert notes["fc"] == "NM(n=2, m=4, axis=-2)"
    assert any("structure: 'nothing' matches no leaf" in note for note in plan.notes)
    plan = jaxprune.plan(params, 0.5, distribution=jaxprune.global_pool)
    assert plan.n_zero == sum(leaf.n_zero for leaf in plan.leaves)
    assert "one pool" in {leaf.path: leaf.note for leaf in plan.leaves}["fc"]


# Other libraries' masks


@functools.cache
def torch_prune():
    pytest.importorskip("torch", reason="torch comes with the bench extra")
    import torch
    from torch.nn.utils import prune

    return torch, prune


@pytest.mark.parametrize("method", ("l1_unstructured", "ln_structured", "global_unstructured"))
def test_masks_are_those_of_torch(method):
    torch, prune = torch_prune()
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(size=(12, 20)).astype(np.float32) for name in "ab"}
    layers = {name: torch.nn.Linear(20, 12, bias=False) for name in "ab"}
    for name, layer in layers.items():
        layer.weight.data = torch.from_numpy(weights[name].copy())
    params = {name: jnp.asarray(w) for name, w in weights.items()} | {"bias": jnp.ones(3)}
    if method == "l1_unstructured":
        for layer in layers.values():
            prune.l1_unstructured(layer, "weight", amount=0.7)
        _, masks = jaxprune.prune_params(params, 0.7)
    elif method == "ln_structured":
        for layer in layers.values():
            prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
        _, masks = jaxprune.prune_params(params, 0.5, structure=Channel(axis=0))
    else:
        pairs = [(layer, "weight") for layer in layers.values()]
        prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.7)
        _, masks = jaxprune.prune_params(params, 0.7, distribution=jaxprune.global_pool)
    for name, layer in layers.items():
        np.testing.assert_array_equal(masks[name], layer.weight_mask.numpy() != 0)
