"""`structural=`: weights that do not exist count neither as weights nor as zeros."""

import functools
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from jax.sharding import AxisType, PartitionSpec

import jaxprune
from bad_input import HALF, assert_error, case, init, params
from helpers import (
    assert_dropped_are_plus_zero,
    assert_placed_like,
    assert_same,
    bits,
    half_up,
    make_mesh,
    on_device,
    ones,
    place,
)
from jaxprune import NM, Block, Channel

pytestmark = pytest.mark.usefixtures("counted_programs")

SHAPES = {"a": (6, 8), "b": (5, 7), "c": (8, 4), "bias": (8,)}
WEIGHTS = ("a", "b", "c")


def make_params(seed=0, values=lambda normal: normal):
    rng = np.random.default_rng(seed)
    return {name: on_device(values(rng.normal(size=shape))) for name, shape in SHAPES.items()}


def make_masks(seed=0):
    """Masks of two of the three kernels; in each row, two weights exist or more."""
    rng = np.random.default_rng(seed)
    masks = {name: rng.random(SHAPES[name]) < rng.uniform(0.2, 1) for name in ("a", "c")}
    for mask in masks.values():
        mask[:, :2] = True
    return {"a": masks["a"].astype(np.uint8), "c": jnp.asarray(masks["c"])}


def existing(structural, name):
    mask = structural.get(name)
    return np.ones(SHAPES[name], bool) if mask is None else np.asarray(mask) != 0


def largest(params, exists, n_keep):
    """The slow oracle: masks of the largest weights that exist, in one pool of leaves by name."""
    ranked = sorted(
        (-abs(float(params[name][index])), order, index, name)
        for order, name in enumerate(exists)
        for index in map(tuple, np.argwhere(exists[name]))
    )
    kept = {name: np.zeros(SHAPES[name], bool) for name in exists}
    for _, _, index, name in ranked[:n_keep]:
        kept[name][index] = True
    return kept


VALUES = {"normal": lambda normal: normal, "ties": np.round, "constant": np.ones_like}
seeds = st.integers(0, 999)


@pytest.mark.filterwarnings("ignore:jaxprune.prune_params")  # leaves of ties may lose all
@given(seed=seeds, values=st.sampled_from(tuple(VALUES)), sparsity=st.sampled_from((0.0, 0.3, 0.5)))
def test_the_smallest_existing_weights_are_dropped(seed, values, sparsity):
    tree, structural = make_params(seed, VALUES[values]), make_masks(seed)
    exists = {name: existing(structural, name) for name in WEIGHTS}
    target = Fraction(str(sparsity))
    for distribution in (jaxprune.uniform, jaxprune.global_pool):
        pruned, masks = jaxprune.prune_params(
            tree, sparsity, structural=structural, distribution=distribution
        )
        if distribution is jaxprune.uniform:
            expected = {}
            for name, mask in exists.items():
                n = int(mask.sum())
                expected |= largest(tree, {name: mask}, n - half_up(target * n))
        else:
            n = sum(int(mask.sum()) for mask in exists.values())
            expected = largest(tree, exists, n - half_up(target * n))
        for name in WEIGHTS:
            assert np.array_equal(masks[name], expected[name]), (name, distribution)
        assert np.all(masks["bias"])
        assert_dropped_are_plus_zero(pruned, masks)


DISTRIBUTIONS = (
    jaxprune.uniform,
    jaxprune.erk,
    jaxprune.er,
    jaxprune.global_pool,
    jaxprune.normalized_pool,
    jaxprune.l2_pool,
    jaxprune.min_density(0.25, jaxprune.global_pool),
    jaxprune.per_slice("a"),
)


@given(seed=seeds, distribution=st.sampled_from(DISTRIBUTIONS))
def test_values_of_weights_that_do_not_exist_change_no_mask(seed, distribution):
    tree, structural = make_params(seed), make_masks(seed)
    others = make_params(seed + 1, lambda normal: 100 * normal)
    changed = dict(tree)
    for name in ("a", "c"):
        changed[name] = jnp.where(jnp.asarray(existing(structural, name)), tree[name], others[name])
    prune = functools.partial(
        jaxprune.prune_params, sparsity=0.5, structural=structural, distribution=distribution
    )
    pruned, masks = prune(tree)
    assert_same(prune(changed), (pruned, masks))
    report = jaxprune.plan(tree, 0.5, structural=structural, distribution=distribution)
    sizes = {name: int(existing(structural, name).sum()) for name in WEIGHTS}
    dropped = {name: sizes[name] - int(masks[name].sum()) for name in WEIGHTS}
    for leaf in report.leaves:
        if leaf.path in sizes:
            assert leaf.size == sizes[leaf.path]
            assert leaf.n_zero in (None, dropped[leaf.path])
    assert report.n_zero == sum(dropped.values())
    if distribution.name != repr(jaxprune.per_slice("a")):  # which rounds each slice
        assert abs(sum(dropped.values()) - sum(sizes.values()) / 2) <= len(sizes) / 2
    for more in ({"masks": masks}, {}):
        summary = jaxprune.summarize(pruned, structural=structural, **more)
        assert {leaf.path: leaf.n_zero for leaf in summary.leaves if leaf.path in sizes} == dropped
        assert summary.size == sum(sizes.values()) + 8


