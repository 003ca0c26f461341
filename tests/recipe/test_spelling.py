"""Rules work in both spellings of paths: with slashes, as in JAX, and with dots, as in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from helpers import says

LEAVES = {
    "encoder/fc/kernel": (8, 4),
    "encoder/fc/bias": (4,),
    "encoder/out/kernel": (4, 8),
    "head/kernel": (8, 4),
}
SLASHES = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in LEAVES.items()}
DOTS = {path.replace("/", "."): leaf for path, leaf in SLASHES.items()}
RULES = {
    "include": ({"include": "encoder/.*/kernel"}, {"include": r"encoder\..*\.kernel"}),
    "exclude": ({"exclude": ["encoder/.*"]}, {"exclude": [r"encoder\..*"]}),
    "a class": (
        {"exclude": "encoder/[^/]*/kernel"},
        {"exclude": r"encoder[.](fc|out)[.]kernel"},
    ),
    "overrides": ({"overrides": {"head/kernel": 0.25}}, {"overrides": {r"head\.kernel": 0.25}}),
    "structure": (
        {"structure": {"encoder/.*": jaxprune.Channel(-1)}},
        {"structure": {r"encoder\..*": jaxprune.Channel(-1)}},
    ),
    "per_slice": (
        {"distribution": jaxprune.per_slice("head/kernel")},
        {"distribution": jaxprune.per_slice(r"head\.kernel")},
    ),
    "roles": (
        {"roles": {"encoder/.*": ("out", "in")}, "structure": jaxprune.Channel()},
        {"roles": {r"encoder\..*": ("out", "in")}, "structure": jaxprune.Channel()},
    ),
}


def planned(tree, rules):
    """The rows of a plan, with paths in one spelling."""
    rows = jaxprune.plan(tree, 0.3, **rules).leaves
    about = {row.path: (row.n_zero, row.roles, "Channel" in row.note) for row in rows}
    return {path.replace(".", "/"): row for path, row in about.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_means_the_same_in_both_spellings_on_both_trees(name):
    """C7."""
    with_slashes, with_dots = RULES[name]
    expected = planned(SLASHES, with_slashes)
    assert expected != planned(SLASHES, {})
    for tree in (SLASHES, DOTS):
        for rules in (with_slashes, with_dots):
            assert planned(tree, rules) == expected


def test_a_rule_that_matches_as_it_is_written_is_not_changed():
    leaf = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    tree = {"a/w": leaf, "a.w": leaf, "b.w": leaf}
    excluded = [row.path for row in jaxprune.plan(tree, 0.5, exclude=r"a\.w").leaves if row.note]
    assert excluded == ["a.w"]
    excluded = [row.path for row in jaxprune.plan(tree, 0.5, exclude="a/w").leaves if row.note]
    assert excluded == ["a/w"]


def test_a_rule_that_matches_in_neither_spelling_is_shown_as_it_was_written():
    with pytest.raises(ValueError, match=says("exclude: 'decoder/.*' matches no leaf")):
        jaxprune.plan(DOTS, 0.5, exclude="decoder/.*")
    with pytest.raises(ValueError, match=says("encoder", "bias", "1-D")):
        jaxprune.plan(DOTS, 0.5, overrides={"encoder/fc/bias": 0.5})


def test_a_suggestion_is_in_the_spelling_of_the_paths():
    with pytest.raises(ValueError, match=says("'encoder/fc' matches no leaf")) as caught:
        jaxprune.plan(DOTS, 0.5, exclude="encoder/fc")
    assert r"exclude='encoder\\.fc\\..*'" in str(caught.value)
    with pytest.raises(ValueError, match=says("exclude='encoder/fc/.*'")):
        jaxprune.plan(SLASHES, 0.5, exclude=r"encoder\.fc")


def test_training_and_pruning_once_follow_the_same_spelling():
    params = {
        path: jnp.asarray(np.random.default_rng(0).normal(size=shape))
        for path, shape in LEAVES.items()
    }
    params = {path.replace("/", "."): x for path, x in params.items()}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.sgd(0.1), exclude="head/.*")
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    trained = optax.apply_updates(params, updates)
    once, _ = jaxprune.prune_params(params, 0.5, exclude="head/.*")
    for path in params:
        np.testing.assert_array_equal(trained[path], once[path])
    assert np.count_nonzero(once["head.kernel"]) == 32
    assert np.count_nonzero(once["encoder.fc.kernel"]) == 16


def test_masks_from_params_follow_it_too():
    kept = jaxprune.masks_from_params({"a.w": jnp.eye(4), "b.w": jnp.eye(4)}, include="a/w")
    assert int(jnp.sum(kept["a.w"])) == 4
    assert bool(jnp.all(kept["b.w"]))


# --- slices


STACKED = {"layers/w": (3, 8, 4), "layers/out/kernel": (8, 4)}
STACKED_ROLES = {"layers.w": ("stack", "in", "out")}  # a dot of a regex is any character


def stacked(separator):
    return {
        path.replace("/", separator): jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in STACKED.items()
    }


@pytest.mark.parametrize("rule", ("layers/w/2", r"layers\.w\.2", r"layers\.w/2", "layers[.]w[.]2"))
@pytest.mark.parametrize("separator", "/.")
def test_an_override_of_a_slice_is_tried_in_every_spelling(rule, separator):
    rows = jaxprune.plan(
        stacked(separator), 0.5, roles=STACKED_ROLES, overrides={rule: 0.75}
    ).leaves
    assert {row.path.replace(".", "/"): row.n_zero for row in rows} == {
        "layers/w": 16 + 16 + 24,
        "layers/out/kernel": 16,
    }


@pytest.mark.parametrize("rule", ("layers/w/1/0", r"layers\.w\.1\.0"))
@pytest.mark.parametrize("separator", "/.")
def test_a_slice_may_have_two_indices(rule, separator):
    leaf = jax.ShapeDtypeStruct((2, 2, 4, 4), jnp.float32)
    roles = {"layers.w": ("stack", "stack", "in", "out")}
    tree = {f"layers{separator}w": leaf}
    report = jaxprune.plan(tree, 0.5, roles=roles, overrides={rule: 0.75})
    assert report.n_zero == 8 * 3 + 12


@pytest.mark.parametrize("rule", ("layers/w/7", r"layers\.w\.7"))
@pytest.mark.parametrize("separator", "/.")
def test_a_slice_that_a_leaf_does_not_have_is_answered_with_those_that_it_has(rule, separator):
    tree, path = stacked(separator), f"layers{separator}w"
    hint = f"{path} has slices {path}/0 to {path}/2"
    with pytest.raises(ValueError, match=says(repr(rule), hint)):
        jaxprune.plan(tree, 0.5, roles=STACKED_ROLES, overrides={rule: 0.75})


def test_a_slice_is_pruned_as_the_plan_says_in_every_spelling():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 4)))
    for path, rule in (("layers/w", r"layers\.w\.2"), ("layers.w", "layers/w/2")):
        tx = jaxprune.prune(
            jaxprune.one_shot_schedule(0.5), roles=STACKED_ROLES, overrides={rule: 0.75}
        )
        _, state = tx.update({path: w}, tx.init({path: w}), {path: w})
        n_kept = np.sum(np.asarray(jaxprune.get_masks(state)[path]) != 0, axis=(1, 2))
        assert n_kept.tolist() == [16, 16, 8]


# --- functions with rules of their own


KERNELS = {
    path.replace("/", separator): np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for separator in "/."
    for path, shape in LEAVES.items()
}


def params_in(separator):
    """Params whose paths have this separator."""
    paths = [path.replace("/", separator) for path in LEAVES]
    return {path: KERNELS[path] for path in paths}


def n_zeros(params):
    return {path.replace(".", "/"): int(np.sum(np.asarray(x) == 0)) for path, x in params.items()}


@pytest.mark.parametrize("rule", ("encoder/.*kernel", r"encoder\..*kernel"))
@pytest.mark.parametrize("separator", "/.")
@pytest.mark.filterwarnings("ignore:.*more than half of the blocks")
def test_packing_follows_both_spellings(rule, separator, tmp_path):
    params = params_in(separator)
    packed = jaxprune.pack_kernels(params, rule)
    expected = {"encoder/fc/kernel", "encoder/out/kernel"}
    assert {path.replace(".", "/") for path in packed} == expected
    jaxprune.save(tmp_path / "a.zst", params)
    _, loaded = jaxprune.load_packed(tmp_path / "a.zst", rule)
    assert loaded.keys() == packed.keys()
    with pytest.raises(ValueError, match=says("nothing to pack", repr(r"decoder\..*"))):
        jaxprune.pack_kernels(params, r"decoder\..*")


@pytest.mark.filterwarnings("ignore:.*more than half of the blocks")
def test_packing_the_layers_of_a_model_follows_both_spellings():
    nnx = pytest.importorskip("flax.nnx")
    for rule in ("layers/1/kernel", r"layers\.1\.kernel"):
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs))
        assert jaxprune.pack_linear(model, rule) == ["layers/1/kernel"]


CALIBRATION = {
    "overrides": ({"head/kernel": 24}, {"overrides": {"head/kernel": 0.75}}),
    "exclude": ({"encoder/fc/kernel": 0, "encoder/out/kernel": 0}, {"exclude": "encoder/.*"}),
    "include": (
        {"encoder/fc/kernel": 0, "encoder/out/kernel": 0},
        {"include": "head/.*"},
    ),
    "roles": ({}, {"roles": {"head/.*": ("out", "in"), ".*": ("in", "out")}}),
}


def with_dots(rules):
    """The rules of an argument with dots for slashes."""
    if isinstance(rules, dict):
        return {rule.replace("/", r"\."): value for rule, value in rules.items()}
    return rules.replace("/", "[.]")


@pytest.mark.parametrize("separator", "/.")
@pytest.mark.parametrize("name", CALIBRATION)
@pytest.mark.parametrize("method", (jaxprune.wanda, jaxprune.sparsegpt))
def test_wanda_and_sparsegpt_follow_both_spellings(method, name, separator):
    params, rng = params_in(separator), np.random.default_rng(1)
    inputs = {}
    for path, x in params.items():
        if x.ndim == 2:
            n_in = x.shape[1] if name == "roles" and path.startswith("head") else x.shape[0]
            inputs[path] = rng.normal(size=(16, n_in))
    changes, rules = CALIBRATION[name]
    expected = {path: 16 for path in LEAVES} | {"encoder/fc/bias": 0} | changes
    for same in (rules, {argument: with_dots(value) for argument, value in rules.items()}):
        assert n_zeros(method(params, inputs, 0.5, **same)[0]) == expected


@pytest.mark.parametrize("rule", ("layers/w/2", r"layers\.w\.2"))
@pytest.mark.parametrize("separator", "/.")
def test_wanda_follows_them_for_slices(rule, separator):
    path = f"layers{separator}w"
    rng = np.random.default_rng(0)
    params, inputs = {path: rng.normal(size=(3, 8, 4))}, {path: rng.normal(size=(3, 16, 8))}
    rules = {"roles": STACKED_ROLES, "overrides": {rule: 0.75}}
    pruned, _ = jaxprune.wanda(params, inputs, 0.5, **rules)
    assert np.sum(np.asarray(pruned[path]) == 0, axis=(1, 2)).tolist() == [16, 16, 24]
    one_leaf = {"roles": {"layers.w": ("out", "in", "out")}, "overrides": {rule: 0.75}}
    with pytest.raises(ValueError, match=says(repr(rule), "no slices", "'stack'")):
        jaxprune.wanda(params, {path: rng.normal(size=(16, 8))}, 0.5, **one_leaf)


def network(params, x):
    """All kernels in a row, whatever the separator of their paths."""
    fc, out, head = (params[path] for path in params if path.endswith("kernel"))
    return jax.nn.relu(x @ fc) @ out @ head


@pytest.mark.parametrize("separator", "/.")
def test_inputs_are_collected_of_the_leaves_that_either_spelling_names(separator):
    params, x = params_in(separator), np.ones((2, 8), np.float32)
    for rule in ("encoder/.*", r"encoder\..*"):
        inputs = jaxprune.layer_inputs(network, params, x, exclude=rule)
        assert [path.replace(".", "/") for path in inputs] == ["head/kernel"]


@pytest.mark.parametrize("separator", "/.")
def test_pruning_layer_by_layer_follows_both_spellings(separator, capsys):
    params = params_in(separator)
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    for block, rule in (("encoder/.*", "head/kernel"), (r"encoder\..*", r"head\.kernel")):
        pruned, _ = jaxprune.prune_sequentially(
            jaxprune.wanda, network, params, x, sparsity=0.5, blocks=[block],
            overrides={rule: 0.75}, exclude="encoder/.*bias", progress=True,
        )  # fmt: skip
        assert n_zeros(pruned)["head/kernel"] == 24
        assert "2/2" in capsys.readouterr().err  # two steps: the block, and the head


@pytest.mark.parametrize("separator", "/.")
def test_groups_and_structures_of_sensitivity_follow_both_spellings(separator):
    params = params_in(separator)
    for group, rule in (("encoder/.*", "head/.*"), (r"encoder\..*", r"head\..*")):
        table = jaxprune.sensitivity(
            lambda p: sum(jnp.sum(x**2) for x in p.values()), params, (0.5,),
            groups=[group, rule], structure={rule: jaxprune.Channel(-1)},
        )  # fmt: skip
        assert table.rules == (group, rule)
        assert table.sizes.tolist() == [64, 32]
        channels = np.sort(np.sum(params[f"head{separator}kernel"] ** 2, axis=0))
        assert table.losses[1, 0] == pytest.approx(table.dense_loss - channels[:2].sum(), rel=1e-5)
        assert jaxprune.sparsities_for(table, 0.25).keys() == {group, rule}
    with pytest.raises(ValueError, match=says(r"'decoder\\..*' matches no leaf")):
        jaxprune.sensitivity(lambda p: jnp.zeros(()), params, (0.5,), groups=r"decoder\..*")
