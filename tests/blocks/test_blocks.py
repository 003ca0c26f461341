"""Products with packed matrices equal those with dense ones."""

import collections
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax import lax

import jaxprune
from helpers import assert_says, says
from jaxprune._blocks import packed_matrix
from jaxprune._blocks.flax_layers import pack_kernels, packed_apply
from jaxprune._blocks.nnx_layers import pack_linear
from jaxprune._blocks.packed_matrix import PackedMatrix, pack_matrix, packed_matmul, unpack_matrix


def matrix(seed, shape, block, density, *, balanced=False):
    """Small integers in random blocks, so that products are exact in any order."""
    rng = np.random.default_rng(seed)
    grid = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    alive = rng.random(grid) < density
    if balanced:
        order = rng.random(grid).argsort(0)
        alive = order < round(density * grid[0])
    mask = np.kron(alive, np.ones(block, bool))[: shape[0], : shape[1]] > 0
    return (rng.integers(1, 9, shape) * mask).astype(np.float32), mask


shapes = st.sampled_from(((1, 1), (7, 40), (33, 18)))
blocks = st.sampled_from(((1, 1), (1, 16), (4, 4), (3, 5)))
leads = st.sampled_from(((), (1,), (9,), (2, 4), (0,)))


@jax.jit
def product_and_matrix(packed, x):
    return packed_matmul(packed, x), unpack_matrix(packed)


def inputs(seed, lead, n):
    return np.random.default_rng(seed + 1).integers(-8, 9, (*lead, n)).astype(np.float32)


@given(
    st.integers(0, 2**16),
    shapes,
    blocks,
    st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    leads,
    st.sampled_from((1, 8)),
    st.booleans(),
)
def test_the_product_is_the_dense_one(seed, shape, block, density, lead, batch, balanced):
    w, mask = matrix(seed, shape, block, density, balanced=balanced)
    x = inputs(seed, lead, shape[0])
    for kept in (None, mask):
        product, unpacked = product_and_matrix(pack_matrix(w, kept, block, batch=batch), x)
        np.testing.assert_array_equal(product, x @ w)
        np.testing.assert_array_equal(unpacked, w)


def loop_oracle(w, mask, block, x):
    """The product block by block, over kept blocks alone."""
    y = np.zeros((len(x), w.shape[1]), np.float32)
    for i in range(0, w.shape[0], block[0]):
        for j in range(0, w.shape[1], block[1]):
            rows, columns = slice(i, i + block[0]), slice(j, j + block[1])
            if mask[rows, columns].any():
                y[:, columns] += x[:, rows] @ np.where(mask, w, 0)[rows, columns]
    return y


@pytest.mark.parametrize("batch", (1, 8))
@pytest.mark.parametrize("balanced", (False, True))
def test_dropped_blocks_do_not_affect_the_product(batch, balanced):
    w, mask = matrix(0, (24, 32), (1, 8), 0.25, balanced=balanced)
    mask[5] = False
    x = inputs(0, (batch,), 24)
    x[:, 5] = np.inf
    packed = pack_matrix(w, mask, (1, 8), batch=batch)
    y = packed_matmul(packed, x)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y, loop_oracle(w, mask, (1, 8), x))


def test_a_block_is_kept_where_any_weight_is_and_its_dropped_weights_are_zero():
    w = np.ones((2, 8), np.float32)
    mask = np.zeros((2, 8), bool)
    mask[1, 2] = True
    packed = pack_matrix(w, mask, (1, 4))
    assert packed.indices.tolist() == [[1], [2]]
    np.testing.assert_array_equal(unpack_matrix(packed), mask)