@given(seed=seeds, distribution=st.sampled_from(DISTRIBUTIONS))
def test_a_mask_of_ones_changes_nothing(seed, distribution):
    tree = make_params(seed)
    prune = functools.partial(jaxprune.prune_params, tree, 0.5, distribution=distribution)
    structural = {"[ac]": np.ones((6, 8), bool)} if seed % 2 else {"c": np.ones((8, 4), np.int32)}
    if seed % 2:
        structural = {"a": structural["[ac]"], "c": jnp.ones((8, 4), bool)}
    assert_same(prune(structural=structural), prune())


SGD = optax.sgd(0.25)
N_STEPS = 8
SCHEDULE = jaxprune.cubic_schedule(0.6, 1, 5, every=2)
STRUCTURAL = make_masks()
MAKE = {
    "chain": lambda **s: optax.chain(SGD, jaxprune.prune(SCHEDULE, **s)),
    "erk": lambda **s: jaxprune.prune(SCHEDULE, inner=SGD, distribution=jaxprune.erk, **s),
    "pool": lambda **s: jaxprune.prune(SCHEDULE, distribution=jaxprune.global_pool, **s),
    "packed": lambda **s: jaxprune.prune(SCHEDULE, inner=SGD, packed=True, ties="hashed", **s),
    "slices": lambda **s: jaxprune.prune(
        SCHEDULE, inner=SGD, distribution=jaxprune.per_slice("a"), overrides={"a/2": 0.25}, **s
    ),
    "falling": lambda **s: jaxprune.prune(
        jaxprune.acdc_schedule(0.6, 1, 6, every=2), inner=SGD, regrow="zero", **s
    ),
    "hold": lambda **s: jaxprune.prune(SCHEDULE, inner=SGD, regrow="hold", **s),
    "list": lambda **s: jaxprune.prune([jaxprune.one_shot_schedule(0.0), SCHEDULE], **s),
    "rigl": lambda **s: jaxprune.rigl(0.6, 5, inner=SGD, every=1, **s),
    "set": lambda **s: jaxprune.set_(0.6, 5, inner=SGD, every=2, **s),
    "static": lambda **s: jaxprune.static_sparse(0.6, inner=SGD, **s),
}


@functools.cache
def run(form):
    """The params and the state after each update of a run, and the params before it."""
    tx = MAKE[form](structural=STRUCTURAL)
    tree = make_params()
    state = tx.init(tree)
    if form == "list":
        state = jaxprune.choose_schedule(state, 1)

    @jax.jit
    def step(tree, state, t):
        grads = jax.tree.map(lambda p: jnp.cos(5 * p + t), tree)
        updates, state = tx.update(grads, state, tree)
        return optax.apply_updates(tree, updates), state, jaxprune.metrics(state, per_leaf=True)

    history = [(tree, state, jaxprune.metrics(state))]
    for t in range(N_STEPS):
        tree, state, values = step(tree, state, jnp.float32(t))
        history.append((tree, state, values))
    assert jax.config.jax_disable_jit or step._cache_size() == 1
    return tx, history


@pytest.mark.parametrize("form", MAKE)
def test_every_step_drops_what_does_not_exist_and_counts_the_rest(form):
    tx, history = run(form)
    exists = {name: existing(STRUCTURAL, name) for name in WEIGHTS}
    size = sum(int(mask.sum()) for mask in exists.values())
    for i, (tree, state, values) in enumerate(history):
        masks = jaxprune.get_masks(state)
        assert not any(np.any(masks[name] & ~exists[name]) for name in WEIGHTS)
        n_zero = sum(int(np.sum(exists[name] & ~masks[name])) for name in WEIGHTS)
        assert values["prune/n_zero"] == n_zero
        assert values["prune/sparsity"] == np.float32(n_zero) / np.float32(size)
        assert values["prune/sparsity_all"] == np.float32(n_zero) / np.float32(size + 8)
        if i and form != "hold":
            assert_dropped_are_plus_zero(tree, masks)
            jaxprune.check(tree, state)
        summary = jaxprune.summarize(tree, state)
        assert (summary.n_zero, summary.size) == (n_zero, size + 8)
    jaxprune.check(tree, state, done=True)
    kept = jaxprune.apply_masks(tree, state)
    assert jaxprune.summarize(kept, structural=STRUCTURAL).n_zero == n_zero
    if form not in ("list", "chain"):
        assert jaxprune.plan(make_params(), tx).n_zero == n_zero
    assert abs(n_zero - 0.6 * size) <= (8 if form == "slices" else 2)


