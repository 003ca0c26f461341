"""Block-sparse matrices, and products with them that are faster than dense ones, in plain JAX.

A kernel of shape (in, out) is divided into blocks of shape (a, r). Each column of blocks lists the
rows of blocks that it keeps. The product gathers the parts of `x` that belong to those rows and
contracts them with the values: one gather and one batched product, which every backend supports.
For a large batch these parts are many times larger than the values. Then a loop gathers and
contracts a chunk of the columns at a time.

For speed, `r` should be at least 8, the width of SIMD units. The columns should keep equally many
blocks, as with `Block((1, 16), balanced=True)`, because columns with fewer blocks are padded.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxprune._base.arguments import as_array, is_int, shown
from jaxprune._base.on_host import check_here
from jaxprune._base.paths import check_not_donated
from jaxprune._base.same_values import same_values

# Measured on CPUs: for a batch of one row, values with the output axis last are twice as fast when
# they come from memory, and 1.2 times slower when they come from cache. For larger batches, values
# with the summed axis last are faster.
_ROWS_FIRST_FROM = 2
# How many numbers a chunk of columns gathers at most, or a fraction of the number of values if that
# is more.
_CHUNK = 2**20
_FRACTION = 8
# From this many gathered numbers on, there are at least two chunks. For a single one, XLA CPU
# gathers from `x` itself, where the numbers of one part are strided, rather than from its
# transpose. With 1024 inputs that took twice the time for 32 rows, and four times for 128.
_LOOP_FROM = 2**18


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("indices", "values"),
    meta_fields=("shape", "block", "rows_first"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class PackedMatrix:
    """The kept blocks of a matrix; a pytree with two arrays as leaves.

    Attributes:
      indices: int32[n_columns, n_kept], the rows of blocks that each column of blocks keeps. A
        column that keeps fewer blocks than others is padded with the row past the end.
      values: [n_columns, n_kept * a, r], or with `rows_first` [n_columns, r, n_kept * a].
      shape: (in, out), of the whole matrix.
      block: (a, r), the shape of a block.
      rows_first: the layout of `values`.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> packed = jaxprune.pack_matrix(jnp.eye(4), block=(1, 2))
      >>> packed.shape, packed.block, packed.values.shape
      ((4, 4), (1, 2), (2, 2, 2))
    """

    indices: Any
    values: Any
    shape: tuple[int, int]
    block: tuple[int, int]
    rows_first: bool = False

    def __eq__(self, other: object) -> bool:
        """Whether another holds the same arrays; traced ones are only equal to themselves."""
        if not isinstance(other, PackedMatrix):
            return NotImplemented
        return (
            self._static == other._static
            and same_values(self.indices, other.indices)
            and same_values(self.values, other.values)
        )

    def __hash__(self) -> int:
        return hash(self._static)

    @property
    def _static(self) -> tuple[Any, ...]:
        return self.shape, self.block, self.rows_first

    @property
    def nbytes(self) -> int:
        """Memory of the two arrays, in bytes."""
        return self.indices.nbytes + self.values.nbytes


def pack_matrix(
    w: ArrayLike, mask: ArrayLike | None = None, block: tuple[int, int] = (1, 16), *, batch: int = 1
) -> PackedMatrix:
    """Packs the kept blocks of a matrix; runs on the host, not under `jit`.

    A dense product is faster if few blocks are dropped: on CPUs, less than about half of them, or
    less than about 70 % for batches of several rows. It is also faster for matrices smaller than
    about 256 x 1024, whose dense product takes no longer than the overhead of a call.

    Args:
      w: [in, out], the layout of kernels in Flax.
      mask: nonzero where a weight is kept; by default where `w` is not zero. A block is kept if any
        of its weights is kept; the other weights of the block are set to zero.
      block: shape of a block. It need not divide the shape of `w`.
      batch: how many rows `x` will have. It only decides the layout of the values, not the result;
        the wrong layout can halve the speed.

    Returns:
      A `PackedMatrix` for `packed_matmul`.

    Raises:
      TypeError: `w` or `mask` is traced.
      ValueError: the shapes do not match, or `block` or `batch` is invalid.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.zeros((6, 32)).at[2, :16].set(1.0).at[4, 16:].set(2.0)
      >>> packed = pack_matrix(w)
      >>> packed.indices.tolist(), packed.values.shape
      ([[2], [4]], (2, 1, 16))
    """
    dense = _as_host("w", w)
    kept = dense != 0 if mask is None else _as_host("mask", mask) != 0
    _check_arguments(dense, kept, block, batch)
    rows, width = map(int, block)
    blocks = _blocks(np.where(kept, dense, np.zeros((), dense.dtype)), block)
    is_kept: Any = _blocks(kept, block).any((1, 3)).T  # [columns, rows] of blocks
    counts = is_kept.sum(1)
    n_kept = int(counts.max(initial=0))
    n_rows = is_kept.shape[-1]
    # A stable sort puts the kept rows of blocks first, in order.
    indices = np.argsort(~is_kept, axis=1, kind="stable")[:, :n_kept]
    is_padding = np.arange(n_kept) >= counts[:, None]
    by_column = np.moveaxis(blocks, 2, 0)  # [columns, rows of blocks, a, r]
    values = np.take_along_axis(by_column, indices[:, :, None, None], 1)
    values[is_padding] = 0
    values = values.reshape(len(indices), n_kept * rows, width)
    rows_first = batch >= _ROWS_FIRST_FROM
    return PackedMatrix(
        jnp.asarray(np.where(is_padding, n_rows, indices), jnp.int32),
        jnp.asarray(values.swapaxes(1, 2) if rows_first else values),
        (len(kept), kept.shape[-1]),
        (rows, width),
        rows_first,
    )


def _blocks(x: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """A matrix as [rows of blocks, a, columns of blocks, r], padded with zeros."""
    x = np.pad(x, [(0, -n % b) for n, b in zip(x.shape, block, strict=True)])
    return x.reshape(x.shape[0] // block[0], block[0], x.shape[1] // block[1], block[1])


def packed_matmul(packed: PackedMatrix, x: ArrayLike) -> jax.Array:
    """The product `x @ w` with a packed matrix; works under `jit`, `vmap` and `grad`.

    Dropped blocks are skipped. So where `x` is NaN or infinite, they do not make the result NaN, as
    the zeros of a dense matrix would.

    Args:
      packed: from `pack_matrix`, of shape (in, out).
      x: [..., in].

    Returns:
      [..., out].

    Raises:
      TypeError: `packed` is not a `PackedMatrix`.
      ValueError: the last axis of `x` does not have length `in`.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> w = jnp.zeros((6, 32)).at[2, :16].set(1.0).at[4, 16:].set(2.0)
      >>> packed_matmul(jaxprune.pack_matrix(w), jnp.arange(6.0))[::8].tolist()
      [2.0, 2.0, 8.0, 8.0]
    """
    _check_packed("packed_matmul", packed)
    x = as_array("packed_matmul: x", x, "Pass the packed matrix first: packed_matmul(packed, x).")
    n_in, n_out = packed.shape
    if not jnp.ndim(x) or jnp.shape(x)[-1:] != (n_in,):
        raise ValueError(
            f"packed_matmul: x has shape {jnp.shape(x)}, but its last axis must have length "
            f"{n_in}: the matrix has shape (in, out) = {packed.shape}."
        )
    lead = x.shape[:-1]
    n_columns, n_kept = packed.indices.shape
    if not n_kept or not x.size:
        dtype = jnp.result_type(x, packed.values)
        return jnp.zeros((*lead, n_out), dtype)
    y = _product(packed, x.reshape(-1, n_in))
    return y.reshape(-1, n_columns * packed.block[1])[:, :n_out].reshape(*lead, n_out)


def _product(packed: PackedMatrix, x: jax.Array) -> jax.Array:
    """The product with x [batch, in], by columns of blocks: [batch, n_columns, r]."""
    n_columns, n_kept = packed.indices.shape
    batch, (rows, width) = x.shape[0], packed.block
    parts = _parts(x, rows)
    contract = functools.partial(_contract, parts, packed.rows_first)
    n_gathered = n_columns * n_kept * rows * batch
    n_chunks = max(
        math.ceil(n_gathered / max(_CHUNK, packed.values.size // _FRACTION)),
        2 if batch > 1 and n_gathered >= _LOOP_FROM else 1,
    )
    n_at_once = math.ceil(n_columns / n_chunks)
    if n_at_once == n_columns:
        return contract(packed.indices, packed.values)
    # A gradient gathers again: otherwise the gathered parts of all chunks would be stored for it.
    contract = jax.checkpoint(contract, prevent_cse=False)

    def with_chunk(i: jax.Array, y: jax.Array) -> jax.Array:
        # Slices are moved to lie inside: the last chunk may repeat columns of the one before.
        start = i * n_at_once
        indices, values = (
            lax.dynamic_slice_in_dim(array, start, n_at_once)
            for array in (packed.indices, packed.values)
        )
        return lax.dynamic_update_slice_in_dim(y, contract(indices, values), start, 1)

    y = jnp.zeros((batch, n_columns, width), jnp.result_type(x, packed.values))
    return lax.fori_loop(0, math.ceil(n_columns / n_at_once), with_chunk, y)


def _contract(
    parts: jax.Array, rows_first: bool, indices: jax.Array, values: jax.Array
) -> jax.Array:
    """The product with some columns of blocks, [batch, columns, r].

    Args:
      parts: from `_parts`.
      rows_first: the layout of the values.
      indices: those of the columns.
      values: those of the columns.
    """
    indices = indices.astype(jnp.uint32)  # for signed ones, JAX adds code for negatives
    gathered = parts.at[indices].get(mode="promise_in_bounds")
    gathered = gathered.reshape(indices.shape[0], -1, parts.shape[-1])
    layout = "jrk" if rows_first else "jkr"
    return jnp.einsum(f"{layout},jkb->jrb", values, gathered).transpose(2, 0, 1)


def _parts(x: jax.Array, rows: int) -> jax.Array:
    """The parts of `x` that rows of blocks multiply, [rows of blocks, a, batch].

    There is one more part, of zeros, for the padding of the columns.
    """
    # XLA must not fuse the computation of x into the gather: it would compute an activation once
    # for each column of blocks that reads it, which doubled the time of an LSTM step. The newest
    # XLA respects the optimization barrier. The one of JAX 0.10 drops it on CPUs, but does not fuse
    # a concatenation unless it recognises it as padding with a constant: hence zeros with the sign
    # of x.
    zeros = jnp.zeros_like(x, shape=(x.shape[0], -x.shape[1] % rows + rows))
    if jnp.issubdtype(x.dtype, jnp.floating):
        zeros = jnp.copysign(zeros, x[:, :1])
    x = lax.optimization_barrier(jnp.concatenate([x, zeros], axis=1))
    return x.T.reshape(-1, rows, x.shape[0])


def unpack_matrix(packed: PackedMatrix) -> jax.Array:
    """The dense matrix, with +0.0 in its dropped blocks.

    Args:
      packed: from `pack_matrix`.

    Returns:
      An array [in, out] of the dtype of the values.

    Raises:
      TypeError: `packed` is not a `PackedMatrix`.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> w = jnp.eye(4)
      >>> bool(jnp.all(unpack_matrix(jaxprune.pack_matrix(w, block=(1, 2))) == w))
      True
    """
    _check_packed("unpack_matrix", packed)
    rows, width = packed.block
    n_columns, n_kept = packed.indices.shape
    n_rows = -(-packed.shape[0] // rows)
    values = packed.values.swapaxes(1, 2) if packed.rows_first else packed.values
    values = values.reshape(n_columns, n_kept, rows, width)
    empty = jnp.zeros((n_columns, n_rows, rows, width), values.dtype)
    column = jnp.arange(n_columns)[:, None]
    blocks = empty.at[column, packed.indices].set(values, mode="drop")  # drops the padding
    w = blocks.transpose(1, 2, 0, 3).reshape(n_rows * rows, n_columns * width)
    return w[: packed.shape[0], : packed.shape[1]]


def _check_packed(function: str, packed: Any) -> None:
    if not isinstance(packed, PackedMatrix):
        raise TypeError(
            f"{function}: the first argument must be a PackedMatrix, got {shown(packed)}. Pack the "
            "matrix first: pack_matrix(w, mask)."
        )


def _as_host(name: str, value: Any) -> np.ndarray:
    """An argument as a NumPy array of numbers or bools."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            "pack_matrix: w and mask must be arrays on the host, not traced values, because the "
            "kept blocks decide shapes. Call it outside jit, and pass its result to the jitted "
            "function."
        )
    check_not_donated("pack_matrix", {name: value})
    check_here(f"pack_matrix: {name}", value, name)
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    try:
        array = np.asarray(None if is_key else value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind in "OSUMm":
        raise TypeError(
            f"pack_matrix: {name} must be an array, got {shown(value)}. Pass one kernel of shape "
            "(in, out); for a tree of params, call jaxprune.pack_kernels(params)."
        )
    return array


def _check_arguments(w: np.ndarray, kept: np.ndarray, block: Any, batch: Any) -> None:
    if w.ndim != 2:
        raise ValueError(
            f"pack_matrix: w must be a matrix (in, out), got shape {w.shape}. Reshape it."
        )
    if kept.shape != w.shape:
        raise ValueError(
            f"pack_matrix: mask has shape {kept.shape}, but w has shape {w.shape}. Pass a mask of "
            "the shape of w, or the shape of a block by name: block=(1, 16)."
        )
    is_pair = isinstance(block, (tuple, list)) and len(block) == 2
    if not is_pair or not all(is_int(n) and n >= 1 for n in block):
        raise ValueError(
            f"pack_matrix: block must be two integers of at least 1 such as (1, 16), got "
            f"{shown(block)}."
        )
    if not is_int(batch) or batch < 1:
        raise ValueError(
            f"pack_matrix: batch must be an integer of at least 1, got {shown(batch)}."
        )


# Pickles have the public name, wherever this file lives. doctest needs the list: by `__module__`,
# this class belongs to `jaxprune`.
PackedMatrix.__module__ = "jaxprune"
__test__ = {"PackedMatrix": PackedMatrix}
