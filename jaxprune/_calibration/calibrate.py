"""Pruning after training with calibration inputs: Wanda and SparseGPT, for a kernel or a model.

A layer multiplies its inputs by a kernel of shape (in, out), such as linen `Dense` or NNX `Linear`.
Both methods drop weights so that the outputs of the layer on its calibration inputs change little.
They use only the second moments of the inputs, so `Moments` of any number of batches can replace
the inputs themselves. All arithmetic is in float32, whatever the dtypes. `linen_inputs` and
`nnx_inputs` collect the inputs of all layers of a model.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import leaves_with_paths
from jaxprune._calibration.checks import (
    Target,
    as_target,
    check_block_size,
    check_damping,
    check_kernel,
    check_mapping,
    check_paths,
    kernel_error,
)
from jaxprune._calibration.moments import layer_gram, layer_squares
from jaxprune._calibration.solvers import solve, wanda_mask
from jaxprune._recipe.budget import Recipe
from jaxprune._state.masks import full_mask, keep


def wanda_kernel(
    kernel: jax.Array,
    inputs: Any,
    sparsity: float | None = None,
    nm: tuple[int, int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Drops, for each output, the weights with the smallest |w| times the L2 norm of their input.

    This is Wanda (Sun et al. 2023, arXiv:2306.11695). Each output loses exactly `sparsity * in`
    weights, rounded half up. Among equal scores, the weight of the lower input index is kept. The
    bits of kept weights do not change.

    Args:
      kernel: (in, out), real floating point.
      inputs: (..., in), or their `Moments`.
      sparsity: fraction of zeros, in [0, 1).
      nm: (n, m) instead of `sparsity`: n of every m neighbouring inputs of an output are kept.

    Returns:
      The kernel with +0.0 at every dropped weight, and its bool mask, True = kept.

    Raises:
      TypeError, ValueError: shapes that do not fit, no inputs or inputs that are not finite, or an
        output that would lose all of its weights.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel, inputs = jnp.array([[1.0, 4.0], [3.0, 50.0]]), jnp.array([[10.0, 1.0]])
      >>> wanda_kernel(kernel, inputs, 0.5)[0].tolist()
      [[1.0, 0.0], [0.0, 50.0]]
    """
    return _wanda(None, kernel, inputs, as_target(sparsity, nm))


def sparsegpt_kernel(
    kernel: jax.Array,
    inputs: Any,
    sparsity: float | None = None,
    nm: tuple[int, int] | None = None,
    *,
    block_size: int = 128,
    damping: float = 0.01,
) -> tuple[jax.Array, jax.Array]:
    """Drops weights input by input, and changes the later weights to compensate for each.

    This is SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774). With the Hessian H = X^T X plus
    damping, weight i of an output has the score |w_i| / U_ii, where U^T U = H^-1 and U is upper
    triangular. Dropping it changes each later weight j by -w_i U_ij / U_ii. Masks are chosen for
    one block of `block_size` inputs at a time, over all outputs together. Up to the end of each
    block, exactly `sparsity * inputs so far * out` weights are dropped, rounded half up. The whole
    kernel thus has the exact sparsity, but single outputs may not. The weights of an input that is
    always 0 have score 0 and are not changed.

    Args:
      kernel: (in, out), real floating point.
      inputs: (..., in), or their `Moments`.
      sparsity: fraction of zeros, in [0, 1).
      nm: (n, m) instead of `sparsity`: n of every m neighbouring inputs of an output are kept.
      block_size: inputs per block; with `nm`, a multiple of m.
      damping: added to the diagonal of X^T X, as a fraction of the mean of that diagonal over the
        inputs that are not always 0.

    Returns:
      The new kernel, +0.0 at every dropped weight, and its bool mask, True = kept.

    Raises:
      TypeError, ValueError: as for `wanda_kernel`.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel, same = jnp.array([[1.0], [1.0]]), jnp.array([[1.0, 1.0], [-2.0, -2.0]])
      >>> new, _ = sparsegpt_kernel(kernel, same, 0.5)
      >>> f"{new[0, 0]:.2f} {new[1, 0]:.2f}"  # the second takes over from the first
      '0.00 1.99'
    """
    target = as_target(sparsity, nm)
    block_size = check_block_size(block_size, target.nm)
    return _sparsegpt(None, kernel, inputs, target, block_size, check_damping(damping))


