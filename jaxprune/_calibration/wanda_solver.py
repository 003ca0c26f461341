"""The compiled part of Wanda, and the choice of weights that it shares with SparseGPT."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune._base.float_bits import is_nonzero, order_key
from jaxprune._base.layouts import row_by_row
from jaxprune._base.sharding import on_cpu, on_one_device
from jaxprune._calibration.kernel_view import KernelView
from jaxprune._state.masks import full_mask, keep
from jaxprune._topk.topk import topk_mask

# How many entries the columns have that are decided side by side, whose scores are stored. On a CPU
# those of fewer stay in the cache while they are transposed.
_MAX_ENTRIES = 2**22
_IN_CACHE = 2**19


@functools.partial(jax.jit, static_argnames=("view", "nm"))
def prune_by_wanda(
    kernel: jax.Array,
    squares: jax.Array,
    n_keep: jax.Array,
    view: KernelView,
    nm: tuple[int, int] | None,
) -> tuple[jax.Array, jax.Array]:
    """Wanda: keeps the largest |w| times the norm of the input, per output.

    Args:
      kernel: of any shape.
      squares: float32[matrices, in], the sum of squares of each input.
      n_keep: int32[matrices], how many weights of each output are kept; not used with `nm`.
      view: how the kernel forms matrices (in, out).
      nm: (n, m) to keep n of every m neighbouring inputs instead.

    Returns:
      The kernel with +0.0 at every dropped weight, and its mask.
    """
    matrices = view.matrices(kernel)
    decide = jax.vmap(functools.partial(_mask, nm=nm))
    most = min(_MAX_ENTRIES, _IN_CACHE) if on_cpu([kernel]) else _MAX_ENTRIES
    n_columns = max(most // math.prod(matrices.shape[:2]), 1)
    # Across devices, the columns may be sharded.
    if nm is not None or matrices.shape[2] <= n_columns or not on_one_device(kernel):
        mask = decide(matrices, squares, n_keep)
    else:
        decide_columns = lambda columns: decide(columns, squares, n_keep)
        mask = _in_parts(decide_columns, matrices, n_columns)
    mask = view.leaf(mask)
    return keep(kernel, mask), mask


def _in_parts(
    decide: Callable[[jax.Array], jax.Array], matrices: jax.Array, n_columns: int
) -> jax.Array:
    """The mask of matrices, decided a few columns at a time.

    A GPU transposes only these columns and their mask, not all of the kernel and its mask.
    """

    def part(i: jax.Array, mask: jax.Array) -> jax.Array:
        # Slices are moved to lie inside: the last part may decide some columns again.
        start = i * n_columns
        columns = row_by_row(lax.dynamic_slice_in_dim(matrices, start, n_columns, axis=2))
        return lax.dynamic_update_slice_in_dim(mask, row_by_row(decide(columns)), start, axis=2)

    n_parts = -(-matrices.shape[2] // n_columns)
    return lax.fori_loop(0, n_parts, part, full_mask(matrices, bool))


def _mask(
    kernel: jax.Array, squares: jax.Array, n_keep: jax.Array, nm: tuple[int, int] | None
) -> jax.Array:
    """The mask of one kernel (in, out)."""
    magnitudes = jnp.abs(kernel.astype(jnp.float32))
    scores = magnitudes * jnp.sqrt(squares)[:, None]
    if nm is not None:
        return keep_n_of_m(scores, magnitudes, *nm)
    keep_column = functools.partial(keep_largest, n_keep=n_keep)
    return jax.vmap(keep_column, in_axes=1, out_axes=1)(scores, magnitudes)


def keep_largest(scores: jax.Array, magnitudes: jax.Array, n_keep: jax.Array) -> jax.Array:
    """True for the largest scores; among scores of 0, for the largest magnitudes.

    A score is 0 if its input is always 0: then the calibration data tell nothing about the weight.
    Among other equal scores, the lower index is kept.
    """
    positive = is_nonzero(scores)
    keeps_all_positive = n_keep > jnp.sum(positive, dtype=jnp.int32)
    ranked = jnp.where(positive, jnp.float32(jnp.inf), magnitudes)
    return topk_mask(jnp.where(keeps_all_positive, ranked, scores), n_keep)


def keep_n_of_m(scores: jax.Array, magnitudes: jax.Array, n: int, m: int) -> jax.Array:
    """`keep_largest` of every m neighbours along axis 0: n of them are kept."""
    keys = order_key(scores).reshape(-1, m, scores.shape[1])
    ties = jnp.where(is_nonzero(scores), jnp.float32(0), magnitudes)
    ties = order_key(ties).reshape(keys.shape)
    own, others = keys[:, :, None], keys[:, None]
    own_tie, other_ties = ties[:, :, None], ties[:, None]
    is_earlier = jnp.tri(m, k=-1, dtype=bool)[None, :, :, None]  # others that come before own
    wins_tie = (other_ties > own_tie) | ((other_ties == own_tie) & is_earlier)
    rank = jnp.sum((others > own) | ((others == own) & wins_tie), axis=2)
    return (rank < n).reshape(scores.shape)
