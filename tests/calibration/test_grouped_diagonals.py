"""Wanda from the diagonals of grouped convolutions: the masks are those of the full moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from calibration_oracles import normal
from helpers import assert_same
from jaxprune import Moments, layer_inputs, prune_sequentially, wanda

X = jnp.asarray(normal(2, 5, 5, 18))
# Groups, and the shape of the kernel. With nine groups of nine inputs, the diagonals of all groups
# have the shape of a single gram.
KERNELS = {
    "groups": (2, (3, 3, 9, 6)),
    "depthwise": (18, (3, 3, 1, 18)),
    "as many groups as inputs": (9, (3, 3, 1, 9)),
    "one group": (1, (1, 1, 18, 4)),
}


ONLY_CONV = {
    "include": "conv/kernel",
    "roles": {"conv/kernel": ("window", "window", "in", "out")},
}


def model(n_groups, params, x):
    """A grouped convolution of the first channels, and a product."""
    kernel = params["conv"]["kernel"]
    x = lax.conv_general_dilated(
        x[..., : kernel.shape[2] * n_groups],
        kernel,
        (1, 1),
        "SAME",
        feature_group_count=n_groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(x) @ params["out"]


def params_of(name):
    n_groups, shape = KERNELS[name]
    params = {
        "conv": {"kernel": jnp.asarray(normal(*shape)), "bias": jnp.ones(shape[-1])},
        "out": jnp.asarray(normal(shape[-1], 3)),
    }
    return params, lambda params, x: model(n_groups, params, x)


@pytest.mark.parametrize("name", KERNELS)
def test_diagonals_give_the_masks_of_full_moments(name):
    params, apply_fn = params_of(name)
    full = layer_inputs(apply_fn, params, X)
    diagonals = layer_inputs(apply_fn, params, X, diagonal=True)
    gram = full["conv/kernel"].gram
    np.testing.assert_allclose(
        diagonals["conv/kernel"].gram, jnp.diagonal(gram, axis1=-2, axis2=-1), rtol=1e-5
    )
    expected = wanda(params, full, 0.5)
    assert_same(wanda(params, diagonals, 0.5), expected)
    assert not bool(expected[1]["conv"]["kernel"].all())
    assert_same(
        prune_sequentially(wanda, apply_fn, params, X, sparsity=0.5, exclude="out")[0],
        wanda(params, full, 0.5, exclude="out")[0],
    )


def test_a_scalar_count_with_a_square_gram_is_that_of_one_group():
    """Moments of a user, for a kernel that may also be depthwise."""
    params, _ = params_of("as many groups as inputs")
    inputs = {"conv/kernel": jaxprune.moments(jnp.asarray(normal(20, 9)))}
    diagonal = Moments(20.0, jnp.diagonal(inputs["conv/kernel"].gram))
    masks = wanda(params, inputs, 0.5, **ONLY_CONV)[1]
    assert_same(wanda(params, {"conv/kernel": diagonal}, 0.5, **ONLY_CONV)[1], masks)


def test_grams_that_fit_no_groups_are_an_error():
    params, _ = params_of("groups")
    for shape in ((4, 81), (3, 80), (5, 81, 81), (81, 80)):
        inputs = {"conv/kernel": Moments(jnp.ones(shape[0]), jnp.ones(shape))}
        with pytest.raises(ValueError, match=r"must have shape \(81, 81\) or \(81,\)"):
            wanda(params, inputs, 0.5, **ONLY_CONV)