def test_balanced_pruning_needs_no_padding():
    w = jax.random.normal(jax.random.key(0), (64, 48), jnp.float32)
    structure = jaxprune.Block((1, 16), balanced=True)
    pruned, masks = jaxprune.prune_params({"w": w}, 0.75, structure=structure)
    packed = pack_matrix(pruned["w"], masks["w"], (1, 16))
    assert packed.indices.shape == (3, 16)
    assert packed.indices.max() < 64
    assert packed.nbytes == 3 * 16 * (16 + 1) * 4
    np.testing.assert_array_equal(unpack_matrix(packed), pruned["w"])


@pytest.mark.parametrize("loop_from", (1, packed_matrix._LOOP_FROM))
@pytest.mark.parametrize("batch, balanced", ((1, False), (8, True)))
def test_jit_vmap_and_grad(batch, balanced, loop_from, monkeypatch):
    monkeypatch.setattr(packed_matrix, "_LOOP_FROM", loop_from)
    w, mask = matrix(1, (24, 40), (1, 8), 0.25, balanced=balanced)
    packed = pack_matrix(w, mask, (1, 8), batch=batch)
    x = jnp.asarray(inputs(1, (5, 3), 24))
    jitted = jax.jit(lambda packed, x: packed_matmul(packed, x))  # traced anew in every test
    np.testing.assert_array_equal(jitted(packed, x), x @ w)
    np.testing.assert_array_equal(jax.vmap(lambda x: packed_matmul(packed, x))(x), x @ w)
    v = jnp.asarray(inputs(2, (5, 3), 40))
    x_gradient = jax.grad(lambda x: jnp.sum(packed_matmul(packed, x) * v))(x)
    np.testing.assert_array_equal(x_gradient, v @ w.T)

    def with_values(values):
        made = PackedMatrix(packed.indices, values, *meta)
        return jnp.sum(packed_matmul(made, x) * v)

    meta = packed.shape, packed.block, packed.rows_first
    gradient = PackedMatrix(packed.indices, jax.grad(with_values)(packed.values), *meta)
    dense = jnp.einsum("abi,abo->io", x, v) * mask.astype(np.float32)
    np.testing.assert_array_equal(unpack_matrix(gradient), dense)


@pytest.mark.parametrize("n_columns_at_once", (1, 2, 3, 7))
def test_any_number_of_columns_at_once_gives_the_same_product(n_columns_at_once, monkeypatch):
    w, mask = matrix(3, (24, 28), (2, 4), 0.5, balanced=True)
    packed = pack_matrix(w, mask, (2, 4), batch=16)
    x = inputs(3, (16,), 24)
    monkeypatch.setattr(packed_matrix, "_FRACTION", 10**6)
    monkeypatch.setattr(packed_matrix, "_CHUNK", n_columns_at_once * 6 * 2 * 16)
    np.testing.assert_array_equal(packed_matmul(packed, x), x @ w)


