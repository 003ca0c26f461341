"""Rules that match nothing are errors, which name the nearest paths and what to write instead."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, strategies as st

import jaxprune
from helpers import assert_says, by_path, ones, says
from jaxprune import Block, Channel, per_slice
from jaxprune._recipe.coupled import Coupled

HALF = jaxprune.one_shot_schedule(0.5)
SGD = optax.sgd(0.1)


def params():
    layer = lambda: {"kernel": ones(4, 4), "bias": ones(4)}
    return {"body": {"attn": layer(), "mlp": layer()}, "head": layer()}


FUNCTIONS = {
    "prune": lambda p, **rules: jaxprune.prune(HALF, **rules).init(p),
    "inner": lambda p, **rules: jaxprune.prune(HALF, inner=SGD, **rules).init(p),
    "plan": lambda p, **rules: jaxprune.plan(p, 0.5, **rules),
    "plan of a transformation": lambda p, **rules: jaxprune.plan(p, jaxprune.prune(HALF, **rules)),
    "prune_params": lambda p, **rules: jaxprune.prune_params(p, 0.5, **rules),
    "rigl": lambda p, **rules: jaxprune.rigl(0.5, 9, inner=SGD, **rules).init(p),
    "set_": lambda p, **rules: jaxprune.set_(0.5, 9, inner=SGD, **rules).init(p),
    "static_sparse": lambda p, **rules: jaxprune.static_sparse(0.5, inner=SGD, **rules).init(p),
}
SELECTING = {
    "masks_from_params": lambda p, **rules: jaxprune.masks_from_params(p, **rules),
    "keep_zeros": lambda p, **rules: jaxprune.keep_zeros(SGD, **rules).init(p),
    "wanda": lambda p, **rules: jaxprune.wanda(p, {}, 0.5, **rules),
    "sparsegpt": lambda p, **rules: jaxprune.sparsegpt(p, {}, 0.5, **rules),
}
RULES = {
    "include": (dict(include="head"), ("include: 'head'", "head/bias", "include='head/.*'")),
    "one of two includes": (dict(include=("head/.*", "kernl")), ("include: 'kernl'",)),
    "exclude": (dict(exclude="head"), ("exclude: 'head'", "head/bias", "exclude='head/.*'")),
    "a suffix": (dict(exclude="bias"), ("exclude: 'bias'", "exclude='.*bias'")),
    "a part": (dict(exclude="attn"), ("body/attn/bias", "exclude='.*attn/.*'")),
    "a typing error": (dict(exclude="haed/.*"), ("exclude: 'haed/.*'", "exclude='head/.*'")),
    "upper case": (dict(exclude="HEAD/.*"), ("exclude='(?i)HEAD/.*'",)),
    "a glob": (dict(exclude="head/*"), ("exclude='head/.*'",)),
    "a collection": (dict(exclude="params/head/.*"), ("exclude='head/.*'",)),
    "a list in one string": (
        dict(exclude="head/.*, body/attn/.*"),
        ("head/bias", "exclude='head/.*|body/attn/.*'"),
    ),
    "alternatives": (dict(exclude="head|body"), ("exclude='(head|body)/.*'",)),
    "one of two": (dict(exclude=("head/.*", "body")), ("exclude=('head/.*', 'body/.*')",)),
    "one of two, and a function": (
        dict(exclude=(lambda path, leaf: False, "body")),
        ("exclude='body/.*'",),
    ),
    "nothing to keep": (dict(exclude=("zzz", "body")), ("exclude='body/.*'",)),
    "no such leaf": (dict(exclude="zzz"), ("Remove the rule if there are no such leaves",)),
    "no such leaves": (dict(exclude=("zzz", "yyy")), ("Remove the rules if there are no such",)),
    "two": (dict(exclude=("head", "bias")), ("exclude=('head/.*', '.*bias')",)),
    "unlike any path": (dict(exclude="zzz"), ("exclude: 'zzz'", "'body/attn/bias'")),
    "overrides": (
        dict(overrides={"head": 0.25, ".*": 0.5}),
        ("overrides: 'head'", "overrides={'head/.*': 0.25, '.*': 0.5}"),
    ),
    "structure": (
        dict(structure={"head": Channel()}),
        ("structure: 'head'", "structure={'head/.*': ...}"),
    ),
    "per_slice": (
        dict(distribution=per_slice({"head/.*": 0, "attn": 1})),
        ("per_slice: 'attn'", "per_slice({'head/.*': 0, '.*attn/.*': 1})"),
    ),
    "all": (
        dict(include=(".*", "i"), exclude="e", overrides={"o": 0.5}, structure={"s": Block((2,))}),
        ("include: 'i'", "exclude: 'e'", "overrides: 'o'", "structure: 's'"),
    ),
    "not pruned": (
        dict(overrides={"head/bias": 0.25}),
        ("overrides: 'head/bias'", "head/bias (1-D)", "include=('...', 'head/bias')"),
    ),
    "structure of what is not pruned": (
        dict(structure={".*bias": Channel()}),
        ("structure: '.*bias'", "head/bias (1-D)"),
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_with_rules_raises(function):
    for rules, parts in RULES.values():
        with pytest.raises(ValueError, match=says(*parts)):
            FUNCTIONS[function](params(), **rules)


@pytest.mark.parametrize("function", SELECTING)
def test_functions_that_only_select_raise(function):
    for rules, parts in RULES.values():
        if set(rules) <= {"include", "exclude"}:
            with pytest.raises(ValueError, match=says(*parts)):
                SELECTING[function](params(), **rules)


NAMES = st.text("ab", min_size=1, max_size=3)
TREES = st.dictionaries(NAMES, st.dictionaries(NAMES, st.just(0), min_size=1), min_size=1)


@given(tree=TREES, rule=st.text("ab/", min_size=1, max_size=4) | st.just("[ab]+"))
def test_what_the_error_suggests_matches_a_path(tree, rule):
    tree = jax.tree.map(lambda _: jax.ShapeDtypeStruct((4, 4), jnp.float32), tree)
    try:
        jaxprune.plan(tree, 0.5, exclude=(rule, "-.*"))
    except ValueError as error:
        suggested = error.arguments.get("exclude", ())
    suggested = {suggested} if isinstance(suggested, str) else set(suggested)
    assert rule not in suggested
    paths = [leaf.path for leaf in jaxprune.plan(tree, 0.5).leaves]
    others = [path for path in paths if path != paths[0]]
    for suggestion in suggested:
        report = jaxprune.plan(tree, 0.5, include=(".*", suggestion))
        assert report.notes == (), others


def test_the_error_survives_pickling():
    with pytest.raises(ValueError, match="exclude: 'head'") as error:
        jaxprune.plan(params(), 0.5, exclude="head")
    copy = pickle.loads(pickle.dumps(error.value))
    assert str(copy) == str(error.value)
    assert type(copy) is type(error.value)


# --- slices


STACKED = {"experts": ones(4, 2, 4), "w": ones(4, 4), "b": ones(4)}
STACK = {"experts": ("stack", "in", "out")}
SLICES = {
    "index": (
        dict(roles=STACK, overrides={"experts/7": 0.75}),
        ("overrides: 'experts/7'", "has slices experts/0 to experts/3"),
    ),
    "indices": (
        dict(roles=STACK, overrides={"experts/[5-7]": 0.75}),
        ("has slices experts/0 to experts/3",),
    ),
    "per_slice": (
        dict(distribution=per_slice({"experts": 1}), overrides={"experts/2": 0.75}),
        ("has slices experts/0 to experts/1",),
    ),
    "no roles": (
        dict(overrides={"experts/1": 0.75}),
        (
            "experts is one leaf; to name its slices, give an axis the role 'stack'",
            "such as roles={'experts': ('stack', 'in', 'out')}",
            "per_slice",
        ),
    ),
    "no roles, and dots": (dict(overrides={r"experts\.1": 0.75}), ("experts is one leaf",)),
    "two axes": (
        dict(overrides={"w.1": 0.75}),
        ("w is one leaf", "the role 'stack', or use per_slice, each with a distribution"),
    ),
    "exclude": (
        dict(roles=STACK, exclude="experts/2"),
        ("exclude takes whole leaves", "overrides={'experts/2': 0}", "or from per_slice"),
    ),
    "include": (dict(include="experts/2"), ("include takes whole leaves",)),
    "structure": (dict(structure={"experts/2": Channel()}), ("structure takes whole leaves",)),
}


@pytest.mark.parametrize("rules, parts", SLICES.values(), ids=SLICES)
def test_a_slice_is_not_answered_with_the_whole_leaf(rules, parts):
    with pytest.raises(ValueError, match=says(*parts)) as error:
        jaxprune.plan(STACKED, 0.5, **rules)
    text = str(error.value).replace("roles={'experts'", "")
    assert_says(text, "matches no leaf")
    for word in ("'experts'", "'w'", "write", "nearest", "whole path"):
        assert word not in text


def test_a_sparsity_of_zero_keeps_a_slice():
    """What the error about `exclude` suggests."""
    report = jaxprune.plan(STACKED, 0.5, roles=STACK, overrides={"experts/2": 0})
    assert {leaf.path: leaf.n_zero for leaf in report.leaves} == {"b": 0, "experts": 12, "w": 8}


def test_other_rules_are_still_answered_beside_slices():
    with pytest.raises(ValueError, match="experts is one leaf") as error:
        jaxprune.plan(STACKED, 0.5, exclude=("experts/2", "ww"))
    assert error.value.arguments == {"exclude": "w"}


def test_a_suggestion_changes_no_value_of_a_rule_that_matches():
    with pytest.raises(ValueError, match="'ww' matches no leaf") as error:
        jaxprune.plan({"w": ones(2, 2)}, 0.5, overrides={"w": 0.25, "ww": 0.75})
    assert error.value.arguments == {"overrides": {"w": 0.25}}


# --- what is allowed


ALLOWED = {
    "a function": dict(exclude=lambda path, leaf: False),
    "functions as keys": dict(overrides={(lambda path, leaf: False): 0.25}),
    "shadowed": dict(overrides={"head/.*": 0.25, "head/kernel": 0.75}),
    "a leaf left out by another rule": dict(exclude="head/.*", overrides={"head/kernel": 0.25}),
    "a leaf not included": dict(include="head/.*", structure={"body/.*": Channel()}),
    "zero for what is not pruned": dict(overrides={".*bias": 0.0}),
    "an exclusion of what is not pruned": dict(exclude=".*bias"),
}


@pytest.mark.parametrize("rules", ALLOWED.values(), ids=ALLOWED)
def test_rules_that_other_rules_make_useless_are_allowed_and_shown(rules):
    for function in FUNCTIONS.values():
        function(params(), **rules)
    notes = jaxprune.plan(params(), 0.5, **rules).notes
    assert len(notes) == (rules != ALLOWED["an exclusion of what is not pruned"])


def test_update_does_not_check_rules():
    body = {"body": params()["body"]}
    state = jaxprune.prune(HALF, inner=SGD).init(body)
    jaxprune.prune(HALF, exclude="head/.*", inner=SGD).update(body, state, body)


def test_a_tree_without_leaves_is_not_checked():
    tx = optax.chain(optax.adam(0.1), jaxprune.prune(HALF, exclude="head/.*"))
    touched = optax.tree.map_params(tx, lambda x: x * 0, tx.init(params()))
    assert not any(leaf.any() for leaf in by_path(jaxprune.get_state(touched).masks).values())
    assert jaxprune.prune(HALF, exclude="head/.*").init({}).masks == {}


# --- hidden leaves


def prefix_of(name):
    """A mask that hides a whole subtree by one placeholder."""
    return {key: key != name for key in params()}


def leaf_by_leaf(name):
    paths = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != name, params())
    return paths


@pytest.mark.parametrize("mask", (prefix_of, leaf_by_leaf))
@pytest.mark.parametrize(
    "exclude", ("head/kernel", "head/.*", ".*d/kernel", r"head\/bias", "(head)/(kernel|bias)")
)
def test_leaves_that_masked_hides_count_as_present(mask, exclude):
    tx = optax.masked(jaxprune.prune(HALF, exclude=exclude), mask("head"))
    state = tx.init(params())
    _, state = tx.update(params(), state, params())
    assert int(jaxprune.get_state(state).prune_step) == 1


def test_masked_does_not_hide_a_wrong_rule():
    for mask in (prefix_of("head"), leaf_by_leaf("head")):
        tx = optax.masked(jaxprune.prune(HALF, exclude="heed/.*"), mask)
        with pytest.raises(ValueError, match=r"'heed/.*' matches no leaf"):
            tx.init(params())


def test_each_prune_of_a_partition_may_have_rules_for_all_leaves():
    rules = dict(overrides={"head/kernel": 0.75, "body/.*": 0.25})
    labels = {"body": "a", "head": "b"}
    tx = optax.partition(
        {"a": jaxprune.prune(HALF, **rules), "b": jaxprune.prune(HALF, **rules)}, labels
    )
    _, state = tx.update(params(), tx.init(params()), params())
    dropped = {p: int(np.sum(~m)) for p, m in by_path(jaxprune.get_masks(state, params())).items()}
    assert dropped["head/kernel"] == 12
    assert dropped["body/mlp/kernel"] == 4


def test_none_counts_as_a_hidden_leaf():
    tree = params() | {"frozen": None}
    jaxprune.plan(tree, 0.5, exclude="frozen/.*")
    with pytest.raises(ValueError, match=r"'froze/.*' matches no leaf"):
        jaxprune.plan(tree, 0.5, exclude="froze/.*")


def test_leaves_hidden_in_a_box_count_as_present():
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    mask = jax.tree_util.tree_map_with_path(lambda path, _: "bias" not in str(path), state)
    optax.masked(jaxprune.prune(HALF, exclude="bias"), mask).init(state)


# --- ready-made mappings


def mlp(tree, x):
    return jax.nn.relu(x @ tree["w"] + tree["b"][None]) @ tree["v"]


def test_groups_of_channels_are_checked_as_a_whole():
    tree = {"w": ones(3, 4), "b": ones(4), "v": ones(4, 2)}
    groups = jaxprune.channel_groups(mlp, tree, ones(1, 3))
    rules = dict(structure=groups, include=tuple(groups))
    with pytest.raises(ValueError, match="structure: b: not in these params; but w of the same"):
        jaxprune.plan({"w": tree["w"], "v": tree["v"]}, 0.5, **rules)
    jaxprune.plan({"w": tree["w"]}, 0.5, structure=groups, include="w")  # as the user says
    with pytest.raises(ValueError, match="matches no leaf") as error:
        jaxprune.plan({"u": ones(4, 4)}, 0.5, structure=groups)
    assert_says(str(error.value), *(f"structure: {rule!r}" for rule in groups))
    with pytest.raises(ValueError, match="structure: 'x' matches no leaf"):
        jaxprune.plan(tree, 0.5, structure={**groups, "x": Channel()})


def test_groups_of_channels_ask_for_their_leaves():
    tree = {"w": ones(3, 4), "b": ones(4), "v": ones(4, 2)}
    groups = jaxprune.channel_groups(mlp, tree, ones(1, 3))
    for init in (jaxprune.prune(HALF, structure=groups).init, planned(structure=groups)):
        with pytest.raises(ValueError, match="structure: ") as error:
            init(tree)
        parts = ("not pruned by default: b;", "weight by weight: v.", "include=tuple(groups)")
        assert_says(str(error.value), *parts)
    with pytest.raises(ValueError, match=r"not pruned by default: b\. "):
        planned(structure=groups, exclude="v")(tree)
    leaves = planned(structure=groups, include=tuple(groups))(tree).leaves
    assert {leaf.path for leaf in leaves if leaf.sparsity} == {"w", "b"}
    # To prune other leaves as well, or to leave biases, takes a rule that says so.
    planned(structure=groups, include=".*")(tree)
    planned(structure=groups, exclude=("v", "b"))(tree)
    planned(structure={**groups, "v": Channel()})(tree)


def test_a_kernel_of_a_group_is_left_out_with_its_group():
    """Else its channels would be dropped in the normalisation behind it, and so switched off."""

    tree = {"w": ones(3, 4), "b": ones(4), "v": ones(4, 2)}
    tree["norm"] = {"scale": ones(4), "bias": ones(4)}
    kinds = {"b": 0, "norm/bias": 0, "norm/scale": 0, "w": 1}
    groups = {path: Coupled("w", axis, (0, 1, 2, 3), 4) for path, axis in kinds.items()}
    rules = dict(structure=groups, include=tuple(groups))
    whole = ("b", "norm/bias", "norm/scale", "w")
    for exclude in ("w", ("w", "b")):
        for init in (
            jaxprune.prune(HALF, **rules, exclude=exclude).init,
            planned(**rules, exclude=exclude),
        ):
            with pytest.raises(ValueError, match="structure: w: left out") as error:
                init(tree)
            assert_says(str(error.value), "norm/bias, norm/scale", f"exclude={whole!r}")
    others = ones(4, 4)
    leaves = planned(structure=groups, include=(*groups, "u"), exclude=whole)(
        {**tree, "u": others}
    ).leaves
    assert {leaf.path for leaf in leaves if leaf.n_zero} == {"u"}
    planned(**rules, exclude="b")(tree)  # a bias may stay


def planned(**rules):
    return lambda tree: jaxprune.plan(tree, 0.5, **rules)
