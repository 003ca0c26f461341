"""Shrinking: which units are removed, why others stay, and that the outputs are the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx
from hypothesis import given, settings, strategies as st

import jaxprune
from helpers import on_device
from jaxprune._base.paths import leaves_with_paths
from jaxprune._recipe.coupled import Coupled
from jaxprune._shrink import groups as groups_lib
from jaxprune._shrink.flax_sizes import set_nnx_sizes
from jaxprune._shrink.units import units_of
from jaxprune._trace.program import known_values, program_of, trace


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6)(x))
        x = jnp.tanh(nn.Dense(4, use_bias=False)(x))
        return nn.Dense(3)(x)


class Residual(nn.Module):
    """A convolution, a block with a residual, and flattened pictures into a dense layer."""

    @nn.compact
    def __call__(self, x):
        def norm():
            return nn.BatchNorm(use_running_average=True)

        x = nn.relu(norm()(nn.Conv(4, (3, 3))(x)))
        y = nn.relu(norm()(nn.Conv(6, (3, 3))(x)))
        x = nn.relu(x + norm()(nn.Conv(4, (3, 3))(y)))
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return nn.Dense(3)(x)


class Mobile(nn.Module):
    """Expand, depthwise with a multiplier, project; two branches chained."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (1, 1))(x)))
        y = nn.Conv(8, (3, 3), feature_group_count=4)(x)
        y = nn.silu(nn.BatchNorm(use_running_average=True)(y))
        x = jnp.concatenate([nn.Conv(2, (1, 1))(y), x], -1)
        return nn.Dense(3)(x.mean((1, 2)))


class Lstm(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 6)(tokens)
        x = nn.RNN(nn.OptimizedLSTMCell(8))(x)
        x = nn.RNN(nn.LSTMCell(4))(x)
        return nn.Dense(11)(x)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        x = x + nn.MultiHeadDotProductAttention(4, qkv_features=12)(nn.LayerNorm()(x))
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(10)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x))


class UNet(nn.Module):
    """Feature maps of the same size are joined across the network."""

    @nn.compact
    def __call__(self, x):
        wide = nn.relu(nn.Conv(4, (3, 3))(x))
        deep = nn.relu(nn.Conv(8, (3, 3))(nn.max_pool(wide, (2, 2), (2, 2))))
        up = nn.ConvTranspose(4, (2, 2), (2, 2))(deep)
        return nn.Conv(3, (1, 1))(nn.relu(jnp.concatenate([up, wide], -1)))


