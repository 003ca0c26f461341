"""Methods that need only public names of jaxprune, so that earlier commits can run them, too.

Each returns masks; `read` only sums the magnitudes of weights: the time of one read of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune

READ = "read"
# From scores that are given, or that `topk_mask` is told how to compute.
GIVEN, STORED, FUSED = "topk_mask(scores)", "topk_mask(abs(w))", "topk_mask(w, score=jnp.abs)"
PARTITION = "np.partition(scores)"

Method = Callable[[], Any]  # no arguments: operands are converted before, outside the timing


@jax.jit
def read(w: jax.Array) -> jax.Array:
    """The sum of the magnitudes."""
    return jnp.sum(jnp.abs(w))


def transformer_shapes(quick: bool) -> list[tuple[int, int]]:
    """Shapes of the 300 matrices of a transformer of 1e8 parameters; 24 small ones if `quick`."""
    d, n_layers = (16, 2) if quick else (416, 48)
    layer = [(d, d)] * 4 + [(d, 4 * d), (4 * d, d)]
    return [(20 * d, d), (512, d), *layer * n_layers, *[(d, d)] * 10]


def structured_methods(n: int) -> dict[str, Method]:
    """Masks of about `n` weights at 90 % (N:M and Wanda at 50 %), of each structure and pool."""
    rng = np.random.default_rng(0)
    side = 16 * round(n**0.5 / 16)
    w = jnp.asarray(rng.standard_normal((side, side), np.float32))
    n_slices = 16
    slices = w.reshape(n_slices, side // n_slices, side)
    squares = [w[: side // 2], w[side // 2 :]]
    gram = jnp.asarray(np.diag(rng.random(side).astype(np.float32) + 1))
    moments = jaxprune.Moments(jnp.float32(side), gram)

    def pruned(sparsity: float, params: Any, **options: Any) -> Method:
        def masks(params: Any) -> Any:
            return jaxprune.prune_params(params, sparsity, **options)[1]

        return functools.partial(jax.jit(masks), params)

    return {
        READ: lambda: read(w),
        "unstructured": pruned(0.9, {"w": w}),
        "NM(2, 4)": pruned(0.5, {"w": w}, structure=jaxprune.NM(2, 4, axis=0)),
        "blocks": pruned(0.9, {"w": w}, structure=jaxprune.Block((1, 16))),
        "per_slice": pruned(0.9, {"w": slices}, distribution=jaxprune.per_slice(".*")),
        "global pool": pruned(
            0.9, dict(enumerate(squares)), distribution=jaxprune.global_pool, include=".*"
        ),
        "wanda": functools.partial(
            jax.jit(lambda w, moments: jaxprune.wanda_kernel(w, moments, 0.5)[1]), w, moments
        ),
    }
