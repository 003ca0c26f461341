"""Wrong arguments of the functions that collect inputs, and wrong weights and inputs."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import jaxprune
from bad_input import assert_error, case
from helpers import ones

X_SHAPE = jax.ShapeDtypeStruct((5, 4), jnp.float32)

X = ones(2, 4)
MODEL = linen.Dense(4)
VARIABLES = {"params": {"kernel": ones(4, 4), "bias": ones(4)}}
PARAMS = {"w": ones(4, 4), "b": ones(4)}
INDEXED = {"w": ones(4, 4), "v": ones(4, 4)}
EXPERTS = {"experts": ones(3, 4, 2), "b": ones(2)}


def dense(params, x):
    return x @ params["w"] + params["b"][None]


def experts(params, x):
    return jnp.einsum("bi,eio->ebo", x, params["experts"]) + params["b"][None, None]


def both_ways(params, x):
    return x @ params["w"] + x @ params["w"].T


def sequentially(method=jaxprune.wanda, apply_fn=dense, params=PARAMS, x=X, **options):
    return jaxprune.prune_sequentially(method, apply_fn, params, x, sparsity=0.5, **options)


def counts_of_nothing():
    return jax.tree.map(jnp.zeros_like, jaxprune.layer_inputs(dense, PARAMS, X))


def prune_experts(overrides):
    inputs = jaxprune.layer_inputs(experts, EXPERTS, X)
    return jaxprune.sparsegpt(EXPERTS, inputs, 0.5, overrides=overrides)


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
        "shapes_for_a_batch",
        lambda: jaxprune.layer_inputs(lambda v, x: x @ v["w"], {"w": ones(4, 3)}, X_SHAPE),
        TypeError,
        ("layer_inputs: inputs: 0", "ShapeDtypeStruct", "Pass arrays"),
    ),
    case(
        "shapes_for_variables",
        lambda: jaxprune.layer_inputs(lambda v, x: x @ v["w"], {"w": X_SHAPE}, ones(3, 5)),
        TypeError,
        ("layer_inputs: variables: w", "ShapeDtypeStruct", "Pass arrays"),
    ),
    case(
        "linen_inputs_without_a_batch",
        lambda: jaxprune.linen_inputs(MODEL, VARIABLES),
        TypeError,
        ("linen_inputs:", ("needs the inputs", "none"), "linen_inputs(model, variables, x)"),
    ),
    case(
        "linen_inputs_of_text",
        lambda: jaxprune.linen_inputs(MODEL, VARIABLES, "x"),
        TypeError,
        ("linen_inputs:", ("needs the inputs", "'x'"), "linen_inputs(model, variables, x)"),
    ),
    case(
        "nnx_inputs_without_a_batch",
        lambda: jaxprune.nnx_inputs(nnx.Linear(4, 4, rngs=nnx.Rngs(0))),
        TypeError,
        ("nnx_inputs:", ("needs the inputs", "none"), "nnx_inputs(model, x)"),
    ),
    case(
        "nnx_inputs_of_a_sequence_without_a_batch",
        lambda: jaxprune.nnx_inputs(nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))),
        TypeError,
        ("nnx_inputs:", ("needs the inputs", "none"), "nnx_inputs(model, x)"),
    ),
    case(
        "nnx_inputs_of_a_flag",
        lambda: jaxprune.nnx_inputs(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), True),
        TypeError,
        ("nnx_inputs:", ("needs the inputs", "True"), "nnx_inputs(model, x)"),
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
    case(
        "inputs_before_params",
        lambda: jaxprune.wanda(jaxprune.layer_inputs(dense, PARAMS, X), PARAMS, 0.5),
        TypeError,
        ("wanda: params", "the moments of inputs", "wanda(params, inputs, 0.5)"),
    ),
    case(
        "no_rows",
        lambda: jaxprune.layer_inputs(dense, PARAMS, batches=[ones(0, 4), ones(0, 4)]),
        ValueError,
        ("layer_inputs: no leaf", "(0, 4)", "at least one row"),
    ),
    case(
        "no_rows_for_sequential",
        lambda: sequentially(x=ones(0, 4)),
        ValueError,
        ("prune_sequentially: no leaf", "(0, 4)", "at least one row"),
    ),
    case(
        "counts_of_nothing",
        lambda: jaxprune.wanda(PARAMS, counts_of_nothing(), 0.5),
        ValueError,
        ("wanda: no leaf", "0", "at least one row"),
    ),
    case(
        "leaf_used_in_two_ways",
        lambda: jaxprune.layer_inputs(both_ways, PARAMS, X, include="w"),
        ValueError,
        ("layer_inputs: no inputs", "w (used in two ways", "jaxprune.axis_roles"),
    ),
    case(
        "indexed_leaf",
        lambda: sequentially(apply_fn=lambda p, i: p["w"][i] @ p["v"], params=INDEXED, x=0),
        ValueError,
        ("prune_sequentially: there are no inputs for w", "(only indexed)", "exclude='w'"),
    ),
    case(
        "slice_of_a_leaf_without_slices",
        lambda: prune_experts({"experts/1": 0.75}),
        ValueError,
        (
            "overrides: 'experts/1'",
            "('out', 'in', 'out')",
            "roles={'experts': ('stack', 'in', 'out')}",
        ),
    ),
    case(
        "slice_after_the_last",
        lambda: prune_experts({"experts/3": 0.75}),
        ValueError,
        ("overrides: 'experts/3'", "experts is one leaf", "the role 'stack', such as roles="),
    ),
    case(
        "slice_for_sequential",
        lambda: sequentially(apply_fn=experts, params=EXPERTS, overrides={"experts/1": 0.75}),
        ValueError,
        ("overrides: 'experts/1'", "('out', 'in', 'out')", "call wanda or sparsegpt with roles="),
    ),
    case(
        "blocks_that_match_nothing",
        lambda: sequentially(blocks=["w", "layers_9/.*"]),
        ValueError,
        ("prune_sequentially: blocks", "'layers_9/.*' matches no leaf", "b, w"),
    ),
    case(
        "roles_for_sequential",
        lambda: sequentially(roles={"w": ("in", "out")}),
        TypeError,
        ("prune_sequentially: it takes no roles", "{'w': ('in', 'out')}", "leave roles out"),
    ),
    case(
        "option_of_no_method",
        lambda: sequentially(dampin=0.1),
        TypeError,
        ("prune_sequentially: wanda", "dampin", "Remove"),
    ),
    case(
        "magnitudes_for_sequential",
        lambda: sequentially(jaxprune.prune_params),
        TypeError,
        ("prune_sequentially: method", "prune_params", "prune_sequentially(wanda, model.apply,"),
    ),
    case(
        "pattern_of_a_structure",
        lambda: jaxprune.wanda(PARAMS, {"w": X}, nm=jaxprune.NM(2, 4)),
        TypeError,
        ("nm must be two ints", "NM(n=2, m=4, axis=None)", "Write (2, 4)."),
    ),
    case(
        "override_of_a_structure",
        lambda: jaxprune.wanda(PARAMS, {"w": X}, 0.5, overrides={"w": jaxprune.NM(1, 4)}),
        TypeError,
        ("overrides['w']", "NM(n=1, m=4, axis=None)", "Write (1, 4)."),
    ),
    case(
        "layer_inputs_of_arrays",
        lambda: jaxprune.LayerInputs({"w": X}, jaxprune.AxisRoles({})),
        TypeError,
        ("LayerInputs: moments['w']", "float32 of shape (2, 4)", "jaxprune.moments(x)"),
    ),
    case(
        "layer_inputs_of_one_array",
        lambda: jaxprune.LayerInputs(X, jaxprune.AxisRoles({})),
        TypeError,
        ("LayerInputs: moments", "float32 of shape (2, 4)", "jaxprune.moments(x)"),
    ),
    case(
        "layer_inputs_with_a_dict_of_roles",
        lambda: jaxprune.LayerInputs({}, {"w": ("in", "out")}),
        TypeError,
        ("LayerInputs: roles", "{'w': ('in', 'out')}", "jaxprune.AxisRoles({"),
    ),
    case(
        "layer_inputs_without_a_list",
        lambda: jaxprune.LayerInputs({}, jaxprune.AxisRoles({}), ["w"]),
        TypeError,
        ("LayerInputs: without", "['w']", "Pass a dict"),
    ),
    case(
        "method_after_the_model",
        lambda: sequentially(dense, jaxprune.wanda),
        TypeError,
        ("prune_sequentially: apply_fn", "wanda", "prune_sequentially(wanda, model.apply,"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", CALIBRATION)
def test_an_error_about_calibration_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)
