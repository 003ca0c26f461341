"""Flax models that take their sizes from the params they are given.

An NNX layer remembers the sizes that it was made with. They are set here to the sizes of its
params; `linen_sizes` and `haiku_sizes` do this for the layers of linen and Haiku. Models in plain
JAX take their sizes from the params anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune._base.arguments import shown
from jaxprune._base.flax_import import import_flax
from jaxprune._base.paths import leaves_with_paths, listed, shown_path
from jaxprune._shrink.haiku_sizes import haiku_sizes_from_params
from jaxprune._shrink.linen_sizes import linen_sizes_from_params, param_shape as _shape
from jaxprune._trace.model_arguments import check_arrays, check_function, check_module
from jaxprune._trace.program import OF_FUNCTION, OF_NNX


class Model(NamedTuple):
    """A model that can be run with smaller variables.

    Attributes:
      apply_fn: of the variables and the inputs, for variables of the original shapes.
      apply_resized: the same model, for variables of any consistent shapes.
      variables: the params, and what else the model reads, such as batch statistics.
      inputs: example inputs.
      uncounted: paths of variables that are no numbers of the model: keys and their counters.
      call: how users write its call.
    """

    apply_fn: Callable[..., Any]
    apply_resized: Callable[..., Any]
    variables: Any
    inputs: Sequence[Any]
    uncounted: Collection[str] = ()
    call: str = OF_FUNCTION


def function_model(
    function: str, apply_fn: Callable[..., Any], variables: Any, inputs: Sequence[Any]
) -> Model:
    """The model of a function: linen's `model.apply`, or plain JAX.

    Raises:
      TypeError: arguments of the public `function` that are not a function, a tree of arrays, and
        arrays.
    """
    check_function(function, apply_fn, variables, len(inputs))
    check_arrays(f"{function}: variables", variables)
    check_arrays(f"{function}: example_inputs", inputs)

    def apply_resized(variables: Any, *inputs: Any) -> Any:
        return shrunk_apply(apply_fn, variables, *inputs)

    return Model(apply_fn, apply_resized, variables, inputs)


def nnx_model(function: str, model: Any, inputs: Sequence[Any]) -> Model:
    """The model of an NNX module, with its state as variables.

    Raises:
      TypeError: arguments of the public `function` that are not a module, and arrays.
    """
    nnx = import_flax(function, "nnx")
    check_module(function, model)
    check_arrays(f"{function}: example_inputs", inputs)
    graphdef, state = nnx.split(model)

    def apply_fn(state: Any, *inputs: Any) -> Any:
        return nnx.merge(graphdef, state)(*inputs)

    def apply_resized(state: Any, *inputs: Any) -> Any:
        resized = nnx.merge(graphdef, state)
        set_nnx_sizes(resized)
        return resized(*inputs)

    keys = leaves_with_paths(nnx.state(model, nnx.RngState))[0]
    return Model(apply_fn, apply_resized, state, inputs, keys, OF_NNX)


# Linen


def shrunk_apply(apply_fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `apply_fn(variables, ...)` with variables smaller than a linen model declares.

    `Dense`, `DenseGeneral`, `Conv`, `ConvTranspose` and `Embed` layers take their number of
    features from their kernels, also inside attention and recurrent cells. `nn.RNN` makes its first
    carry as large as its cell is now. If you loop over a cell yourself, make a first carry of that
    size. `Linear` layers and convolutions of Haiku take their sizes from their params, too. A
    function that uses neither is simply called.

    Args:
      apply_fn: `model.apply`, or a function that calls it.
      variables: from `shrink`.
      args: passed on to `apply_fn`.
      kwargs: passed on to `apply_fn`.

    Returns:
      What `apply_fn` returns.

    Raises:
      TypeError: `apply_fn` is not a function.

    Example:
      >>> from flax import linen as nn
      >>> import jax, jax.numpy as jnp
      >>> model = nn.Dense(8)
      >>> variables = {"params": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
      >>> shrunk_apply(model.apply, variables, jnp.ones((1, 3))).tolist()
      [[3.0, 3.0]]
    """
    check_function("shrunk_apply", apply_fn, variables, len(args))
    with linen_sizes_from_params(), haiku_sizes_from_params():
        return apply_fn(variables, *args, **kwargs)


