"""`layer_inputs`: the moments of what each param is multiplied with, in any program."""

import functools
import io
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P
from real_layers import LAYERS

import jaxprune
from calibration_oracles import correlated, normal, wanda_oracle
from helpers import assert_same, make_mesh, on_device, ones, says
from jaxprune import layer_inputs, layer_inputs_nnx, moments, sparsegpt, wanda
from jaxprune._calibration.kernel_view import KernelView
from jaxprune._trace.program import array_program
from moments_oracle import Oracle, Traced

# What the oracle does not follow: products of two params, and two weights in a byte.
NOT_FOLLOWED = {"jax_kernel_int4", "jax_kernel_lora", "jax_kernel_two_factors"}
# Entries that are looked up at many positions: the moments of their only leaf can't be collected.
NOT_FOLLOWED |= {"jax_outputs_indexed", "jax_inputs_indexed"}
WITHOUT = {  # in no product with inputs, or in one whose inputs can't be told apart
    "jax_experts_indexed": {"up", "down"},
    "jax_kernel_lora": {"b"},
    "jax_kernel_two_factors": {"b"},
}


def integers(*shape, key=0, most=2):
    x = np.random.default_rng(key).integers(-most, most + 1, shape)
    return on_device(x)


def filled(shapes):
    """Small integers in the shapes of a tree."""
    rng = np.random.default_rng(0)

    def fill(x):
        if not hasattr(x, "shape"):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        least, most = (-1, 2) if jnp.issubdtype(x.dtype, jnp.floating) else (0, 3)
        return on_device(rng.integers(least, most, x.shape), x.dtype)

    return jax.tree.map(fill, shapes)


def view_of(leaf, roles, gram):
    view = KernelView(leaf.shape, roles)
    is_grouped = gram.ndim == len(view.stack) + 3
    return view._replace(n_groups=gram.shape[len(view.stack)]) if is_grouped else view


# Every real layer, against an oracle that follows every weight by its index.


@functools.cache
def real_case(name):
    layer = LAYERS[name]()
    return layer, filled(layer.variables), filled(layer.inputs)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in NOT_FOLLOWED])
def test_moments_of_real_layers_are_those_of_a_slow_oracle(name):
    layer, variables, batch = real_case(name)
    # An explicit `include` replaces the default, which leaves out vectors and LoRA factors.
    roles = {path: tuple(text.split()) for path, text in layer.roles.items()}
    if not roles:
        with pytest.raises(ValueError, match="layer_inputs: no inputs can be collected"):
            layer_inputs(layer.apply_fn, variables, *batch)
        return
    inputs = layer_inputs(layer.apply_fn, variables, *batch, include=".*")
    assert set(inputs) == set(roles) - WITHOUT.get(name, set())
    program = array_program(layer.apply_fn, variables, batch)
    views = {
        k: view_of(leaf, roles[path], inputs[path].gram)
        for k, (path, leaf) in enumerate(zip(program.paths, program.leaves, strict=True))
        if path in inputs
    }
    oracle = Oracle(views)
    leaves = [
        Traced(leaf, {k: np.arange(np.size(leaf), dtype=np.int32).reshape(np.shape(leaf))})
        for k, leaf in enumerate(program.leaves)
    ]
    data = [Traced(jnp.asarray(x), is_data=True) for x in jax.tree.leaves(batch)]
    oracle.run(program.jaxpr.jaxpr, program.jaxpr.consts, [*leaves, *data])
    for k in views:
        got, expected = inputs[program.paths[k]].gram, oracle.grams[k]
        got = np.asarray(got).reshape(expected.shape)
        if np.array_equal(expected, np.round(expected)) and np.max(np.abs(expected)) < 2**24:
            np.testing.assert_array_equal(got, expected)  # sums of integers, which are exact
        else:  # op by op, and in float64
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.max(expected))
    for path in inputs:
        assert inputs.roles[path] == roles[path]


