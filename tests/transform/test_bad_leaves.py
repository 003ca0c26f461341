"""Leaves that cannot be pruned, and rules that select nothing."""

import ast
import re
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune
from bad_input import (
    HALF,
    Tensor,
    assert_error,
    case,
    cubic,
    init,
    params,
)
from helpers import assert_same, assert_says, ones, says
from jaxprune._base import counting


def keys():
    return jax.random.split(jax.random.key(0), 4).reshape(2, 2)


def big(*shape):
    return {"a": {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}, "b": ones(4)}


def scored(score, **more):
    return init({"w": ones(2, 4), "b": ones(4)}, score=score, **more)


def train_state():
    return TrainState.create(apply_fn=len, params=params(), tx=optax.adam(1e-3))


def nnx_optimizer():
    return nnx.Optimizer(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), optax.adam(1e-3), wrt=nnx.Param)


VARIABLES = {
    "params": {"fc": {"kernel": ones(4, 4), "bias": ones(4)}},
    "batch_stats": {"norm": {"mean": ones(4)}},
}

LEAVES = [
    *(
        case(
            f"variables_of_a_linen_model_with_{name}",
            lambda rules=rules: init(VARIABLES, **rules),
            ValueError,
            ("batch_stats:", "linen", "Pass variables['params'] alone"),
        )
        for name, rules in {
            "no_rules": {},
            "include": dict(include="fc/kernel"),
            "overrides": dict(overrides={"fc/kernel": 0.3}),
            "structure": dict(structure={"fc/kernel": jaxprune.NM(2, 4)}),
        }.items()
    ),
    case(
        "a_rule_that_returns_no_bool",
        lambda: init({"w": ones(2, 4)}, exclude=lambda path, leaf: jnp.ones(3)),
        TypeError,
        ("w:", ("<lambda>", "True or False"), "path.endswith('kernel')"),
    ),
    case(
        "a_leaf_whose_groups_are_too_small",
        lambda: jaxprune.plan(
            {"w": ones(8, 16)}, 0.75, structure=jaxprune.Block((4, 4), balanced=True)
        ),
        ValueError,
        (
            "w:",
            "all of its 8 units at sparsity 0.75, because each of its 4 groups of 2",
            "exclude=",
        ),
    ),
    case(
        "integers_only",
        lambda: jaxprune.prune_params({"w": jnp.ones((4, 4), jnp.int8)}, 0.5),
        ValueError,
        ("nothing to prune", "w (dtype int8)", "pass the params that these arrays were made of"),
    ),
    case(
        "a_train_state",
        lambda: jaxprune.prune_params(train_state(), 0.5),
        TypeError,
        ("(root):", "TrainState", "state.params of a TrainState"),
    ),
    case(
        "an_nnx_optimizer",
        lambda: jaxprune.plan(nnx_optimizer(), HALF),
        TypeError,
        ("opt_state/0:", "ScaleByAdamState", "nnx.state(model, nnx.Param)"),
    ),
    case(
        "an_optimizer_state_of_optax",
        lambda: jaxprune.masks_from_params(optax.trace(0.9).init(params())),
        TypeError,
        ("(root):", "TraceState", "Pass the params alone"),
    ),
    case(
        "params_and_state_in_one_tree",
        lambda: init({"params": params(), "opt_state": jaxprune.prune(HALF).init(params())}),
        TypeError,
        ("opt_state:", "PruneState", "Pass the params alone"),
    ),
    case(
        "int32",
        lambda: init({"w": ones(2, 2), "a": {"n": ones(2, 2, dtype=jnp.int32)}}, include=".*"),
        ValueError,
        ("a/n:", "int32", "exclude='a/n'"),
    ),
    case(
        "bool",
        lambda: jaxprune.prune_params(
            {"w": ones(2, 2), "m": ones(2, dtype=bool)}, 0.5, include=".*"
        ),
        ValueError,
        ("m:", "bool", "exclude='m'"),
    ),
    case(
        "prng_key",
        lambda: jaxprune.plan({"w": ones(2, 2), "k": keys()}, HALF, include=("w", "k")),
        ValueError,
        ("k:", "key<fry>", "exclude='k'"),
    ),
    case(
        "int32_in_masks_from_params",
        lambda: jaxprune.masks_from_params(params(), include=".*"),
        ValueError,
        ("n:", "int32", "exclude='n'"),
    ),
    case(
        "float8_without_a_zero",
        lambda: init({"w": ones(2, 2), "s": ones(2, 2, dtype=jnp.float8_e8m0fnu)}),
        ValueError,
        ("s:", "float8_e8m0fnu", "exclude='s'"),
    ),
    case(
        "masks_of_float8_without_a_zero",
        lambda: jaxprune.apply_masks(
            {"w": ones(2), "s": ones(2, dtype=jnp.float8_e8m0fnu)},
            {"w": jnp.array([True, False]), "s": jnp.array([True, False])},
        ),
        TypeError,
        ("s:", ("float8_e8m0fnu", "no zero"), "Put None where its mask is"),
    ),
    case(
        "int32_root",
        lambda: init(ones(2, 2, dtype=jnp.int32), include=".*"),
        ValueError,
        ("(root):", "int32", "exclude=''"),
    ),
    case(
        "emptied",
        lambda: init({"a": {"w": ones(1, 2)}, "w": ones(4, 4), "b": ones(4)}, cubic(0.9)),
        ValueError,
        ("a/w:", ("(1, 2)", "0.9"), ("exclude='a/w'", "overrides={'a/w': ...}")),
    ),
    case(
        "emptied_by_an_override",
        lambda: init({"a": {"w": ones(1, 2)}, "w": ones(4, 4)}, overrides={"a/w": 0.8}),
        ValueError,
        ("a/w:", ("(1, 2)", "0.8"), ("exclude='a/w'", "overrides={'a/w': ...}")),
    ),
    case(
        "emptied_root",
        lambda: jaxprune.prune_params(ones(1, 2), 0.9),
        ValueError,
        ("(root):", ("(1, 2)", "0.9"), ("exclude=''", "overrides={'': ...}")),
    ),
    case(
        "emptied_at_a_path_that_is_no_regex",
        lambda: init({"conv[1]+": ones(1, 2), "w": ones(4, 4)}, cubic(0.9)),
        ValueError,
        (
            "conv[1]+:",
            ("(1, 2)", "0.9"),
            (r"exclude='conv\\[1\\]\\+'", r"overrides={'conv\\[1\\]\\+': ...}"),
        ),
    ),
    case(
        "too_many_weights_to_shuffle",
        lambda: jax.eval_shape(jaxprune.prune(HALF, ties="hashed").init, big(2**16, 2**15)),
        ValueError,
        ("a/w:", ("2147483648", "2**31 - 2"), 'ties="index"'),
    ),
    case(
        "nothing_by_default",
        lambda: init({"b": ones(4), "n": ones(2, 2, dtype=jnp.int32), "name": "mlp"}),
        ValueError,
        ("nothing to prune", ("b (1-D)", "n (dtype int32)", "name (not an array)"), "include='.*'"),
    ),
    case(
        "no_arrays",
        lambda: jaxprune.prune_params(nn.Dense(3), 0.5),
        ValueError,
        ("nothing to prune", "(root) (not an array)", "variables['params']"),
    ),
    case(
        "nothing_of_many",
        lambda: jaxprune.prune_params({f"b{i}": ones(4) for i in range(10)}, 0.5),
        ValueError,
        ("nothing to prune", ("b0 (1-D)", "b7 (1-D)", "2 more"), "include='.*'"),
    ),
    case(
        "nothing_included",
        lambda: init({"fc": {"kernel": ones(2, 2), "bias": ones(2)}}, include="kernel"),
        ValueError,
        ("include: 'kernel' matches no leaf", "fc/kernel", "include='.*kernel'"),
    ),
    case(
        "a_function_that_includes_nothing",
        lambda: init({"fc": {"kernel": ones(2, 2), "bias": ones(2)}}, include=lambda p, x: False),
        ValueError,
        ("nothing to prune", ("fc/bias (", "fc/kernel ("), "must return True"),
    ),
    case(
        "everything_excluded",
        lambda: jaxprune.plan({"w": ones(2, 2), "b": ones(2)}, HALF, exclude=".*"),
        ValueError,
        ("nothing to prune", ("b (excluded by '.*')", "w (excluded by '.*')"), "Exclude fewer"),
    ),
    case(
        "flatten",
        lambda: optax.flatten(jaxprune.prune(HALF)).init({"w": ones(2, 2), "b": ones(2)}),
        ValueError,
        (
            "nothing to prune",
            "(root) (1-D)",
            "optax.chain(optax.flatten(optimizer), jaxprune.prune(schedule))",
        ),
    ),
    case(
        "score_of_another_shape",
        lambda: scored(lambda params, grads, key: jnp.sum(params)),
        ValueError,
        (("w:", "score"), ("float32 of shape ()", "float32 of shape (2, 4)"), "jaxprune.magnitude"),
    ),
    case(
        "score_of_integers",
        lambda: scored(lambda params, grads, key: jnp.ones(params.shape, jnp.int32)),
        ValueError,
        (
            ("w:", "score"),
            ("int32 of shape (2, 4)", "float32 of shape (2, 4)"),
            "jaxprune.magnitude",
        ),
    ),
    case(
        "score_of_nothing",
        lambda: scored(lambda params, grads, key: None),
        ValueError,
        (("w:", "score"), ("NoneType", "float32 of shape (2, 4)"), "jaxprune.magnitude"),
    ),
    case(
        "two_leaves_of_one_path",
        lambda: jaxprune.plan({"a/b": ones(2, 2), "a": {"b": ones(2, 2)}}, 0.5),
        ValueError,
        ("a/b:", "two", "'/'"),
    ),
    case(
        "seven_leaves_that_a_pattern_does_not_fit",
        lambda: init(
            {**{f"w{i}": ones(6, 4) for i in range(7)}, "v": ones(8, 4)},
            structure=jaxprune.NM(2, 4),
        ),
        ValueError,
        (
            "w0, w1, w2, w3, w4, w5, w6:",
            ("NM(n=2, m=4, axis=-2)", "(6, 4)"),
            ("exclude=['w0', 'w1', 'w2', 'w3', 'w4', 'w5', 'w6']", "structure={'w0': ..., "),
        ),
    ),
    case(
        "two_leaves_of_integers",
        lambda: init(
            {"w": ones(2, 2), "a": ones(2, dtype=jnp.int32), "b": ones(2, dtype=bool)}, include=".*"
        ),
        ValueError,
        (("a:", "b:"), ("int32", "bool"), "exclude=['a', 'b']"),
    ),
    case(
        "torch_tensors",
        lambda: jaxprune.plan({"fc": {"weight": Tensor()}}, HALF),
        TypeError,
        ("fc/weight:", "torch.float32", "x.detach().cpu().numpy()"),
    ),
    case(
        "keys_of_two_types",
        lambda: init({"w": ones(2, 2), 0: ones(2, 2)}),
        TypeError,
        (None, "dict", "str"),
    ),
    case(
        "emptied_at_a_tuple_of_keys",
        lambda: init({("a", "w"): ones(1, 2), ("b",): ones(4, 4)}, cubic(0.9)),
        ValueError,
        ("a/w:", "(1, 2)", "exclude='a/w'"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", LEAVES)
def test_an_error_at_a_leaf_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)


# --- the suggestions of errors work

ADVICE = re.compile(r"exclude=('[^']*')")


@pytest.mark.parametrize("path", ("fc", "a.b", "conv[1]+", "(x)", "w*", "", "a-b c"))
def test_the_exclude_that_an_error_suggests_excludes_that_leaf(path):
    tree = {path: ones(1, 2), "kernel": ones(4, 4), "bias": ones(4)}
    with pytest.raises(ValueError, match="would lose all") as caught:
        jaxprune.plan(tree, 0.9)
    exclude = ast.literal_eval(ADVICE.search(str(caught.value)).group(1))
    report = jaxprune.plan(tree, 0.9, exclude=exclude)
    assert {leaf.path: leaf.n_zero for leaf in report.leaves} == {path: 0, "kernel": 14, "bias": 0}


# --- valid input that looks invalid


def test_an_empty_tree_has_nothing_to_prune_and_is_no_error():
    assert jaxprune.prune_params({}, 0.5) == ({}, {})
    assert jaxprune.masks_from_params({}) == {}
    assert init({}).masks == {}
    assert jaxprune.plan({}, 0.5).size == 0
    assert jaxprune.apply_masks({}, {}) == {}
    assert jaxprune.topk_masks([], []) == jaxprune.topk_masks([], 0, pool="global") == []


def test_a_sparsity_just_below_one_is_not_shown_as_100_percent():
    shape = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    report = jaxprune.plan({"w": shape, "b": ones(3)}, Fraction(999_999, 1_000_000))
    assert report.leaves[1].n_zero == 999_999
    assert "100.00%" not in str(report)
    assert "99.99%" in str(report)


@pytest.mark.parametrize(
    "condition", (lambda leaf: bool(jnp.any(leaf > 0)), lambda leaf: leaf.max() > 0)
)
def test_a_rule_that_reads_values_is_told_what_it_gets(condition):
    """A bare AttributeError of ShapeDtypeStruct said nothing about rules."""

    def is_positive(path, leaf):
        return condition(leaf)

    with pytest.raises((AttributeError, TypeError)) as caught:
        jaxprune.plan({"a": {"w": ones(2, 4)}, "b": ones(4)}, 0.5, include=is_positive)
    [note] = caught.value.__notes__
    assert_says(note, "a/w:", "is_positive", "its shape and dtype", "not its values")


def test_float8_without_a_zero_beside_masks_that_keep_it():
    params = {"w": jnp.arange(1.0, 5.0).reshape(2, 2), "s": ones(2, dtype=jnp.float8_e8m0fnu)}
    dropped = jnp.array([[False, False], [True, True]])
    state = jaxprune.prune(HALF).init(params)
    state = jaxprune.set_masks(state, {"w": dropped, "s": ones(2, dtype=bool)})
    expected = {**params, "w": jnp.where(dropped, params["w"], 0)}
    for masks in ({"w": dropped, "s": None}, {"w": dropped, "s": ones(2, dtype=bool)}, state):
        assert_same(jaxprune.apply_masks(params, masks), expected)
    assert_same(jax.jit(jaxprune.apply_masks)(params, state), expected)


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="for 32-bit types")
def test_params_of_64_bits_where_these_are_off():
    with counting.enable_x64(True):
        wide = {"fc": jnp.ones((4, 4), jnp.float64), "bias": jnp.ones(4, jnp.float64)}
    tx = jaxprune.prune(HALF, inner=optax.sgd(0.1))
    narrow = jax.tree.map(lambda x: x.astype("float32"), wide)
    for function in (
        lambda: tx.init(wide),
        lambda: tx.update(wide, tx.init(narrow), wide),
        lambda: jax.jit(tx.update)(wide, tx.init(narrow), wide),
    ):
        with pytest.raises(ValueError, match=says("fc: has dtype float64", "jax_enable_x64")):
            function()
    with counting.enable_x64(True):
        sparse = wide | {"fc": wide["fc"].at[0].set(0).at[1].set(5e-324)}
    assert jaxprune.summarize(sparse).leaves[-1].n_zero == 4
