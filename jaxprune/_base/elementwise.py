"""Whether the scores of a leaf may be computed again whenever the selection reads the weights.

The selection counts the scores above a threshold in a compiled loop, and compares them again to
build the mask. If scores are computed in both places instead of being stored, both must give the
same bits; otherwise the mask does not have the number of weights that was counted. There are two
risks:

- A score depends on more than one weight and its gradient: on other entries, on the shape of the
  leaf, or on the key. The selection calls the score on reshaped parts of a leaf.
- XLA rounds differently in different programs. In one of two loops it may contract a product and a
  sum to a fused multiply-add, keep a bfloat16 intermediate result in float32, or approximate a
  transcendental function in another way.

So a function is accepted only if its jaxpr consists of a few elementwise operations that round the
same way in every program. All others are refused, which is always correct: their scores are stored.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune._base.caching import bounded_cache

# Operations whose results are exact, whatever the dtype.
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge", "is_finite", "select_n")
_LIMIT = ("abs", "neg", "sign", "max", "min", "clamp")
_BITS = ("and", "or", "xor", "not", "shift_left", "shift_right_logical", "bitcast_convert_type")
_COPY = ("broadcast_in_dim", "copy", "copy_p", "stop_gradient")
_EXACT = frozenset((*_COMPARE, *_LIMIT, *_BITS, *_COPY))
# Operations that round, as IEEE 754 says; XLA turns some divisions into products.
_PRODUCTS = frozenset(("mul", "div", "square", "integer_pow"))
_SUMS = frozenset(("add", "sub", "add_any"))
_ROUND = _PRODUCTS | _SUMS | {"sqrt"}
# Operations on complex numbers; a product of these would be a sum of products.
_OF_COMPLEX = frozenset(("real", "imag"))
# Operations that call another program. The names differ between versions of JAX.
_CALLS = frozenset(
    ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
    + ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
)
# Every pass over the weights computes all operations again. With 13 of them, a root and a quotient
# included, that was still faster than storing the scores (CPU, 1e7 weights).
_MOST_OPERATIONS = 16
_KNOWN = _EXACT | _ROUND | _OF_COMPLEX | {"convert_element_type"}


class _Operation(NamedTuple):
    """One operation of a program, without the shapes of its operands."""

    name: str
    operands: tuple[str, ...]
    params: str


class _Refused(Exception):
    """The program holds something that is not accepted."""


def is_elementwise_program(score: Callable[..., Any], params: Any, grads: Any) -> bool:
    """Whether a function gives the same bits for each weight in every program that contains it.

    Args:
      score: `(params, grads, key) -> scores`.
      params: one leaf; an array, a tracer or a `jax.ShapeDtypeStruct`.
      grads: its gradients, likewise, or None.

    Example:
      >>> w = jax.ShapeDtypeStruct((2, 3), jnp.float32)
      >>> is_elementwise_program(lambda params, grads, key: abs(params * grads), w, w)
      True
      >>> is_elementwise_program(lambda params, grads, key: params * params + grads, w, w)
      False
    """
    return _is_elementwise(score, _spec(params), None if grads is None else _spec(grads))


def _spec(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), x.dtype)


@bounded_cache(maxsize=256)
def _is_elementwise(score: Callable[..., Any], params: Any, grads: Any) -> bool:
    # The program must be the same for every shape: a division by `params.size` is elementwise, but
    # gives another number for a part of the leaf.
    shapes = (params.shape, (1, *params.shape), (2, 3, 5), (2, 3))
    try:
        programs = [_program(score, params, grads, shape) for shape in shapes]
    except _Refused:
        return False
    operations, _ = programs[0]
    names = {operation.name for operation in operations}
    return (
        all(program == programs[0] for program in programs)
        and len(operations) <= _MOST_OPERATIONS
        and not (names & _PRODUCTS and names & _SUMS)
    )


def _program(
    score: Callable[..., Any], params: Any, grads: Any, shape: tuple[int, ...]
) -> tuple[list[_Operation], list[str]]:
    """The operations of a score for a leaf of this shape, and the names of its results."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    leaf = jax.ShapeDtypeStruct(shape, params.dtype)
    grad = None if grads is None else jax.ShapeDtypeStruct(shape, grads.dtype)
    try:
        program = jax.make_jaxpr(score)(leaf, grad, key)
    except Exception as error:  # of any kind: the score fails on this shape
        raise _Refused from error
    operations: list[_Operation] = []
    names = [f"argument {i}" for i in range(len(program.jaxpr.invars))]
    return operations, _follow(program, names, shape, operations)


def _follow(
    program: Any, operands: list[str], shape: tuple[int, ...], operations: list[_Operation]
) -> list[str]:
    """Appends the operations of a program, calls followed, and returns the names of its results."""
    jaxpr = getattr(program, "jaxpr", program)
    names = dict(zip(jaxpr.invars, operands, strict=True))
    consts = getattr(program, "consts", ())
    names.update((var, _constant(x)) for var, x in zip(jaxpr.constvars, consts, strict=True))

    def name_of(atom: Any) -> str:
        return _constant(atom.val) if hasattr(atom, "val") else names[atom]

    for eqn in jaxpr.eqns:
        inputs = [name_of(atom) for atom in eqn.invars]
        if eqn.primitive.name in _CALLS:
            results = _follow(_called(eqn), inputs, shape, operations)
        else:
            _check(eqn, shape)
            kept = {k: v for k, v in eqn.params.items() if k not in ("shape", "sharding")}
            kept.pop("broadcast_dimensions", None)
            operations.append(_Operation(eqn.primitive.name, tuple(inputs), str(kept)))
            results = [f"result {len(operations)}"]
        names.update(zip(eqn.outvars, results, strict=True))
    return [name_of(atom) for atom in jaxpr.outvars]


def _called(eqn: Any) -> Any:
    """The program that a call runs."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return eqn.params[name]
    raise _Refused


def _constant(value: Any) -> str:
    """The name of a constant; only scalars that are known while tracing are accepted."""
    if isinstance(value, Tracer) or np.shape(value):
        raise _Refused
    return f"{value!r} of {jnp.asarray(value).dtype}"


def _check(eqn: Any, shape: tuple[int, ...]) -> None:
    """Raises `_Refused` unless an operation is elementwise and rounds alike in every program."""
    name = eqn.primitive.name
    if name not in _KNOWN:
        raise _Refused
    avals = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
    dtypes = [aval.dtype for aval in avals]
    is_scalar_or_leaf = all(aval.shape in ((), shape) for aval in avals)
    if not is_scalar_or_leaf or any(jnp.issubdtype(d, jax.dtypes.extended) for d in dtypes):
        raise _Refused
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        accepted = name in _OF_COMPLEX
    elif name == "convert_element_type":
        accepted = _is_exact_cast(*dtypes)
    else:
        is_wide = all(dtype.itemsize >= 4 for dtype in dtypes if _is_float(dtype))
        accepted = name in _EXACT or (is_wide and name in _ROUND)
    if not accepted:
        raise _Refused


def _is_exact_cast(source: Any, target: Any) -> bool:
    """Whether XLA keeps a cast: it may undo one to a narrower float if a wider one follows."""
    if source == target or not _is_float(target):
        return True
    return target.itemsize >= 4 and (not _is_float(source) or source.itemsize < target.itemsize)


def _is_float(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))
