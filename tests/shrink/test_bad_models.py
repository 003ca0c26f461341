"""Wrong arguments of `shrink`, `channel_groups` and their variants."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

import jaxprune
from bad_input import assert_error, case
from helpers import ones

X = ones(2, 4)
LAYERS = {"w": ones(4, 4), "v": ones(4, 4)}
MODEL = linen.Dense(4)


def two_layers(params, x):
    return jax.nn.relu(x @ params["w"]) @ params["v"]


def linear():
    return nnx.Linear(4, 4, rngs=nnx.Rngs(0))


def dropout(params, x):
    keep = jax.random.bernoulli(jax.random.key(0), 0.5, (2, 4))
    return jnp.where(keep, jax.nn.relu(x @ params["w"]), 0) @ params["v"]


def whole():
    return eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(0))


SPLIT = ("eqx.partition(model, eqx.is_inexact_array)", "eqx.combine(params, static)(x)")
# Each is called with an Equinox model in place of `apply_fn`.
OF_FUNCTIONS = {
    "axis_roles": lambda model: jaxprune.axis_roles(model, ones(4)),
    "shrink": lambda model: jaxprune.shrink(model, ones(4)),
    "channel_groups": lambda model: jaxprune.channel_groups(model, ones(4)),
    "layer_inputs": lambda model: jaxprune.layer_inputs(model, whole(), ones(4)),
    "shrunk_apply": lambda model: jaxprune.shrunk_apply(model, ones(4)),
    "prune_sequentially": lambda model: jaxprune.prune_sequentially(
        jaxprune.wanda, model, whole(), ones(4), sparsity=0.5
    ),
}
# Other functions that have the params of a model inside.
WRAPPED = {
    "model": lambda model: model,
    "method": lambda model: model.__call__,
    "vmap": jax.vmap,
    "jit": lambda model: jax.jit(jax.vmap(model)),
    "filter_jit": eqx.filter_jit,
    "partial": lambda model: functools.partial(model, key=None),
}


@pytest.mark.parametrize("function", OF_FUNCTIONS)
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_model_with_params_inside_is_no_function_of_params(function, wrapped):
    call = lambda: OF_FUNCTIONS[function](WRAPPED[wrapped](whole()))
    assert_error(
        call, TypeError, (f"{function}: apply_fn", "layers/0/weight, layers/0/bias", SPLIT)
    )


def test_the_call_of_an_nnx_model_is_no_function_of_params():
    call = lambda: jaxprune.axis_roles(linear().__call__, X)
    assert_error(call, TypeError, ("axis_roles: apply_fn", "kernel", "use axis_roles_nnx"))


def test_what_the_message_about_an_equinox_model_says_works():
    params, static = eqx.partition(whole(), eqx.is_inexact_array)
    roles = jaxprune.axis_roles(lambda p, x: eqx.combine(p, static)(x), params, ones(4))
    assert roles["layers/0/weight"] == ("out", "in")


def test_a_module_without_params_may_be_the_function():
    jitted = eqx.filter_jit(two_layers)
    assert jaxprune.axis_roles(jitted, LAYERS, X)["w"] == ("in", "out")


IN_EVALUATION = ("draws random numbers", "model.eval() in NNX", "deterministic=True in linen")


def closes_over(array):
    """Two layers, with an array between them as the statistics of a BatchNorm are."""
    return lambda params, x: (jax.nn.relu(x @ params["w"]) - array) @ params["v"]


CLOSED_OVER = ("closes over", "batch_stats", "in its first argument")


MODELS = [
    case(
        "channel_groups_without_statistics",
        lambda: jaxprune.channel_groups(closes_over(ones(4)), LAYERS, X),
        ValueError,
        ("w[1]", "a constant array", CLOSED_OVER),
    ),
    case(
        "shrink_without_statistics",
        lambda: jaxprune.shrink(closes_over(ones(4)), {**LAYERS, "w": jnp.zeros((4, 4))}, X),
        ValueError,
        ("w[1]", "a constant array", CLOSED_OVER),
    ),
    case(
        "channel_groups_of_a_whole_equinox_model",
        lambda: jaxprune.channel_groups(
            lambda model, x: jax.vmap(model)(x), eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0)), X
        ),
        TypeError,
        ("activation:", "not an array", ("eqx.partition(model, eqx.is_array)", "eqx.combine")),
    ),
    case(
        "channel_groups_in_training_mode",
        lambda: jaxprune.channel_groups(dropout, LAYERS, X),
        ValueError,
        ("w[1]", "as long as", IN_EVALUATION),
    ),
    case(
        "shrink_in_training_mode",
        lambda: jaxprune.shrink(dropout, {**LAYERS, "w": jnp.zeros((4, 4))}, X),
        ValueError,
        ("w[1]", "as long as", IN_EVALUATION),
    ),
    case(
        "shrink_swapped",
        lambda: jaxprune.shrink(LAYERS, two_layers, X),
        TypeError,
        ("shrink: apply_fn", "dict", "shrink(model.apply, variables, x)"),
    ),
    case(
        "shrink_a_linen_model",
        lambda: jaxprune.shrink(MODEL, LAYERS, X),
        TypeError,
        ("shrink: apply_fn", "Dense", "shrink(model.apply, variables, x)"),
    ),
    case(
        "shrink_an_nnx_model",
        lambda: jaxprune.shrink(linear(), LAYERS, X),
        TypeError,
        ("shrink: apply_fn", "Linear", "for an NNX model, use shrink_nnx."),
    ),
    case(
        "shrink_params_of_another_model",
        lambda: jaxprune.shrink(two_layers, {"kernel": X}, X),
        TypeError,
        ("apply_fn", "KeyError: 'w'", "apply_fn(variables, *inputs)"),
    ),
    case(
        "shrink_without_inputs",
        lambda: jaxprune.shrink(two_layers, LAYERS),
        TypeError,
        ("apply_fn", "0 inputs", "apply_fn(variables, *inputs)"),
    ),
    case(
        "shrink_a_flag_among_the_inputs",
        lambda: jaxprune.shrink(two_layers, LAYERS, X, "train"),
        TypeError,
        ("shrink: example_inputs: 1:", "'train'", "lambda variables, x:"),
    ),
    case(
        "shrink_functions_among_the_variables",
        lambda: jaxprune.shrink(two_layers, {**LAYERS, "f": len}, X),
        TypeError,
        ("shrink: variables: f:", "the function len", "(apply_fn, variables, *inputs)"),
    ),
    case(
        "shrink_shapes",
        lambda: jaxprune.shrink(two_layers, LAYERS, jax.ShapeDtypeStruct((2, 4), jnp.float32)),
        TypeError,
        ("shrink:", "ShapeDtypeStruct(shape=(2, 4), dtype=float32)", "Pass arrays"),
    ),
    case(
        "shrink_under_jit",
        lambda: jax.eval_shape(lambda x: jaxprune.shrink(two_layers, LAYERS, x)[0], X),
        TypeError,
        ("shrink:", "traced", "outside jit"),
    ),
    case(
        "shrink_rtol",
        lambda: jaxprune.shrink(two_layers, LAYERS, X, rtol="1e-3"),
        ValueError,
        ("shrink: rtol", "'1e-3'", "number"),
    ),
    case(
        "shrink_allow_a_name",
        lambda: jaxprune.shrink(two_layers, LAYERS, X, allow="layer_norm"),
        ValueError,
        ("shrink: allow", "'layer_norm'", "allow=('layer_norm',)"),
    ),
    case(
        "channel_groups_allow_an_unknown_name",
        lambda: jaxprune.channel_groups(two_layers, LAYERS, X, allow=("softmax",)),
        ValueError,
        ("channel_groups: allow", "'softmax'", "allow=('layer_norm',)"),
    ),
    case(
        "shrink_nnx_a_function",
        lambda: jaxprune.shrink_nnx(LAYERS, X),
        TypeError,
        ("shrink_nnx: model", "dict", "shrink(apply_fn, variables, x)"),
    ),
    case(
        "shrink_along_an_optimizer",
        lambda: jaxprune.shrink(two_layers, LAYERS, X, along=optax.adam(0.1)),
        TypeError,
        ("shrink: along", "GradientTransformationExtraArgs", "along=opt_state"),
    ),
    case(
        "shrink_along_text",
        lambda: jaxprune.shrink(two_layers, LAYERS, X, along="a"),
        TypeError,
        ("shrink: along", "'a'", "along=opt_state"),
    ),
    case(
        "shrink_along_functions",
        lambda: jaxprune.shrink(two_layers, LAYERS, X, along={"w": two_layers}),
        TypeError,
        ("shrink: along", "w", "along=opt_state"),
    ),
    case(
        "shrink_nnx_along_a_tree",
        lambda: jaxprune.shrink_nnx(linear(), X, along=[LAYERS]),
        TypeError,
        ("shrink_nnx: along", "dict", "along=[optimizer]"),
    ),
    case(
        "shrink_nnx_along_one_object",
        lambda: jaxprune.shrink_nnx(linear(), X, along=linear()),
        TypeError,
        ("shrink_nnx: along", "Linear", "along=[optimizer]"),
    ),
    case(
        "resize_nnx_swapped",
        lambda: jaxprune.resize_nnx(LAYERS, linear()),
        TypeError,
        ("resize_nnx: model", "dict", "resize_nnx(model, state)"),
    ),
    case(
        "channel_groups_swapped",
        lambda: jaxprune.channel_groups(LAYERS, two_layers, X),
        TypeError,
        ("channel_groups: apply_fn", "dict", "channel_groups(model.apply, variables, x)"),
    ),
    case(
        "channel_groups_nnx_of_params",
        lambda: jaxprune.channel_groups_nnx(LAYERS, X),
        TypeError,
        ("channel_groups_nnx: model", "dict", "channel_groups(apply_fn, variables, x)"),
    ),
    case(
        "shrunk_apply_a_model",
        lambda: jaxprune.shrunk_apply(MODEL, LAYERS, X),
        TypeError,
        ("shrunk_apply: apply_fn", "Dense", "shrunk_apply(model.apply, variables, x)"),
    ),
    case(
        "shrunk_apply_an_nnx_model",
        lambda: jaxprune.shrunk_apply(linear(), LAYERS, X),
        TypeError,
        ("shrunk_apply: apply_fn", "Linear", "for an NNX model, call the model itself: model(x)"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", MODELS)
def test_an_error_about_models_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)


class Centred(eqx.Module):
    """A function of variables, with a constant of its own."""

    mean: jax.Array

    def __call__(self, params, x):
        return (x - self.mean) @ params["w"]

    def apply(self, params, x):
        return self(params, x)


CALLS = {"model": lambda f: f, "method": lambda f: f.apply}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_functions_with_constants_of_their_own_are_functions(call):
    function = call(Centred(jnp.zeros(4)))
    roles = jaxprune.axis_roles(function, {"w": ones(4, 3)}, ones(2, 4))
    assert roles["w"] == ("in", "out")
