"""Trees that occur in practice: empty nodes, whole models, keys that are tuples, NNX optimizers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune
from helpers import n_dropped, ones, random_params

HALF = jaxprune.one_shot_schedule(0.5)

# --- nodes without leaves

EMPTY = {"dict": {}, "list": [], "tuple": (), "none": None, "state": optax.EmptyState()}


@pytest.mark.parametrize("packed", (False, True))
@pytest.mark.parametrize("name", EMPTY)
def test_nodes_without_leaves_keep_their_place(name, packed):
    tree = {"a": EMPTY[name], "w": random_params({"w": (4, 4)})["w"], "z": {"b": EMPTY[name]}}
    tx = jaxprune.prune(HALF, packed=packed)
    state = tx.init(tree)
    for masks in (
        jaxprune.get_masks(state),
        jaxprune.get_masks((state, state)),
        jaxprune.unpack_masks(state).masks,
        jaxprune.get_masks(jaxprune.pack_masks(state)),
    ):
        assert jax.tree.structure(masks) == jax.tree.structure(tree)
        assert np.asarray(masks["w"]).all()
    jaxprune.check(tree, state)
    sparse, masks = jaxprune.prune_params(tree, 0.5)
    assert jax.tree.structure(sparse) == jax.tree.structure(tree)
    assert n_dropped(jaxprune.get_masks(jaxprune.set_masks(state, masks))) == {"w": 8}


# --- keys


def test_keys_that_are_tuples_are_paths_that_rules_can_match():
    tree = {("a", "w"): ones(4, 4), ("b", "w"): ones(4, 4)}
    masks = jaxprune.prune_params(tree, 0.5, exclude="a/w")[1]
    assert {key: jnp.sum(mask == 0) for key, mask in masks.items()} == {
        ("a", "w"): 0,
        ("b", "w"): 8,
    }
    assert jaxprune.get_masks(jaxprune.prune(HALF).init(tree)).keys() == tree.keys()


# --- Equinox


def trained_once(tx, params_of, update_params_of):
    """An Equinox model after one update, and the state of the optimizer."""
    model = eqx.nn.MLP(4, 4, 4, 1, key=jax.random.key(0))
    state = tx.init(params_of(model))
    loss = lambda model: jnp.sum(jax.vmap(model)(ones(2, 4)) ** 2)
    grads = eqx.filter_grad(loss)(model)
    updates, state = tx.update(grads, state, update_params_of(model))
    return eqx.apply_updates(model, updates), state


def arrays(model):
    return eqx.filter(model, eqx.is_inexact_array)


def whole(model):
    return model


FORMS = {
    "chain": optax.chain(optax.adamw(1e-2), jaxprune.prune(HALF)),
    "inner": jaxprune.prune(HALF, inner=optax.sgd(1e-2)),
    "packed": jaxprune.prune(HALF, packed=True),
    "rigl": jaxprune.rigl(0.5, 10, inner=optax.sgd(1e-2), distribution=jaxprune.uniform),
}


@pytest.mark.parametrize("name", FORMS)
def test_an_update_takes_a_whole_equinox_model_as_params(name):
    expected, expected_state = trained_once(FORMS[name], arrays, arrays)
    model, state = trained_once(FORMS[name], arrays, whole)
    assert eqx.tree_equal(model, expected)
    assert eqx.tree_equal(state, expected_state)
    jaxprune.check(model, state)
    dropped = n_dropped(jaxprune.get_masks(state))
    assert dropped == {
        "layers/0/weight": 8,
        "layers/0/bias": 0,
        "layers/1/weight": 8,
        "layers/1/bias": 0,
    }
    assert jaxprune.apply_masks(model, state).activation is model.activation


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: jaxprune.prune(HALF, inner=inner),
        lambda inner: jaxprune.rigl(0.5, 10, inner=inner),
        jaxprune.keep_zeros,
    ],
)
def test_an_optimizer_that_cannot_take_functions_says_what_to_pass(make):
    sparse, _ = jaxprune.prune_params(eqx.nn.MLP(4, 4, 4, 1, key=jax.random.key(0)), 0.5)
    with pytest.raises(TypeError) as caught:
        make(optax.adam(1e-2)).init(sparse)
    notes = " ".join(caught.value.__notes__)
    assert "activation" in notes
    assert "eqx.filter(model, eqx.is_inexact_array)" in notes


def test_functions_are_no_weights():
    model = eqx.nn.MLP(4, 4, 4, 1, key=jax.random.key(0))
    for report in (jaxprune.summarize(model), jaxprune.plan(model, HALF)):
        assert report.size == jaxprune.summarize(arrays(model)).size == 40


def test_an_equinox_model_can_be_pruned_and_masked_as_it_is():
    model = eqx.nn.MLP(4, 4, 4, 1, key=jax.random.key(0))
    sparse, masks = jaxprune.prune_params(model, 0.5)
    assert jaxprune.plan(model, HALF).n_zero == jaxprune.summarize(sparse).n_zero == 16
    assert eqx.tree_equal(jaxprune.apply_masks(model, masks), sparse)
    assert eqx.tree_equal(jaxprune.straight_through(model, masks), sparse)


# --- NNX


@pytest.mark.parametrize("passed", ("optimizer", "opt_state"))
def test_splice_takes_the_state_of_an_nnx_optimizer(passed):
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    loss = lambda model: jnp.sum(model(ones(2, 4)) ** 2)
    dense = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    dense.update(model, nnx.grad(loss)(model))
    tx = optax.chain(optax.adam(1e-2), jaxprune.prune(HALF))
    params = nnx.state(model, nnx.Param)
    spliced = jaxprune.splice(tx, params, dense if passed == "optimizer" else dense.opt_state)
    assert jax.tree.structure(spliced) == jax.tree.structure(tx.init(params))
    moments = jax.tree.leaves(spliced[0][0])
    for moment, before in zip(moments, jax.tree.leaves(dense.opt_state), strict=True):
        np.testing.assert_array_equal(moment, before)

    pruning = nnx.Optimizer(model, tx, wrt=nnx.Param)
    nnx.update(pruning.opt_state, nnx.state(spliced))
    pruning.update(model, nnx.grad(loss)(model))
    assert int(jax.tree.leaves(pruning.opt_state)[0]) == 2  # the count of adam goes on
    assert np.count_nonzero(model.kernel[...]) == 8


def test_a_whole_equinox_model_takes_gradients_and_a_loss():
    """Its functions are leaves without gradients."""
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))

    def loss(model):
        return jnp.mean(jax.vmap(model)(jnp.ones((3, 2))) ** 2)

    grads, arrays = eqx.filter_grad(loss)(model), eqx.filter(model, eqx.is_array)
    assert grads.activation is None
    rules = {"score": jaxprune.saliency, "grads": grads}
    whole, _ = jaxprune.prune_params(model, 0.5, **rules)
    part, _ = jaxprune.prune_params(arrays, 0.5, **rules)
    assert eqx.tree_equal(eqx.filter(whole, eqx.is_array), part)
    table = jaxprune.sensitivity(loss, model, (0.5,), **rules)
    static = eqx.filter(model, eqx.is_array, inverse=True)
    of_arrays = jaxprune.sensitivity(
        lambda p: loss(eqx.combine(p, static)), arrays, (0.5,), **rules
    )
    assert table.to_dict() == of_arrays.to_dict()
    with pytest.raises(ValueError, match="grads must have the leaves of the params"):
        jaxprune.prune_params(model, 0.5, score=jaxprune.saliency, grads=grads.layers[0])
