"""After shrinking: costs by layer, other trees that shrink along, shardings, fresh models."""

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxprune
from helpers import says

X = jnp.ones((2, 3))


def mlp(params, x):
    return jax.nn.relu(x @ params["fc"]["w"] + params["fc"]["b"][None]) @ params["out"]


def pruned_mlp(width=8):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, width)).astype("f")
    w[:, ::2] = 0
    params = {
        "fc": {"w": w, "b": np.zeros(width, "f")},
        "out": rng.normal(size=(width, 4)).astype("f"),
    }
    params["fc"]["b"][1::2] = 1.0
    return jax.tree.map(jnp.asarray, params)


# The report


def test_the_report_has_numbers_bytes_and_multiply_adds_by_layer():
    _, report = jaxprune.shrink(mlp, pruned_mlp(), X)
    assert {name: (before, now) for name, before, now in report.layers} == {
        "fc": ((3 * 8 + 8, 4 * (3 * 8 + 8), 2 * 3 * 8), (3 * 4 + 4, 4 * (3 * 4 + 4), 2 * 3 * 4)),
        "out": ((8 * 4, 4 * 8 * 4, 2 * 8 * 4), (4 * 4, 4 * 4 * 4, 2 * 4 * 4)),
    }
    assert (report.cost_before.numbers, report.cost.numbers) == (report.size_before, report.size)
    assert report.cost.multiply_adds * 2 == report.cost_before.multiply_adds
    lines = report.by_layer().splitlines()
    assert lines[1].split() == ["fc", "32", "->", "16", "128", "->", "64", "48", "->", "24"]


def test_multiply_adds_of_convolutions_and_loops_are_those_that_run():
    def apply_fn(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, params["k"], (1, 1), "SAME", dimension_numbers=numbers)

        def step(carry, _):
            return jnp.tanh(carry @ params["h"]), None

        h, _ = jax.lax.scan(step, jnp.maximum(y, 0).max((1, 2)), None, length=5)
        return (h * h) @ params["o"] + jnp.einsum("bi,bi->b", h, h)[:, None]

    params = {"k": jnp.ones((3, 3, 2, 4)), "h": jnp.ones((4, 4)), "o": jnp.ones((4, 1))}
    _, report = jaxprune.shrink(apply_fn, params, jnp.ones((2, 5, 5, 2)))
    work = {layer.name: layer.before.multiply_adds for layer in report.layers}
    assert work["k"] == 2 * 5 * 5 * 4 * 9 * 2
    assert work["h"] == 5 * 2 * 4 * 4
    assert work["o"] == 2 * 4
    assert work["(activations)"] == 2 * 4


# Other trees


@pytest.mark.parametrize("packed", (False, True))
def test_moments_averages_and_masks_shrink_along(packed):
    params = pruned_mlp(16)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.0), inner=optax.adam(0.1), packed=packed)
    state = jaxprune.set_masks(tx.init(params), jaxprune.masks_from_params(params))
    moments = jax.tree.map(lambda p: jnp.arange(p.size, dtype=p.dtype).reshape(p.shape), params)
    state = optax.tree_utils.tree_set(state, mu=moments)
    small, report, (small_state, average) = jaxprune.shrink(
        mlp, params, X, along=(state, {"average": moments})
    )
    shapes = jax.tree.map(jnp.shape, small)
    assert jax.tree.map(jnp.shape, average["average"]) == shapes
    np.testing.assert_array_equal(average["average"]["fc"]["w"], moments["fc"]["w"][:, 1::2])
    np.testing.assert_array_equal(average["average"]["out"], moments["out"][1::2])
    assert jax.tree.map(jnp.shape, jaxprune.get_masks(small_state)) == shapes
    jaxprune.check(small, small_state)
    grads = jax.tree.map(jnp.ones_like, small)
    inner, _ = optax.adam(0.1).update(grads, small_state.inner_state, small)
    assert jax.tree.map(jnp.shape, inner) == shapes
    again = jaxprune.upgrade_state(tx, small, small_state)
    assert again.progress is not None
    assert report.shapes


