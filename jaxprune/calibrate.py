"""Pruning after training, with a batch of the inputs that reach each layer: Wanda and SparseGPT.

A layer is a kernel of shape (in, out) that its inputs are multiplied with: linen `Dense`, NNX
`Linear`. What counts is its output on those inputs, which they enter by second moments alone; so
`Moments` of any number of batches replace the inputs themselves. All arithmetic is in float32,
whatever the dtypes. `linen_inputs` and `nnx_inputs` collect what reaches the layers of a model.
"""

import contextlib
import functools
import importlib
import math
import numbers
import warnings
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxprune.budget import Recipe
from jaxprune.distribution import round_half_up
from jaxprune.floats import order_key
from jaxprune.mask import full_mask, keep
from jaxprune.paths import leaves_with_paths, listed, rule_for
from jaxprune.schedule import as_sparsity
from jaxprune.select import topk_mask

_HIGHEST = lax.Precision.HIGHEST


class Moments(NamedTuple):
    """All that the inputs of a layer tell about its weights; the sum of two is of both batches.

    Attributes:
      count: float32, how many inputs there were.
      gram: float32[in, in], the sum of their outer products, X^T X; for Wanda its diagonal,
        float32[in], is enough.
    """

    count: Any
    gram: Any


def moments(inputs: jax.Array) -> Moments:
    """The moments of a batch; those of several add up: `jax.tree.map(jnp.add, a, b)`.

    Args:
      inputs: (..., in), any real dtype.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> a, b = moments(jnp.array([[1.0, 2.0]])), moments(jnp.array([[3.0, 0.0]]))
      >>> both = jax.tree.map(jnp.add, a, b)
      >>> float(both.count), both.gram.tolist()
      (2.0, [[10.0, 2.0], [2.0, 4.0]])
    """
    x = _checked_inputs("moments: `inputs`", inputs)
    return Moments(jnp.float32(math.prod(x.shape[:-1])), _gram(x))


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
    return kind(f"{path or '(root)'}: {text}{fix}")


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


def _checked_inputs(where: str, inputs: Any) -> jax.Array:
    """Inputs as an array of at least one row of real numbers."""
    try:
        x = jnp.asarray(inputs)
    except (TypeError, ValueError):
        raise TypeError(f"{where} must be an array (..., in), got {inputs!r}.") from None
    real = jnp.issubdtype(x.dtype, jnp.number) and not jnp.iscomplexobj(x)
    if not real and x.dtype != bool:
        raise TypeError(f"{where} must be real numbers, got {x.dtype} of shape {x.shape}.")
    if x.ndim == 0 or (x.size == 0 and x.shape[-1] > 0):
        raise ValueError(
            f"{where} must hold at least one row (..., in), got shape {x.shape}. Pass a batch of "
            "what reaches the layer."
        )
    return x


def _statistics(path: str | None, inputs: Any, n_in: int, *, whole: bool) -> jax.Array:
    """X^T X, or at least its diagonal, checked against the number of inputs of the kernel."""
    where = "inputs" if path is None else f"inputs[{path!r}]"
    if isinstance(inputs, tuple) and not isinstance(inputs, Moments):
        raise TypeError(
            f"{where} must be an array or jaxprune.Moments, got a {type(inputs).__name__} of "
            f"{len(inputs)}. Add Moments up with jax.tree.map(jnp.add, a, b), not a + b."
        )
    if isinstance(inputs, Moments):
        gram, shapes = jnp.asarray(inputs.gram), [(n_in, n_in)] + [(n_in,)] * (not whole)
        if gram.shape not in shapes:
            needed = " or ".join(map(str, shapes))
            raise ValueError(
                f"{where}: the gram has shape {gram.shape}, but the kernel has {n_in} inputs: "
                f"{needed} is needed. Take the jaxprune.moments of what reaches this layer."
            )
        found = gram if whole or gram.ndim == 1 else jnp.diagonal(gram)
        found = found.astype(jnp.float32)
    else:
        x = _checked_inputs(where, inputs)
        if x.shape[-1] != n_in:
            raise ValueError(
                f"{where}: shape {x.shape} ends in {x.shape[-1]}, but the kernel has {n_in} inputs "
                "(its shape is (in, out)). Pass what reaches this layer."
            )
        found = _gram(x) if whole else _squares(x)
    if not isinstance(found, Tracer) and not bool(jnp.isfinite(found).all()):
        raise ValueError(
            f"{where}: NaN or inf, or values whose squares do not fit float32. Look for what made "
            "them, or scale the inputs down: masks do not depend on their scale."
        )
    return found


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
    for line in budget.unused:
        warnings.warn(f"jaxprune.{name}: {line}; the paths are {listed(paths)}", stacklevel=3)
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
    squares = _statistics(path, inputs, n_in, whole=False)
    n_keep = n_in - round_half_up(target * n_in)
    if n_in and not n_keep:
        text = f"each output would lose all of its {n_in} inputs at sparsity {float(target):g}."
        raise _wrong(ValueError, path, f"{text} Lower it.")
    if not kernel.size:
        return kernel, full_mask(kernel, bool)
    mask = _wanda_mask(kernel, squares, jnp.int32(n_keep), nm)
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
    gram = _statistics(path, inputs, n_in, whole=True)
    if not kernel.size:
        return kernel, full_mask(kernel, bool)
    block_size = min(block_size, n_in)
    ends = [min(end, n_in) for end in range(0, n_in + block_size, block_size)]
    n_kept = [end * n_out - round_half_up(target * end * n_out) for end in ends]
    if not n_kept[-1]:
        text = f"all {kernel.size} weights would be lost at sparsity {float(target):g}. Lower it."
        raise _wrong(ValueError, path, text)
    n_keep = jnp.asarray(np.diff(n_kept), jnp.int32)
    return _solve(kernel, gram, n_keep, jnp.float32(damping), nm, block_size)


