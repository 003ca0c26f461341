"""Scores of channels from data: activations, and gradients over all leaves of a channel.

Oracles are loops in NumPy: they remove one input of one layer at a time and look at its outputs.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx
from hypothesis import given, settings, strategies as st

import jaxprune
from bad_input import assert_error, case
from jaxprune._recipe.coupled import Coupled

RNG = np.random.default_rng(5)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def two_readers(p, x):
    h = jnp.tanh(x @ p["w"] + p["b"][None])
    return h @ p["u"] + (h * 2) @ p["v"].T


PARAMS = {"w": normal(3, 6), "b": normal(6), "u": normal(6, 2), "v": normal(2, 6)}
X = normal(8, 3) * jnp.array([[0.1, 1.0, 5.0]])


def channel_scores(score, params, structures):
    """The score of each channel, from those of the weights of all leaves; and their names."""
    squares = {}
    for path, structure in structures.items():
        scores = np.asarray(score(params[path], None, None, path=path), np.float64)
        total = squares.setdefault(structure.group, np.zeros(structure.n))
        for unit, part in zip(
            structure.unit_of, np.moveaxis(scores, structure.axis, 0), strict=True
        ):
            if unit >= 0:
                total[unit] += np.square(part).sum()
    return {name: np.sqrt(total) for name, total in squares.items()}


def by_leaf(params, groups):
    return {p: groups[f"(params/)?{p}"] for p in params if f"(params/)?{p}" in groups}


# Activations


def test_the_score_is_the_change_of_the_outputs_of_all_readers():
    groups = jaxprune.channel_groups(two_readers, PARAMS, X)
    inputs = jaxprune.layer_inputs(two_readers, PARAMS, X, diagonal=True)
    score = jaxprune.activation_score(groups, PARAMS, inputs)
    h = np.tanh(np.asarray(X @ PARAMS["w"] + PARAMS["b"], np.float64))
    expected = []
    for c in range(6):
        without = h.copy()
        without[:, c] = 0
        changes = [(h - without) @ np.asarray(PARAMS["u"]), 2 * (h - without) @ PARAMS["v"].T]
        expected.append(np.sqrt(sum(np.square(change).sum() for change in changes)))
    scores = channel_scores(score, PARAMS, by_leaf(PARAMS, groups))
    np.testing.assert_allclose(scores["b"], expected, rtol=1e-5)  # float32 sums


def convolutions(p, x):
    """A channel is read by a convolution, and by a dense layer at each pixel."""
    h = jax.nn.relu(_conv(x, p["first"]))
    return _conv(h, p["second"]).sum((1, 2)) + (h @ p["pixel"]).sum((1, 2))


def _conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_each_position_of_a_window_counts_with_the_pixels_that_it_reads():
    p = {"first": normal(1, 1, 2, 4), "second": normal(3, 3, 4, 2), "pixel": normal(4, 2)}
    x = normal(2, 4, 4, 2)
    groups = jaxprune.channel_groups(convolutions, p, x)
    assert sorted(path for path, _ in groups.readers) == ["pixel", "second"]
    inputs = jaxprune.layer_inputs(convolutions, p, x)  # with the whole Gram matrix
    score = jaxprune.activation_score(groups, p, inputs)
    h = np.maximum(np.asarray(x @ p["first"][0, 0], np.float64), 0)
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    squares = np.square(h).sum((0, 1, 2)) * np.square(p["pixel"]).sum(1)
    for i in range(3):
        for j in range(3):
            seen = np.square(padded[:, i : i + 4, j : j + 4]).sum((0, 1, 2))
            squares = squares + seen * np.square(p["second"][i, j]).sum(1)
    (scores,) = channel_scores(score, p, by_leaf(p, groups)).values()
    np.testing.assert_allclose(scores, np.sqrt(squares), rtol=1e-5)


def attention(p, x):
    """Three heads, read by the rows of the output projection."""
    q, k, v = (jnp.einsum("btn,nhd->bthd", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    return jnp.einsum("bhts,bshd,hdn->btn", weights, v, p["o"])


def test_a_head_has_the_score_of_the_rows_that_read_it():
    p = {name: normal(5, 3, 2) for name in "qkv"} | {"o": normal(3, 2, 5)}
    x = normal(2, 4, 5)
    groups = jaxprune.channel_groups(attention, p, x)
    score = jaxprune.activation_score(groups, p, jaxprune.layer_inputs(attention, p, x))
    q, k, v = (np.einsum("btn,nhd->bthd", *map(np.asarray, (x, p[name]))) for name in "qkv")
    weights = np.exp(np.einsum("bthd,bshd->bhts", q, k))
    read = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)
    squares = np.square(read).sum((0, 1))[:, :, None] * np.square(p["o"])
    (scores,) = channel_scores(score, p, by_leaf(p, groups)).values()
    np.testing.assert_allclose(scores, np.sqrt(squares.sum((1, 2))), rtol=1e-5)


def test_units_that_are_pruned_where_they_are_read_are_scored_there():
    def gated(p, x):
        return jax.nn.sigmoid(x @ p["w"]) @ p["v"]

    p = {"w": normal(3, 4), "v": normal(4, 2)}
    groups = jaxprune.channel_groups(gated, p, X)
    assert list(groups) == ["(params/)?v"]
    score = jaxprune.activation_score(groups, p, jaxprune.layer_inputs(gated, p, X, diagonal=True))
    h = 1 / (1 + np.exp(-np.asarray(X @ p["w"])))
    expected = np.sqrt(np.square(h).sum(0) * np.square(p["v"]).sum(1))
    np.testing.assert_allclose(
        channel_scores(score, p, by_leaf(p, groups))["v"], expected, rtol=1e-5
    )


@settings(max_examples=5, deadline=None)
@given(sparsity=st.sampled_from((0.0, 0.2, 0.5, 0.8)), batches=st.integers(1, 3))
def test_the_channels_of_the_smallest_scores_are_dropped(sparsity, batches):
    x = jnp.concatenate([X] * batches)
    groups = jaxprune.channel_groups(two_readers, PARAMS, x)
    inputs = sum(jaxprune.layer_inputs(two_readers, PARAMS, X) for _ in range(batches))
    score = jaxprune.activation_score(groups, PARAMS, inputs)
    rules = {"structure": groups, "include": tuple(groups), "score": score}
    sparse, masks = jax.jit(lambda p: jaxprune.prune_params(p, sparsity, **rules))(PARAMS)
    (scores,) = channel_scores(score, PARAMS, by_leaf(PARAMS, groups)).values()
    kept = np.ones(6, bool)
    kept[np.argsort(scores)[: int(6 * sparsity + 0.5)]] = False
    np.testing.assert_array_equal(masks["b"], kept)
    np.testing.assert_array_equal(masks["w"], np.broadcast_to(kept, (3, 6)))
    assert masks["u"].all()
    assert not np.asarray(sparse["w"])[:, ~kept].any()


def test_channels_without_inputs_go_first_and_equal_ones_by_index():
    def mlp(p, x):
        return jax.nn.relu(x @ p["w"]) @ p["v"]

    p = {"w": jnp.array([[9.0, 1, 1, -9, 1]]), "v": jnp.array([[1.0], [2], [2], [5], [2]])}
    x = jnp.ones((3, 1))  # the fourth channel is never positive
    groups = jaxprune.channel_groups(mlp, p, x)
    score = jaxprune.activation_score(groups, p, jaxprune.layer_inputs(mlp, p, x, diagonal=True))
    rules = {"structure": groups, "include": tuple(groups), "score": score}
    kept = [jaxprune.prune_params(p, s, **rules)[1]["w"][0].tolist() for s in (0.2, 0.4, 0.6, 0.8)]
    assert kept == [[1, 1, 1, 0, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


def test_data_show_which_channels_matter_where_the_weights_do_not():
    """The weights of a channel are large where its inputs are small, and the other way round."""
    scale = jnp.array([0.01, 0.01, 0.01, 1.0, 1.0, 1.0])
    p = {"w": normal(6, 20) / scale[:, None] ** 0.5, "u": normal(20, 3)}
    x = normal(64, 6) * scale[None]

    def mlp(p, x):
        return jax.nn.relu(x @ p["w"]) @ p["u"]

    p["u"] = p["u"] / (1 + jnp.linalg.norm(p["w"], axis=0))[:, None]
    groups = jaxprune.channel_groups(mlp, p, x)
    score = jaxprune.activation_score(groups, p, jaxprune.layer_inputs(mlp, p, x, diagonal=True))
    rules = {"structure": groups, "include": tuple(groups)}
    dense = mlp(p, x)

    def error(**score):
        sparse, _ = jaxprune.prune_params(p, 0.5, **rules, **score)
        return float(jnp.sum((mlp(sparse, x) - dense) ** 2) / jnp.sum(dense**2))

    assert error(score=score) < 0.7 * error()


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6)(x))
        x = nn.relu(nn.Dense(4)(x))
        return nn.Dense(2)(x)


def test_linen_variables_and_params_have_the_same_scores_and_all_layers_compete():
    model = Net()
    variables = model.init(jax.random.key(0), X)
    groups = jaxprune.channel_groups(model.apply, variables, X)
    inputs = jaxprune.layer_inputs(model.apply, variables, X, diagonal=True)
    scores = [
        jaxprune.activation_score(groups, tree, inputs) for tree in (variables, variables["params"])
    ]
    rules = {"structure": groups, "include": tuple(groups), "distribution": jaxprune.global_pool}
    _, whole = jaxprune.prune_params(variables, 0.5, score=scores[0], **rules)
    _, masks = jaxprune.prune_params(variables["params"], 0.5, score=scores[1], **rules)
    jax.tree.map(np.testing.assert_array_equal, whole["params"], masks)
    params = variables["params"]
    h = np.maximum(np.asarray(X @ params["Dense_0"]["kernel"]), 0)
    layers = [
        (h, "Dense_1"),
        (np.maximum(h @ np.asarray(params["Dense_1"]["kernel"]), 0), "Dense_2"),
    ]
    squares = [np.square(x).sum(0) * np.square(params[i]["kernel"]).sum(1) for x, i in layers]
    kept = np.concatenate(squares) > np.sort(np.concatenate(squares))[4]
    np.testing.assert_array_equal(masks["Dense_0"]["bias"], kept[:6])
    np.testing.assert_array_equal(masks["Dense_1"]["bias"], kept[6:])


def test_nnx_models_are_scored_and_shrink():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 2, rngs=rngs))
    groups = jaxprune.channel_groups_nnx(model, X)
    inputs = jaxprune.layer_inputs_nnx(model, X, diagonal=True)
    state = nnx.state(model, nnx.Param)
    score = jaxprune.activation_score(groups, state, inputs)
    rules = {"structure": groups, "include": tuple(groups), "score": score}
    nnx.update(model, jaxprune.prune_params(state, 0.5, **rules)[0])
    assert jaxprune.shrink_nnx(model, X).size < 30
    assert model.layers[0].out_features == 3


def test_gradual_pruning_goes_on_from_the_old_state_with_new_scores():
    groups = jaxprune.channel_groups(two_readers, PARAMS, X)
    rules = {"structure": groups, "include": tuple(groups), "inner": optax.sgd(0.1)}
    schedule = jaxprune.linear_schedule(0.5, 0, 2, every=1)

    def transformation(params):
        inputs = jaxprune.layer_inputs(two_readers, params, X, diagonal=True)
        score = jaxprune.activation_score(groups, params, inputs)
        return jaxprune.prune(schedule, score=score, **rules), score

    params, (tx, _) = PARAMS, transformation(PARAMS)
    state = tx.init(params)
    for n_dropped in (0, 2, 3):
        tx, score = transformation(params)
        (scores,) = channel_scores(score, params, by_leaf(params, groups)).values()
        was_kept = jaxprune.get_masks(state)["b"]
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        masks = jaxprune.get_masks(state)
        expected = np.zeros(6, bool)
        expected[np.argsort(-np.where(was_kept, scores, -1))[: 6 - n_dropped]] = True
        np.testing.assert_array_equal(masks["b"], expected)
    jaxprune.check(params, state, done=True)


# Gradients


def grads_of(x):
    return jax.grad(lambda p: jnp.sum((two_readers(p, x) - 1) ** 2))(PARAMS)


def test_saliency_of_a_channel_is_the_norm_of_w_times_g_over_all_of_its_leaves():
    groups = jaxprune.channel_groups(two_readers, PARAMS, X)
    rules = {"structure": groups, "include": tuple(groups), "score": jaxprune.saliency}
    squares = [jax.tree.map(jnp.square, grads_of(x)) for x in (X[:4], X[4:])]
    several = jax.tree.map(lambda a, b: jnp.sqrt(a + b), *squares)
    for grads, batches in ((grads_of(X), [X]), (several, [X[:4], X[4:]])):
        _, masks = jaxprune.prune_params(PARAMS, 0.5, grads=grads, **rules)
        importance = np.zeros(6)
        for x in batches:
            g = jax.tree.map(lambda x: np.asarray(x, np.float64), grads_of(x))
            importance += np.square(g["w"] * PARAMS["w"]).sum(0) + np.square(g["b"] * PARAMS["b"])
        np.testing.assert_array_equal(masks["b"], importance > np.sort(importance)[2])
        np.testing.assert_array_equal(masks["w"], np.broadcast_to(masks["b"], (3, 6)))


# Errors


def test_groups_keep_their_readers_in_a_pickle():
    groups = jaxprune.channel_groups(two_readers, PARAMS, X)
    assert groups.readers == (
        ("u", Coupled("b", 0, tuple(range(6)), 6)),
        ("v", Coupled("b", 1, tuple(range(6)), 6)),
    )
    assert pickle.loads(pickle.dumps(groups)).readers == groups.readers


def scored(params=PARAMS, include=None, more=(), **rules):
    """Prunes by the score of activations, with something wrong."""
    groups = jaxprune.channel_groups(two_readers, PARAMS, X)
    inputs = jaxprune.layer_inputs(two_readers, PARAMS, X, include=include, diagonal=True)
    score = jaxprune.activation_score(groups, params, inputs)
    return jaxprune.prune_params(
        PARAMS, 0.5, score=score, structure=groups, include=(*groups, *more), **rules
    )


GROUPS = {"(params/)?w": Coupled("w", 1, (0, 1, 2, 3, 4, 5), 6)}
WRONG = [
    case(
        "groups_are_a_dict",
        lambda: jaxprune.activation_score(GROUPS, PARAMS, None),
        TypeError,
        (
            "activation_score: groups",
            "Coupled('w', axis=1)",
            "channel_groups(apply_fn, variables, x)",
        ),
    ),
    case(
        "inputs_are_an_array",
        lambda: jaxprune.activation_score(jaxprune.ChannelGroups(GROUPS, ()), PARAMS, X),
        TypeError,
        ("activation_score: inputs", "(8, 3)", "layer_inputs(apply_fn, variables, x"),
    ),
    case(
        "params_lack_a_leaf",
        lambda: scored({"w": PARAMS["w"], "b": PARAMS["b"]}),
        ValueError,
        ("activation_score: params", ("u", "v", "missing"), "channel_groups"),
    ),
    case(
        "params_of_other_axes",
        lambda: scored(PARAMS | {"u": jnp.ones((6, 2, 1))}),
        ValueError,
        ("u:", ("(6, 2, 1)", "3 axes", "2"), "layer_inputs"),
    ),
    case(
        "no_reader_has_inputs",
        lambda: scored(include="w"),
        ValueError,
        ("activation_score", "v reads them, without inputs", "layer_inputs"),
    ),
    case(
        "a_leaf_outside_the_groups",
        lambda: scored(more="u"),
        ValueError,
        ("u:", "in none of the groups", "include=tuple(groups)"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", WRONG)
def test_an_error_about_scores_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)


def test_a_group_without_inputs_is_refused_when_it_is_pruned_and_others_are_not():
    model = Net()
    variables = model.init(jax.random.key(0), X)
    groups = jaxprune.channel_groups(model.apply, variables, X)
    inputs = jaxprune.layer_inputs(model.apply, variables, X, exclude=".*Dense_2.*", diagonal=True)
    rules = {"structure": groups, "score": jaxprune.activation_score(groups, variables, inputs)}
    first = tuple(rule for rule in groups if "Dense_0" in rule)
    _, masks = jaxprune.prune_params(variables["params"], 0.5, include=first, **rules)
    assert int(masks["Dense_0"]["bias"].sum()) == 3
    with pytest.raises(
        ValueError,
        match=r"^Dense_1/bias, Dense_1/kernel: .*Dense_2/kernel reads them, without.*exclude=",
    ):
        jaxprune.prune_params(variables["params"], 0.5, include=tuple(groups), **rules)
