"""Flax models that take their sizes from the params they are given.

A linen layer compares the shapes of its params with its `features`, and an NNX layer remembers the
sizes that it was made with. Both are set here to what the params say. Models in plain JAX take
their sizes from the params anyway.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


def shrunk_apply(apply_fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any) -> Any:
    """What `apply_fn(variables, ...)` returns, with params smaller than a linen model asks for.

    `Dense`, `DenseGeneral`, `Conv`, `ConvTranspose` and `Embed` layers take their features from
    their kernels, those of depthwise convolutions, attention and recurrent cells included. `nn.RNN`
    makes the first carry as large as its cell is now; around a cell of your own loop, do so
    yourself. A function that has nothing to do with linen is called as it is.

    Args:
      apply_fn: `model.apply`, or a function that calls it.
      variables: from `shrink`.
      args: passed on.
      kwargs: passed on.

    Example:
      >>> from flax import linen as nn
      >>> import jax, jax.numpy as jnp
      >>> model = nn.Dense(8)
      >>> variables = {"params": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
      >>> shrunk_apply(model.apply, variables, jnp.ones((1, 3))).tolist()
      [[3.0, 3.0]]
    """
    with _sizes_from_params():
        return apply_fn(variables, *args, **kwargs)


@contextlib.contextmanager
def _sizes_from_params() -> Iterator[None]:
    """Makes linen layers take their sizes from their params, if linen is there at all."""
    nn = sys.modules.get("flax.linen")
    if nn is None:
        yield
        return

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name not in ("__call__", "setup"):
            return call(*args, **kwargs)
        of = module
        if isinstance(module, nn.RNN) and context.method_name == "__call__":
            of = module.cell  # whose initialize_carry can't be intercepted
        for name, value in _linen_sizes(nn, of).items():
            object.__setattr__(of, name, value)  # modules are frozen; this is a copy for one call
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def _linen_sizes(nn: Any, module: Any) -> dict[str, Any]:
    """The attributes that a linen layer should have for the params that it has."""
    params = module.variables.get("params", {}) if module.scope is not None else {}
    if isinstance(module, nn.Embed) and "embedding" in params:
        rows, features = _shape(params["embedding"])
        return {"num_embeddings": rows, "features": features}
    if isinstance(module, nn.RNNCellBase):
        kernels = [dict(params[name]).get("kernel") for name in _RECURRENT if name in params]
        return {"features": _shape(kernels[0])[0]} if kernels else {}
    if "kernel" not in params:
        return {}
    shape = _shape(params["kernel"])
    if isinstance(module, (nn.Dense, nn.recurrent.DenseParams)):
        return {"features": shape[-1]}
    if isinstance(module, nn.DenseGeneral):
        if isinstance(module.features, int):
            return {"features": shape[-1]}
        return {"features": shape[len(shape) - len(module.features) :]}
    if isinstance(module, nn.ConvTranspose):
        return {"features": shape[-2 if module.transpose_kernel else -1]}
    if isinstance(module, nn.Conv):
        n_groups, features = module.feature_group_count, module.features
        return {"features": shape[-1], "feature_group_count": _groups(shape, n_groups, features)}
    return {}


_RECURRENT = ("hi", "hn", "h", "hg")  # what takes up the hidden state: LSTM, GRU and MGU, simple


def _groups(shape: tuple[int, ...], n_groups: int, features: int) -> int:
    """The groups of a convolution with this kernel, which had so many groups and features."""
    depthwise = n_groups > 1 and shape[-2] == 1
    return shape[-1] // (features // n_groups) if depthwise else n_groups


def _shape(param: Any) -> tuple[int, ...]:
    param = param.unbox() if hasattr(param, "unbox") else param
    return tuple(param.shape)


# NNX


def resize_nnx(model: Any) -> None:
    """Sets the sizes that the layers of an NNX model remember to those of their params."""
    from flax import nnx

    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Module):
            for name, value in _nnx_sizes(nnx, module).items():
                if hasattr(module, name) and getattr(module, name) != value:
                    setattr(module, name, value)


def _nnx_sizes(nnx: Any, module: Any) -> dict[str, Any]:
    """The attributes that an NNX layer should have for the params that it has."""
    if isinstance(module, nnx.MultiHeadAttention):
        query, key = _shape(module.query.kernel), _shape(module.key.kernel)
        sizes = {"in_features": query[0], "num_heads": query[-2], "head_dim": query[-1]}
        sizes |= {"qkv_features": query[-2] * query[-1], "num_kv_heads": key[-2]}
        return sizes | {"in_kv_features": key[0], "out_features": _shape(module.out.kernel)[-1]}
    if isinstance(module, nnx.RNNCellBase):
        whole = hasattr(module, "dense_h")
        hidden, into = (module.dense_h, module.dense_i) if whole else (module.hi, module.ii)
        return {
            "hidden_features": _shape(hidden.kernel)[0],
            "in_features": _shape(into.kernel)[0],
        }
    if isinstance(module, nnx.Embed):
        rows, features = _shape(module.embedding)
        return {"num_embeddings": rows, "features": features}
    if isinstance(module, (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm)):
        found = [getattr(module, name, None) for name in ("scale", "bias", "mean")]
        shapes = [_shape(x) for x in found if x is not None and getattr(x, "shape", None)]
        return {"num_features": shapes[0][-1]} if shapes else {}
    if not hasattr(module, "kernel"):
        return {}
    shape = _shape(module.kernel)
    if isinstance(module, nnx.LinearGeneral):
        n_in, n_out = len(module.in_features), len(module.out_features)
        inner = shape[len(shape) - n_in - n_out :]
        return {"in_features": inner[:n_in], "out_features": inner[n_in:]}
    if isinstance(module, nnx.Linear):
        return {"in_features": shape[0], "out_features": shape[1]}
    if isinstance(module, nnx.ConvTranspose):
        ends = shape[-2:][::-1] if module.transpose_kernel else shape[-2:]
        return {"in_features": ends[0], "out_features": ends[1], "kernel_shape": shape}
    if isinstance(module, nnx.Conv):
        # The number of outputs before is lost once the kernel is replaced: it is in kernel_shape.
        n_groups = _groups(shape, module.feature_group_count, module.kernel_shape[-1])
        return {
            "in_features": shape[-2] * n_groups,
            "out_features": shape[-1],
            "feature_group_count": n_groups,
            "kernel_shape": shape,
        }
    return {"kernel_shape": shape} if isinstance(module, nnx.Einsum) else {}


def split_nnx(model: Any) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """The state of an NNX model, and two functions of it and of inputs: of its sizes, of any."""
    from flax import nnx

    graphdef, state = nnx.split(model)

    def apply_fn(state: Any, *inputs: Any) -> Any:
        return nnx.merge(graphdef, state)(*inputs)

    def apply_small(state: Any, *inputs: Any) -> Any:
        small = nnx.merge(graphdef, state)
        resize_nnx(small)
        return small(*inputs)

    return state, apply_fn, apply_small