@jax.jit
def _gram(inputs: jax.Array) -> jax.Array:
    x = _as_rows(inputs).astype(jnp.float32)
    return jnp.matmul(x.T, x, precision=_HIGHEST)


@jax.jit
def _squares(inputs: jax.Array) -> jax.Array:
    x = _as_rows(inputs).astype(jnp.float32)
    return jnp.sum(x * x, axis=0)


def _as_rows(x: jax.Array) -> jax.Array:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@functools.partial(jax.jit, static_argnames="nm")
def _wanda_mask(
    kernel: jax.Array, squares: jax.Array, n_keep: jax.Array, nm: tuple[int, int] | None
) -> jax.Array:
    scores = jnp.abs(kernel.astype(jnp.float32)) * jnp.sqrt(squares)[:, None]
    if nm is not None:
        return _keep_of_groups(scores, *nm)
    return jax.vmap(lambda s: topk_mask(s, n_keep), in_axes=1, out_axes=1)(scores)


def _keep_of_groups(scores: jax.Array, n: int, m: int) -> jax.Array:
    """True for the n largest of every m neighbours along axis 0; the first of equal ones."""
    keys = order_key(scores).reshape(-1, m, scores.shape[1])
    this, other = keys[:, :, None], keys[:, None]
    first = jnp.tri(m, k=-1, dtype=bool)[None, :, :, None]  # is the other one before this one?
    n_before = jnp.sum((other > this) | ((other == this) & first), axis=2)
    return (n_before < n).reshape(scores.shape)


def _inverse_factor(gram: jax.Array, damping: jax.Array) -> jax.Array:
    """The upper triangular U with U^T U = H^-1, where H is the damped Gram matrix, scaled.

    Inverting H and factoring the inverse would square its condition number, up to 1e6 here, which
    float32 has no room for. With H's rows and columns in reverse, H = L L^T gives H = R R^T with an
    upper triangular R, and U is the inverse of that.
    """
    diagonal = jnp.diagonal(gram)
    n_live = jnp.sum(diagonal > 0).astype(jnp.float32)
    scale = jnp.where(n_live > 0, jnp.sum(diagonal) / jnp.maximum(n_live, 1), 1)
    hessian = gram / scale + jnp.diag(jnp.where(diagonal > 0, damping, 1))
    lower = jnp.linalg.cholesky(hessian[::-1, ::-1])
    eye = jnp.eye(len(gram), dtype=jnp.float32)
    return jax.scipy.linalg.solve_triangular(lower, eye, lower=True)[::-1, ::-1]