@pytest.mark.parametrize("form", ("chain", "pool", "rigl"))
def test_masks_that_keep_what_does_not_exist_are_caught_up(form):
    tx, history = run(form)
    tree, state, _ = history[-1]
    lost = jaxprune.set_masks(state, jax.tree.map(jnp.ones_like, jaxprune.get_masks(state)))
    assert jaxprune.summarize(tree, lost).n_zero == 0
    with pytest.raises(ValueError, match="masks"):
        jaxprune.check(tree, lost, done=True)
    updates, again = tx.update(jax.tree.map(jnp.zeros_like, tree), lost, tree)
    jaxprune.check(optax.apply_updates(tree, updates), again, done=True)
    assert jaxprune.metrics(again)["prune/n_zero"] == jaxprune.metrics(state)["prune/n_zero"]


def test_a_state_of_a_run_without_structural_masks_is_upgraded():
    plain = jaxprune.prune(HALF)
    tx = jaxprune.prune(HALF, structural=STRUCTURAL)
    tree = make_params()
    old = plain.init(tree)
    for one, other in ((tx, old), (plain, tx.init(tree))):
        with pytest.raises(ValueError, match=r"structural=.*upgrade_state"):
            one.update(tree, other, tree)
    state = jaxprune.upgrade_state(tx, tree, old)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, tree), state, tree)
    jaxprune.check(optax.apply_updates(tree, updates), state, done=True)
    assert jaxprune.get_masks(state)["a"].sum() == existing(STRUCTURAL, "a").sum() // 2


def test_members_of_a_batch_have_the_same_existing_weights():
    tx, history = run("list")
    trees = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), make_params())
    states = jax.vmap(lambda p, i: jaxprune.choose_schedule(tx.init(p), i))(trees, jnp.arange(2))
    updates, states = jax.vmap(tx.update)(jax.tree.map(jnp.zeros_like, trees), states, trees)
    values = jaxprune.metrics(states)
    assert values["prune/n_zero"].shape == (2,)
    summary = jaxprune.summarize(optax.apply_updates(trees, updates), states)
    size = sum(int(existing(STRUCTURAL, name).sum()) for name in WEIGHTS)
    assert (summary.n_zero, summary.size) == (0, 2 * (size + 8))
    states = jaxprune.choose_schedule(states, jnp.array([1, 0]))
    assert states.progress.absent.shape == (2, 4)
    del history


@pytest.mark.parametrize("form", ("falling", "rigl"))
def test_masks_on_an_explicit_mesh_are_those_of_one_device(form):
    mesh = make_mesh((2, 4), AxisType.Explicit)
    split, whole = PartitionSpec("data", "model"), PartitionSpec()
    tx, history = run(form)
    tree = place(make_params(), mesh, {"a": split, "b": whole, "c": split, "bias": whole})
    with jax.set_mesh(mesh):
        state = tx.init(tree)
        step = jax.jit(tx.update)
        for t in range(3):
            grads = jax.tree.map(lambda p, t=t: jnp.cos(5 * p + t), tree)
            updates, state = step(grads, state, tree)
            tree = optax.apply_updates(tree, updates)
    masks, expected = (jaxprune.get_masks(s) for s in (state, history[3][1]))
    for name in WEIGHTS:
        assert np.array_equal(masks[name], expected[name])
    assert_placed_like(state.masks, tree)


# A masked autoregressive network.

DEGREES = (np.array([1, 2, 3, 4]), np.array([1, 1, 2, 2, 3, 3, 1, 2]), np.array([1, 2, 3, 4]))
MADE_MASKS = {
    "fc/kernel": DEGREES[0][:, None] <= DEGREES[1][None, :],
    "out/kernel": DEGREES[1][:, None] < DEGREES[2][None, :],
}


class MaskedDense(nn.Module):
    """A dense layer with a constant mask on its kernel."""

    name_of_mask: str

    @nn.compact
    def __call__(self, x):
        mask = jnp.asarray(MADE_MASKS[self.name_of_mask])
        kernel = self.param("kernel", nn.initializers.normal(0.5), mask.shape)
        bias = self.param("bias", nn.initializers.zeros, mask.shape[1:])
        return x @ (kernel * mask.astype(x.dtype)) + bias


