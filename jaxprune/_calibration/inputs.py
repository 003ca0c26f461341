"""Collects the inputs of every layer of a flax model while the model runs.

This module knows flax and nothing of pruning. It imports flax only when one of its functions runs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune._base.arguments import shown
from jaxprune._base.flax_import import import_flax
from jaxprune._base.paths import flattened, spec_of
from jaxprune._calibration.moments import as_rows


class _Recorder:
    """Records the inputs of each kernel while a model runs on concrete arrays.

    Args:
      function: the public function that runs the model, for errors.
      arguments: everything that the model runs on; must not contain traced values.
    """

    def __init__(self, function: str, arguments: Any):
        if any(isinstance(x, Tracer) for x in flattened(arguments)[0]):
            raise TypeError(
                f"{function} must run the model on arrays, got a traced value. Call it outside jit."
            )
        self.function = function
        self.running: set[str] = set()
        self.parts: dict[str, list[Any]] = {}

    @contextlib.contextmanager
    def call(self, path: str, x: Any) -> Iterator[Any]:
        """Surrounds the call of a layer on `x`; yields the array to call the layer on instead."""
        if path in self.running:  # a wrapper, such as nn.remat(nn.Dense), has recorded `x`
            yield x
            return
        self.running.add(path)
        try:
            yield _tapped(x, functools.partial(self._store, path))
        finally:
            self.running.remove(path)

    def _store(self, path: str, x: Any) -> Any:
        self.parts.setdefault(path, []).append(x)
        return x

    def recorded(self) -> dict[str, jax.Array]:
        if not self.parts:
            raise ValueError(
                f"{self.function}: no layer ran whose inputs it can collect. It collects those of "
                "flax.linen.Dense and flax.nnx.Linear."
            )
        return {path: _concatenated(parts) for path, parts in self.parts.items()}


def _tapped(x: Any, store: Callable[[Any], Any]) -> Any:
    """`x`, and calls `store` with its value.

    Inside remat or vmap, `x` is traced and `store` is called when its value is computed. The result
    must then be used, or the computation is removed as dead code.
    """
    if not isinstance(x, Tracer):
        return store(x)
    # Not a debug callback: a linen scan traces its body once more than it runs it, to check that
    # broadcast variables do not depend on the body. Effects, and so the callback, would run then.
    spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
    store_copy = lambda x: store(np.array(x))  # the buffer may be freed after the call
    tap = jax.custom_jvp(lambda x: jax.pure_callback(store_copy, spec, x, vmap_method="sequential"))
    tap.defjvp(lambda primals, tangents: (tap(*primals), tangents[0]))
    return tap(x)


def _concatenated(parts: list[Any]) -> jax.Array:
    """The inputs of all calls of a layer as (rows, in); float32 if their dtypes differ."""
    rows = [as_rows(jnp.asarray(x)) for x in parts]
    if len({x.dtype for x in rows}) > 1:
        rows = [x.astype(jnp.float32) for x in rows]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows)


def linen_inputs(model: Any, variables: Any, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
    """The inputs of every `Dense` of a linen model in `model.apply(variables, *args, **kwargs)`.

    The model runs once, op by op (`jax.disable_jit`). If a layer runs several times, because it is
    shared or in a scan, the inputs of all its calls are collected. Inside remat or vmap they are
    read by callbacks, which may hang on a single CPU core with JAX 0.10 and older. If not all
    batches fit in memory, sum their moments:

        for batch in batches:
            new = jax.tree.map(jaxprune.moments, jaxprune.linen_inputs(model, variables, batch))
            total = new if total is None else jax.tree.map(jnp.add, total, new)

    Args:
      model: a `flax.linen.Module`.
      variables: what `model.init` returned, a dict with the key `"params"`.
      args: other arguments of `model.apply`, such as a batch.
      kwargs: its keyword arguments.

    Returns:
      Path of the kernel, as in `variables["params"]` -> its inputs, (rows, in).

    Raises:
      ModuleNotFoundError: flax is not installed.
      TypeError: `model` is not a linen module, `variables` have no params, or it is called under
        `jit`.
      ValueError: no `Dense` ran.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> model, x = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), jnp.ones((5, 4))
      >>> variables = model.init(jax.random.key(0), x)
      >>> {path: x.shape for path, x in linen_inputs(model, variables, x).items()}
      {'layers_0/kernel': (5, 4), 'layers_2/kernel': (5, 3)}
    """
    nn = import_flax("linen_inputs", "linen")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"linen_inputs: model must be a flax.linen.Module, got {shown(model)}. Pass the model "
            "first: linen_inputs(model, variables, x); for an NNX model, call nnx_inputs(model, x)."
        )
    recorder = _Recorder("linen_inputs", (variables, args, kwargs))
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise TypeError(
            f"linen_inputs: variables must be a dict with the key 'params', got {shown(variables)}."
            " Pass what model.init returned, or {'params': params}."
        )
    if "method" not in kwargs:
        _check_batch("linen_inputs(model, variables", model, args, kwargs)

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module, nn.Dense) or context.method_name != "__call__":
            return call(*args, **kwargs)
        if not args and "inputs" not in kwargs:
            return call(*args, **kwargs)  # which raises the error of flax
        x, *more = args if args else (kwargs.pop("inputs"),)
        with recorder.call("/".join((*module.path, "kernel")), x) as x:
            return call(x, *more, **kwargs)

    with nn.intercept_methods(intercept), jax.disable_jit():
        jax.block_until_ready(model.apply(variables, *args, **kwargs))
    return recorder.recorded()


def nnx_inputs(model: Any, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
    """The inputs of every `Linear` of an NNX model in `model(*args, **kwargs)`; see `linen_inputs`.

    A copy of the model runs, so that its statistics and counters do not change. Call `model.eval()`
    first to collect the inputs that layers get at inference.

    Args:
      model: an `nnx.Module`.
      args: arguments of its call, such as a batch.
      kwargs: keyword arguments of its call.

    Returns:
      Path of the kernel, as in `nnx.state(model, nnx.Param)` -> its inputs, (rows, in).

    Raises:
      ModuleNotFoundError, TypeError, ValueError: as for `linen_inputs`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> {path: x.shape for path, x in nnx_inputs(model, jnp.ones((5, 4))).items()}
      {'kernel': (5, 4)}
    """
    nnx = import_flax("nnx_inputs", "nnx")
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"nnx_inputs: model must be an nnx.Module, got {shown(model)}. Pass the model first: "
            "nnx_inputs(model, x); for a linen model, call linen_inputs(model, variables, x)."
        )
    _check_batch("nnx_inputs(model", model, args, kwargs)
    recorder = _Recorder("nnx_inputs", (nnx.state(model), args, kwargs))
    copy = nnx.clone(model)
    nodes = list(nnx.iter_graph(copy))
    # By identity, because layers may share a kernel: the NNX state has it at its first path only.
    paths = {id(x): "/".join(map(str, path)) for path, x in reversed(nodes)}
    for _, layer in nodes:
        if isinstance(layer, nnx.Linear):
            _watch(layer, paths[id(layer.kernel)], recorder)
    with jax.disable_jit():
        jax.block_until_ready(copy(*args, **kwargs))
    return recorder.recorded()


def _check_batch(call: str, model: Any, args: Any, kwargs: Any) -> None:
    """Raises a TypeError where a model that takes arguments gets no array and no number.

    Args:
      call: of the public function, up to the batch.
      model: the model.
      args: all arguments of the call of the model.
      kwargs: its keyword arguments.
    """
    leaves = flattened((args, kwargs))[0]
    if any(spec_of(x) is not None or _is_number(x) for x in leaves) or not _takes_any(model):
        return
    got = shown(args[0]) if args else "none"
    raise TypeError(
        f"{call.partition('(')[0]}: needs the inputs of the model, got {got}. Pass one batch, an "
        f"array: {call}, x)."
    )


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Number) and not isinstance(x, bool)


def _takes_any(model: Any) -> bool:
    """Whether the call of a model has an argument that must be given."""
    parameters = list(inspect.signature(type(model).__call__).parameters.values())[1:]
    named = [x for x in parameters if x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)]
    return any(x.default is x.empty for x in named) or len(named) < len(parameters)


def _watch(layer: Any, path: str, recorder: _Recorder) -> None:
    """Gives the layer a subclass that records its inputs; copies by NNX transforms keep it."""

    class Watched(type(layer)):
        def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with recorder.call(path, inputs) as x:
                return super().__call__(x, *args, **kwargs)

    object.__setattr__(layer, "__class__", Watched)