def test_a_shrunk_state_of_several_schedules_goes_on_with_the_one_that_was_chosen():
    params = pruned_mlp(16)
    schedules = [jaxprune.one_shot_schedule(s) for s in (0.75, 0.25)]
    tx = jaxprune.prune(schedules)
    state = jaxprune.choose_schedule(tx.init(params), 1)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    params = jax.tree.map(jnp.add, params, updates)
    number = int(state.progress.choices.number)
    small, _, state = jaxprune.shrink(mlp, params, X, along=state)
    with pytest.raises(ValueError, match=r"which of the 2 schedules.*prune\(schedules\[1\]\)"):
        jaxprune.upgrade_state(tx, small, state)
    alone = jaxprune.prune(schedules[number])
    upgraded = jaxprune.upgrade_state(alone, small, state)
    updates, _ = alone.update(jax.tree.map(jnp.zeros_like, small), upgraded, small)
    small = jax.tree.map(jnp.add, small, updates)
    assert [int(jnp.sum(w == 0)) for w in (small["fc"]["w"], small["out"])] == [
        round(0.25 * w.size) for w in (small["fc"]["w"], small["out"])
    ]


def test_a_leaf_of_another_shape_is_an_error_that_names_it():
    params = pruned_mlp()
    state = optax.adafactor(1e-3, min_dim_size_to_factor=2).init(params)
    with pytest.raises(ValueError, match=r"v_row/.*: shrink: along has shape .* `along`"):
        jaxprune.shrink(mlp, params, X, along=state)


def test_along_changes_nothing_where_nothing_is_removed():
    params = {"fc": {"w": jnp.ones((3, 8)), "b": jnp.ones(8)}, "out": jnp.ones((8, 4))}
    state = optax.adam(0.1).init(params)
    small, _, along = jaxprune.shrink(mlp, params, X, along=state)
    assert jax.tree.all(jax.tree.map(np.array_equal, (small, along), (params, state)))


# Shardings


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_a_smaller_leaf_keeps_its_sharding():
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    params = pruned_mlp(12)
    columns = NamedSharding(mesh, PartitionSpec(None, "x"))
    params["fc"]["w"] = jax.device_put(params["fc"]["w"], columns)
    params["out"] = jax.device_put(params["out"], NamedSharding(mesh, PartitionSpec("x")))
    params["fc"]["b"] = jax.device_put(params["fc"]["b"], NamedSharding(mesh, PartitionSpec("x")))
    small, _ = jaxprune.shrink(mlp, params, X)
    assert small["fc"]["w"].sharding == columns
    assert small["out"].sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("x")), 2)
    params = jax.tree.map(lambda x: x, params)
    params["fc"]["w"] = params["fc"]["w"].at[:, 1].set(0.0)
    params["fc"]["b"] = params["fc"]["b"].at[1].set(0.0)
    small, _ = jaxprune.shrink(mlp, params, X)
    assert small["fc"]["w"].shape == (3, 5)
    assert small["fc"]["w"].sharding.is_fully_replicated, "two devices do not divide five"