@pytest.mark.skip_in("disable_jit", reason="nothing is compiled")
@pytest.mark.parametrize("is_gradient", (False, True))
def test_a_large_batch_stores_few_of_the_gathered_parts(is_gradient):
    n_columns, n_kept, batch = 256, 100, 512
    shape = jax.ShapeDtypeStruct
    values = shape((n_columns, 16, n_kept), jnp.float32)

    def product(indices, values, x):
        packed = PackedMatrix(indices, values, (1000, 16 * n_columns), (1, 16), True)
        return jnp.sum(packed_matmul(packed, x) ** 2)

    function = jax.grad(product, argnums=(1, 2)) if is_gradient else product
    indices, x = shape((n_columns, n_kept), jnp.int32), shape((batch, 1000), jnp.float32)
    memory = jax.jit(function).lower(indices, values, x).compile().memory_analysis()
    gathered = n_columns * n_kept * batch * 4
    assert memory.temp_size_in_bytes < gathered * (0.75 if is_gradient else 0.5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA makes for CPUs")
@pytest.mark.parametrize("batch", (1, 8, 32))
def test_x_is_computed_once_and_not_for_every_column(batch):
    w, _ = matrix(0, (130, 512), (1, 16), 0.25, balanced=True)
    packed = pack_matrix(w, block=(1, 16), batch=batch)

    def layer(packed, x):
        return packed_matmul(packed, jnp.tanh(x))

    hlo = jax.jit(layer).lower(packed, jnp.ones((batch, 130))).compile().as_text()
    computations = hlo.split("\n}\n")
    assert any(" gather(" in text for text in computations)
    assert not any(" gather(" in text and " tanh(" in text for text in computations)


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
def test_it_is_a_pytree_of_two_arrays_and_traces_once():
    w, _ = matrix(2, (16, 16), (1, 4), 0.5, balanced=True)
    packed = pack_matrix(w, block=(1, 4))
    assert len(jax.tree.leaves(packed)) == 2
    n_traces = 0

    @jax.jit
    def product(packed, x):
        nonlocal n_traces
        n_traces += 1
        return packed_matmul(packed, x)

    product(packed, jnp.ones(16))
    product(jax.tree.map(lambda a: a * 1, packed), jnp.ones(16))
    assert n_traces == 1


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16, jnp.float32))
def test_dtypes_are_those_of_the_dense_product(dtype):
    w, _ = matrix(3, (16, 16), (1, 4), 0.5)
    w, x = jnp.asarray(w, dtype), jnp.ones((2, 16), dtype)
    y = packed_matmul(pack_matrix(w, block=(1, 4)), x)
    assert y.dtype == (x @ w).dtype
    np.testing.assert_array_equal(y, x @ w)


W = np.ones((4, 8), np.float32)
UNFIT = {
    "axes": (
        lambda: pack_matrix(W[0]),
        ValueError,
        ("w", "(in, out)", "(8,)"),
    ),
    "mask": (
        lambda: pack_matrix(W, W.T),
        ValueError,
        ("mask", "(8, 4)", "(4, 8)"),
    ),
    "block": (lambda: pack_matrix(W, block=(0, 4)), ValueError, ("block", "(0, 4)", "(1, 16)")),
    "block of one": (lambda: pack_matrix(W, block=(4,)), ValueError, ("block", "(4,)", "(1, 16)")),
    "floats": (
        lambda: pack_matrix(W, block=(1.0, 4)),
        ValueError,
        ("block", "(1.0, 4)", "(1, 16)"),
    ),
    "no batch": (lambda: pack_matrix(W, batch=0), ValueError, ("batch", "0", "1")),
    "traced": (lambda: jax.jit(pack_matrix)(W), TypeError, ("w", "mask", "host")),
    "no matrix": (
        lambda: packed_matmul(W, W),
        TypeError,
        ("PackedMatrix", "float32 of shape (4, 8)"),
    ),
    "x": (
        lambda: packed_matmul(pack_matrix(W), W),
        ValueError,
        ("x", "(4, 8)"),
    ),
    "scalar": (
        lambda: packed_matmul(pack_matrix(W), 1.0),
        ValueError,
        ("x", "()"),
    ),
}


NEEDS_TRACES = pytest.mark.skip_in("disable_jit", reason="nothing is traced")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=NEEDS_TRACES if n == "traced" else ()) for n in UNFIT]
)
def test_arguments_that_do_not_fit_are_errors(name):
    call, kind, said = UNFIT[name]
    with pytest.raises(kind, match=says(*said)):
        call()


# --- Flax models from packed kernels


def pruned_params(params, sparsity=0.5):
    """The kernels with balanced blocks of four outputs kept."""
    structure = jaxprune.Block((1, 4), balanced=True)
    return jaxprune.prune_params(params, sparsity, structure=structure)[0]


def linen_models():
    nn = pytest.importorskip("flax.linen")

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(16, name="up")(x))
            return nn.Dense(8, use_bias=False, name="down")(x)

    return {
        "mlp": Mlp(),
        "lstm": nn.RNN(nn.LSTMCell(8)),
        "optimized lstm": nn.RNN(nn.OptimizedLSTMCell(8)),
        "bf16": nn.Dense(8, dtype=jnp.bfloat16),
    }


