"""The methods that `bench_select` compares: jaxprune, and the alternatives in JAX, NumPy and torch.

Each returns a mask of the `n_keep` largest magnitudes. `read` only sums the magnitudes: the time of
one read of the weights, in which the other times are expressed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxprune
from benchmarks.public_methods import FUSED, GIVEN, PARTITION, READ, STORED, Method, read
from jaxprune._topk.topk import select

COLD, WARM = "jaxprune", "jaxprune warm"
JAXPRUNE = (COLD, WARM)
SORTING = ("argsort", "sort", "top_k", "torch.topk")
SELECTING = ("np.partition", "torch.kthvalue")


@jax.jit
def _jaxprune(w: jax.Array, n_keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    (mask,), thresholds = select([w], n_keep, score=jaxprune.magnitude)
    return mask, thresholds


@jax.jit
def _jaxprune_warm(w: jax.Array, n_keep: jax.Array, start: jax.Array) -> jax.Array:
    return select([w], n_keep, score=jaxprune.magnitude, start=start)[0][0]


@functools.partial(jax.jit, static_argnums=1)
def _argsort(w: jax.Array, n_keep: int) -> jax.Array:
    order = jnp.argsort(-jnp.abs(w).reshape(-1), stable=True)
    return jnp.zeros(w.size, bool).at[order[:n_keep]].set(True).reshape(w.shape)


@functools.partial(jax.jit, static_argnums=1)
def _sort(w: jax.Array, n_keep: int) -> jax.Array:
    magnitude = jnp.abs(w)
    return magnitude >= jnp.sort(magnitude.reshape(-1))[w.size - n_keep]


@functools.partial(jax.jit, static_argnums=1)
def _top_k(w: jax.Array, n_keep: int) -> jax.Array:
    _, indices = lax.top_k(jnp.abs(w).reshape(-1), n_keep)
    return jnp.zeros(w.size, bool).at[indices].set(True).reshape(w.shape)


def _partition(w: jax.Array, n_keep: int) -> jax.Array:
    magnitude = np.abs(np.asarray(w))
    threshold = np.partition(magnitude.reshape(-1), w.size - n_keep)[w.size - n_keep]
    return jnp.asarray(magnitude >= threshold)


def moved(w: jax.Array, seed: int = 1) -> jax.Array:
    """Weights after some training: each differs by about 1% of the mean magnitude."""
    spread = jnp.asarray(0.01, w.dtype) * jnp.mean(jnp.abs(w)).astype(w.dtype)
    return w + spread * jax.random.normal(jax.random.key(seed), w.shape, w.dtype)


def methods(w: np.ndarray, n_keep: int, *, only_jaxprune: bool = False) -> dict[str, Method]:
    """The methods to compare, by name; their operands are already on the device."""
    x = jnp.asarray(w)
    k = jnp.asarray([n_keep], jnp.int32)
    # The warm start is the threshold of an earlier fire: 1% more kept, slightly other weights.
    more = jnp.asarray([min(n_keep + n_keep // 100, w.size)], jnp.int32)
    start = jax.block_until_ready(_jaxprune(moved(x), more)[1])
    always = {
        READ: lambda: read(x),
        COLD: lambda: _jaxprune(x, k)[0],
        WARM: lambda: _jaxprune_warm(x, k, start),
    }
    if only_jaxprune:
        return always
    return always | {
        "argsort": lambda: _argsort(x, n_keep),
        "sort": lambda: _sort(x, n_keep),
        "top_k": lambda: _top_k(x, n_keep),
        "np.partition": lambda: _partition(x, n_keep),
        **torch_methods(w, n_keep),
    }


def methods_of_scores(w: np.ndarray, n_keep: int) -> dict[str, Method]:
    """The forms of `topk_mask`, and `np.partition` from given scores to the mask."""
    x, scores = jnp.asarray(w), np.abs(w)
    given, k = jnp.asarray(scores), jnp.asarray(n_keep, jnp.int32)
    calls = {
        GIVEN: (jax.jit(jaxprune.topk_mask), given),
        FUSED: (jax.jit(functools.partial(jaxprune.topk_mask, score=jnp.abs)), x),
        # After FUSED: it frees as much memory as the weights take, and then the page faults of the
        # next mask take twice as long.
        STORED: (jax.jit(lambda w, k: jaxprune.topk_mask(jnp.abs(w), k)), x),
    }
    place = w.size - n_keep
    by_name: dict[str, Method] = {
        name: functools.partial(call, operand, k) for name, (call, operand) in calls.items()
    }
    by_name[READ] = lambda: read(x)
    by_name[PARTITION] = lambda: (
        scores >= np.partition(scores.reshape(-1), place)[place]  # from the largest ones on
    )
    return by_name


def torch_methods(w: np.ndarray, n_keep: int) -> dict[str, Method]:
    """The methods of torch, by name; none if torch is missing or cannot use the device."""
    if why_no_torch():
        return {}
    import torch

    if w.dtype == jnp.bfloat16:
        x = torch.from_numpy(w.view(np.int16)).view(torch.bfloat16)
    else:
        x = torch.from_numpy(w)
    cuda = jax.default_backend() == "gpu"
    x = x.cuda() if cuda else x

    def kthvalue() -> Any:
        magnitude = x.abs()
        return magnitude >= magnitude.reshape(-1).kthvalue(x.numel() - n_keep + 1).values

    def topk() -> Any:
        indices = x.abs().reshape(-1).topk(n_keep, sorted=False).indices
        mask = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
        return mask.scatter_(0, indices, True).reshape(x.shape)

    def waited(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            out = call()
            if cuda:
                torch.cuda.synchronize()
            return out

        return run

    return {"torch.kthvalue": waited(kthvalue), "torch.topk": waited(topk)}


@functools.cache
def why_no_torch() -> str:
    """The reason why the rows of torch are missing; empty if they are not."""
    try:
        import torch
    except ImportError:
        return "torch is not installed, so its rows are missing: pip install 'jaxprune[bench]'"
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "torch was built without CUDA, so its rows are missing on this GPU"
    if jax.default_backend() not in ("cpu", "gpu"):
        return f"torch does not run on {jax.default_backend()}, so its rows are missing"
    return ""
