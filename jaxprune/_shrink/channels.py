"""`channel_groups`: which channels must be pruned together, so that `shrink` can remove them."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune._base.paths import leaves_with_paths, rule_for
from jaxprune._recipe.coupled import Coupled
from jaxprune._shrink.flax_sizes import Model, function_model, nnx_model
from jaxprune._shrink.groups import Group, accept, group_units
from jaxprune._shrink.units import LeafAxis, Unit, units_of
from jaxprune._trace.program import Program, program_of, trace

NOT_ZERO = (
    "its units are not zero when all their weights are; the cause may be a sigmoid, or a norm "
    "without a scale"
)


def channel_groups(
    apply_fn: Callable[..., Any], variables: Any, *example_inputs: Any
) -> dict[str, Coupled]:
    """A structure that prunes whole channels, so that `shrink` can remove them.

    All slices that belong to a channel are dropped together: a column of a kernel, its bias, the
    scale and bias of its batch norm, and the same channel of other layers that a residual adds to
    it. A hidden unit of a recurrent cell includes its columns in all gates, a head of attention its
    query, key and value. The score of a channel is the Euclidean norm of all these weights, and all
    leaves of a group share one budget, which counts channels. Weights that only read a channel,
    such as its rows in the next kernel, are not pruned: they are multiplied by zeros.

    If a leaf could lose indices along several axes, the group with more leaves takes it. Axes that
    `shrink` refuses are left out. So is the last layer, whose channels are the outputs.

    Args:
      apply_fn: as for `shrink`, in inference mode.
      variables: as for `shrink`; their values do not matter.
      example_inputs: as for `shrink`.

    Returns:
      A dict from a regex for each leaf to its structure. Pass it twice, as `structure` and as
      `include`, because by default biases are not pruned:
      `prune(schedule, structure=groups, include=tuple(groups))`.

    Raises:
      ValueError: no channels can be pruned.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
      >>> params = {"w": jnp.array([[3.0, 1.0]]), "b": jnp.array([0.0, 1.0]), "v": jnp.ones((2, 2))}
      >>> groups = channel_groups(mlp, params, jnp.ones((4, 1)))
      >>> sparse, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
      >>> sparse["w"].tolist(), sparse["b"].tolist()
      ([[3.0, 0.0]], [0.0, 0.0])
      >>> jaxprune.shrink(mlp, sparse, jnp.ones((4, 1)))[0]["w"].tolist()
      [[3.0]]
    """
    model = function_model("channel_groups", apply_fn, variables, example_inputs)
    paths = leaves_with_paths(variables)[0]
    param_paths = [path for path in paths if path.startswith("params/")]
    return _coupled_structures(model, param_paths or paths)


def channel_groups_nnx(model: Any, *example_inputs: Any) -> dict[str, Coupled]:
    """`channel_groups` for an NNX model, with the paths that `nnx.Optimizer` uses.

    Args:
      model: an `nnx.Module` in inference mode: call `model.eval()` first.
      example_inputs: arguments of its call.

    Returns:
      As `channel_groups`.

    Raises:
      ValueError: no channels can be pruned.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 3, rngs=rngs))
      >>> list(channel_groups_nnx(model, jnp.ones((1, 2))))
      ['(params/)?layers/0/bias', '(params/)?layers/0/kernel']
    """
    from flax import nnx

    program = nnx_model("channel_groups_nnx", model, example_inputs)
    return _coupled_structures(program, leaves_with_paths(nnx.state(model, nnx.Param))[0])


def _coupled_structures(model: Model, param_paths: Iterable[str]) -> dict[str, Coupled]:
    program = program_of(model.apply_fn, model.variables, model.inputs)
    params = {program.paths.index(path) for path in param_paths}
    weights = {i for i in params if jnp.issubdtype(program.leaves[i].dtype, jnp.inexact)}
    tracer = trace(program, lambda leaf, axis: None)
    all_groups = group_units(units_of(tracer))
    groups = [group for group in all_groups if not group.reason]
    for group in groups:  # removing one unit shows whether the group can shrink at all
        group.removed = _candidates([group])[:1] if len(group.units) > 1 else []
    _refuse_nonzero(program, groups, weights)
    units = _candidates(accept(model, program, tracer, groups))
    structures: dict[str, Coupled] = {}
    for component in _components(units, weights):
        structures |= _structures_of(program, component, weights)
    if not structures:
        refused = [group for group in all_groups if group.reason]
        reasons = [f"{program.paths[group.axes[0].leaf]}: {group.reason}" for group in refused]
        raise ValueError(
            f"channel_groups: no channels can be pruned: {'; '.join(reasons) or 'there are none'}."
        )
    return structures


def _candidates(groups: Iterable[Group]) -> list[Unit]:
    """The units that may be removed as soon as they are zero."""
    return [unit for group in groups for unit in group.units if unit.is_candidate]


def _refuse_nonzero(program: Program, groups: Iterable[Group], weights: set[int]) -> None:
    """Refuses groups whose units are not zero when all weights that compute them are zero.

    Args:
      program: the model.
      groups: each with one unit to try in `removed`.
      weights: the leaves that can be pruned.
    """
    zeros: dict[LeafAxis, list[int]] = {}
    for unit in (unit for group in groups for unit in group.removed):
        producers = _producers(unit, weights)
        for member in unit.members:
            axis = LeafAxis(member.leaf, member.axis)
            if axis in producers:
                zeros.setdefault(axis, []).append(member.position)

    def known(leaf: int, axis: int) -> np.ndarray | None:
        indices = zeros.get(LeafAxis(leaf, axis))
        if indices is None:
            return None
        values = np.full(np.shape(program.leaves[leaf])[axis], np.nan)
        values[indices] = 0.0
        return values

    zero_units = {unit.members for unit in units_of(trace(program, known)) if unit.zero}
    for group in groups:
        if group.removed and group.removed[0].members not in zero_units:
            group.reason, group.removed = NOT_ZERO, []


def _producers(unit: Unit, weights: set[int]) -> list[LeafAxis]:
    """The param axes that compute a unit, without those that only read it."""
    return [a for a in unit.axes() if a.leaf in weights and a not in unit.consumers]


class _Component(NamedTuple):
    """Units that share producers, so that they must be pruned by one decision.

    Attributes:
      axes: the producers of all units.
      units: the units.
    """

    axes: set[LeafAxis]
    units: list[Unit]


def _components(units: Iterable[Unit], weights: set[int]) -> list[list[Unit]]:
    """The units in components. Each leaf is in one at most: the one with most axes takes it."""
    components: list[_Component] = []
    for unit in units:
        merged = _Component(set(_producers(unit, weights)), [unit])
        separate = []
        for component in components:
            if component.axes & merged.axes:
                merged = _Component(component.axes | merged.axes, component.units + merged.units)
            else:
                separate.append(component)
        components = [*separate, merged]
    taken: set[int] = set()
    chosen = []
    for axes, members in sorted(components, key=lambda component: -len(component.axes)):
        leaves = {axis.leaf for axis in axes}
        one_axis_per_leaf = len(leaves) == len(axes)
        if axes and one_axis_per_leaf and not leaves & taken and len(members) > 1:
            taken |= leaves
            chosen.append(members)
    return chosen


def _structures_of(program: Program, units: list[Unit], weights: set[int]) -> dict[str, Coupled]:
    """The structure of each leaf in a component."""
    axes = sorted({axis for unit in units for axis in _producers(unit, weights)})
    unit_of = {axis: np.full(np.shape(program.leaves[axis.leaf])[axis.axis], -1) for axis in axes}
    for number, unit in enumerate(units):
        for member in unit.members:
            axis = LeafAxis(member.leaf, member.axis)
            if axis in unit_of:
                unit_of[axis][member.position] = number
    name = _without_collection(program.paths[axes[0].leaf])
    return {
        f"(params/)?{rule_for(_without_collection(program.paths[axis.leaf]))}": Coupled(
            name, axis.axis, tuple(unit_of[axis].tolist()), len(units)
        )
        for axis in axes
    }


def _without_collection(path: str) -> str:
    return path.removeprefix("params/")
