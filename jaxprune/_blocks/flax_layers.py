"""Flax models run from packed kernels, their code unchanged.

For linen a forward pass in which `Dense` layers and LSTM cells take their products from
`packed_matmul`; for NNX a model whose `Linear` layers have been exchanged, those of its recurrent
cells included.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import as_rules, leaves_with_paths, listed, matches, spec_of
from jaxprune._blocks.packed_matrix import PackedMatrix, pack_matrix, packed_matmul
from jaxprune._files.leaf_files import open_leaves
from jaxprune._files.save_load import nested

Packed = Mapping[str, PackedMatrix]


def pack_kernels(
    params: Any,
    include: Any = ".*kernel",
    *,
    block: tuple[int, int] = (1, 16),
    batch: int = 1,
) -> dict[str, PackedMatrix]:
    """The matrices of a tree that the rules choose, packed, by path; on the host.

    Args:
      params: a tree of arrays, pruned in blocks.
      include: as for `prune`; what has not two axes is left out.
      block: as for `pack_matrix`.
      batch: as for `pack_matrix`.

    Raises:
      ValueError: no matrix is chosen.
      TypeError: `include` is no rule.

    Example:
      >>> list(pack_kernels({"fc": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}))
      ['fc/kernel']
    """
    rules = as_rules(include, "include")
    paths, leaves, _ = leaves_with_paths(params)
    found = {}
    for path, leaf in zip(paths, leaves, strict=True):
        spec = spec_of(leaf)
        if spec is not None and len(spec.shape) == 2 and any(matches(r, path, spec) for r in rules):
            found[path] = pack_matrix(leaf, block=block, batch=batch)
    if not found:
        raise ValueError(
            f"nothing to pack: include={include!r} meets no matrix; the paths are {listed(paths)}."
        )
    return found


def load_packed(
    path: str | os.PathLike[str],
    include: Any = ".*kernel",
    *,
    block: tuple[int, int] = (1, 16),
    batch: int = 1,
) -> tuple[Any, dict[str, PackedMatrix]]:
    """The params of a file of `save`, the matrices that the rules choose packed as they are read.

    One dense kernel is in memory at a time, so that a sparse model takes about what its file does.
    The file is not trusted, as for `load`.

    Args:
      path: of the file.
      include: as for `prune`; what has not two axes is left out.
      block: as for `pack_matrix`.
      batch: as for `pack_matrix`.

    Returns:
      The other leaves, as nested dicts of NumPy arrays, and the packed matrices by path, as
      `packed_apply` takes them.

    Raises:
      ValueError: a file that is damaged, or no matrix is chosen.
      FileNotFoundError: there is none.

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
    rules = as_rules(include, "include")
    rest: dict[str, np.ndarray] = {}
    packed: dict[str, PackedMatrix] = {}
    with open_leaves(path) as reader:
        paths = [leaf.path for leaf in reader.leaves]
        for name, array in reader.arrays():
            spec = jax.ShapeDtypeStruct(array.shape, array.dtype)
            if array.ndim == 2 and any(matches(rule, name, spec) for rule in rules):
                packed[name] = pack_matrix(array, block=block, batch=batch)
            else:
                rest[name] = array
    if not packed:
        raise ValueError(
            f"{path}: include={include!r} meets no matrix; the paths are {listed(paths)}."
        )
    return nested(rest.items()), packed


