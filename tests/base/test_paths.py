"""Paths of leaves are the same in every library, and rules select leaves by them."""

import collections
import dataclasses
import functools
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, strategies as st

import jaxprune
from helpers import ones, stepper
from jaxprune._base.paths import leaves_with_paths

HALF = jaxprune.one_shot_schedule(0.5)


def paths_of(tree):
    return leaves_with_paths(tree)[0]


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """A layer like those of Equinox: a dataclass that is a pytree, with static fields."""

    weight: Any
    bias: Any
    activation: str = dataclasses.field(default="relu", metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Mlp:
    layers: list
    scale: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    """A pytree with a field called `value` that is not a box."""

    query: Any
    value: Any


# --- paths

MLP = Mlp([Linear(1, 2), Linear(3, 4)], 5)
TREES = {
    "dict": ({"fc": {"kernel": 1, "bias": 2}, "a": 3}, ["a", "fc/bias", "fc/kernel"]),
    "ordered_dict": (collections.OrderedDict(z=1, a=2), ["z", "a"]),
    "int_keys": ({1: {0: 5}}, ["1/0"]),
    "keys_with_slashes": ({"mlp/~/linear_0": {"w": 1}}, ["mlp/~/linear_0/w"]),
    "list": ([1, [2, 3]], ["0", "1/0", "1/1"]),
    "tuple": ((1, (2,)), ["0", "1/0"]),
    "named_tuple": (Pair(Pair(1, [2]), {"w": 3}), ["first/first", "first/second/0", "second/w"]),
    "dataclass": (
        MLP,
        ["layers/0/weight", "layers/0/bias", "layers/1/weight", "layers/1/bias", "scale"],
    ),
    "mixed": ({"blocks": [Pair({"w": (1,)}, [2])]}, ["blocks/0/first/w/0", "blocks/0/second/0"]),
    "value_as_a_key": (
        {"attention": {"query": 1, "value": 2}, "value": {"value": 3}},
        ["attention/query", "attention/value", "value/value"],
    ),
    "value_as_a_field": (
        {"attention": Attention(1, Attention(None, 2))},
        ["attention/query", "attention/value/value"],
    ),
    "none_is_no_leaf": ({"a": None, "b": 1}, ["b"]),
    "root": (1.0, [""]),
    "empty": ({}, []),
}


@pytest.mark.parametrize("tree, expected", TREES.values(), ids=TREES)
def test_a_path_is_its_keys_joined_by_slashes(tree, expected):
    assert paths_of(tree) == expected


NAMES = st.text("abc_.0", min_size=1, max_size=3)
NESTED = st.recursive(
    st.just(0), lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=8
)


@given(tree=NESTED)
def test_walking_the_keys_of_a_path_leads_to_its_leaf(tree):
    leaf_numbers = iter(range(100))
    tree = jax.tree.map(lambda _: next(leaf_numbers), tree)
    paths, leaves, treedef = leaves_with_paths(tree)
    assert treedef.unflatten(leaves) == tree
    for path, leaf in zip(paths, leaves, strict=True):
        keys = path.split("/") if path else []
        assert functools.reduce(lambda node, key: node[key], keys, tree) == leaf


class Net(nn.Module):
    """Linen: plain parameters, and parameters in boxes that carry their sharding."""

    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning(nn.initializers.normal(), (None, "model"))
        x = nn.Dense(6, name="fc")(x)
        return nn.Dense(2, kernel_init=boxed, name="head")(x)


@functools.cache
def linen():
    return Net().init(jax.random.key(0), ones(1, 4))["params"]


LINEN_PATHS = ["fc/bias", "fc/kernel", "head/bias", "head/kernel"]


def test_linen_boxes_leave_no_trace_in_a_path():
    boxed, unboxed = linen(), nn.meta.unbox(linen())
    assert isinstance(boxed["head"]["kernel"], nn.Partitioned)
    assert jax.tree_util.tree_leaves_with_path(boxed)[-1][0][-1].name == "value"
    assert paths_of(boxed) == paths_of(unboxed) == LINEN_PATHS
    assert paths_of({"params": boxed}) == [f"params/{path}" for path in LINEN_PATHS]


def test_masks_of_boxed_params_fit_unboxed_ones_and_the_other_way_round():
    boxed, unboxed = linen(), nn.meta.unbox(linen())
    pruned, state = {}, {}
    for name, params in (("boxed", boxed), ("unboxed", unboxed)):
        tx = jaxprune.prune(HALF, include="head/kernel")
        updates = jax.tree.map(jnp.zeros_like, params)
        updates, state[name] = tx.update(updates, tx.init(params), params)
        pruned[name] = optax.apply_updates(params, updates)
        assert jaxprune.metrics(state[name])["prune/n_zero"] == 6
    for params in (pruned["boxed"], pruned["unboxed"]):
        for masks in state.values():
            jaxprune.check(params, masks)
            same = jaxprune.apply_masks(params, masks)
            jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_field_called_value_keeps_its_name_beside_fields_that_are_masked():
    params = {"attention": Attention(ones(2, 2), ones(4, 4)), "bias": ones(2)}
    chosen = {"attention": Attention(False, True), "bias": False}
    tx = optax.chain(optax.sgd(0.5), optax.masked(jaxprune.prune(HALF), chosen))
    _, state, params = stepper(tx)(params, tx.init(params), params)
    jaxprune.check(params, state)
    assert int(jnp.sum(params["attention"].value == 0)) == 8
    [leaf] = [leaf for leaf in jaxprune.summarize(params, state).leaves if leaf.n_zero]
    assert leaf.path == "attention/value"


class Module(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(4, 6, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.fc(x))


def pure(state):
    return nnx.as_pure(state) if hasattr(nnx, "as_pure") else nnx.to_pure_dict(state)


def test_nnx_states_have_the_paths_of_pure_ones():
    state = nnx.state(Module(nnx.Rngs(0)), nnx.Param)
    assert jax.tree_util.tree_leaves_with_path(state)[0][0][-1].name == "value"
    assert paths_of(state) == paths_of(pure(state)) == LINEN_PATHS


def test_nnx_shows_the_same_paths_to_init_and_to_update():
    seen = []

    def init(params):
        seen.append(paths_of(params))
        return optax.EmptyState()

    def update(updates, state, params=None):
        seen.append(paths_of(params))
        return updates, state

    spy = optax.GradientTransformation(init, update)
    tx = optax.chain(optax.sgd(0.1), spy, jaxprune.prune(HALF, include="fc/kernel"))
    model = Module(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model(ones(1, 4))))(model)
    optimizer.update(model, grads)
    assert seen == [LINEN_PATHS, LINEN_PATHS]
    report = jaxprune.summarize(nnx.state(model, nnx.Param), optimizer)
    n_zero = {leaf.path: leaf.n_zero for leaf in report.leaves}
    assert n_zero == {**dict.fromkeys(LINEN_PATHS, 0), "fc/kernel": 12}


def test_a_dataclass_pytree_is_pruned_by_its_paths():
    mlp = Mlp([Linear(ones(4, 6), ones(6)), Linear(ones(6, 2), ones(2))], ones())
    pruned, masks = jaxprune.prune_params(mlp, 0.5, exclude="layers/1/.*")
    assert isinstance(pruned, Mlp)
    assert pruned.layers[0].activation == "relu"
    assert [int(jnp.sum(~m)) for m in jax.tree.leaves(masks)] == [12, 0, 0, 0, 0]


# --- rules


@functools.cache
def params():
    return {
        "fc": {"kernel": ones(4, 6), "bias": ones(6)},
        "head": {"kernel": ones(6, 2), "bias": ones(2)},
        "ids": jnp.arange(6, dtype=jnp.int32).reshape(2, 3),
        "scale": ones(),
    }


ALL = ["fc/bias", "fc/kernel", "head/bias", "head/kernel", "ids", "scale"]
WEIGHTS = ["fc/kernel", "head/kernel"]


def chosen(tree=None, sparsity=0.5, **rules):
    """The paths that lose weights."""
    report = jaxprune.plan(params() if tree is None else tree, sparsity, **rules)
    return [leaf.path for leaf in report.leaves if leaf.n_zero]


DTYPES = {
    "float32": True,
    "bfloat16": True,
    "float16": True,
    "float8_e4m3fn": True,
    "complex64": True,
    "int32": False,
    "uint8": False,
    "bool": False,
}


@pytest.mark.parametrize("shape", ((), (4,), (2, 2), (2, 2, 2)), ids=len)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_default_is_inexact_dtype_and_two_or_more_axes(dtype, shape):
    tree = {"leaf": jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)), "other": ones(2, 2)}
    expected = ["leaf"] * (DTYPES[dtype] and len(shape) >= 2) + ["other"]
    assert chosen(tree) == expected


