"""Pruning after training with calibration inputs: Wanda and SparseGPT, for a kernel or a model.

A layer multiplies its inputs by a kernel of shape (in, out), such as linen `Dense` or NNX `Linear`.
Both methods drop weights so that the outputs of the layer on its calibration inputs change little.
They use only the second moments of the inputs, so `Moments` of any number of batches can replace
the inputs themselves. All arithmetic is in float32, whatever the dtypes. Kernels of other shapes
are pruned as matrices (in, out) by the roles of their axes; see `kernel_view`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.typing import ArrayLike

from jaxprune._base.argument_types import Selection, Sparsity
from jaxprune._base.trees import ArrayTree
from jaxprune._calibration.layers import SparseGpt, Wanda, prune_kernel, prune_tree
from jaxprune._calibration.targets import as_target, as_targets
from jaxprune._recipe.argument_types import Roles


def wanda_kernel(
    kernel: ArrayLike,
    inputs: Any,
    sparsity: Sparsity | None = None,
    nm: tuple[int, int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Drops, for each output, the weights with the smallest |w| times the L2 norm of their input.

    This is Wanda (Sun et al. 2023, arXiv:2306.11695). Each output loses exactly `sparsity * in`
    weights, rounded half up. Among equal scores, the weight of the lower input index is kept; of
    inputs that are always 0, the largest weights. The bits of kept weights do not change.

    Args:
      kernel: (in, out), real floating point.
      inputs: (..., in), or their `Moments`.
      sparsity: fraction of zeros, in [0, 1). Pass exactly one of `sparsity` and `nm`.
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
    return prune_kernel(Wanda(), kernel, inputs, as_target(sparsity, nm))


def sparsegpt_kernel(
    kernel: ArrayLike,
    inputs: Any,
    sparsity: Sparsity | None = None,
    nm: tuple[int, int] | None = None,
    *,
    block_size: int = 128,
    damping: float = 0.01,
) -> tuple[jax.Array, jax.Array]:
    """Drops weights input by input, and changes the later weights to compensate for each.

    This is SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774). With the Hessian H = 2 X^T X plus
    damping, weight i of an output has the score |w_i| / U_ii, where U^T U = H^-1 and U is upper
    triangular. Dropping it changes each later weight j by -w_i U_ij / U_ii.

    With `sparsity`, masks are chosen for one block of `block_size` inputs at a time, over all
    outputs together. Up to the end of each block, exactly `sparsity * inputs so far * out` weights
    are dropped, rounded half up. So the kernel has the exact sparsity, but single outputs may not.
    With `nm`, n weights of each group of m inputs are kept for each output. The weights of an input
    that is always 0 have score 0 and are not changed; the largest of them are kept.

    Args:
      kernel: (in, out), real floating point.
      inputs: (..., in), or their `Moments`.
      sparsity: fraction of zeros, in [0, 1). Pass exactly one of `sparsity` and `nm`.
      nm: (n, m) instead of `sparsity`: n of every m neighbouring inputs of an output are kept.
      block_size: inputs per block; with `nm`, a multiple of m.
      damping: added to the diagonal of H = 2 X^T X, as a fraction of the mean of that diagonal. As
        in the authors' code, an input that is always 0 has 1 on the diagonal.

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
    return prune_kernel(SparseGpt.of(block_size, damping), kernel, inputs, target)


def wanda(
    params: ArrayTree,
    inputs: Mapping[str, Any],
    sparsity: Sparsity | None = None,
    *,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Mapping[Any, Any] | None = None,
    nm: tuple[int, int] | None = None,
    roles: Roles | None = None,
) -> tuple[ArrayTree, ArrayTree]:
    """Prunes every kernel of a model with `wanda_kernel`.

    A kernel of any shape is pruned as matrices (in, out): its `"in"` and `"window"` axes are
    flattened to the rows, its `"out"` axes to the columns, and each index of its `"stack"` axes is
    a kernel of its own.

    Args:
      params: any tree, such as `variables["params"]` or `nnx.state(model, nnx.Param)`.
      inputs: what `layer_inputs` returns; or a mapping from the path of each kernel to the inputs
        of its layer, or their `Moments`. Inputs of a leaf with stack axes have these axes first.
      sparsity: fraction of zeros, in [0, 1). Pass exactly one of `sparsity` and `nm`.
      include: leaves to prune, as in `prune`. Each of them needs inputs, unless it has no weights.
      exclude: leaves to leave out, as in `prune`.
      overrides: regex -> another sparsity for the leaves that it matches, or (n, m). The slices of
        a leaf with stack axes have the paths `w_up/0`, `w_up/1`, and so on.
      nm: (n, m) instead of `sparsity`. Groups of m lie along the `"in"` axes, flattened in order.
      roles: of the axes of each leaf, as in `prune`. Leaves to which you give none have those of
        `layer_inputs`. Where an axis is `"out"` there, such as that of experts that all get the
        same inputs, pass `"stack"` to prune each of its indices as a kernel of its own. Without
        roles, leaves must have two axes and are taken as (in, out); leaves named `weight`,
        `weight_ih` and so on are refused, since torch and Equinox store them as (out, in).

    Returns:
      The params, and bool masks (True = kept) at every leaf.

    Raises:
      TypeError, ValueError: as for `wanda_kernel`, with the path; also a leaf without inputs, or
        without roles.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"fc": {"kernel": jnp.array([[1.0], [3.0]]), "bias": jnp.ones(1)}}
      >>> params, masks = wanda(params, {"fc/kernel": jnp.array([[10.0, 1.0]])}, 0.5)
      >>> params["fc"]["kernel"].tolist(), masks["fc"]["bias"].tolist()
      ([[1.0], [0.0]], [True])

      A layer that stores its kernel as (out, in):
      >>> params, inputs = {"weight": jnp.array([[1.0, 3.0]])}, {"weight": jnp.array([[10.0, 1.0]])}
      >>> wanda(params, inputs, 0.5, roles={"weight": ("out", "in")})[0]["weight"].tolist()
      [[1.0, 0.0]]
    """
    targets = as_targets(sparsity, nm, overrides)
    return prune_tree(Wanda(), params, inputs, targets, include, exclude, roles)


def sparsegpt(
    params: ArrayTree,
    inputs: Mapping[str, Any],
    sparsity: Sparsity | None = None,
    *,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Mapping[Any, Any] | None = None,
    nm: tuple[int, int] | None = None,
    roles: Roles | None = None,
    block_size: int = 128,
    damping: float = 0.01,
) -> tuple[ArrayTree, ArrayTree]:
    """Prunes every kernel of a model with `sparsegpt_kernel`.

    Every layer is fitted to the inputs that you pass, which the dense model produced. To fit each
    layer to the outputs of the pruned layers before it, as the paper does, call
    `prune_sequentially`.

    Args:
      params: any tree, such as `variables["params"]` or `nnx.state(model, nnx.Param)`.
      inputs: as in `wanda`.
      sparsity: fraction of zeros, in [0, 1). Pass exactly one of `sparsity` and `nm`.
      include: leaves to prune, as in `prune`. Each of them needs inputs.
      exclude: leaves to leave out, as in `prune`.
      overrides: as in `wanda`.
      nm: as in `wanda`.
      roles: as in `wanda`.
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
    targets = as_targets(sparsity, nm, overrides)
    solver = SparseGpt.of(block_size, damping)
    return prune_tree(solver, params, inputs, targets, include, exclude, roles)
