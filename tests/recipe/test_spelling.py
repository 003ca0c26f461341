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
