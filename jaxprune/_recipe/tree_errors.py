"""Errors about whole trees: they are not params, or none of their leaves is chosen."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._base.arguments import BadValue
from jaxprune._base.paths import Rule, path_str, shown_path
from jaxprune._recipe.choice import Choice
from jaxprune._recipe.default_choice import Specs

PASS_PARAMS = "Pass the params: variables['params'] of linen, or nnx.state(model, nnx.Param)."

NO_LEAVES = (
    "the params have no leaves, so there is nothing to prune; pass the params that the optimizer "
    "trains, in nnx.Optimizer by wrt=nnx.Param or another type that the model has"
)


def check_variables(paths: Sequence[str]) -> None:
    """Raises where a tree holds all variables of a linen model instead of its params."""
    if {"params", "batch_stats"} <= {path.partition("/")[0] for path in paths}:
        raise ValueError(
            "batch_stats: these are all variables of a linen model, but statistics are not "
            "weights. Pass variables['params'] alone, to the optimizer too."
        )


def check_no_optimizer_state(params: Any) -> None:
    """Raises where a tree holds the state of an optimizer or of training, moments included."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_state)
    for path, node in nodes:
        if type(node).__name__ == "SplitRealAndImaginaryArrays":
            raise TypeError(
                f"{shown_path(path_str(path))}: optax.contrib.split_real_and_imaginary, around "
                "prune, splits complex weights into two. Put it inside: prune(schedule, "
                "inner=split_real_and_imaginary(optimizer))."
            )
        if _is_state(node):
            kind = "the state of training" if _is_train_state(node) else "the state of an optimizer"
            raise TypeError(
                f"{shown_path(path_str(path))}: params must be a tree of weights, got {kind}, "
                f"{type(node).__name__}. Pass the params alone: state.params of a TrainState, or "
                "nnx.state(model, nnx.Param)."
            )


def _is_train_state(x: Any) -> bool:
    """Whether a node is a `TrainState` of Flax, or of a trainer that copies it."""
    return hasattr(type(x), "apply_gradients") and hasattr(x, "opt_state")


def _is_state(x: Any) -> bool:
    """Whether a node is a train state, or a state of optax or jaxprune that holds arrays.

    The placeholders of `optax.masked` hold none. Lookahead keeps two copies of the params in a
    NamedTuple.
    """
    if _is_train_state(x):
        return True
    kind = type(x)
    is_record = isinstance(x, tuple) and hasattr(kind, "_fields")
    if not is_record or kind.__module__.partition(".")[0] not in ("optax", "jaxprune"):
        return False
    return kind.__name__ != "LookaheadParams" and bool(jax.tree.leaves(x))


def nothing_chosen(
    paths: Sequence[str],
    choices: Sequence[Choice],
    specs: Specs,
    include: tuple[Rule, ...] | None,
) -> ValueError:
    """The error about a tree of which no leaf is chosen; `include` is None for the default."""
    pairs = list(zip(paths, choices, strict=True))
    reasons = ", ".join(f"{shown_path(path)} ({choice.reason})" for path, choice in pairs[:8])
    more = f", and {len(paths) - 8} more" if len(paths) > 8 else ""
    n_leaves = "the only leaf is not" if len(paths) == 1 else f"none of the {len(paths)} leaves is"
    problem = f"nothing to prune: {n_leaves} chosen: {reasons}{more}."
    if all(spec is None for spec in specs):
        return BadValue(problem, PASS_PARAMS)
    reasons_why = [choice.reason for choice in choices]
    if all(spec is None or not jnp.issubdtype(spec.dtype, jnp.inexact) for spec in specs):
        fix = "Only floating point and complex weights can be pruned: pass the params that these"
        return BadValue(problem, f"{fix} arrays were made of, or the float part of the tree.")
    if any(why.startswith("excluded by") and "the default" not in why for why in reasons_why):
        return BadValue(problem, "Exclude fewer leaves.")
    if include is not None and any(map(callable, include)):
        fix = "A function in include must return True for the leaves to prune."
        return BadValue(problem, fix)
    if include is not None:
        fix = "A regex must match the whole path: write {include}, not 'kernel'."
        return BadValue(problem, fix, include=".*kernel")
    fix = (
        "By default, leaves of inexact dtype with two or more axes are chosen, except biases, "
        "scales, masks, params that hold logarithms (such as log_std), normalisation and LoRA "
        "factors; pass {include} to choose others."
    )
    if tuple(paths) == ("",) and specs[0] is not None and specs[0].ndim == 1:
        fix += (
            " If optax.flatten made one leaf of many, flatten the optimizer alone: "
            "optax.chain(optax.flatten(optimizer), jaxprune.prune(schedule))."
        )
    return BadValue(problem, fix, include=".*")
