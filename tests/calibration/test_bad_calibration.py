"""Wrong arguments of the functions that collect inputs, and wrong weights and inputs."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen

import jaxprune
from bad_input import assert_error, case
from helpers import ones

X = ones(2, 4)
MODEL = linen.Dense(4)

CALIBRATION = [
    case(
        "linen_without_a_model",
        lambda: jaxprune.linen_inputs({"params": {}}, X),
        TypeError,
        ("linen_inputs: model", "{'params': {}}", "linen_inputs(model, variables, x)"),
    ),
    case(
        "linen_params_for_variables",
        lambda: jaxprune.linen_inputs(MODEL, {"kernel": 1.0}, X),
        TypeError,
        ("linen_inputs: variables", "{'kernel': 1.0}", "{'params': params}"),
    ),
    case(
        "nnx_inputs_of_params",
        lambda: jaxprune.nnx_inputs({"kernel": 1.0}, X),
        TypeError,
        ("nnx_inputs: model", "{'kernel': 1.0}", "nnx_inputs(model, x)"),
    ),
    case(
        "nnx_inputs_of_a_linen_model",
        lambda: jaxprune.nnx_inputs(MODEL, X),
        TypeError,
        ("nnx_inputs: model", "Dense", "linen_inputs(model, variables, x)"),
    ),
    case(
        "kernel_string",
        lambda: jaxprune.wanda_kernel("w", X, 0.5),
        TypeError,
        ("kernel", "'w'", "(in, out)"),
    ),
    case(
        "kernel_key",
        lambda: jaxprune.sparsegpt_kernel(jax.random.key(0), X, 0.5),
        TypeError,
        ("kernel", "key<fry>", "floating point"),
    ),
    case(
        "moments_of_nothing",
        lambda: jaxprune.moments(None),
        TypeError,
        ("moments: `inputs`", "None", "(..., in)"),
    ),
    case(
        "inputs_list",
        lambda: jaxprune.wanda({"w": ones(4, 4)}, [X], 0.5),
        TypeError,
        ("wanda: `inputs`", "list", "jaxprune.linen_inputs"),
    ),
    case(
        "inputs_by_number",
        lambda: jaxprune.wanda({"w": ones(4, 4)}, {0: jnp.float32(1.0)}, 0.5),
        TypeError,
        ("wanda: `inputs`", "{0: ", "paths of kernels"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", CALIBRATION)
def test_an_error_about_calibration_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)
