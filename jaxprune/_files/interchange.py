"""Params for other programs: plain safetensors files, SciPy's CSR, JAX's BCOO and BCSR.

There is no sparse format that every program reads. None of these takes as little room as `save`,
and only products with CSR at batch 1 are faster than dense ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import as_file_path
from jaxprune._base.paths import check_not_donated, leaves_with_paths, listed, shown_path
from jaxprune._base.trees import ArrayTree
from jaxprune._files import dtypes, safetensors
from jaxprune._files.atomic import atomic_file, atomic_folder
from jaxprune._files.extras import import_extra
from jaxprune._files.host_arrays import as_host, in_order
from jaxprune._files.leaf_files import checked_metadata
from jaxprune._files.leaves import Leaf
from jaxprune._files.other_formats import check_plain_name
from jaxprune._files.safetensors import Tensor

# Plain safetensors


def save_safetensors(
    path: str | os.PathLike[str],
    params: ArrayTree,
    *,
    metadata: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
) -> None:
    """Writes params dense, as a plain safetensors file; `load` reads it too.

    Args:
      path: of the file. An existing file is replaced, in one step.
      params: any tree of arrays of numbers or bools.
      metadata: strings by name, stored in the file. Some programs need them: older versions of
        transformers load only files whose metadata have `"format": "pt"`.
      order: the paths of all leaves in the order that the file should have; by default that of the
        tree. `load_metadata` returns the metadata and the order of a file.

    Raises:
      TypeError: a leaf is not an array, or has a dtype that safetensors has no name for; or a
        metadata value is not a string.
      ValueError: `order` does not hold exactly the paths of the leaves, or the entries of a leaf
        take less than a byte each and do not fill whole bytes.
      FileNotFoundError: the folder of the file does not exist.
      IsADirectoryError: `path` is a folder.

    Example:
      >>> import jaxprune, numpy as np, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_safetensors(f"{folder}/a.safetensors", {"w": np.ones(2)}, metadata={"by": "me"})
      ...     jaxprune.load(f"{folder}/a.safetensors")
      ...     jaxprune.load_metadata(f"{folder}/a.safetensors").metadata
      {'w': array([1., 1.])}
      {'by': 'me'}
    """
    path = as_file_path("save_safetensors", path, example="model.safetensors")
    check_plain_name("save_safetensors", path)
    paths, leaves, _ = leaves_with_paths(params)
    check_not_donated("save_safetensors: params", params)
    arrays = [as_host(name, leaf) for name, leaf in zip(paths, leaves, strict=True)]
    positions = in_order("save_safetensors", paths, order)
    specs = [Leaf(paths[i], arrays[i].shape, arrays[i].dtype) for i in positions]
    write_safetensors(path, specs, (arrays[i] for i in positions), checked_metadata(metadata))


def write_safetensors(
    path: Path,
    leaves: Sequence[Leaf],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a plain safetensors file of dense leaves, one array at a time.

    Raises:
      TypeError, ValueError: the format can't hold a leaf, as for `save_safetensors`.

    Example:
      >>> import jaxprune, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     leaves = [Leaf("w", (2,), np.dtype("float64"))]
      ...     write_safetensors(Path(folder, "a.safetensors"), leaves, [np.ones(2)])
      ...     jaxprune.load(f"{folder}/a.safetensors")
      {'w': array([1., 1.])}
    """
    tensors = list(map(_plain_tensor, leaves))
    buffers = (_joined(tensor.code, array) for tensor, array in zip(tensors, arrays, strict=True))
    safetensors.write(path, tensors, buffers, metadata or {})


def _plain_tensor(leaf: Leaf) -> Tensor:
    """The header entry of a leaf in a plain file."""
    code = dtypes.code_in_plain(leaf.dtype)
    if code is None:
        raise TypeError(
            f"{shown_path(leaf.path)}: safetensors has no dtype {leaf.dtype}. Cast the leaf, or "
            "use jaxprune.save."
        )
    if dtypes.n_bytes_in_file(code, leaf.shape) is None:
        raise ValueError(
            f"{shown_path(leaf.path)}: safetensors stores {dtypes.n_bits(code)} bits for each "
            f"{leaf.dtype}, which do not fill whole bytes for shape {leaf.shape}. Pad the leaf, "
            "or use jaxprune.save."
        )
    return Tensor(leaf.path, code, leaf.shape)


def _joined(code: str, array: np.ndarray) -> np.ndarray:
    """The array as its tensor holds it: entries of less than a byte share bytes."""
    n_bits = dtypes.n_bits(code)
    return array if n_bits >= 8 else dtypes.join_entries(safetensors.raw_bytes(array), n_bits)


