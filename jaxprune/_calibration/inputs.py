"""What reaches the layers of a model: the inputs of every kernel, collected while it runs.

Knows flax and nothing of pruning; flax is imported only when it is used.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune._calibration.moments import as_rows


class _Rows:
    """The inputs of each kernel, collected while a model runs on concrete arrays."""

    def __init__(self, function: str, arguments: Any):
        if any(isinstance(x, Tracer) for x in jax.tree.leaves(arguments)):
            raise TypeError(
                f"{function} runs the model on arrays, got a traced value. Call it outside jit."
            )
        self.function = function
        self.running: set[str] = set()
        self.parts: dict[str, list[Any]] = {}

    @contextlib.contextmanager
    def call(self, path: str, x: Any) -> Iterator[Any]:
        """Around the call of a layer; yields what to call it with in place of `x`."""
        if path in self.running:  # inside a wrapper, as nn.remat(nn.Dense) makes
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

    def collected(self) -> dict[str, jax.Array]:
        if not self.parts:
            raise ValueError(f"{self.function}: no layer ran whose inputs it knows how to collect.")
        return {path: _concatenated(parts) for path, parts in self.parts.items()}


def _tapped(x: Any, store: Callable[[Any], Any]) -> Any:
    """`x`, stored when it is computed. Inside remat or vmap that is later, and it must be used."""
    if not isinstance(x, Tracer):
        return store(x)
    # Not a debug callback: a linen scan traces its body once more than it runs it, to see that
    # nothing broadcast depends on it, and an effect would count.
    spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
    copied = lambda x: store(np.array(x))  # the buffer may be gone after the call
    tap = jax.custom_jvp(lambda x: jax.pure_callback(copied, spec, x, vmap_method="sequential"))
    tap.defjvp(lambda primals, tangents: (tap(*primals), tangents[0]))
    return tap(x)


def _concatenated(parts: list[Any]) -> jax.Array:
    rows = [as_rows(jnp.asarray(x)) for x in parts]
    if len({x.dtype for x in rows}) > 1:
        rows = [x.astype(jnp.float32) for x in rows]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows)


def _flax(function: str, module: str) -> Any:
    try:
        return importlib.import_module(f"flax.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "flax":
            raise
        text = f"{function} needs flax, which is not installed: pip install 'jaxprune[flax]'."
        raise ModuleNotFoundError(text, name="flax") from error


def linen_inputs(model: Any, variables: Any, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
    """What reaches every `Dense` of a linen model in `model.apply(variables, *args, **kwargs)`.

    The model runs once, op by op (`jax.disable_jit`). A layer that runs several times, shared or in
    a scan, collects the inputs of all calls. Those inside remat or vmap are read by callbacks, with
    which JAX 0.10 and older may hang on one CPU core. For more batches than fit in memory, sum the
    moments:

        for batch in batches:
            new = jax.tree.map(jaxprune.moments, jaxprune.linen_inputs(model, variables, batch))
            total = new if total is None else jax.tree.map(jnp.add, total, new)

    Returns:
      Path of the kernel, as in `variables["params"]` -> its inputs, (rows, in).

    Raises:
      ModuleNotFoundError: flax is not installed.
      TypeError: it is called under `jit`.
      ValueError: no `Dense` ran.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> model, x = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), jnp.ones((5, 4))
      >>> variables = model.init(jax.random.key(0), x)
      >>> {path: x.shape for path, x in linen_inputs(model, variables, x).items()}
      {'layers_0/kernel': (5, 4), 'layers_2/kernel': (5, 3)}
    """
    nn = _flax("linen_inputs", "linen")
    rows = _Rows("linen_inputs", (variables, args, kwargs))

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module, nn.Dense) or context.method_name != "__call__":
            return call(*args, **kwargs)
        x, *more = args if args else (kwargs.pop("inputs"),)
        with rows.call("/".join((*module.path, "kernel")), x) as x:
            return call(x, *more, **kwargs)

    with nn.intercept_methods(intercept), jax.disable_jit():
        jax.block_until_ready(model.apply(variables, *args, **kwargs))
    return rows.collected()


def nnx_inputs(model: Any, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
    """What reaches every `Linear` of an NNX model in `model(*args, **kwargs)`; see `linen_inputs`.

    A copy of the model runs, so that statistics and counters stay as they are. Call `model.eval()`
    first to collect what layers see when the model is used.

    Returns:
      Path of the kernel, as in `nnx.state(model, nnx.Param)` -> its inputs, (rows, in).

    Raises:
      ModuleNotFoundError, TypeError, ValueError: as `linen_inputs`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> {path: x.shape for path, x in nnx_inputs(model, jnp.ones((5, 4))).items()}
      {'kernel': (5, 4)}
    """
    nnx = _flax("nnx_inputs", "nnx")
    rows = _Rows("nnx_inputs", (nnx.state(model), args, kwargs))
    twin = nnx.clone(model)
    nodes = list(nnx.iter_graph(twin))
    # By identity: layers may share a kernel, which the state has where it is found first.
    paths = {id(x): "/".join(map(str, path)) for path, x in reversed(nodes)}
    for _, layer in nodes:
        if isinstance(layer, nnx.Linear):
            _watch(layer, paths[id(layer.kernel)], rows)
    with jax.disable_jit():
        jax.block_until_ready(twin(*args, **kwargs))
    return rows.collected()


def _watch(layer: Any, path: str, rows: _Rows) -> None:
    """Gives the layer a class of its own, which outlives the copies that NNX transforms make."""

    class Watched(type(layer)):
        def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with rows.call(path, inputs) as x:
                return super().__call__(x, *args, **kwargs)

    object.__setattr__(layer, "__class__", Watched)