SEMANTICS = {
    "whole_path": (dict(include="kernel|fc/kernel"), ["fc/kernel"]),
    "prefix_is_not_enough": (dict(exclude=("fc/kerne|fc/bias")), WEIGHTS),
    "suffix_is_not_enough": (dict(exclude="c/kernel|fc/bias"), WEIGHTS),
    "case_counts": (dict(exclude="FC/.*|fc/bias"), WEIGHTS),
    "flags": (dict(exclude="(?i)FC/.*"), ["head/kernel"]),
    "include_replaces_the_default": (dict(include=".*/bias"), ["fc/bias", "head/bias"]),
    "include_any": (dict(include=("fc/bias", "head/.*")), ["fc/bias", "head/bias", "head/kernel"]),
    "include_list": (dict(include=["fc/bias"]), ["fc/bias"]),
    "exclude_wins": (dict(include="fc/.*", exclude="fc/bias"), ["fc/kernel"]),
    "exclude_wins_by_default": (dict(exclude=("fc/kernel",)), ["head/kernel"]),
    "exclude_any": (dict(include="(fc|head)/.*", exclude=(".*bias", "fc/.*")), ["head/kernel"]),
    "overrides_choose_nothing": (dict(overrides={".*": 0.25}), WEIGHTS),
    "override_to_zero": (dict(overrides={"fc/kernel": 0}), ["head/kernel"]),
    "function": (dict(include=lambda path, spec: spec.shape == (6,)), ["fc/bias"]),
    "function_and_regex": (
        dict(include=("head/bias", lambda path, spec: spec.size == 24)),
        ["fc/kernel", "head/bias"],
    ),
    "function_excludes": (dict(exclude=lambda path, spec: "head" in path), ["fc/kernel"]),
    "partial": (
        dict(exclude=functools.partial(lambda part, path, spec: part in path, "fc")),
        ["head/kernel"],
    ),
}


