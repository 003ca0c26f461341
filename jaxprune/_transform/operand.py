"""What scores are computed from, and whether they are stored or computed in every read."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune._base.sharding import on_gpu
from jaxprune._recipe.scores import (
    is_elementwise,
    leaf_arguments,
    magnitude,
    needs_key,
    random_score,
)
from jaxprune._topk.drawn import Drawn, can_be_drawn


class Operand(NamedTuple):
    """What the scores of one leaf are computed from; see `jaxprune._recipe.scores`."""

    param: jax.Array
    grad: Any = None
    key: Any = None
    scale: Any = None  # the scores are divided by it, an array of one number


class Rules(NamedTuple):
    """How units are compared; host values, hashable.

    Attributes:
      score: score function.
      ties: which of equal scores are kept, `"index"` or `"hashed"`; see `prune`.
      normalized: what the scores of each leaf are divided by; see `Distribution`.
      axis_name: a mapped axis over which every leaf is split, or None; see `select`. Only for
        leaves that are one pool, or a part of one.
    """

    score: Callable[..., jax.Array] = magnitude
    ties: str = "index"
    normalized: bool | str = False
    axis_name: Any = None


@dataclasses.dataclass(frozen=True)
class Scored:
    """The score of an operand; unit scores, which are arrays already, are returned unchanged.

    Two are equal if their functions are, so that equal selections share their compilation.
    """

    score: Callable[..., jax.Array]

    def __call__(self, operand: Any) -> jax.Array:
        if isinstance(operand, Drawn):
            return operand.scores()
        if not isinstance(operand, Operand):
            return operand
        # A score that was found to be elementwise reads no key, but may fail on None.
        key = jax.random.key(0) if needs_key(self.score) else None
        scores = self.score(operand.param, operand.grad, key)
        return scores if operand.scale is None else scores.astype(jnp.float32) / operand.scale


def is_fused(operand: Operand, rules: Rules) -> bool:
    """Whether scores are computed again in every read of the weights, and never stored.

    Scores that are divided by a scale are stored, except on GPUs: elsewhere a division takes longer
    than reading a score.
    """
    is_stored = bool(rules.normalized) and not on_gpu([operand.param])
    return not is_stored and has_elementwise_score(operand, rules)


def is_drawn(operand: Operand, rules: Rules) -> bool:
    """Whether random scores are drawn in every read of the weights, and never stored: on GPUs.

    Elsewhere drawing a score takes longer than reading it, and memory is not as short.
    """
    if rules.score is not random_score or rules.normalized or not on_gpu([operand.param]):
        return False
    return can_be_drawn(operand.param, operand.key)


def has_elementwise_score(operand: Operand, rules: Rules) -> bool:
    """Whether the score of a weight depends on that weight and its gradient only."""
    if leaf_arguments(rules.score, "", None):
        return False
    return is_elementwise(rules.score, operand.param, operand.grad)
