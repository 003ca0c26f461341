"""Prunes one kernel, or the kernels of a model, with Wanda or SparseGPT.

A solver (`Wanda`, `SparseGpt`) has a name, and a function `prune(path, kernel, inputs, view,
targets)` that prunes one leaf with one pattern. This module finds the leaves, their roles and their
targets.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import leaves_with_paths, shape_of, spec_of
from jaxprune._base.trees import ArrayTree
from jaxprune._calibration.checks import (
    by_paths,
    check_block_size,
    check_damping,
    check_kernel,
    check_mapping,
    check_multiple,
    check_paths,
    check_pattern,
    kernel_error,
)
from jaxprune._calibration.chosen import Rules
from jaxprune._calibration.inputs_of_leaves import LayerInputs, counts_nothing
from jaxprune._calibration.kernel_view import KernelView
from jaxprune._calibration.moments import check_params, layer_gram, layer_squares, per_slice
from jaxprune._calibration.sparsegpt_solver import prune_by_sparsegpt, rows_per_block
from jaxprune._calibration.targets import Target, Targets
from jaxprune._calibration.wanda_solver import prune_by_wanda
from jaxprune._recipe.tree_errors import check_variables
from jaxprune._state.masks import full_mask

Pruned = tuple[jax.Array, jax.Array]  # a kernel and its mask


class Solver(Protocol):
    """A method that prunes one leaf."""

    @property
    def name(self) -> str:
        """The public function, for errors."""
        ...

    def prune(
        self,
        path: str | None,
        kernel: jax.Array,
        inputs: Any,
        view: KernelView,
        targets: Sequence[Target],
    ) -> Pruned:
        """Prunes a leaf.

        Args:
          path: of the leaf, for errors.
          kernel: the leaf.
          inputs: what the solver needs to know about the inputs of the layer.
          view: how the leaf is reshaped to matrices.
          targets: one for each index of the stack axes of the leaf; all with the same N:M pattern,
            or all without.
        """
        ...


class Wanda(NamedTuple):
    """The solver of Wanda."""

    name: str = "wanda"

    def prune(
        self,
        path: str | None,
        kernel: jax.Array,
        inputs: Any,
        view: KernelView,
        targets: Sequence[Target],
    ) -> Pruned:
        """Prunes a leaf."""
        view, squares = layer_squares(path, inputs, view)
        n_keep = [target.n_keep(view.n_rows) for target in targets]
        if view.n_rows and not all(n_keep):
            sparsity = float(targets[n_keep.index(0)].sparsity)
            problem = (
                f"each output would lose all of its {view.n_rows} inputs at sparsity "
                f"{sparsity:g}. Lower the sparsity."
            )
            raise kernel_error(ValueError, path, problem)
        if not kernel.size:
            return kernel, full_mask(kernel, bool)
        counts = jnp.asarray(np.repeat(n_keep, view.n_groups), jnp.int32)
        return prune_by_wanda(kernel, squares, counts, view, targets[0].nm)


class SparseGpt(NamedTuple):
    """The solver of SparseGPT; its arguments are checked."""

    block_size: int
    damping: float
    name: str = "sparsegpt"

    @staticmethod
    def of(block_size: Any, damping: Any) -> "SparseGpt":
        """The solver with the arguments of a user."""
        return SparseGpt(check_block_size(block_size), check_damping(damping))

    def prune(
        self,
        path: str | None,
        kernel: jax.Array,
        inputs: Any,
        view: KernelView,
        targets: Sequence[Target],
    ) -> Pruned:
        """Prunes a leaf."""
        nm = targets[0].nm
        check_multiple(self.block_size, nm)
        view, gram = layer_gram(path, inputs, view)
        if not kernel.size:
            return kernel, full_mask(kernel, bool)
        block_size = rows_per_block(self.block_size, view.n_rows, nm)
        n_keep = [_n_keep(path, target, view, block_size) for target in targets]
        counts = jnp.asarray(np.repeat(n_keep, view.n_groups, axis=0), jnp.int32)
        damping = jnp.float32(self.damping)
        return prune_by_sparsegpt(kernel, gram, counts, damping, view, nm, block_size)


def _n_keep(path: str | None, target: Target, view: KernelView, block_size: int) -> np.ndarray:
    """How many weights each block of a matrix keeps."""
    n_in, n_out = view.n_rows, view.n_columns
    # How many weights are kept up to the end of each block; their differences are exact budgets.
    ends = [min(end, n_in) for end in range(0, n_in + block_size, block_size)]
    n_kept = [target.n_keep(end * n_out) for end in ends]
    if not n_kept[-1]:
        problem = (
            f"the kernel would lose all of its {n_in * n_out} weights at sparsity "
            f"{float(target.sparsity):g}. Lower the sparsity."
        )
        raise kernel_error(ValueError, path, problem)
    return np.diff(n_kept)


def prune_kernel(solver: Solver, kernel: Any, inputs: Any, target: Target) -> Pruned:
    """Prunes one kernel (in, out)."""
    kernel = check_kernel(None, kernel)
    return _prune_leaf(solver, None, kernel, inputs, KernelView(kernel.shape), [target])


def prune_tree(
    solver: Solver,
    params: ArrayTree,
    inputs: Any,
    targets: Targets,
    include: Any,
    exclude: Any,
    roles: Any,
) -> tuple[ArrayTree, ArrayTree]:
    """Prunes each chosen leaf of a tree."""
    check_params(solver.name, params)
    check_mapping(solver.name, inputs)
    collected_roles = getattr(inputs, "roles", None)
    roles = collected_roles if roles is None else roles
    rules = Rules.of(include, exclude, targets.overrides, roles)
    paths, leaves, treedef = leaves_with_paths(params)
    check_variables(paths)
    rules = rules.spelled_for(paths)
    # A leaf without weights has nothing to prune, and needs no inputs.
    chosen = [i for i in rules.chosen(params, paths, leaves) if math.prod(shape_of(leaves[i]))]
    if isinstance(inputs, LayerInputs) and counts_nothing(inputs):
        raise ValueError(
            f"{solver.name}: no leaf got any inputs: all counts of `inputs` are 0. Collect them "
            "from batches with at least one row."
        )
    reasons = getattr(inputs, "without", {})
    inputs = by_paths(inputs, paths)
    check_paths(solver.name, inputs, paths, [paths[i] for i in chosen], reasons)
    kernels = {i: check_kernel(paths[i], leaves[i]) for i in chosen}
    views = rules.views({paths[i]: x.shape for i, x in kernels.items()}, collected_roles)
    overrides = rules.checked_overrides(params, paths, leaves, views)
    targets = targets._replace(overrides=overrides)
    masks = [full_mask(leaf, bool) for leaf in leaves]
    for i, kernel in kernels.items():
        path, view = paths[i], views[paths[i]]
        leaf_targets = targets.of(path, spec_of(leaves[i]), view)
        of_leaf = per_slice(path, inputs[path], view, collected_roles)
        leaves[i], masks[i] = _prune_leaf(solver, path, kernel, of_leaf, view, leaf_targets)
    return treedef.unflatten(leaves), treedef.unflatten(masks)


def _prune_leaf(
    solver: Solver,
    path: str | None,
    kernel: jax.Array,
    inputs: Any,
    view: KernelView,
    targets: Sequence[Target],
) -> Pruned:
    """Prunes a leaf, once for each pattern that its slices have."""
    new, mask = kernel, None
    for nm in dict.fromkeys(target.nm for target in targets):
        check_pattern(path, view, nm)
        ordered = view._replace(windows_first=nm is not None)
        has_nm = [target.nm == nm for target in targets]
        nothing = Target(Fraction(0), nm)  # for the slices that have another pattern
        with_nm = [target if target.nm == nm else nothing for target in targets]
        pruned = solver.prune(path, kernel, inputs, ordered, with_nm)
        if mask is None:
            new, mask = pruned
        else:
            is_pruned = view.per_slice(has_nm)
            new = jnp.where(is_pruned, pruned[0], new)
            mask = jnp.where(is_pruned, pruned[1], mask)
    assert mask is not None
    return new, mask
