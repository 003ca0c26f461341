"""How much can be pruned from each leaf (`sensitivity`), and how to divide a total among them.

Every leaf, or group of leaves, is pruned alone, at several sparsities, and the loss is evaluated.
Han et al., `Learning both Weights and Connections for Efficient Neural Networks
<https://arxiv.org/abs/1506.02626>`_, 2015, choose sparsities by layer in this way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxprune._base.argument_types import Selection, Sparsity
from jaxprune._base.arguments import as_sparsity, is_list, shown
from jaxprune._base.paths import (
    as_rules,
    check_arrays,
    flattened,
    is_model,
    leaves_with_paths,
    listed,
    matches,
    rule_for,
    spec_of,
)
from jaxprune._base.plurals import counted
from jaxprune._base.trees import ArrayTree
from jaxprune._recipe.argument_types import Roles, ScoreFunction, Structures
from jaxprune._recipe.budget import Recipe
from jaxprune._recipe.distributions import round_half_up
from jaxprune._recipe.roles import AxisRoles, RoleRules
from jaxprune._recipe.scores import magnitude
from jaxprune._recipe.spelling import is_matched, spelled, spelled_roles
from jaxprune._recipe.structures import Unstructured
from jaxprune._recipe.traits import traits_of
from jaxprune._report.sensitivity_table import Sensitivity
from jaxprune._transform.oneshot import check_once, grads_by_path, prune_params


def sensitivity(
    loss_fn: Callable[[Any], Any],
    params: ArrayTree,
    sparsities: Sequence[Sparsity] | np.ndarray,
    *,
    groups: Sequence[str] | None = None,
    include: Selection | None = None,
    exclude: Selection | None = (),
    structure: Structures = Unstructured(),
    score: ScoreFunction = magnitude,
    roles: Roles | None = None,
    grads: Any = None,
) -> Sensitivity:
    """The loss with each leaf pruned alone, at each of several sparsities.

    The loss is compiled once, and evaluated once for every leaf and sparsity, plus once for the
    dense params. Nothing is trained in between.

    Args:
      loss_fn: `params -> loss`, a scalar; a pure function, with the data inside, such as
        `lambda params: loss(params, batch)`.
      params: any tree.
      sparsities: fractions of zeros to try, in [0, 1), such as `(0.5, 0.8, 0.9)`.
      groups: regexes of whole paths. The pruned leaves that match one are pruned together, each to
        the same sparsity; a leaf belongs to the first group that matches it, and leaves in no group
        stay dense. By default, every pruned leaf is a group.
      include: which leaves to prune. This and the next four arguments are those of `prune`.
      exclude: which leaves to leave out.
      structure: what is kept or dropped together.
      score: how important each weight is.
      roles: what each axis of a leaf does, as `axis_roles` returns it.
      grads: gradients with the structure of the params, for scores that need them.

    Returns:
      A `Sensitivity`, with one row for each leaf or group.

    Raises:
      TypeError, ValueError: as in `prune_params`; no sparsities, or a loss that is not a scalar.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0, 9.0]]), "c": jnp.ones(1)}
      >>> total = lambda params: -sum(jnp.sum(leaf) for leaf in params.values())
      >>> table = sensitivity(total, params, (0.0, 0.5))
      >>> print(table)
      sensitivity: loss with one leaf pruned; -16 with none
      leaf  weights  0.0%  50.0%
      a           2   -16    -15
      b           2   -16    -13
      >>> jaxprune.sparsities_for(table, 0.25)
      {'a': 0.5, 'b': 0.0}
    """
    _check_loss_fn(loss_fn)
    tried = _sparsities(sparsities)
    paths, leaves, treedef = leaves_with_paths(params)
    if any(isinstance(x, jax.core.Tracer) for x in (*leaves, *flattened(grads)[0])):
        raise TypeError(
            "sensitivity: params and grads must be arrays, got a traced value. Call it outside jit."
        )
    check_arrays("sensitivity: params", params)
    check_arrays("sensitivity: grads", grads)
    largest = (as_sparsity(tried[-1], "sparsities"),)
    check_once("sensitivity(loss, params, sparsities, ", score, grads)
    recipe = Recipe.of(largest, include, exclude, structure=structure, score=score, roles=roles)
    chosen = [paths[i] for i in recipe.checked_budget(params, paths, leaves).chosen]
    members = _members(groups, chosen, paths)
    loss = _Loss(loss_fn, params)
    by_path = dict(zip(paths, leaves, strict=True))
    grads_of = None if grads is None else grads_by_path("sensitivity", grads, paths, leaves)
    rules = spelled_roles(recipe.roles, paths)
    prune = functools.partial(
        _prune_group, rules=rules, structure=_lenient(structure, paths), score=score
    )
    losses = np.zeros((len(members), len(tried)))
    n_zero = np.zeros((len(members), len(tried)), np.int64)
    for i, group in enumerate(members.values()):
        for j, sparsity in enumerate(tried):
            pruned, n_zero[i, j] = prune(group, by_path, grads_of, sparsity)
            losses[i, j] = loss(treedef.unflatten((by_path | pruned).values()))
    sizes = [sum(math.prod(by_path[path].shape) for path in group) for group in members.values()]
    counts = np.array(sizes, np.int64), n_zero
    fixed = any(traits_of(value).final_sparsity is not None for _, value in recipe.structures)
    return Sensitivity(
        tuple(members), tried, losses, loss.dense, *counts, groups is not None, fixed
    )


def _prune_group(
    group: Sequence[str],
    by_path: Mapping[str, Any],
    grads_of: Mapping[str, Any] | None,
    sparsity: float,
    rules: RoleRules | None,
    **options: Any,
) -> tuple[dict[str, Any], int]:
    """The leaves of a group, pruned, and how many of their weights are dropped."""
    grads = None if grads_of is None else {path: grads_of[path] for path in group}
    leaves = {path: by_path[path] for path in group}
    roles = None if rules is None else _roles_of(rules, leaves)
    pruned: Any
    masks: Any
    pruned, masks = prune_params(
        leaves, sparsity, include=_everything, grads=grads, roles=roles, **options
    )
    return pruned, sum(mask.size - int(jnp.sum(mask)) for mask in masks.values())


def _roles_of(rules: RoleRules, leaves: Mapping[str, Any]) -> AxisRoles | None:
    """The roles of some leaves; None where none of them has any."""
    roles = {path: rules.of(path, leaf.shape) for path, leaf in leaves.items()}
    known = {path: axes for path, axes in roles.items() if axes is not None}
    without = {path: rules.reason(path) for path in roles if path not in known}
    return AxisRoles(known, without) if known else None


def _everything(path: str, leaf: Any) -> bool:
    del path, leaf
    return True


def _sparsities(sparsities: Any) -> tuple[float, ...]:
    """The sparsities as floats, rising."""
    if not (is_list(sparsities) or isinstance(sparsities, np.ndarray)) or not len(sparsities):
        raise TypeError(
            "sensitivity: sparsities must be a sequence such as (0.5, 0.8, 0.9), got "
            f"{shown(sparsities)}."
        )
    exact = [as_sparsity(value, "sensitivity: sparsities") for value in sparsities]
    return tuple(sorted({float(value) for value in exact}))


def _members(groups: Any, chosen: Sequence[str], paths: Sequence[str]) -> dict[str, list[str]]:
    """The paths of each group of chosen leaves, by the regex of the user."""
    if groups is None:
        return {rule_for(path): [path] for path in chosen}
    rules = as_rules(groups, "sensitivity: groups")
    if not all(isinstance(rule, str) for rule in rules):
        raise TypeError(
            f"sensitivity: groups must be regexes, got {shown(groups)}. Write '.*/kernel'."
        )
    members: dict[str, list[str]] = {str(rule): [] for rule in rules}
    in_spelling = {rule: str(spelled(rule, paths)) for rule in members}
    for path in chosen:
        for rule in members:
            if is_matched(in_spelling[rule], [path]):
                members[rule].append(path)
                break
    if empty := [rule for rule, paths in members.items() if not paths]:
        raise ValueError(
            f"sensitivity: groups: {', '.join(map(repr, empty))} matches no leaf that is pruned "
            f"and in no earlier group. The pruned leaves are {listed(chosen)}."
        )
    return members


def _lenient(structure: Any, paths: Sequence[str]) -> Any:
    """The structure with rules that may match nothing: a group has only some of the leaves."""
    if not isinstance(structure, Mapping):
        return structure
    return {
        functools.partial(matches, spelled(rule, paths)): value for rule, value in structure.items()
    }


def _check_loss_fn(loss_fn: Any) -> None:
    """Raises a TypeError unless the loss is a function."""
    if not callable(loss_fn) or isinstance(loss_fn, type) or is_model(loss_fn):
        raise TypeError(
            f"sensitivity: loss_fn must be a function params -> loss, got {shown(loss_fn)}. Pass "
            "it first: sensitivity(lambda params: loss(params, batch), params, (0.5, 0.8))."
        )


class _Loss:
    """The loss of a user, compiled once.

    Attributes:
      dense: the loss of the dense params.
    """

    def __init__(self, loss_fn: Callable[[Any], Any], params: Any):
        leaves, treedef = jax.tree.flatten(params)
        fixed = [None if spec_of(leaf) is not None else leaf for leaf in leaves]

        def of_arrays(arrays: list[Any]) -> Any:
            """The loss; functions among the leaves, as of Equinox, are part of the program."""
            pairs = zip(arrays, fixed, strict=True)
            return loss_fn(treedef.unflatten([x if x is not None else own for x, own in pairs]))

        self._compiled = jax.jit(of_arrays)
        try:
            out = jax.eval_shape(of_arrays, _arrays_of(params))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise TypeError(
                f"sensitivity: loss_fn fails on these params, with {type(error).__name__}. Try "
                "the call first: loss_fn(params)."
            ) from error
        if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
            raise TypeError(
                f"sensitivity: loss_fn must return one real number, got {shown(out)}. Return only "
                "the loss, as in lambda params: jnp.mean(losses)."
            )
        self.dense = self(params)

    def __call__(self, params: Any) -> float:
        return float(self._compiled(_arrays_of(params)))


def _arrays_of(params: Any) -> list[Any]:
    """The leaves, with None in place of what is no array."""
    return [leaf if spec_of(leaf) is not None else None for leaf in jax.tree.leaves(params)]


# Dividing a total


class _Choice(NamedTuple):
    """To prune a group further: the next sparsity, its zeros, and the cost of each new zero."""

    cost: float
    group: int
    n_zero: int


def sparsities_for(sensitivity: Sensitivity, target: Sparsity) -> dict[str, float]:
    """Sparsities by leaf that reach a total, at the least loss as far as the table shows.

    It is greedy: it starts with nothing pruned and, again and again, prunes the group whose loss
    rises least for each weight that is dropped, until the total is reached. It adds the losses of
    the groups, although leaves that are pruned together may lose more or less than that.

    Args:
      sensitivity: the table.
      target: the fraction of zeros to reach in all leaves of the table together, in [0, 1).

    Returns:
      Regex -> sparsity, for `overrides=` of `prune` or `prune_params`. Leaves that are pruned on
      their own, weight by weight, get exactly `target` of all weights in the table together,
      rounded half up; blocks and channels get it as nearly as whole units allow. Pass `target` as
      the final sparsity, too.

    Raises:
      TypeError, ValueError: a target that the largest sparsities of the table do not reach; or a
        table with `NM`, which leaves no choice of sparsities.

    References:
      Han et al., `Learning both Weights and Connections for Efficient Neural Networks
      <https://arxiv.org/abs/1506.02626>`_, 2015, section 5.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> params = {"robust": jnp.full((8, 8), 0.1), "fragile": jnp.ones((8, 8))}
      >>> loss = lambda p: jnp.sum(p["robust"] ** 2) - 9 * jnp.sum(p["fragile"])
      >>> table = jaxprune.sensitivity(loss, params, (0.25, 0.5, 0.75))
      >>> sparsities_for(table, 0.25)
      {'fragile': 0.0, 'robust': 0.5}
    """
    if not isinstance(sensitivity, Sensitivity):
        raise TypeError(
            "sparsities_for: sensitivity must be what jaxprune.sensitivity returned, got "
            f"{shown(sensitivity)}."
        )
    if sensitivity.fixed:
        raise ValueError(
            "sparsities_for: the structure of the table, such as NM, prescribes the sparsity of "
            "its leaves, so they can't differ. Leave the leaves with the largest losses out with "
            "exclude= instead."
        )
    exact = as_sparsity(target, "sparsities_for: target")
    total = int(sensitivity.sizes.sum())
    missing = round_half_up(exact * total)
    most = int(sensitivity.n_zero[:, -1].sum())
    if missing > most:
        raise ValueError(
            f"sparsities_for: target {float(exact):g} needs {counted(missing, 'zero')}, but the "
            f"largest sparsity in the table, {sensitivity.sparsities[-1]:g}, makes only {most:,} "
            f"of {counted(total, 'weight')} zero. Add larger sparsities to the table."
        )
    n_zero = [0] * len(sensitivity.rules)
    loss = [sensitivity.dense_loss] * len(sensitivity.rules)
    while missing > 0:
        step = min(_choices(sensitivity, n_zero, loss))
        if math.isinf(step.cost):
            raise ValueError(
                "sparsities_for: the target needs sparsities at which the loss is not finite, in "
                f"{sensitivity.rules[step.group]!r}. Choose a lower target."
            )
        gained = min(step.n_zero - n_zero[step.group], missing)
        missing -= gained
        loss[step.group] += step.cost * gained
        n_zero[step.group] += gained
    shares = zip(sensitivity.rules, n_zero, sensitivity.sizes, strict=True)
    return {rule: _as_float(n, int(size)) for rule, n, size in shares}


def _choices(table: Sensitivity, n_zero: Sequence[int], loss: Sequence[float]) -> Iterator[_Choice]:
    """All ways to prune one group further."""
    for i in range(len(table.rules)):
        for more, worse in zip(table.n_zero[i].tolist(), table.losses[i].tolist(), strict=True):
            if more > n_zero[i]:
                cost = (worse - loss[i]) / (more - n_zero[i])
                yield _Choice(cost if math.isfinite(cost) else math.inf, i, more)


def _as_float(n_zero: int, size: int) -> float:
    """The shortest sparsity that makes exactly this many zeros in a leaf of this size."""
    for digits in range(1, 18):
        sparsity = round(n_zero / max(size, 1), digits)
        if round_half_up(Fraction(str(sparsity)) * size) == n_zero:
            return sparsity
    return n_zero / max(size, 1)
