"""Products with matrices of which only blocks are kept: faster than dense, in plain JAX.

A kernel of shape (in, out) is cut into blocks of shape (a, r), and each column of blocks lists the
rows of blocks that it keeps. The product gathers those parts of `x` and contracts them with the
values: one gather and one batched product, which every backend has. What makes it fast is `r`:
blocks should be 8 or more wide along the outputs, the width of SIMD units, and the columns should
keep equally many (`Block((1, 16), balanced=True)`), because shorter ones are padded.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

# Measured on CPUs: with one row the outputs last are twice as fast where the values come from
# memory (and 1.2 times slower where they come from cache); with more, the summed axis last is.
_ROWS_FIRST_FROM = 2


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("indices", "values"),
    meta_fields=("shape", "block", "rows_first"),
)
@dataclasses.dataclass(frozen=True)
class PackedMatrix:
    """The kept blocks of a matrix; a pytree whose leaves are two arrays.

    Attributes:
      indices: int32[n_columns, n_kept], the rows of blocks that each column of blocks keeps. Those
        that keep less than others are filled up with the row past the end.
      values: [n_columns, n_kept * a, r], or with `rows_first` [n_columns, r, n_kept * a].
      shape: of the matrix, (in, out).
      block: (a, r).
      rows_first: the layout of `values`.

    Example:
      >>> packed = pack_matrix(jnp.eye(4), block=(1, 2))
      >>> packed.shape, packed.block, packed.values.shape
      ((4, 4), (1, 2), (2, 2, 2))
    """

    __module__ = "jaxprune"  # for pickles, wherever this file lives

    indices: Any
    values: Any
    shape: tuple[int, int]
    block: tuple[int, int]
    rows_first: bool = False

    @property
    def nbytes(self) -> int:
        """Memory of the two arrays."""
        return self.indices.nbytes + self.values.nbytes


def pack_matrix(
    w: ArrayLike, mask: ArrayLike | None = None, block: tuple[int, int] = (1, 16), *, batch: int = 1
) -> PackedMatrix:
    """Packs the kept blocks of a matrix; on the host, not under `jit`.

    Args:
      w: [in, out], a kernel as Flax has it.
      mask: nonzero where a weight is kept; by default where `w` is not zero. A block is kept if any
        of its weights is, and its dropped weights are zero.
      block: shape of a block. It need not divide that of `w`.
      batch: how many rows `x` will have. It decides the layout and never the result; the wrong one
        costs up to half the speed.

    Returns:
      A `PackedMatrix` for `packed_matmul`.

    Raises:
      TypeError: `w` is traced.
      ValueError: shapes that do not fit, or a block or batch that is none.

    Example:
      >>> w = jnp.zeros((6, 32)).at[2, :16].set(1.0).at[4, 16:].set(2.0)
      >>> packed = pack_matrix(w)
      >>> packed.indices.tolist(), packed.values.shape
      ([[2], [4]], (2, 1, 16))
    """
    _check_arguments(w, mask, block, batch)
    rows, width = block
    dense = np.asarray(w)
    kept = dense != 0 if mask is None else np.asarray(mask) != 0
    dense = _tiles(np.where(kept, dense, np.zeros((), dense.dtype)), block)
    alive: Any = _tiles(kept, block).any((1, 3)).T  # [columns, rows] of blocks
    counts = alive.sum(1)
    n_kept = int(counts.max(initial=0))
    n_rows = alive.shape[-1]
    # A stable sort puts the kept rows of blocks first, in order.
    indices = np.argsort(~alive, axis=1, kind="stable")[:, :n_kept]
    beyond = np.arange(n_kept) >= counts[:, None]
    by_column = np.moveaxis(dense, 2, 0)  # [columns, rows of blocks, a, r]
    values = np.take_along_axis(by_column, indices[:, :, None, None], 1)
    values[beyond] = 0
    values = values.reshape(len(indices), n_kept * rows, width)
    rows_first = batch >= _ROWS_FIRST_FROM
    return PackedMatrix(
        jnp.asarray(np.where(beyond, n_rows, indices), jnp.int32),
        jnp.asarray(values.swapaxes(1, 2) if rows_first else values),
        (len(kept), kept.shape[-1]),
        (rows, width),
        rows_first,
    )


def _tiles(x: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """A matrix as [rows, a, columns, r], filled up with zeros."""
    fill = [(0, -n % b) for n, b in zip(x.shape, block, strict=True)]
    x = np.pad(x, fill)
    return x.reshape(x.shape[0] // block[0], block[0], x.shape[1] // block[1], block[1])


def packed_matmul(packed: PackedMatrix, x: ArrayLike) -> jax.Array:
    """The product `x @ w` with a packed matrix; under `jit`, `vmap` and `grad`.

    Dropped blocks take no part: where `x` is NaN or infinite they do not make the result NaN, as
    zeros in a dense product do.

    Args:
      packed: from `pack_matrix`, of shape (in, out).
      x: [..., in].

    Returns:
      [..., out].

    Raises:
      TypeError: `packed` is no `PackedMatrix`.
      ValueError: the last axis of `x` is not `in` long.

    Example:
      >>> w = jnp.zeros((6, 32)).at[2, :16].set(1.0).at[4, 16:].set(2.0)
      >>> packed_matmul(pack_matrix(w), jnp.arange(6.0))[::8].tolist()
      [2.0, 2.0, 8.0, 8.0]
    """
    if not isinstance(packed, PackedMatrix):
        raise TypeError(
            f"packed_matmul: the first argument must be a PackedMatrix, got "
            f"{type(packed).__name__}. Pack the matrix first: pack_matrix(w, mask)."
        )
    n_in, n_out = packed.shape
    if not jnp.ndim(x) or jnp.shape(x)[-1:] != (n_in,):
        raise ValueError(
            f"packed_matmul: x has shape {jnp.shape(x)}, but its last axis must be as long as the "
            f"first of the matrix {packed.shape}."
        )
    x = jnp.asarray(x)
    lead = x.shape[:-1]
    n_columns, n_kept = packed.indices.shape
    if not n_kept or not x.size:
        dtype = jnp.result_type(x, packed.values)
        return jnp.zeros((*lead, n_out), dtype)
    gathered = _gathered(packed, x.reshape(-1, n_in))
    layout = "jrk" if packed.rows_first else "jkr"
    y = jnp.einsum(f"bjk,{layout}->bjr", gathered, packed.values)
    return y.reshape(-1, n_columns * packed.block[1])[:, :n_out].reshape(*lead, n_out)


def _gathered(packed: PackedMatrix, x: jax.Array) -> jax.Array:
    """What each column of blocks needs of `x`: [batch, columns, n_kept * a]."""
    rows = packed.block[0]
    # The row of zeros past the end is what fills columns up. XLA must not fuse what computes x into
    # the gather: an activation would be computed once for each column of blocks that reads it,
    # which doubled the time of a step of an LSTM. The newest XLA keeps to the barrier; that of JAX
    # 0.10 drops it on CPUs, but does not fuse a concatenation, unless it takes it for padding:
    # hence zeros that have the sign of x.
    zeros = jnp.zeros_like(x, shape=(x.shape[0], -x.shape[1] % rows + rows))
    if jnp.issubdtype(x.dtype, jnp.floating):
        zeros = jnp.copysign(zeros, x[:, :1])
    x = lax.optimization_barrier(jnp.concatenate([x, zeros], axis=1))
    parts = x.reshape(x.shape[0], -1, rows)
    at = packed.indices.astype(jnp.uint32)  # JAX looks for negative ones otherwise
    found = parts.at[:, at].get(mode="promise_in_bounds")
    return found.reshape(x.shape[0], packed.indices.shape[0], -1)


def unpack_matrix(packed: PackedMatrix) -> jax.Array:
    """The matrix that was packed, with +0.0 in its dropped blocks.

    Example:
      >>> w = jnp.eye(4)
      >>> bool(jnp.all(unpack_matrix(pack_matrix(w, block=(1, 2))) == w))
      True
    """
    rows, width = packed.block
    n_columns, n_kept = packed.indices.shape
    n_rows = -(-packed.shape[0] // rows)
    values = packed.values.swapaxes(1, 2) if packed.rows_first else packed.values
    values = values.reshape(n_columns, n_kept, rows, width)
    empty = jnp.zeros((n_columns, n_rows, rows, width), values.dtype)
    column = jnp.arange(n_columns)[:, None]
    tiles = empty.at[column, packed.indices].set(values, mode="drop")
    w = tiles.transpose(1, 2, 0, 3).reshape(n_rows * rows, n_columns * width)
    return w[: packed.shape[0], : packed.shape[1]]


def _check_arguments(w: Any, mask: Any, block: Any, batch: Any) -> None:
    if isinstance(w, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        raise TypeError(
            "pack_matrix: how much is kept decides shapes, so w and mask must be arrays on the "
            "host, not traced. Call it outside jit and pass what it returns."
        )
    if np.ndim(w) != 2:
        raise ValueError(
            f"pack_matrix: w must be a matrix (in, out), got shape {np.shape(w)}. Reshape it."
        )
    if mask is not None and np.shape(mask) != np.shape(w):
        raise ValueError(
            f"pack_matrix: the mask has shape {np.shape(mask)} but w has shape {np.shape(w)}."
        )
    integers = isinstance(block, (tuple, list)) and all(type(n) is int for n in block)
    if not integers or len(block) != 2 or min(block) < 1:
        raise ValueError(
            f"pack_matrix: block must be two lengths of at least 1 such as (1, 16), got {block!r}."
        )
    if type(batch) is not int or batch < 1:
        raise ValueError(f"pack_matrix: batch must be an integer of at least 1, got {batch!r}.")


# Their examples run, although by `__module__` they belong to `jaxprune`.
__test__ = {"PackedMatrix": PackedMatrix}