# By hand.


def test_each_expert_has_the_moments_of_the_tokens_that_reached_it():
    x = integers(7, 4)
    params = {"w": integers(3, 4, 2)}
    inputs = layer_inputs(lambda p, x: lax.ragged_dot(x, p["w"], jnp.array([2, 0, 4])), params, x)
    count, gram = inputs["w"]
    assert count.tolist() == [2, 0, 4]
    np.testing.assert_array_equal(gram, [x[:2].T @ x[:2], np.zeros((4, 4)), x[2:6].T @ x[2:6]])


def test_each_layer_of_a_scan_has_moments_of_its_own():
    x, w = integers(5, 4), integers(3, 4, 4, key=1, most=1)

    def model(p, x):
        return lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0]

    count, gram = layer_inputs(model, {"w": w}, x)["w"]
    layers = [np.asarray(x), np.asarray(x @ w[0]), np.asarray(x @ w[0] @ w[1])]
    assert count.tolist() == [5, 5, 5]
    np.testing.assert_array_equal(gram, [x.T @ x for x in layers])


def test_the_moments_of_a_leaf_that_is_used_twice_are_added():
    x, w = integers(5, 4), integers(4, 4, key=1)
    count, gram = layer_inputs(lambda p, x: x @ p["w"] @ p["w"], {"w": w}, x)["w"]
    hidden = np.asarray(x @ w)
    assert count == 10
    np.testing.assert_array_equal(gram, np.asarray(x.T @ x) + hidden.T @ hidden)


def test_moments_of_a_convolution_are_those_of_its_patches():
    x, w = integers(2, 5, 3), integers(2, 3, 4)
    dimensions = ("NWC", "WIO", "NWC")
    conv = lambda p, x: lax.conv_general_dilated(
        x, p["w"], (2,), "VALID", dimension_numbers=dimensions
    )
    count, gram = layer_inputs(conv, {"w": w}, x)["w"]
    patches = np.stack([np.asarray(x[:, i : i + 2]).reshape(2, 6) for i in (0, 2)]).reshape(4, 6)
    assert count == 4
    np.testing.assert_array_equal(gram, patches.T @ patches)


def test_only_the_branch_that_runs_counts():
    x = integers(5, 4)

    def model(p, x, which):
        branches = [lambda x: x @ p["w"][0], lambda x: (2 * x) @ p["w"][1], lambda x: x[:, :2]]
        return lax.switch(which, branches, x)

    for which, factors in ((0, (1, 0)), (1, (0, 4)), (2, (0, 0))):
        count, gram = layer_inputs(model, {"w": integers(2, 4, 2)}, x, which)["w"]
        assert count.tolist() == [5 * (f > 0) for f in factors]
        np.testing.assert_array_equal(gram, [f * np.asarray(x.T @ x) for f in factors])


def test_a_while_loop_of_unknown_length_looks_up_its_layers():
    x, w = integers(5, 4), integers(3, 4, 4, key=1, most=1)

    def model(p, x, n):
        return lax.fori_loop(0, n, lambda i, x: x @ p["w"][i], x)

    count, gram = layer_inputs(model, {"w": w}, x, 2)["w"]
    hidden = np.asarray(x @ w[0])
    assert count.tolist() == [5, 5, 0]
    np.testing.assert_array_equal(gram, [x.T @ x, hidden.T @ hidden, np.zeros((4, 4))])


