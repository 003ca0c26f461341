"""Slices along axes of role "stack": pools of their own, with budgets of their own."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import jaxprune
from bad_input import assert_error, case
from helpers import grads_at, half_up, ones, random_params
from jaxprune import Channel

ROLES = {"up": ("stack", "in", "out"), "deep": ("in", "stack", "stack", "out")}
SHAPES = {"up": (4, 16, 8), "deep": (8, 2, 3, 5), "fc": (8, 8)}
HALF = jaxprune.one_shot_schedule(0.5)


def make_params(seed=0):
    return random_params(SHAPES, seed=seed) | {"bias": ones(8)}


def n_zero(mask, axes):
    """How many weights each slice along these axes drops."""
    others = tuple(axis for axis in range(np.ndim(mask)) if axis not in axes)
    return np.sum(~np.asarray(mask, bool), others)


def test_each_expert_reaches_the_sparsity_however_large_its_weights_are():
    """B5: experts (4, 16, 8) scaled 1:2:4:8 are pruned alike."""
    params = make_params()
    params["up"] *= jnp.array([1.0, 2.0, 4.0, 8.0])[:, None, None]
    _, masks = jaxprune.prune_params(params, 0.5, roles=ROLES)
    assert n_zero(masks["up"], (0,)).tolist() == [64] * 4
    _, together = jaxprune.prune_params(params, 0.5)
    assert n_zero(together["up"], (0,)).tolist() != [64] * 4
    assert (~together["up"]).sum() == 256


@given(sparsity=st.fractions(0, Fraction(9, 10)), seed=st.integers(0, 99))
@settings(max_examples=4)  # each example is compiled
def test_every_slice_drops_its_smallest_weights_exactly(sparsity, seed):
    params = make_params(seed)
    _, masks = jaxprune.prune_params(params, sparsity, roles=ROLES)
    for name, axes in (("up", (0,)), ("deep", (1, 2)), ("fc", ())):
        w = np.moveaxis(np.abs(params[name]), axes, range(len(axes)))
        mask = np.moveaxis(np.asarray(masks[name]), axes, range(len(axes)))
        for index in np.ndindex(w.shape[: len(axes)]):
            n = half_up(sparsity * w[index].size)
            dropped = np.sort(w[index].ravel())[:n]
            np.testing.assert_array_equal(np.sort(w[index][~mask[index]]), dropped)


def test_the_threshold_of_a_leaf_is_the_least_of_its_slices():
    w = jnp.abs(random_params({"w": (3, 4, 6)})["w"]) * jnp.array([10.0, 1.0, 100.0])[:, None, None]
    columns = jaxprune.Block((1, 2), balanced=True)
    tx = jaxprune.prune(
        jaxprune.one_shot_schedule(0.5),
        structure={"columns": columns},
        distribution=jaxprune.per_slice("slices"),
    )
    params = {"slices": w, "columns": w[0] * jnp.array([[5.0, 5.0, 1.0, 1.0, 9.0, 9.0]])}
    _, state = tx.update(params, tx.init(params), params)
    slices = np.sort(np.asarray(w[1]).ravel())  # those of the smallest weights
    blocks = np.sort(np.asarray(params["columns"])[:, 2:4].mean(1))
    threshold = dict(zip(("columns", "slices"), state.thresholds.tolist(), strict=True))
    assert slices[11] <= threshold["slices"] <= slices[12]
    assert blocks[1] * (1 - 1e-6) <= threshold["columns"] <= blocks[2] * (1 + 1e-6)


@pytest.mark.parametrize("distribution", (jaxprune.global_pool, jaxprune.normalized_pool), ids=str)
def test_in_a_pool_of_all_leaves_slices_are_not_apart(distribution):
    params = make_params()
    options = dict(distribution=distribution)
    _, masks = jaxprune.prune_params(params, 0.5, roles=ROLES, **options)
    _, without = jaxprune.prune_params(params, 0.5, **options)
    jax.tree.map(np.testing.assert_array_equal, masks, without)


def test_per_slice_overrules_the_stack_axes():
    params = make_params()
    options = dict(distribution=jaxprune.per_slice({"deep": 3}))
    _, masks = jaxprune.prune_params(params, 0.5, roles=ROLES, **options)
    assert n_zero(masks["deep"], (3,)).tolist() == [24] * 5
    assert n_zero(masks["up"], (0,)).tolist() == [64] * 4


# Budgets of single slices


def test_overrides_name_slices_by_their_indices():
    params = make_params()
    overrides = {"up/2": 0.75, "deep/1/.*": 0.2, "deep": 0.6, "up/[01]": 0.0}
    _, masks = jaxprune.prune_params(params, 0.5, roles=ROLES, overrides=overrides)
    assert n_zero(masks["up"], (0,)).tolist() == [0, 0, 96, 64]
    assert n_zero(masks["deep"], (1, 2)).tolist() == [[24] * 3, [8] * 3]
    assert n_zero(masks["fc"], ()).tolist() == 32


def test_a_slice_looks_for_its_own_path_before_that_of_its_leaf():
    params = make_params()
    overrides = {"up": 0.25, "up/3": 0.75, "(up|up/1)": 0.0}
    _, masks = jaxprune.prune_params(params, 0.5, roles=ROLES, overrides=overrides)
    assert n_zero(masks["up"], (0,)).tolist() == [32, 0, 32, 96]


def test_overrides_name_the_slices_of_per_slice():
    params = make_params()
    options = dict(distribution=jaxprune.per_slice("up"), overrides={"up/2": 0.75})
    _, masks = jaxprune.prune_params(params, 0.5, **options)
    assert n_zero(masks["up"], (0,)).tolist() == [64, 64, 96, 64]


def test_erk_counts_a_fixed_slice_apart():
    params = make_params()
    options = dict(distribution=jaxprune.erk, roles=ROLES)
    _, masks = jaxprune.prune_params(params, 0.5, overrides={"up/0": 0.875}, **options)
    zeros = n_zero(masks["up"], (0,)).tolist()
    assert zeros[0] == 112
    n_shared = sum(np.prod(shape) for shape in SHAPES.values()) - 128
    total = sum(int(n_zero(masks[name], ())) for name in SHAPES) - 112
    assert total == n_shared // 2


def test_a_run_with_budgets_of_slices_is_checked_to_the_end():
    params = make_params()
    overrides = {"up/2": 0.75, "deep/0/1": 0.2}
    schedule = jaxprune.cubic_schedule(0.5, 1, 5, 2)
    tx = jaxprune.prune(schedule, inner=optax.sgd(0.1), roles=ROLES, overrides=overrides)
    update = jax.jit(tx.update)
    state, report = tx.init(params), jaxprune.plan(params, tx)
    for t in range(7):
        updates, state = update(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
        if t < 5:
            with pytest.raises(ValueError, match="fire"):
                jaxprune.check(params, state, done=True)
    jaxprune.check(params, state, done=True)
    assert update._cache_size() <= 1
    assert n_zero(state.masks["up"], (0,)).tolist() == [64, 64, 96, 64]
    assert n_zero(state.masks["deep"], (1, 2)).tolist() == [[20, 8, 20], [20, 20, 20]]
    planned = {leaf.path: leaf.n_zero for leaf in report.leaves}
    assert planned == {"up": 288, "deep": 108, "fc": 32, "bias": 0}
    values = jaxprune.metrics(state)
    n_pruned = sum(np.prod(shape) for shape in SHAPES.values())
    assert float(values["prune/sparsity"]) == pytest.approx((288 + 108 + 32) / n_pruned)
    assert float(values["prune/target"]) == float(values["prune/sparsity"])
    fewer = jaxprune.set_masks(state, state.masks | {"up": jnp.ones_like(state.masks["up"])})
    with pytest.raises(ValueError, match="up: "):
        jaxprune.check(params, fewer, done=True)


def test_thousands_of_slices_are_stored_as_the_few_budgets_that_differ():
    params = random_params({"w": (1100, 2, 5)}) | {"bias": ones(8)}
    schedule = jaxprune.linear_schedule(0.5, 0, 100, 1)
    options = dict(roles={"w": ("stack", "in", "out")}, overrides={"w/7": 0.25, "w/100": 0.75})
    tx = jaxprune.prune(schedule, **options)
    update, state = jax.jit(tx.update), tx.init(params)
    lowered = update.lower(params, state, params).as_text()
    assert max(map(len, lowered.splitlines())) < 50_000  # 1,100 positions, not 100 x 1,100 counts
    for step in (0, 41, 100):
        late = state._replace(prune_step=jnp.int32(step))
        counts = n_zero(update(params, late, params)[1].masks["w"], (0,)).tolist()
        target = schedule.targets[step]
        final = dict.fromkeys(range(1100), target) | {7: target / 2, 100: target * 3 / 2}
        assert counts == [half_up(final[i] * 10) for i in range(1100)]


def test_a_restored_state_catches_up_with_the_budget_of_a_slice():
    params = make_params()
    before = jaxprune.prune(HALF, roles=ROLES)
    after = jaxprune.prune(HALF, roles=ROLES, overrides={"up/1": 0.875})
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = before.update(zeros, before.init(params), params)
    _, state = after.update(zeros, state, params)
    assert n_zero(state.masks["up"], (0,)).tolist() == [64, 112, 64, 64]


def test_the_plan_shows_roles_and_budgets_of_slices():
    report = jaxprune.plan(make_params(), 0.5, roles=ROLES, overrides={"up/[23]": 0.75, "f.": 0.25})
    rows = {leaf.path: leaf for leaf in report.leaves}
    assert rows["up"].roles == ("stack", "in", "out")
    assert rows["up"].note == "override 'up/[23]' (2 of 4 slices)"
    assert rows["up"].n_zero == 2 * 64 + 2 * 96
    assert rows["fc"].roles is None
    assert rows["fc"].note == "override 'f.'"
    assert report.notes == ()
    header, *lines = str(report).splitlines()[1:]
    assert header.split()[:4] == ["leaf", "shape", "roles", "dtype"]
    assert any("stack, in, out" in line for line in lines)
    assert "roles" not in str(jaxprune.plan(make_params(), 0.5))


def test_outputs_of_every_layer_have_a_budget_of_their_own():
    params = make_params()
    params["up"] *= jnp.array([1.0, 2.0, 4.0, 8.0])[:, None, None]
    options = dict(structure={"up": Channel()}, overrides={"up/1": 0.25})
    _, masks = jaxprune.prune_params(params, 0.5, roles=ROLES, **options)
    kept = np.asarray(masks["up"]).any(1)
    assert (~kept).sum(1).tolist() == [4, 2, 4, 4]


def test_in_a_pool_of_all_leaves_layers_do_not_share_their_outputs():
    params = {name: x for name, x in make_params().items() if name != "fc"}
    options = dict(structure=Channel(), distribution=jaxprune.global_pool, roles=ROLES)
    _, masks = jaxprune.prune_params(params, 0.5, **options)
    norms, kept = [], []
    for name, axis in (("up", 1), ("deep", 0)):
        w, mask = np.asarray(params[name], np.float64), np.asarray(masks[name])
        assert np.all(mask.any(axis) == mask.all(axis))
        norms.append(np.sqrt((w**2).sum(axis)).ravel())
        kept.append(mask.any(axis).ravel())
    norms, kept = np.concatenate(norms), np.concatenate(kept)
    assert np.sum(~kept) == len(norms) // 2 == 31
    assert norms[~kept].max() < norms[kept].min()


# Erdos-Renyi by roles


def counts(shape, roles, distribution, others=((256, 256), (512, 64))):
    tree = {"w": ones(*shape)} | {f"v{i}": ones(*s) for i, s in enumerate(others)}
    tree |= {"bias": ones(8)}
    given = None if roles is None else {"w": roles}
    report = jaxprune.plan(tree, 0.8, distribution=distribution, roles=given)
    return [leaf.n_zero for leaf in report.leaves]


@pytest.mark.parametrize("distribution", (jaxprune.erk, jaxprune.er), ids=str)
def test_a_leaf_of_three_axes_has_the_density_of_its_matrix(distribution):
    """B3: (512, 8, 64) and 512 x 512."""
    of_matrix = counts((512, 512), None, distribution)
    assert counts((512, 8, 64), ("in", "out", "out"), distribution) == of_matrix
    assert counts((8, 64, 512), ("in", "in", "out"), distribution) == of_matrix
    assert counts((8, 512, 64), ("out", "in", "out"), distribution) == of_matrix
    assert counts((512, 8, 64), None, distribution) != of_matrix


@pytest.mark.parametrize("distribution", (jaxprune.erk, jaxprune.er), ids=str)
def test_the_window_of_a_convolution_counts_as_before(distribution):
    flax = counts((3, 3, 64, 32), None, distribution)
    assert counts((3, 3, 64, 32), ("window", "window", "in", "out"), distribution) == flax
    assert counts((32, 64, 3, 3), ("out", "in", "window", "window"), distribution) == flax


@pytest.mark.parametrize("distribution", (jaxprune.erk, jaxprune.er), ids=str)
def test_layers_in_one_leaf_have_the_densities_of_layers_in_leaves(distribution):
    layer = {"w": ones(64, 32), "v": ones(16, 16)}
    apart = {f"layer{i}": layer for i in range(3)} | {"bias": ones(8)}
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 3), layer) | {"bias": ones(8)}
    roles = {"w|v": ("stack", "in", "out")}
    of_layers = jaxprune.plan(apart, 0.8, distribution=distribution)
    of_stack = jaxprune.plan(stacked, 0.8, distribution=distribution, roles=roles)
    by_name = {"w": 0, "v": 0, "bias": 0}
    for leaf in of_layers.leaves:
        by_name[leaf.path.rpartition("/")[2]] += leaf.n_zero
    assert {leaf.path: leaf.n_zero for leaf in of_stack.leaves} == by_name


# Wrong input

BAD = [
    case(
        "index_out_of_range",
        lambda: jaxprune.plan(make_params(), 0.5, roles=ROLES, overrides={"up/4": 0.75}),
        ValueError,
        ("overrides: 'up/4'", "matches no leaf", None),
    ),
    case(
        "slice_of_a_leaf_that_is_one_pool",
        lambda: jaxprune.plan(make_params(), 0.5, overrides={"up/2": 0.75}),
        ValueError,
        ("overrides: 'up/2'", "matches no leaf", None),
    ),
    case(
        "slice_without_weights",
        lambda: jaxprune.plan(
            {"e": ones(2, 1, 2)}, 0.5, roles={"e": ROLES["up"]}, overrides={"e/1": 0.9}
        ),
        ValueError,
        ("e: ", ("(1, 2)", "0.9"), "overrides={'e': ...}"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", BAD)
def test_errors_about_slices_say_what_to_write(call, kind, parts):
    assert_error(call, kind, parts)


@pytest.mark.parametrize(
    "options",
    [
        {"distribution": jaxprune.per_slice("empty|w")},
        {"roles": {"empty": ("stack", "in", "out"), "w": ("stack", "in", "out")}},
        {"distribution": jaxprune.per_slice("empty|w"), "structure": jaxprune.Channel(-1)},
    ],
    ids=("per_slice", "roles", "channels"),
)
def test_a_leaf_without_slices_is_left_as_it_is(options):
    params = {"empty": jnp.zeros((0, 4, 6)), "w": jnp.arange(48.0).reshape(2, 4, 6)}
    params |= {"bias": jnp.ones(6)}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.sgd(0.0), **options)
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(params, state, params)
    params = optax.apply_updates(params, updates)
    jaxprune.check(params, state, done=True)
    masks = jaxprune.get_masks(state)
    assert masks["empty"].shape == (0, 4, 6)
    assert masks["w"].sum((1, 2)).tolist() == [12, 12]
    pruned, _ = jaxprune.prune_params(params, 0.5, **options)
    assert pruned["empty"].shape == (0, 4, 6)
    assert int(jaxprune.get_state(state).progress.due[1]) == 0  # of "empty", after "bias"
