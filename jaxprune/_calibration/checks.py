"""Checks of the arguments of Wanda and SparseGPT.

An error about a kernel starts with its path in the model, or with `kernel` if the function takes a
single kernel. An error about a kernel of a model ends with the `exclude` that leaves it out.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune._base.arguments import as_array, as_int, shown
from jaxprune._base.paths import listed, rule_for, shown_path
from jaxprune._calibration.kernel_view import KernelView


def check_block_size(block_size: Any) -> int:
    """The block size of SparseGPT as a Python int."""
    return as_int("block_size", block_size, least=1)


def check_multiple(block_size: int, nm: tuple[int, int] | None) -> None:
    """Checks that blocks do not split groups of m."""
    if nm is not None and block_size % nm[1]:
        multiple = max(block_size // nm[1], 1) * nm[1]
        raise ValueError(
            f"block_size must be a multiple of m for nm={nm}, got {block_size}. Pass "
            f"block_size={multiple}."
        )


def check_damping(damping: Any) -> float:
    """The damping of SparseGPT as a float."""
    if isinstance(damping, bool) or not isinstance(damping, numbers.Real):
        raise TypeError(f"damping must be a real number, such as 0.01, got {shown(damping)}.")
    number = float(damping)
    if not 0 < number < math.inf:
        raise ValueError(
            f"damping must be positive and finite, got {number:g}. Without damping, the Hessian "
            "has no inverse if there are fewer rows of data than inputs. The usual value is 0.01."
        )
    return number


# Kernels


def kernel_error(kind: type[Exception], path: str | None, problem: str) -> Exception:
    """An error about a kernel: the leaf at `path` of a model, or a single kernel if it is None."""
    if path is None:
        return kind(f"kernel: {problem}")
    fix = f"Or leave the leaf out with exclude={rule_for(path)!r}."
    return kind(f"{shown_path(path)}: {problem} {fix}")


def check_kernel(path: str | None, kernel: Any) -> jax.Array:
    """The kernel as an array of real floats."""
    where = "kernel" if path is None else shown_path(path)
    kernel = as_array(where, kernel, "Pass one kernel of shape (in, out).")
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        problem = (
            f"the weights must be real floating point numbers, got {kernel.dtype}. Cast them, "
            "for example with kernel.astype(jnp.float32)."
        )
        raise kernel_error(TypeError, path, problem)
    if path is None and kernel.ndim != 2:
        problem = (
            f"the kernel must have shape (in, out), got {kernel.shape}. For kernels of other "
            "shapes, call jaxprune.wanda or jaxprune.sparsegpt on a tree, with roles=."
        )
        raise kernel_error(ValueError, path, problem)
    return kernel


def check_pattern(path: str | None, view: KernelView, nm: tuple[int, int] | None) -> None:
    """Checks that groups of m neighbours along the inputs of a kernel are complete."""
    n_in = math.prod(view.sizes("in"))
    if nm is None or n_in % nm[1] == 0:
        return
    problem = (
        f"nm={nm} groups {nm[1]} neighbouring inputs, but the kernel has {n_in} inputs "
        f"(shape {view.shape}). Choose an m that divides {n_in}."
    )
    raise kernel_error(ValueError, path, problem)


# Inputs


def check_inputs(where: str, inputs: Any) -> jax.Array:
    """Inputs as an array of real numbers with at least one row."""
    fix = "Pass the inputs of one layer, of shape (..., in)."
    x = as_array(where, inputs, fix)
    is_real = jnp.issubdtype(x.dtype, jnp.number) and not jnp.iscomplexobj(x)
    if not is_real and x.dtype != bool:
        raise TypeError(f"{where} must be real numbers, got {x.dtype} of shape {x.shape}. {fix}")
    if x.ndim == 0 or (x.size == 0 and x.shape[-1] > 0):
        raise ValueError(
            f"{where} must hold at least one row (..., in), got shape {x.shape}. Pass a batch of "
            "inputs of the layer."
        )
    return x


def check_layer_inputs(where: str, inputs: Any, view: KernelView) -> jax.Array:
    """Inputs (*stack, ..., in) of a leaf as (matrices, rows, in).

    The axes that the product sums over may be one axis of the inputs, or as many as in the leaf.
    """
    if isinstance(inputs, tuple):
        raise TypeError(
            f"{where} must be an array or jaxprune.Moments, got a {type(inputs).__name__} of "
            f"length {len(inputs)}. Add Moments with jax.tree.map(jnp.add, a, b), not with a + b."
        )
    x = check_inputs(where, inputs)
    stack, summed = view.stack, view.sizes("in", "window")
    if x.ndim >= len(summed) > 1 and x.shape[-len(summed) :] == summed:
        x = x.reshape(*x.shape[: -len(summed)], view.n_rows)
    if x.shape[-1] != view.n_rows:
        shapes = "(in, out)" if view.roles == ("in", "out") else f"{view.shape}"
        raise ValueError(
            f"{where}: the last axis of shape {x.shape} has length {x.shape[-1]}, but the kernel "
            f"has {view.n_rows} inputs (its shape is {shapes}). Pass the inputs of this layer."
        )
    if x.shape[: len(stack)] != stack or x.ndim <= len(stack):
        raise ValueError(
            f"{where}: the inputs of a leaf with stack axes of lengths {stack} must have shape "
            f"({', '.join(map(str, stack))}, ..., {view.n_rows}), got {x.shape}. Pass the inputs "
            "of each slice, or their jaxprune.Moments."
        )
    return x.reshape(view.n_matrices, math.prod(x.shape[len(stack) : -1]), view.n_rows)


def check_gram(
    where: str, moments: Any, view: KernelView, *, diagonal: bool
) -> tuple[KernelView, jax.Array]:
    """The leaf's view with its groups, and the `gram` of its `Moments` for each of its matrices.

    Args:
      where: for errors.
      moments: of the user, with `count` and `gram`.
      view: of the leaf.
      diagonal: whether diagonals are enough.

    Returns:
      The view; and the gram, of shape (matrices, in, in) or, for diagonals, (matrices, in).
    """
    gram = as_array(f"{where}: gram", moments.gram, "Make it with jaxprune.moments(inputs).")
    stack, n_rows = view.stack, view.n_rows
    n_groups = _number_of_groups(gram.shape, jnp.shape(moments.count), view, diagonal=diagonal)
    slices = (*stack, n_groups) if n_groups else stack
    fitting = [(*slices, n_rows, n_rows)] + [(*slices, n_rows)] * diagonal
    if gram.shape in fitting and math.prod(view.sizes("out")) % max(n_groups, 1) == 0:
        view = view._replace(n_groups=max(n_groups, 1))
        return view, gram.reshape(view.n_matrices, *gram.shape[len(slices) :])
    allowed = [(*stack, n_rows, n_rows)] + [(*stack, n_rows)] * diagonal
    needed = " or ".join(map(str, allowed))
    raise ValueError(
        f"{where}: the gram has shape {gram.shape}, but for a kernel with {n_rows} inputs it "
        f"must have shape {needed}. Pass the jaxprune.moments of the inputs of this layer."
    )


def _number_of_groups(
    gram: tuple[int, ...], count: tuple[int, ...], view: KernelView, *, diagonal: bool
) -> int:
    """How many groups of outputs a gram of this shape has; 0 if it has no axis of groups.

    With as many groups as inputs, the diagonals of all groups have the shape of one gram. Then the
    shape of `count`, if it is no scalar, tells which they are.
    """
    n, n_rows = len(view.stack), view.n_rows
    if len(gram) == n + 3:
        return gram[n]
    is_of_groups = gram[n : n + 1] != (n_rows,) or count == gram[: n + 1]
    return gram[n] if diagonal and len(gram) == n + 2 and is_of_groups else 0


def check_finite(where: str, moments: jax.Array) -> jax.Array:
    """The second moments of inputs, which must be finite; under `jit` they are not checked."""
    if not isinstance(moments, Tracer) and not bool(jnp.isfinite(moments).all()):
        raise ValueError(
            f"{where}: contains NaN or inf, or values whose squares overflow float32. Find the "
            "cause, or scale the inputs down: masks do not depend on their scale."
        )
    return moments


def check_mapping(function: str, inputs: Any) -> None:
    """Checks that the inputs of a model are a mapping."""
    if not isinstance(inputs, Mapping) or not all(isinstance(path, str) for path in inputs):
        raise TypeError(
            f"{function}: `inputs` must map the paths of kernels to their inputs, got "
            f"{shown(inputs)}. Collect them with jaxprune.layer_inputs, jaxprune.linen_inputs or "
            "jaxprune.nnx_inputs."
        )


def by_paths(inputs: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The inputs by the paths that the params have.

    `layer_inputs` of the variables of a linen model has paths that begin with `params/`.
    """
    own = set(paths)
    return {_own_path(path, own): value for path, value in inputs.items()}