# NNX


def resize_nnx(model: Any, state: Any) -> None:
    """Loads the state of a shrunk NNX model into a fresh model, in place, and adapts its sizes.

    Args:
      model: an `nnx.Module` with the layers of the model that was shrunk, in any sizes.
      state: the state of a model after `shrink_nnx`, from `nnx.state(model)` or restored from a
        checkpoint as nested dicts of arrays. It may lack the entries of random streams
        (`nnx.RngState`), as files do: the model then keeps its own.

    Raises:
      TypeError: `model` is not an `nnx.Module`.
      ValueError: the state lacks another leaf of the model, or has leaves that the model lacks. Or
        a grouped convolution has fewer groups, which shapes do not tell: it became depthwise when
        it was shrunk, and was shrunk again.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.Linear(2, 8, rngs=nnx.Rngs(0))
      >>> resize_nnx(model, {"kernel": jnp.ones((2, 5)), "bias": jnp.zeros(5)})
      >>> model.out_features, model(jnp.ones((1, 2))).shape
      (5, (1, 5))
    """
    nnx = import_flax("resize_nnx", "nnx")
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"resize_nnx: model must be an nnx.Module, got {shown(model)}. Pass the fresh model "
            "first: resize_nnx(model, state)."
        )
    old_paths, _, treedef = leaves_with_paths(nnx.state(model))
    paths, leaves, _ = leaves_with_paths(state)
    random_paths, random_leaves, _ = leaves_with_paths(nnx.state(model, nnx.RngState))
    missing = set(old_paths) - set(paths) - set(random_paths)
    unknown = set(paths) - set(old_paths)
    if missing or unknown:
        parts = [f"lacks {listed(sorted(missing))}"] if missing else []
        parts += [f"has {listed(sorted(unknown))}, which the model lacks"] if unknown else []
        raise ValueError(
            f"resize_nnx: the state {' and '.join(parts)}. Pass a model with the layers of the one "
            "that was shrunk, and all of its state: nnx.state(model), or without random streams "
            "nnx.state(model, nnx.Not(nnx.RngState))."
        )
    by_path = dict(zip([*random_paths, *paths], [*random_leaves, *leaves], strict=True))
    _check_groups(nnx, model, by_path)
    nnx.update(model, treedef.unflatten([by_path[path] for path in old_paths]))
    set_nnx_sizes(model)


def _check_groups(nnx: Any, model: Any, by_path: Mapping[str, Any]) -> None:
    """Raises where a grouped convolution gets channels that its groups do not divide."""
    for path, module in nnx.iter_graph(model):
        if not isinstance(module, nnx.Conv) or module.kernel_shape[-2] == 1:
            continue
        name = "/".join(map(str, path))
        kernel = by_path.get(f"{name}/kernel" if name else "kernel")
        n_groups = module.feature_group_count
        if kernel is not None and np.shape(kernel)[-1] % n_groups:
            layer = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
            raise ValueError(
                f"resize_nnx: {shown_path(name)}: the kernel has {np.shape(kernel)[-1]} outputs, "
                f"which the {n_groups} groups of the fresh layer do not divide. Set the number of "
                f"groups of the layer that was shrunk first: model{layer}.feature_group_count = ..."
            )


def set_nnx_sizes(model: Any) -> None:
    """Sets the sizes that the layers of an NNX model remember to those of their params."""
    from flax import nnx

    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Module):
            for name, value in _nnx_sizes(nnx, module).items():
                if hasattr(module, name) and getattr(module, name) != value:
                    setattr(module, name, value)


