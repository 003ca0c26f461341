"""The compiled parts of Wanda and SparseGPT: one kernel and the second moments of its inputs."""

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
    """Wanda: keeps the largest |w| times the norm of the input, per output.

    Args:
      kernel: (in, out).
      squares: float32[in], the sum of squares of each input.
      n_keep: int32 scalar, how many weights of each output are kept; not used with `nm`.
      nm: (n, m) to keep n of every m neighbouring inputs instead.
    """
    scores = jnp.abs(kernel.astype(jnp.float32)) * jnp.sqrt(squares)[:, None]
    if nm is not None:
        return _keep_n_of_m(scores, *nm)
    return jax.vmap(lambda s: topk_mask(s, n_keep), in_axes=1, out_axes=1)(scores)


def _keep_n_of_m(scores: jax.Array, n: int, m: int) -> jax.Array:
    """True for the n largest of every m neighbours along axis 0; the first wins among equals."""
    keys = order_key(scores).reshape(-1, m, scores.shape[1])
    own, others = keys[:, :, None], keys[:, None]
    is_earlier = jnp.tri(m, k=-1, dtype=bool)[None, :, :, None]  # others that come before own
    rank = jnp.sum((others > own) | ((others == own) & is_earlier), axis=2)
    return (rank < n).reshape(scores.shape)


def _inverse_factor(gram: jax.Array, damping: jax.Array) -> jax.Array:
    """The upper triangular U with U^T U = H^-1, where H is the damped Gram matrix, scaled.

    Inverting H and then factoring the inverse would square the condition number of H, which is up
    to 1e6 here: too much for float32. Instead, reverse the rows and columns of H. The Cholesky
    factor of that, reversed again, is an upper triangular R with H = R R^T, and U is the inverse
    of R.
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
    """SparseGPT: the new kernel and its mask.

    Args:
      kernel: (in, out).
      gram: float32[in, in], X^T X of the inputs.
      n_keep: int32[n_blocks], how many weights each block keeps; not used with `nm`.
      damping: added to the diagonal of the scaled Gram matrix.
      nm: (n, m) to keep n of every m neighbouring inputs.
      block_size: inputs per block. The last block is padded with inputs that have zero weights.
    """
    n_in = len(kernel)
    n_rows = len(n_keep) * block_size
    padding = (0, n_rows - n_in)
    upper = jnp.pad(_inverse_factor(gram, damping), (padding, padding))
    upper = upper + jnp.diag((jnp.arange(n_rows) >= n_in).astype(jnp.float32))
    # The score of a weight is |w| times the scale of its row. The scale is 0 for inputs that are
    # always 0 and for padding. Among equal scores the last is dropped first, which is the padding.
    is_live = jnp.pad((jnp.diagonal(gram) > 0).astype(jnp.float32), padding)
    row_scale = is_live / jnp.diagonal(upper)

    def block(b: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w, masks = carry
        start = b * block_size
        rows = lax.dynamic_slice_in_dim(upper, start, block_size)
        w_block, mask, errors = _prune_block(
            lax.dynamic_slice_in_dim(w, start, block_size),
            lax.dynamic_slice_in_dim(rows, start, block_size, axis=1),
            lax.dynamic_slice_in_dim(row_scale, start, block_size),
            n_keep[b],
            nm,
        )
        later = jnp.where(jnp.arange(n_rows)[None] >= start + block_size, rows, 0)
        w = w - jnp.matmul(later.T, errors, precision=_HIGHEST)
        w = lax.dynamic_update_slice_in_dim(w, w_block, start, 0)
        return w, lax.dynamic_update_slice_in_dim(masks, mask, start, 0)

    w = jnp.pad(kernel.astype(jnp.float32), (padding, (0, 0)))
    w, mask = lax.fori_loop(0, len(n_keep), block, (w, jnp.zeros(w.shape, bool)))
    mask = mask[:n_in]
    return keep(w[:n_in].astype(kernel.dtype), mask), mask


def _prune_block(
    w: jax.Array, upper: jax.Array, row_scale: jax.Array, n_keep: jax.Array, nm: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The new weights of a block, their mask, and the errors that later blocks compensate for."""
    n_rows = len(w) if nm is None else nm[1]  # how many inputs one choice of weights covers

    def choose(g: jax.Array, carry: Any) -> Any:
        w, mask, errors = carry
        start = g * n_rows
        scores = jnp.abs(lax.dynamic_slice_in_dim(w, start, n_rows))
        scores = scores * lax.dynamic_slice_in_dim(row_scale, start, n_rows)[:, None]
        kept = topk_mask(scores, n_keep) if nm is None else _keep_n_of_m(scores, *nm)
        mask = lax.dynamic_update_slice_in_dim(mask, kept, start, 0)
        return lax.fori_loop(start, start + n_rows, drop_in_row, (w, mask, errors))

    def drop_in_row(i: jax.Array, carry: Any) -> Any:
        w, mask, errors = carry
        error = jnp.where(mask[i], 0, w[i]) / upper[i, i]
        return w - upper[i][:, None] * error[None], mask, errors.at[i].set(error)

    carry = w, jnp.zeros(w.shape, bool), jnp.zeros_like(w)
    return lax.fori_loop(0, len(w) // n_rows, choose, carry)