@functools.partial(jax.jit, static_argnames=("nm", "block_size"))
def _solve(
    kernel: jax.Array,
    gram: jax.Array,
    n_keep: jax.Array,
    damping: jax.Array,
    nm: tuple[int, int] | None,
    block_size: int,
) -> tuple[jax.Array, jax.Array]:
    """SparseGPT with a budget per block; the last block is filled up with inputs of weight 0."""
    n_in = len(kernel)
    n_rows = len(n_keep) * block_size
    more = (0, n_rows - n_in)
    upper = jnp.pad(_inverse_factor(gram, damping), (more, more))
    upper = upper + jnp.diag((jnp.arange(n_rows) >= n_in).astype(jnp.float32))
    # An input that is always 0 can lose any weight. Those filled up come last among equals.
    live = jnp.pad((jnp.diagonal(gram) > 0).astype(jnp.float32), more)
    worth = live / jnp.diagonal(upper)

    def block(b: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w, masks = carry
        start = b * block_size
        rows = lax.dynamic_slice_in_dim(upper, start, block_size)
        w_block, mask, errors = _prune_block(
            lax.dynamic_slice_in_dim(w, start, block_size),
            lax.dynamic_slice_in_dim(rows, start, block_size, axis=1),
            lax.dynamic_slice_in_dim(worth, start, block_size),
            n_keep[b],
            nm,
        )
        later = jnp.where(jnp.arange(n_rows)[None] >= start + block_size, rows, 0)
        w = w - jnp.matmul(later.T, errors, precision=_HIGHEST)
        w = lax.dynamic_update_slice_in_dim(w, w_block, start, 0)
        return w, lax.dynamic_update_slice_in_dim(masks, mask, start, 0)

    w = jnp.pad(kernel.astype(jnp.float32), (more, (0, 0)))
    w, mask = lax.fori_loop(0, len(n_keep), block, (w, jnp.zeros(w.shape, bool)))
    mask = mask[:n_in]
    return keep(w[:n_in].astype(kernel.dtype), mask), mask


def _prune_block(
    w: jax.Array, upper: jax.Array, worth: jax.Array, n_keep: jax.Array, nm: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The weights of a block, their mask, and the errors to be made up for after the block."""
    size = len(w) if nm is None else nm[1]  # how many inputs a choice is among

    def group(g: jax.Array, carry: Any) -> Any:
        w, mask, errors = carry
        start = g * size
        scores = jnp.abs(lax.dynamic_slice_in_dim(w, start, size))
        scores = scores * lax.dynamic_slice_in_dim(worth, start, size)[:, None]
        kept = topk_mask(scores, n_keep) if nm is None else _keep_of_groups(scores, *nm)
        mask = lax.dynamic_update_slice_in_dim(mask, kept, start, 0)
        return lax.fori_loop(start, start + size, column, (w, mask, errors))

    def column(i: jax.Array, carry: Any) -> Any:
        w, mask, errors = carry
        error = jnp.where(mask[i], 0, w[i]) / upper[i, i]
        return w - upper[i][:, None] * error[None], mask, errors.at[i].set(error)

    carry = w, jnp.zeros(w.shape, bool), jnp.zeros_like(w)
    return lax.fori_loop(0, len(w) // size, group, carry)


# What reaches the layers of a model. Nothing above knows flax, nothing below knows pruning.


class _Rows:
    """The inputs of each kernel, collected while a model runs on concrete arrays."""

    def __init__(self, function: str, arguments: Any):
        if any(isinstance(x, Tracer) for x in jax.tree.leaves(arguments)):
            raise TypeError(
                f"{function} runs the model on arrays, got a traced value. Call it outside jit."
            )
        self.function = function
        self.running: set[str] = set()
        self.parts: dict[str, list[Any]] = {}

    @contextlib.contextmanager
    def call(self, path: str, x: Any) -> Iterator[Any]:
        """Around the call of a layer; yields what to call it with in place of `x`."""
        if path in self.running:  # inside a wrapper, as nn.remat(nn.Dense) makes
            yield x
            return
        self.running.add(path)
        try:
            yield _tapped(x, functools.partial(self._store, path))
        finally:
            self.running.remove(path)

    def _store(self, path: str, x: Any) -> Any:
        self.parts.setdefault(path, []).append(x)
        return x

    def collected(self) -> dict[str, jax.Array]:
        if not self.parts:
            raise ValueError(f"{self.function}: no layer ran whose inputs it knows how to collect.")
        return {path: _concatenated(parts) for path, parts in self.parts.items()}


def _tapped(x: Any, store: Callable[[Any], Any]) -> Any:
    """`x`, stored when it is computed. Inside remat or vmap that is later, and it must be used."""
    if not isinstance(x, Tracer):
        return store(x)
    # Not a debug callback: a linen scan traces its body once more than it runs it, to see that
    # nothing broadcast depends on it, and an effect would count.
    spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
    copied = lambda x: store(np.array(x))  # the buffer may be gone after the call
    tap = jax.custom_jvp(lambda x: jax.pure_callback(copied, spec, x, vmap_method="sequential"))
    tap.defjvp(lambda primals, tangents: (tap(*primals), tangents[0]))
    return tap(x)


def _concatenated(parts: list[Any]) -> jax.Array:
    rows = [_as_rows(jnp.asarray(x)) for x in parts]
    if len({x.dtype for x in rows}) > 1:
        rows = [x.astype(jnp.float32) for x in rows]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows)


def _flax(function: str, module: str) -> Any:
    try:
        return importlib.import_module(f"flax.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "flax":
            raise
        text = f"{function} needs flax, which is not installed: pip install 'jaxprune[flax]'."
        raise ModuleNotFoundError(text, name="flax") from error


def linen_inputs(model: Any, variables: Any, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
    """What reaches every `Dense` of a linen model in `model.apply(variables, *args, **kwargs)`.

    The model runs once, op by op (`jax.disable_jit`). A layer that runs several times, shared or in
    a scan, collects the inputs of all calls. Those inside remat or vmap are read by callbacks, with
    which JAX 0.10 and older may hang on one CPU core. For more batches than fit in memory, sum the
    moments:

        for batch in batches:
            new = jax.tree.map(jaxprune.moments, jaxprune.linen_inputs(model, variables, batch))
            total = new if total is None else jax.tree.map(jnp.add, total, new)

    Returns:
      Path of the kernel, as in `variables["params"]` -> its inputs, (rows, in).

    Raises:
      ModuleNotFoundError: flax is not installed.
      TypeError: it is called under `jit`.
      ValueError: no `Dense` ran.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> model, x = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), jnp.ones((5, 4))
      >>> variables = model.init(jax.random.key(0), x)
      >>> {path: x.shape for path, x in linen_inputs(model, variables, x).items()}
      {'layers_0/kernel': (5, 4), 'layers_2/kernel': (5, 3)}
    """
    nn = _flax("linen_inputs", "linen")
    rows = _Rows("linen_inputs", (variables, args, kwargs))

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module, nn.Dense) or context.method_name != "__call__":
            return call(*args, **kwargs)
        x, *more = args if args else (kwargs.pop("inputs"),)
        with rows.call("/".join((*module.path, "kernel")), x) as x:
            return call(x, *more, **kwargs)

    with nn.intercept_methods(intercept), jax.disable_jit():
        jax.block_until_ready(model.apply(variables, *args, **kwargs))
    return rows.collected()


def nnx_inputs(model: Any, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
    """What reaches every `Linear` of an NNX model in `model(*args, **kwargs)`; see `linen_inputs`.

    A copy of the model runs, so that statistics and counters stay as they are. Call `model.eval()`
    first to collect what layers see when the model is used.

    Returns:
      Path of the kernel, as in `nnx.state(model, nnx.Param)` -> its inputs, (rows, in).

    Raises:
      ModuleNotFoundError, TypeError, ValueError: as `linen_inputs`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> {path: x.shape for path, x in nnx_inputs(model, jnp.ones((5, 4))).items()}
      {'kernel': (5, 4)}
    """
    nnx = _flax("nnx_inputs", "nnx")
    rows = _Rows("nnx_inputs", (nnx.state(model), args, kwargs))
    twin = nnx.clone(model)
    nodes = list(nnx.iter_graph(twin))
    # By identity: layers may share a kernel, which the state has where it is found first.
    paths = {id(x): "/".join(map(str, path)) for path, x in reversed(nodes)}
    for _, layer in nodes:
        if isinstance(layer, nnx.Linear):
            _watch(layer, paths[id(layer.kernel)], rows)
    with jax.disable_jit():
        jax.block_until_ready(twin(*args, **kwargs))
    return rows.collected()


def _watch(layer: Any, path: str, rows: _Rows) -> None:
    """Gives the layer a class of its own, which outlives the copies that NNX transforms make."""

    class Watched(type(layer)):
        def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with rows.call(path, inputs) as x:
                return super().__call__(x, *args, **kwargs)

    object.__setattr__(layer, "__class__", Watched)