def packed_apply(
    apply_fn: Callable[..., Any], packed: Packed, variables: Any, *args: Any, **kwargs: Any
) -> Any:
    """What `apply_fn(variables, ...)` returns, with some kernels of a linen model packed.

    `Dense`, `LSTMCell` and `OptimizedLSTMCell` take packed kernels; `packed` may be an argument of
    a jitted function. The dense kernels are not read, so that they may be left out of `variables`.

    Args:
      apply_fn: `model.apply`.
      packed: from `pack_kernels(variables["params"])`.
      variables: as for `apply_fn`.
      args: passed on.
      kwargs: passed on.

    Raises:
      ValueError: a kernel that no such layer used, with its path.

    Example:
      >>> from flax import linen as nn
      >>> model, x = nn.Dense(4), jnp.ones((1, 4))
      >>> variables = {"params": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}
      >>> packed = pack_kernels(variables["params"])
      >>> packed_apply(model.apply, packed, variables, x).tolist()
      [[1.0, 1.0, 1.0, 1.0]]
    """
    from flax import linen as nn

    used: set[str] = set()

    def product(module: Any, name: tuple[str, ...], x: jax.Array) -> jax.Array:
        path = "/".join((*module.path, *name, "kernel"))
        used.add(path)
        x, values = _promoted(module.dtype, x, packed[path].values)
        return packed_matmul(_with_values(packed[path], values), x)

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, context.module.path
        if context.method_name == "__call__" and not kwargs:
            if type(module) is nn.Dense and "/".join((*path, "kernel")) in packed:
                return _dense(module, product, *args)
            gates = ["/".join((*path, f"{way}{gate}", "kernel")) for way in "ih" for gate in "ifgo"]
            if type(module) is nn.OptimizedLSTMCell and all(gate in packed for gate in gates):
                return _lstm(module, product, *args)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        out = apply_fn(variables, *args, **kwargs)
    if unused := sorted(set(packed) - used):
        raise ValueError(
            f"packed_apply: no Dense or LSTM cell used {listed(unused)}. Leave them out with "
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
    """The sum, by a broadcast that `jax_numpy_rank_promotion="raise"` allows too."""
    return y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)


def _promoted(dtype: Any, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays in the dtype of a layer, by default that which they have in common."""
    dtype = jnp.result_type(*arrays) if dtype is None else dtype
    return tuple(jnp.asarray(x, dtype) for x in arrays)


def _with_values(packed: PackedMatrix, values: jax.Array) -> PackedMatrix:
    meta = packed.shape, packed.block, packed.rows_first
    return PackedMatrix(packed.indices, values, *meta)


def pack_linear(
    model: Any,
    include: Any = ".*kernel",
    *,
    block: tuple[int, int] = (1, 16),
    batch: int = 1,
) -> list[str]:
    """Exchanges `nnx.Linear` layers of an NNX model for packed ones, in place, for inference.

    Args:
      model: an `nnx.Module` with `Linear` layers in it; cells of `nnx` are made of them, too.
      include: as for `prune`, of the paths of kernels.
      block: as for `pack_matrix`.
      batch: as for `pack_matrix`.

    Returns:
      The paths of the kernels that were packed.

    Raises:
      ValueError: no `Linear` is chosen, or the model is one itself.

    Example:
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.relu)
      >>> before = model(jnp.ones(4))
      >>> pack_linear(model)
      ['layers/0/kernel']
      >>> bool(jnp.allclose(model(jnp.ones(4)), before, atol=1e-6))
      True
    """
    from flax import nnx

    rules = as_rules(include, "include")
    chosen = {}
    for path, module in list(nnx.iter_graph(model)):
        if type(module) is nnx.Linear:
            name, kernel = "/".join(map(str, (*path, "kernel"))), _value(module.kernel)
            if any(matches(rule, name, jax.typeof(kernel)) for rule in rules):
                chosen[name] = path, module
    if not chosen or any(not path for path, _ in chosen.values()):
        raise ValueError(
            f"nothing to pack: include={include!r} meets no nnx.Linear inside of the model. Of a "
            "layer alone use pack_matrix and packed_matmul."
        )
    for path, layer in chosen.values():
        new = _packed_linear()(layer, pack_matrix(_value(layer.kernel), block=block, batch=batch))
        *above, last = path
        parent = functools.reduce(_child, above, model)
        if hasattr(parent, "__setitem__"):
            parent[last] = new
        else:
            setattr(parent, str(last), new)
    return list(chosen)


def _child(node: Any, key: Any) -> Any:
    return node[key] if hasattr(node, "__getitem__") else getattr(node, key)


def _value(variable: Any) -> jax.Array:
    """The array in an NNX variable, of old versions and new."""
    return variable[...]


@functools.cache
def _packed_linear() -> Any:
    from flax import nnx

    class PackedLinear(nnx.Module):
        """A `Linear` whose kernel is packed."""

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