# Fresh models


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=4, rngs=rngs)
        self.grouped = nnx.Conv(8, 8, (1, 1), feature_group_count=2, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return self.last(nnx.relu(self.grouped(x)).max((1, 2)))


def test_a_shrunk_state_loads_into_a_fresh_nnx_model_and_its_optimizer_goes_along():
    model, x = Net(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    groups = jaxprune.channel_groups_nnx(model, x)
    params, _ = jaxprune.prune_params(
        nnx.state(model, nnx.Param), 0.5, structure=groups, include=tuple(groups)
    )
    nnx.update(model, params)
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    average = nnx.clone(model)
    before = model(x)
    jaxprune.shrink_nnx(model, x, along=[optimizer, average])
    assert (model.norm.num_groups, model.grouped.feature_group_count) == (2, 2)
    assert (model.first.out_features, model.grouped.out_features) == (4, 4)
    np.testing.assert_allclose(model(x), before, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(average(x), model(x))
    for state in (nnx.state(model), nnx.to_pure_dict(nnx.state(model))):
        fresh = Net(nnx.Rngs(3))
        jaxprune.resize_nnx(fresh, state)
        np.testing.assert_array_equal(fresh(x), model(x))
        assert fresh.last.in_features == 4
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))


def test_the_optimizer_that_prune_wraps_goes_on_after_shrinking():
    """In NNX the state kept the counts of the larger params: `metrics` gave a sparsity of 1.67."""
    model, x = Net(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    groups = jaxprune.channel_groups_nnx(model, x)
    adam = optax.adam(0.1)
    shot = jaxprune.one_shot_schedule(0.5)
    tx = jaxprune.prune(shot, inner=adam, structure=groups, include=tuple(groups))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    jaxprune.shrink_nnx(model, x, along=[optimizer])
    assert optimizer.opt_state.progress is None
    jaxprune.check(model, optimizer)
    with pytest.raises(ValueError, match=r"no `progress`.* jaxprune\.shrink"):
        jaxprune.check(model, optimizer, done=True)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    with pytest.raises(ValueError, match=says("Coupled(", "get_state(opt_state).inner_state")):
        optimizer.update(model, grads)
    adam_optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    inner_state = jaxprune.get_state(optimizer).inner_state
    nnx.update(adam_optimizer.opt_state, nnx.state(inner_state))
    adam_optimizer.update(model, grads)
    assert optax.tree_utils.tree_get(adam_optimizer.opt_state, "count")[...] == 2


def test_an_optimizer_in_a_module_that_goes_along_has_no_progress_either():
    class Run(nnx.Module):
        def __init__(self, model):
            tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), inner=optax.sgd(0.1))
            self.optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    layers = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    model = nnx.Sequential(*layers)
    layers[0].kernel[...] = layers[0].kernel[...].at[:, :2].set(0)
    run = Run(model)
    assert jaxprune.get_state(run.optimizer).progress is not None
    jaxprune.shrink_nnx(model, X, along=[run])
    assert layers[0].kernel.shape == (3, 2)
    assert jaxprune.get_state(run.optimizer).progress is None


def test_keys_and_their_counters_are_no_numbers_of_an_nnx_model():
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(2, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
    model, x = nnx.Sequential(*layers), jnp.ones((1, 2))
    model.eval()
    first = model.layers[0]
    first.kernel[...] = first.kernel[...].at[:, 5:].set(0.0)
    report = jaxprune.shrink_nnx(model, x)
    assert (report.size_before, report.size) == (2 * 8 + 8 + 8 * 3 + 3, 2 * 5 + 5 + 5 * 3 + 3)
    assert [layer.name for layer in report.layers] == ["layers/0", "layers/2"]
    assert len(jax.tree.leaves(nnx.state(model, nnx.RngState))) == 2
    model.train()
    assert np.isfinite(model(x)).all()


class WithStreams(nnx.Module):
    """Layers in a list, with statistics and a stream of random numbers."""

    def __init__(self, rngs):
        layers = [nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)]
        layers += [nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)]
        self.layers = nnx.List(layers) if hasattr(nnx, "List") else layers

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_file_without_random_streams_is_loaded_into_a_fresh_nnx_model(tmp_path):
    model, x = WithStreams(nnx.Rngs(0)), jnp.ones((4, 3))
    model(jnp.arange(12.0).reshape(4, 3))  # moves the statistics
    model.eval()
    linear = model.layers[0]
    linear.kernel[...] = linear.kernel[...].at[:, 5:].set(0.0)
    model.layers[3].kernel[...] = model.layers[3].kernel[...].at[5:].set(0.0)
    jaxprune.shrink_nnx(model, x)
    with pytest.raises(TypeError, match=r"layers/2/rngs/.*nnx\.Not\(nnx\.RngState\)"):
        jaxprune.save(tmp_path / "small.safetensors.zst", nnx.state(model))
    state = nnx.state(model, nnx.Not(nnx.RngState))
    jaxprune.save(tmp_path / "small.safetensors.zst", state)
    fresh = WithStreams(nnx.Rngs(1))
    streams = streams_of(fresh)
    jaxprune.resize_nnx(fresh, jaxprune.load(tmp_path / "small.safetensors.zst"))
    assert fresh.layers[0].out_features == fresh.layers[1].num_features == 5
    restored = nnx.state(fresh, nnx.Not(nnx.RngState))
    chex.assert_trees_all_equal(jax.tree.leaves(restored), jax.tree.leaves(state))
    chex.assert_trees_all_equal(streams_of(fresh), streams)
    fresh.eval()
    np.testing.assert_array_equal(fresh(x), model(x))