# Sparse arrays of SciPy and JAX


def to_csr(params: ArrayTree) -> ArrayTree:
    """Params with every matrix as a `scipy.sparse.csr_array`; other leaves are unchanged.

    At batch 1 on one thread, its products are faster than dense ones from about 90% zeros on.
    Otherwise it is for interchange only.

    Args:
      params: any tree of arrays.

    Returns:
      A tree like `params`. A leaf with two axes is a matrix.

    Raises:
      TypeError: SciPy does not support the dtype of a matrix, such as bfloat16; with the path.
      ImportError: SciPy is not installed.

    Example:
      >>> import numpy as np
      >>> to_csr({"w": np.eye(3, dtype=np.float32), "b": np.ones(3)})["w"].nnz
      3
    """
    sparse = import_extra("scipy.sparse")
    check_not_donated("to_csr: params", params)

    def convert(path: str, array: np.ndarray) -> Any:
        if array.dtype.kind not in "biufc" or array.dtype == np.float16:
            raise TypeError(
                f"{shown_path(path)}: SciPy has no sparse {array.dtype}. Cast the leaf: "
                "leaf.astype(numpy.float32)."
            )
        return sparse.csr_array(array)

    return _convert_matrices(params, convert)


def to_bcoo(params: ArrayTree) -> ArrayTree:
    """Params with every matrix as a `jax.experimental.sparse.BCOO`; other leaves are unchanged.

    For interchange only: on a CPU its products are slower than dense ones, and JAX adds those of
    bfloat16 and float16 in that dtype, which loses digits in long rows.

    Args:
      params: any tree of arrays.

    Returns:
      A tree like `params`. A leaf with two axes is a matrix.

    Raises:
      TypeError: a leaf is not an array of numbers or bools; with the path.

    Example:
      >>> import jax.numpy as jnp
      >>> to_bcoo({"w": jnp.eye(3), "b": jnp.ones(3)})["w"].nse
      3
    """
    from jax.experimental import sparse

    check_not_donated("to_bcoo: params", params)

    def convert(path: str, array: np.ndarray) -> Any:
        data, indices = _nonzeros(array)
        is_sorted = {"indices_sorted": True, "unique_indices": True}
        return sparse.BCOO((data, jnp.stack(indices, axis=1)), shape=array.shape, **is_sorted)

    return _convert_matrices(params, convert)


def to_bcsr(params: ArrayTree) -> ArrayTree:
    """Params with every matrix as a `jax.experimental.sparse.BCSR`; other leaves are unchanged.

    For interchange only: on a CPU its products are slower than dense ones, and JAX adds those of
    bfloat16 and float16 in that dtype, which loses digits in long rows.

    Args:
      params: any tree of arrays.

    Returns:
      A tree like `params`. A leaf with two axes is a matrix.

    Raises:
      TypeError: a leaf is not an array of numbers or bools; with the path.

    Example:
      >>> import jax.numpy as jnp
      >>> to_bcsr({"w": jnp.eye(3), "b": jnp.ones(3)})["w"].nse
      3
    """
    from jax.experimental import sparse

    check_not_donated("to_bcsr: params", params)

    def convert(path: str, array: np.ndarray) -> Any:
        data, (rows, columns) = _nonzeros(array)
        starts = jnp.searchsorted(rows, jnp.arange(len(array) + 1, dtype=rows.dtype))
        starts = starts.astype(columns.dtype)
        is_sorted = {"indices_sorted": True, "unique_indices": True}
        return sparse.BCSR((data, columns, starts), shape=array.shape, **is_sorted)

    return _convert_matrices(params, convert)


def _nonzeros(array: np.ndarray) -> tuple[jax.Array, list[jax.Array]]:
    """The values that are not zero, and their indices by axis.

    Found by NumPy: `fromdense` compares under XLA, which on a CPU treats subnormals as zero.
    """
    positions = np.nonzero(array)
    return jnp.asarray(array[positions]), [jnp.asarray(i, jnp.int32) for i in positions]


def _convert_matrices(params: ArrayTree, convert: Callable[[str, np.ndarray], Any]) -> Any:
    """Params with the 2-D leaves converted."""
    paths, leaves, treedef = leaves_with_paths(params)
    converted = []
    for path, leaf in zip(paths, leaves, strict=True):
        array = as_host(path, leaf)
        converted.append(convert(path, array) if array.ndim == 2 else leaf)
    return treedef.unflatten(converted)


# Folders of CSR matrices


