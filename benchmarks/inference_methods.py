"""The methods that `bench_inference` compares: ways to run a network in JAX, NumPy, SciPy, ...

A method converts the weights of a network first, then the inputs of each batch; only the call that
this gives is timed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from benchmarks.common import n_cores
from benchmarks.networks import Network, Product, Weights
from benchmarks.onnx_graphs import onnx_runs
from jaxprune._blocks.packed_matrix import pack_matrix, packed_matmul

Run = Callable[[], Any]
Prepare = Callable[[Any], Run]  # takes the inputs of a batch
Make = Callable[[Network, Weights], Prepare]


def jax_dense(product: Product, network: Network, weights: Any) -> Prepare:
    """Runs in JAX, jitted. Weights are arguments; XLA would fold constants."""
    jitted = jax.jit(partial(network.step, jnp, product))
    weights = jax.tree.map(jnp.asarray, weights)

    def with_inputs(inputs: Any) -> Run:
        inputs = jax.tree.map(jnp.asarray, inputs)
        return lambda: jitted(weights, inputs)

    return with_inputs


def dense(network: Network, weights: Weights) -> Prepare:
    """JAX with `x @ w`, the layout of Flax kernels."""
    return jax_dense(lambda w, x: x @ w, network, weights)


def dense_transposed(network: Network, weights: Weights) -> Prepare:
    """JAX with `w @ x` on transposed kernels."""
    return jax_dense(lambda w, x: (w @ x.T).T, network, _transposed(weights))


def packed(width: int, network: Network, weights: Weights) -> Prepare:
    """`packed_matmul` of the kept blocks, in the layout for the batch size."""

    @functools.cache
    def for_batch(batch: int) -> Prepare:
        block = (1, width)
        kernels = {name: pack_matrix(w, block=block, batch=batch) for name, w in weights.items()}
        return jax_dense(packed_matmul, network, kernels)

    return lambda inputs: for_batch(min(len(inputs[0]), 8))(inputs)


def bcoo(network: Network, weights: Weights) -> Prepare:
    """BCOO, the sparse matrices of JAX."""
    return jax_dense(lambda w, x: (w @ x.T).T, network, jaxprune.to_bcoo(_transposed(weights)))


def in_bfloat16(network: Network, weights: Weights) -> Prepare:
    """Dense in JAX, weights and inputs in bfloat16."""
    prepare = dense(network, jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), weights))
    return lambda inputs: prepare([jnp.asarray(x, jnp.bfloat16) for x in inputs])


def scipy_csr(network: Network, weights: Weights) -> Prepare:
    """CSR of the transposed kernels in SciPy, which uses one thread."""
    from scipy import sparse

    csr = {name: sparse.csr_array(w.T) for name, w in weights.items()}

    def product(w: Any, x: Any) -> Any:
        return (w @ x[0])[None] if len(x) == 1 else (w @ x.T).T

    return lambda inputs: lambda: network.step(np, product, csr, inputs)


def in_torch(sparse: bool, network: Network, weights: Weights) -> Prepare:
    """torch, dense or with CSR kernels."""
    import torch

    torch.set_num_threads(n_cores())
    kernels = {name: torch.from_numpy(w) for name, w in _transposed(weights).items()}
    if sparse:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that its CSR is in beta
            kernels = {name: w.to_sparse_csr() for name, w in kernels.items()}

    def product(w: Any, x: Any) -> Any:
        return (w @ x.T).T if sparse else torch.nn.functional.linear(x, w)

    def run(inputs: Any) -> Any:
        with torch.inference_mode():
            return network.step(_TorchNames(torch), product, kernels, inputs)

    return lambda inputs: partial(run, [torch.from_numpy(x) for x in inputs])


class _TorchNames:
    """The functions of torch that the networks use, under their NumPy names."""

    def __init__(self, torch: Any):
        self.tanh = torch.tanh
        self.concatenate = torch.cat
        self.split = lambda x, n, axis: torch.chunk(x, n, axis)
        self.maximum = lambda x, low: torch.clamp(x, min=low)


def in_numpy(network: Network, weights: Weights) -> Prepare:
    """NumPy, with one thread per core of the process."""
    return lambda inputs: lambda: network.step(np, _right_product, weights, inputs)


def in_onnx(network: Network, weights: Weights) -> Prepare:
    """onnxruntime, with one thread per core of the process."""
    return onnx_runs(network.step, weights, network.inputs(1), n_cores())


def _transposed(weights: Weights) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(w.T) for name, w in weights.items()}


def _right_product(w: Any, x: Any) -> Any:
    return x @ w
