"""Whether scores can be negative, judged by the last operation that computes them.

A non-negative score makes a cheaper key. NaN, and zero with a sign bit, may still come out.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

# Operations that pass the sign of their operand on.
_KEEP_SIGN = frozenset(("convert_element_type", "copy", "reshape", "stop_gradient"))
# Operations that call another program; its name and parameter differ between versions of JAX.
_CALLS = frozenset(("jit", "pjit", "closed_call", "core_call", "custom_jvp_call"))


class ScoreSpec(NamedTuple):
    """What is known of the scores of a leaf while tracing."""

    shape: tuple[int, ...]
    dtype: np.dtype
    has_sign: bool  # whether a score may be negative


def score_specs(score: Callable[[Any], jax.Array], operands: Sequence[Any]) -> list[ScoreSpec]:
    """The specs of the scores of each leaf. `score` is traced once for each kind of operand."""
    specs: dict[Any, ScoreSpec] = {}

    def spec_of(operand: Any) -> ScoreSpec:
        arrays, treedef = jax.tree.flatten(operand)
        kind = (treedef, tuple((x.shape, x.dtype) for x in arrays))
        if kind not in specs:
            program = jax.make_jaxpr(score)(operand).jaxpr
            scores = program.outvars[0].aval
            specs[kind] = ScoreSpec(scores.shape, scores.dtype, may_be_negative(program))
        return specs[kind]

    return list(map(spec_of, operands))


def may_be_negative(program: Any) -> bool:
    """Whether the first output of a jaxpr may hold a negative number. True where this is unclear.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> may_be_negative(jax.make_jaxpr(lambda w: jnp.abs(w).astype(jnp.float32))(1.0).jaxpr)
      False
      >>> may_be_negative(jax.make_jaxpr(lambda w: jnp.abs(w) - 1)(1.0).jaxpr)
      True
    """
    made_by = {out: eqn for eqn in program.eqns for out in eqn.outvars}
    return not _is_positive(program.outvars[0], made_by)


def _is_positive(value: Any, made_by: dict[Any, Any]) -> bool:
    """Whether a value of a jaxpr is NaN or at least 0 in every entry."""
    eqn = None if hasattr(value, "val") else made_by.get(value)  # a literal has a value
    if eqn is None:
        return False
    name = eqn.primitive.name
    if name in _KEEP_SIGN:
        return _is_positive(eqn.invars[0], made_by)
    if name in _CALLS:
        called = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        inner = getattr(called, "jaxpr", called)
        return inner is not None and not may_be_negative(inner)
    if name == "bitcast_convert_type":
        return _has_no_sign_bit(made_by.get(eqn.invars[0]), value.aval)
    is_square = name == "mul" and eqn.invars[0] is eqn.invars[1]
    is_even = name == "integer_pow" and eqn.params["y"] % 2 == 0
    return name in ("abs", "exp", "sqrt", "square") or is_square or is_even


def _has_no_sign_bit(eqn: Any, aval: Any) -> bool:
    """Whether an operation clears the sign bit of integers that become floats of this type."""
    if eqn is None or eqn.primitive.name != "and":
        return False
    masks = [v.val for v in eqn.invars if hasattr(v, "val")]
    sign_bit = 1 << (8 * aval.dtype.itemsize - 1)
    return any(np.ndim(mask) == 0 and not int(mask) & sign_bit for mask in masks)
