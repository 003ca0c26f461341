"""`shrink`: removes units that the network does not need, and returns a smaller dense network.

The steps: trace the model (`program`, `tracer`), find the units that are zero (`units`, `groups`),
check that the model without them is the same program (`same_program`), cut them out of the params,
run both models and compare the outputs.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import jax
import jax.core

from jaxprune._base.argument_types import Changes
from jaxprune._base.arguments import shown
from jaxprune._base.flax_import import import_flax
from jaxprune._base.paths import (
    check_array_library,
    check_not_donated,
    flattened,
    paths_of,
    spec_of,
)
from jaxprune._shrink.allow import allowed
from jaxprune._shrink.along import Carrier, without_progress
from jaxprune._shrink.balance import balance
from jaxprune._shrink.costs import layer_costs
from jaxprune._shrink.cut import units_of_labels
from jaxprune._shrink.fit import accept
from jaxprune._shrink.flax_sizes import Model, function_model, nnx_model, set_nnx_sizes
from jaxprune._shrink.groups import Group, group_units
from jaxprune._shrink.outputs import largest_difference
from jaxprune._shrink.removal import removed_indices, without
from jaxprune._shrink.report import ShrinkReport, refusals, report_of
from jaxprune._shrink.units import units_of
from jaxprune._trace.program import known_values, program_of, trace
from jaxprune._trace.records import Tiling


@overload
def shrink(
    apply_fn: Callable[..., Any],
    variables: Any,
    *example_inputs: Any,
    rtol: float | None = None,
    along: None = None,
    allow: Sequence[Changes] = (),
) -> tuple[Any, ShrinkReport]: ...


@overload
def shrink(
    apply_fn: Callable[..., Any],
    variables: Any,
    *example_inputs: Any,
    rtol: float | None = None,
    along: Any,
    allow: Sequence[Changes] = (),
) -> tuple[Any, ShrinkReport, Any]: ...


def shrink(
    apply_fn: Callable[..., Any],
    variables: Any,
    *example_inputs: Any,
    rtol: float | None = None,
    along: Any = None,
    allow: Sequence[Changes] = (),
) -> Any:
    """Removes zero units from all params, and checks that the outputs stay the same.

    A unit is a neuron, a channel, a hidden unit of a recurrent cell or a head of attention: one
    index of several axes in several leaves, which `shrink` finds from the jaxpr of `apply_fn`. A
    unit is removed if the output does not depend on it: in every product that sums over it, the
    activation or the weights are zero there, whatever the input. For example, a column of a kernel
    is zero, and so are its bias and the scale and bias of the batch norm that follows. If all units
    of a group are zero, one of them stays.

    An axis that the model splits into equal parts, such as the gates of a cell or the groups of a
    grouped convolution, loses equal numbers of units in all parts.

    Groups of units that can't be removed safely are refused: they keep their size, and the report
    gives the reason and the place in the model. Refused are

    - axes under a LayerNorm, a mean or a softmax, which depend on how many entries there are;
    - axes whose length is part of a constant, such as head_dim of query and key in attention, which
      are scaled by 1 / sqrt(head_dim), and hard-coded lengths (compute them from array shapes);
    - axes that must be as long as an input, or as a constant array in the code (make it a param);
    - axes that pass through a primitive for which jaxprune has no rule.

    A smaller leaf keeps its sharding. Optimizer states and averages of the params do not fit the
    smaller params: pass them as `along`, or initialize new ones.

    Args:
      apply_fn: a function `(variables, *inputs) -> outputs` in inference mode, such as
        `model.apply`. Pass keyword arguments through a lambda:
        `lambda v, x: model.apply(v, x, train=False)`.
      variables: a tree of arrays: params, and batch statistics if there are any.
      example_inputs: typical inputs, of any batch size, to run both models on.
      rtol: the largest difference of the outputs that is allowed, relative to the largest output;
        by default the square root of the machine epsilon. Both models run at full matmul precision.
      along: a tree of more arrays from which to remove the same units, such as
        `(opt_state, averages)`. A leaf in it belongs to a param if its path ends with that of the
        param. A prune state in it gets smaller masks, and no `progress`: to prune on, call
        `upgrade_state`. With a list of schedules, `prune([...])`, read the number of the chosen one
        first, from `get_state(opt_state).progress.choices.number`, and then go on with that
        schedule alone.
      allow: `("layer_norm",)` also removes zero units over which a sum or a mean runs, as LayerNorm
        and RMSNorm do over the residual stream of a transformer. This changes the function: the
        norm then divides by fewer entries. The report says which groups these are (`changes`) and
        by how much the outputs differ (`difference`), which has no limit unless `rtol` is given.

    Returns:
      The smaller variables, to run with `shrunk_apply(apply_fn, variables, *inputs)`, and a report.
      In plain JAX, and with a linen model that declares the new sizes,
      `apply_fn(variables, *inputs)` works too. With `along`, also its smaller tree.

    Raises:
      TypeError: `apply_fn` is not a function, the other arguments are not what it takes, or they
        have no values, as inside `jit`.
      ValueError: all groups are refused; or the outputs of the two models differ or contain NaN; or
        it is unclear what to remove from a leaf of `along`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
      >>> params = {"w": jnp.array([[1.0, 0.0, 2.0]]), "b": jnp.zeros(3), "v": jnp.ones((3, 2))}
      >>> small, report = shrink(mlp, params, jnp.ones((4, 1)))
      >>> {name: leaf.shape for name, leaf in small.items()}
      {'b': (2,), 'v': (2, 2), 'w': (1, 2)}
    """
    model = function_model("shrink", apply_fn, variables, example_inputs)
    _check_along(along)
    _check_values("along", along)
    check_not_donated("shrink: along", along)
    small, report, carrier = _shrink(model, rtol, allow)
    return (small, report) if along is None else (small, report, carrier.smaller(along))


def shrink_nnx(
    model: Any,
    *example_inputs: Any,
    rtol: float | None = None,
    along: Sequence[Any] = (),
    allow: Sequence[Changes] = (),
) -> ShrinkReport:
    """`shrink` for an NNX model, in place.

    Args:
      model: an `nnx.Module` whose call takes the inputs, in inference mode: call `model.eval()`
        first.
      example_inputs: as for `shrink`.
      rtol: as for `shrink`.
      along: more NNX objects to change in place, such as `[optimizer]` or a model of averages. The
        prune state of an optimizer has no `progress` then; see `shrink`.
      allow: as for `shrink`.

    Returns:
      The report. The model now has smaller params, and its layers remember the smaller sizes.

    Raises:
      TypeError: `model` is not an `nnx.Module`, the inputs are not what it takes, or `along` is not
        a list of NNX modules and optimizers.
      ValueError: as `shrink`; the model is then unchanged.
      ModuleNotFoundError: flax is not installed.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> model = nnx.Sequential(
      ...     nnx.Linear(2, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
      ... )
      >>> model.layers[0].kernel[...] = model.layers[0].kernel[...].at[:, 5:].set(0.0)
      >>> report = shrink_nnx(model, jnp.ones((1, 2)))
      >>> model.layers[0].out_features, model.layers[2].kernel.shape
      (5, (5, 3))
    """
    nnx = import_flax("shrink_nnx", "nnx")
    program = nnx_model("shrink_nnx", model, example_inputs)
    for x in along if isinstance(along, (list, tuple)) else [along]:
        if x is along or not isinstance(x, (nnx.Module, nnx.Optimizer)):
            raise TypeError(
                f"shrink_nnx: along must be a list of NNX modules and optimizers, got {shown(x)}. "
                "Pass along=[optimizer]; trees of arrays shrink along with jaxprune.shrink."
            )
    small, report, carrier = _shrink(program, rtol, allow)
    states = [carrier.smaller(nnx.state(x)) for x in along]
    for x, state in zip([model, *along], [small, *states], strict=True):
        nnx.update(x, state)
        set_nnx_sizes(x)
        for _, node in list(nnx.iter_graph(x)):
            if isinstance(node, nnx.Optimizer):
                node.opt_state = without_progress(node.opt_state)
    return report


class _Shrunk(NamedTuple):
    """Smaller variables, the report, and what removes the same units from other trees."""

    variables: Any
    report: ShrinkReport
    carrier: Carrier


def _shrink(model: Model, rtol: float | None, allow: Sequence[str]) -> _Shrunk:
    allow_means = allowed("shrink", allow)
    _check_arguments(model, rtol)
    program = program_of(model.apply_fn, model.variables, model.inputs, model.call)
    tracer = trace(program, known_values(program), freeze_sums=not allow_means)
    units_of_label, units = units_of_labels(tracer), units_of(tracer)

    def groups_with(tilings: Sequence[Tiling]) -> list[Group]:
        groups = group_units(program, units)
        balance(groups, tilings, units_of_label)
        return groups

    groups = groups_with(())
    if all(group.reason for group in groups):
        raise ValueError(f"shrink: no axis of the params can shrink: {refusals(program, groups)}")
    groups = accept(model, program, tracer, groups_with, allow_means=allow_means)
    removed = removed_indices(groups)
    small = without(program, removed)
    limit = math.inf if allow_means and rtol is None else rtol
    difference = largest_difference(model, small, limit)
    leaves = jax.tree_util.tree_leaves(small)
    removed_units = [unit.label for group in groups for unit in group.removed]
    layers = layer_costs(program, tracer, removed_units, leaves, model.uncounted)
    report = report_of(program, groups, leaves, layers, difference)
    return _Shrunk(small, report, Carrier(program, removed))


def _check_arguments(model: Model, rtol: float | None) -> None:
    is_number = isinstance(rtol, numbers.Real) and not isinstance(rtol, bool)
    if rtol is not None and not (is_number and rtol >= 0):
        raise ValueError(f"shrink: rtol must be a number of at least 0, got {shown(rtol)}.")
    _check_values("variables and inputs", (model.variables, model.inputs))
    check_not_donated("shrink: variables", model.variables)
    check_not_donated("shrink: example_inputs", model.inputs)


def _check_along(along: Any) -> None:
    """Raises a TypeError where `along` is an optimizer, or has leaves but no array among them."""
    if callable(getattr(along, "init", None)) and callable(getattr(along, "update", None)):
        raise TypeError(
            f"shrink: along must be a tree of arrays, got an optimizer, {shown(along)}. Pass its "
            "state: along=opt_state."
        )
    leaves = flattened(along)[0]
    for path, leaf in zip(paths_of(along), leaves, strict=True):
        check_array_library(path, leaf)
    is_array = lambda x: spec_of(x) is not None or isinstance(x, (jax.core.Tracer, numbers.Number))
    if leaves and not any(map(is_array, leaves)):
        raise TypeError(
            f"shrink: along must be a tree of arrays, got {shown(along)}. Pass the state of the "
            "optimizer, along=opt_state, or an average of the params."
        )


def _check_values(arguments: str, tree: Any) -> None:
    for x in flattened(tree)[0]:
        if isinstance(x, (jax.core.Tracer, jax.ShapeDtypeStruct)):
            raise TypeError(
                f"shrink: needs the values of {arguments}, got {shown(x)}. Pass arrays, "
                "outside jit."
            )
