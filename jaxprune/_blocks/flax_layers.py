"""Flax models that run from packed kernels, with their code unchanged.

`pack_kernels` packs the kernels of params in memory, `load_packed` those of a file. `packed_apply`
runs a linen model with them: its `Dense` layers and LSTM cells call `packed_matmul`. `pack_linear`
replaces the `Linear` layers of an NNX model, including those inside recurrent cells.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import as_file_path, is_int, shown
from jaxprune._base.flax_import import import_flax
from jaxprune._base.paths import as_rules, is_model, leaves_with_paths, listed, matches, spec_of
from jaxprune._blocks.packed_matrix import PackedMatrix, pack_matrix, packed_matmul
from jaxprune._files.save_load import nested
from jaxprune._files.shard_reader import open_params
from jaxprune._recipe.spelling import spelled_rules


def pack_kernels(
    params: Any,
    include: Any = ".*kernel",
    *,
    block: tuple[int, int] = (1, 16),
    batch: int = 1,
) -> dict[str, PackedMatrix]:
    """Packs the matrices of a tree that match the rules; runs on the host, not under `jit`.

    Warns of matrices that keep more than half of their blocks: a dense product is faster.

    Args:
      params: a tree of arrays, pruned in blocks.
      include: as for `prune`; only 2-D leaves are packed.
      block: as for `pack_matrix`.
      batch: as for `pack_matrix`.

    Returns:
      The packed matrices by path.

    Raises:
      ValueError: no 2-D leaf matches `include`.
      TypeError: `include` is neither a regex nor a function, nor a list of those.

    Example:
      >>> params = {"fc": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}
      >>> list(pack_kernels(params, block=(1, 2)))
      ['fc/kernel']
    """
    paths, leaves, _ = leaves_with_paths(params)
    rules = spelled_rules(_rules(include), paths)
    packed = {}
    for path, leaf in zip(paths, leaves, strict=True):
        spec = spec_of(leaf)
        if spec is not None and _is_chosen(rules, path, spec):
            packed[path] = pack_matrix(leaf, block=block, batch=batch)
    if not packed:
        raise ValueError(f"nothing to pack: {_no_match(include, paths)}")
    _warn_of_kept("pack_kernels", packed)
    return packed


def _rules(include: Any) -> Any:
    if isinstance(include, (tuple, list)) and include and all(map(is_int, include)):
        raise TypeError(
            f"include must be a regex or a function, got {include!r}. Pass the shape of a block by "
            f"name: block={tuple(include)!r}."
        )
    return as_rules(include, "include")


def _is_chosen(rules: Any, path: str, spec: jax.ShapeDtypeStruct) -> bool:
    return len(spec.shape) == 2 and any(matches(rule, path, spec) for rule in rules)


def _warn_of_kept(function: str, packed: Mapping[str, PackedMatrix]) -> None:
    """Warns of matrices that keep more than half of their blocks, so that packing does not pay."""
    slow = {}
    for path, matrix in packed.items():
        n_kept, n_rows = matrix.indices.shape[1], -(-matrix.shape[0] // matrix.block[0])
        if 2 * n_kept > n_rows:
            slow[f"{path} ({n_kept / n_rows:.0%})"] = matrix.block
    if slow:
        rows, width = next(iter(slow.values()))
        warnings.warn(
            f"jaxprune.{function}: more than half of the blocks are kept of {listed(list(slow))}, "
            "where a dense product is faster. A block is kept if any of its weights is: prune with "
            f"structure=jaxprune.Block(({rows}, {width})), or leave these out with include=.",
            stacklevel=3,
        )


def _no_match(include: Any, paths: Sequence[str]) -> str:
    return f"include={include!r} matches no 2-D leaf. The paths of the leaves are {listed(paths)}."


def load_packed(
    path: str | os.PathLike[str],
    include: Any = ".*kernel",
    *,
    block: tuple[int, int] = (1, 16),
    batch: int = 1,
) -> tuple[Any, dict[str, PackedMatrix]]:
    """Reads a file as `load` does, and packs the matrices that match the rules.

    Only one dense kernel is in memory at a time, so a sparse model takes about as much memory as
    its file takes on disk. The file is not trusted, as for `load`. Warns as `pack_kernels` does.

    Args:
      path: as for `load`.
      include: as for `prune`; only 2-D leaves are packed.
      block: as for `pack_matrix`.
      batch: as for `pack_matrix`.

    Returns:
      The other leaves as nested dicts of NumPy arrays; and the packed matrices by path, for
      `packed_apply`.

    Raises:
      TypeError: as for `pack_kernels`.
      ValueError: as for `load` and `pack_matrix`; or no 2-D leaf matches `include`.
      FileNotFoundError, IsADirectoryError, ImportError: as for `load`.

    Example:
      >>> import jaxprune, tempfile
      >>> w = np.zeros((6, 32), np.float32)
      >>> w[2, :16] = 1
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jaxprune.save(f"{folder}/a.zst", {"fc": {"kernel": w, "bias": np.ones(2)}})
      ...     rest, packed = load_packed(f"{folder}/a.zst")
      >>> rest, packed["fc/kernel"].values.shape
      ({'fc': {'bias': array([1., 1.])}}, (2, 1, 16))
    """
    path = as_file_path("load_packed", path)
    rest: dict[str, np.ndarray] = {}
    packed: dict[str, PackedMatrix] = {}
    with open_params(path) as reader:
        paths = [leaf.path for leaf in reader.leaves]
        rules = spelled_rules(_rules(include), paths)
        for name, array in reader.arrays():
            spec = jax.ShapeDtypeStruct(array.shape, array.dtype)
            if _is_chosen(rules, name, spec):
                packed[name] = pack_matrix(array, block=block, batch=batch)
            else:
                rest[name] = array
    if not packed:
        raise ValueError(f"{path}: {_no_match(include, paths)}")
    _warn_of_kept("load_packed", packed)
    return nested(rest.items()), packed


# linen


def packed_apply(
    apply_fn: Callable[..., Any],
    packed: Mapping[str, PackedMatrix],
    variables: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls `apply_fn(variables, ...)` of a linen model, with some of its kernels packed.

    Layers of type `Dense`, `LSTMCell` and `OptimizedLSTMCell` use the packed kernels. `packed` can
    be an argument of a jitted function. The dense kernels are not read, so `variables` need not
    contain them.

    Args:
      apply_fn: `model.apply`.
      packed: from `pack_kernels(variables["params"])`, or from `pack_kernels(variables)` or
        `load_packed`, where the paths begin with `params/`.
      variables: as for `apply_fn`.
      args: passed to `apply_fn`.
      kwargs: passed to `apply_fn`.

    Returns:
      The result of `apply_fn`.

    Raises:
      TypeError: `apply_fn` is not a function, or `packed` does not hold packed matrices.
      ValueError: a packed kernel was not used by any such layer, with its path.

    Example:
      >>> from flax import linen as nn
      >>> model, x = nn.Dense(4), jnp.ones((1, 4))
      >>> variables = {"params": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
      >>> packed = pack_kernels(variables["params"], block=(1, 2))
      >>> packed_apply(model.apply, packed, variables, x).tolist()
      [[1.0, 1.0, 1.0, 1.0]]
    """
    nn = import_flax("packed_apply", "linen")
    if isinstance(apply_fn, type) or is_model(apply_fn) or not callable(apply_fn):
        raise TypeError(
            f"packed_apply: apply_fn must be a function, got {shown(apply_fn)}. Pass model.apply "
            "first: packed_apply(model.apply, packed, variables, x)."
        )
    if not isinstance(packed, Mapping) or not all(
        isinstance(x, PackedMatrix) for x in packed.values()
    ):
        raise TypeError(
            f"packed_apply: packed must map paths to packed matrices, got {shown(packed)}. Make "
            "it with jaxprune.pack_kernels(variables['params'])."
        )
    used: set[str] = set()
    kernels = {path.removeprefix("params/"): path for path in packed} | {x: x for x in packed}

    def product(module: Any, name: tuple[str, ...], x: jax.Array) -> jax.Array:
        path = kernels["/".join((*module.path, *name, "kernel"))]
        used.add(path)
        x, values = _promoted(module.dtype, x, packed[path].values)
        return packed_matmul(_with_values(packed[path], values), x)

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, context.module.path
        if context.method_name == "__call__" and not kwargs:
            if type(module) is nn.Dense and "/".join((*path, "kernel")) in kernels:
                return _dense(module, product, *args)
            gates = ["/".join((*path, f"{x}{gate}", "kernel")) for x in "ih" for gate in "ifgo"]
            if type(module) is nn.OptimizedLSTMCell and all(name in kernels for name in gates):
                return _lstm(module, product, *args)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        out = apply_fn(variables, *args, **kwargs)
    if unused := sorted(set(packed) - used):
        raise ValueError(
            f"packed_apply: no Dense layer or LSTM cell used {listed(unused)}. Leave them out with "
            "pack_kernels(params, include=...)."
        )
    return out


