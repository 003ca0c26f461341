"""One leaf to decide, and how its weights are scored and its pools are formed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._base.sharding import typed_like
from jaxprune._recipe.leaf import Leaf
from jaxprune._recipe.scores import leaf_arguments
from jaxprune._transform.operand import Operand, Rules


class Case(NamedTuple):
    """One leaf to decide: its operand, which weights may be kept, how, and where to start."""

    operand: Operand
    allowed: Any
    leaf: Leaf
    start: Any


def is_one_pool(case: Case) -> bool:
    """Whether all units of a leaf compete with each other."""
    leaf, shape = case.leaf, case.operand.param.shape
    if leaf.axes or leaf.traits.decides_in_groups:
        return False
    return leaf.structure.n_groups(shape) == 1


def weight_scores(case: Case, rules: Rules) -> jax.Array:
    """One score per weight of a leaf, stored."""
    operand, leaf = case.operand, case.leaf
    about_leaf = leaf_arguments(rules.score, leaf.path, leaf.roles)
    scores = rules.score(operand.param, operand.grad, operand.key, **about_leaf)
    # Random scores are drawn on the devices that need them, not all on every device.
    return typed_like(scores, operand.param) if jnp.shape(scores) == operand.param.shape else scores


def n_columns(case: Case, shape: tuple[int, ...]) -> int:
    """How many groups of a slice of this shape are chosen from column by column; 1 if none is."""
    structure: Any = case.leaf.structure
    return 1 if case.leaf.traits.decides_in_groups else structure.n_groups(shape)
