"""Flax models that run from packed kernels, with their code unchanged.

`pack_kernels` packs the kernels of params in memory, `load_packed` those of a file. `packed_apply`
runs a linen model with them: its `Dense` layers and LSTM cells call `packed_matmul`. For NNX see
`nnx_layers.py`.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.argument_types import Selection
from jaxprune._base.arguments import as_file_path, is_int, shown
from jaxprune._base.flax_import import import_flax
from jaxprune._base.on_host import check_here
from jaxprune._base.paths import (
    as_rules,
    is_model,
    leaves_with_paths,
    listed,
    matches,
    shown_path,
    spec_of,
)
from jaxprune._blocks.packed_matrix import PackedMatrix, pack_matrix, packed_matmul
from jaxprune._files.save_load import nested
from jaxprune._files.shard_reader import open_params
from jaxprune._recipe.spelling import spelled_rules


def pack_kernels(
    params: Any,
    include: Selection = ".*kernel",
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
      >>> import jax.numpy as jnp
      >>> params = {"fc": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}
      >>> list(pack_kernels(params, block=(1, 2)))
      ['fc/kernel']
    """
    paths, leaves, _ = leaves_with_paths(params)
    rules = spelled_rules(rules_of(include), paths)
    packed = {}
    for path, leaf in zip(paths, leaves, strict=True):
        spec = spec_of(leaf)
        if spec is not None and is_chosen(rules, path, spec):
            check_here(f"pack_kernels: {shown_path(path)}", leaf)
            packed[path] = pack_matrix(leaf, block=block, batch=batch)
    if not packed:
        raise ValueError(f"nothing to pack: {_no_match(include, paths)}")
    warn_of_kept("pack_kernels", packed)
    return packed


def rules_of(include: Any) -> Any:
    """The rules of `include`; a TypeError for what must be meant as the shape of a block."""
    if isinstance(include, (tuple, list)) and include and all(map(is_int, include)):
        raise TypeError(
            f"include must be a regex or a function, got {include!r}. Pass the shape of a block by "
            f"name: block={tuple(include)!r}."
        )
    return as_rules(include, "include")


def is_chosen(rules: Any, path: str, spec: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf is a matrix that a rule matches."""
    return len(spec.shape) == 2 and any(matches(rule, path, spec) for rule in rules)


def warn_of_kept(function: str, packed: Mapping[str, PackedMatrix]) -> None:
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
    include: Selection = ".*kernel",
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
      >>> import jaxprune, numpy as np, tempfile
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
        rules = spelled_rules(rules_of(include), paths)
        for name, array in reader.arrays():
            spec = jax.ShapeDtypeStruct(array.shape, array.dtype)
            if is_chosen(rules, name, spec):
                packed[name] = pack_matrix(array, block=block, batch=batch)
            else:
                rest[name] = array
    if not packed:
        raise ValueError(f"{path}: {_no_match(include, paths)}")
    warn_of_kept("load_packed", packed)
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
      ValueError: a packed kernel was not used by any such layer, with its path; or its layer has
        its own `dot_general`, `dot_general_cls` or `promote_dtype`.

    Example:
      >>> import jax.numpy as jnp, jaxprune
      >>> from flax import linen as nn
      >>> model, x = nn.Dense(4), jnp.ones((1, 4))
      >>> variables = {"params": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
      >>> packed = jaxprune.pack_kernels(variables["params"], block=(1, 2))
      >>> packed_apply(model.apply, packed, variables, x).tolist()
      [[1.0, 1.0, 1.0, 1.0]]
    """
    nn = import_flax("packed_apply", "linen")
    _check_packed_apply(apply_fn, packed)
    used: set[str] = set()
    kernels = {path.removeprefix("params/"): path for path in packed} | {x: x for x in packed}
    defaults = {field.name: field.default for field in dataclasses.fields(nn.Dense)}

    def product(module: Any, name: tuple[str, ...], x: jax.Array, bias: Any = None) -> jax.Array:
        path = kernels["/".join((*module.path, *name, "kernel"))]
        used.add(path)
        return linear(module.dtype, packed[path], x, bias)

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, context.module.path
        operands = (*args, *(kwargs[name] for name in ("carry", "inputs") if name in kwargs))
        if context.method_name == "__call__" and kwargs.keys() <= {"carry", "inputs"}:
            kernel = "/".join((*path, "kernel"))
            if type(module) is nn.Dense and kernel in kernels:
                check_options("packed_apply", kernels[kernel], module, defaults)
                return _dense(module, product, *operands)
            gates = ["/".join((*path, f"{x}{gate}", "kernel")) for x in "ih" for gate in "ifgo"]
            if type(module) is nn.OptimizedLSTMCell and all(name in kernels for name in gates):
                return _lstm(module, product, *operands)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        out = apply_fn(variables, *args, **kwargs)
    if unused := sorted(set(packed) - used):
        raise ValueError(
            f"packed_apply: no Dense layer or LSTM cell used {listed(unused)}. Leave them out with "
            "pack_kernels(params, include=...)."
        )
    return out


def _check_packed_apply(apply_fn: Any, packed: Any) -> None:
    """Raises a TypeError for the first two arguments of `packed_apply`."""
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


def check_options(function: str, path: str, layer: Any, defaults: Mapping[str, Any]) -> None:
    """Raises where a layer computes its product in a way of its own.

    Args:
      function: the public function, for errors.
      path: of the kernel.
      layer: a `Dense` or `Linear` layer.
      defaults: of the options of such layers, by name.
    """
    names = ("dot_general", "dot_general_cls", "promote_dtype", "preferred_element_type")
    for name in names:
        if name in defaults and getattr(layer, name, defaults[name]) is not defaults[name]:
            raise ValueError(
                f"{function}: {path}: the layer has its own {name}, which a product with a packed "
                "kernel does not use. Leave it out with include=."
            )


def linear(dtype: Any, packed: PackedMatrix, x: jax.Array, bias: Any) -> jax.Array:
    """A linear layer with an optional bias, in its dtype; without one, in the promoted dtype."""
    arrays = [x, packed.values] if bias is None else [x, packed.values, bias]
    dtype = jnp.result_type(*arrays) if dtype is None else dtype
    x, values, *biases = (jnp.asarray(array, dtype) for array in arrays)
    meta = packed.shape, packed.block, packed.rows_first
    y = packed_matmul(PackedMatrix(packed.indices, values, *meta), x)
    return _biased(y, *biases) if biases else y


def _dense(module: Any, product: Any, x: jax.Array) -> jax.Array:
    bias = module.get_variable("params", "bias") if module.use_bias else None
    return product(module, (), x, bias)


def _lstm(module: Any, product: Any, carry: Any, x: jax.Array) -> Any:
    c, h = carry

    def gate(name: str) -> jax.Array:
        bias = module.get_variable("params", f"h{name}")["bias"]
        return product(module, (f"i{name}",), x) + product(module, (f"h{name}",), h, bias)

    i, f, o = (module.gate_fn(gate(name)) for name in "ifo")
    c = f * c + i * module.activation_fn(gate("g"))
    h = o * module.activation_fn(c)
    return (c, h), h


def _biased(y: jax.Array, bias: jax.Array) -> jax.Array:
    """`y + bias`, broadcast explicitly because `jax_numpy_rank_promotion="raise"` requires it."""
    return y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)
