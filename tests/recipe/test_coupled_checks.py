"""Groups of coupled channels of which some leaves are hidden from `prune`, or not there.

`prune` pruned the others alone: a bias that it did not see kept the channel alive, and a kernel
kept its half of it, while `plan` only printed that a rule was unused.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune
from helpers import by_path, ones, random_params
from jaxprune._recipe.coupled import Coupled

HALF = jaxprune.one_shot_schedule(0.5)
X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
PARAMS = random_params(
    {"a": {"kernel": (3, 8), "bias": (8,)}, "b": {"kernel": (8, 6), "bias": (6,)}, "c": (6, 2)}
)


def mlp(params, x):
    for layer in ("a", "b"):
        x = jax.nn.gelu(x @ params[layer]["kernel"] + params[layer]["bias"][None])
    return x @ params["c"]


GROUPS = jaxprune.channel_groups(mlp, PARAMS, X)
RULES = dict(structure=GROUPS, include=tuple(GROUPS))
MEMBERS = {"a/bias": "a", "a/kernel": "a", "b/bias": "b", "b/kernel": "b"}


def pruned(**rules):
    return jaxprune.prune(HALF, **({"inner": optax.sgd(0.1)} | RULES | rules))


def hide(paths):
    """A mask for `optax.masked` that hides these leaves."""
    treedef = jax.tree.structure(PARAMS)
    return treedef.unflatten([path not in paths for path in by_path(PARAMS)])


def masked(paths, **rules):
    return optax.masked(pruned(**rules), hide(paths))


SUBSETS = [s for n in range(5) for s in itertools.combinations(MEMBERS, n)]


@pytest.mark.parametrize("hidden", SUBSETS, ids=lambda paths: "-".join(paths) or "none")
def test_a_group_is_hidden_as_a_whole_or_not_at_all(hidden):
    tx = masked(hidden)
    left = [path for path in MEMBERS if path not in hidden]
    split = {MEMBERS[path] for path in hidden} & {MEMBERS[path] for path in left}
    if not left:
        with pytest.raises(ValueError, match="nothing to prune"):
            tx.init(PARAMS)
        return
    if split:
        name = min(split)
        for call in (tx.init, lambda params: jaxprune.plan(params, tx)):
            with pytest.raises(ValueError, match="structure: ") as error:
                call(PARAMS)
            lost = ", ".join(path for path in hidden if MEMBERS[path] == name)
            seen = ", ".join(path for path in left if MEMBERS[path] == name)
            assert f"structure: {lost}: hidden from prune" in str(error.value)
            assert f"but {seen} of the same channels would be pruned" in str(error.value)
            assert "inner=optax.multi_transform(...)" in str(error.value)
        return
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    trained = optax.apply_updates(PARAMS, updates)
    small, _ = jaxprune.shrink(mlp, trained, X)
    for layer, (size, half) in {"a": (8, 4), "b": (6, 3)}.items():
        is_pruned = f"{layer}/kernel" not in hidden
        assert small[layer]["bias"].shape == (half if is_pruned else size,)


LABELS = jax.tree.map(lambda p: "decay" if p.ndim > 1 else "no_decay", PARAMS)


def test_a_split_by_number_of_axes_goes_inside_prune():
    parts = {"decay": optax.adamw(0.01), "no_decay": optax.adam(0.01)}
    outside = optax.multi_transform({**parts, "decay": pruned()}, LABELS)
    twice = optax.multi_transform({"decay": pruned(), "no_decay": pruned()}, LABELS)
    for tx in (outside, twice):
        with pytest.raises(ValueError, match=r"structure: a/bias: hidden from prune.*but a/kernel"):
            tx.init(PARAMS)
    tx = pruned(inner=optax.multi_transform(parts, LABELS))
    updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    trained = optax.apply_updates(PARAMS, updates)
    jaxprune.check(trained, state, done=True)
    assert jaxprune.shrink(mlp, trained, X)[0]["b"]["kernel"].shape == (4, 3)


def test_lora_factors_are_pruned_with_their_channels():
    def apply_fn(params, x):
        kernel = params["kernel"] + params["lora_a"] @ params["lora_b"]
        return jax.nn.gelu(x @ kernel) @ params["out"]

    params = random_params({"kernel": (3, 8), "lora_a": (3, 2), "lora_b": (2, 8), "out": (8, 2)})
    groups = jaxprune.channel_groups(apply_fn, params, X)
    rules = dict(structure=groups, include=tuple(groups))
    labels = {name: "train" if "lora" in name else "freeze" for name in params}
    frozen = optax.chain(optax.set_to_zero(), jaxprune.prune(HALF, **rules))
    outside = optax.partition({"train": optax.adam(0.01), "freeze": frozen}, labels)
    with pytest.raises(ValueError, match=r"lora_b: hidden from prune.*but kernel of the same"):
        outside.init(params)
    parts = optax.partition({"train": optax.adam(0.01), "freeze": optax.set_to_zero()}, labels)
    tx = jaxprune.prune(HALF, inner=parts, **rules)
    updates, state = tx.update(params, tx.init(params), params)
    trained = optax.apply_updates(params, updates)
    jaxprune.check(trained, state, done=True)
    assert jaxprune.shrink(apply_fn, trained, X)[0]["lora_b"].shape == (2, 4)


def test_leaves_that_are_not_there_are_named():
    kernels = {"a": {"kernel": PARAMS["a"]["kernel"]}, "b": PARAMS["b"], "c": PARAMS["c"]}
    for call in (pruned().init, lambda params: jaxprune.prune_params(params, 0.5, **RULES)):
        with pytest.raises(ValueError, match=r"structure: a/bias: not in these params; but a/ker"):
            call(kernels)
    jaxprune.plan({"b": PARAMS["b"]}, 0.5, **RULES)  # all of a group may be missing


def test_the_filter_of_an_nnx_optimizer_is_seen():
    model = nnx.Sequential(
        nnx.Linear(3, 8, rngs=nnx.Rngs(0)), nnx.gelu, nnx.Linear(8, 2, rngs=nnx.Rngs(1))
    )
    groups = jaxprune.channel_groups_nnx(model, X)
    tx = jaxprune.prune(HALF, inner=optax.sgd(0.1), structure=groups, include=tuple(groups))
    kernels = nnx.All(nnx.Param, lambda path, _: path[-1] == "kernel")
    with pytest.raises(ValueError, match=r"layers/0/bias: not in these params"):
        nnx.Optimizer(model, tx, wrt=kernels)
    nnx.Optimizer(model, tx, wrt=nnx.Param)


# What stays allowed


@pytest.mark.parametrize(
    "rules",
    ({"include": ("[abc]/kernel", "c")}, {"exclude": "a/bias"}, {"exclude": "a/.*"}),
    ids=str,
)
def test_leaves_that_rules_leave_out_may_be_hidden(rules):
    tx = masked(("a/bias", "b/bias") if "include" in rules else ("a/bias",), **rules)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert np.all(updates["a"]["bias"] != 0)


def test_a_collection_of_linen_may_be_before_all_paths():
    for tree in ({"params": PARAMS}, PARAMS):
        jaxprune.prune_params(tree, 0.5, **RULES)
    hidden = {"params": hide(("a/bias",))}
    with pytest.raises(ValueError, match="a/bias: hidden from prune"):
        optax.masked(pruned(), hidden).init({"params": PARAMS})


def test_map_params_sees_a_tree_without_leaves():
    labels = jax.tree.map(lambda _: "all", PARAMS)
    for tx in (pruned(), optax.multi_transform({"all": pruned()}, lambda _: labels)):
        state = tx.init(PARAMS)
        same = optax.tree.map_params(tx, lambda x: x, state)
        assert jax.tree.structure(same) == jax.tree.structure(state)


def test_regexes_of_a_user_may_match_nothing():
    channel = Coupled("all", 1, (0, 1, 2, 3), 4)
    tree = {"x/kernel": ones(2, 4), "y/kernel": ones(3, 4)}
    rules = {".*/kernel": channel, ".*/scale": dataclasses.replace(channel, axis=0)}
    assert jaxprune.plan(tree, 0.5, structure=rules, include=".*kernel").n_zero == 10
    with pytest.raises(ValueError, match=r"structure: z/scale: not in these params"):
        jaxprune.plan(tree, 0.5, structure={".*/kernel": channel, "z/scale": channel})


def test_the_density_of_a_group_is_that_of_its_kernel_not_of_its_bias():
    """The shape of the first leaf was used, so that renaming a leaf changed what erk gave it."""
    keys = jax.random.split(jax.random.key(0), 4)
    kernel = lambda i, *shape: jax.random.normal(keys[i], shape)
    params = {
        "big": {"kernel": kernel(0, 64, 64), "bias": ones(64)},
        "bare": {"kernel": kernel(1, 64, 64)},
        "small": {"kernel": kernel(2, 64, 16), "bias": ones(16)},
        "last": kernel(3, 16, 4),
    }

    def apply_fn(params, x):
        for name in ("big", "bare", "small"):
            x = jax.nn.relu(x @ params[name]["kernel"] + params[name].get("bias", 0.0))
        return x @ params["last"]

    groups = jaxprune.channel_groups(apply_fn, params, ones(2, 64))
    for distribution in (jaxprune.erk, jaxprune.er):
        rules = dict(structure=groups, include=tuple(groups), distribution=distribution)
        of_groups = jaxprune.plan(params, 0.5, **rules)
        channels = dict(structure=jaxprune.Channel(-1), include=".*/kernel")
        alone = jaxprune.plan(params, 0.5, **channels, distribution=distribution)
        sparsity = {
            name: {row.path: row.sparsity for row in report.leaves if row.path.endswith("/kernel")}
            for name, report in (("groups", of_groups), ("alone", alone))
        }
        assert sparsity["groups"] == sparsity["alone"]
        assert sparsity["groups"]["big/kernel"] == sparsity["groups"]["bare/kernel"]
        assert sparsity["groups"]["big/kernel"] > sparsity["groups"]["small/kernel"]


def test_leaves_of_a_group_with_different_overrides_are_refused():
    with pytest.raises(ValueError, match=r"a/bias \(0.75\) and a/kernel \(0.25\) are pruned tog"):
        pruned(overrides={"a/bias": 0.75, "a/kernel": 0.25}).init(PARAMS)
    pruned(overrides={"a/bias": 0.75, "a/kernel": 0.75, "b/.*": 0.25}).init(PARAMS)