class Made(nn.Module):
    """Germain et al. 2015 (arXiv:1502.03509): the mean of each input given those before it."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(MaskedDense("fc/kernel", name="fc")(x))
        return MaskedDense("out/kernel", name="out")(x)


def test_a_masked_autoregressive_network_is_pruned_by_its_existing_weights():
    rng = np.random.default_rng(0)
    x = on_device(np.cumsum(rng.normal(size=(32, 4)), 1))
    model = Made()
    tree = model.init(jax.random.key(0), x)["params"]
    tx = jaxprune.prune(
        jaxprune.cubic_schedule(0.5, 2, 12, every=5),
        inner=optax.adam(0.02),
        structural=MADE_MASKS,
    )
    state = tx.init(tree)

    def loss(tree):
        return jnp.mean((model.apply({"params": tree}, x) - x) ** 2)

    @jax.jit
    def step(tree, state):
        value, grads = jax.value_and_grad(loss)(tree)
        updates, state = tx.update(grads, state, tree)
        return optax.apply_updates(tree, updates), state, value

    outputs = model.apply({"params": tree}, x)
    zeroed = {name: dict(leaves) for name, leaves in tree.items()}
    for path, mask in MADE_MASKS.items():
        name = path.split("/")[0]
        zeroed[name]["kernel"] = jnp.where(jnp.asarray(mask), tree[name]["kernel"], 0.0)
    assert np.array_equal(bits(model.apply({"params": zeroed}, x)), bits(outputs))
    losses = []
    for _ in range(20):
        tree, state, value = step(tree, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    jacobian = jax.jacobian(lambda v: model.apply({"params": tree}, v))(x[0])
    assert np.all(np.triu(jacobian) == 0)  # an output depends on the inputs before it only
    jaxprune.check(tree, state, done=True)
    for path, mask in MADE_MASKS.items():
        kernel = np.asarray(tree[path.split("/")[0]]["kernel"])
        n = int(mask.sum())
        assert np.count_nonzero(kernel) == n - half_up(Fraction(1, 2) * n)
        assert not np.any(kernel[~mask])


# Bad input.


def with_masks(structural, **more):
    return init(params(), structural=structural, **more)


W = np.ones((2, 4), bool)
BAD = [
    case(
        "list", lambda: with_masks([W]), TypeError, ("structural", "type list", "regexes to masks")
    ),
    case(
        "nested",
        lambda: with_masks({"fc": {"w": W}}),
        TypeError,
        ("structural['fc']", "a mapping", "whole path"),
    ),
    case(
        "float",
        lambda: with_masks({"w": W.astype(np.float32)}),
        TypeError,
        ("structural['w']", "float32", "mask != 0"),
    ),
    case(
        "traced",
        lambda: jax.jit(lambda mask: with_masks({"w": mask}))(W),
        TypeError,
        ("structural['w']", "a traced value", "outside jit"),
        pytest.mark.skip_in("disable_jit", reason="nothing is traced"),
    ),
    case(
        "nothing_exists",
        lambda: with_masks({"w": ~W}),
        ValueError,
        ("structural['w']", ("no weight exists", "(2, 4)"), "~mask"),
    ),
    case(
        "shape",
        lambda: with_masks({"w": W.T}),
        ValueError,
        ("w:", ("(4, 2)", "(2, 4)"), "mask.T"),
    ),
    case(
        "shape_in_summarize",
        lambda: jaxprune.summarize(params(), structural={"w": np.ones(4, bool)}),
        ValueError,
        ("w:", ("(4,)", "(2, 4)"), "structural={'w': ...}"),
    ),
    case(
        "no_match",
        lambda: with_masks({"params/w": W}),
        ValueError,
        ("structural", "'params/w'", "structural={'w': ...}"),
    ),
    case(
        "no_match_in_summarize",
        lambda: jaxprune.summarize(params(), structural={"v": W}),
        ValueError,
        ("structural", "'v'", None),
    ),
    case(
        "not_pruned",
        lambda: with_masks({"b": np.ones(4, bool)}),
        ValueError,
        ("structural", ("'b'", "not pruned", "1-D"), "include"),
    ),
    case(
        "all_existing_dropped",
        lambda: with_masks({"w": np.arange(8).reshape(2, 4) == 3}),
        ValueError,
        ("w:", "1", "exclude='w'"),
    ),
    case(
        "axis_name",
        lambda: jaxprune.prune(HALF, structural={"w": W}, axis_name="data"),
        ValueError,
        ("axis_name", "structural", "under jit"),
    ),
] + [
    case(
        type(structure).__name__,
        lambda structure=structure: init(
            {"w": ones(4, 4), "b": ones(4)},
            structural={"w": np.tri(4, dtype=bool)},
            structure=structure,
        ),
        ValueError,
        ("w:", (repr(structure), "10", "16"), "Unstructured()"),
    )
    for structure in (NM(2, 4, axis=-2), Block((2, 2)), Channel(axis=-1))
]


@pytest.mark.parametrize("call, kind, parts", BAD)
def test_bad_input(call, kind, parts):
    assert_error(call, kind, parts)