def test_products_with_parts_of_the_rows_fill_parts_of_the_moments():
    x, params = integers(5, 6), {"w": integers(6, 3)}
    blocks = np.kron(np.eye(3), np.ones((2, 2))) * np.asarray(x.T @ x)  # 3 parts of 2 inputs

    def sliced(p, x):
        return [x[:, i : i + 2] @ p["w"][i : i + 2] for i in (0, 2, 4)]

    def indexed(p, x):
        return [x[:, 2 * i : 2 * i + 2] @ p["w"].reshape(3, 2, 3)[i] for i in range(3)]

    def batched(p, x):
        return jnp.einsum("bgi,gio->bgo", x.reshape(5, 3, 2), p["w"].reshape(3, 2, 3))

    def looped(p, x):
        def add(i, total):
            part = lax.dynamic_slice(x, (0, 2 * i), (5, 2))
            return total + part @ lax.dynamic_slice(p["w"], (2 * i, 0), (2, 3))

        return lax.fori_loop(0, 3, add, jnp.zeros((5, 3)))

    def scanned(p, x):
        parts = x.reshape(5, 3, 2).swapaxes(0, 1), p["w"].reshape(3, 2, 3)
        return lax.scan(lambda total, xw: (total + xw[0] @ xw[1], None), jnp.zeros((5, 3)), parts)

    for model in (sliced, indexed, batched, looped, scanned):
        np.testing.assert_array_equal(layer_inputs(model, params, x)["w"].gram, blocks)


def test_groups_of_outputs_with_inputs_of_their_own_have_moments_of_their_own():
    x, params = integers(5, 3, 4), {"w": integers(4, 6)}
    inputs = layer_inputs(
        lambda p, x: jnp.einsum("bgi,igo->bgo", x, p["w"].reshape(4, 3, 2)), params, x
    )
    count, gram = inputs["w"]
    assert count.tolist() == [5, 5, 5]
    np.testing.assert_array_equal(gram, jnp.einsum("bgi,bgk->gik", x, x))


# Batches.


def mlp(params, x):
    return jax.nn.relu(x @ params["w"] + params["b"][None]) @ params["v"].T


MLP = {"w": integers(4, 6), "b": integers(6), "v": integers(3, 6)}


def test_batches_add_up():
    x = integers(6, 4)
    whole = layer_inputs(mlp, MLP, x)
    a, b = layer_inputs(mlp, MLP, x[:2]), layer_inputs(mlp, MLP, x[2:])
    several = [x[:2], (x[2:4],), x[4:]]
    together = layer_inputs(mlp, MLP, batches=iter(several))
    for total in (a + b, sum([a, b]), jax.tree.map(jnp.add, a, b), together):
        assert_same(total, whole)
    assert_same(layer_inputs(mlp, MLP, batches=[x[:2], x[2:]]), whole)  # of different shapes
    np.testing.assert_array_equal(whole["w"].gram, x.T @ x)
    assert_same(whole["w"], moments(x))


def test_diagonals_are_enough_for_wanda():
    x = jnp.asarray(correlated(32, 4))
    params = {"w": normal(4, 6), "b": normal(6), "v": normal(3, 6)}
    whole, diagonal = (layer_inputs(mlp, params, x, diagonal=d) for d in (False, True))
    for path in ("w", "v"):
        expected = np.diagonal(whole[path].gram)
        np.testing.assert_allclose(diagonal[path].gram, expected, rtol=1e-6)  # another order
    assert_same(wanda(params, diagonal, 0.5)[1], wanda(params, whole, 0.5)[1])


