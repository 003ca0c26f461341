"""Checks of the arguments of functions that trace a model: a function, variables and inputs."""

import sys
from typing import Any

from jaxprune._base.arguments import shown
from jaxprune._base.flax_import import import_flax
from jaxprune._base.paths import is_model, leaves_with_paths, shown_path, spec_of

_WITH_TWIN = ("axis_roles", "layer_inputs", "shrink", "channel_groups")


def check_function(function: str, apply_fn: Any) -> None:
    """Raises a TypeError unless the first argument of a public function is a function."""
    flax_modules = tuple(
        sys.modules[name].Module for name in ("flax.linen", "flax.nnx") if name in sys.modules
    )
    if callable(apply_fn) and not isinstance(apply_fn, (type, *flax_modules)):
        return
    for_nnx = f"use {function}_nnx" if function in _WITH_TWIN else "call the model itself: model(x)"
    raise TypeError(
        f"{function}: apply_fn must be a function (variables, *inputs) -> outputs, got "
        f"{shown(apply_fn)}. Pass it first: {function}(model.apply, variables, x); for an NNX "
        f"model, {for_nnx}."
    )


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
