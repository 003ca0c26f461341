"""Linen layers that take their sizes from the params they are given, and models of new sizes.

A linen layer compares the shapes of its params with its attributes, such as `features`. An
interceptor sets these attributes, in the copy of the layer that lives for one call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxprune._base.arguments import shown
from jaxprune._base.flax_import import import_flax
from jaxprune._trace.model_arguments import check_arrays

# Of a layer and its inputs: the attributes that it must have.
_SizesOf = Callable[[Any, Any], dict[str, Any]]


@contextlib.contextmanager
def linen_sizes_from_params() -> Iterator[None]:
    """Makes linen layers take their sizes from their params. Does nothing if linen isn't loaded."""
    nn = sys.modules.get("flax.linen")
    if nn is None:
        yield
        return
    with _sizes_set(nn, functools.partial(_linen_sizes, nn)):
        yield


def _sizes_set(nn: Any, sizes_of: _SizesOf) -> Any:
    """A context in which linen layers get the attributes that `sizes_of` returns."""

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name not in ("__call__", "setup"):
            return call(*args, **kwargs)
        layer = module
        if isinstance(module, nn.RNN) and context.method_name == "__call__":
            layer = module.cell  # its initialize_carry can't be intercepted
        inputs = args[0] if args else kwargs.get("inputs")
        for name, value in sizes_of(layer, inputs).items():
            # Linen modules are immutable, but this one is a copy that lives for one call.
            object.__setattr__(layer, name, value)
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


# Kernels that multiply the hidden state: `hi` and `hg` of an LSTM, `hn` of GRU and MGU, `h` of the
# simple cell.
_HIDDEN_KERNELS = ("hi", "hn", "h", "hg")


def _linen_sizes(nn: Any, layer: Any, inputs: Any) -> dict[str, Any]:
    """The attributes that a linen layer must have to accept its params and these inputs."""
    params = layer.variables.get("params", {}) if layer.scope is not None else {}
    if isinstance(layer, nn.Embed) and "embedding" in params:
        rows, features = param_shape(params["embedding"])
        return {"num_embeddings": rows, "features": features}
    if isinstance(layer, nn.RNNCellBase):
        kernels = [dict(params[name]).get("kernel") for name in _HIDDEN_KERNELS if name in params]
        return {"features": param_shape(kernels[0])[0]} if kernels else {}
    if isinstance(layer, nn.MultiHeadDotProductAttention) and {"query", "out"} <= set(params):
        query, out = (param_shape(params[name]["kernel"]) for name in ("query", "out"))
        sizes = {"num_heads": query[-2], "qkv_features": query[-2] * query[-1]}
        return sizes | {"out_features": out[-1]}
    if "kernel" not in params:
        return {}
    shape = param_shape(params["kernel"])
    if isinstance(layer, (nn.Dense, nn.recurrent.DenseParams)):
        return {"features": shape[-1]}
    if isinstance(layer, nn.DenseGeneral):
        if isinstance(layer.features, int):
            return {"features": shape[-1]}
        return {"features": shape[len(shape) - len(layer.features) :]}
    if isinstance(layer, nn.ConvTranspose):
        return {"features": shape[-2 if layer.transpose_kernel else -1]}
    if isinstance(layer, nn.Conv) and layer.feature_group_count == 1:
        return {"features": shape[-1]}
    if isinstance(layer, nn.Conv):  # each group reads as many channels as the kernel has
        n_groups = inputs.shape[-1] // shape[-2]
        return {"features": shape[-1], "feature_group_count": n_groups}
    return {}


def param_shape(param: Any) -> tuple[int, ...]:
    """The shape of a param, in a box or not."""
    param = param.unbox() if hasattr(param, "unbox") else param
    return tuple(param.shape)


# Models of new sizes


