"""Wanda and SparseGPT on one kernel and the Gram matrix of its inputs, compiled."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.float_bits import order_key
from jaxprune._state.masks import keep
from jaxprune._topk.topk import topk_mask

_HIGHEST = lax.Precision.HIGHEST


@functools.partial(jax.jit, static_argnames="nm")
def wanda_mask(
    kernel: jax.Array, squares: jax.Array, n_keep: jax.Array, nm: tuple[int, int] | None
) -> jax.Array:
    """Keeps the largest |w| times norm of the input, `n_keep` per output or n of every m."""
    scores = jnp.abs(kernel.astype(jnp.float32)) * jnp.sqrt(squares)[:, None]
    if nm is not None:
        return _keep_of_groups(scores, *nm)
    return jax.vmap(lambda s: topk_mask(s, n_keep), in_axes=1, out_axes=1)(scores)


def _keep_of_groups(scores: jax.Array, n: int, m: int) -> jax.Array:
    """True for the n largest of every m neighbours along axis 0; the first of equal ones."""
    keys = order_key(scores).reshape(-1, m, scores.shape[1])
    this, other = keys[:, :, None], keys[:, None]
    first = jnp.tri(m, k=-1, dtype=bool)[None, :, :, None]  # is the other one before this one?
    n_before = jnp.sum((other > this) | ((other == this) & first), axis=2)
    return (n_before < n).reshape(scores.shape)


def _inverse_factor(gram: jax.Array, damping: jax.Array) -> jax.Array:
    """The upper triangular U with U^T U = H^-1, where H is the damped Gram matrix, scaled.

    Inverting H and factoring the inverse would square its condition number, up to 1e6 here, which
    float32 has no room for. With H's rows and columns in reverse, H = L L^T gives H = R R^T with an
    upper triangular R, and U is the inverse of that.
    """
    diagonal = jnp.diagonal(gram)
    n_live = jnp.sum(diagonal > 0).astype(jnp.float32)
    scale = jnp.where(n_live > 0, jnp.sum(diagonal) / jnp.maximum(n_live, 1), 1)
    hessian = gram / scale + jnp.diag(jnp.where(diagonal > 0, damping, 1))
    lower = jnp.linalg.cholesky(hessian[::-1, ::-1])
    eye = jnp.eye(len(gram), dtype=jnp.float32)
    return jax.scipy.linalg.solve_triangular(lower, eye, lower=True)[::-1, ::-1]


@functools.partial(jax.jit, static_argnames=("nm", "block_size"))
def solve(
    kernel: jax.Array,
    gram: jax.Array,
    n_keep: jax.Array,
    damping: jax.Array,
    nm: tuple[int, int] | None,
    block_size: int,
) -> tuple[jax.Array, jax.Array]:
    """SparseGPT with a budget per block; the last block is filled up with inputs of weight 0."""
    n_in = len(kernel)
    n_rows = len(n_keep) * block_size
    more = (0, n_rows - n_in)
    upper = jnp.pad(_inverse_factor(gram, damping), (more, more))
    upper = upper + jnp.diag((jnp.arange(n_rows) >= n_in).astype(jnp.float32))
    # An input that is always 0 can lose any weight. Those filled up come last among equals.
    live = jnp.pad((jnp.diagonal(gram) > 0).astype(jnp.float32), more)
    worth = live / jnp.diagonal(upper)

    def block(b: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w, masks = carry
        start = b * block_size
        rows = lax.dynamic_slice_in_dim(upper, start, block_size)
        w_block, mask, errors = _prune_block(
            lax.dynamic_slice_in_dim(w, start, block_size),
            lax.dynamic_slice_in_dim(rows, start, block_size, axis=1),
            lax.dynamic_slice_in_dim(worth, start, block_size),
            n_keep[b],
            nm,
        )
        later = jnp.where(jnp.arange(n_rows)[None] >= start + block_size, rows, 0)
        w = w - jnp.matmul(later.T, errors, precision=_HIGHEST)
        w = lax.dynamic_update_slice_in_dim(w, w_block, start, 0)
        return w, lax.dynamic_update_slice_in_dim(masks, mask, start, 0)

    w = jnp.pad(kernel.astype(jnp.float32), (more, (0, 0)))
    w, mask = lax.fori_loop(0, len(n_keep), block, (w, jnp.zeros(w.shape, bool)))
    mask = mask[:n_in]
    return keep(w[:n_in].astype(kernel.dtype), mask), mask


def _prune_block(
    w: jax.Array, upper: jax.Array, worth: jax.Array, n_keep: jax.Array, nm: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The weights of a block, their mask, and the errors to be made up for after the block."""
    size = len(w) if nm is None else nm[1]  # how many inputs a choice is among

    def group(g: jax.Array, carry: Any) -> Any:
        w, mask, errors = carry
        start = g * size
        scores = jnp.abs(lax.dynamic_slice_in_dim(w, start, size))
        scores = scores * lax.dynamic_slice_in_dim(worth, start, size)[:, None]
        kept = topk_mask(scores, n_keep) if nm is None else _keep_of_groups(scores, *nm)
        mask = lax.dynamic_update_slice_in_dim(mask, kept, start, 0)
        return lax.fori_loop(start, start + size, column, (w, mask, errors))

    def column(i: jax.Array, carry: Any) -> Any:
        w, mask, errors = carry
        error = jnp.where(mask[i], 0, w[i]) / upper[i, i]
        return w - upper[i][:, None] * error[None], mask, errors.at[i].set(error)

    carry = w, jnp.zeros(w.shape, bool), jnp.zeros_like(w)
    return lax.fori_loop(0, len(w) // size, group, carry)
