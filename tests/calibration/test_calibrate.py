"""Wanda and SparseGPT: the arithmetic against slow oracles, and whole linen and NNX models."""

import functools
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, strategies as st

import jaxprune
from calibration_oracles import best, correlated, normal, sparsegpt_oracle, wanda_oracle
from helpers import bits, half_up, on_device, ones, says
from jaxprune import (
    Moments,
    linen_inputs,
    moments,
    nnx_inputs,
    sparsegpt,
    sparsegpt_kernel,
    wanda,
    wanda_kernel,
)
from jaxprune._base import sharding
from jaxprune._base.paths import path_str
from jaxprune._calibration import sparsegpt_solver, wanda_solver

KERNELS = {"wanda": wanda_kernel, "sparsegpt": sparsegpt_kernel}
MODELS = {"wanda": wanda, "sparsegpt": sparsegpt}
SPARSITIES = (0.0, 0.25, 0.5, 0.6, 0.875)
SHAPES = ((8, 3), (13, 2), (24, 1))  # few: each compiles

both_kernels = pytest.mark.parametrize("prune_kernel", KERNELS.values(), ids=KERNELS)
both_models = pytest.mark.parametrize("prune_model", MODELS.values(), ids=MODELS)


def output_error(kernel, new, inputs):
    """Squared error of the outputs, relative to the outputs."""
    x, old = inputs.astype(np.float64), np.asarray(kernel, np.float64)
    return np.sum((x @ (np.asarray(new, np.float64) - old)) ** 2) / np.sum((x @ old) ** 2)


def assert_sparse(kernel, mask):
    """Every dropped weight is +0.0, not -0.0."""
    assert mask.dtype == bool
    assert mask.shape == kernel.shape
    assert not bits(kernel)[~np.asarray(mask)].any()


@st.composite
def small_integers(draw):
    """A kernel and inputs whose products are exact and often equal."""
    n_in, n_out = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = draw(st.sampled_from((0, 1, 3, 9)))
    kernel = rng.integers(-most, most + 1, (n_in, n_out)).astype(np.float32)
    inputs = rng.integers(-most, most + 1, (4, n_in)).astype(np.float32)
    return kernel, inputs


# Wanda.


@given(small_integers(), st.sampled_from(SPARSITIES))
def test_wanda_is_a_stable_sort_of_each_output(case, sparsity):
    kernel, inputs = case
    expected, expected_mask = wanda_oracle(kernel, inputs, sparsity)
    new, mask = wanda_kernel(jnp.asarray(kernel), jnp.asarray(inputs), sparsity)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(new, expected)
    n_in = len(kernel)
    assert (np.sum(~mask, axis=0) == half_up(Fraction(str(sparsity)) * n_in)).all()
    assert_sparse(new, mask)


