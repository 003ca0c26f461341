"""`layer_inputs`: what Wanda and SparseGPT need of the inputs of every param, of any function.

The jaxpr of the function says which products the params are in (`_trace`); `product_plans` says
where the moments of each product's inputs belong, and `collector` adds them up while the function
runs. This module has the public functions, `collection` compiles the collector.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from jaxprune._base.argument_types import Selection
from jaxprune._base.arguments import as_flag
from jaxprune._base.flax_import import import_flax
from jaxprune._base.paths import as_rules, leaves_with_paths, listed
from jaxprune._calibration.batches import as_batches
from jaxprune._calibration.collection import collect
from jaxprune._calibration.inputs_of_leaves import LayerInputs
from jaxprune._recipe.choice import LeafRules
from jaxprune._recipe.user_rules import as_include
from jaxprune._trace.model_arguments import check_function, check_module


def layer_inputs(
    apply_fn: Callable[..., Any],
    variables: Any,
    *batch: Any,
    batches: Iterable[Any] | None = None,
    include: Selection | None = None,
    exclude: Selection | None = (),
    diagonal: bool = False,
    progress: bool | None = None,
) -> LayerInputs:
    """Runs a model, and collects the second moments of what each param is multiplied with.

    It works for any JAX function: linen, NNX (`layer_inputs_nnx`), Equinox, Haiku; dense layers,
    einsum, attention, convolutions, experts, layers in a `scan`, under `jit`, `remat` and `vmap`.
    The program of the function says which params are in products, and on which axes. Inputs may be
    sharded: they stay where they are, and only moments cross devices.

    Slices of a leaf, such as experts or layers of a `scan`, have moments of their own; those of an
    expert count only the tokens that reached it. If a leaf is used several times, its moments are
    added.

    Args:
      apply_fn: a function `(variables, *batch) -> outputs`, such as `model.apply`. Pass the
        model in inference mode, and options through a lambda:
        `lambda variables, x: model.apply(variables, x, train=False)`.
      variables: its first argument: a tree of arrays, such as params or an Equinox module.
      batch: its other arguments, for one batch.
      batches: instead of `batch`, an iterable of batches; each is an array, or a tuple of
        arguments. The moments of all batches are added.
      include: leaves to collect inputs for, as in `prune`.
      exclude: leaves to leave out, as in `prune`. A Gram matrix of n inputs has n * n entries.
      diagonal: collect only the sum of squares of each input, which is enough for `wanda`.
      progress: whether to show a progress bar, which needs tqdm. By default, it is shown in a
        terminal if there are several batches.

    Returns:
      A mapping from the path of each leaf to the `Moments` of its inputs, with the roles of its
      axes. Pass it to `wanda` and `sparsegpt`. Add those of other batches with `a + b`.

    Raises:
      ModuleNotFoundError: `progress=True`, and tqdm is not installed.
      TypeError: as for `axis_roles`; or neither or both of `batch` and `batches`.
      ValueError: no param is in a product, all batches are without rows, or `include` and `exclude`
        match nothing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"].T
      >>> params = {"w": jnp.ones((3, 8)), "b": jnp.ones((1, 8)), "v": jnp.ones((2, 8))}
      >>> inputs = layer_inputs(mlp, params, jnp.ones((4, 3)))
      >>> {path: (float(m.count), m.gram.shape) for path, m in inputs.items()}
      {'v': (4.0, (8, 8)), 'w': (4.0, (3, 3))}
      >>> inputs.roles["v"]  # so that wanda(params, inputs, 0.5) needs no roles
      ('out', 'in')
    """
    check_function("layer_inputs", apply_fn, variables)
    rules = LeafRules(as_include(include), as_rules(() if exclude is None else exclude, "exclude"))
    return collect(
        "layer_inputs",
        apply_fn,
        variables,
        as_batches("layer_inputs", batch, batches, progress),
        rules,
        diagonal=as_flag("layer_inputs: diagonal", diagonal),
    )


def layer_inputs_nnx(
    model: Any,
    *batch: Any,
    batches: Iterable[Any] | None = None,
    include: Selection | None = None,
    exclude: Selection | None = (),
    diagonal: bool = False,
    progress: bool | None = None,
) -> LayerInputs:
    """`layer_inputs` for an NNX model, with the paths of `nnx.state(model, nnx.Param)`.

    A copy of the model runs, so that its statistics and counters do not change. Call `model.eval()`
    first to collect the inputs that layers get at inference; a warning says if you forgot.

    Args:
      model: an `nnx.Module`.
      batch: arguments of its call, for one batch.
      batches: as in `layer_inputs`.
      include: as in `layer_inputs`.
      exclude: as in `layer_inputs`.
      diagonal: as in `layer_inputs`.
      progress: as in `layer_inputs`.

    Returns:
      As `layer_inputs`.

    Raises:
      TypeError, ValueError: as for `layer_inputs`; or the first argument is not an NNX module.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.MultiHeadAttention(4, 32, decode=False, rngs=nnx.Rngs(0))
      >>> inputs = layer_inputs_nnx(model, jnp.ones((1, 5, 32)))
      >>> inputs["out/kernel"].gram.shape, inputs.roles["out/kernel"]
      ((32, 32), ('in', 'in', 'out'))
    """
    nnx = import_flax("layer_inputs_nnx", "nnx")
    check_module("layer_inputs_nnx", model)
    rules = LeafRules(as_include(include), as_rules(() if exclude is None else exclude, "exclude"))
    graphdef, state = nnx.split(model)
    updated: set[str] = set()

    def run(state: Any, *args: Any) -> Any:
        model = nnx.merge(graphdef, state)
        before = _batch_statistics(nnx, model)
        outputs = model(*args)
        after = _batch_statistics(nnx, model)
        updated.update(path for path in after if after[path] is not before.get(path))
        return outputs

    inputs = collect(
        "layer_inputs_nnx",
        run,
        state,
        as_batches("layer_inputs_nnx", batch, batches, progress),
        rules,
        diagonal=as_flag("layer_inputs_nnx: diagonal", diagonal),
        params=leaves_with_paths(nnx.state(model, nnx.Param))[0],
    )
    _warn_of_batch_statistics(nnx, model, updated)
    return inputs


def _batch_statistics(nnx: Any, model: Any) -> dict[str, Any]:
    """The running averages of all layers, by path."""
    paths, leaves, _ = leaves_with_paths(nnx.state(model, nnx.BatchStat))
    return dict(zip(paths, leaves, strict=True))


def _warn_of_batch_statistics(nnx: Any, model: Any, updated: Iterable[str]) -> None:
    """Warns of layers in training mode that use the statistics of the batch, as BatchNorm does.

    A layer with `use_running_average=False` may still get True in the call: then it does not update
    its running averages. Transformations such as `nnx.scan` return new ones in any case, so this
    looks at both.

    Args:
      nnx: the module.
      model: the model.
      updated: the paths of the running averages that the call updated.
    """
    layers = []
    for path, node in nnx.iter_graph(model):
        if getattr(node, "use_running_average", None) is False:
            name = "/".join(map(str, path))
            prefix = f"{name}/" if name else ""
            layers += [name] if any(x.startswith(prefix) for x in updated) else []
    if layers:
        warnings.warn(
            f"jaxprune.layer_inputs_nnx: {listed(layers)}: in training mode, which uses the "
            "statistics of the batch, so later layers get other inputs than at inference. Call "
            "model.eval() first.",
            stacklevel=3,
        )
