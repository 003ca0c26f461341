"""What is timed on a GPU: masks, training steps, many leaves, and products with packed blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from benchmarks.bench_select import many_leaves
from benchmarks.bench_sharding import methods as sorting_methods
from benchmarks.bench_step import compare
from benchmarks.common import Case, Row, compiled, interleaved
from benchmarks.tasks import transformer, transformer_of
from benchmarks.topk_methods import COLD, JAXPRUNE, methods, why_no_torch

_KEEP = 0.2
SORTS = ("jnp.sort", "lax.top_k", "torch.topk", "torch.kthvalue")
_ROUNDS = 5


# Masks


def masks(n: int, dtype: str) -> list[Row]:
    """One read, masks cold and with a warm start, and sorts; one row per method."""
    shape = (n // 1000, 1000)
    w = jax.jit(lambda: jax.random.normal(jax.random.key(0), shape, dtype))()
    n_keep = round(_KEEP * n)
    program = compiled(jax.jit(partial(_mask, n_keep=n_keep)), w)
    answer = "exact" if is_exact(program.executable(w), w, n_keep) else "wrong"
    calls, failures = _that_run(methods(w, n_keep, only_jaxprune=True) | _sorts(w, n_keep))
    times = interleaved(calls, rounds=_ROUNDS, slow=5.0)
    about = {"case": "mask", "n": n, "dtype": dtype}
    rows = [about | {"method": name, "failed": reason} for name, reason in failures.items()]
    for name, timing in times.items():
        row = about | {"method": name, "gigabytes": w.nbytes / 1e9} | timing._asdict()
        row["x_jaxprune"] = timing.median_ms / times[COLD].median_ms
        if name in JAXPRUNE:
            row |= {"answer": answer, "compile_s": program.trace_s + program.compile_s}
        rows.append(row)
    return rows


def _mask(w: jax.Array, n_keep: int) -> jax.Array:
    return jaxprune.topk_mask(w, n_keep, score=jnp.abs)


@jax.jit
def _bounds(mask: jax.Array, w: jax.Array) -> Any:
    """The least kept key and its last place; the largest dropped key and its first place."""
    bits = jnp.dtype(f"uint{8 * w.dtype.itemsize}")
    key = jax.lax.bitcast_convert_type(jnp.abs(w), bits).astype(jnp.uint32)
    place = jnp.arange(w.size, dtype=jnp.uint32).reshape(w.shape)
    least = jnp.min(jnp.where(mask, key, jnp.uint32(2**32 - 1)))
    most = jnp.max(jnp.where(mask, jnp.uint32(0), key))
    last = jnp.max(jnp.where(mask & (key == least), place, jnp.uint32(0)))
    first = jnp.min(jnp.where(~mask & (key == most), place, jnp.uint32(2**32 - 1)))
    return jnp.sum(mask), least, last, most, first


def is_exact(mask: jax.Array, w: jax.Array, n_keep: int) -> bool:
    """Whether a mask keeps exactly the `n_keep` largest, the lower index first among ties."""
    count, least, last, most, first = map(int, _bounds(mask, w))
    return count == n_keep and (least > most or (least == most and last < first))


def _sorts(w: jax.Array, n_keep: int) -> dict[str, Callable[[], Any]]:
    by_name = sorting_methods(n_keep)
    sort, top_k = jax.jit(by_name["sort"]), jax.jit(by_name["top_k"])
    return {"jnp.sort": lambda: sort(w), "lax.top_k": lambda: top_k(w)} | _of_torch(w, n_keep)


def _of_torch(w: jax.Array, n_keep: int) -> dict[str, Callable[[], Any]]:
    if why_no_torch():
        return {}
    import torch

    x = torch.from_dlpack(w)

    def waited(values: Callable[[Any], Any]) -> Any:
        threshold = values(x.abs().reshape(-1))
        mask = x.abs() >= threshold
        if x.is_cuda:
            torch.cuda.synchronize()
        return mask

    return {
        "torch.topk": lambda: waited(lambda flat: flat.topk(n_keep, sorted=False).values.min()),
        "torch.kthvalue": lambda: waited(lambda flat: flat.kthvalue(w.size - n_keep + 1).values),
    }


def _that_run(calls: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The calls that run once, and the reasons of the others, such as too little memory."""
    failures = {}
    for name, call in calls.items():
        try:
            jax.block_until_ready(call())
        except Exception as error:  # torch raises errors of its own
            failures[name] = f"{type(error).__name__}: {error}"[:200]
    return {name: call for name, call in calls.items() if name not in failures}, failures


# Steps, leaves and products


def steps(small: bool, dtype: str) -> list[Row]:
    """Quiet and firing steps of a transformer of 1e8 weights: adamw alone, chain, inner, packed."""
    if small:
        return compare("transformer", transformer(True, jnp.dtype(dtype)), dtype)
    task = transformer_of(
        d=1536, n_heads=16, n_blocks=3, n_vocab=8192, n_batch=16, n_seq=512, dtype=jnp.dtype(dtype)
    )
    return compare("transformer", task, dtype)


def products(shape: tuple[int, int], dtype: str) -> list[Row]:
    """`packed_matmul` with a tenth of the blocks against the dense product; a row per batch."""
    n_in, n_out = shape
    rng = np.random.default_rng(0)
    kept = np.zeros((n_in, n_out // 16), bool)
    for column in kept.T:
        column[rng.permutation(n_in)[: n_in // 10]] = True
    w = np.where(np.repeat(kept, 16, 1), rng.standard_normal(shape, np.float32), 0).astype(dtype)
    rows = []
    for batch in (1, 4, 16, 64, 256):
        x = jax.random.normal(jax.random.key(1), (batch, n_in), dtype)
        packed, dense = jaxprune.pack_matrix(w, batch=batch), jnp.asarray(w)
        multiply = jax.jit(jaxprune.packed_matmul)
        program = compiled(multiply, packed, x)
        times = interleaved(
            {
                "packed": partial(program.executable, packed, x),
                "dense": partial(jax.jit(jnp.matmul), x, dense),
            },
            rounds=_ROUNDS,
        )
        difference = jnp.abs(multiply(packed, x) - x @ dense).max() / jnp.abs(x @ dense).max()
        row = {"case": "product", "n": math.prod(shape), "dtype": dtype, "batch": batch}
        row |= {"method": "packed_matmul", "difference": float(difference)}
        row |= {"x_dense": times["packed"].median_ms / times["dense"].median_ms}
        row |= {"compile_s": program.trace_s + program.compile_s}
        rows.append(row | times["packed"]._asdict())
    return rows


def cases(small: bool) -> list[Case]:
    """The most important cases first, in case that the time runs out."""
    sizes = (10**4,) if small else (10**8, 10**9, 10**7, 10**6)
    dtypes = ("float32",) if small else ("float32", "bfloat16")
    all_masks = [
        Case(f"mask {n:.0e} {dtype}", partial(masks, n, dtype)) for n in sizes for dtype in dtypes
    ]
    kernel = (64, 256) if small else (4096, 11_008)
    return [
        *all_masks[:2],
        Case("step float32", partial(steps, small, "float32")),
        *all_masks[2:],
        *(Case(f"product {dtype}", partial(products, kernel, dtype)) for dtype in dtypes),
        Case("leaves", partial(many_leaves, small)),
        *(Case(f"step {dtype}", partial(steps, small, dtype)) for dtype in dtypes[1:]),
    ]