def streams_of(model):
    """The count and the key of its random stream."""
    count, key = jax.tree.leaves(nnx.state(model, nnx.RngState))
    return count, jax.random.key_data(key)


def test_a_lora_layer_remembers_its_smaller_sizes():
    model = nnx.LoRALinear(5, 8, lora_rank=2, rngs=nnx.Rngs(0))
    model.kernel[...] = model.kernel[...].at[:, 4:].set(0.0)
    model = nnx.Sequential(model, nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
    lora = model.layers[0].lora
    lora.lora_b[...] = jnp.ones((2, 8)).at[:, 4:].set(0.0)
    jaxprune.shrink_nnx(model, jnp.ones((2, 5)))
    assert lora.lora_b[...].shape == (2, 4)
    assert (lora.in_features, lora.out_features) == (5, 4)


def test_resize_nnx_names_leaves_that_do_not_fit():
    model = nnx.Linear(2, 8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"resize_nnx: the state lacks bias and has scale, which"):
        jaxprune.resize_nnx(model, {"kernel": jnp.ones((2, 5)), "scale": jnp.ones(5)})


def test_equinox_models_shrink():
    model = eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_array)

    def apply_fn(arrays, x):
        return jax.vmap(eqx.combine(arrays, static))(x)

    groups = jaxprune.channel_groups(apply_fn, arrays, X)
    sparse, _ = jaxprune.prune_params(arrays, 0.5, structure=groups, include=tuple(groups))
    small, _ = jaxprune.shrink(apply_fn, sparse, X)
    assert [layer.weight.shape for layer in small.layers] == [(4, 3), (4, 4), (2, 4)]


class Normalised(eqx.Module):
    """A layer between linear layers and one that reads its own sizes, after a sum over channels."""

    layers: list
    norm: eqx.Module

    def __init__(self, norm):
        keys = jax.random.split(jax.random.key(0), 3)
        sizes = ((3, 8), (8, 6), (6, 2))
        self.layers = [eqx.nn.Linear(*n, key=key) for n, key in zip(sizes, keys, strict=True)]
        self.norm = norm

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.layers[0](x)))
        return self.layers[2](jax.nn.relu(self.layers[1](x)))


def normalised(norm):
    arrays, static = eqx.partition(Normalised(norm), eqx.is_array)
    return arrays, lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x)


def test_an_equinox_layer_that_reads_its_own_size_is_refused():
    arrays, apply_fn = normalised(eqx.nn.LayerNorm(8))
    groups = jaxprune.channel_groups(apply_fn, arrays, X, allow=("layer_norm",))
    assert sorted(groups) == [f"(params/)?layers/1/{name}" for name in ("bias", "weight")]
    (group,) = [g for g in groups.refused if ("layers/0/weight", 0) in g.members]
    assert "must satisfy the invariant" in group.reason