@pytest.mark.parametrize("name", ("mlp", "lstm", "optimized lstm", "bf16"))
def test_linen_models_run_from_packed_kernels(name):
    model = linen_models()[name]
    x = jax.random.normal(jax.random.key(0), (2, 3, 8), jnp.float32)
    params = pruned_params(model.init(jax.random.key(1), x)["params"])
    params = jax.tree.map(lambda p: p + 0.5 if p.ndim == 1 else p, params)
    packed = pack_kernels(params, block=(1, 4))
    biases = without_kernels(params)
    y = jax.jit(lambda packed: packed_apply(model.apply, packed, {"params": biases}, x))(packed)
    of_variables = pack_kernels({"params": params}, block=(1, 4))
    assert list(of_variables) == [f"params/{path}" for path in packed]
    same = packed_apply(model.apply, of_variables, {"params": biases}, x)
    np.testing.assert_array_equal(same, packed_apply(model.apply, packed, {"params": biases}, x))
    expected = model.apply({"params": params}, x)
    assert y.dtype == expected.dtype
    # The sums are in another order.
    tolerance = 2e-2 if name == "bf16" else 1e-5
    np.testing.assert_allclose(
        y.astype(jnp.float32), expected.astype(jnp.float32), tolerance, tolerance
    )


def without_kernels(tree):
    return {
        key: without_kernels(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if key != "kernel"
    }


@pytest.mark.filterwarnings("ignore:.*more than half of the blocks")
def test_a_kernel_that_nothing_used_is_named():
    nn = pytest.importorskip("flax.linen")
    model = nn.Dense(4)
    params = {"kernel": jnp.eye(4), "bias": jnp.ones(4), "more": {"kernel": jnp.eye(4)}}
    packed = pack_kernels(params, block=(1, 4))
    with pytest.raises(ValueError, match="more/kernel"):
        packed_apply(model.apply, packed, {"params": params}, jnp.ones(4))
    of_variables = pack_kernels({"params": params}, block=(1, 4))
    with pytest.raises(ValueError, match="used params/more/kernel"):
        packed_apply(model.apply, of_variables, {"params": params}, jnp.ones(4))
    with pytest.raises(ValueError, match=says("nothing to pack", "include='x'")):
        pack_kernels(params, "x")


@pytest.mark.parametrize("name", ("mlp", "lstm", "optimized lstm"))
def test_nnx_models_are_packed_in_place(name):
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    model = {
        "mlp": lambda: nnx.Sequential(
            nnx.Linear(8, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 8, use_bias=False, rngs=rngs)
        ),
        "lstm": lambda: nnx.RNN(nnx.LSTMCell(8, 8, rngs=rngs)),
        "optimized lstm": lambda: nnx.RNN(nnx.OptimizedLSTMCell(8, 8, rngs=rngs)),
    }[name]()
    nnx.update(model, pruned_params(nnx.state(model, nnx.Param)))
    x = jax.random.normal(jax.random.key(0), (2, 3, 8), jnp.float32)
    expected = model(x)
    packed = pack_linear(model, block=(1, 4))
    assert len(packed) == {"mlp": 2, "lstm": 8, "optimized lstm": 2}[name]
    np.testing.assert_allclose(model(x), expected, 1e-5, 1e-5)
    jitted = nnx.jit(lambda model, x: model(x))
    np.testing.assert_allclose(jitted(model, x), expected, 1e-5, 1e-5)
    with pytest.raises(ValueError, match=says("nothing to pack", "include='.*kernel'", "nnx")):
        pack_linear(model)


def test_columns_list_their_blocks_in_order():
    w, mask = matrix(4, (24, 32), (2, 8), 0.5)
    packed = pack_matrix(w, mask, (2, 8))
    counts = mask.reshape(12, 2, 4, 8).any((1, 3)).sum(0)
    assert len(set(counts.tolist())) > 1  # some columns are padded
    assert np.all(np.diff(packed.indices, axis=1) >= 0)


@pytest.mark.parametrize("batch", (1, 8))
def test_the_layout_for_a_batch_reaches_every_kernel(batch):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Sequential(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match="more than half"):
        pack_linear(model, block=(1, 4), batch=batch)
    with pytest.warns(UserWarning, match="more than half"):
        packed = pack_kernels({"up": {"kernel": W}}, block=(1, 4), batch=batch)
    [kernel] = jax.tree.leaves(packed, is_leaf=lambda x: isinstance(x, PackedMatrix))
    assert model.layers[0].meta[2] == kernel.rows_first == (batch > 1)


def test_kernels_that_are_faster_dense_are_named(tmp_path):
    """All `Linear` layers were packed without a word, and made slower."""
    nnx = pytest.importorskip("flax.nnx")
    dense, sparse = jnp.ones((8, 4)), jnp.zeros((8, 4)).at[:4].set(1.0)
    # Of eight blocks, those of `few` keep five, and those of `sparse` four.
    params = {
        "sparse": sparse,
        "dense": dense,
        "few": sparse.at[5, 0].set(1.0),
        "bias": jnp.ones(4),
    }
    params = {name: {"kernel": leaf} for name, leaf in params.items()}
    said = r"few/kernel \(62%\).*Block\(\(1, 4\)\).*include="
    model = nnx.Sequential(*(nnx.Linear(8, 4, rngs=nnx.Rngs(0)) for _ in range(2)), nnx.relu)
    model.layers[0].kernel[...] = sparse
    jaxprune.save(tmp_path / "a", params)
    calls = {
        "pack_kernels": lambda **rules: pack_kernels(params, block=(1, 4), **rules),
        "load_packed": lambda **rules: jaxprune.load_packed(tmp_path / "a", block=(1, 4), **rules),
    }
    for name, call in calls.items():
        with pytest.warns(UserWarning, match=said) as caught:
            call()
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert_says(str(caught[0].message), f"jaxprune.{name}:", "dense/kernel (100%)")
        assert "sparse/kernel" not in str(caught[0].message)
        call(include="sparse/.*")
    with pytest.warns(UserWarning, match=r"jaxprune.pack_linear: .* of layers/1/kernel \(100%\)"):
        pack_linear(model, block=(1, 4))


def twice(a, b, dimensions, **options):
    """A product as libraries for other number formats inject it."""
    return 2 * lax.dot_general(a, b, dimensions, **options)


def own_options(nn):
    promote = lambda *args, **options: tuple(2 * x for x in args[: len(args)])
    options = {"dot_general": twice, "promote_dtype": promote}
    if "dot_general_cls" in nn.Dense.__dataclass_fields__:
        options["dot_general_cls"] = lambda: twice
    return options


@pytest.mark.parametrize("name", ("dot_general", "promote_dtype", "dot_general_cls"))
def test_a_linen_layer_with_its_own_product_is_an_error(name):
    """Its option was dropped without a word, and the outputs were others."""
    nn = pytest.importorskip("flax.linen")
    options = own_options(nn)
    if name not in options:
        pytest.skip("an option of newer versions of Flax")
    model = nn.Dense(4, **{name: options[name]})
    packed = {"kernel": jaxprune.pack_matrix(jnp.eye(4), block=(1, 2))}
    variables = {"params": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
    with pytest.raises(ValueError, match=says("kernel: the layer has its own", name, "include=")):
        packed_apply(model.apply, packed, variables, jnp.ones(4))


@pytest.mark.parametrize("name", ("dot_general", "promote_dtype", "preferred_element_type"))
def test_an_nnx_layer_with_its_own_product_is_an_error_and_nothing_is_packed(name):
    nnx = pytest.importorskip("flax.nnx")
    options = own_options(pytest.importorskip("flax.linen"))
    options["preferred_element_type"] = jnp.float32
    if name not in inspect.signature(nnx.Linear.__init__).parameters:
        pytest.skip("an option of newer versions of Flax")
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs, **{name: options[name]})
    )
    model.layers[0].kernel[...] = jnp.eye(4, dtype=jnp.float32)
    with pytest.raises(ValueError, match=says("layers/1/kernel: the layer has its own", name)):
        pack_linear(model, block=(1, 2))
    assert type(model.layers[0]) is nnx.Linear
    assert pack_linear(model, "layers/0/.*", block=(1, 2)) == ["layers/0/kernel"]


