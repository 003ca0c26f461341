"""Wrong arguments of the functions for packed matrices and kernels."""

import numpy as np
import pytest
from flax import linen, nnx

import jaxprune
from bad_input import assert_error, case, params
from helpers import ones

W = np.ones((4, 8), np.float32)


@nnx.split_rngs(splits=3)
@nnx.vmap(in_axes=(0,), out_axes=0)
def stack(rngs):
    return nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu)


def stacked_layers():
    return stack(nnx.Rngs(0))


BLOCKS = [
    case(
        "unpack_an_array",
        lambda: jaxprune.unpack_matrix(ones(3)),
        TypeError,
        ("unpack_matrix", "Array([1., 1., 1.], dtype=float32)", "pack_matrix(w, mask)"),
    ),
    case(
        "multiply_swapped",
        lambda: jaxprune.packed_matmul(W, jaxprune.pack_matrix(W)),
        TypeError,
        ("packed_matmul", "float32 of shape (4, 8)", "pack_matrix(w, mask)"),
    ),
    case(
        "multiply_a_string",
        lambda: jaxprune.packed_matmul(jaxprune.pack_matrix(W), "x"),
        TypeError,
        ("packed_matmul: x", "'x'", "packed_matmul(packed, x)"),
    ),
    case(
        "pack_a_tree",
        lambda: jaxprune.pack_matrix(params()),
        TypeError,
        ("pack_matrix: w", "dict", "jaxprune.pack_kernels(params)"),
    ),
    case(
        "block_as_mask",
        lambda: jaxprune.pack_matrix(W, (1, 16)),
        ValueError,
        ("pack_matrix: mask", ("(2,)", "(4, 8)"), "block=(1, 16)"),
    ),
    case(
        "block_as_include",
        lambda: jaxprune.pack_kernels({"fc": {"kernel": W}}, (1, 16)),
        TypeError,
        ("include", "(1, 16)", "block=(1, 16)"),
    ),
    case(
        "pack_params_as_an_nnx_model",
        lambda: jaxprune.pack_linear(params()),
        TypeError,
        ("pack_linear: model", "dict", "jaxprune.pack_kernels(params)"),
    ),
    case(
        "pack_linear_of_stacked_layers",
        lambda: jaxprune.pack_linear(stacked_layers()),
        ValueError,
        ("nothing to pack: include", "no nnx.Linear with a 2-D kernel", "pack_matrix"),
    ),
    case(
        "apply_a_model",
        lambda: jaxprune.packed_apply(linen.Dense(4), {}, {"params": {}}, W),
        TypeError,
        ("packed_apply: apply_fn", "Dense", "model.apply"),
    ),
    case(
        "apply_dense_kernels",
        lambda: jaxprune.packed_apply(linen.Dense(4).apply, {"kernel": W}, {"params": {}}, W),
        TypeError,
        ("packed_apply: packed", "dict", "jaxprune.pack_kernels(variables['params'])"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", BLOCKS)
def test_an_error_about_blocks_says_where_and_what_to_type_instead(call, kind, parts):
    assert_error(call, kind, parts)