def _nnx_sizes(nnx: Any, module: Any) -> dict[str, Any]:
    """The attributes that an NNX layer should have for the params that it has.

    Params that `nnx.vmap` made have more axes in front, such as one of all layers; the attributes
    are those of a single layer.
    """
    if isinstance(module, nnx.MultiHeadAttention):
        return _attention_sizes(module)
    if isinstance(module, nnx.RNNCellBase):
        fused = hasattr(module, "dense_h")  # one kernel for all gates
        hidden, into = (module.dense_h, module.dense_i) if fused else (module.hi, module.ii)
        sizes = {"hidden_features": _shape(hidden.kernel)[-2]}
        return sizes | {"in_features": _shape(into.kernel)[-2]}
    if isinstance(module, nnx.Embed):
        rows, features = _shape(module.embedding)[-2:]
        return {"num_embeddings": rows, "features": features}
    if isinstance(module, nnx.GroupNorm):
        params = [x for x in (module.scale, module.bias) if getattr(x, "shape", None)]
        sizes = [_shape(x)[-1] for x in params][:1]
        return {
            name: value
            for size in sizes
            for name, value in (("num_features", size), ("num_groups", size // module.group_size))
        }
    if isinstance(module, (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm)):
        params = [getattr(module, name, None) for name in ("scale", "bias", "mean")]
        shapes = [_shape(x) for x in params if x is not None and getattr(x, "shape", None)]
        return {"num_features": shapes[0][-1]} if shapes else {}
    if isinstance(module, nnx.LoRA):
        sizes = {"in_features": _shape(module.lora_a)[-2]}
        return sizes | {"out_features": _shape(module.lora_b)[-1]}
    return _nnx_kernel_sizes(nnx, module) if hasattr(module, "kernel") else {}


def _attention_sizes(module: Any) -> dict[str, Any]:
    """`_nnx_sizes` of `nnx.MultiHeadAttention`."""
    query, key = _shape(module.query.kernel), _shape(module.key.kernel)
    return {
        "in_features": query[-3],
        "num_heads": query[-2],
        "head_dim": query[-1],
        "qkv_features": query[-2] * query[-1],
        "num_kv_heads": key[-2],
        "in_kv_features": key[-3],
        "out_features": _shape(module.out.kernel)[-1],
    }


def _nnx_kernel_sizes(nnx: Any, module: Any) -> dict[str, Any]:
    """`_nnx_sizes` of a dense layer or a convolution."""
    shape = _shape(module.kernel)
    if isinstance(module, nnx.LinearGeneral):
        n_in, n_out = len(module.in_features), len(module.out_features)
        inner = shape[len(shape) - n_in - n_out :]
        return {"in_features": inner[:n_in], "out_features": inner[n_in:]}
    if isinstance(module, nnx.Linear):
        return {"in_features": shape[-2], "out_features": shape[-1]}
    shape = shape[-len(module.kernel_shape) :] if hasattr(module, "kernel_shape") else shape
    if isinstance(module, nnx.ConvTranspose):
        n_in, n_out = shape[-2:][::-1] if module.transpose_kernel else shape[-2:]
        return {"in_features": n_in, "out_features": n_out, "kernel_shape": shape}
    if isinstance(module, nnx.Conv):
        # `kernel_shape` is still that of the kernel before it was replaced. A depthwise layer has a
        # group for each input channel, which makes as many outputs as before.
        n_groups, old_shape = module.feature_group_count, module.kernel_shape
        if n_groups > 1 and old_shape[-2] == 1:
            n_groups = shape[-1] // (old_shape[-1] // n_groups)
        return {
            "in_features": shape[-2] * n_groups,
            "out_features": shape[-1],
            "feature_group_count": n_groups,
            "kernel_shape": shape,
        }
    return {"kernel_shape": shape} if isinstance(module, nnx.Einsum) else {}