@given(small_integers(), st.sampled_from(((1, 2), (2, 4), (3, 4), (4, 4))))
def test_wanda_keeps_n_of_every_m_inputs(case, nm):
    kernel, inputs = case
    kernel, inputs = kernel[: len(kernel) // 4 * 4], inputs[:, : len(kernel) // 4 * 4]
    new, mask = wanda_kernel(kernel, inputs, nm=nm)
    np.testing.assert_array_equal(mask, wanda_oracle(kernel, inputs, None, nm)[1])
    assert (np.asarray(mask).reshape(-1, nm[1], kernel.shape[1]).sum(axis=1) == nm[0]).all()
    np.testing.assert_array_equal(new, np.where(mask, kernel, 0))


@pytest.mark.parametrize("device, n_in", (("cpu", 15), ("NVIDIA H100 80GB HBM3", 17)))
def test_wanda_of_a_few_columns_at_a_time_is_that_of_all(monkeypatch, device, n_in):
    kernel, inputs = normal(n_in, 11), correlated(32, n_in)  # shapes that no other test compiles
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(sharding, "_device_kind", lambda arrays: device)
    monkeypatch.setattr(wanda_solver, "_MAX_ENTRIES", 4 * n_in)  # 4, 4 and 3 columns
    new, mask = wanda_kernel(kernel, inputs, 0.6)
    expected, expected_mask = wanda_oracle(kernel, inputs, 0.6)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(new, expected)


def test_wanda_by_hand():
    kernel = jnp.array([[1.0, 9.0], [-3.0, 2.0], [5.0, -1.0], [2.0, 0.0]])
    inputs = jnp.array([[3.0, 0.0, 1.0, 2.0], [4.0, 1.0, 0.0, 0.0]])  # norms 5, 1, 1, 2
    new, mask = wanda_kernel(kernel, inputs, 0.5)
    # Scores: 5, 3, 5, 4 and 45, 2, 1, 0. By magnitude the first output would lose its first input.
    assert mask.tolist() == [[True, True], [False, True], [True, False], [False, False]]
    assert new.tolist() == [[1.0, 9.0], [0.0, 2.0], [5.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16, jnp.float16))
def test_wanda_leaves_kept_weights_bit_unchanged(dtype):
    kernel, inputs = on_device(normal(16, 4), dtype), on_device(correlated(32, 16), dtype)
    new, mask = wanda_kernel(kernel, inputs, 0.5)
    assert new.dtype == dtype
    np.testing.assert_array_equal(bits(new)[mask], bits(kernel)[mask])
    assert_sparse(new, mask)
    assert (np.sum(~mask, axis=0) == 8).all()


def test_inputs_of_one_size_make_wanda_magnitude_pruning_of_each_output():
    kernel = normal(16, 4)
    _, mask = wanda_kernel(kernel, jnp.ones((32, 16)), 0.25)
    for output in range(4):
        np.testing.assert_array_equal(mask[:, output], best(abs(kernel[:, output]), 12))


@both_kernels
def test_masks_do_not_depend_on_the_scale_of_the_inputs(prune_kernel):
    kernel, inputs = normal(16, 4), correlated(32, 16)
    new, mask = prune_kernel(kernel, inputs, 0.5)
    for scale in (2.0**-20, 2.0**20):  # powers of two, which are exact
        scaled, scaled_mask = prune_kernel(kernel, inputs * np.float32(scale), 0.5)
        np.testing.assert_array_equal(scaled_mask, mask)
        np.testing.assert_array_equal(scaled, new)


# SparseGPT.


@pytest.mark.parametrize("sparsity", (0.5, 0.7))
@pytest.mark.parametrize("n_rows, n_in, n_out, block_size", ((64, 24, 6, 8), (9, 20, 7, 8)))
def test_sparsegpt_is_the_paper_step_by_step(n_rows, n_in, n_out, block_size, sparsity):
    kernel, inputs = normal(n_in, n_out), correlated(n_rows, n_in)
    expected, expected_mask = sparsegpt_oracle(kernel, inputs, sparsity, None, block_size)
    new, mask = sparsegpt_kernel(kernel, inputs, sparsity, block_size=block_size)
    np.testing.assert_array_equal(mask, expected_mask)
    # float32 against float64, with a Hessian of a condition number of up to 1e4.
    np.testing.assert_allclose(new, expected, rtol=2e-3, atol=2e-4)
    assert_sparse(new, mask)


@pytest.mark.parametrize("nm", (None, (2, 4)), ids=str)
@pytest.mark.parametrize("rows_at_once", (5, 8, 12))
def test_sparsegpt_compensates_a_few_rows_at_a_time(rows_at_once, nm, monkeypatch):
    monkeypatch.setattr(sparsegpt_solver, "_ROWS_AT_ONCE", rows_at_once)
    n_out = rows_at_once + (nm is None)  # shapes that no other test compiles
    kernel, inputs = normal(28, n_out), correlated(64, 28)
    sparsity = None if nm else 0.5
    expected, expected_mask = sparsegpt_oracle(kernel, inputs, sparsity, nm, 4)
    new, mask = sparsegpt_kernel(kernel, inputs, sparsity, nm=nm, block_size=4)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(new, expected, rtol=2e-3, atol=2e-4)  # as above
    assert_sparse(new, mask)


def test_damping_counts_inputs_that_are_always_zero_as_one():
    kernel, inputs = normal(24, 6), correlated(9, 24) / 8
    inputs[:, ::3] = 0
    expected, expected_mask = sparsegpt_oracle(kernel, inputs, 0.5, None, 8)
    new, mask = sparsegpt_kernel(kernel, inputs, 0.5, block_size=8)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(new, expected, rtol=2e-3, atol=2e-4)  # as above


@pytest.mark.parametrize("block_size", (4, 12, 128))
@pytest.mark.parametrize("nm", ((1, 2), (2, 4)))
def test_sparsegpt_with_a_pattern_is_the_paper_step_by_step(nm, block_size):
    kernel, inputs = normal(20, 7), correlated(64, 20)
    expected, expected_mask = sparsegpt_oracle(kernel, inputs, None, nm, block_size)
    new, mask = sparsegpt_kernel(kernel, inputs, nm=nm, block_size=block_size)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(new, expected, rtol=2e-3, atol=2e-4)  # as above
    assert (np.asarray(mask).reshape(-1, nm[1], 7).sum(axis=1) == nm[0]).all()
    assert_sparse(new, mask)


@given(small_integers(), st.sampled_from(SPARSITIES))
def test_sparsegpt_drops_its_budget_by_the_end_of_each_block(case, sparsity):
    kernel, inputs = case
    block_size = {8: 128, 13: 5, 24: 8}[len(kernel)]
    new, mask = sparsegpt_kernel(kernel, inputs, sparsity, block_size=block_size)
    n_in, n_out = kernel.shape
    for end in (*range(block_size, n_in, block_size), n_in):
        assert np.sum(~mask[:end]) == half_up(Fraction(str(sparsity)) * end * n_out)
    assert_sparse(new, mask)
    assert np.isfinite(new).all()


def test_sparsegpt_by_hand():
    # Two inputs that are always equal: H is [[1.01, 1], [1, 1.01]] up to scale, so the score of the
    # first weight, which the second can replace, is |w| sqrt(1.01 - 1 / 1.01), and of the second,
    # which nothing after it can, |w| sqrt(1.01). What moves is w / 1.01.
    inputs = jnp.array([[1.0, 1.0], [-2.0, -2.0]])
    new, mask = sparsegpt_kernel(jnp.array([[2.0], [1.0]]), inputs, 0.5)
    assert mask.tolist() == [[False], [True]]
    np.testing.assert_allclose(new, [[0.0], [1.0 + 2.0 / 1.01]], rtol=1e-5)  # float32
    new, mask = sparsegpt_kernel(jnp.array([[8.0], [1.0]]), inputs, 0.5)
    assert mask.tolist() == [[True], [False]]
    assert new.tolist() == [[8.0], [0.0]]  # earlier inputs do not compensate for a later one


def test_sparsegpt_moves_nothing_where_inputs_are_unrelated():
    kernel = normal(16, 4)
    new, mask = sparsegpt_kernel(kernel, 3 * jnp.eye(16), 0.5)
    np.testing.assert_array_equal(mask, jaxprune.topk_mask(jnp.abs(kernel), 32))
    np.testing.assert_array_equal(new, np.where(mask, kernel, 0))


@both_kernels
def test_weights_of_an_input_that_is_always_zero_go_first_and_are_not_moved(prune_kernel):
    kernel, inputs = normal(8, 4), correlated(32, 8)
    kernel[2], inputs[:, 2], inputs[:, 5] = 100, 0, 0
    _, mask = prune_kernel(kernel, inputs, 0.25)
    assert np.flatnonzero(~mask.any(axis=1)).tolist() == [2, 5]
    new, mask = prune_kernel(kernel, inputs, 0.125)
    np.testing.assert_array_equal(np.where(mask, new, 0)[[2, 5]], np.where(mask, kernel, 0)[[2, 5]])


@both_kernels
def test_where_inputs_are_always_zero_the_largest_weights_stay(prune_kernel):
    kernel = jnp.array([[0.1], [0.2], [5.0], [9.0]], jnp.float32)
    new, mask = prune_kernel(kernel, jnp.zeros((7, 4)), 0.5)  # an expert without tokens
    assert new[:, 0].tolist() == [0, 0, 5, 9]
    assert mask[:, 0].tolist() == [False, False, True, True]
    new, _ = prune_kernel(kernel, jnp.zeros((7, 4)), nm=(1, 2))
    np.testing.assert_array_equal(new[:, 0], np.array([0, 0.2, 0, 9], np.float32))
    inputs = np.eye(4, dtype=np.float32)[:1]  # only input 0 is ever used
    new, _ = prune_kernel(kernel, inputs, 0.5)
    np.testing.assert_array_equal(new[:, 0], np.array([0.1, 0, 0, 9], np.float32))
    new, _ = prune_kernel(kernel, inputs, nm=(1, 4))
    np.testing.assert_array_equal(new[:, 0], np.array([0.1, 0, 0, 0], np.float32))


# Both.


@both_kernels
def test_nothing_of_the_size_of_the_kernel_is_stored_beside_it(prune_kernel, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    prune = lambda kernel, gram: prune_kernel(kernel, Moments(jnp.float32(9), gram), 0.5)
    compiled = jax.jit(prune).lower(shape(1024, 16_384), shape(1024, 1024)).compile()
    size = 1024 * 16_384 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 0.75 * size


@pytest.mark.parametrize("how", ({"sparsity": 0.5}, {"sparsity": 0.8}, {"nm": (2, 4)}), ids=str)
def test_sparsegpt_errs_less_than_wanda_and_wanda_less_than_magnitude(how):
    kernel, inputs = normal(64, 32), correlated(256, 64)
    same = np.ones((1, 64), np.float32)
    by_magnitude, _ = wanda_kernel(kernel, same, **how)
    news = [prune(kernel, inputs, **how)[0] for prune in KERNELS.values()]
    errors = [output_error(kernel, new, inputs) for new in (*news[::-1], by_magnitude)]
    assert errors == sorted(errors)
    if "sparsity" in how:
        mask = jaxprune.topk_mask(jnp.abs(kernel), kernel.size - np.sum(news[0] == 0))
        assert errors[1] < output_error(kernel, jnp.where(mask, kernel, 0), inputs)


@both_kernels
@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
@pytest.mark.parametrize("how", ({"sparsity": 0.0}, {"nm": (4, 4)}), ids=str)
def test_a_sparsity_of_zero_changes_no_bit(prune_kernel, how, dtype):
    kernel = on_device(normal(8, 3), dtype)
    new, mask = prune_kernel(kernel, correlated(16, 8), **how)
    assert mask.all()
    np.testing.assert_array_equal(bits(new), bits(kernel))


@both_kernels
@pytest.mark.parametrize("how", ({"sparsity": 0.5}, {"nm": (2, 4)}), ids=str)
def test_moments_of_batches_add_up_to_those_of_all(prune_kernel, how):
    kernel = normal(16, 4)
    x = np.random.default_rng(0).integers(-3, 4, (6, 5, 16)).astype(np.float32)  # exact sums
    whole = moments(x)
    parts = jax.tree.map(jnp.add, moments(x[:2]), moments(x[2:]))
    assert float(parts.count) == float(whole.count) == 30
    expected = prune_kernel(kernel, x, **how)
    for statistics in (whole, parts):
        for got, want in zip(prune_kernel(kernel, statistics, **how), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_wanda_needs_only_the_diagonal_of_the_gram():
    kernel, x = normal(16, 4), moments(correlated(32, 16))
    diagonal = Moments(x.count, jnp.diagonal(x.gram))
    for got, want in zip(*(wanda_kernel(kernel, m, 0.5) for m in (diagonal, x)), strict=True):
        np.testing.assert_array_equal(got, want)


@both_kernels
def test_bf16_is_worked_in_float32_and_rounded_once(prune_kernel):
    kernel = on_device(normal(16, 4), jnp.bfloat16)
    inputs = on_device(correlated(32, 16), jnp.bfloat16)
    new, mask = prune_kernel(kernel, inputs, 0.5)
    wide, wide_mask = prune_kernel(kernel.astype(jnp.float32), inputs.astype(jnp.float32), 0.5)
    np.testing.assert_array_equal(mask, wide_mask)
    np.testing.assert_array_equal(bits(new), bits(wide.astype(jnp.bfloat16)))
    assert_sparse(new, mask)


@both_kernels
def test_works_under_jit_and_under_strict_promotion(prune_kernel):
    kernel, inputs = normal(16, 4), correlated(32, 16)
    expected = prune_kernel(kernel, inputs, 0.5)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = jax.jit(lambda k, x: prune_kernel(k, x, 0.5))(kernel, inputs)
        prune_kernel(kernel, moments(inputs), nm=(2, 4))
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)  # fused differently


@both_kernels
@pytest.mark.parametrize("shape", ((0, 3), (4, 0)))
def test_an_empty_kernel_stays_unchanged(prune_kernel, shape):
    new, mask = prune_kernel(jnp.zeros(shape), jnp.ones((2, shape[0])), 0.5)
    assert new.shape == mask.shape == shape


# Linen.


class Cell(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
        return nn.relu(nn.Dense(4, name="step")(carry + x)), None


class LinenNet(nn.Module):
    """One layer of each kind: twice, scanned, under remat, under jit, in bfloat16."""

    @nn.compact
    def __call__(self, x, train=False):
        shared = nn.Dense(4, name="shared")
        x = nn.relu(shared(shared(x)))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        scan = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False})
        x, _ = scan(name="scan")(x, jnp.ones((3, 4), jnp.float32))
        x = nn.remat(nn.Dense)(4, name="remat")(x)
        x = nn.jit(nn.Dense)(4, name="jitted")(x)
        return nn.Dense(4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, name="head")(x)


@functools.cache
def linen_case():
    x = jnp.asarray(correlated(6, 4)).reshape(2, 3, 4)
    return LinenNet(), jax.jit(LinenNet().init)(jax.random.key(0), x), x


@functools.cache
class FromConstants(nn.Module):
    """A model without inputs."""

    @nn.compact
    def __call__(self):
        return nn.Dense(2)(inputs=jnp.ones((3, 4)))


def test_a_model_without_inputs_needs_no_batch():
    variables = {"params": {"Dense_0": {"kernel": ones(4, 2), "bias": ones(2)}}}
    assert linen_inputs(FromConstants(), variables)["Dense_0/kernel"].shape == (3, 4)


def collected_linen_inputs(train):
    return linen_inputs(*linen_case(), train=train, mutable=["batch_stats"])


def test_linen_inputs_are_what_every_dense_was_given():
    model, variables, x = linen_case()
    expected = model.apply(variables, x).reshape(-1, 4)  # called first, because its trace is cached
    inputs = collected_linen_inputs(False)
    n_rows = {"shared": 12, "scan/step": 18, "remat": 6, "jitted": 6, "head": 6}
    assert {path: len(v) for path, v in inputs.items()} == {
        f"{name}/kernel": n for name, n in n_rows.items()
    }
    first = np.asarray(x).reshape(-1, 4)
    np.testing.assert_array_equal(inputs["shared/kernel"][:6], first)
    shared = nn.Dense(4).apply({"params": variables["params"]["shared"]}, first)
    np.testing.assert_allclose(inputs["shared/kernel"][6:], shared, rtol=1e-5)  # op by op
    after = nn.Dense(4).apply({"params": variables["params"]["remat"]}, inputs["remat/kernel"])
    np.testing.assert_allclose(inputs["jitted/kernel"], after, rtol=1e-5, atol=1e-6)
    head = nn.Dense(4, dtype=jnp.bfloat16)
    outputs = head.apply({"params": variables["params"]["head"]}, inputs["head/kernel"])
    np.testing.assert_allclose(  # bfloat16, op by op
        outputs.astype(jnp.float32), expected.astype(jnp.float32), rtol=2e-2, atol=1e-2
    )


class Remat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.remat(nn.Sequential)([nn.Dense(256), nn.relu, nn.Dense(1)])(x)


def test_collection_waits_for_inputs_inside_remat():
    model, x = Remat(), jnp.ones((4096, 256))  # large enough to be computed in the background
    variables = model.init(jax.random.key(0), x[:1])
    shapes = [layer.shape for layer in linen_inputs(model, variables, x).values()]
    assert shapes == [(4096, 256)] * 2


def test_linen_inputs_pass_arguments_on_to_apply():
    evaluated, trained = collected_linen_inputs(False), collected_linen_inputs(True)
    np.testing.assert_array_equal(evaluated["shared/kernel"], trained["shared/kernel"])
    assert not np.array_equal(evaluated["head/kernel"], trained["head/kernel"])


@both_models
@pytest.mark.parametrize("how", ({"sparsity": 0.5}, {"nm": (2, 4)}), ids=str)
def test_a_linen_model_is_pruned_end_to_end(prune_model, how):
    model, variables, x = linen_case()
    params = variables["params"]
    new, masks = prune_model(params, collected_linen_inputs(False), **how)
    assert jax.tree.map(lambda p: (p.shape, p.dtype), new) == jax.tree.map(
        lambda p: (p.shape, p.dtype), params
    )
    for (path, mask), p, old in zip(
        jax.tree_util.tree_leaves_with_path(masks),
        jax.tree.leaves(new),
        jax.tree.leaves(params),
        strict=True,
    ):
        assert_sparse(p, mask)
        kernel = path_str(path).endswith("kernel")
        assert np.sum(~mask) == (mask.size // 2 if kernel else 0)
        assert kernel or np.array_equal(p, old)
    assert model.apply({**variables, "params": new}, x).shape == x.shape


def test_boxed_kernels_have_the_paths_of_plain_ones():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None))
    model, x = nn.Dense(4, kernel_init=init), correlated(6, 4)
    variables = model.init(jax.random.key(0), x)
    _, masks = wanda(variables["params"], linen_inputs(model, variables, x), 0.5)
    assert np.sum(~masks["kernel"].value) == 8