def save_csr(folder: str | os.PathLike[str], params: ArrayTree) -> list[Path]:
    """Writes every matrix as `PATH.npz`, which `scipy.sparse.load_npz` reads.

    Args:
      folder: created if it does not exist; paths with `/` become folders inside it. Files of the
        same name are replaced, once all are written.
      params: any tree of arrays; leaves that are not 2-D are left out.

    Returns:
      The files that were written.

    Raises:
      TypeError, ImportError: as for `to_csr`.
      ValueError: no leaf is 2-D, `folder` has the name of an `.npz` file, or the path of a leaf
        leads out of the folder.
      OSError: a file can't be written; then none is.

    Example:
      >>> import numpy as np, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     [file.name for file in save_csr(folder, {"w": np.eye(3), "b": np.ones(3)})]
      ['w.npz']
    """
    folder = as_file_path("save_csr", folder, "folder", example="csr")
    check_not_donated("save_csr: params", params)
    paths, leaves, _ = leaves_with_paths(params)
    matrices = {name: x for name, x in zip(paths, leaves, strict=True) if np.ndim(x) == 2}
    if not matrices:
        raise _no_matrix(paths)
    _write_matrices(Path(folder), matrices.items())
    return [Path(folder, _csr_name(name)) for name in matrices]


def _no_matrix(paths: Sequence[str]) -> ValueError:
    return ValueError(
        f"nothing to write: no leaf is 2-D. The leaves are {listed(paths)}. Write another format, "
        "such as .safetensors.zst or .npz."
    )


def _csr_name(path: str) -> Path:
    """The file of a matrix in its folder."""
    return Path(*f"{path or 'params'}.npz".split("/"))


def write_csr_folder(
    folder: Path, leaves: Sequence[Leaf], arrays: Iterable[tuple[str, np.ndarray]]
) -> list[str]:
    """Writes every matrix as `PATH.npz`; no file appears in the folder before all are complete.

    Args:
      folder: created if it does not exist.
      leaves: all leaves that will arrive.
      arrays: their paths and arrays, consumed one by one.

    Returns:
      The paths of the leaves that are not 2-D, which are left out.

    Raises:
      TypeError, ImportError, ValueError: as for `save_csr`.
      NotADirectoryError: `folder` is a file.
      OSError: as for `save_csr`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     leaves = [
      ...         Leaf(path, (3,) * n, np.dtype("float64")) for path, n in (("w", 2), ("b", 1))
      ...     ]
      ...     arrays = [("w", np.eye(3)), ("b", np.ones(3))]
      ...     write_csr_folder(Path(folder, "out"), leaves, arrays)
      ['b']
    """
    if all(len(leaf.shape) != 2 for leaf in leaves):
        raise _no_matrix([leaf.path for leaf in leaves])
    return _write_matrices(folder, arrays)


def _write_matrices(folder: Path, arrays: Iterable[tuple[str, Any]]) -> list[str]:
    """Writes the matrices and returns the paths of the other arrays."""
    check_folder(folder)
    left_out = []
    with atomic_folder(folder) as temporary:
        for path, array in arrays:
            if np.ndim(array) == 2:
                write_csr(temporary, path, array, shown=folder)
            else:
                left_out.append(path)
    return left_out


def check_folder(folder: Path) -> None:
    """Raises if the folder to write is a file, or has the name of one.

    Raises:
      NotADirectoryError: it is a file.
      ValueError: its name ends in `.npz`.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"{folder}: is a file, but CSR is written as a folder. Choose another name."
        )
    if folder.suffix == ".npz" and not folder.exists():
        raise ValueError(
            f"{folder}: is the name of a file, but CSR is written as a folder, with one .npz file "
            f"for each matrix. Give the name of a folder, such as {folder.with_suffix('')}."
        )


def write_csr(folder: Path, path: str, matrix: Any, *, shown: Path) -> None:
    """Writes one matrix as `PATH.npz` in a folder, which error messages call `shown`."""
    file_path = folder / _csr_name(path)
    if not file_path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: a file of this name would be outside {shown}. Rename the leaf.")
    sparse = import_extra("scipy.sparse")
    [csr] = jax.tree.leaves(to_csr({path: matrix}), is_leaf=sparse.issparse)
    file_path.parent.mkdir(parents=True, exist_ok=True)
    if file_path.exists():
        raise ValueError(
            f"{path}: another matrix has a file of this name in {shown}, where upper and lower "
            "case are the same. Rename the leaf."
        )
    with atomic_file(file_path) as file:
        sparse.save_npz(file, csr)
