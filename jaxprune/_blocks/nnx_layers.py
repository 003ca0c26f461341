"""NNX models that run from packed kernels: `pack_linear` replaces their `Linear` layers.

That includes those inside recurrent cells.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax

from jaxprune._base.argument_types import Selection
from jaxprune._base.arguments import shown
from jaxprune._base.flax_import import import_flax
from jaxprune._blocks.flax_layers import check_options, is_chosen, linear, rules_of, warn_of_kept
from jaxprune._blocks.packed_matrix import PackedMatrix, pack_matrix
from jaxprune._recipe.spelling import spelled_rules


def pack_linear(
    model: Any,
    include: Selection = ".*kernel",
    *,
    block: tuple[int, int] = (1, 16),
    batch: int = 1,
) -> list[str]:
    """Replaces `nnx.Linear` layers of an NNX model by packed ones, in place, for inference.

    Warns of kernels that keep more than half of their blocks, as `pack_kernels` does.

    Args:
      model: an `nnx.Module` that contains `Linear` layers, as the recurrent cells of `nnx` do.
      include: as for `prune`; matched against the paths of the kernels.
      block: as for `pack_matrix`.
      batch: as for `pack_matrix`.

    Returns:
      The paths of the kernels that were packed.

    Raises:
      TypeError: `model` is not an NNX module.
      ValueError: no kernel of a `Linear` layer matches `include`, or the model itself is one; or a
        layer has its own `dot_general`, `promote_dtype` or `preferred_element_type`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.relu)
      >>> model.layers[0].kernel[...] = jnp.eye(4, dtype="float32")
      >>> before = model(jnp.ones(4))
      >>> pack_linear(model, block=(1, 2))
      ['layers/0/kernel']
      >>> bool(jnp.allclose(model(jnp.ones(4)), before, atol=1e-6))
      True
    """
    nnx = import_flax("pack_linear", "nnx")
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"pack_linear: model must be an nnx.Module, got {shown(model)}. For params, call "
            "jaxprune.pack_kernels(params)."
        )
    layers = {
        "/".join(map(str, (*path, "kernel"))): module
        for path, module in nnx.iter_graph(model)
        if type(module) is nnx.Linear
    }
    rules = spelled_rules(rules_of(include), list(layers))
    chosen = {
        name: layer
        for name, layer in layers.items()
        if is_chosen(rules, name, jax.typeof(_value(layer.kernel)))
    }
    if not chosen or any(layer is model for layer in chosen.values()):
        raise ValueError(
            f"nothing to pack: include={include!r} matches no nnx.Linear with a 2-D kernel inside "
            "the model. For a single layer, or each of several in one leaf, use pack_matrix and "
            "packed_matmul."
        )
    parameters = inspect.signature(nnx.Linear.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    for name, layer in chosen.items():
        check_options("pack_linear", name, layer, defaults)
    packed = {
        name: pack_matrix(_value(layer.kernel), block=block, batch=batch)
        for name, layer in chosen.items()
    }
    layer_of = {id(layer): _packed_linear()(layer, packed[name]) for name, layer in chosen.items()}
    for module in [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)]:
        _replace_children(module, layer_of)
    warn_of_kept("pack_linear", packed)
    return list(chosen)


def _replace_children(module: Any, layer_of: Mapping[int, Any]) -> None:
    """Puts layers in the place of others, which they are given for by `id`, wherever they occur."""
    from flax import nnx

    for name, value in list(vars(module).items()):
        new = _replaced(value, layer_of)
        if new is value:
            continue
        if isinstance(new, tuple):
            new = nnx.data(new)
        if name.isdigit() and hasattr(module, "__setitem__"):  # of an nnx.List
            module[int(name)] = new
        else:
            setattr(module, name, new)


def _replaced(value: Any, layer_of: Mapping[int, Any]) -> Any:
    """A layer, or a container with layers, with others in their place; lists and dicts in place."""
    if id(value) in layer_of:
        return layer_of[id(value)]
    if isinstance(value, (list, dict)):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _replaced(item, layer_of)
    elif isinstance(value, tuple):
        items = [_replaced(item, layer_of) for item in value]
        if any(new is not item for new, item in zip(items, value, strict=True)):
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _value(variable: Any) -> jax.Array:
    """The array in an NNX variable; works in all supported versions of Flax."""
    return variable[...]


@functools.cache
def _packed_linear() -> Any:
    """The class `PackedLinear`; in a function, so that Flax is only imported when needed."""
    from flax import nnx

    class PackedLinear(nnx.Module):
        """A `Linear` layer with a packed kernel."""

        def __init__(self, layer: Any, packed: PackedMatrix):
            self.indices = nnx.Variable(packed.indices)
            self.values = nnx.Param(packed.values)
            self.bias = layer.bias
            self.dtype = layer.dtype
            self.meta = packed.shape, packed.block, packed.rows_first

        def __call__(self, inputs: jax.Array) -> jax.Array:
            packed = PackedMatrix(_value(self.indices), _value(self.values), *self.meta)
            bias = None if self.bias is None else _value(self.bias)
            return linear(self.dtype, packed, inputs, bias)

    return PackedLinear