# NNX.


class NnxNet(nnx.Module):
    """A layer that runs twice, one that shares its kernel, one under remat, and one under jit."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.tied = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
        self.tied.kernel = self.first.kernel
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.remat = nnx.Linear(4, 4, rngs=rngs)
        self.jitted = nnx.Linear(4, 4, param_dtype=jnp.bfloat16, rngs=rngs)
        self.head = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.tied(self.first(self.first(x))))
        x = nnx.remat(lambda layer, x: layer(x))(self.remat, x)
        x = nnx.jit(lambda layer, x: layer(x))(self.jitted, x)
        return self.head(inputs=x)


@functools.cache
def nnx_case():
    model = NnxNet(nnx.Rngs(0))
    return model, jnp.asarray(correlated(6, 4)).reshape(2, 3, 4)


def test_nnx_inputs_are_what_every_linear_was_given_and_leave_the_model_alone():
    model, x = nnx_case()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    for _ in range(2):
        inputs = nnx_inputs(model, x)
        n_rows = {"first": 18, "remat": 6, "jitted": 6, "head": 6}
        assert {path: len(v) for path, v in inputs.items()} == {
            f"{name}/kernel": n for name, n in n_rows.items()
        }
    after = nnx.to_pure_dict(nnx.state(model))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert type(model.first) is nnx.Linear
    np.testing.assert_array_equal(inputs["first/kernel"][:6], x.reshape(-1, 4))
    after = model.remat(inputs["remat/kernel"])
    np.testing.assert_allclose(inputs["jitted/kernel"], after, rtol=1e-5, atol=1e-6)
    outputs = model.head(inputs["head/kernel"])
    expected = nnx.clone(model)(x).reshape(-1, 4)
    np.testing.assert_allclose(outputs, expected, rtol=2e-2, atol=2e-2)  # op by op, in bfloat16


class NnxForce(nnx.Module):
    """Minus the gradient of a network's output by its input, one input at a time."""

    def __init__(self, rngs):
        self.layers = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.relu)

    def __call__(self, x):
        return -jax.vmap(jax.grad(lambda row: self.layers(row).sum()))(x)


