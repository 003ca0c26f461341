"""Pruning layer by layer, with the inputs that the pruned layers before it produce."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from calibration_oracles import correlated, normal
from helpers import assert_same, says
from jaxprune import layer_inputs, prune_sequentially, sparsegpt, wanda
from jaxprune._calibration.collection import ModelTrace
from jaxprune._calibration.steps import steps_of
from jaxprune._recipe.choice import LeafRules

X = jnp.asarray(correlated(32, 8))
both_methods = pytest.mark.parametrize("method", (wanda, sparsegpt))


def chain(params, x):
    for name in sorted(params):
        x = jax.nn.relu(x @ params[name])
    return x


def layers(n, *shape):
    return {f"w{i}": jnp.asarray(normal(*(shape or (8, 8)), key=i)) for i in range(n)}


@both_methods
@pytest.mark.parametrize("how", ({"sparsity": 0.5}, {"nm": (2, 4)}), ids=str)
def test_each_layer_gets_the_inputs_of_the_pruned_layers_before_it(method, how):
    params = expected = layers(3)
    masks = {}
    for name in sorted(params):
        inputs = layer_inputs(chain, expected, X, include=name)
        expected, mask = method(expected, inputs, include=name, **how)
        masks[name] = mask[name]
    got, got_masks = prune_sequentially(method, chain, params, batches=[X[:16], X[16:]], **how)
    assert_same(got_masks, masks)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, expected)
    at_once, _ = method(params, layer_inputs(chain, params, X), **how)
    assert not np.array_equal(got["w2"], at_once["w2"])


@both_methods
@pytest.mark.parametrize("reverse", (False, True))
def test_layers_of_a_scan_are_pruned_one_after_another(method, reverse):
    params = layers(3)
    expected, masks = prune_sequentially(method, chain, params, X, sparsity=0.5)
    names = list(reversed(params)) if reverse else list(params)
    stacked = {"blocks": {"w": jnp.stack([params[name] for name in names], axis=1)}}

    def scanned(p, x):
        w = jnp.moveaxis(p["blocks"]["w"], 1, 0)
        return lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, w, reverse=reverse)[0]

    got, got_masks = prune_sequentially(method, scanned, stacked, X, sparsity=0.5)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(got_masks["blocks"]["w"][:, i], masks[name])
        np.testing.assert_allclose(got["blocks"]["w"][:, i], expected[name], rtol=1e-4, atol=1e-5)


LOOKUPS = {
    "scan": lambda p, x: lax.scan(
        lambda x, i: (jax.nn.relu(x @ p["w"][i]), None), x, jnp.arange(2)
    )[0],
    "fori_loop": lambda p, x: lax.fori_loop(0, 2, lambda i, x: jax.nn.relu(x @ p["w"][i]), x),
}


@pytest.mark.parametrize("loop", LOOKUPS)
def test_layers_that_a_loop_looks_up_are_pruned_together_with_a_warning(loop):
    params = {"first": normal(8, 8, key=5), "w": jnp.stack(list(layers(2).values()))}
    model = lambda p, x: LOOKUPS[loop](p, x @ p["first"])
    with pytest.warns(UserWarning, match=says("layers in w by an index", "lax.scan(")) as caught:
        got, _ = prune_sequentially(wanda, model, params, X, sparsity=0.5)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    first, _ = wanda(params, layer_inputs(model, params, X), 0.5, include="first")
    expected, _ = wanda(first, layer_inputs(model, first, X), 0.5, include="w")
    np.testing.assert_array_equal(got["w"], expected["w"])


def attention(p, x):
    q, k, v = (x @ p[name] for name in ("q", "k", "v"))
    x = x + jax.nn.softmax(q @ k.T) @ v @ p["out"]
    return x + jax.nn.relu(x @ p["up"]) @ p["down"]


ATTENTION = {name: jnp.asarray(normal(8, 8, key=ord(name[0]))) for name in ("q", "k", "v", "out")}
ATTENTION |= {"up": jnp.asarray(normal(8, 16)), "down": jnp.asarray(normal(16, 8))}


def steps(apply_fn, params, *x, blocks=()):
    trace = ModelTrace.of(apply_fn, params, x, LeafRules())
    return [
        [part.path if part.slices is None else (part.path, *part.slices) for part in step]
        for step in steps_of(trace, list(trace.leaves), blocks)
    ]


def test_leaves_that_share_their_input_are_in_one_step():
    assert steps(attention, ATTENTION, X) == [["q", "k", "v"], ["out"], ["up"], ["down"]]
    blocks = steps(attention, ATTENTION, X, blocks=("q|k|v|out", "up|down"))
    assert blocks == [["q", "k", "v", "out"], ["up", "down"]]


def test_steps_of_a_scan_go_layer_by_layer():
    stacked = jax.tree.map(lambda w: jnp.stack([w, w]), ATTENTION)

    def model(p, x):
        return lax.scan(lambda x, p: (jax.checkpoint(attention)(p, x), None), x, p)[0]

    expected = [
        [(name, i) for name in group]
        for i in range(2)
        for group in (("q", "k", "v"), ("out",), ("up",), ("down",))
    ]
    assert steps(model, stacked, X) == expected
    blocks = [[(name, i) for name in ("q", "k", "v", "out", "up", "down")] for i in range(2)]
    assert steps(model, stacked, X, blocks=(".*",)) == blocks


@both_methods
def test_a_block_gets_inputs_from_before_it_was_pruned(method):
    params = layers(3)
    got, _ = prune_sequentially(method, chain, params, X, sparsity=0.5, blocks=["w[01]"])
    first, _ = method(params, layer_inputs(chain, params, X), 0.5, include="w[01]")
    expected, _ = method(first, layer_inputs(chain, first, X), 0.5, include="w2")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, expected)


@both_methods
def test_experts_of_stacked_layers_have_budgets_of_their_own(method):
    params = {"experts": jnp.asarray(normal(2, 3, 8, 8)), "norm": jnp.ones(8, jnp.float32)}

    def model(p, x):
        step = lambda x, w: (jnp.einsum("btd,bdf->btf", x * p["norm"][None, None], w), None)
        return lax.scan(step, x, p["experts"])[0]

    x = jnp.asarray(correlated(48, 8).reshape(3, 16, 8))
    overrides = {"experts/0/2": 0.25, "experts/1/.*": (2, 4)}
    new, masks = prune_sequentially(method, model, params, x, sparsity=0.5, overrides=overrides)
    mask = np.asarray(masks["experts"])
    assert [[int((~m).sum()) for m in layer] for layer in mask] == [[32, 32, 16], [32, 32, 32]]
    assert (mask[1].reshape(3, 2, 4, 8).sum(2) == 2).all()
    assert masks["norm"].all()
    assert new["norm"] is params["norm"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x))
        return nn.Dense(4, name="head")(nn.relu(x))


def test_all_variables_of_a_linen_model_are_pruned_and_returned():
    variables = Net().init(jax.random.key(0), X)
    new, masks = prune_sequentially(
        wanda, Net().apply, variables, X, sparsity=0.5, exclude=".*head.*"
    )
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    assert int((~masks["params"]["Dense_0"]["kernel"]).sum()) == 32
    assert masks["params"]["head"]["kernel"].all()
    assert_same(new["batch_stats"], variables["batch_stats"])


def test_options_reach_the_method():
    strong, _ = prune_sequentially(sparsegpt, chain, layers(1), X, sparsity=0.5, damping=100.0)
    weak, _ = prune_sequentially(sparsegpt, chain, layers(1), X, sparsity=0.5)
    assert not np.array_equal(strong["w0"], weak["w0"])


def test_a_progress_bar_counts_the_steps(capsys):
    pytest.importorskip("tqdm")
    prune_sequentially(wanda, chain, layers(2), X, sparsity=0.5, progress=True)
    assert "2/2" in capsys.readouterr().err


BAD = {
    "a name": (
        lambda: prune_sequentially("wanda", chain, layers(1), X, sparsity=0.5),
        ("prune_sequentially: method", "'wanda'", "jaxprune.sparsegpt"),
    ),
    "no method": (
        lambda: prune_sequentially(wanda, layers(1), X, sparsity=0.5),
        ("prune_sequentially: apply_fn",),
    ),
    "no target": (
        lambda: prune_sequentially(wanda, chain, layers(1), X),
        ("sparsity=None", "nm=None"),
    ),
    "no batch": (
        lambda: prune_sequentially(wanda, chain, layers(1), sparsity=0.5),
        ("prune_sequentially:", "batches=[...]"),
    ),
    "empty batches": (
        lambda: prune_sequentially(wanda, chain, layers(1), batches=[], sparsity=0.5),
        ("prune_sequentially: batches", "at least one"),
    ),
    "a block that is a number": (
        lambda: prune_sequentially(wanda, chain, layers(1), X, sparsity=0.5, blocks=3),
        ("blocks", "3"),
    ),
    "a leaf without inputs": (
        lambda: prune_sequentially(
            wanda, chain_with_table, {**layers(1), "table": X}, X, sparsity=0.5
        ),
        ("prune_sequentially:", "table (in no product)", "exclude='table'"),
    ),
    "an override that matches nothing": (
        lambda: prune_sequentially(wanda, chain, layers(1), X, sparsity=0.5, overrides={"k": 0.5}),
        ("overrides: 'k' matches no leaf",),
    ),
}


def chain_with_table(params, x):
    return (x + params["table"][:1]) @ params["w0"]


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_argument_and_what_to_type_instead(name):
    call, parts = BAD[name]
    with pytest.raises((TypeError, ValueError), match=says(*parts)):
        call()
