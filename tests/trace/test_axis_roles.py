"""The roles of the axes of params: a table of real layers, and cases worked out by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from real_layers import LAYERS

import jaxprune
from bad_input import assert_error, case
from helpers import ones

X = jax.ShapeDtypeStruct((2, 6), jnp.float32)
W = jax.ShapeDtypeStruct((6, 6), jnp.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_the_roles_of_real_layers(name):
    layer = LAYERS[name]()
    roles = jaxprune.axis_roles(layer.apply_fn, layer.variables, *layer.inputs)
    assert {path: " ".join(names) for path, names in roles.items()} == layer.roles


# Models side by side, or one after another: every leaf has one more axis, which is a stack.


def is_array(leaf):
    return hasattr(leaf, "dtype")


def stacked(tree, axis):
    """The shapes of three such trees in one: along an axis, or the last if there are fewer."""
    sizes = lambda x: (*x.shape[:axis], 3, *x.shape[axis:])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(sizes(x), x.dtype), tree)


def side_by_side(function, variables, axis):
    axes = jax.tree.map(lambda x: min(axis, x.ndim), variables)

    def mapped(variables, *inputs):
        of_inputs = [None if x is None else 0 for x in inputs]
        return jax.vmap(function, in_axes=(axes, *of_inputs))(variables, *inputs)

    return mapped


def one_after_another(function):
    return lambda variables, *inputs: jax.lax.map(
        lambda x: function(x[0], *x[1]), (variables, inputs)
    )


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_models_have_one_more_axis(name):
    layer = LAYERS[name]()
    arrays, rest = eqx.partition(layer.variables, is_array)

    def function(arrays, *inputs):
        outputs = layer.apply_fn(eqx.combine(arrays, rest), *inputs)
        return [x for x in jax.tree.leaves(outputs) if is_array(x)]

    expected = {path: text.split() for path, text in layer.roles.items()}
    axis = 0 if name == "jax_experts_ragged" else 1  # JAX has no other vmap of ragged_dot
    for apply_fn, k in (
        (side_by_side(function, arrays, axis), axis),
        (one_after_another(function), 0),
    ):
        inputs = stacked(layer.inputs, 0)
        roles = jaxprune.axis_roles(apply_fn, stacked(arrays, k), *inputs)
        with_stack = {path: (*r[:k], "stack", *r[k:]) for path, r in expected.items()}
        assert dict(roles) == with_stack


def reasons(name):
    layer = LAYERS[name]()
    return jaxprune.axis_roles(layer.apply_fn, layer.variables, *layer.inputs).without


def test_every_other_leaf_has_a_reason():
    for name in ("linen_embed", "nnx_embed", "equinox_embed", "haiku_embed"):
        assert set(reasons(name).values()) == {"only indexed"}
    assert reasons("linen_embed_tied") == {
        "params/Dense_0/bias": "in no product",
        "params/Embed_0/embedding": "used in two ways: (out, in) and (in, out)",
    }
    assert reasons("jax_both_ways") == {"w": "used in two ways: (in, out) and (out, in)"}
    assert set(reasons("linen_norms").values()) == {"in no product"}


def reason(function, *sizes):
    leaves = {
        name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in zip("wab", sizes, strict=False)
    }
    return jaxprune.axis_roles(function, leaves, X).without["w"]


def test_leaves_that_cannot_be_followed_say_why():
    assert reason(lambda p, x: x @ jnp.linalg.inv(p["w"]), (6, 6)) == (
        "it passes through lu, which has no rule in jaxprune"
    )
    assert reason(lambda p, x: x @ p["w"].reshape(6, 6), (36,)) == (
        "axis 0 is only partly summed over"
    )
    stepped = lambda p, x: x @ jnp.concatenate([p["w"][:15:3], p["w"][15:22]]).reshape(6, 2)
    assert reason(stepped, (36,)) == "a reshape cuts up a concatenated axis"
    both_sides = lambda p, x: x @ (p["a"] @ p["w"] @ p["b"])
    assert reason(both_sides, (3, 3), (6, 3), (3, 6)) == (
        "it is multiplied by other params on both sides"
    )
    assert reason(lambda p, x: x @ p["w"][:0].T, (6, 6)) == "in no product"
    three_ways = lambda p, x: [x @ p["w"], x @ p["w"].T, jax.vmap(jnp.dot)(x, p["w"][:2])]
    assert reason(three_ways, (6, 6)).startswith("used in 3 ways: (in, out), ")


def test_a_model_without_inputs_takes_the_arrays_that_it_closes_over_as_data():
    x = np.ones((2, 6), np.float32)
    roles = jaxprune.axis_roles(lambda p: jnp.tanh(x @ p["w"]) @ p["v"].T, {"w": W, "v": W})
    assert dict(roles) == {"w": ("in", "out"), "v": ("out", "in")}


def test_integer_params_have_roles_and_counters_are_left_out():
    params = {
        "w": jnp.ones((6, 4), jnp.int8),
        "step": jnp.zeros((), jnp.int32),
        "key": jax.random.key(0),
    }
    roles = jaxprune.axis_roles(lambda p, x: x @ (p["w"].astype(x.dtype) * 0.5), params, X)
    assert dict(roles) == {"w": ("in", "out")}
    assert roles.without == {}


def test_empty_leaves_and_scalars_are_in_no_product():
    params = {"w": ones(6, 0), "s": jnp.float32(2)}
    roles = jaxprune.axis_roles(lambda p, x: (p["s"] * x) @ p["w"], params, X)
    assert dict(roles) == {}
    assert roles.without == {"s": "in no product", "w": "in no product"}


def test_it_works_under_jit_and_on_a_function_that_fails_to_run():
    def only_shapes(p, x):  # a callback that would fail
        return jax.pure_callback(lambda x: 1 / 0, x, x) @ p

    def inner(w, x):
        roles.append(jaxprune.axis_roles(only_shapes, w, x))
        return x

    roles = []
    jax.eval_shape(inner, W, X)
    assert dict(roles[0]) == {"": ("in", "out")}


def sharded_products(mesh):
    """Products inside shard_map, of (apply_fn, shape of the param, roles)."""
    part, shard = jax.sharding.PartitionSpec, jax.shard_map

    def of(product, spec):
        specs = (spec, part())
        return shard(product, mesh=mesh, in_specs=specs, out_specs=part(), check_vma=False)

    gathered = lambda w, x: x @ jax.lax.all_gather(w, "a", axis=0, tiled=True)
    stacked = lambda w, x: jnp.einsum("bi,dio->bo", x, jax.lax.all_gather(w, "a")[:1])
    ring = lambda w, x: x @ jax.lax.ppermute(w, "a", [(0, 1), (1, 0)])
    experts = lambda w, x: x @ w[0]
    return (
        (of(lambda w, x: x @ w, part(None, "a")), (6, 4), ("in", "out")),
        (of(gathered, part("a")), (6, 4), ("in", "out")),
        (of(stacked, part(None, "a")), (6, 4), ("in", "out")),
        (of(ring, part(None, "a")), (6, 4), ("in", "out")),
        (of(experts, part("a")), (2, 6, 4), ("stack", "in", "out")),
    )


def test_products_on_the_parts_that_devices_have():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("a",))
    for function, sizes, expected in sharded_products(mesh):
        w = jax.ShapeDtypeStruct(sizes, jnp.float32)
        roles = jaxprune.axis_roles(function, w, X)
        assert (dict(roles), roles.without) == ({"": expected}, {})


# A language model of 70B: 80 layers, each with kernels of its own, embed 8192, hidden 28672.


def llama(params, ids):
    def attention(p, x):
        query = jnp.einsum("btd,dnh->btnh", x, p["q"])
        key = jnp.einsum("btd,dkh->btkh", x, p["k"]).repeat(8, 2)
        value = jnp.einsum("btd,dkh->btkh", x, p["v"]).repeat(8, 2)
        return jax.nn.dot_product_attention(query, key, value).reshape(x.shape) @ p["o"]

    def mlp(p, x):
        return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True))

    x = params["embed"][ids]
    for p in params["layers"]:
        x = x + attention(p, norm(x) * p["scale"][None, None])
        x = x + mlp(p, norm(x))
    return norm(x) @ params["head"].reshape(-1).reshape(8192, 128_256)


def test_a_model_of_70b_is_followed_as_shapes():
    leaf = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    layer = {"q": leaf(8192, 64, 128), "k": leaf(8192, 8, 128), "v": leaf(8192, 8, 128)}
    layer |= {"o": leaf(8192, 8192), "gate": leaf(8192, 28672), "up": leaf(8192, 28672)}
    layer |= {"down": leaf(28672, 8192), "scale": leaf(8192)}
    params = {"embed": leaf(128_256, 8192), "head": leaf(8192, 128_256), "layers": [layer] * 80}
    assert sum(x.size for x in jax.tree.leaves(params)) > 70e9
    roles = jaxprune.axis_roles(llama, params, jax.ShapeDtypeStruct((1, 16), jnp.int32))
    assert len(roles) == 80 * 7 + 1
    assert roles["layers/79/q"] == ("in", "out", "out")
    assert roles["layers/0/down"] == roles["head"] == ("in", "out")
    assert roles.without["embed"] == "only indexed"


def test_arrays_too_large_for_tables_are_followed_or_reported():
    """Flattened kernels and batches of billions of entries; no table of them is made."""
    big = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.int8)
    leaves = {"w": big(2**17, 2**17), "table": big(2**24, 8), "cut": big(2**17, 2**17)}

    def function(p, x):
        padded = jnp.pad(p["w"].reshape(-1), (0, 0)).reshape(2**17, 2**17)
        y = jnp.broadcast_to(x, (2**12, *x.shape)).reshape(-1, 2**17) @ padded
        y = jnp.concatenate([y.reshape(-1)[::-1], y.reshape(-1)[1:]])
        part = p["cut"].reshape(-1)[5 : 5 + 2**30].reshape(2**17, -1)
        return y.sum() + p["table"][x[0, 0].astype(jnp.int32)].sum(), x @ part

    roles = jaxprune.axis_roles(function, leaves, big(2**8, 2**17))
    assert dict(roles) == {"w": ("in", "out")}
    as_float = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float16)
    floats = jax.tree.map(as_float, leaves)
    reasons = jaxprune.axis_roles(function, floats, as_float(big(2**8, 2**17))).without
    assert reasons == {
        "cut": "1073741824 entries of a longer axis are taken",
        "table": "it has an axis of more than 8,388,608 entries",
    }


MISTAKES = [
    case(
        "swapped",
        lambda: jaxprune.axis_roles({"w": ones(2, 4)}, lambda p, x: x @ p["w"], X),
        TypeError,
        ("axis_roles: apply_fn", "dict", "axis_roles(model.apply, variables, x)"),
    ),
    case(
        "nnx_model",
        lambda: jaxprune.axis_roles(linear(), ones(2, 4)),
        TypeError,
        ("axis_roles: apply_fn", "Linear", "axis_roles_nnx"),
    ),
    case(
        "flag",
        lambda: jaxprune.axis_roles(lambda p, x, mode: x @ p, W, X, "train"),
        TypeError,
        ("axis_roles: inputs: 1:", "'train'", "lambda variables, x:"),
    ),
    case(
        "other_params",
        lambda: jaxprune.axis_roles(lambda p, x: x @ p["w"], {"kernel": W}, X),
        TypeError,
        ("apply_fn", "KeyError: 'w'", "apply_fn(variables, *inputs)"),
    ),
    case(
        "no_inputs",
        lambda: jaxprune.axis_roles(lambda p, x: x @ p, W),
        TypeError,
        ("apply_fn", "0 inputs", "apply_fn(variables, *inputs)"),
    ),
    case(
        "nnx_of_params",
        lambda: jaxprune.axis_roles_nnx({"w": ones(2, 4)}, X),
        TypeError,
        ("axis_roles_nnx: model", "dict", "axis_roles(apply_fn, variables, x)"),
    ),
    case(
        "nnx_input",
        lambda: jaxprune.axis_roles_nnx(linear(), len),
        TypeError,
        ("axis_roles_nnx: inputs: 0:", "the function len", None),
    ),
    case(
        "nnx_shape",
        lambda: jaxprune.axis_roles_nnx(linear(), ones(2, 3)),
        TypeError,
        ("model fails", "TypeError: dot_general", "model(*inputs)"),
    ),
    case(
        "nnx_option",
        lambda: jaxprune.axis_roles_nnx(needs_option(), ones(2, 4)),
        TypeError,
        ("the model fails", "'train'", "nnx.merge(graphdef, state)(x, train=False)"),
    ),
    case(
        "another_mistake_beside_an_option",
        lambda: jaxprune.axis_roles(lambda p, x, train: x @ p.T, ones(4, 2), X, True),
        TypeError,
        ("apply_fn fails", "with TypeError: dot_general"),
    ),
    case(
        "options_as_inputs",
        lambda: jaxprune.axis_roles(lambda p, x, train: x @ p if train else x, ones(4, 2), X, True),
        TypeError,
        (
            "apply_fn fails",
            "2 inputs",
            ("True and False", "model.apply(variables, x, train=False)"),
        ),
    ),
]


def needs_option():
    from flax import nnx

    class NeedsOption(nnx.Linear):
        def __call__(self, x, *, train):
            return super().__call__(x)

    return NeedsOption(4, 4, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("function", ("channel_groups", "shrink", "layer_inputs"))
def test_what_the_error_of_a_model_with_an_option_says_to_type_works(function):
    from flax import nnx

    model = needs_option()
    with pytest.raises(TypeError, match=r"the model fails.* go into a function of the state"):
        getattr(jaxprune, f"{function}_nnx")(model, ones(2, 4))
    graphdef, state = nnx.split(model)
    call = lambda state, x: nnx.merge(graphdef, state)(x, train=False)
    if function == "layer_inputs":
        assert jaxprune.layer_inputs(call, state, ones(2, 4))["kernel"].count == 2
    else:  # its only axes are those of inputs and outputs
        with pytest.raises(ValueError, match="an axis of the output"):
            getattr(jaxprune, function)(call, state, ones(2, 4))


def linear():
    from flax import nnx

    return nnx.Linear(4, 4, rngs=nnx.Rngs(0))


def test_the_error_of_a_linen_model_in_training_mode_has_a_note():
    from flax import errors, linen as nn

    norm = nn.BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), ones(2, 3))
    with pytest.raises(errors.ModifyScopeVariableError) as caught:
        jaxprune.axis_roles(norm.apply, variables, ones(2, 3))
    assert any(
        "inference mode" in note and "train=False" in note for note in caught.value.__notes__
    )


@pytest.mark.parametrize("call, kind, parts", MISTAKES)
def test_a_mistake_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)