def _dense(module: Any, product: Any, x: jax.Array) -> jax.Array:
    y = product(module, (), x)
    return _biased(y, module.get_variable("params", "bias")) if module.use_bias else y


def _lstm(module: Any, product: Any, carry: Any, x: jax.Array) -> Any:
    c, h = carry

    def gate(name: str) -> jax.Array:
        y = product(module, (f"i{name}",), x) + product(module, (f"h{name}",), h)
        return _biased(y, module.get_variable("params", f"h{name}")["bias"])

    i, f, o = (module.gate_fn(gate(name)) for name in "ifo")
    c = f * c + i * module.activation_fn(gate("g"))
    h = o * module.activation_fn(c)
    return (c, h), h


def _biased(y: jax.Array, bias: jax.Array) -> jax.Array:
    """`y + bias`, broadcast explicitly because `jax_numpy_rank_promotion="raise"` requires it."""
    return y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)


def _promoted(dtype: Any, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays in the dtype of a layer, or if it has none, in the dtype that JAX promotes to."""
    dtype = jnp.result_type(*arrays) if dtype is None else dtype
    return tuple(jnp.asarray(x, dtype) for x in arrays)


def _with_values(packed: PackedMatrix, values: jax.Array) -> PackedMatrix:
    meta = packed.shape, packed.block, packed.rows_first
    return PackedMatrix(packed.indices, values, *meta)


# NNX


def pack_linear(
    model: Any,
    include: Any = ".*kernel",
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
      ValueError: no kernel of a `Linear` layer matches `include`, or the model itself is one.

    Example:
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.relu)
      >>> model.layers[0].kernel[...] = jnp.eye(4)
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
        "/".join(map(str, (*path, "kernel"))): (path, module)
        for path, module in list(nnx.iter_graph(model))
        if type(module) is nnx.Linear
    }
    rules = spelled_rules(_rules(include), list(layers))
    chosen = {}
    for name, (path, layer) in layers.items():
        if _is_chosen(rules, name, jax.typeof(_value(layer.kernel))):
            chosen[name] = path, layer
    if not chosen or any(not path for path, _ in chosen.values()):
        raise ValueError(
            f"nothing to pack: include={include!r} matches no nnx.Linear with a 2-D kernel inside "
            "the model. For a single layer, or each of several in one leaf, use pack_matrix and "
            "packed_matmul."
        )
    packed = {
        name: pack_matrix(_value(layer.kernel), block=block, batch=batch)
        for name, (_, layer) in chosen.items()
    }
    for name, (path, layer) in chosen.items():
        _replace_child(model, path, _packed_linear()(layer, packed[name]))
    _warn_of_kept("pack_linear", packed)
    return list(chosen)


def _replace_child(model: Any, path: Sequence[Any], layer: Any) -> None:
    """Puts a layer at a path of the model."""
    *parents, last = path
    parent = functools.reduce(_child, parents, model)
    if hasattr(parent, "__setitem__"):
        parent[last] = layer
    else:
        setattr(parent, str(last), layer)


def _child(node: Any, key: Any) -> Any:
    return node[key] if hasattr(node, "__getitem__") else getattr(node, key)


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

        def __call__(self, x: jax.Array) -> jax.Array:
            x, values = _promoted(self.dtype, x, _value(self.values))
            y = packed_matmul(PackedMatrix(_value(self.indices), values, *self.meta), x)
            return y if self.bias is None else _biased(y, _value(self.bias))

    return PackedLinear
