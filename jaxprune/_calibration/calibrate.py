"""Pruning after training, with a batch of the inputs that reach each layer: Wanda and SparseGPT.

A layer is a kernel of shape (in, out) that its inputs are multiplied with: linen `Dense`, NNX
`Linear`. What counts is its output on those inputs, which they enter by second moments alone; so
`Moments` of any number of batches replace the inputs themselves. All arithmetic is in float32,
whatever the dtypes. `linen_inputs` and `nnx_inputs` collect what reaches the layers of a model.
"""

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import as_sparsity
from jaxprune._base.paths import leaves_with_paths, listed, rule_for, shown_path, warn_unused
from jaxprune._calibration.moments import statistics
from jaxprune._calibration.solvers import solve, wanda_mask
from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.distributions import round_half_up
from jaxprune._state.masks import full_mask, keep


def wanda_kernel(
    kernel: jax.Array,
    inputs: Any,
    sparsity: float | None = None,
    nm: tuple[int, int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Drops the weights of least |w| times the L2 norm of their input, output by output.

    Sun et al. 2023, arXiv:2306.11695. Each output loses exactly `sparsity * in` weights, rounded
    half up. Of equal scores the lower input is kept; kept weights are bit-unchanged.

    Args:
      kernel: (in, out), real floating point.
      inputs: (..., in), or their `Moments`.
      sparsity: fraction of zeros, in [0, 1).
      nm: (n, m) instead of `sparsity`: n of every m neighbouring inputs of an output are kept.

    Returns:
      The kernel with +0.0 at every dropped weight, and its bool mask, True = kept.

    Raises:
      TypeError, ValueError: shapes that do not fit, inputs that are not finite, or none; an output
        that would lose all of its weights.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel, inputs = jnp.array([[1.0, 4.0], [3.0, 50.0]]), jnp.array([[10.0, 1.0]])
      >>> wanda_kernel(kernel, inputs, 0.5)[0].tolist()
      [[1.0, 0.0], [0.0, 50.0]]
    """
    return _wanda(None, kernel, inputs, *_target(sparsity, nm))


def sparsegpt_kernel(
    kernel: jax.Array,
    inputs: Any,
    sparsity: float | None = None,
    nm: tuple[int, int] | None = None,
    *,
    block_size: int = 128,
    damping: float = 0.01,
) -> tuple[jax.Array, jax.Array]:
    """Drops weights input by input, and lets the later ones make up for it.

    Frantar & Alistarh 2023, arXiv:2301.00774. With the Hessian H = X^T X + damping, weight i of an
    output has the score |w_i| / U_ii, where U^T U = H^-1, U upper triangular; dropping it moves the
    weights after it by -w_i U_ij / U_ii. Masks are chosen one block of `block_size` inputs at a
    time, all its outputs together: up to the end of each block exactly `sparsity * inputs so far *
    out` weights are dropped, rounded half up, and so of the whole kernel, but not of each output.
    The weights of an input that is always 0 have score 0 and are not moved.

    Args:
      kernel: (in, out), real floating point.
      inputs: (..., in), or their `Moments`.
      sparsity: fraction of zeros, in [0, 1).
      nm: (n, m) instead of `sparsity`: n of every m neighbouring inputs of an output are kept.
      block_size: inputs per block; with `nm` a multiple of m.
      damping: what is added to the diagonal of X^T X, as a fraction of its mean over the inputs
        that are not always 0.

    Returns:
      The new kernel, +0.0 at every dropped weight, and its bool mask, True = kept.

    Raises:
      TypeError, ValueError: as `wanda_kernel`.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel, same = jnp.array([[1.0], [1.0]]), jnp.array([[1.0, 1.0], [-2.0, -2.0]])
      >>> new, _ = sparsegpt_kernel(kernel, same, 0.5)
      >>> f"{new[0, 0]:.2f} {new[1, 0]:.2f}"  # the second takes over from the first
      '0.00 1.99'
    """
    target, nm = _target(sparsity, nm)
    return _sparsegpt(None, kernel, inputs, target, nm, *_options(nm, block_size, damping))


def wanda(
    params: chex.ArrayTree,
    inputs: Mapping[str, Any],
    sparsity: float | None = None,
    *,
    include: Any = None,
    exclude: Any = (),
    nm: tuple[int, int] | None = None,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Prunes the kernels of a model as `wanda_kernel` does.

    Args:
      params: any tree, such as `variables["params"]` or `nnx.state(model, nnx.Param)`.
      inputs: path of a kernel -> what reached it, or its `Moments`; see `linen_inputs`.
      sparsity: fraction of zeros, in [0, 1).
      include: leaves to prune, as in `prune`; all of them need inputs.
      exclude: leaves left alone.
      nm: (n, m) instead of `sparsity`.

    Returns:
      The params, and bool masks (True = kept) at every leaf.

    Raises:
      TypeError, ValueError: with the path, as `wanda_kernel`; a leaf without inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"fc": {"kernel": jnp.array([[1.0], [3.0]]), "bias": jnp.ones(1)}}
      >>> params, masks = wanda(params, {"fc/kernel": jnp.array([[10.0, 1.0]])}, 0.5)
      >>> params["fc"]["kernel"].tolist(), masks["fc"]["bias"].tolist()
      ([[1.0], [0.0]], [True])
    """
    target, nm = _target(sparsity, nm)
    prune_one = functools.partial(_wanda, target=target, nm=nm)
    return _prune_tree("wanda", params, inputs, target, include, exclude, prune_one)


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
    """Prunes the kernels of a model as `sparsegpt_kernel` does.

    All layers are fitted to the inputs given. To fit each to what the pruned layers before it pass
    on, as the paper does, collect inputs anew and prune with `include=` one layer at a time.

    Args:
      params: as in `wanda`, and so are the arguments after it.
      inputs: path of a kernel -> what reached it, or its `Moments`.
      sparsity: fraction of zeros, in [0, 1).
      include: leaves to prune.
      exclude: leaves left alone.
      nm: (n, m) instead of `sparsity`.
      block_size: as in `sparsegpt_kernel`.
      damping: as in `sparsegpt_kernel`.

    Returns:
      The params, and bool masks (True = kept) at every leaf.

    Raises:
      TypeError, ValueError: as `wanda`.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0], [3.0]])}
      >>> sparsegpt(params, {"kernel": jnp.eye(2)}, nm=(1, 2))[0]["kernel"].tolist()
      [[0.0], [3.0]]
    """
    target, nm = _target(sparsity, nm)
    block_size, damping = _options(nm, block_size, damping)
    options = {"block_size": block_size, "damping": damping}
    prune_one = functools.partial(_sparsegpt, target=target, nm=nm, **options)
    return _prune_tree("sparsegpt", params, inputs, target, include, exclude, prune_one)


# What the arguments mean.


def _target(
    sparsity: float | None, nm: tuple[int, int] | None
) -> tuple[Fraction, tuple[int, int] | None]:
    """The fraction of zeros, and the pattern if there is one."""
    if (sparsity is None) == (nm is None):
        raise ValueError(
            f"either sparsity or nm is needed, got sparsity={sparsity!r} and nm={nm!r}. Pass 0.5 "
            "to drop any half of the weights, nm=(2, 4) to drop two of every four."
        )
    if nm is None:
        return as_sparsity(sparsity, "sparsity"), None
    if not (isinstance(nm, (tuple, list)) and len(nm) == 2 and all(map(_is_int, nm))):
        raise TypeError(f"nm must be two ints, such as (2, 4) for 2 of every 4, got {nm!r}.")
    n, m = map(int, nm)
    if not 1 <= n <= m:
        swapped = f" Did you mean ({m}, {n})?" if 1 <= m < n else ""
        raise ValueError(f"nm is (n, m) with 1 <= n <= m, n kept of every m, got {nm!r}.{swapped}")
    return Fraction(m - n, m), (n, m)


def _options(nm: tuple[int, int] | None, block_size: Any, damping: Any) -> tuple[int, float]:
    if not _is_int(block_size):
        raise TypeError(f"block_size must be an int, got {block_size!r}.")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}.")
    if nm is not None and block_size % nm[1]:
        fits = max(block_size // nm[1], 1) * nm[1]
        raise ValueError(
            f"block_size must be a multiple of the m of nm={nm}, got {block_size}. Pass "
            f"block_size={fits}."
        )
    if isinstance(damping, bool) or not isinstance(damping, numbers.Real):
        raise TypeError(f"damping must be a real number, got {damping!r}.")
    number = float(damping)
    if not 0 < number < math.inf:
        raise ValueError(
            f"damping must be positive and finite, got {number:g}. The Hessian of fewer "
            "inputs than weights has no inverse without it; 0.01 is usual."
        )
    return int(block_size), number


def _is_int(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def _wrong(kind: type[Exception], path: str | None, text: str) -> Exception:
    """The error about a kernel, or about a leaf, which can also be left out."""
    if path is None:
        return kind(f"kernel: {text}")
    fix = f" Or leave the leaf out with exclude={rule_for(path)!r}."
    return kind(f"{shown_path(path)}: {text}{fix}")


def _checked_kernel(path: str | None, kernel: Any, nm: tuple[int, int] | None) -> jax.Array:
    kernel = jnp.asarray(kernel)
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        text = f"real floating point weights are needed, got {kernel.dtype}. Cast them."
        raise _wrong(TypeError, path, text)
    if kernel.ndim != 2:
        text = (
            f"a kernel of shape (in, out) is needed, got {kernel.shape}. Prune its slices with "
            "jaxprune.wanda_kernel or sparsegpt_kernel, one by one."
        )
        raise _wrong(ValueError, path, text)
    if nm is not None and len(kernel) % nm[1]:
        text = (
            f"nm={nm} groups {nm[1]} neighbouring inputs, but there are {len(kernel)} (shape "
            f"{kernel.shape}). Choose an m that divides {len(kernel)}."
        )
        raise _wrong(ValueError, path, text)
    return kernel


def _prune_tree(
    name: str,
    params: chex.ArrayTree,
    inputs: Any,
    target: Fraction,
    include: Any,
    exclude: Any,
    prune_one: Callable[[str, Any, Any], tuple[jax.Array, jax.Array]],
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"{name}: `inputs` must map paths of kernels to what reached them, got "
            f"type {type(inputs).__name__}. jaxprune.linen_inputs and nnx_inputs collect it."
        )
    paths, leaves, treedef = leaves_with_paths(params)
    budget = Recipe.of((target,), include, exclude).budget(paths, leaves)
    warn_unused(name, budget.unused, paths, stacklevel=4)
    chosen = [paths[i] for i in budget.chosen]
    if unknown := [path for path in inputs if path not in paths]:
        raise ValueError(
            f"{name}: inputs of {listed(unknown)}, but the paths of the params are "
            f"{listed(paths)}. Name the kernel itself, as in 'fc/kernel', and pass the params "
            "alone, as in variables['params']."
        )
    if missing := [path for path in chosen if path not in inputs]:
        rules = [rule_for(path) for path in missing[:8]]
        raise ValueError(
            f"{name}: no inputs reached {listed(missing)}: either no Dense or Linear, or a layer "
            f"that did not run. Leave them out with exclude={rules}, or pass their inputs."
        )
    masks = [full_mask(leaf, bool) for leaf in leaves]
    for i in budget.chosen:
        leaves[i], masks[i] = prune_one(paths[i], leaves[i], inputs[paths[i]])
    return treedef.unflatten(leaves), treedef.unflatten(masks)


# The two algorithms.


def _wanda(
    path: str | None, kernel: Any, inputs: Any, target: Fraction, nm: tuple[int, int] | None
) -> tuple[jax.Array, jax.Array]:
    kernel = _checked_kernel(path, kernel, nm)
    n_in = len(kernel)
    squares = statistics(path, inputs, n_in, whole=False)
    n_keep = n_in - round_half_up(target * n_in)
    if n_in and not n_keep:
        text = f"each output would lose all of its {n_in} inputs at sparsity {float(target):g}."
        raise _wrong(ValueError, path, f"{text} Lower it.")
    if not kernel.size:
        return kernel, full_mask(kernel, bool)
    mask = wanda_mask(kernel, squares, jnp.int32(n_keep), nm)
    return keep(kernel, mask), mask


def _sparsegpt(
    path: str | None,
    kernel: Any,
    inputs: Any,
    target: Fraction,
    nm: tuple[int, int] | None,
    block_size: int,
    damping: float,
) -> tuple[jax.Array, jax.Array]:
    kernel = _checked_kernel(path, kernel, nm)
    n_in, n_out = kernel.shape
    gram = statistics(path, inputs, n_in, whole=True)
    if not kernel.size:
        return kernel, full_mask(kernel, bool)
    block_size = min(block_size, n_in)
    ends = [min(end, n_in) for end in range(0, n_in + block_size, block_size)]
    n_kept = [end * n_out - round_half_up(target * end * n_out) for end in ends]
    if not n_kept[-1]:
        text = f"all {kernel.size} weights would be lost at sparsity {float(target):g}. Lower it."
        raise _wrong(ValueError, path, text)
    n_keep = jnp.asarray(np.diff(n_kept), jnp.int32)
    return solve(kernel, gram, n_keep, jnp.float32(damping), nm, block_size)