@pytest.mark.parametrize("name", ("linen_conv_2d", "linen_conv_groups", "jax_experts_ragged"))
def test_diagonals_of_real_layers_are_those_of_the_moments(name):
    layer, variables, batch = real_case(name)
    whole = layer_inputs(layer.apply_fn, variables, *batch)
    diagonal = layer_inputs(layer.apply_fn, variables, *batch, diagonal=True)
    for path, (count, gram) in whole.items():
        expected = np.diagonal(gram, axis1=-2, axis2=-1)
        np.testing.assert_allclose(diagonal[path].gram, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(diagonal[path].count, count)


@pytest.mark.parametrize("name", ("linen_conv_2d", "jax_experts_ragged"))
def test_moments_in_chunks_are_those_of_all_at_once(monkeypatch, name):
    layer, variables, batch = real_case(name)
    expected = layer_inputs(layer.apply_fn, variables, *batch)
    monkeypatch.setattr("jaxprune._calibration.product_moments._MAX_PATCHES", 1)
    monkeypatch.setattr("jaxprune._calibration.product_moments._ROWS_AT_ONCE", 3)
    got = layer_inputs(layer.apply_fn, variables, *batch)
    for path in expected:
        np.testing.assert_allclose(got[path].gram, expected[path].gram, rtol=1e-6)


def test_include_and_exclude_choose_the_leaves():
    x = integers(6, 4)
    assert set(layer_inputs(mlp, MLP, x)) == {"v", "w"}
    assert set(layer_inputs(mlp, MLP, x, include="v")) == {"v"}
    assert set(layer_inputs(mlp, MLP, x, exclude="v")) == {"w"}


def test_a_progress_bar_is_shown_on_request(capsys):
    pytest.importorskip("tqdm")
    batches = [integers(2, 4), integers(2, 4)]
    layer_inputs(mlp, MLP, batches=batches)  # stderr is no terminal
    layer_inputs(mlp, MLP, batches=batches, progress=False)
    assert capsys.readouterr().err == ""
    layer_inputs(mlp, MLP, batches=batches, progress=True)
    assert re.search("layer_inputs.*2/2", capsys.readouterr().err)


def test_without_tqdm_only_a_request_fails(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    batches = [integers(2, 4), integers(2, 4)]
    layer_inputs(mlp, MLP, batches=batches)
    with pytest.raises(ModuleNotFoundError, match=says("layer_inputs", "tqdm", "pip install")):
        layer_inputs(mlp, MLP, batches=batches, progress=True)


def test_inputs_survive_a_file(tmp_path):
    inputs = layer_inputs(
        lambda p, x: mlp(p, x) + p["table"][0], {**MLP, "table": integers(2, 3)}, integers(6, 4)
    )
    assert inputs.without
    jaxprune.save_inputs(tmp_path / "inputs.npz", inputs)
    loaded = jaxprune.load_inputs(str(tmp_path / "inputs.npz"))
    assert_same(loaded, inputs)
    assert loaded.roles.shapes == inputs.roles.shapes
    assert loaded.without == inputs.without


# Pruning with them.


PRUNED = ("equinox_attention", "haiku_conv", "jax_experts_ragged", "linen_conv_groups")


@pytest.mark.parametrize("name", PRUNED)
def test_wanda_of_real_layers_is_its_oracle_on_the_matrices(name):
    layer, variables, batch = real_case(name)
    inputs = layer_inputs(layer.apply_fn, variables, *batch)
    program = array_program(layer.apply_fn, variables, batch)
    leaves = dict(zip(program.paths, map(np.asarray, program.leaves), strict=True))
    params = {path: normal(*leaves[path].shape) for path in inputs}  # without ties
    _, masks = wanda(params, inputs, 0.5)
    for path, leaf in params.items():
        gram = np.asarray(inputs[path].gram)
        view = view_of(leaf, inputs.roles[path], gram)
        gram = gram.reshape(view.n_matrices, *gram.shape[-2:])
        matrices, mask = view.matrices(leaf), view.matrices(np.asarray(masks[path]))
        for i, matrix in enumerate(matrices):
            roots = np.sqrt(np.diagonal(gram[i]))  # one row of inputs with these norms
            np.testing.assert_array_equal(mask[i], wanda_oracle(matrix, roots[None], 0.5)[1])


class Model(nn.Module):
    """Attention, a convolution, and scanned layers with the axis of the layers second."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x, x)
        x = nn.Conv(8, (3,), name="conv")(x)
        scan = nn.scan(
            nn.remat(Block), variable_axes={"params": 1}, split_rngs={"params": True}, length=3
        )
        return scan(name="blocks")(x, None)[0]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8, name="fc")(nn.relu(x)), None


@functools.cache
def model_case():
    x = jnp.asarray(correlated(10, 8).reshape(2, 5, 8))
    variables = jax.jit(Model().init)(jax.random.key(0), x)
    return variables, layer_inputs(Model().apply, variables, x), x


SUMMED = {"attention/out": (0, 1), "conv": (1,), "blocks/fc": (0,)}  # axes; of the others, 0


@pytest.mark.parametrize("prune", (wanda, sparsegpt))
def test_a_model_is_pruned_along_the_axes_that_its_products_sum_over(prune):
    variables, inputs, x = model_case()
    new, masks = prune(variables["params"], inputs, nm=(2, 4))
    for path in inputs:
        mask = np.asarray(functools.reduce(lambda t, k: t[k], path.split("/")[1:], masks))
        name = path.removeprefix("params/").removesuffix("/kernel")
        axes = SUMMED.get(name, (0,))
        last = np.moveaxis(mask, axes, range(-len(axes), 0))
        groups = last.reshape(*last.shape[: -len(axes)], -1, 4)
        assert (groups.sum(-1) == 2).all(), path
    assert all(mask.all() for name, mask in masks["attention"]["query"].items() if name == "bias")
    assert Model().apply({"params": new}, x).shape == x.shape


def test_moments_of_a_model_are_those_of_its_layers():
    variables, inputs, x = model_case()
    params = variables["params"]
    np.testing.assert_allclose(
        inputs["params/attention/query/kernel"].gram, moments(x).gram, rtol=1e-5
    )
    attended = x + nn.MultiHeadDotProductAttention(2).apply({"params": params["attention"]}, x, x)
    padded = np.pad(attended, ((0, 0), (1, 1), (0, 0)))
    patches = np.concatenate([padded[:, i : i + 5] for i in range(3)], -1)
    gram = inputs["params/conv/kernel"].gram
    np.testing.assert_allclose(gram, moments(patches).gram, rtol=1e-4, atol=1e-4)
    x = nn.Conv(8, (3,)).apply({"params": params["conv"]}, attended)
    for i in range(3):
        gram = inputs["params/blocks/fc/kernel"].gram[i]
        np.testing.assert_allclose(gram, moments(nn.relu(x)).gram, rtol=1e-4, atol=1e-4)
        layer = jax.tree.map(lambda leaf, i=i: leaf[:, i], params["blocks"]["fc"])
        x = x + nn.Dense(8).apply({"params": layer}, nn.relu(x))


def test_an_nnx_model_and_its_state_have_the_same_paths():
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    x = jnp.asarray(correlated(6, 4))
    before = nnx.to_pure_dict(nnx.state(model))
    with pytest.warns(UserWarning, match=says("layers/1:", "in training mode")):
        inputs = layer_inputs_nnx(model, x)
    np.testing.assert_allclose(inputs["layers/0/kernel"].gram, moments(x).gram, rtol=1e-6)
    _, masks = wanda(nnx.state(model, nnx.Param), inputs, 0.5)
    assert int(np.sum(~nnx.to_pure_dict(masks)["layers"][0]["kernel"])) == 16
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), before)


def with_dropout(params, x):
    x = x @ params["w"]
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x, 0) @ params["v"]


IN_TRAINING = says("the model draws random numbers", "model.eval() in NNX", "deterministic=True")


def test_a_model_in_training_mode_gives_a_warning():
    """The moments were those of dropout, or of layers behind the statistics of the batch."""
    params, x = {"w": ones(4, 4), "v": ones(4, 2)}, ones(3, 4)
    with pytest.warns(UserWarning, match=IN_TRAINING) as caught:
        layer_inputs(with_dropout, params, x)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=IN_TRAINING) as caught:
        jaxprune.prune_sequentially(wanda, with_dropout, params, x, sparsity=0.5)
    assert caught[0].filename == __file__
    layers = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    model = nnx.Sequential(*layers, nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match=says("layers/1:", "model.eval()")) as caught:
        layer_inputs_nnx(model, x)
    assert caught[0].filename == __file__
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer_inputs_nnx(model, x)
        layer_inputs(mlp, MLP, X)
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), dropout)
    with pytest.warns(UserWarning, match="layer_inputs_nnx: .*draws random numbers") as caught:
        layer_inputs_nnx(model, x)
    assert caught[0].filename == __file__


class NormByArgument(nnx.Module):
    """Uses the running averages, although the attribute of its BatchNorm is False."""

    def __init__(self):
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.linear = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

    def __call__(self, x, train=False):
        return self.linear(self.norm(x, use_running_average=not train))


@pytest.mark.filterwarnings("error")
def test_an_argument_of_the_call_may_choose_inference_mode():
    layer_inputs_nnx(NormByArgument(), ones(3, 4))


def test_it_works_under_jit():
    x = integers(6, 4)
    got = jax.jit(lambda params, x: layer_inputs(mlp, params, x))(MLP, x)
    assert_same(got, layer_inputs(mlp, MLP, x))


def test_bfloat16_inputs_have_moments_in_float32():
    x, w = integers(6, 4, most=100), integers(4, 4)
    params = {"w": w.astype(jnp.bfloat16)}
    x = x.astype(jnp.bfloat16)
    gram = layer_inputs(lambda p, x: x @ p["w"], params, x)["w"].gram
    wide = x.astype(jnp.float32)
    assert gram.dtype == jnp.float32
    np.testing.assert_array_equal(gram, wide.T @ wide)


# Devices.


@pytest.mark.parametrize("diagonal", (False, True))
@pytest.mark.parametrize("axis_type", (AxisType.Auto, AxisType.Explicit))
def test_sharded_inputs_stay_where_they_are(axis_type, diagonal):
    mesh = make_mesh((8, 1), axis_type)
    batch = integers(16, 4), integers(16, 5, 4), integers(8, 3, 4)
    params = {"w": integers(4, 6), "conv": integers(3, 4, 2), "experts": integers(8, 4, 2)}
    numbers = ("NWC", "WIO", "NWC")

    def model(p, x, image, slots):
        features = lax.conv_general_dilated(
            image, p["conv"], (1,), "SAME", dimension_numbers=numbers
        )
        return x @ p["w"], features, jnp.einsum("ecd,edf->ecf", slots, p["experts"])

    expected = layer_inputs(model, params, *batch, diagonal=diagonal)
    split = jax.NamedSharding(mesh, P("data"))
    everywhere = jax.NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, split)
        params = jax.device_put(params, everywhere)
        params["experts"] = jax.device_put(params["experts"], split)
        got = layer_inputs(model, params, *batch, diagonal=diagonal)
        collect = jax.jit(lambda p, *x: layer_inputs(model, p, *x, exclude="exp.*"))
        text = collect.lower(params, *batch).compile().as_text()
    for path in expected:
        np.testing.assert_array_equal(got[path].gram, expected[path].gram)
    assert "all-reduce" in text
    assert "all-gather" not in text


# What users get wrong.

X = integers(6, 4)
BAD = {
    "no batch": (lambda: layer_inputs(mlp, MLP), ("layer_inputs:", "none", "batches=[...]")),
    "both": (lambda: layer_inputs(mlp, MLP, X, batches=[X]), ("layer_inputs:", "not both")),
    "one array as batches": (
        lambda: layer_inputs(mlp, MLP, batches=X),
        ("layer_inputs: batches", "float32 of shape (6, 4)", "list of arrays"),
    ),
    "batches a number": (
        lambda: layer_inputs(mlp, MLP, batches=3),
        ("layer_inputs: batches", "3", "list of arrays"),
    ),
    "no batches": (
        lambda: layer_inputs(mlp, MLP, batches=[]),
        ("layer_inputs: batches", "empty", "at least one"),
    ),
    "a module": (
        lambda: layer_inputs(nn.Dense(3), {}, X),
        ("layer_inputs: apply_fn", "layer_inputs(model.apply, variables, x)"),
    ),
    "nnx params": (
        lambda: layer_inputs_nnx(MLP, X),
        ("layer_inputs_nnx: model", "layer_inputs_nnx(model, x)"),
    ),
    "progress": (
        lambda: layer_inputs(mlp, MLP, X, progress=3),
        ("layer_inputs: progress", "3", "True, False or None"),
    ),
    "progress of steps": (
        lambda: jaxprune.prune_sequentially(wanda, mlp, MLP, X, sparsity=0.5, progress=3),
        ("prune_sequentially: progress", "3", "True, False or None"),
    ),
    "diagonal": (
        lambda: layer_inputs(mlp, MLP, X, diagonal="yes"),
        ("layer_inputs: diagonal", "'yes'", "True"),
    ),
    "include": (lambda: layer_inputs(mlp, MLP, X, include="k"), ("include: 'k' matches no leaf",)),
    "only indexed": (
        lambda: layer_inputs(lambda p, i: p["table"][i], {"table": X}, jnp.array([1])),
        ("layer_inputs:", "table (only indexed)", "jaxprune.axis_roles"),
    ),
    "other leaves": (
        lambda: layer_inputs(mlp, MLP, X) + layer_inputs(mlp, MLP, X, include="v"),
        ("layer_inputs of different leaves", "w", "same model"),
    ),
    "a leaf without inputs": (
        lambda: wanda(
            {**MLP, "table": X},
            layer_inputs(lambda p, x: mlp(p, x + p["table"][:1]), {**MLP, "table": X}, X),
            0.5,
        ),
        ("wanda:", "table (in no product)", "exclude='table'"),
    ),
    "save a dict": (
        lambda: jaxprune.save_inputs("a.npz", {"w": X}),
        ("save_inputs: inputs", "jaxprune.layer_inputs"),
    ),
    "save to a number": (
        lambda: jaxprune.save_inputs(3, layer_inputs(mlp, MLP, X)),
        ("save_inputs: path", "3", "pathlib.Path"),
    ),
    "load a dict": (lambda: jaxprune.load_inputs({}), ("load_inputs: path", "{}", "pathlib.Path")),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_argument_and_what_to_type_instead(name):
    call, parts = BAD[name]
    with pytest.raises((TypeError, ValueError), match=says(*parts)):
        call()


def test_a_file_that_is_something_else_is_refused(tmp_path):
    for k, content in enumerate((b"x", b"", npz(a=np.ones(2)))):
        path = tmp_path / f"{k}.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says("load_inputs:", str(path), "save_inputs")):
            jaxprune.load_inputs(path)
    with pytest.raises(FileNotFoundError):
        jaxprune.load_inputs(tmp_path / "nowhere.npz")


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_one_batch_or_one_expert_without_rows_is_no_error():
    params = {"w": jnp.ones((4, 2)), "unused": jnp.ones((4, 2))}

    def model(p, x, y):
        return x @ p["w"], y @ p["unused"]

    batches = [(jnp.ones((0, 4)), jnp.ones((0, 4))), (jnp.ones((3, 4)), jnp.ones((0, 4)))]
    inputs = layer_inputs(model, params, batches=batches)
    assert (float(inputs["w"].count), float(inputs["unused"].count)) == (3, 0)


@pytest.mark.filterwarnings("error")
def test_layer_inputs_under_vmap_gives_no_warning():
    params = {"w": jnp.asarray(normal(4, 2)), "b": jnp.ones(2)}
    x = jnp.asarray(normal(3, 5, 4))

    def collect(x):
        return layer_inputs(lambda p, x: x @ p["w"] + p["b"][None], params, x)

    got = jax.vmap(collect)(x)["w"].gram
    np.testing.assert_allclose(got, jnp.stack([collect(one)["w"].gram for one in x]), rtol=1e-5)