def wanda(
    params: chex.ArrayTree,
    inputs: Mapping[str, Any],
    sparsity: float | None = None,
    *,
    include: Any = None,
    exclude: Any = (),
    nm: tuple[int, int] | None = None,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Prunes every kernel of a model with `wanda_kernel`.

    Args:
      params: any tree, such as `variables["params"]` or `nnx.state(model, nnx.Param)`.
      inputs: path of a kernel -> the inputs of its layer, or their `Moments`; see `linen_inputs`.
      sparsity: fraction of zeros, in [0, 1).
      include: leaves to prune, as in `prune`. Each of them needs inputs.
      exclude: leaves to leave out, as in `prune`.
      nm: (n, m) instead of `sparsity`.

    Returns:
      The params, and bool masks (True = kept) at every leaf.

    Raises:
      TypeError, ValueError: as for `wanda_kernel`, with the path; also a leaf without inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"fc": {"kernel": jnp.array([[1.0], [3.0]]), "bias": jnp.ones(1)}}
      >>> params, masks = wanda(params, {"fc/kernel": jnp.array([[10.0, 1.0]])}, 0.5)
      >>> params["fc"]["kernel"].tolist(), masks["fc"]["bias"].tolist()
      ([[1.0], [0.0]], [True])
    """
    target = as_target(sparsity, nm)
    prune_kernel = functools.partial(_wanda, target=target)
    return _prune_tree("wanda", params, inputs, target, include, exclude, prune_kernel)


def sparsegpt(
    params: chex.ArrayTree,
    inputs: Mapping[str, Any],
    sparsity: float | None = None,
    *,
    include: Any = None,
    exclude: Any = (),
    nm: tuple[int, int] | None = None,
    block_size: int = 128,
    damping: float = 0.01,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Prunes every kernel of a model with `sparsegpt_kernel`.

    Every layer is fitted to the inputs that you pass, which the dense model produced. To fit each
    layer to the outputs of the pruned layers before it, as the paper does, prune one layer at a
    time with `include=`, and collect the inputs again after each.

    Args:
      params: any tree, such as `variables["params"]` or `nnx.state(model, nnx.Param)`.
      inputs: path of a kernel -> the inputs of its layer, or their `Moments`; see `linen_inputs`.
      sparsity: fraction of zeros, in [0, 1).
      include: leaves to prune, as in `prune`. Each of them needs inputs.
      exclude: leaves to leave out, as in `prune`.
      nm: (n, m) instead of `sparsity`.
      block_size: as in `sparsegpt_kernel`.
      damping: as in `sparsegpt_kernel`.

    Returns:
      The params, and bool masks (True = kept) at every leaf.

    Raises:
      TypeError, ValueError: as for `wanda`.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0], [3.0]])}
      >>> sparsegpt(params, {"kernel": jnp.eye(2)}, nm=(1, 2))[0]["kernel"].tolist()
      [[0.0], [3.0]]
    """
    target = as_target(sparsity, nm)
    prune_kernel = functools.partial(
        _sparsegpt,
        target=target,
        block_size=check_block_size(block_size, target.nm),
        damping=check_damping(damping),
    )
    return _prune_tree("sparsegpt", params, inputs, target, include, exclude, prune_kernel)


def _prune_tree(
    function: str,
    params: chex.ArrayTree,
    inputs: Any,
    target: Target,
    include: Any,
    exclude: Any,
    prune_kernel: Callable[[str, Any, Any], tuple[jax.Array, jax.Array]],
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Prunes each chosen leaf with `prune_kernel(path, kernel, inputs) -> (kernel, mask)`."""
    check_mapping(function, inputs)
    paths, leaves, treedef = leaves_with_paths(params)
    budget = Recipe.of((target.sparsity,), include, exclude).checked_budget(params, paths, leaves)
    check_paths(function, inputs, paths, [paths[i] for i in budget.chosen])
    masks = [full_mask(leaf, bool) for leaf in leaves]
    for i in budget.chosen:
        leaves[i], masks[i] = prune_kernel(paths[i], leaves[i], inputs[paths[i]])
    return treedef.unflatten(leaves), treedef.unflatten(masks)


# One kernel. `path` is its path in a model, for errors, or None for a single kernel.


def _wanda(
    path: str | None, kernel: Any, inputs: Any, target: Target
) -> tuple[jax.Array, jax.Array]:
    kernel = check_kernel(path, kernel, target.nm)
    n_in = len(kernel)
    squares = layer_squares(path, inputs, n_in)
    n_keep = target.n_keep(n_in)
    if n_in and not n_keep:
        problem = (
            f"each output would lose all of its {n_in} inputs at sparsity "
            f"{float(target.sparsity):g}. Lower the sparsity."
        )
        raise kernel_error(ValueError, path, problem)
    if not kernel.size:
        return kernel, full_mask(kernel, bool)
    mask = wanda_mask(kernel, squares, jnp.int32(n_keep), target.nm)
    return keep(kernel, mask), mask


def _sparsegpt(
    path: str | None, kernel: Any, inputs: Any, target: Target, block_size: int, damping: float
) -> tuple[jax.Array, jax.Array]:
    kernel = check_kernel(path, kernel, target.nm)
    n_in, n_out = kernel.shape
    gram = layer_gram(path, inputs, n_in)
    if not kernel.size:
        return kernel, full_mask(kernel, bool)
    block_size = min(block_size, n_in)
    # How many weights are kept up to the end of each block; their differences are exact budgets.
    ends = [min(end, n_in) for end in range(0, n_in + block_size, block_size)]
    n_kept = [target.n_keep(end * n_out) for end in ends]
    if not n_kept[-1]:
        problem = (
            f"the kernel would lose all of its {kernel.size} weights at sparsity "
            f"{float(target.sparsity):g}. Lower the sparsity."
        )
        raise kernel_error(ValueError, path, problem)
    n_keep = jnp.asarray(np.diff(n_kept), jnp.int32)
    return solve(kernel, gram, n_keep, jnp.float32(damping), target.nm, block_size)