def test_inputs_are_collected_inside_vmap_and_grad():
    x = correlated(6, 4)
    ((path, inputs),) = nnx_inputs(NnxForce(nnx.Rngs(0)), x).items()
    assert path == "layers/layers/0/kernel"
    np.testing.assert_array_equal(inputs, x)


@both_models
def test_an_nnx_model_is_pruned_end_to_end(prune_model):
    model, x = nnx_case()
    model = nnx.clone(model)
    params, masks = prune_model(nnx.state(model, nnx.Param), nnx_inputs(model, x), 0.5)
    nnx.update(model, params)
    kept = nnx.to_pure_dict(masks)
    for name in ("first", "remat", "jitted", "head"):
        kernel, mask = getattr(model, name).kernel[...], kept[name]["kernel"]
        assert np.sum(~mask) == 8
        assert_sparse(kernel, mask)
    assert model.jitted.kernel[...].dtype == jnp.bfloat16
    assert kept["first"]["bias"].all()
    assert model(x).shape == x.shape


# Models, without a framework.


@both_models
def test_rules_choose_the_leaves_and_all_others_are_kept_whole(prune_model):
    params = {"a": {"kernel": normal(8, 4)}, "b": {"kernel": normal(8, 4)}, "n": 3}
    new, masks = prune_model(params, {"a/kernel": correlated(32, 8)}, 0.5, include="a/.*")
    assert np.sum(~masks["a"]["kernel"]) == 16
    assert masks["b"]["kernel"].all()
    assert new["b"]["kernel"] is params["b"]["kernel"]
    with pytest.raises(ValueError, match=says("exclude: 'c'", "a/kernel")):
        prune_model(params, {"a/kernel": correlated(32, 8)}, 0.5, exclude=("b/.*", "c"))


