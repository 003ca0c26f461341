"""Random numbers in the program of a model, such as those of dropout in training."""

from collections.abc import Collection, Iterator
from typing import Any

_DRAWS = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")


def draws_random(jaxpr: Any) -> bool:
    """Whether a jaxpr draws random numbers, as dropout in training does."""
    return any(map(_draws, jaxpr.eqns))


def reads_random(jaxpr: Any, equation: Any) -> bool:
    """Whether what an equation reads depends on random numbers that the jaxpr draws.

    Args:
      jaxpr: of a model.
      equation: one of its equations, or of the programs that these call.
    """
    return _reads_random(jaxpr, equation, ())


def _reads_random(jaxpr: Any, equation: Any, inputs: Collection[Any]) -> bool:
    """`reads_random`, where some inputs of the jaxpr depend on random numbers, too."""
    random = set(inputs)
    for eqn in jaxpr.eqns:
        operands = [None if hasattr(x, "val") else x for x in eqn.invars]  # None: literals
        is_random = any(x in random for x in operands)
        if eqn is equation:
            return is_random
        for inner in _inner_jaxprs(eqn):
            # `cond` has the index of a branch in front of the operands.
            pairs = zip(inner.invars[::-1], operands[::-1], strict=False)
            if _reads_random(inner, equation, {x for x, operand in pairs if operand in random}):
                return True
        if is_random or _draws(eqn):
            random.update(eqn.outvars)
    return False


def _draws(eqn: Any) -> bool:
    return eqn.primitive.name in _DRAWS or any(map(draws_random, _inner_jaxprs(eqn)))


def _inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The programs that an equation calls."""
    for param in eqn.params.values():
        for value in param if isinstance(param, (tuple, list)) else (param,):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield inner