def test_the_dtype_is_that_of_the_dense_layer_with_a_wider_bias():
    nn, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
    kernel, bias = jnp.eye(4, dtype=jnp.bfloat16), jnp.ones(4, jnp.float32)
    variables, x = {"params": {"kernel": kernel, "bias": bias}}, jnp.ones((2, 4), jnp.bfloat16)
    apply_fn = nn.Dense(4).apply
    packed = pack_kernels(variables["params"], block=(1, 2))
    y = packed_apply(apply_fn, packed, variables, x)
    assert y.dtype == apply_fn(variables, x).dtype == jnp.float32
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    model.layers[0].kernel = nnx.Param(kernel)
    expected = model(x)
    pack_linear(model, block=(1, 2))
    assert model(x).dtype == expected.dtype


def test_a_layer_that_is_called_by_the_names_of_its_arguments_is_found():
    nn = pytest.importorskip("flax.linen")

    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, name="up")(inputs=x)
            carry = (jnp.zeros(4), jnp.zeros(4))
            return nn.OptimizedLSTMCell(4, name="lstm")(carry=carry, inputs=x)

    model, x = Named(), jnp.ones(4)
    params = pruned_params(model.init(jax.random.key(0), x)["params"])
    packed = pack_kernels(params, block=(1, 4))
    assert len(packed) == 9
    y = packed_apply(model.apply, packed, {"params": without_kernels(params)}, x)
    chex.assert_trees_all_close(y, model.apply({"params": params}, x), rtol=1e-5, atol=1e-5)