def _own_path(path: str, own: set[str]) -> str:
    shorter = path.removeprefix("params/")
    return shorter if shorter in own and path not in own else path


def check_paths(
    function: str,
    inputs: Mapping[str, Any],
    paths: Sequence[str],
    chosen: Sequence[str],
    reasons: Mapping[str, str],
) -> None:
    """Checks that inputs are given for paths of the params only, and for every chosen one.

    Args:
      function: the public function, for errors.
      inputs: by path.
      paths: of all leaves.
      chosen: the paths of those to prune.
      reasons: path -> why there are no inputs, where `layer_inputs` says so.
    """
    if unknown := [path for path in inputs if path not in paths]:
        raise ValueError(
            f"{function}: there are inputs for {listed(unknown)}, but the params have the paths "
            f"{listed(paths)}. Use the path of the kernel, such as 'fc/kernel', and pass only the "
            "params, such as variables['params']."
        )
    if missing := [path for path in chosen if path not in inputs]:
        raise _missing_inputs(function, missing, paths, reasons)


def _missing_inputs(
    function: str, missing: Sequence[str], paths: Sequence[str], reasons: Mapping[str, str]
) -> ValueError:
    """The error about leaves without inputs, each with the reason if it is known."""
    own = {_own_path(path, set(paths)): reason for path, reason in reasons.items()}
    unknown = "in no product, or its layer did not run"
    leaves = [f"{shown_path(path)} ({own.get(path) or unknown})" for path in missing[:8]]
    more = f", and {len(missing) - 8} more" if len(missing) > 8 else ""
    rules = [rule_for(path) for path in missing[:8]]
    it, its, rule = ("it", "its", repr(rules[0])) if len(missing) == 1 else ("them", "their", rules)
    return ValueError(
        f"{function}: there are no inputs for {', '.join(leaves)}{more}. Leave {it} out with "
        f"exclude={rule}, or pass {its} inputs."
    )
