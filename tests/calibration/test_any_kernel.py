"""Kernels of any shape are pruned as the matrices (in, out) that their roles describe."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from calibration_oracles import correlated, normal, sparsegpt_oracle, wanda_oracle
from helpers import bits, says
from jaxprune import (
    Moments,
    layer_inputs,
    moments,
    prune_sequentially,
    sparsegpt,
    sparsegpt_kernel,
    wanda,
    wanda_kernel,
)
from jaxprune._calibration import sparsegpt_solver

METHODS = {"wanda": (wanda, wanda_oracle), "sparsegpt": (sparsegpt, sparsegpt_oracle)}
TARGETS = ({"sparsity": 0.5}, {"nm": (2, 4)})
# Kernels by what they are; each has 2-D problems of few shapes, so that few programs compile.
LAYOUTS = {
    "dense": ((8, 6), ("in", "out")),
    "torch": ((6, 8), ("out", "in")),
    "query": ((8, 3, 2), ("in", "out", "out")),
    "attention output": ((2, 4, 6), ("in", "in", "out")),
    "conv": ((2, 4, 6), ("window", "in", "out")),
    "torch conv": ((6, 4, 2), ("out", "in", "window")),
    "layers": ((3, 8, 6), ("stack", "in", "out")),
    "layers second": ((8, 3, 6), ("in", "stack", "out")),
    "experts of layers": ((2, 3, 6, 8), ("stack", "stack", "out", "in")),
}

both_methods = pytest.mark.parametrize("method", METHODS)


def matrices_of(leaf, roles, windows_first=False):
    """Every index of the stack axes -> the matrix (in, out) there, by a loop over its entries."""
    rows = ["in", "window"]
    shape = leaf.shape
    row_axes = [k for k, role in enumerate(roles) if role in rows]
    if windows_first:
        row_axes = sorted(row_axes, key=lambda k: roles[k] != "window")
    stack_axes = [k for k, role in enumerate(roles) if role == "stack"]
    column_axes = [k for k, role in enumerate(roles) if role == "out"]
    sizes = [[shape[k] for k in axes] for axes in (stack_axes, row_axes, column_axes)]
    matrices = np.zeros([math.prod(n) for n in sizes], leaf.dtype)
    for index in np.ndindex(shape):
        place = []
        for axes, lengths in zip((stack_axes, row_axes, column_axes), sizes, strict=True):
            place.append(np.ravel_multi_index([index[k] for k in axes], lengths) if lengths else 0)
        matrices[tuple(place)] = leaf[index]
    return matrices


def inputs_of(n_matrices, n_in, n_rows=24):
    return np.stack([correlated(n_rows, n_in, key) for key in range(n_matrices)])


@both_methods
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_kernel_of_any_shape_is_its_matrices(method, layout, target):
    prune, oracle = METHODS[method]
    shape, roles = LAYOUTS[layout]
    leaf = normal(*shape)
    windows_first = "nm" in target
    matrices = matrices_of(leaf, roles, windows_first)
    inputs = inputs_of(len(matrices), matrices.shape[1])  # rows in the order of the leaf
    stack = [n for n, role in zip(shape, roles, strict=True) if role == "stack"]
    given = jax.vmap(moments)(inputs)
    given = Moments(given.count.reshape(stack), given.gram.reshape(*stack, *given.gram.shape[1:]))
    params = {"fc": {"kernel": leaf, "bias": np.ones((2, 2))}}
    new, masks = prune(
        params, {"fc/kernel": given}, **target, roles={"fc/kernel": roles}, exclude=".*bias"
    )
    rows = [r for r in roles if r in ("in", "window")]
    row_shape = [n for n, role in zip(shape, roles, strict=True) if role in rows]
    order = np.arange(math.prod(row_shape)).reshape(row_shape)
    if windows_first:
        places = sorted(range(len(rows)), key=lambda k: rows[k] != "window")
        order = order.transpose(places)
    inputs = inputs[:, :, order.reshape(-1)]
    got = matrices_of(np.asarray(new["fc"]["kernel"]), roles, windows_first)
    got_mask = matrices_of(np.asarray(masks["fc"]["kernel"]), roles, windows_first)
    for i, matrix in enumerate(matrices):
        how = {"sparsity": None, **target}
        expected, mask = oracle(matrix, inputs[i], **how)
        np.testing.assert_array_equal(got_mask[i], mask)
        # float32 against float64, with a Hessian of a condition number of up to 1e4.
        np.testing.assert_allclose(got[i], expected, rtol=2e-3, atol=2e-4)
    assert not bits(new["fc"]["kernel"])[~np.asarray(masks["fc"]["kernel"])].any()
    assert new["fc"]["bias"] is params["fc"]["bias"]
    assert masks["fc"]["bias"].all()


@both_methods
def test_groups_of_outputs_with_inputs_of_their_own_are_kernels_of_their_own(method):
    prune, oracle = METHODS[method]
    leaf, inputs = normal(3, 4, 6), inputs_of(2, 12)  # a convolution of two groups
    new, masks = prune(
        {"w": leaf},
        {"w": jax.vmap(moments)(inputs)},
        0.5,
        roles={"w": ("window", "in", "out")},
    )
    for group, columns in enumerate((slice(0, 3), slice(3, 6))):
        expected, mask = oracle(leaf[..., columns].reshape(12, 3), inputs[group], 0.5)
        np.testing.assert_array_equal(masks["w"][..., columns].reshape(12, 3), mask)
        got = new["w"][..., columns].reshape(12, 3)
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-4)  # as above


@both_methods
def test_inputs_and_diagonals_have_the_stack_axes_first(method):
    prune, _ = METHODS[method]
    leaf, inputs = normal(8, 3, 6), inputs_of(3, 8)
    how = {"sparsity": 0.5, "roles": {"w": ("in", "stack", "out")}}
    given = jax.vmap(moments)(inputs)
    expected = prune({"w": leaf}, {"w": given}, **how)
    forms = [inputs, inputs.reshape(3, 4, 6, 8), given._replace(count=72.0)]
    if method == "wanda":
        forms.append(given._replace(gram=jnp.diagonal(given.gram, axis1=1, axis2=2)))
    for form in forms:
        got = prune({"w": leaf}, {"w": form}, **how)
        np.testing.assert_array_equal(got[1]["w"], expected[1]["w"])
    heads = prune(
        {"w": leaf}, {"w": inputs[0].reshape(24, 8)}, 0.5, roles={"w": ("in", *["out"] * 2)}
    )
    split = leaf.reshape(2, 4, 18)
    given = inputs[0].reshape(24, 2, 4)
    other = prune({"w": split}, {"w": given}, 0.5, roles={"w": ("in", "in", "out")})
    np.testing.assert_array_equal(other[1]["w"].reshape(8, 3, 6), heads[1]["w"])


@both_methods
def test_overrides_are_of_leaves_and_of_slices(method):
    prune, oracle = METHODS[method]
    params = {"up": normal(3, 8, 6), "down": normal(8, 6), "head": normal(8, 6)}
    inputs = {"up": inputs_of(3, 8), "down": correlated(24, 8), "head": correlated(24, 8)}
    roles = {"up": ("stack", "in", "out"), ".*": ("in", "out")}
    overrides = {"up/1": 0.25, "up": 0.75, "up/2": (2, 4), "down": 0.0}
    _, masks = prune(params, inputs, 0.5, overrides=overrides, roles=roles)
    targets = [{"sparsity": 0.75}, {"sparsity": 0.25}, {"sparsity": None, "nm": (2, 4)}]
    for i, target in enumerate(targets):
        expected = oracle(params["up"][i], inputs["up"][i], **target)[1]
        np.testing.assert_array_equal(masks["up"][i], expected)
    assert masks["down"].all()
    expected = oracle(params["head"], inputs["head"], 0.5)[1]
    np.testing.assert_array_equal(masks["head"], expected)


@both_methods
def test_groups_of_m_lie_along_the_inputs_at_each_position_of_a_window(method):
    prune, _ = METHODS[method]
    leaf = normal(6, 4, 3, 2)  # torch: (out, in, *window)
    inputs = correlated(64, 24)
    roles = {"conv.weight": ("out", "in", "window", "window")}
    _, masks = prune({"conv.weight": leaf}, {"conv.weight": inputs}, nm=(2, 4), roles=roles)
    assert (np.asarray(masks["conv.weight"]).sum(axis=1) == 2).all()


def test_moments_in_chunks_of_slices_are_those_of_all_at_once(monkeypatch):
    leaf, given = normal(5, 8, 6), jax.vmap(moments)(inputs_of(5, 8))
    how = {"sparsity": 0.5, "roles": {"w": ("stack", "in", "out")}}
    expected = sparsegpt({"w": leaf}, {"w": given}, **how)
    monkeypatch.setattr(sparsegpt_solver, "_MAX_ENTRIES", 250)  # two slices
    sparsegpt_solver.prune_by_sparsegpt.clear_cache()
    got = sparsegpt({"w": leaf}, {"w": given}, **how)
    np.testing.assert_array_equal(got[1]["w"], expected[1]["w"])
    np.testing.assert_allclose(got[0]["w"], expected[0]["w"], rtol=1e-5)  # fused differently


# What users get wrong.

X = np.ones((5, 4), np.float32)
BAD = {
    "torch": (
        lambda: wanda({"fc.weight": np.ones((4, 4))}, {"fc.weight": X}, 0.5),
        ("fc.weight:", "(4, 4)", "(out, in)", "roles={'fc.weight': ('out', 'in')}"),
    ),
    "all leaves": (
        lambda: sparsegpt(
            {"q": np.ones((4, 2, 2)), "k": np.ones((4, 2, 2))}, {"q": X, "k": X}, 0.5
        ),
        ("k, q:", "(4, 2, 2)", "roles={", "exclude="),
    ),
    "no sum": (
        lambda: wanda({"w": np.ones((4, 4))}, {"w": X}, 0.5, roles={"w": ("stack", "out")}),
        ("w:", "('stack', 'out')", "'in'", "exclude='w'"),
    ),
    "reason": (
        lambda: wanda(
            {"emb": np.ones((4, 4)), "fc": np.ones((4, 4))},
            {"emb": X, "fc": X},
            0.5,
            roles=jaxprune.AxisRoles({"fc": ("in", "out")}, {"emb": "used in two ways"}),
        ),
        ("emb:", "used in two ways", "exclude='emb'"),
    ),
    "roles match nothing": (
        lambda: wanda({"w": np.ones((4, 4))}, {"w": X}, 0.5, roles={"kernel": ("in", "out")}),
        ("roles: 'kernel' matches no leaf", "w"),
    ),
    "roles of another model": (
        lambda: wanda(
            {"w": np.ones((4, 4))}, {"w": X}, 0.5, roles=jaxprune.AxisRoles({"k": ("in", "out")})
        ),
        ("roles:", "w", "axis_roles"),
    ),
    "override matches nothing": (
        lambda: wanda({"w": np.ones((4, 4))}, {"w": X}, 0.5, overrides={"w/0": 0.25}),
        ("overrides: 'w/0' matches no leaf", "w"),
    ),
    "override in percent": (
        lambda: wanda({"w": np.ones((4, 4))}, {"w": X}, 0.5, overrides={"w": 25}),
        ("overrides['w']", "25", "0.25"),
    ),
    "override swapped": (
        lambda: wanda({"w": np.ones((4, 4))}, {"w": X}, 0.5, overrides={"w": (4, 2)}),
        ("overrides['w']", "(4, 2)", "Did you mean (2, 4)?"),
    ),
    "stack of inputs": (
        lambda: wanda(
            {"w": np.ones((3, 4, 4))}, {"w": X}, 0.5, roles={"w": ("stack", "in", "out")}
        ),
        ("inputs['w']:", "(3, ..., 4)", "(5, 4)", "jaxprune.Moments"),
    ),
    "pattern of a window": (
        lambda: wanda(
            {"w": np.ones((4, 2, 4))},
            {"w": np.ones((5, 8))},
            nm=(2, 4),
            roles={"w": ("window", "in", "out")},
        ),
        ("w:", "nm=(2, 4)", "2 inputs", "divides 2", "exclude='w'"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_leaf_and_what_to_type_instead(name):
    call, parts = BAD[name]
    with pytest.raises(ValueError, match=says(*parts)):
        call()


def test_overrides_must_be_a_mapping():
    with pytest.raises(TypeError, match=says("overrides", "0.5")):
        wanda({"w": np.ones((4, 4))}, {"w": X}, 0.5, overrides=0.5)


@pytest.mark.parametrize("diagonal", (False, True))
@pytest.mark.parametrize("equation, roles", (("bi,eio->ebo", "sio"), ("bi,ieo->ebo", "iso")))
def test_slices_that_share_their_input_are_pruned_one_by_one_with_roles(equation, roles, diagonal):
    words = {"s": "stack", "i": "in", "o": "out"}
    axis = roles.index("s")
    kernels = normal(3, 8, 4)
    transposed = jnp.asarray(normal(8, 8, key=3))  # has the roles of `layer_inputs`
    params = {"experts": jnp.moveaxis(jnp.asarray(kernels), 0, axis), "v": transposed}
    params["b"] = jnp.ones(4)
    x = jnp.asarray(normal(16, 8, key=2))

    def model(p, x):
        return jnp.einsum(equation, x, p["experts"]) + p["b"], x @ p["v"].T

    inputs = layer_inputs(model, params, x, diagonal=diagonal)
    assert "stack" not in inputs.roles["experts"]
    for function, of_kernel in ((wanda, wanda_kernel), (sparsegpt, sparsegpt_kernel)):
        if function is sparsegpt and diagonal:
            continue
        how = {"overrides": {"experts/1": 0.75}, "roles": {"experts": [words[r] for r in roles]}}
        new, masks = function(params, inputs, 0.5, **how)
        assert masks["b"].all()
        _, mask = of_kernel(transposed.T, x, 0.5)
        np.testing.assert_array_equal(masks["v"].T, mask)
        for k, sparsity in enumerate((0.5, 0.75, 0.5)):
            expected, mask = of_kernel(jnp.asarray(kernels[k]), x, sparsity)
            np.testing.assert_array_equal(jnp.take(masks["experts"], k, axis), mask)
            np.testing.assert_allclose(
                jnp.take(new["experts"], k, axis), expected, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("shape", ((0, 4), (8, 0)), ids=str)
@pytest.mark.parametrize("function", (wanda, sparsegpt))
def test_a_kernel_without_weights_needs_no_inputs(function, shape):
    params = {"empty": jnp.zeros(shape), "w": jnp.asarray(normal(8, 4))}
    x = jnp.asarray(normal(16, 8, key=2))
    new, masks = function(params, {"w": x}, 0.5)
    assert new["empty"].shape == masks["empty"].shape == shape
    assert int(masks["w"].sum()) == 16
    alone, masks = function({"empty": params["empty"]}, {}, 0.5)
    assert alone["empty"].shape == masks["empty"].shape == shape
    new, masks = prune_sequentially(function, lambda p, x: x @ p["w"], params, x, sparsity=0.5)
    assert masks["empty"].shape == shape
    assert int(masks["w"].sum()) == 16
