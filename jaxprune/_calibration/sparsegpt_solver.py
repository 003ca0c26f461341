"""The compiled part of SparseGPT."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._calibration.kernel_view import KernelView
from jaxprune._calibration.wanda_solver import keep_largest, keep_n_of_m
from jaxprune._state.masks import keep

_HIGHEST = lax.Precision.HIGHEST
_PANEL = 16  # rows that are pruned one by one before their errors go into one matrix product
_MAX_ENTRIES = 2**22  # of the kernels and Gram matrices that are solved side by side
_ROWS_AT_ONCE = 256  # that compensate for the errors of earlier rows, if not those of a whole block


def rows_per_block(block_size: int, n_in: int, nm: tuple[int, int] | None) -> int:
    """The number of rows of a block: `block_size`, or less if there are fewer inputs.

    A single block is filled up to whole panels, with inputs that have zero weights.
    """
    panel = math.lcm(_PANEL, nm[1] if nm else 1)
    return min(block_size, -(-n_in // panel) * panel)


@functools.partial(jax.jit, static_argnames=("view", "nm", "block_size"))
def prune_by_sparsegpt(
    kernel: jax.Array,
    gram: jax.Array,
    n_keep: jax.Array,
    damping: jax.Array,
    view: KernelView,
    nm: tuple[int, int] | None,
    block_size: int,
) -> tuple[jax.Array, jax.Array]:
    """SparseGPT: the new kernel and its mask.

    Args:
      kernel: of any shape.
      gram: float32[matrices, in, in], X^T X of the inputs.
      n_keep: int32[matrices, blocks], how many weights each block keeps; not used with `nm`.
      damping: added to the diagonal of the scaled Gram matrix.
      view: how the kernel forms matrices (in, out).
      nm: (n, m) to keep n of every m neighbouring inputs.
      block_size: inputs per block. The last block is padded with inputs that have zero weights.
    """
    w = view.matrices(kernel).astype(jnp.float32)
    solve = functools.partial(_solve, damping=damping, nm=nm, block_size=block_size)
    if len(w) == 1:
        w, mask = (x[None] for x in solve(w[0], gram[0], n_keep[0]))
    else:
        n_at_once = min(max(_MAX_ENTRIES // (gram[0].size + w[0].size), 1), len(w))
        batch_size = None if n_at_once == 1 else n_at_once
        w, mask = lax.map(lambda x: solve(*x), (w, gram, n_keep), batch_size=batch_size)
    return view.leaf(w).astype(kernel.dtype), view.leaf(mask)


def _inverse_factor(gram: jax.Array, damping: jax.Array) -> jax.Array:
    """The upper triangular U with U^T U = H^-1, where H is the damped Gram matrix, scaled.

    As in the authors' code, H = 2 X^T X with 1 on the diagonal for inputs that are always 0, and
    the mean of that diagonal scales the damping.

    Inverting H and then factoring the inverse would square the condition number of H, which is up
    to 1e6 here: too much for float32. Instead, reverse the rows and columns of H. The Cholesky
    factor of that, reversed again, is an upper triangular R with H = R R^T, and U is the inverse
    of R.
    """
    diagonal = jnp.diagonal(gram)
    half = jnp.float32(0.5)
    scale = jnp.mean(jnp.where(diagonal > 0, diagonal, half))
    hessian = gram / scale + jnp.diag(jnp.where(diagonal > 0, 0, half / scale) + damping)
    lower = jnp.linalg.cholesky(hessian[::-1, ::-1])
    eye = jnp.eye(len(gram), dtype=jnp.float32)
    return jax.scipy.linalg.solve_triangular(lower, eye, lower=True)[::-1, ::-1]


def _solve(
    w: jax.Array,
    gram: jax.Array,
    n_keep: jax.Array,
    damping: jax.Array,
    nm: tuple[int, int] | None,
    block_size: int,
) -> tuple[jax.Array, jax.Array]:
    """The new weights of one kernel (in, out), 0 where they are dropped, and its mask."""
    n_in = len(w)
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
        # Not `keep` of all weights after the loop: it would store them once more.
        w = lax.dynamic_update_slice_in_dim(w, keep(w_block, mask), start, 0)
        w = _compensate(w, rows, errors, start + block_size)
        return w, lax.dynamic_update_slice_in_dim(masks, mask, start, 0)

    w = jnp.pad(w, (padding, (0, 0)))
    w, mask = lax.fori_loop(0, len(n_keep), block, (w, jnp.zeros(w.shape, bool)))
    return w[:n_in], mask[:n_in]


def _compensate(w: jax.Array, rows: jax.Array, errors: jax.Array, end: jax.Array) -> jax.Array:
    """Changes the weights from row `end` on, to make up for the errors of earlier rows.

    A few rows at a time: the changes of all of them are as large as the weights.

    Args:
      w: (in, out).
      rows: of the inverse factor, those of the earlier rows: (earlier, in).
      errors: (earlier, out).
      end: the first row that changes.
    """
    n_rows, size = len(w), max(len(errors), _ROWS_AT_ONCE)
    if n_rows <= size:
        return _compensate_all(w, rows, errors, end)

    def some(i: jax.Array, w: jax.Array) -> jax.Array:
        first = i * size
        start = jnp.minimum(first, n_rows - size)
        new = _compensate_all(
            lax.dynamic_slice_in_dim(w, start, size),
            lax.dynamic_slice_in_dim(rows, start, size, axis=1),
            errors,
            jnp.maximum(first, end) - start,
        )
        return lax.dynamic_update_slice_in_dim(w, new, start, 0)

    return lax.fori_loop(end // size, -(-n_rows // size), some, w)


def _compensate_all(w: jax.Array, rows: jax.Array, errors: jax.Array, end: jax.Array) -> jax.Array:
    """`_compensate` of all rows at once."""
    later = jnp.where(jnp.arange(len(w))[None] >= end, rows, 0)
    return w - jnp.matmul(later.T, errors, precision=_HIGHEST)


def _prune_block(
    w: jax.Array, upper: jax.Array, row_scale: jax.Array, n_keep: jax.Array, nm: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The new weights of a block, their mask, and the errors that later blocks compensate for.

    The rows are pruned in panels of a few: only the rows of the panel change after every row.
    """
    n_rows = len(w)
    size = math.gcd(n_rows, math.lcm(_PANEL, nm[1] if nm else 1))
    mask = jnp.zeros(w.shape, bool)
    if nm is None:
        magnitudes = jnp.abs(w)
        mask = keep_largest(magnitudes * row_scale[:, None], magnitudes, n_keep)

    def panel(p: jax.Array, carry: Any) -> Any:
        start = p * size
        rows = lax.dynamic_slice_in_dim(upper, start, size)
        square = lax.dynamic_slice_in_dim(rows, start, size, axis=1)
        scale = lax.dynamic_slice_in_dim(row_scale, start, size)
        w, mask, errors = (lax.dynamic_slice_in_dim(x, start, size) for x in carry)
        parts = _prune_panel(w, mask, errors, square, scale, nm)
        w, mask, errors = carry
        w = _compensate(w, rows, parts[2], start + size)
        pairs = zip((w, mask, errors), parts, strict=True)
        return tuple(lax.dynamic_update_slice_in_dim(x, part, start, 0) for x, part in pairs)

    return lax.fori_loop(0, n_rows // size, panel, (w, mask, jnp.zeros_like(w)))


def _prune_panel(
    w: jax.Array,
    mask: jax.Array,
    errors: jax.Array,
    upper: jax.Array,
    row_scale: jax.Array,
    nm: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prunes a few rows one by one; with `nm`, chooses the weights of each group before it."""
    n_rows = len(w) if nm is None else nm[1]  # how many inputs one choice of weights covers

    def choose(g: jax.Array, carry: Any) -> Any:
        w, mask, errors = carry
        start = g * n_rows
        if nm is not None:
            magnitudes = jnp.abs(lax.dynamic_slice_in_dim(w, start, n_rows))
            scale = lax.dynamic_slice_in_dim(row_scale, start, n_rows)
            kept = keep_n_of_m(magnitudes * scale[:, None], magnitudes, *nm)
            mask = lax.dynamic_update_slice_in_dim(mask, kept, start, 0)
        return lax.fori_loop(start, start + n_rows, drop_in_row, (w, mask, errors))

    def drop_in_row(i: jax.Array, carry: Any) -> Any:
        w, mask, errors = carry
        error = jnp.where(mask[i], 0, w[i]) / upper[i, i]
        return w - upper[i][:, None] * error[None], mask, errors.at[i].set(error)

    return lax.fori_loop(0, len(w) // n_rows, choose, (w, mask, errors))
