"""Prunes a model layer by layer, with the inputs that the pruned layers before it produce.

`steps` orders the leaves as their products run. For each step, the model runs once, the moments of
the step's leaves are collected, and these leaves are pruned.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.argument_types import Selection, Sparsity
from jaxprune._base.arguments import shown
from jaxprune._base.paths import (
    Rule,
    as_rules,
    leaves_with_paths,
    listed,
    rule_for,
    shape_of,
    spec_of,
)
from jaxprune._base.trees import ArrayTree
from jaxprune._calibration.batches import as_batches, progress_bar
from jaxprune._calibration.calibrate import sparsegpt, wanda
from jaxprune._calibration.checks import check_paths
from jaxprune._calibration.chosen import Rules
from jaxprune._calibration.collection import (
    Collection,
    ModelTrace,
    has_empty_array,
    no_inputs,
    shape_key,
    warn_of_training,
)
from jaxprune._calibration.inputs_of_leaves import LayerInputs, counts_nothing
from jaxprune._calibration.kernel_view import KernelView
from jaxprune._calibration.moments import Moments
from jaxprune._calibration.steps import Part, looked_up_in_loops, steps_of
from jaxprune._calibration.targets import Target, as_targets
from jaxprune._recipe.roles import AxisRoles
from jaxprune._recipe.spelling import is_matched, spelled_rules
from jaxprune._state.masks import full_mask
from jaxprune._trace.model_arguments import check_function, is_function


def prune_sequentially(
    method: Callable[..., Any],
    apply_fn: Callable[..., Any],
    variables: Any,
    *batch: Any,
    batches: Iterable[Any] | None = None,
    sparsity: Sparsity | None = None,
    nm: tuple[int, int] | None = None,
    include: Selection | None = None,
    exclude: Selection | None = (),
    overrides: Mapping[Any, Any] | None = None,
    blocks: Sequence[Any] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> tuple[ArrayTree, ArrayTree]:
    """Prunes a model layer by layer, each with the inputs that the pruned layers before it produce.

    This is what the papers of Wanda and SparseGPT do. `wanda` and `sparsegpt` alone prune all
    layers with the inputs that the dense model produces.

    Leaves are pruned in the order in which their products run. Leaves that share their input, such
    as query, key and value, are pruned together. Layers of a `scan` are pruned one after another.
    The model runs once for each of these steps, on all batches.

    Any other leaf is pruned in one step, before the first of its products: also one that holds
    several layers, such as `params["w"][i]` in a Python loop. If a `fori_loop` or a `scan` looks up
    the layers by an index, a warning says so.

    Args:
      method: `wanda` or `sparsegpt`.
      apply_fn: a function `(variables, *batch) -> outputs`, as in `layer_inputs`.
      variables: its first argument.
      batch: its other arguments, for one batch.
      batches: instead of `batch`, an iterable of batches, as in `layer_inputs`.
      sparsity: fraction of zeros, in [0, 1). Pass exactly one of `sparsity` and `nm`.
      nm: (n, m) instead of `sparsity`.
      include: leaves to prune, as in `prune`.
      exclude: leaves to leave out, as in `prune`.
      overrides: as in `wanda`.
      blocks: regexes, such as `[".*layers_0/.*", ".*layers_1/.*"]`. All leaves that match the same
        one are pruned together, with inputs from before the first of them was pruned: fewer runs,
        and what the authors' code does with each transformer block.
      progress: whether to show a progress bar, as in `layer_inputs`.
      options: other arguments of the method, such as `damping`.

    Returns:
      The variables, and bool masks (True = kept) at every leaf.

    Raises:
      TypeError, ValueError, ModuleNotFoundError: as for `layer_inputs` and for the method.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> w, v, x = (jax.random.normal(key, (8, 8)) for key in keys)
      >>> params, masks = prune_sequentially(
      ...     jaxprune.sparsegpt, mlp, {"w": w, "v": v}, x, sparsity=0.5
      ... )
      >>> int((params["v"] == 0).sum())
      32
    """
    function = "prune_sequentially"
    _check_functions(function, method, apply_fn)
    _check_options(function, method, options)
    items = list(as_batches(function, batch, batches, False))
    if not items:
        raise ValueError(f"{function}: batches is empty. Pass at least one batch.")
    targets = as_targets(sparsity, nm, overrides)
    rules = Rules.of(include, exclude, targets.overrides, None)
    model = _Model(apply_fn, variables, items, rules, diagonal=method is wanda)
    views, of_leaves_and_slices = model.checked(rules)
    targets = targets._replace(overrides=of_leaves_and_slices)
    block_rules = _block_rules(function, blocks, model.first.program.paths)
    model.check_inputs(function, list(views))
    steps = steps_of(model.first, list(views), block_rules)
    _warn_of_lookups(function, looked_up_in_loops(model.first, list(views)))
    prune = _Pruner(method, options, model)
    for step in progress_bar(function, steps, len(steps), progress, unit="step"):
        inputs = model.inputs([part.path for part in step])
        for part in step:
            view = views[part.path]
            leaf_targets = targets.of(part.path, spec_of(model.leaf(part.path)), view)
            prune.part(part, inputs[part.path], view, leaf_targets)
    return prune.result()


def _warn_of_lookups(function: str, paths: Sequence[str]) -> None:
    """Warns of layers that can't be pruned one after another."""
    if paths:
        warnings.warn(
            f"jaxprune.{function}: a loop looks up the layers in {listed(paths)} by an index, so "
            "all layers of such a leaf are pruned together, with the inputs that the dense layers "
            "produce. To prune one after another, scan over the leaf itself: "
            "jax.lax.scan(body, x, params['w']).",
            stacklevel=3,
        )


