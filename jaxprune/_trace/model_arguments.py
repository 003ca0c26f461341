"""Checks of the arguments of functions that trace a model: a function, variables and inputs."""

import functools
import sys
import types
from typing import Any

import jax.numpy as jnp

from jaxprune._base.arguments import shown
from jaxprune._base.flax_import import import_flax
from jaxprune._base.functions import takes_arguments
from jaxprune._base.paths import is_model, leaves_with_paths, listed, shown_path, spec_of

_WITH_TWIN = ("axis_roles", "layer_inputs", "shrink", "channel_groups")
_MOST_WRAPPED = 16  # how often a function may be wrapped


def is_function(apply_fn: Any) -> bool:
    """Whether a value can be called, and is neither a class nor a flax module."""
    return callable(apply_fn) and not isinstance(apply_fn, (type, *_flax_modules()))


def _flax_modules() -> tuple[type, ...]:
    names = ("flax.linen", "flax.nnx")
    return tuple(sys.modules[name].Module for name in names if name in sys.modules)


def check_function(function: str, apply_fn: Any, variables: Any = None, n_inputs: int = 1) -> None:
    """Raises a TypeError unless the first argument of a public function is a function.

    A model of Equinox can be called, too, but has its params inside. If it takes variables besides,
    it may be a function with constants of its own.

    Args:
      function: the public function.
      apply_fn: its first argument.
      variables: its second argument.
      n_inputs: how many inputs of the model it got, or the least number.
    """
    if not is_function(apply_fn):
        raise TypeError(
            f"{function}: apply_fn must be a function (variables, *inputs) -> outputs, got "
            f"{shown(apply_fn)}. Pass it first: {function}(model.apply, variables, x); for an NNX "
            f"model, {_for_nnx(function)}."
        )
    model = _model_inside(apply_fn)
    if model is None:
        return
    takes_variables = n_inputs > 0 and takes_arguments(apply_fn, 1 + n_inputs)
    if takes_variables and spec_of(variables) is None:
        return
    fix = (
        "Split an Equinox model: params, static = eqx.partition(model, eqx.is_inexact_array). Pass "
        "as apply_fn lambda params, x: eqx.combine(params, static)(x), and the params as variables."
    )
    if isinstance(model, _flax_modules()):
        fix = f"For an NNX model, {_for_nnx(function)}."
    paths = listed(_params_inside(model))
    raise TypeError(
        f"{function}: apply_fn has params of its own, {paths}, so those in variables would be "
        f"ignored. {fix}"
    )


def _model_inside(function: Any) -> Any:
    """The innermost module with params that a function is, or wraps; None if there is none.

    `jax.jit` and `jax.vmap` wrap a function, and so does `functools.partial`.
    """
    model = None
    for _ in range(_MOST_WRAPPED):
        if _params_inside(function):
            model = function
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__self__
        else:
            function = getattr(function, "__wrapped__", None)
    return model


def _params_inside(model: Any) -> list[str]:
    """The paths of the arrays in a module that is a pytree, as those of Equinox and NNX are."""
    if not is_model(model):
        return []
    paths, leaves, _ = leaves_with_paths(model)
    specs = map(spec_of, leaves)
    return [
        path
        for path, spec in zip(paths, specs, strict=True)
        if spec is not None and jnp.issubdtype(spec.dtype, jnp.inexact)
    ]


def _for_nnx(function: str) -> str:
    return f"use {function}_nnx" if function in _WITH_TWIN else "call the model itself: model(x)"


def check_module(function: str, model: Any) -> None:
    """Raises a TypeError unless this is an NNX module."""
    nnx = import_flax(function, "nnx")

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"{function}: model must be an nnx.Module, got {shown(model)}. Pass the model first: "
            f"{function}(model, x); for a function and its params, use "
            f"{function.removesuffix('_nnx')}(apply_fn, variables, x)."
        )


def check_arrays(where: str, tree: Any) -> None:
    """Raises a TypeError where a leaf is neither an array nor a number."""
    for path, leaf in zip(*leaves_with_paths(tree)[:2], strict=True):
        if spec_of(leaf) is None and not isinstance(leaf, (int, float, complex)):
            fix = (
                "Pass (apply_fn, variables, *inputs) in this order, and close over anything else: "
                "lambda variables, x: apply_fn(variables, x, train=False)."
            )
            if is_model(tree):
                fix = (
                    "Split an Equinox model: arrays, static = eqx.partition(model, eqx.is_array). "
                    "Pass the arrays, and as apply_fn "
                    "lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x)."
                )
            raise TypeError(
                f"{where}: {shown_path(path)}: got {shown(leaf)}, which is not an array. {fix}"
            )