@pytest.mark.parametrize("rules, expected", SEMANTICS.values(), ids=SEMANTICS)
def test_rules_mean_the_same_in_every_function(rules, expected):
    assert chosen(**rules) == expected
    all_masks = [jaxprune.prune_params(params(), 0.5, **rules)[1]]
    tx = jaxprune.prune(HALF, **rules)
    _, state = tx.update(params(), tx.init(params()), params())
    all_masks.append(jaxprune.get_masks(state))
    if "overrides" not in rules:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p).at[(0,) * p.ndim].set(1), params())
        all_masks.append(jaxprune.masks_from_params(zeros, **rules))
    for masks in all_masks:
        paths, leaves, _ = leaves_with_paths(masks)
        assert [p for p, m in zip(paths, leaves, strict=True) if not m.all()] == expected


RULES = st.lists(
    st.sampled_from((*ALL, ".*", ".*/bias", "fc/.*", "head.*", "kernel", "fc", "(fc|ids).*")),
    max_size=3,
).map(tuple)


@given(include=st.none() | RULES.filter(len), exclude=RULES, overrides=RULES)
def test_a_leaf_is_chosen_if_some_include_and_no_exclude_matches_all_of_its_path(
    include, exclude, overrides
):
    tree = {k: v for k, v in params().items() if k not in ("ids", "scale")}
    sparsities = dict(zip(overrides, (0.25, 0.75, 0.0), strict=False))
    n_zero, emptied = {}, False
    for path, leaf in zip(paths_of(tree), jax.tree.leaves(tree), strict=True):
        taken = include is None and leaf.ndim >= 2
        taken |= any(re.fullmatch(rule, path) for rule in include or ())
        taken &= not any(re.fullmatch(rule, path) for rule in exclude)
        firsts = [s for rule, s in sparsities.items() if re.fullmatch(rule, path)]
        sparsity = (firsts or [0.5])[0]
        n_zero[path] = int(leaf.size * sparsity + 0.5) if taken else None
        emptied |= n_zero[path] == leaf.size
    rules = dict(include=include, exclude=exclude, overrides=sparsities)
    given = [rule for argument in rules.values() for rule in argument or ()]
    unmatched = [r for r in given if not any(re.fullmatch(r, path) for path in n_zero)]
    if unmatched:
        with pytest.raises(ValueError, match="matches no leaf") as error:
            jaxprune.plan(tree, 0.5, **rules)
        assert all(f"{rule!r} matches no leaf" in str(error.value) for rule in unmatched)
    elif all(n is None for n in n_zero.values()):
        with pytest.raises(ValueError, match=r"^nothing to prune: .*4 leaves"):
            jaxprune.plan(tree, 0.5, **rules)
    elif emptied:
        with pytest.raises(ValueError, match="would lose all"):
            jaxprune.plan(tree, 0.5, **rules)
    else:
        planned = {leaf.path: leaf.n_zero for leaf in jaxprune.plan(tree, 0.5, **rules).leaves}
        assert planned == {path: n or 0 for path, n in n_zero.items()}