def resize_linen(model: Any, variables: Any, *example_inputs: Any, **kwargs: Any) -> Any:
    """A linen model with the sizes of shrunk variables, as a module.

    Its `apply` accepts the smaller variables, and its `init` makes variables of the same shapes, to
    restore a checkpoint or to train from scratch. It has the params of `model`, under the same
    paths, and can be a part of a larger module.

    Args:
      model: an `nn.Module`, as it was before `shrink`.
      variables: what `shrink` returned, or a tree of `jax.ShapeDtypeStruct` of the same shapes.
      example_inputs: arguments of the model's `__call__`, after the variables; only their shapes
        matter.
      kwargs: more arguments of `model.apply`, such as `train=False`: those of inference, where no
        statistics change and nothing is random.

    Returns:
      An `nn.Module` that runs `model`. Its attribute `sizes` lists the changes, path of a layer ->
      attribute -> new value, for those who want to write them into the code of the model.

    Raises:
      TypeError: `model` is not an `nn.Module`, or the other arguments are no arrays.
      ValueError: `model.apply` fails, for example because a param of the model itself has a size
        that is written into the code.

    Example:
      >>> from flax import linen as nn
      >>> import jax, jax.numpy as jnp
      >>> model, x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), jnp.ones((1, 3))
      >>> first = {"kernel": jnp.ones((3, 5)), "bias": jnp.zeros(5)}
      >>> last = {"kernel": jnp.ones((5, 2)), "bias": jnp.zeros(2)}
      >>> small = resize_linen(model, {"params": {"layers_0": first, "layers_2": last}}, x)
      >>> {path: dict(sizes) for path, sizes in small.sizes.items()}
      {'layers_0': {'features': 5}}
      >>> small.init(jax.random.key(0), x)["params"]["layers_2"]["kernel"].shape
      (5, 2)
    """
    nn = import_flax("resize_linen", "linen")
    from flax.core import FrozenDict
    from flax.errors import FlaxError

    if not isinstance(model, nn.Module):
        raise TypeError(
            f"resize_linen: model must be a flax.linen.Module, got {shown(model)}. Pass the model "
            "first: resize_linen(model, variables, x); for an NNX model, use resize_nnx."
        )
    check_arrays("resize_linen: variables", variables)
    check_arrays("resize_linen: example_inputs", example_inputs)
    if isinstance(model, _resized_class()):
        model = model.held.model
    sizes: dict[str, dict[str, Any]] = {}

    def sizes_of(layer: Any, inputs: Any) -> dict[str, Any]:
        new = _linen_sizes(nn, layer, inputs)
        changed = {k: v for k, v in new.items() if _declared(layer, k, inputs) != v}
        if changed:
            sizes.setdefault("/".join(layer.path), {}).update(changed)
        return new

    try:
        with _sizes_set(nn, sizes_of):
            jax.eval_shape(lambda v, x: model.apply(v, *x, **kwargs), variables, example_inputs)
    except (FlaxError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "resize_linen: model.apply fails on these variables and inputs, with "
            f"{_summary(error)}. {_CALL if _is_of_call(error) else _MODEL}"
        ) from error
    return _resized_class()(_Held(model), FrozenDict(sizes))


_MODEL = (
    "Pass the model as it was before shrink, the variables that shrink returned, and inputs as for "
    "shrink."
)
_CALL = (
    "Call the model as in inference, with its options after the inputs: "
    "resize_linen(model, variables, x, train=False)."
)


def _is_of_call(error: Exception) -> bool:
    """Whether an error is about the arguments of a call, or comes from a model in training mode."""
    from flax.errors import InvalidRngError, ModifyScopeVariableError

    of_training = isinstance(error, (InvalidRngError, ModifyScopeVariableError))
    of_arguments = re.search("(positional|keyword(-only)?) argument", str(error))
    return of_training or (isinstance(error, TypeError) and of_arguments is not None)


def _summary(error: Exception) -> str:
    """The type of an error and its first line, without the address that Flax adds."""
    line = str(error).partition("\n")[0].partition(" (https:")[0].rstrip(".")
    return type(error).__name__ if "Tracer" in line else f"{type(error).__name__}: {line}"


def _declared(layer: Any, name: str, inputs: Any) -> Any:
    """A size as the code of the model declares it; None means that of the inputs, in attention."""
    value = getattr(layer, name)
    return inputs.shape[-1] if value is None and inputs is not None else value


@dataclasses.dataclass(frozen=True)
class _Held:
    """A model in a field of a module. Linen would bind the model itself to a scope of its own."""

    model: Any


@functools.cache
def _resized_class() -> Any:
    """The class `Resized`; in a function, so that Flax is only imported when needed."""
    from flax import linen as nn

    class Resized(nn.Module):
        """Runs a model with other `sizes`: path of a layer -> attribute -> value."""

        held: Any
        sizes: Any

        def setup(self) -> None:
            # In the scope of this module: params have the same paths as in the model.
            bound = self.held.model.clone(parent=self.scope)
            object.__setattr__(self, "_bound", bound)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            depth = len(self.path)

            def sizes_of(layer: Any, inputs: Any) -> dict[str, Any]:
                new = _linen_sizes(nn, layer, inputs)  # none while `init` makes the params
                if not new and layer.scope is not None:
                    new = dict(self.sizes.get("/".join(layer.path[depth:]), {}))
                return new

            with _sizes_set(nn, sizes_of):
                return self._bound(*args, **kwargs)

    return Resized