def test_layers_in_tuples_and_shared_layers_are_packed_wherever_they_occur():
    """A tuple was an AttributeError half-way, and a shared layer was packed at one place only."""
    nnx = pytest.importorskip("flax.nnx")
    Pair = collections.namedtuple("Pair", "a b")
    listed = getattr(nnx, "List", list)

    class Model(nnx.Module):
        def __init__(self, rngs):
            linear = lambda: nnx.Linear(4, 4, rngs=rngs)
            self.first, self.bias = linear(), nnx.Param(jnp.ones(4))
            self.again = self.first
            self.tuple = nnx.data((linear(), {"k": linear()}))
            self.pair = nnx.data(Pair(self.first, linear()))
            self.list = listed([linear(), nnx.Sequential(self.first, linear())])

        def __call__(self, x):
            layers = self.first, self.again, self.tuple[0], self.tuple[1]["k"], *self.pair
            for layer in (*layers, *self.list):
                x = layer(x) + self.bias[...]
            return x

    model = Model(nnx.Rngs(0))
    for _, node in list(nnx.iter_graph(model)):
        if type(node) is nnx.Linear:
            node.kernel[...] = jnp.roll(jnp.eye(4), 1, axis=0)
    x = jnp.arange(4.0)
    expected = model(x)
    assert len(pack_linear(model, block=(1, 2))) == 6
    assert not [node for _, node in nnx.iter_graph(model) if type(node) is nnx.Linear]
    assert model.first is model.again is model.pair.a is model.list[1].layers[0]
    np.testing.assert_array_equal(model(x), expected)
    nnx.split(model)