@given(names=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4, unique=True))
def test_every_leaf_can_be_named_alone_by_its_escaped_path(names):
    tree = {name: jax.ShapeDtypeStruct((2, 2), jnp.float32) for name in names}
    for name in names:
        assert chosen(tree, include=re.escape(name)) == [name]
        if len(names) > 1:
            assert name not in chosen(tree, exclude=re.escape(name))


def test_the_first_override_that_matches_wins():
    first = {"fc/.*": 0.25, ".*": 0.75}
    last = {".*": 0.75, "fc/.*": 0.25}
    for overrides, fc in ((first, 6), (last, 18)):
        report = jaxprune.plan(params(), 0.5, overrides=overrides)
        n_zero = {leaf.path: leaf.n_zero for leaf in report.leaves}
        assert n_zero == {**dict.fromkeys(ALL, 0), "fc/kernel": fc, "head/kernel": 9}


def test_an_override_scales_the_whole_schedule():
    schedule = jaxprune.linear_schedule(0.5, 0, 2, every=1)  # 0, 1/4, 1/2
    tx = jaxprune.prune(schedule, overrides={"fc/.*": 0.75})  # 0, 3/8, 3/4
    state, counts = tx.init(params()), []
    for _ in range(3):
        _, state = tx.update(params(), state, params())
        masks = jaxprune.get_masks(state)
        counts.append([int(jnp.sum(~masks[name]["kernel"])) for name in ("fc", "head")])
    assert counts == [[0, 0], [9, 3], [18, 6]]


@pytest.mark.parametrize("argument", ("include", "exclude"))
def test_functions_are_given_the_path_and_the_spec_of_arrays_only(argument):
    seen = {}

    def rule(path, spec):
        seen[path] = spec
        return path == "w"

    tree = {"w": ones(2, 4, dtype=jnp.bfloat16), "v": ones(4, 2), "name": "mlp", "rate": 0.1}
    tree |= {"none": None, "np": np.ones(3, np.float32), "empty": ones(0, 2)}
    assert chosen(tree, **{argument: rule}) == (["w"] if argument == "include" else ["v"])
    assert seen == {
        "w": jax.ShapeDtypeStruct((2, 4), jnp.bfloat16),
        "v": jax.ShapeDtypeStruct((4, 2), jnp.float32),
        "np": jax.ShapeDtypeStruct((3,), jnp.float32),
        "empty": jax.ShapeDtypeStruct((0, 2), jnp.float32),
    }
    assert all(type(spec) is jax.ShapeDtypeStruct for spec in seen.values())


def test_leaves_that_are_not_arrays_stay_unchanged():
    tree = {"w": ones(2, 2), "name": "mlp", "rate": 0.1, "none": None, "f": max, "flag": True}
    pruned, masks = jaxprune.prune_params(tree, 0.5, include=".*")
    again = jaxprune.apply_masks(pruned, masks)
    for result in (pruned, again):
        assert result["w"].tolist() == [[1.0, 1.0], [0.0, 0.0]]
        assert {k: v for k, v in result.items() if k != "w"} == {
            k: v for k, v in tree.items() if k != "w"
        }


def test_leaves_that_are_not_numbers_stay_unchanged():
    keys = jax.random.split(jax.random.key(0), 4).reshape(2, 2)
    tree = {"w": ones(2, 2), "keys": keys, "flags": jnp.ones((2, 2), bool)}
    tx = jaxprune.prune(HALF)
    state = tx.init(tree)
    assert jax.tree.map(lambda m: (m.shape, m.dtype), state.masks) == dict.fromkeys(
        tree, ((2, 2), jnp.uint8)
    )
    pruned, masks = jaxprune.prune_params(tree, 0.5)
    for kept in (pruned, jaxprune.apply_masks(tree, masks)):
        assert kept["w"].tolist() == [[1.0, 1.0], [0.0, 0.0]]
        assert jnp.array_equal(jax.random.key_data(kept["keys"]), jax.random.key_data(keys))
        assert kept["flags"].all()
    jaxprune.check(pruned, state._replace(masks=masks))
