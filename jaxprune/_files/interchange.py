"""Params for other programs: plain safetensors, SciPy's CSR, JAX's BCOO and BCSR.

None of these is as small as `save`, nor, but for CSR at batch 1, faster than dense arrays; there is
no sparse format that everything reads.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import leaves_with_paths, listed, shown_path
from jaxprune._files import safetensors as container
from jaxprune._files.save_load import as_host
from jaxprune._files.stream import extra, written


def save_safetensors(path: str | os.PathLike[str], params: chex.ArrayTree) -> None:
    """Writes params dense, as a plain safetensors file that any program reads; `load` does, too.

    Args:
      path: of the file. What is there is replaced, in one move.
      params: any tree of arrays of numbers or bools.

    Raises:
      TypeError: a leaf that is no array, or whose dtype safetensors has no name for.

    Example:
      >>> import jaxprune, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_safetensors(f"{folder}/model.safetensors", {"w": np.ones(2)})
      ...     jaxprune.load(f"{folder}/model.safetensors")
      {'w': array([1., 1.])}
    """
    names, leaves, _ = leaves_with_paths(params)
    arrays = [as_host(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
    tensors = [plain_tensor(n, a.dtype, a.shape) for n, a in zip(names, arrays, strict=True)]
    container.write(Path(path), tensors, arrays, {})


def plain_tensor(path: str, dtype: np.dtype, shape: tuple[int, ...]) -> container.Tensor:
    """The entry of a dense leaf in a plain file.

    Raises:
      TypeError: safetensors has no name for the dtype.

    Example:
      >>> plain_tensor("w", np.dtype("float16"), (3,))
      Tensor(name='w', code='F16', shape=(3,))
    """
    tensor = container.tensor_for(path, dtype, shape)
    if container.code_dtype(tensor.code) != dtype:
        raise TypeError(
            f"{shown_path(path)}: safetensors has no dtype {dtype}. Cast it, or use jaxprune.save."
        )
    return tensor


def to_csr(params: chex.ArrayTree) -> chex.ArrayTree:
    """Params with every matrix as a `scipy.sparse.csr_array`; other leaves as they are.

    At batch 1 on one thread its products beat dense ones from about 90% zeros on; otherwise it is
    for interchange.

    Args:
      params: any tree of arrays.

    Raises:
      TypeError: a matrix of a dtype that SciPy has not, such as bfloat16, with the path.
      ImportError: SciPy is not installed.

    Example:
      >>> to_csr({"w": np.eye(3, dtype=np.float32), "b": np.ones(3)})["w"].nnz
      3
    """
    sparse = extra("scipy.sparse")

    def convert(path: str, array: np.ndarray) -> Any:
        if array.dtype.kind not in "biufc" or array.dtype == np.float16:
            raise TypeError(
                f"{shown_path(path)}: SciPy has no sparse {array.dtype}. Cast the leaf: "
                "leaf.astype(numpy.float32)."
            )
        return sparse.csr_array(array)

    return _matrices(params, convert)


def to_bcoo(params: chex.ArrayTree) -> chex.ArrayTree:
    """Params with every matrix as a `jax.experimental.sparse.BCOO`; other leaves as they are.

    For interchange: on a CPU its products are slower than dense ones.

    Args:
      params: any tree of arrays.

    Example:
      >>> to_bcoo({"w": jnp.eye(3), "b": jnp.ones(3)})["w"].nse
      3
    """
    from jax.experimental import sparse

    return _matrices(params, lambda path, array: sparse.BCOO.fromdense(jnp.asarray(array)))


def to_bcsr(params: chex.ArrayTree) -> chex.ArrayTree:
    """Params with every matrix as a `jax.experimental.sparse.BCSR`; other leaves as they are.

    For interchange: on a CPU its products are slower than dense ones.

    Args:
      params: any tree of arrays.

    Example:
      >>> to_bcsr({"w": jnp.eye(3), "b": jnp.ones(3)})["w"].nse
      3
    """
    from jax.experimental import sparse

    return _matrices(params, lambda path, array: sparse.BCSR.fromdense(jnp.asarray(array)))


def _matrices(params: chex.ArrayTree, convert: Callable[[str, np.ndarray], Any]) -> Any:
    """Params with the leaves of two axes converted."""
    names, leaves, treedef = leaves_with_paths(params)
    found = []
    for name, leaf in zip(names, leaves, strict=True):
        array = as_host(name, leaf)
        found.append(convert(name, array) if array.ndim == 2 else leaf)
    return treedef.unflatten(found)


def save_csr(folder: str | os.PathLike[str], params: chex.ArrayTree) -> list[Path]:
    """Writes every matrix as `PATH.npz`, which `scipy.sparse.load_npz` reads.

    Args:
      folder: it is made if need be; paths with `/` become folders in it.
      params: any tree of arrays; leaves that have not two axes are left out.

    Returns:
      The files.

    Raises:
      TypeError, ImportError: as `to_csr`.
      ValueError: no matrix, or a path that would leave the folder.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     [file.name for file in save_csr(folder, {"w": np.eye(3), "b": np.ones(3)})]
      ['w.npz']
    """
    names, leaves, _ = leaves_with_paths(params)
    found = [(n, x) for n, x in zip(names, leaves, strict=True) if np.ndim(x) == 2]
    if not found:
        raise ValueError(f"nothing to write: no leaf has two axes; there are {listed(names)}.")
    return [write_csr(folder, name, leaf) for name, leaf in found]


def write_csr(folder: str | os.PathLike[str], path: str, matrix: Any) -> Path:
    """Writes one matrix as `PATH.npz` in a folder, in one move.

    Raises:
      TypeError, ImportError, ValueError: as `save_csr`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_csr(folder, "fc/kernel", np.eye(3)).relative_to(folder).as_posix()
      'fc/kernel.npz'
    """
    target = Path(folder, *f"{path or 'params'}.npz".split("/"))
    if not target.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{path}: as the name of a file it would leave {folder}. Rename the leaf.")
    sparse = extra("scipy.sparse")
    [csr] = jax.tree.leaves(to_csr({path: matrix}), is_leaf=sparse.issparse)
    target.parent.mkdir(parents=True, exist_ok=True)
    with written(target) as file:
        sparse.save_npz(file, csr)
    return target
