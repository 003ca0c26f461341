"""Why a leaf, or a whole tree, cannot be pruned as asked, and what to type instead."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._base import paths as paths_lib
from jaxprune._base.paths import Choice, shown_path
from jaxprune._recipe.distributions import LeafShape
from jaxprune._recipe.scores import Accumulated
from jaxprune._recipe.structures import NM

Specs = tuple[jax.ShapeDtypeStruct | None, ...]


def check_nm(path: str, structure: NM, final: Fraction) -> None:
    """Raises where the sparsity asked of a leaf is not that of its N:M pattern."""
    needed = Fraction(structure.m - structure.n, structure.m)
    if abs(final - needed) > Fraction(1, 10**6):
        rule = paths_lib.rule_for(path)
        raise ValueError(
            f"{shown_path(path)}: {structure!r} drops {float(needed):g} of the weights, but the "
            f"final sparsity is {float(final):g}. Let the schedule end at {float(needed):g}, or "
            f"this leaf with overrides={{{rule!r}: {float(needed):g}}}."
        )


def check_score(path: str, spec: jax.ShapeDtypeStruct, score: Any) -> None:
    """Raises where a score function does not return one score per weight."""
    if isinstance(score, Accumulated):
        return
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        out = jax.eval_shape(score, spec, spec, key)
    except TypeError as error:
        raise TypeError(
            f"score: {getattr(score, '__name__', score)!r} fails on (params, grads, key) of "
            f"{shown_path(path)}: "
            f"{error}. A score takes all three; wrap one that does not: "
            "lambda params, grads, key: jnp.abs(params)."
        ) from error
    got = paths_lib.spec_of(out)
    if got is None or got.shape != spec.shape or not jnp.issubdtype(got.dtype, jnp.floating):
        what = type(out).__name__ if got is None else f"{got.dtype} of shape {got.shape}"
        raise ValueError(
            f"{shown_path(path)}: score returned {what} for {spec.dtype} of shape {spec.shape}; "
            "it must return one real floating point score per weight, as jaxprune.magnitude does."
        )


def check_leaf(path: str, spec: jax.ShapeDtypeStruct) -> None:
    """Raises where no weight of a leaf can be dropped or counted."""
    rule, path = paths_lib.rule_for(path), shown_path(path)
    if not jnp.issubdtype(spec.dtype, jnp.inexact):
        raise ValueError(
            f"{path}: dtype {spec.dtype} cannot be pruned; only floating point and complex weights "
            f"can. Leave the leaf out with exclude={rule!r}."
        )
    if spec.dtype.name == "float8_e8m0fnu":
        raise ValueError(
            f"{path}: dtype float8_e8m0fnu has no zero, so a weight cannot be dropped. Leave the "
            f"leaf out with exclude={rule!r}."
        )


def check_shuffled(paths: Sequence[str], budget: Any) -> None:
    """Raises where a pool is too large for hashed ties."""
    for i, leaf in zip(budget.chosen, budget.leaves, strict=True):
        n_units = max(budget.pools.n_units[pool] for pool in leaf.pools)
        if n_units >= 2**31 - 1 and not isinstance(leaf.structure, NM):
            raise ValueError(
                f"{shown_path(paths[i])}: it competes in a pool of {n_units}, but "
                'ties="hashed" shuffles at most 2**31 - 2. Use ties="index".'
            )


def emptied(leaf: LeafShape, n_units: int) -> str:
    """The error of a leaf that would lose everything."""
    rule = paths_lib.rule_for(leaf.path)
    units = "weights" if n_units == math.prod(leaf.shape) else "units"
    return (
        f"{shown_path(leaf.path)}: shape {leaf.shape} would lose all of its {n_units} {units} at "
        f"sparsity {float(leaf.targets[-1]):g}. Leave it out with exclude={rule!r}, or lower its "
        f"sparsity with overrides={{{rule!r}: ...}}."
    )


def nothing_chosen(
    paths: Sequence[str], choices: Sequence[Choice], specs: Specs, by_default: bool
) -> str:
    """The error of a tree of which nothing is chosen."""
    shown = ", ".join(
        f"{shown_path(p)} ({c.reason})" for p, c in list(zip(paths, choices, strict=True))[:8]
    )
    more = f", and {len(paths) - 8} more" if len(paths) > 8 else ""
    fix = 'A regex matches the whole path: write include=".*kernel", not "kernel".'
    if by_default:
        fix = (
            'By default leaves of inexact dtype with two or more axes are; pass include=".*" '
            "to choose others."
        )
    if by_default and tuple(paths) == ("",) and specs[0] is not None and specs[0].ndim == 1:
        fix += (
            " If optax.flatten made one leaf of many, flatten the optimizer alone: "
            "optax.chain(optax.flatten(optimizer), jaxprune.prune(schedule))."
        )
    return f"nothing to prune: none of the {len(paths)} leaves is chosen: {shown}{more}. {fix}"