def _block_rules(function: str, blocks: Any, paths: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of `blocks` in the spelling of the paths; raises where one matches no leaf."""
    rules = spelled_rules(as_rules(() if blocks is None else blocks, "blocks"), paths)
    for rule in rules:
        if isinstance(rule, str) and not is_matched(rule, paths):
            raise ValueError(
                f"{function}: blocks: {rule!r} matches no leaf; the leaves are {listed(paths)}. A "
                f"regex matches the whole path, for example {rule_for(paths[0])!r}."
            )
    return rules


def _check_functions(function: str, method: Any, apply_fn: Any) -> None:
    """Raises a TypeError unless both are functions."""
    call = f"{function}(wanda, model.apply, variables, x)"
    if not is_function(method):
        raise TypeError(
            f"{function}: method must be jaxprune.wanda or jaxprune.sparsegpt, got "
            f"{shown(method)}. Pass it first: {call}."
        )
    problem = (
        f"{function}: apply_fn must be a function (variables, *batch) -> outputs, got "
        f"{shown(apply_fn)}. Pass it second: {call}."
    )
    if apply_fn is wanda or apply_fn is sparsegpt or not is_function(apply_fn):
        raise TypeError(problem)
    check_function(function, apply_fn)


def _check_options(function: str, method: Any, options: Mapping[str, Any]) -> None:
    """Raises a TypeError unless the method can be called as `_Pruner` does, with these options."""
    if "roles" in options:
        raise TypeError(
            f"{function}: it takes no roles, got roles={shown(options['roles'])}. It finds the "
            "roles in the program of the model: leave roles out, or call "
            "wanda(params, layer_inputs(apply_fn, params, x), 0.5, roles=...)."
        )
    try:
        signature = inspect.signature(method)
    except ValueError:  # functions without a signature
        return
    name = getattr(method, "__name__", shown(method))
    try:
        signature.bind({}, {}, sparsity=0.5, include="", roles=None)
    except TypeError:
        raise TypeError(
            f"{function}: method must be jaxprune.wanda or jaxprune.sparsegpt, or take the same "
            f"arguments, got {name}. Pass it first: {function}(wanda, model.apply, variables, x)."
        ) from None
    try:
        signature.bind({}, {}, sparsity=0.5, include="", roles=None, **options)
    except TypeError as error:
        raise TypeError(
            f"{function}: {name} does not take these options, got {', '.join(options)}: {error}. "
            f"Remove what is not an argument of {name}."
        ) from None


# Collecting and pruning


class _Model:
    """The model with its current params, and the batches."""

    def __init__(
        self,
        apply_fn: Callable[..., Any],
        variables: Any,
        batches: Sequence[tuple[Any, ...]],
        rules: Rules,
        *,
        diagonal: bool,
    ):
        self.variables = variables
        self._batches, self._diagonal = batches, diagonal
        self._traces: dict[Any, ModelTrace] = {}
        for batch in batches:
            if (key := shape_key(batch)) not in self._traces:
                self._traces[key] = ModelTrace.of(apply_fn, variables, batch, rules.leaves)
        self.first = next(iter(self._traces.values()))
        warn_of_training("prune_sequentially", self.first.program)
        self._leaves = list(self.first.program.leaves)
        self._collections: dict[Any, Collection] = {}

    def leaf(self, path: str) -> Any:
        """The current value of a leaf."""
        return self._leaves[self.first.program.paths.index(path)]

    def set(self, path: str, leaf: jax.Array) -> None:
        """Replaces a leaf."""
        self._leaves[self.first.program.paths.index(path)] = leaf

    def checked(self, rules: Rules) -> tuple[dict[str, KernelView], tuple[tuple[Rule, Any], ...]]:
        """How each chosen leaf forms matrices, and the overrides in the spelling of the paths.

        Raises:
          ValueError: a leaf has no inputs, or a rule matches nothing.
        """
        paths, leaves, _ = leaves_with_paths(self.variables)
        rules = rules.spelled_for(paths)
        indices = rules.chosen(self.variables, paths, leaves)
        chosen = [paths[i] for i in indices if math.prod(shape_of(leaves[i]))]
        trace = self.first
        check_paths("prune_sequentially", trace.leaves, paths, chosen, trace.without)
        views = {path: trace.leaves[path].view for path in chosen}
        return views, rules.checked_overrides(
            self.variables, paths, leaves, views, finds_roles=True
        )

    def check_inputs(self, function: str, paths: Sequence[str]) -> None:
        """Raises where the batches have no inputs for any of these leaves."""
        is_suspect = paths and all(map(has_empty_array, self._batches))
        if is_suspect and counts_nothing(self.inputs(paths)):
            raise no_inputs(function, self._batches[0])

    def inputs(self, paths: Sequence[str]) -> LayerInputs:
        """The moments of these leaves over all batches, with the current params."""
        totals = collection = None
        for batch in self._batches:
            key = shape_key(batch)
            trace, paths_key = self._traces[key], (key, tuple(sorted(set(paths))))
            if paths_key not in self._collections:
                self._collections[paths_key] = Collection(trace, paths_key[1], self._diagonal)
            collection = self._collections[paths_key]
            totals = collection.add(totals, self._leaves, batch)
        assert collection is not None  # there are batches
        assert totals is not None
        return collection.result(totals)


class _Pruner:
    """Prunes parts of leaves, and collects their masks."""

    def __init__(self, method: Callable[..., Any], options: Mapping[str, Any], model: _Model):
        self._method, self._options, self._model = method, options, model
        self._masks: dict[str, jax.Array] = {}

    def part(
        self, part: Part, moments: Moments, view: KernelView, targets: Sequence[Target]
    ) -> None:
        """Prunes a part of a leaf; each slice has a target."""
        leaf = jnp.asarray(self._model.leaf(part.path))
        mask = self._masks.get(part.path, full_mask(leaf, bool))
        numbers = range(len(targets)) if part.slices is None else part.slices
        by_target: dict[Target, list[int]] = {}
        for number in numbers:
            by_target.setdefault(targets[number], []).append(number)
        for target, slices in by_target.items():
            for box in _boxes(slices, view.stack):
                leaf, mask = self._box(part.path, leaf, mask, moments, view, target, box)
        self._model.set(part.path, leaf)
        self._masks[part.path] = mask

    def _box(
        self,
        path: str,
        leaf: jax.Array,
        mask: jax.Array,
        moments: Moments,
        view: KernelView,
        target: Target,
        box: Sequence[Sequence[int]],
    ) -> tuple[jax.Array, jax.Array]:
        """Prunes the slices at these indices of each stack axis."""
        stack = view.axes("stack")
        index: list[Any] = [np.arange(n) for n in view.shape]
        for axis, indices in zip(stack, box, strict=True):
            index[axis] = np.asarray(indices)
        where = np.ix_(*index)
        lead = np.ix_(*map(np.asarray, box)) if box else ()
        count, gram = (jnp.asarray(x)[lead] if box else x for x in moments)
        how = {"nm": target.nm} if target.nm else {"sparsity": target.sparsity}
        new, masks = self._method(
            {path: leaf[where] if stack else leaf},
            {path: Moments(count, gram)},
            **how,
            include=rule_for(path),
            roles=AxisRoles({path: view.roles}),
            **self._options,
        )
        if not stack:
            return new[path], masks[path]
        return leaf.at[where].set(new[path]), mask.at[where].set(masks[path])

    def result(self) -> tuple[ArrayTree, ArrayTree]:
        """The variables and the masks."""
        paths, leaves, treedef = leaves_with_paths(self._model.variables)
        masks = [
            self._masks[path] if path in self._masks else full_mask(leaf, bool)
            for path, leaf in zip(paths, leaves, strict=True)
        ]
        leaves = [
            self._model.leaf(path) if path in self._masks else leaf
            for path, leaf in zip(paths, leaves, strict=True)
        ]
        return treedef.unflatten(leaves), treedef.unflatten(masks)


def _boxes(numbers: Sequence[int], stack: Sequence[int]) -> list[list[list[int]]]:
    """Slices by number as products of indices along each stack axis: one product if they form one.

    Example:
      >>> _boxes([2, 3], (2, 2)), _boxes([0, 3], (2, 2))
      ([[[1], [0, 1]]], [[[0], [0]], [[1], [1]]])
    """
    if not stack:
        return [[]]
    indices = np.stack(np.unravel_index(numbers, stack), axis=1)
    axes = [sorted(set(column.tolist())) for column in indices.T]
    if np.prod([len(axis) for axis in axes]) == len(numbers):
        return [axes]
    return [[[int(k)] for k in row] for row in indices]