class GroupNorms(nn.Module):
    """A residual between GroupNorms of two channels in each group, which lose whole groups."""

    @nn.compact
    def __call__(self, x):
        def norm():
            return nn.GroupNorm(num_groups=None, group_size=2)

        x = nn.Conv(8, (3, 3))(x)
        x = x + nn.Conv(8, (1, 1))(nn.relu(norm()(x)))
        return nn.Dense(3)(nn.relu(norm()(x)).mean((1, 2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(6)(nn.relu(nn.Dense(8)(x))), None


class Scanned(nn.Module):
    """Blocks in a scan: the params of all blocks are slices of one leaf."""

    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(3)(blocks(name="blocks")(nn.Dense(6)(x), None)[0])


PICTURE, SEQUENCE = (2, 4, 4, 3), (2, 5, 7)
LINEN = {  # model, shape of the input, shapes of kernels after half of the channels were removed
    "mlp": (Mlp, (2, 5), {"Dense_0": (5, 3), "Dense_1": (3, 2), "Dense_2": (2, 3)}),
    "residual": (
        Residual,
        PICTURE,
        {
            "Conv_0": (3, 3, 3, 2),
            "Conv_1": (3, 3, 2, 3),
            "Conv_2": (3, 3, 3, 2),
            "Dense_0": (2 * 2 * 2, 3),
        },
    ),
    "mobile": (
        Mobile,
        PICTURE,
        # Each of 4 channels makes 2 in the depthwise layer; the dense layer reads 2 + 4 channels.
        {"Conv_0": (1, 1, 3, 2), "Conv_1": (3, 3, 1, 4), "Conv_2": (1, 1, 4, 1), "Dense_0": (3, 3)},
    ),
    "lstm": (
        Lstm,
        None,
        {f"OptimizedLSTMCell_0/i{gate}": (3, 4) for gate in "ifgo"}
        | {f"OptimizedLSTMCell_0/h{gate}": (4, 4) for gate in "ifgo"}
        | {f"LSTMCell_0/i{gate}": (4, 2) for gate in "ifgo"}
        | {f"LSTMCell_0/h{gate}": (2, 2) for gate in "ifgo"}
        | {"Dense_0": (2, 11)},
    ),
    "unet": (
        UNet,
        PICTURE,
        {"Conv_0": (3, 3, 3, 2), "Conv_1": (3, 3, 2, 4), "ConvTranspose_0": (2, 2, 4, 2)}
        | {"Conv_2": (1, 1, 4, 3)},
    ),
    "group_norms": (
        GroupNorms,
        PICTURE,
        {"Conv_0": (3, 3, 3, 4), "Conv_1": (1, 1, 4, 4), "Dense_0": (4, 3)},
    ),
    "scanned": (
        Scanned,
        SEQUENCE,
        {"Dense_1": (7, 3), "Dense_0": (3, 3)}
        | {"blocks/Dense_1": (3, 3, 4), "blocks/Dense_0": (3, 4, 3)},
    ),
    "transformer": (
        Transformer,
        SEQUENCE,
        {f"MultiHeadDotProductAttention_0/{name}": (8, 2, 3) for name in ("query", "key", "value")}
        | {"MultiHeadDotProductAttention_0/out": (2, 3, 8)}
        | {"Dense_0": (7, 8), "Dense_1": (5, 8), "Dense_2": (8, 5), "Dense_3": (8, 3)},
    ),
}


def inputs(shape):
    if shape is None:
        return jnp.arange(10).reshape(2, 5) % 11
    return jax.random.normal(jax.random.key(7), shape)


def filled(shapes):
    """Random values as after training: no bias is 0 and no scale is 1. Compiles nothing."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return on_device(rng.uniform(0.1, 0.9, leaf.shape), leaf.dtype)

    return jax.tree.map(fill, shapes)


def variables_of(model, x):
    return filled(jax.eval_shape(model.init, jax.random.key(0), x))


def halved(params, groups):
    """Zeroes half of the channels of each group, those of the smallest norm; slow and obvious."""
    paths, leaves, treedef = leaves_with_paths(params)
    structures = {p: s for p in paths for rule, s in groups.items() if re.fullmatch(rule, p)}
    for name in {s.group for s in structures.values()}:
        coupled = {p: s for p, s in structures.items() if s.group == name}
        squares = np.zeros(next(iter(coupled.values())).n)
        for path, s in coupled.items():
            slices = np.moveaxis(np.asarray(leaves[paths.index(path)], np.float64), s.axis, 0)
            for unit, part in zip(s.unit_of, slices, strict=True):
                squares[unit] += np.square(part).sum()
        dropped = np.argsort(squares)[: (len(squares) + 1) // 2]
        for path, s in coupled.items():
            x = np.array(leaves[paths.index(path)])
            np.moveaxis(x, s.axis, 0)[np.isin(s.unit_of, dropped)] = 0
            leaves[paths.index(path)] = jnp.asarray(x)
    return treedef.unflatten(leaves)


def at(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "mobile")) for n in LINEN]
)
def test_linen_models_are_shrunk_by_half(name):
    make, shape, expected = LINEN[name]
    model, x = make(), inputs(shape)
    variables = variables_of(model, x)
    groups = jaxprune.channel_groups(model.apply, variables, x)
    variables = {**variables, "params": halved(variables["params"], groups)}
    small, report = jaxprune.shrink(model.apply, variables, x)
    for path, kernel in expected.items():
        assert at(small["params"], path)["kernel"].shape == kernel, path
    assert report.difference < 1e-5
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (variables, small)]
    assert [report.size_before, report.size] == sizes
    assert all(group.kept == group.size for group in report.refused)
    assert all(
        "input" in g.reason or "output" in g.reason or name in ("transformer", "lstm")
        for g in report.refused
    )
    resized = jaxprune.resize_linen(model, small, x)
    made = jax.eval_shape(resized.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, small)
    programs = [
        jax.make_jaxpr(apply_fn)(small, x)
        for apply_fn in (resized.apply, lambda v, x: jaxprune.shrunk_apply(model.apply, v, x))
    ]
    assert str(programs[0]) == str(programs[1])


class NnxCnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.depthwise = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs)
        self.project = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = x + self.project(nnx.relu(self.depthwise(x)))
        return self.head(nnx.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1))


class NnxLstm(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 6, rngs=rngs)
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(6, 8, rngs=rngs))
        self.head = nnx.Linear(8, 11, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.rnn(self.embed(tokens)))


class NnxTransformer(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(7, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 8, 12, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 10, rngs=rngs), nnx.Linear(10, 8, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class NnxMlp(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


class NnxStack(nnx.Module):
    """Three equal layers in leaves with one axis more, run by a scan."""

    def __init__(self, rngs):
        create = nnx.split_rngs(splits=3)(nnx.vmap(NnxMlp, in_axes=(0,), out_axes=0))
        self.blocks = create(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        run = nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return self.head(run(self.blocks, x))


NNX = {
    "stack": (
        NnxStack,
        (5, 4),
        {"blocks.up": (3, 4, 3), "blocks.down": (3, 3, 4)},
        {"blocks.up.in_features": 4, "blocks.up.out_features": 3, "blocks.down.in_features": 3},
    ),
    "cnn": (
        NnxCnn,
        PICTURE,
        {"conv": (3, 3, 3, 2), "depthwise": (3, 3, 1, 2), "project": (1, 1, 2, 2), "head": (8, 3)},
        {"conv.out_features": 2, "depthwise.feature_group_count": 2, "norm.num_features": 2},
    ),
    "lstm": (
        NnxLstm,
        None,
        {"rnn.cell.dense_i": (3, 16), "rnn.cell.dense_h": (4, 16), "head": (4, 11)},
        {"rnn.cell.hidden_features": 4, "rnn.cell.in_features": 3, "embed.features": 3},
    ),
    "transformer": (
        NnxTransformer,
        SEQUENCE,
        {"attention.query": (8, 2, 3), "attention.out": (2, 3, 8), "up": (8, 5), "down": (5, 8)},
        {"attention.num_heads": 2, "attention.qkv_features": 6, "up.out_features": 5},
    ),
}


def reach(model, path):
    for name in path.split("."):
        model = getattr(model, name)
    return model


@pytest.mark.parametrize("name", NNX)
def test_nnx_models_are_shrunk_in_place(name):
    make, shape, kernels, sizes = NNX[name]
    model, x = nnx.eval_shape(lambda: make(nnx.Rngs(0))), inputs(shape)
    model.eval()
    nnx.update(model, filled(nnx.state(model)))
    groups = jaxprune.channel_groups_nnx(model, x)
    nnx.update(model, halved(nnx.state(model, nnx.Param), groups))
    run = nnx.jit(lambda model, x: model(x))
    before = run(model, x)
    report = jaxprune.shrink_nnx(model, x)
    assert {path: reach(model, path).kernel.shape for path in kernels} == kernels
    assert {path: reach(model, path) for path in sizes} == sizes
    np.testing.assert_allclose(run(model, x), before, rtol=1e-4, atol=1e-5)
    numbers = nnx.state(model, nnx.Not(nnx.RngState))
    left = sum(leaf.size for leaf in jax.tree.leaves(numbers))
    assert report.size == left < report.size_before


LAYERS = {
    "linear": lambda rngs: nnx.Linear(4, 6, rngs=rngs),
    "several axes": lambda rngs: nnx.LinearGeneral((2, 4), (3, 5), axis=(-2, -1), rngs=rngs),
    "einsum": lambda rngs: nnx.Einsum("ab,bcd->acd", (4, 2, 3), (2, 3), rngs=rngs),
    "convolution": lambda rngs: nnx.Conv(4, 6, (3, 5), feature_group_count=2, rngs=rngs),
    "depthwise": lambda rngs: nnx.Conv(4, 8, (3,), feature_group_count=4, rngs=rngs),
    "transposed": lambda rngs: nnx.ConvTranspose(4, 6, (3,), transpose_kernel=True, rngs=rngs),
    "embedding": lambda rngs: nnx.Embed(7, 4, rngs=rngs),
    "attention": lambda rngs: nnx.MultiHeadAttention(
        2, 4, 6, out_features=5, in_kv_features=3, decode=False, rngs=rngs
    ),
    "batch norm": lambda rngs: nnx.BatchNorm(4, rngs=rngs),
    "group norm": lambda rngs: nnx.GroupNorm(4, num_groups=None, group_size=2, rngs=rngs),
    "gru": lambda rngs: nnx.GRUCell(4, 6, rngs=rngs),
    "lstm": lambda rngs: nnx.LSTMCell(4, 6, rngs=rngs),
}


@pytest.mark.parametrize("name", LAYERS)
def test_sizes_of_a_layer_are_those_of_its_params_however_they_are_stacked(name):
    def attributes(module):
        return {
            (path, key): value
            for path, part in nnx.iter_graph(module)
            if isinstance(part, nnx.Module)
            for key, value in vars(part).items()
            if isinstance(value, (int, tuple)) and not isinstance(value, bool)
        }

    stacked = LAYERS[name]
    for _ in range(3):
        module = nnx.eval_shape(lambda make=stacked: make(nnx.Rngs(0)))
        before = attributes(module)
        set_nnx_sizes(module)
        assert attributes(module) == before
        stacked = nnx.split_rngs(splits=3)(nnx.vmap(stacked, in_axes=(0,), out_axes=0))


# Laws


def random_net(seed, widths, activation):
    """Dense layers; some units are zero, others are multiplied by zero in the next layer."""
    rng = np.random.default_rng(seed)
    ends = list(zip([3, *widths], [*widths, 2], strict=True))
    params = [
        {"w": rng.normal(size=ends[i]).astype("f"), "b": rng.normal(size=ends[i][1]).astype("f")}
        for i in range(len(ends))
    ]
    kept = []
    for i, width in enumerate(widths):
        dead, unread = rng.random((2, width)) < 0.4
        dead[0] = unread[0] = False  # without any unit, the next layer would be constant
        params[i]["w"][:, dead], params[i]["b"][dead] = 0, 0
        params[i + 1]["w"][unread] = 0
        gone = unread | (dead if activation(0.0) == 0 else False)
        kept.append(int((~gone).sum()))
    return params, kept


@settings(max_examples=8)  # each example is compiled
@given(
    seed=st.integers(0, 999),
    widths=st.lists(st.integers(2, 7), min_size=1, max_size=3),
    activation=st.sampled_from((jax.nn.relu, jnp.tanh, jax.nn.sigmoid, jax.nn.silu)),
)
def test_exactly_the_units_that_no_output_depends_on_are_removed(seed, widths, activation):
    params, kept = random_net(seed, widths, activation)

    def apply_fn(params, x):
        for layer in params[:-1]:
            x = activation(x @ layer["w"] + layer["b"][None])
        return x @ params[-1]["w"] + params[-1]["b"][None]

    x = jax.random.normal(jax.random.key(seed), (4, 3))
    small, report = jaxprune.shrink(apply_fn, params, x)
    assert [layer["w"].shape for layer in small] == list(zip([3, *kept], [*kept, 2], strict=True))
    assert report.difference < 1e-5
    if max(kept) > 1:
        again, _ = jaxprune.shrink(apply_fn, small, x)
        assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, small)
    run = jax.jit(apply_fn)
    np.testing.assert_allclose(run(small, x), run(params, x), rtol=1e-4, atol=1e-5)


@settings(max_examples=4)  # each example is compiled
@given(
    seed=st.integers(0, 999),
    channels=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    residual=st.booleans(),
)
def test_pruned_convolutions_shrink_to_what_is_left(seed, channels, residual):
    rng = np.random.default_rng(seed)
    ends = list(zip([2, *channels[:-1]], channels, strict=True))
    params = {f"conv{i}": rng.normal(size=(3, 3, *end)).astype("f") for i, end in enumerate(ends)}
    params |= {
        f"same{i}": rng.normal(size=(1, 1, c, c)).astype("f") for i, c in enumerate(channels)
    }
    params["out"] = rng.normal(size=(channels[-1], 3)).astype("f")

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def apply_fn(params, x):
        for i in range(len(channels)):
            x = jax.nn.relu(conv(x, params[f"conv{i}"]))
            y = conv(x, params[f"same{i}"])
            x = x + y if residual else y
        return x.max((1, 2)) @ params["out"]

    x = jax.random.normal(jax.random.key(seed), (1, 4, 4, 2), jnp.float32)
    groups = jaxprune.channel_groups(apply_fn, params, x)
    sparse = halved(params, groups)
    small, _ = jaxprune.shrink(apply_fn, sparse, x)
    kept = [c - int(c * 0.5 + 0.5) for c in channels]
    assert small["out"].shape == (max(kept[-1], 1), 3)
    assert [small[f"conv{i}"].shape[-1] for i in range(len(kept))] == kept


# Which units are known to be zero


def one_layer_params():
    params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4), "v": jnp.ones((4, 2))}
    return params, jnp.ones((2, 3))


def one_layer(activation):
    def apply_fn(params, x):
        return activation(x @ params["w"] + params["b"][None]) @ params["v"]

    return apply_fn


@pytest.mark.parametrize(
    "activation, removed",
    (
        (jax.nn.relu, True),
        (jax.nn.gelu, True),
        (jnp.tanh, True),
        (jax.nn.elu, True),
        (jax.nn.leaky_relu, True),
        (jax.nn.relu6, True),
        (jnp.sin, True),
        (jax.nn.sigmoid, False),
        (jnp.cos, False),
        (jax.nn.softplus, False),
        (jnp.exp, False),
        (lambda h: jax.nn.relu(h - 1.0), True),
        (lambda h: jax.nn.relu(h + 1.0), False),
        (lambda h: jnp.clip(h, 0.5, 1.0) - 0.5, True),
        (lambda h: jnp.where(h > 0, h, h * h), True),
        (lambda h: h * jax.nn.sigmoid(h + 2.0), True),
    ),
)
def test_a_zero_unit_is_removed_only_if_its_activation_is_zero_too(activation, removed):
    params = {"w": jnp.ones((3, 4)).at[:, 1].set(0.0), "b": jnp.zeros(4), "v": jnp.ones((4, 2))}
    program = program_of(one_layer(activation), params, [jnp.ones((2, 3))])
    units = units_of(trace(program, known_values(program)))
    (group,) = [group for group in groups_lib.group_units(program, units) if not group.reason]
    assert len(group.removed) == removed


def test_a_bias_that_relu_cuts_off_makes_a_unit_zero():
    params = {"w": jnp.ones((3, 4)).at[:, :2].set(0.0), "b": jnp.array([-1.0, 1.0, 1.0, 1.0])}
    params["v"] = jnp.arange(8.0).reshape(4, 2)
    small, report = jaxprune.shrink(one_layer(jax.nn.relu), params, jnp.ones((2, 3)))
    assert small["b"].tolist() == [1.0, 1.0, 1.0]
    assert small["v"].tolist() == params["v"][1:].tolist()
    assert report.shapes == {"b": ((4,), (3,)), "v": ((4, 2), (3, 2)), "w": ((3, 4), (3, 3))}


def test_a_unit_that_is_read_twice_is_removed_if_both_multiply_it_by_zero():
    params = {"w": np.ones((3, 4), "f"), "v": np.ones((4, 2), "f"), "u": np.ones((4, 2), "f")}
    params["v"][:2], params["u"][1:3] = 0, 0
    apply_fn = lambda p, x: jnp.cos(x @ p["w"]) @ p["v"] + jnp.cos(x @ p["w"]) @ p["u"]
    small, _ = jaxprune.shrink(apply_fn, params, jnp.ones((2, 3)))
    assert small["v"].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert small["u"].tolist() == [[1, 1], [0, 0], [1, 1]]


def test_a_gate_that_is_always_zero_makes_a_unit_zero():
    params = {"w": np.ones((3, 8), "f"), "v": np.ones((4, 2), "f")}
    params["w"][:, 2] = 0  # only the left half of unit 2

    def apply_fn(params, x):
        left, right = jnp.split(x @ params["w"], 2, -1)
        return (left * jnp.cos(right)) @ params["v"]

    small, _ = jaxprune.shrink(apply_fn, params, jnp.ones((2, 3)))
    assert small["w"].tolist() == np.ones((3, 6)).tolist()


def test_one_unit_stays_where_all_are_zero():
    params = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4), "v": jnp.ones((4, 2))}
    small, _ = jaxprune.shrink(one_layer(jax.nn.relu), params, jnp.ones((2, 3)))
    assert small["w"].shape == (3, 1)


def test_params_without_zeros_are_returned_unchanged():
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4), "v": jnp.ones((4, 2))}
    small, report = jaxprune.shrink(one_layer(jax.nn.relu), params, jnp.ones((2, 3)))
    assert jax.tree.map(jnp.array_equal, small, params) == {"w": True, "b": True, "v": True}
    assert (report.shapes, report.difference) == ({}, 0.0)


def test_bfloat16_params_and_mixed_precision():
    params = {"w": jnp.ones((3, 4)).at[:, 1].set(0.0), "b": jnp.zeros(4), "v": jnp.ones((4, 2))}
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    apply_fn = lambda p, x: one_layer(jax.nn.gelu)(
        jax.tree.map(lambda p: p.astype(jnp.float32), p), x
    )
    small, _ = jaxprune.shrink(apply_fn, params, jnp.ones((2, 3)))
    assert small["w"].shape == (3, 3)
    assert small["w"].dtype == jnp.bfloat16


@pytest.mark.filterwarnings("error")
def test_complex_numbers_that_are_not_zero_are_not_taken_for_zero():
    parts = np.random.default_rng(0).normal(size=(2, 16, 20)).astype(np.float32)
    numbers = jnp.asarray(parts[0] + 1j * parts[1])
    params = {"up": numbers[:8, :16].at[:, :8].set(0), "down": numbers[:, 16:]}
    x = numbers[8:11, :8]
    factors = np.array(1j * np.arange(1, 9), np.complex64)  # their real parts are zero

    def apply_fn(params, x):
        return ((x * factors) @ params["up"] * 1j) @ params["down"]

    small, report = jaxprune.shrink(apply_fn, params, x)
    assert small["up"].shape == (8, 8)
    assert {g.kept for g in report.groups if ("up", 1) in g.members} == {8}


def test_a_complex_constant_that_depends_on_a_length_refuses_the_axis():
    params = {"up": jnp.ones((8, 16), complex).at[:, :8].set(0), "down": jnp.ones((16, 4), complex)}

    def apply_fn(params, x):
        length = params["up"].shape[1]
        return ((x @ params["up"]) * np.array([1j * length])) @ params["down"]

    small, report = jaxprune.shrink(apply_fn, params, jnp.ones((5, 8), complex))
    assert small["up"].shape == (8, 16)
    assert "a constant array in the model changes" in reason_for(report, "up", 1)


# Refusals


def reason_for(report, path, axis):
    (group,) = [g for g in report.groups if (path, axis) in g.members]
    assert group.kept == group.size
    assert path in str(report)
    return group.reason


def mixed(middle):
    """A network with a hidden layer that can shrink, and one that goes through `middle`."""

    def apply_fn(params, x):
        x = jax.nn.relu(x @ params["a"]) @ params["b"]
        return middle(x, params) @ params["c"]

    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (4, 8), "c": (8, 2)}
    params = {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}
    params["a"][:, 0], params["b"][:, :4] = 0, 0
    return apply_fn, params


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def group_norm(x, params):
    x = x.reshape(len(x), 2, -1)
    return layer_norm(x, params).reshape(len(x), -1)


@pytest.mark.parametrize(
    "middle, reason",
    (
        (layer_norm, "reduce_sum runs over it: a norm, a mean or a softmax"),
        (lambda x, params: jax.nn.softmax(x), "reduce_max runs over it"),
        (lambda x, params: jnp.fft.fft(x).real, "it passes through fft, which has no rule"),
        (lambda x, params: jnp.cumsum(x, -1), "cumsum runs along it"),
        (lambda x, params: x + np.arange(8.0, dtype="f")[None], "a constant array in add"),
        (lambda x, params: x / np.sqrt(x.shape[-1]), "length of this axis: div by 2.828 becomes"),
        (lambda x, params: x[:, np.arange(8)[::-1]], "indexed by data"),
        (lambda x, params: x.reshape(len(x), 8), "is its length hard-coded? TypeError"),
        (group_norm, "a size is hard-coded in the model: reshape makes shape (2, 2, 2) where"),
        (lambda x, params: (x, jnp.tanh(x))[x.shape[1] == 8], "dot_general has another operand"),
        (lambda x, params: x if x.shape[1] == 8 else -x, "program changes with the length"),
    ),
    ids=(
        *("norm", "softmax", "unknown", "cumsum", "constant", "derived", "gather", "written"),
        *("groups", "wired", "branch"),
    ),
)
def test_a_refused_group_stays_and_its_reason_is_named(middle, reason):
    apply_fn, params = mixed(middle)
    small, report = jaxprune.shrink(apply_fn, params, jnp.ones((2, 3)))
    assert reason in reason_for(report, "b", 1)
    assert small["a"].shape == (3, 3), "the other group is shrunk all the same"
    assert small["c"].shape == (8, 2)


def test_query_and_key_keep_the_size_that_scales_them():
    model, x = Transformer(), inputs(SEQUENCE)
    variables = variables_of(model, x)
    attention = variables["params"]["MultiHeadDotProductAttention_0"]
    for name in ("query", "value"):
        attention[name]["kernel"] = attention[name]["kernel"].at[..., 0].set(0.0)
        attention[name]["bias"] = attention[name]["bias"].at[..., 0].set(0.0)
    small, report = jaxprune.shrink(model.apply, variables, x)
    path = "params/MultiHeadDotProductAttention_0"
    assert "computed from the length of this axis" in reason_for(report, f"{path}/query/kernel", 2)
    assert "reduce_sum runs over it" in reason_for(report, "params/Dense_0/kernel", 1)
    assert at(small, f"{path}/value/kernel").shape == (8, 4, 2)
    assert at(small, f"{path}/out/kernel").shape == (4, 2, 8)


def test_a_model_in_which_nothing_can_shrink_is_an_error():
    with pytest.raises(ValueError, match=r"no axis .* can shrink: w\[0\]: .*input"):
        jaxprune.shrink(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((2, 3)))


def test_numbers_among_the_params_are_no_channels():
    def model(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["v"] / params["temperature"] ** params["power"]

    x = jnp.ones((3, 4))
    params = {"w": jnp.arange(32.0).reshape(4, 8), "v": jnp.ones((8, 2))}
    params |= {"temperature": 2.0, "power": 3, "key": jax.random.key(0)}
    groups = jaxprune.channel_groups(model, params, x)
    sparse, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
    small, _ = jaxprune.shrink(model, sparse, x)
    assert small["w"].shape == (4, 4)
    assert (small["temperature"], small["power"]) == (2.0, 3)
    np.testing.assert_array_equal(model(small, x), model(sparse, x))


def test_params_that_are_not_used_stay():
    params = {
        "w": jnp.ones((3, 4)),
        "b": jnp.zeros(4),
        "v": jnp.ones((4, 2)),
        "x": jnp.zeros((5, 5)),
    }
    small, report = jaxprune.shrink(one_layer(jnp.tanh), params, jnp.ones((2, 3)))
    assert small["x"].shape == (5, 5)
    assert reason_for(report, "x", 0) == "no product sums over it"


def test_a_first_carry_that_is_an_input_fixes_the_cell():
    cell = nn.LSTMCell(4)
    carry, x = (jnp.ones((2, 4)), jnp.ones((2, 4))), jnp.ones((2, 3))

    def apply_fn(variables, carry, x):
        return cell.apply(variables, carry, x)[1] @ jnp.ones((4, 1))

    variables = filled(jax.eval_shape(cell.init, jax.random.key(0), carry, x))
    with pytest.raises(ValueError, match=r"no axis .* can shrink: .*as long as an input"):
        jaxprune.shrink(apply_fn, variables, carry, x)


# The checks


def test_a_wrong_cut_is_caught_by_the_outputs(monkeypatch):
    params = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4), "v": jnp.ones((4, 2))}
    monkeypatch.setattr(groups_lib, "is_removable", lambda unit: unit.is_candidate)
    with pytest.raises(ValueError, match=r"outputs .* differ by 9.*largest output is 12.*rtol"):
        jaxprune.shrink(one_layer(jax.nn.relu), params, jnp.ones((2, 3)))
    small, _ = jaxprune.shrink(one_layer(jax.nn.relu), params, jnp.ones((2, 3)), rtol=0.8)
    assert small["w"].shape == (3, 1)


def test_a_wrong_cut_leaves_an_nnx_model_as_it_was(monkeypatch):
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    )
    nnx.update(model, filled(nnx.state(model)))
    monkeypatch.setattr(groups_lib, "is_removable", lambda unit: unit.is_candidate)
    with pytest.raises(ValueError, match=r"outputs .* differ"):
        jaxprune.shrink_nnx(model, jnp.ones((2, 3)))
    assert model.layers[0].kernel.shape == (3, 4)
    assert model.layers[0].out_features == 4


@pytest.mark.skip_in("debug_nans", reason="the test needs NaN outputs")
def test_nan_outputs_are_an_error():
    params = {
        "w": jnp.full((3, 4), jnp.nan).at[:, 0].set(0),
        "b": jnp.zeros(4),
        "v": jnp.ones((4, 2)),
    }
    with pytest.raises(ValueError, match="outputs contain NaN"):
        jaxprune.shrink(one_layer(jax.nn.relu), params, jnp.ones((2, 3)))


def test_shrunk_apply_leaves_the_module_alone_and_runs_under_jit():
    model = Residual()
    x = inputs(PICTURE)
    variables = variables_of(model, x)
    cut = jax.tree.map(lambda p: p, variables)
    conv, norm = cut["params"]["Conv_1"], cut["params"]["BatchNorm_1"]
    conv.update(kernel=conv["kernel"][..., :2], bias=conv["bias"][:2])
    norm.update({name: norm[name][:2] for name in norm})
    statistics = cut["batch_stats"]["BatchNorm_1"]
    statistics.update({name: statistics[name][:2] for name in statistics})
    cut["params"]["Conv_2"]["kernel"] = cut["params"]["Conv_2"]["kernel"][:, :, :2]
    jitted = jax.jit(lambda v, x: jaxprune.shrunk_apply(model.apply, v, x))
    assert jitted(cut, x).shape == (2, 3)
    np.testing.assert_array_equal(jitted(variables, x), jax.jit(model.apply)(variables, x))
    layers = nn.Sequential([nn.Dense(4), nn.Dense(2)])
    cut = {"layers_0": {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)}}
    cut["layers_1"] = {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}
    assert jaxprune.shrunk_apply(layers.apply, {"params": cut}, jnp.ones((1, 3))).shape == (1, 2)
    assert layers.layers[0].features == 4


# Coupled channels


def coupled_mlp():
    rng = np.random.default_rng(3)
    params = {"w": rng.normal(size=(3, 6)), "b": rng.normal(size=6), "v": rng.normal(size=(6, 2))}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    apply_fn = one_layer(jnp.tanh)
    return apply_fn, params, jaxprune.channel_groups(apply_fn, params, jnp.ones((2, 3)))


@settings(max_examples=6)  # each example is compiled
@given(sparsity=st.sampled_from((0.0, 0.2, 0.5, 0.8)))
def test_coupled_leaves_drop_the_channels_of_the_least_norm(sparsity):
    _, params, groups = coupled_mlp()
    sparse, masks = jaxprune.prune_params(params, sparsity, structure=groups, include=tuple(groups))
    norm = np.sqrt(np.square(params["w"]).sum(0) + np.square(params["b"]))
    kept = np.ones(6, bool)
    kept[np.argsort(norm)[: int(6 * sparsity + 0.5)]] = False
    np.testing.assert_array_equal(masks["b"], kept)
    np.testing.assert_array_equal(masks["w"], np.broadcast_to(kept, (3, 6)))
    assert masks["v"].all()
    assert not np.signbit(np.asarray(sparse["b"])[~kept]).any()


@pytest.mark.parametrize("distribution", (jaxprune.uniform, jaxprune.erk, jaxprune.global_pool))
def test_coupled_leaves_share_a_budget_under_each_distribution(distribution):
    model, x = Mlp(), inputs((2, 5))
    variables = variables_of(model, x)
    groups = jaxprune.channel_groups(model.apply, variables, x)
    rules = {"structure": groups, "include": tuple(groups), "distribution": distribution}
    params = variables["params"]
    masks = jax.jit(lambda p: jaxprune.prune_params(p, 0.5, **rules)[1])(params)
    per_layer = [np.asarray(masks[f"Dense_{i}"]["kernel"]).all(0) for i in range(2)]
    np.testing.assert_array_equal(masks["Dense_0"]["bias"], per_layer[0])
    assert sum(int((~kept).sum()) for kept in per_layer) == 5, "half of 6 + 4 channels"
    rows = {row.path: row for row in jaxprune.plan(params, 0.5, **rules).leaves}
    n_zero = sum(int((~np.asarray(mask)).sum()) for mask in jax.tree.leaves(masks))
    if distribution is not jaxprune.global_pool:  # where a leaf's share is not known beforehand
        assert sum(row.n_zero for row in rows.values()) == n_zero


def test_an_override_of_any_leaf_is_that_of_the_group():
    _, params, groups = coupled_mlp()
    _, masks = jaxprune.prune_params(
        params, 0.5, structure=groups, include=tuple(groups), overrides={"w": 1 / 3}
    )
    assert int((~masks["b"]).sum()) == 2


def test_gradual_pruning_keeps_coupled_masks_alike_and_shrinks():
    apply_fn, params, groups = coupled_mlp()
    schedule = jaxprune.cubic_schedule(0.5, 0, 4, every=2)
    tx = jaxprune.prune(
        schedule, inner=optax.adam(0.05), structure=groups, include=tuple(groups), packed=True
    )
    state, x = tx.init(params), jax.random.normal(jax.random.key(1), (8, 3))

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean((apply_fn(p, x) - 1) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    dropped = []
    for _ in range(6):
        params, state = step(params, state)
        masks = jaxprune.get_masks(state)
        np.testing.assert_array_equal(masks["w"], np.broadcast_to(masks["b"], (3, 6)))
        dropped.append(int((~masks["b"].astype(bool)).sum()))
    assert dropped == sorted(dropped)
    assert dropped[-1] == 3
    jaxprune.check(params, state)
    small, _ = jaxprune.shrink(apply_fn, params, x)
    assert jax.tree.map(jnp.shape, small) == {"w": (3, 3), "b": (3,), "v": (3, 2)}


def test_coupled_structures_refuse_what_they_cannot_mean():
    _, params, groups = coupled_mlp()
    include = tuple(groups)
    with pytest.raises(ValueError, match=r"w: Coupled\('b', axis=1\) needs length 6 along axis 1"):
        jaxprune.prune_params(
            {**params, "w": jnp.ones((3, 5))}, 0.5, structure=groups, include=include
        )
    with pytest.raises(ValueError, match=r"Coupled.* covers several leaves, but per_slice"):
        jaxprune.plan(
            params, 0.5, structure=groups, include=include, distribution=jaxprune.per_slice("w")
        )
    with pytest.raises(ValueError, match=r"no channels can be pruned: w\[0\]: .*input"):
        jaxprune.channel_groups(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((2, 3)))


def test_a_channel_that_one_of_coupled_leaves_has_dropped_is_dropped_in_all():
    structure = {
        "a": Coupled("hidden", 1, (0, 1, 2, 3, -1), 4),  # the last column is always kept
        "b": Coupled("hidden", 0, (0, 1, 2, 3), 4),
    }
    params = {"a": jnp.tile(jnp.arange(1.0, 6.0), (3, 1)), "b": jnp.arange(1.0, 5.0)[:, None]}
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5), structure=structure)
    masks = {"a": jnp.ones((3, 5), bool).at[:, 3].set(False), "b": jnp.ones((4, 1), bool)}
    _, state = tx.update(params, jaxprune.set_masks(tx.init(params), masks), params)
    assert state.masks["a"].tolist() == [[0, 1, 1, 0, 1]] * 3
    assert state.masks["b"][:, 0].tolist() == [0, 1, 1, 0]


def test_the_report_says_why_nothing_was_removed():
    """Single weights leave no unit that is zero; the report showed equal numbers without a word."""
    x = on_device(np.ones((2, 5), np.float32))
    variables = Mlp().init(jax.random.key(0), x)
    hint = "in no group a whole unit is zero"
    sparse, _ = jaxprune.prune_params(variables, 0.2)
    _, report = jaxprune.shrink(Mlp().apply, sparse, x)
    assert hint in repr(report).replace("\n  ", " ")
    assert hint in report._repr_html_()
    groups = jaxprune.channel_groups(Mlp().apply, variables, x)
    sparse, _ = jaxprune.prune_params(variables, 0.5, structure=groups, include=tuple(groups))
    _, report = jaxprune.shrink(Mlp().apply, sparse, x)
    assert "Nothing" not in repr(report)
    assert "Nothing" not in report._repr_html_()


class GroupedAfterAnother(nnx.Module):
    """A grouped convolution with two inputs and four outputs in each group."""

    def __init__(self, rngs):
        self.first, self.last = (
            nnx.Conv(3, 6, (1, 1), rngs=rngs),
            nnx.Conv(12, 2, (1, 1), rngs=rngs),
        )
        self.grouped = nnx.Conv(6, 12, (3, 3), feature_group_count=3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.grouped(nnx.relu(self.first(x)))))


def test_a_grouped_convolution_that_was_shrunk_twice_needs_its_number_of_groups():
    """Shapes don't tell it: the call failed in lax."""
    x, model = jnp.ones((2, 5, 5, 3)), GroupedAfterAnother(nnx.Rngs(0))
    for _ in range(2):
        groups = jaxprune.channel_groups_nnx(model, x)
        params = nnx.state(model, nnx.Param)
        rules = dict(structure=groups, include=tuple(groups))
        nnx.update(model, jaxprune.prune_params(params, 0.5, **rules)[0])
        jaxprune.shrink_nnx(model, x)
    fresh = GroupedAfterAnother(nnx.Rngs(1))
    with pytest.raises(ValueError, match=r"model\.grouped\.feature_group_count = \.\.\."):
        jaxprune.resize_nnx(fresh, nnx.state(model))
    fresh.grouped.feature_group_count = model.grouped.feature_group_count
    jaxprune.resize_nnx(fresh, nnx.state(model))
    np.testing.assert_array_equal(fresh(x), model(x))


@pytest.mark.parametrize("weak", ("bias", "gain", "down"))
def test_weakly_typed_params_shrink_like_others(weak):
    """`jnp.full(6, 0.0)` is weakly typed; `jnp.zeros(6)` is not."""
    params = {
        "up": jnp.ones((4, 6)).at[:, 3:].set(0),
        "bias": jnp.zeros(6),
        "gain": jnp.full(6, 2.0, jnp.float32),
        "down": jnp.full((6, 3), 0.5, jnp.float32),
    }
    params[weak] = jnp.full(params[weak].shape, float(params[weak].ravel()[0]))
    assert params[weak].weak_type

    def model(params, x):
        return (jax.nn.relu(x @ params["up"] + params["bias"]) * params["gain"]) @ params["down"]

    x = jnp.ones((2, 4))
    small, _ = jaxprune.shrink(model, params, x)
    assert {name: p.shape for name, p in small.items()} == {
        "up": (4, 3),
        "bias": (3,),
        "gain": (3,),
        "down": (3, 3),
    }
    assert [name for name, p in small.items() if p.weak_type] == [weak]
    np.testing.assert_array_equal(model(small, x), model(params, x))
    assert len(jaxprune.channel_groups(model, params, x)) > 0