# What users get wrong.


TREE = {"fc": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}, "emb": jnp.ones((9, 3))}
X = {"fc/kernel": jnp.ones((5, 4))}
EXCLUDE = "exclude='fc/kernel'"
BAD = {
    "neither": (
        lambda: wanda_kernel(ones(4, 2), ones(5, 4)),
        ("sparsity=None", "nm=None", "0.5", "nm=(2, 4)"),
    ),
    "both": (
        lambda: sparsegpt(TREE, X, 0.5, nm=(2, 4)),
        ("sparsity=0.5", "nm=(2, 4)", "0.5"),
    ),
    "percent": (
        lambda: wanda(TREE, X, 50),
        ("sparsity", "50", "Did you mean 0.5?"),
    ),
    "nm_string": (
        lambda: wanda(TREE, X, nm="2:4"),
        ("nm", "'2:4'", "(2, 4)"),
    ),
    "nm_swapped": (
        lambda: wanda_kernel(ones(4, 2), ones(5, 4), nm=(4, 2)),
        ("nm", "(4, 2)", "Did you mean (2, 4)?"),
    ),
    "nm_zero": (
        lambda: wanda_kernel(ones(4, 2), ones(5, 4), nm=(0, 4)),
        ("nm", "(0, 4)", "1 <= n <= m"),
    ),
    "nm_does_not_divide": (
        lambda: wanda(TREE, X, include="fc/kernel", nm=(1, 3)),
        ("fc/kernel:", "nm=(1, 3)", "(4, 2)", "m that divides 4", EXCLUDE),
    ),
    "block_size_zero": (
        lambda: sparsegpt_kernel(ones(4, 2), ones(5, 4), 0.5, block_size=0),
        ("block_size", "0", "1"),
    ),
    "block_size_float": (
        lambda: sparsegpt_kernel(ones(4, 2), ones(5, 4), 0.5, block_size=128.0),
        ("block_size", "128.0", "int"),
    ),
    "block_size_splits_groups": (
        lambda: sparsegpt_kernel(ones(6, 2), ones(5, 6), nm=(1, 3)),
        ("block_size", "128", "nm=(1, 3)", "block_size=126"),
    ),
    "damping_zero": (
        lambda: sparsegpt(TREE, X, 0.5, damping=0.0),
        ("damping", "0", "0.01"),
    ),
    "damping_string": (
        lambda: sparsegpt(TREE, X, 0.5, damping="1%"),
        ("damping", "'1%'", "number"),
    ),
    "kernel_int": (
        lambda: wanda_kernel(jnp.ones((4, 2), jnp.int32), ones(5, 4), 0.5),
        ("kernel:", "int32", "floating point"),
    ),
    "kernel_3d": (
        lambda: sparsegpt({"fc": {"kernel": ones(3, 4, 2)}}, X, 0.5),
        ("fc/kernel:", "(3, 4, 2)", "roles={'fc/kernel': ('in', 'out', 'out')}", EXCLUDE),
    ),
    "kernel_transposed": (
        lambda: wanda_kernel(ones(2, 4), ones(5, 4), 0.5),
        ("inputs:", "(5, 4)", "2 inputs", "(in, out)"),
    ),
    "inputs_of_another_layer": (
        lambda: wanda(TREE, {"fc/kernel": ones(5, 3)}, 0.5, exclude="emb"),
        ("inputs['fc/kernel']:", "(5, 3)", "4 inputs", "(in, out)"),
    ),
    "no_rows": (
        lambda: wanda_kernel(ones(4, 2), ones(0, 4), 0.5),
        ("inputs", "(0, 4)", "(..., in)", "batch"),
    ),
    "moments_of_a_scalar": (
        lambda: moments(ones()),
        ("moments: `inputs`", "()", "(..., in)", "batch"),
    ),
    "complex_inputs": (
        lambda: moments(jnp.ones((5, 4), jnp.complex64)),
        ("moments: `inputs`", "complex64 of shape (5, 4)", "real"),
    ),
    "words_for_inputs": (
        lambda: wanda_kernel(ones(4, 2), "x", 0.5),
        ("inputs", "'x'", "(..., in)"),
    ),
    "moments_concatenated": (
        lambda: wanda_kernel(ones(4, 2), moments(ones(5, 4)) + moments(ones(5, 4)), 0.5),
        ("inputs", "tuple", "jaxprune.Moments", "jax.tree.map(jnp.add, a, b)"),
    ),
    "gram_of_another_layer": (
        lambda: wanda_kernel(ones(4, 2), moments(ones(5, 3)), 0.5),
        ("inputs:", "(3, 3)", "4 inputs", "(4, 4)", "(4,)", "jaxprune.moments"),
    ),
    "diagonal_for_sparsegpt": (
        lambda: sparsegpt_kernel(ones(4, 2), Moments(5, ones(4)), 0.5),
        ("inputs:", "(4,)", "4 inputs", "(4, 4)", "jaxprune.moments"),
    ),
    "nan_inputs": (
        lambda: sparsegpt_kernel(ones(4, 2), ones(5, 4).at[0, 0].set(jnp.inf), 0.5),
        ("inputs:", "NaN", "inf", "float32", "scale the inputs down"),
    ),
    "an_output_loses_all": (
        lambda: wanda({"fc": {"kernel": ones(4, 9)}}, X, 0.9),
        ("fc/kernel:", "4 inputs", "0.9", EXCLUDE),
    ),
    "a_kernel_loses_all": (
        lambda: sparsegpt_kernel(ones(4, 1), ones(5, 4), 0.9),
        ("kernel:", "4 weights", "0.9"),
    ),
    "one_array_for_inputs": (
        lambda: wanda(TREE, ones(5, 4), 0.5),
        ("wanda: `inputs`", "float32 of shape (5, 4)", "jaxprune.linen_inputs", "nnx_inputs"),
    ),
    "variables_for_params": (
        lambda: wanda({"params": TREE}, X, 0.5),
        (
            "wanda:",
            "fc/kernel",
            "params/emb, params/fc/bias, params/fc/kernel",
            "variables['params']",
        ),
    ),
    "a_leaf_without_inputs": (
        lambda: sparsegpt(TREE, X, 0.5),
        ("sparsegpt:", "emb", "exclude='emb'"),
    ),
    "no_dense_ran": (
        lambda: linen_inputs(nn.Embed(3, 2), {"params": {"embedding": ones(3, 2)}}, jnp.array([1])),
        ("linen_inputs:", "no layer"),
    ),
    "linen_under_jit": (
        lambda: jax.jit(lambda x: linen_inputs(nn.Dense(2), {}, x))(ones(5, 4)),
        ("linen_inputs", "traced", "outside jit"),
    ),
    "nnx_under_jit": (
        lambda: jax.jit(lambda x: nnx_inputs(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), x))(ones(5, 4)),
        ("nnx_inputs", "traced", "outside jit"),
    ),
}
TYPE_ERRORS = {"nm_string", "block_size_float", "damping_string", "kernel_int", "complex_inputs"}
TYPE_ERRORS |= {"words_for_inputs", "moments_concatenated", "one_array_for_inputs"}
TYPE_ERRORS |= {"linen_under_jit", "nnx_under_jit"}


NEEDS_TRACES = pytest.mark.skip_in("disable_jit", reason="nothing is traced")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=NEEDS_TRACES if "under_jit" in n else ()) for n in BAD]
)
def test_errors_name_the_argument_and_what_to_type_instead(name):
    call, parts = BAD[name]
    with pytest.raises((TypeError, ValueError), match=says(*parts)) as caught:
        call()
    assert issubclass(caught.type, TypeError if name in TYPE_ERRORS else ValueError)


def test_half_a_weight_more_is_dropped_at_exact_halves():
    params, inputs = {"w": jnp.arange(1.0, 6.0)[:, None]}, {"w": jnp.eye(5)}
    for method in (jaxprune.wanda, jaxprune.sparsegpt):
        _, masks = method(params, inputs, 0.5)
        assert masks["w"][:, 0].tolist() == [False, False, False, True, True]
