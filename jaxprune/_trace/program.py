"""A model as a program: its jaxpr, the params that it reads, and how to trace it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.on_host import to_host
from jaxprune._base.paths import leaves_with_paths, shown_path, spec_of
from jaxprune._base.plurals import counted
from jaxprune._trace.axis_rules import RULES
from jaxprune._trace.products import products_of
from jaxprune._trace.records import FIXED_BY_OUTPUT, KnownValues
from jaxprune._trace.traced_arrays import fixed_array, known_numbers, slice_values
from jaxprune._trace.tracer import Tracer
from jaxprune._trace.view_tracer import ViewTracer


class Program(NamedTuple):
    """The jaxpr of a model, and the params for which it was made.

    Attributes:
      paths: of the leaves.
      leaves: the params, batch statistics included: the first arguments of the jaxpr.
      treedef: of the tree that the leaves form.
      jaxpr: closed; the remaining arguments are the inputs of the model.
    """

    paths: list[str]
    leaves: list[Any]
    treedef: Any
    jaxpr: Any


# How users write the call of a model.
OF_FUNCTION = "apply_fn(variables, *inputs)"
OF_NNX = "model(*inputs)"


def program_of(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Sequence[Any],
    call: str = OF_FUNCTION,
) -> Program:
    """The program of `apply_fn(variables, *inputs)`, which users write as `call`."""
    paths, leaves, treedef = leaves_with_paths(variables)
    try:
        jaxpr = jaxpr_of(apply_fn, variables, *inputs)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TypeError(_failure(call, inputs, error)) from error
    except Exception as error:
        if type(error).__name__ in _IN_TRAINING:
            error.add_note(f"jaxprune: pass the model in inference mode. {_OPTIONS[call]}")
        raise
    return Program(paths, leaves, treedef, jaxpr)


def jaxpr_of(function: Callable[..., Any], *args: Any) -> Any:
    """The closed jaxpr of a function, the same under `jax.disable_jit`.

    There a scan would run in Python, as many layers of the same params.
    """
    with jax.disable_jit(False):
        return jax.make_jaxpr(function)(*args)


_OPTIONS = {
    OF_FUNCTION: "Options such as train=False go into a lambda: "
    "lambda variables, x: model.apply(variables, x, train=False).",
    OF_NNX: "Options such as train=False go into a function of the state, for the function without "
    "_nnx in its name: graphdef, state = nnx.split(model), then axis_roles(lambda state, x: "
    "nnx.merge(graphdef, state)(x, train=False), state, x).",
}
# Errors of linen where a model in training mode gets no PRNG key, or may not change its statistics.
_IN_TRAINING = ("InvalidRngError", "ModifyScopeVariableError")


def _failure(call: str, inputs: Sequence[Any], error: Exception) -> str:
    """Which call fails, how, and what to type instead."""
    n_inputs = counted(len(inputs), "input")
    called = "the model" if call == OF_NNX else "apply_fn"
    where = f"{called} fails on these variables and {n_inputs}"
    is_flag = isinstance(error, jax.errors.TracerBoolConversionError)
    if is_flag and any(isinstance(x, bool) for x in inputs):
        return f"{where}, which are traced, so True and False can't be among them. {_OPTIONS[call]}"
    return f"{where}, with {_summary(error)}. Try the call first: {call}. {_OPTIONS[call]}"


def array_program(
    apply_fn: Callable[..., Any],
    variables: Any,
    inputs: Sequence[Any],
    call: str = OF_FUNCTION,
) -> Program:
    """The program of a model whose variables may have leaves that are not arrays.

    The functions and numbers among the leaves of an Equinox module are parts of the program, not
    params. The leaves of the program are the arrays; its treedef is that of a list.
    """
    paths, leaves, treedef = leaves_with_paths(variables)
    arrays = [k for k, leaf in enumerate(leaves) if spec_of(leaf) is not None]

    def apply_to_arrays(values: list[Any], *inputs: Any) -> Any:
        replaced = list(leaves)
        for k, value in zip(arrays, values, strict=True):
            replaced[k] = value
        return apply_fn(treedef.unflatten(replaced), *inputs)

    program = program_of(apply_to_arrays, [leaves[k] for k in arrays], inputs, call)
    return program._replace(paths=[paths[k] for k in arrays])


INFERENCE_MODE = (
    "Pass the model in inference mode: model.eval() in NNX, deterministic=True in linen (or the "
    "name that your model gives it), eqx.nn.inference_mode(model)."
)


def _summary(error: Exception) -> str:
    """The type of an error, and its first line if a reader can use it."""
    name, line = type(error).__name__, str(error).partition("\n")[0].rstrip(".")
    is_plain = line and len(line) <= 160 and "Tracer" not in line
    return f"{name}: {line}" if is_plain else name


def trace(program: Program, known: KnownValues, *, freeze_sums: bool = True) -> Tracer:
    """The tracer after it has followed a program from its params to its outputs.

    Args:
      program: the program.
      known: which values of the params are known; see `known_values`.
      freeze_sums: whether axes that a sum or a mean runs over must stay.
    """
    jaxpr = program.jaxpr.jaxpr
    tracer = Tracer(RULES, freeze_sums=freeze_sums)
    shapes = [tuple(var.aval.shape) for var in jaxpr.invars]
    n_leaves = len(program.leaves)
    params = [tracer.param(leaf, shape, known) for leaf, shape in enumerate(shapes[:n_leaves])]
    inputs = [fixed_array(shape) for shape in shapes[n_leaves:]]
    outputs = tracer.run(jaxpr, program.jaxpr.consts, [*params, *inputs])
    tracer.freeze_all(outputs, FIXED_BY_OUTPUT)
    return tracer


def trace_products(program: Program) -> ViewTracer:
    """The products of a program, and what became of the views of params that are in none."""
    return products_of(program.jaxpr, len(program.leaves))


def known_values(program: Program) -> KnownValues:
    """The values that the params of a program hold; raises where other processes hold some."""
    numbers = [
        to_numpy(shown_path(path), leaf)
        for path, leaf in zip(program.paths, program.leaves, strict=True)
    ]

    def known(leaf: int, axis: int) -> np.ndarray | None:
        x = numbers[leaf]
        if x is None:
            return None
        x = known_numbers(x) if axis < 0 or np.iscomplexobj(x) else x
        return x.reshape(1) if axis < 0 else slice_values(x, axis)

    return known


def to_numpy(where: str, leaf: Any) -> np.ndarray | None:
    """A leaf as an array of a dtype that NumPy computes with; None for PRNG keys."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return None
    x = to_host(where, leaf)
    return x if x.dtype.kind in "biufc" else x.astype(np.float32)
