"""Checks of the arguments of Wanda and SparseGPT.

An error about a kernel starts with its path in the model, or with `kernel` if the function takes a
single kernel. An error about a kernel of a model ends with the `exclude` that leaves it out.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune._base.arguments import as_array, as_int, as_sparsity, is_int, shown
from jaxprune._base.paths import listed, rule_for, shown_path
from jaxprune._recipe.distributions import round_half_up


class Target(NamedTuple):
    """How many weights to drop.

    Attributes:
      sparsity: the exact fraction of zeros.
      nm: (n, m) where n of every m neighbouring inputs of an output are kept; None if any are.
    """

    sparsity: Fraction
    nm: tuple[int, int] | None

    def n_keep(self, n: int) -> int:
        """How many of `n` weights are kept."""
        return n - round_half_up(self.sparsity * n)


def as_target(sparsity: float | None, nm: tuple[int, int] | None) -> Target:
    """The target that a user gives by exactly one of the two arguments."""
    if (sparsity is None) == (nm is None):
        raise ValueError(
            f"pass either sparsity or nm, got sparsity={sparsity!r} and nm={nm!r}. Pass "
            "sparsity=0.5 to drop half of the weights, or nm=(2, 4) to keep two of every four."
        )
    if nm is None:
        return Target(as_sparsity(sparsity, "sparsity"), None)
    if not (isinstance(nm, (tuple, list)) and len(nm) == 2 and all(map(is_int, nm))):
        raise TypeError(f"nm must be two ints, such as (2, 4) for 2 of every 4, got {shown(nm)}.")
    n, m = map(int, nm)
    if not 1 <= n <= m:
        fix = f"Did you mean ({m}, {n})?" if 1 <= m < n else "Pass (2, 4) to keep 2 of every 4."
        raise ValueError(
            f"nm must be (n, m) with 1 <= n <= m, to keep n of every m, got {nm!r}. {fix}"
        )
    return Target(Fraction(m - n, m), (n, m))


def check_block_size(block_size: Any, nm: tuple[int, int] | None) -> int:
    """The block size of SparseGPT as a Python int; blocks must not split groups of m."""
    block_size = as_int("block_size", block_size, least=1)
    if nm is not None and block_size % nm[1]:
        multiple = max(block_size // nm[1], 1) * nm[1]
        raise ValueError(
            f"block_size must be a multiple of m for nm={nm}, got {block_size}. Pass "
            f"block_size={multiple}."
        )
    return block_size


def check_damping(damping: Any) -> float:
    """The damping of SparseGPT as a float."""
    if isinstance(damping, bool) or not isinstance(damping, numbers.Real):
        raise TypeError(f"damping must be a real number, such as 0.01, got {shown(damping)}.")
    number = float(damping)
    if not 0 < number < math.inf:
        raise ValueError(
            f"damping must be positive and finite, got {number:g}. Without damping, the Hessian "
            "has no inverse if there are fewer inputs than weights. The usual value is 0.01."
        )
    return number


# Kernels


def kernel_error(kind: type[Exception], path: str | None, problem: str) -> Exception:
    """An error about a kernel: the leaf at `path` of a model, or a single kernel if it is None."""
    if path is None:
        return kind(f"kernel: {problem}")
    fix = f"Or leave the leaf out with exclude={rule_for(path)!r}."
    return kind(f"{shown_path(path)}: {problem} {fix}")


def check_kernel(path: str | None, kernel: Any, nm: tuple[int, int] | None) -> jax.Array:
    """The kernel as an array of real floats with the shape (in, out)."""
    where = "kernel" if path is None else shown_path(path)
    kernel = as_array(where, kernel, "Pass one kernel of shape (in, out).")
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        problem = (
            f"the weights must be real floating point numbers, got {kernel.dtype}. Cast them, "
            "for example with kernel.astype(jnp.float32)."
        )
        raise kernel_error(TypeError, path, problem)
    if kernel.ndim != 2:
        problem = (
            f"the kernel must have shape (in, out), got {kernel.shape}. Prune one 2-D slice at a "
            "time with jaxprune.wanda_kernel or jaxprune.sparsegpt_kernel."
        )
        raise kernel_error(ValueError, path, problem)
    if nm is not None and len(kernel) % nm[1]:
        problem = (
            f"nm={nm} groups {nm[1]} neighbouring inputs, but the kernel has {len(kernel)} inputs "
            f"(shape {kernel.shape}). Choose an m that divides {len(kernel)}."
        )
        raise kernel_error(ValueError, path, problem)
    return kernel


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


def check_layer_inputs(where: str, inputs: Any, n_in: int) -> jax.Array:
    """Inputs as an array (..., in) that fits a kernel with `n_in` inputs."""
    if isinstance(inputs, tuple):
        raise TypeError(
            f"{where} must be an array or jaxprune.Moments, got a {type(inputs).__name__} of "
            f"length {len(inputs)}. Add Moments with jax.tree.map(jnp.add, a, b), not with a + b."
        )
    x = check_inputs(where, inputs)
    if x.shape[-1] != n_in:
        raise ValueError(
            f"{where}: the last axis of shape {x.shape} has length {x.shape[-1]}, but the kernel "
            f"has {n_in} inputs (its shape is (in, out)). Pass the inputs of this layer."
        )
    return x


def check_gram(
    where: str, gram: Any, n_in: int, allowed_shapes: Sequence[tuple[int, ...]]
) -> jax.Array:
    """The `gram` of `Moments` as an array that fits a kernel with `n_in` inputs."""
    gram = as_array(f"{where}: gram", gram, "Make it with jaxprune.moments(inputs).")
    if gram.shape not in allowed_shapes:
        needed = " or ".join(map(str, allowed_shapes))
        raise ValueError(
            f"{where}: the gram has shape {gram.shape}, but for a kernel with {n_in} inputs it "
            f"must have shape {needed}. Pass the jaxprune.moments of the inputs of this layer."
        )
    return gram


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
            f"{shown(inputs)}. Collect them with jaxprune.linen_inputs or "
            "jaxprune.nnx_inputs."
        )


def check_paths(
    function: str, inputs: Mapping[str, Any], paths: Sequence[str], chosen: Sequence[str]
) -> None:
    """Checks that inputs are given for paths of the params only, and for every chosen one."""
    if unknown := [path for path in inputs if path not in paths]:
        raise ValueError(
            f"{function}: there are inputs for {listed(unknown)}, but the params have the paths "
            f"{listed(paths)}. Use the path of the kernel, such as 'fc/kernel', and pass only the "
            "params, such as variables['params']."
        )
    if missing := [path for path in chosen if path not in inputs]:
        rules = [rule_for(path) for path in missing[:8]]
        raise ValueError(
            f"{function}: there are no inputs for {listed(missing)}. Either these are not layers "
            "of type Dense or Linear, or the layers did not run. Leave them out with "
            f"exclude={rules}, or pass their inputs."
        )