def test_an_equinox_group_norm_loses_as_many_channels_in_each_group_if_allowed():
    """Its number of groups is fixed; the number of channels in a group follows from the input."""
    arrays, apply_fn = normalised(eqx.nn.GroupNorm(4, 8))
    refused = jaxprune.channel_groups(apply_fn, arrays, X)
    assert sorted(refused) == [f"(params/)?layers/1/{name}" for name in ("bias", "weight")]
    groups = jaxprune.channel_groups(apply_fn, arrays, X, allow=("layer_norm",))
    assert "(params/)?layers/0/weight" in groups
    sparse, _ = jaxprune.prune_params(arrays, 0.5, structure=groups, include=tuple(groups))
    small, report = jaxprune.shrink(apply_fn, sparse, X, allow=("layer_norm",))
    assert (small.layers[0].weight.shape, small.norm.weight.shape) == ((4, 3), (4,))
    before, now = apply_fn(sparse, X), apply_fn(small, X)
    difference = np.abs(before - now).max() / np.abs(before).max()
    assert report.difference == pytest.approx(float(difference), abs=1e-6)
    assert report.difference > 0.01


@pytest.mark.parametrize(
    "arguments, kept",
    (
        ({"num_groups": 4}, 8),
        ({"num_groups": 2}, 8),
        ({"num_groups": None, "group_size": 2}, 4),
    ),
)
def test_a_linen_group_norm_loses_whole_groups_if_it_declares_their_size(arguments, kept):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.GroupNorm(**arguments)(nn.Dense(8)(x)))
            x = nn.relu(nn.Dense(6)(x))
            return nn.Dense(2)(x)

    variables = Net().init(jax.random.key(0), X)
    params = variables["params"]
    for layer, leaf in (("Dense_0", "kernel"), ("GroupNorm_0", "scale"), ("Dense_1", "kernel")):
        params[layer][leaf] = params[layer][leaf].at[..., 4:].set(0)  # or the last two of six
    small, report = jaxprune.shrink(Net().apply, variables, X)
    assert small["params"]["Dense_0"]["kernel"].shape == (3, kept)
    assert small["params"]["Dense_1"]["kernel"].shape == (kept, 4)
    reasons = [g.reason for g in report.refused if ("params/Dense_0/kernel", 1) in g.members]
    assert len(reasons) == (kept == 8)


def test_an_instance_norm_loses_single_channels():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.InstanceNorm()(nn.Dense(8)(x)))
            return nn.Dense(2)(x)

    x = jax.random.normal(jax.random.key(1), (2, 4, 3))
    variables = Net().init(jax.random.key(0), x)
    params = variables["params"]
    for layer, leaf in (("Dense_0", "kernel"), ("InstanceNorm_0", "scale")):
        params[layer][leaf] = params[layer][leaf].at[..., 5:].set(0)
    small, report = jaxprune.shrink(Net().apply, variables, x)
    assert small["params"]["Dense_1"]["kernel"].shape == (5, 2)
    assert report.difference < 1e-5


def test_haiku_models_shrink_but_for_params_whose_shape_is_in_the_code():
    def net(x):
        x = jax.nn.relu(hk.Conv1D(8, 3)(x))
        x = jax.nn.relu(hk.Conv1D(8, 1, feature_group_count=2)(x))
        x = jax.nn.relu(hk.Linear(6)(x))
        return hk.Linear(2)(x * hk.get_parameter("scale", [1, 1, 6], init=jnp.ones))

    model = hk.without_apply_rng(hk.transform(net))
    x = jnp.ones((2, 5, 3))
    params = model.init(jax.random.key(0), x)
    groups = jaxprune.channel_groups(model.apply, params, x)
    sparse, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
    small, _ = jaxprune.shrink(model.apply, sparse, x)
    assert {name: leaf["w"].shape for name, leaf in small.items() if "w" in leaf} == {
        "conv1_d": (3, 3, 4),
        "conv1_d_1": (1, 2, 4),
        "linear": (4, 6),
        "linear_1": (6, 2),
    }
    assert jaxprune.shrunk_apply(model.apply, small, x).shape == (2, 5, 2)
    (group,) = [g for g in groups.refused if ("linear/w", 1) in g.members]
    assert "does not match shape" in group.reason
    assert "test_afterwards.py:" in group.place
